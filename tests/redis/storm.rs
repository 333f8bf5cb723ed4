//! A storm: random requests about connections, lists and subjects, and clients that come and go, while replicas are
//! killed, hang or drain, and Redis is killed, hangs or loses everything. Then:
//!
//! - after the `204` of a `PUT`, a connection is given every later message of the topic, or its gap, or it ends; after
//!   that of a `DELETE` it is given none;
//! - the same holds for the readers of a subject's list, also over their reconnects, once and in order;
//! - no connection from before the end of its subject is given what was published after the `204`;
//! - the members of each topic are the clients that hold it, and no member leaves that a client holds at a replica without
//!   a fault; the changes that are told, applied one by one to the members once read, give the members.
//!
//! `STORM_ROUNDS` runs several rounds, each with the next seed, and each with more faults than the short one.

mod clients;
mod faults;
mod journal;
mod lists;
mod presence;
mod verdict;
mod world;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use self::{
    faults::Faults,
    world::{Phase, World},
};
use crate::{deployment::seed, support::redis::Redis};

/// How long the replicas may take until everything is as it should be, after the last fault.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_holds_in_a_storm() {
    let seed = seed();
    let rounds = std::env::var("STORM_ROUNDS").ok().map(|text| text.parse().expect("a number"));
    for seed in (0..rounds.unwrap_or(1)).map(|round| seed.wrapping_add(round)) {
        println!("REDIS_SEED={seed}");
        round(seed, rounds.is_some()).await;
    }
}

/// One deployment from its start to its end.
async fn round(seed: u64, is_long: bool) {
    let keeps = seed.is_multiple_of(2);
    let settings: &[&str] = if keeps { &["--appendonly", "yes", "--appendfsync", "always"] } else { &[] };
    let Some(redis) = Redis::start(settings) else { return };
    let (mut faults, addrs) = Faults::start(seed, redis, keeps).await;
    let world = Arc::new(World::new(addrs));
    let mut actors = JoinSet::new();
    for number in 0..3 {
        actors.spawn(world::publish(world.clone(), seed + number));
    }
    for number in 0..4 {
        actors.spawn(clients::live(world.clone(), seed + 100 + number));
    }
    for number in 0..3 {
        actors.spawn(lists::change(world.clone(), seed + 200 + number, number));
    }
    for number in 0..6 {
        actors.spawn(lists::read(world.clone(), seed + 300 + number, number));
    }
    for number in 0..10 {
        actors.spawn(presence::hold(world.clone(), seed + 400 + number));
    }
    for number in 0..2 {
        actors.spawn(presence::watch(world.clone(), seed + 500 + number, number));
    }
    faults.befall(&world, is_long).await;
    world.go_to(Phase::Calm);
    presence::until_true(&world, PATIENCE).await;
    let last = world.publish_last().await;
    world.until_read(last, PATIENCE).await;
    world.go_to(Phase::Over);
    let all = async {
        while actors.join_next().await.is_some_and(|done| done.map(|()| true).expect("no actor panics")) {}
    };
    timeout(PATIENCE, all).await.expect("all actors end");
    println!("{}", verdict::check(&world.journal()));
    faults.stop();
}
