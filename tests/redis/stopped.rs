//! Redis runs and does nothing for a while, as on a machine that hangs.

use std::time::Duration;

use crate::{
    deployment::{Deployment, play, rounds, seed},
    support::{checker::Trouble, redis::Redis},
};

const STOP: Duration = Duration::from_secs(10);
/// Commands from before Redis stopped may still be answered within this time.
const ANSWERED: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_nothing_for_ten_seconds_loses_nothing() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let deployment = Deployment::of(2, &redis).await;
    play(&deployment, seed, Trouble::Refusals, async |progress| {
        for _ in 0..rounds() {
            progress.by(150).await;
            redis.stop();
            tokio::time::sleep(ANSWERED).await;
            let acknowledged = progress.acknowledged();
            tokio::time::sleep(STOP - ANSWERED).await;
            assert_eq!(progress.acknowledged(), acknowledged, "Redis has not stopped");
            redis.go_on();
            progress.by(150).await;
        }
    })
    .await;
    deployment.stop().await;
}
