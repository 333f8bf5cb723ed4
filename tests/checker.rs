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
use support::checker::{Plan, Retention, Tally, Trouble, run};

/// So few that a subscriber that stays away for a while gets a gap.
const FEW: u64 = 10;

/// Ways in which readers may join groups. The seed says which of them a run takes.
fn ways(seed: u32) -> [Parking; 4] {
    let mut ways = [Parking::AtRandom(seed.into()), Parking::Always, Parking::WithCompany, Parking::Never];
    ways.rotate_left(seed as usize % 4);
    ways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_comes_once_and_in_order_or_is_inside_a_gap() {
    let seed = from_env("CHECKER_SEED").unwrap_or_else(rand::random::<u32>);
    let rounds = from_env("CHECKER_ROUNDS").unwrap_or(1);
    let tally = Arc::new(Tally::default());
    for seed in (0..rounds).map(|round| seed.wrapping_add(round)) {
        println!("CHECKER_SEED={seed}");
        let [one, two, three, four] = ways(seed);
        run(seed.into(), Plan::thorough(Retention::Everything), one, tally.clone()).await;
        run(seed.into(), Plan::thorough(Retention::Newest(FEW)), two, tally.clone()).await;
        for parking in [three, four] {
            run(seed.into(), Plan::short(Trouble::None), parking, tally.clone()).await;
        }
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
