//! Redis closes connections at any time: links and publishing connections.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    deployment::{Deployment, play, rounds, seed},
    support::{checker::Trouble, redis::Redis},
};

/// How many connections of each type are killed at least.
const KILLS: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_lose_nothing_and_end_no_subscription() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let deployment = Deployment::of(3, &redis).await;
    let wanted = KILLS * rounds();
    let (mut links, mut others) = (0, 0);
    play(&deployment, seed, Trouble::Refusals, async |progress| {
        let mut rng = StdRng::seed_from_u64(seed);
        while links < wanted || others < wanted {
            if rng.random_bool(0.5) {
                links += redis.kill_links();
            } else {
                others += redis.kill_clients("normal");
            }
            progress.by(rng.random_range(1..12)).await;
        }
    })
    .await;
    println!("killed {links} links and {others} publishing connections");
    deployment.stop().await;
}
