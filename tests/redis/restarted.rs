//! Redis ends without warning, and comes back with everything that it has acknowledged.

use crate::{
    deployment::{Deployment, play, rounds, seed},
    support::{checker::Trouble, redis::Redis},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_keeps_what_it_acknowledges_is_restarted_without_a_gap() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let seed = seed();
    let deployment = Deployment::of(2, &redis).await;
    let mut lives = vec![redis.run_id()];
    play(&deployment, seed, Trouble::Refusals, async |progress| {
        for _ in 0..3 * rounds() {
            progress.by(100).await;
            redis.kill();
            redis.start_again();
            lives.push(redis.run_id());
        }
        progress.by(100).await;
    })
    .await;
    println!("lives of Redis: {lives:?}");
    lives.dedup();
    assert_eq!(lives.len(), 3 * rounds() + 1);
    deployment.stop().await;
}
