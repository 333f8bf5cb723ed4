//! Redis closes connections: the live link's, the publishing one's, whenever it likes.

use std::sync::Arc;

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    deployment::{Deployment, rounds, seed},
    support::{
        checker::{Plan, Tally, Trouble, run_against},
        redis::Redis,
    },
};

/// How many connections of each type are killed, at least.
const KILLS: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_lose_nothing_and_end_no_subscription() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let deployment = Deployment::of(3, &redis).await;
    let tally = Arc::new(Tally::default());
    let wanted = KILLS * rounds();
    let (links, others) = run_against(
        deployment.addrs(),
        seed,
        Plan::short(Trouble::Refusals),
        tally.clone(),
        async |progress| {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut links, mut others) = (0, 0);
            while links < wanted || others < wanted {
                if rng.random_bool(0.5) {
                    links += redis.kill_clients("pubsub");
                } else {
                    others += redis.kill_clients("normal");
                }
                progress.by(rng.random_range(1..12)).await;
            }
            (links, others)
        },
    )
    .await;
    println!("killed {links} links and {others} publishing connections; {}", tally.summary());
    deployment.stop().await;
}
