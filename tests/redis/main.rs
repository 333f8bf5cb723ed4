//! Several replicas over one Redis, and what can befall Redis, the ways to it, and the replicas.
//!
//! Each test prints its seed and proves that its fault happened. `REDIS_SEED` repeats the draws of an earlier
//! run (the interleaving is the machine's), `REDIS_ROUNDS` makes every fault happen so many times as often,
//! `REDIS_REPLICAS` gives every deployment so many replicas at least, `REDIS_SERVER` names the program to start,
//! so that other versions and Valkey are tried.

mod across;
mod bare;
mod confirmed;
mod deployment;
mod formats;
mod handover;
mod holes;
mod joining;
mod killed;
mod lagging;
mod lives;
mod lost;
mod memory;
mod narrow;
mod options;
mod outage;
mod pieces;
mod promoted;
mod proxy;
mod reader;
mod replicas;
mod restarted;
mod scene;
mod sentinels;
mod sharing;
mod stalled;
mod stopped;
#[path = "../support/mod.rs"]
mod support;
mod taken;
