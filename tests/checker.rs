//! The main test: the guarantees of this server, while every connection is cut again and again.
//!
//! Publishers publish. Subscribers read one topic, several, or a pattern, over WebSocket, Server-Sent Events,
//! NDJSON and long-polling. A proxy cuts them off inside frames, between frames and during a replay. After
//! each cut they reconnect on any transport with their cursor. Then:
//!
//! - every message has reached every subscriber once and in order, or is inside a gap that the server told;
//! - every gap covers at least one message, and only messages that were no longer retained;
//! - the server told each gap before anything newer than its beginning.
//!
//! `CHECKER_SEED` repeats the random choices of an earlier run (the scheduling still differs).
//! `CHECKER_ROUNDS` runs several rounds, each with the next seed.

mod support;

use std::{env, str::FromStr, sync::Arc};

use rejoin::config::Parking;
use support::checker::{Retention, Tally, run};

/// So few that a subscriber that stays away for a while gets a gap.
const FEW: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_comes_once_and_in_order_or_is_inside_a_gap() {
    check(|_| Parking::WithCompany).await;
}

/// Readers join groups and leave them at every chance, and at moments at which they otherwise would not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_if_every_reader_parks_whenever_it_may() {
    check(|_| Parking::Always).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_if_no_reader_parks() {
    check(|_| Parking::Never).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_if_readers_park_at_random() {
    check(Parking::AtRandom).await;
}

async fn check(parking: impl Fn(u64) -> Parking) {
    let seed = from_env("CHECKER_SEED").unwrap_or_else(rand::random::<u32>);
    let rounds = from_env("CHECKER_ROUNDS").unwrap_or(1);
    let tally = Arc::new(Tally::default());
    for seed in (0..rounds).map(|round| seed.wrapping_add(round)) {
        println!("CHECKER_SEED={seed}");
        run(seed.into(), Retention::Everything, parking(seed.into()), tally.clone()).await;
        run(seed.into(), Retention::Newest(FEW), parking(seed.into()), tally.clone()).await;
    }
    println!("{tally}");
    let missing = tally.missing();
    assert!(missing.is_empty(), "seed {seed} proves too little: {}", missing.join(", "));
}

/// # Panics
/// If the variable is set to something else than a number.
fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
