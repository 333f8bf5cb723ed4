//! A topic joins a reader, over a log that is ahead of what has arrived here.

use std::{future::poll_fn, task::Poll, time::Duration};

use rejoin::{
    broker::{Delivery, Join, Subscription},
    log::Start,
    message::Id,
};
use tokio::time::{sleep, timeout};

use crate::{
    bare::{log, publish, subscribe},
    support::redis::Redis,
};

/// It turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

async fn next(reader: &mut Subscription) -> Id {
    match timeout(PATIENCE, poll_fn(|cx| reader.poll_delivery(cx))).await.expect("it comes") {
        Delivery::Message(message) => message.id,
        Delivery::Gap(gap) => panic!("{gap:?}"),
    }
}

/// Polled only when it is woken, as a connection is.
async fn join(one: &mut Subscription, mut other: Subscription) {
    let level = poll_fn(|cx| match one.poll_join(&mut other, cx) {
        Poll::Ready(Join::Level) => Poll::Ready(()),
        Poll::Ready(early) => panic!("{early:?}"),
        Poll::Pending => Poll::Pending,
    });
    // It is not to be looked at once more when the time is over.
    tokio::select! {
        biased;
        () = sleep(PATIENCE) => panic!("they are not level"),
        () = level => {}
    }
    one.absorb(other);
}

/// What is published elsewhere moves the store's newest id, and so the cursor of whoever reads the store, but not
/// what has arrived here; and when that has come as far, nobody is woken by it.
#[tokio::test]
async fn a_topic_joins_a_reader_who_is_ahead_of_what_has_arrived() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (here, there) = (log(&redis.url()).await, log(&redis.url()).await);
    for (first, second) in [("a.*", "b"), ("b", "a.*")] {
        let cursor = publish(&there, "a.one").await;
        let missed = [publish(&there, "a.one").await, publish(&there, "b").await];
        let mut ahead = subscribe(&here, first, Start::After(cursor)).await;
        let behind = subscribe(&here, second, Start::Now).await;
        publish(&there, "elsewhere").await;
        assert!(missed.contains(&next(&mut ahead).await));
        join(&mut ahead, behind).await;
        let id = publish(&there, "b").await;
        assert_eq!(next(&mut ahead).await, id);
    }
}

#[tokio::test]
async fn a_topic_that_is_ahead_of_what_has_arrived_joins_a_reader() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (here, there) = (log(&redis.url()).await, log(&redis.url()).await);
    let mut behind = subscribe(&here, "b", Start::Now).await;
    let cursor = publish(&there, "a.one").await;
    let missed = publish(&there, "a.one").await;
    let mut ahead = subscribe(&here, "a.*", Start::After(cursor)).await;
    publish(&there, "elsewhere").await;
    assert_eq!(next(&mut ahead).await, missed);
    join(&mut behind, ahead).await;
    let id = publish(&there, "b").await;
    assert_eq!(next(&mut behind).await, id);
}
