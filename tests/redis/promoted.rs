//! A copy of Redis takes over, and lacks the newest messages that the primary had acknowledged.

use std::time::Duration;

use crate::{
    deployment::{Deployment, seed},
    proxy::{Proxy, Stall},
    scene::{Scene, TOPIC},
    support::redis::Redis,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_copy_that_lacks_the_newest_is_a_gap_for_every_older_cursor() {
    let Some(mut primary) = Redis::start(&[]) else { return };
    seed();
    let way = Proxy::to(primary.addr(), Duration::ZERO).await;
    let to_copy = Proxy::to(primary.addr(), Duration::ZERO).await;
    let copy =
        Redis::start(&["--replicaof", &format!("127.0.0.1 {}", to_copy.addr.port())]).expect("another");
    copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let mut scene = Scene::set(Deployment::over(&vec![way.url(); 2]).await, 3).await;
    let kept = *scene.published.last().expect("published");
    let stream = format!("{{rejoin}}:topic:{TOPIC}");
    let newest = ["XREVRANGE", &stream, "+", "-", "COUNT", "1"];
    copy.until_says(&newest, &kept.to_string()).await;
    to_copy.stall(Stall::Both);
    scene.publish(2).await;
    scene.read_to_the_end().await;
    primary.kill();
    assert!(copy.say(&newest).contains(&kept.to_string()), "nothing was in fact lost");
    copy.say(&["REPLICAOF", "NO", "ONE"]);
    way.lead_to(copy.addr());
    scene.all_older_cursors_are_told(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_promoted_while_the_primary_lives_is_followed_by_every_replica() {
    let Some(primary) = Redis::start(&[]) else { return };
    seed();
    let way = Proxy::to(primary.addr(), Duration::ZERO).await;
    let to_copy = Proxy::to(primary.addr(), Duration::ZERO).await;
    let copy =
        Redis::start(&["--replicaof", &format!("127.0.0.1 {}", to_copy.addr.port())]).expect("another");
    let scene = Scene::set(Deployment::over(&vec![way.url(); 2]).await, 4).await;
    let kept = *scene.published.last().expect("published");
    let stream = format!("{{rejoin}}:topic:{TOPIC}");
    copy.until_says(&["XREVRANGE", &stream, "+", "-", "COUNT", "1"], &kept.to_string()).await;
    to_copy.stall(Stall::Both);
    let mut scene = scene;
    scene.publish(1).await;
    scene.read_to_the_end().await;
    copy.say(&["REPLICAOF", "NO", "ONE"]);
    way.lead_to(copy.addr());
    scene.all_older_cursors_are_told(4).await;
}
