//! Several replicas over one Redis, and faults of Redis, of the network and of the replicas.
//!
//! Each test prints its seed and proves that its fault happened. `REDIS_SEED` repeats the random draws of an
//! earlier run, but not the interleaving of its tasks. `REDIS_ROUNDS` repeats each fault this many times.
//! `REDIS_REPLICAS` is the smallest number of replicas of a deployment. `REDIS_SERVER` names the program to
//! start, so that other versions and Valkey can be tested. `STORM_ROUNDS` makes the storm longer.

mod across;
mod bare;
mod confirmed;
mod connections;
mod deployment;
mod ends;
mod fit;
mod foreign;
mod formats;
mod frozen;
mod generations;
mod handover;
mod hanging;
mod history;
mod holes;
mod joining;
mod killed;
mod lagging;
mod late;
mod later;
mod lost;
mod memory;
mod narrow;
mod options;
mod outage;
mod pieces;
mod presence;
mod promoted;
mod proxy;
mod reader;
mod refusals;
mod repaired;
mod replicas;
mod restarted;
mod retain;
mod scene;
mod sentinels;
mod sharing;
#[path = "../support/signer.rs"]
mod signer;
mod stalled;
mod stopped;
mod storm;
#[path = "../support/mod.rs"]
mod support;
mod taken;
