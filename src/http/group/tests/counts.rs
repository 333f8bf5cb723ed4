//! The tests of counts: what readers in groups were given, and how far they are behind.

use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn each_message_to_each_member_is_counted() {
    let readers = Readers::new();
    let mut parked = readers.parked(3).await;
    let metrics = readers.app.metrics.of(Transport::Ndjson).clone();
    let began = Instant::now();
    readers.publish("one", None).await;
    readers.publish("two", None).await;
    settle().await;
    assert_eq!((metrics.deliveries.get(), metrics.by_groups.get()), (6, 6));
    assert_eq!(metrics.latency.get_sample_count(), 3, "one for each write");
    // This one begins now, so it is given only the last message.
    let mut late = readers.reader("late").await;
    assert!(readers.park(&mut late));
    readers.publish("three", Some("c2")).await;
    settle().await;
    assert_eq!((metrics.deliveries.get(), metrics.by_groups.get()), (9, 9));
    assert_eq!(metrics.latency.get_sample_count(), 6);
    parked.push(late);
    let mut bytes = 0;
    for (reader, messages) in parked.iter_mut().zip([3, 3, 2, 1]) {
        let given = reader.parked.take().expect("parked").leave().expect("it has not left").given;
        assert_eq!(given.messages, messages);
        assert!(given.at >= began, "it was written to");
        assert_eq!(reader.received().len(), messages);
        bytes += given.bytes;
    }
    assert_eq!(metrics.delivered_bytes.get(), bytes as u64);
}

/// Lets time pass, so that a message that comes now is some milliseconds younger than where these stand.
async fn until_later(readers: &[Reader]) {
    // An id is the time of publishing in microseconds.
    let cursor = readers[0].parked.as_ref().expect("parked").cursor().get();
    while Id::now().get() < cursor + 2000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_group_that_waits_for_a_turn_is_behind() {
    let readers = Readers::new();
    let parked = readers.parked(2).await;
    let turns = readers.app.groups.turns.clone();
    let behind = || parked[0].parked.as_ref().expect("parked").behind_ms();
    let taken = turns.acquire_many(WRITES_AT_ONCE as u32).await.expect("never closed");
    assert_eq!(behind(), 0);
    until_later(&parked).await;
    readers.publish("one", None).await;
    settle().await;
    assert!(behind() > 0);
    drop(taken);
    settle().await;
    assert_eq!(behind(), 0);
}

/// Its group is not behind: it has joined the messages already.
#[tokio::test]
async fn a_member_that_has_yet_to_be_given_a_batch_is_behind() {
    let readers = Readers::new();
    let parked = readers.parked(WRITES_AT_ONCE + 1).await;
    let group = readers.app.groups.any().expect("a group");
    let behind = |index: usize| parked[index].parked.as_ref().expect("parked").behind_ms();
    until_later(&parked).await;
    readers.publish("one", None).await;
    assert!(group.has_batch() && behind(0) > 0 && behind(WRITES_AT_ONCE) > 0);
    assert!(group.write_some(WRITES_AT_ONCE), "one is left");
    assert!(behind(0) == 0 && behind(WRITES_AT_ONCE) > 0);
    assert!(!group.write_some(1));
    assert!(behind(0) == 0 && behind(WRITES_AT_ONCE) == 0);
    // The group lets this one go, and it has yet to look at what it may read.
    until_later(&parked).await;
    readers.publish("two", Some("c0")).await;
    assert!(group.has_batch() && group.write_some(WRITES_AT_ONCE), "one is left");
    assert!(behind(0) > 0 && behind(1) == 0);
}

#[tokio::test]
async fn an_ephemeral_message_counts_as_a_delivery_and_has_no_latency() {
    let readers = Readers::new();
    let mut parked = readers.parked(2).await;
    let (topic, payload) = ("a".parse().expect("a topic"), Payload::text("one"));
    let draft = Draft { topic, event: None, payload, exclude: None, by: None };
    readers.broker.announce(draft).await.expect("announced");
    settle().await;
    parked.iter_mut().for_each(|reader| assert_eq!(reader.received(), ["one"]));
    let metrics = readers.app.metrics.of(Transport::Ndjson);
    assert_eq!((metrics.deliveries.get(), metrics.latency.get_sample_count()), (2, 0));
}
