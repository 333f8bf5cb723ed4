//! Readers come and go without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rejoin::log::Start;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    bare::{log, subscribe},
    proxy::Proxy,
    support::redis::Redis,
};

const READERS: usize = 20;
/// So that at any moment one of them is about to follow something.
const LAG: Duration = Duration::from_millis(200);
/// A topic is followed for half a minute after its last reader. It turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[tokio::test]
async fn what_nobody_reads_any_more_is_let_go_of_though_somebody_always_comes() {
    let Some(redis) = Redis::start(&[]) else { return };
    let way = Proxy::to(redis.addr(), LAG).await;
    let broker = log(&way.url()).await;
    let followed = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (broker, followed) = (broker.clone(), followed.clone());
        readers.spawn(async move {
            loop {
                let number = followed.fetch_add(1, Ordering::Relaxed);
                drop(subscribe(&broker, &format!("a.{number}"), Start::Now).await);
            }
        });
    }
    let let_go = async {
        // Those on their way have no channel yet.
        while redis.stat("pubsub_channels") + READERS >= followed.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let is_let_go = timeout(PATIENCE, let_go).await.is_ok();
    println!("{} topics, {} channels", followed.load(Ordering::Relaxed), redis.stat("pubsub_channels"));
    assert!(is_let_go);
}
