//! Several replicas over one Redis, and what can befall Redis, the ways to it, and the replicas.
//!
//! Each test prints its seed and proves that its fault happened. `REDIS_SEED` repeats the draws of an earlier
//! run (the interleaving is the machine's), `REDIS_ROUNDS` makes every fault happen so many times as often.

mod deployment;
mod killed;
#[allow(dead_code, reason = "the faults that need it come with it")]
mod proxy;
#[path = "../support/mod.rs"]
mod support;
