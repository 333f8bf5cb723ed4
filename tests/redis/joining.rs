//! A topic joins a reader while the store is ahead of the watermark.

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

/// Turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

async fn next(reader: &mut Subscription) -> Id {
    match timeout(PATIENCE, poll_fn(|cx| reader.poll_delivery(cx))).await.expect("it comes") {
        Delivery::Message(message) => message.id,
        Delivery::Gap(gap) => panic!("{gap:?}"),
    }
}

/// Merges the two, which are polled only when they are woken, as in a connection.
async fn join(one: &mut Subscription, mut other: Subscription) {
    let level = poll_fn(|cx| match one.poll_join(&mut other, cx) {
        Poll::Ready(Join::SameCursor) => Poll::Ready(()),
        Poll::Ready(early) => panic!("{early:?}"),
        Poll::Pending => Poll::Pending,
    });
    // They must not be polled once more when the time is over.
    tokio::select! {
        biased;
        () = sleep(PATIENCE) => panic!("they are not caught up"),
        () = level => {}
    }
    one.absorb(other, None);
}

/// A message to another topic moves the newest id of the store, and so the cursor of a reader of the store,
/// but not the watermark of this replica. When the watermark gets there, that alone wakes no follower.
#[tokio::test]
async fn a_topic_joins_a_reader_that_is_ahead_of_the_watermark() {
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
async fn a_topic_that_is_ahead_of_the_watermark_joins_a_reader() {
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
