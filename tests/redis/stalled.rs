//! The path to Redis still accepts connections, and nothing gets through.

use std::time::Duration;

use crate::{
    deployment::{Deployment, play, rounds, seed, until_ready},
    proxy::{Proxy, Stall},
    support::{checker::Trouble, redis::Redis},
};

/// Usually longer than it takes to notice a stall.
const STALL: Duration = Duration::from_secs(4);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

async fn check(stall: Stall) {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
    let deployment = Deployment::over(&[proxy.url(), redis.url()]).await;
    let (held, links) = (proxy.held(), proxy.links());
    play(&deployment, seed, Trouble::Refusals, async |progress| {
        for _ in 0..rounds() {
            progress.by(100).await;
            let connections = proxy.connections();
            proxy.stall(stall);
            tokio::time::sleep(STALL).await;
            // The whole machine may have paused meanwhile, so keep the stall until it was noticed.
            while proxy.connections() == connections {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            proxy.stall(Stall::Nothing);
            until_ready(proxy_side(&deployment)).await;
            progress.by(100).await;
        }
    })
    .await;
    let (held, links) = (proxy.held() - held, proxy.links() - links);
    println!("{stall:?}: {held} pieces held up, {links} links made anew");
    assert!(held > 0, "nothing was held up");
    // If both connections stall, the link may recover as soon as the store answers again.
    assert!(stall != Stall::Links || links > 0, "the dead link was not found");
    deployment.stop().await;
}

fn proxy_side(deployment: &Deployment) -> std::net::SocketAddr {
    deployment.replicas[0].addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_over_which_nothing_comes_loses_nothing() {
    check(Stall::Links).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publishing_connection_that_is_not_answered_loses_nothing() {
    check(Stall::Publishing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_to_which_nothing_gets_through_loses_nothing() {
    check(Stall::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_have_died_without_a_sign_are_found_and_replaced() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
    let deployment = Deployment::over(&[proxy.url(), redis.url()]).await;
    let links = proxy.links();
    play(&deployment, seed, Trouble::Refusals, async |progress| {
        for dead in 1..=3 * rounds() {
            progress.by(100).await;
            proxy.forget_connections();
            // No other fault ends a link here, so a new link shows that the dead one was found.
            while proxy.links() - links < dead {
                progress.by(1).await;
            }
        }
        until_ready(proxy_side(&deployment)).await;
        progress.by(100).await;
    })
    .await;
    println!("{} pieces held up for ever, {} links made anew", proxy.held(), proxy.links() - links);
    assert!(proxy.held() > 0);
    deployment.stop().await;
}
