//! One replica gets every entry of the feed half a second late.

use std::time::Duration;

use crate::{
    deployment::{Deployment, play, seed},
    proxy::Proxy,
    support::{checker::Trouble, redis::Redis},
};

const LAG: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hop_to_a_late_replica_get_no_false_gap_and_no_old_message() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let proxy = Proxy::to(redis.addr(), LAG).await;
    let deployment = Deployment::over(&[proxy.url(), redis.url()]).await;
    play(&deployment, seed, Trouble::Refusals, async |progress| progress.by(200).await).await;
    println!("{} pieces carried {LAG:?} late over {} links", proxy.late(), proxy.links());
    assert!(proxy.late() > 20);
    deployment.stop().await;
}
