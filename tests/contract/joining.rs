//! A topic is added to a connection, step by step, so that no order depends on chance.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use rejoin::{
    broker::{Broker, Delivery, Join, Subscription},
    log::{Append, MemoryLog, Retention, Rules, Start},
    message::{Draft, Id, Payload},
};

use crate::failing::FailingLog;

const RETENTION: Retention = Retention {
    messages: 5,
    age: Duration::from_secs(3600),
    bytes: 1 << 20,
    total_bytes: 8 << 20,
    topics: 1_000_000,
    rules: Rules::NONE,
};

async fn publish(broker: &Broker, topic: &str) -> Id {
    let topic = topic.parse().expect("a topic");
    let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
    let append = Append { draft, idempotency_key: None, if_match: None };
    broker.publish(append).await.expect("stored").id()
}

async fn subscribe(broker: &Broker, pattern: &str, start: Start) -> Subscription {
    let patterns = vec![pattern.parse().expect("a pattern")];
    broker.subscribe(patterns, &start, "reader").await.expect("a subscription")
}

/// Everything that the subscription gives out now.
fn ready(subscription: &mut Subscription) -> Vec<Delivery> {
    let mut cx = Context::from_waker(Waker::noop());
    let next = || match subscription.poll_delivery(&mut cx) {
        Poll::Ready(delivery) => Some(delivery),
        Poll::Pending => None,
    };
    std::iter::from_fn(next).collect()
}

/// Merges `other` into the subscription. Returns what either gives out meanwhile.
fn join(subscription: &mut Subscription, mut other: Subscription) -> (Vec<Delivery>, Vec<Delivery>) {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut live, mut replay) = (Vec::new(), Vec::new());
    loop {
        match subscription.poll_join(&mut other, &mut cx) {
            Poll::Ready(Join::Live(delivery)) => live.push(delivery),
            Poll::Ready(Join::Replay(delivery)) => replay.push(delivery),
            Poll::Ready(Join::SameCursor) => break,
            Poll::Pending => panic!("all that is needed is there: {live:?} {replay:?}"),
        }
    }
    subscription.absorb(other, None);
    (live, replay)
}

fn ids(deliveries: &[Delivery]) -> Vec<Id> {
    let id = |delivery: &Delivery| match delivery {
        Delivery::Message(message) => message.id,
        Delivery::Gap(gap) => panic!("a gap: {gap:?}"),
    };
    deliveries.iter().map(id).collect()
}

fn gaps(deliveries: &[Delivery]) -> usize {
    deliveries.iter().filter(|delivery| matches!(delivery, Delivery::Gap(_))).count()
}

/// `last` of the connection says where *its* reading of a topic begins, and does not limit a later
/// subscription to the same topic.
#[tokio::test]
async fn a_topic_begins_at_its_own_start_though_a_pattern_begins_later() {
    let broker = Broker::new(MemoryLog::start(RETENTION));
    let quiet = publish(&broker, "a.quiet").await;
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(publish(&broker, "a.busy").await);
    }
    for start in [Start::Everything, Start::After(quiet.before())] {
        let mut subscription = subscribe(&broker, "a.*", Start::Last(1)).await;
        let other = subscribe(&broker, "a.busy", start.clone()).await;
        let (live, replay) = join(&mut subscription, other);
        let all = [ids(&live), ids(&replay), ids(&ready(&mut subscription))].concat();
        assert_eq!(all, [&[quiet][..], &busy].concat(), "{start:?}");
    }
    // A subscription that is further, and asks for less of the new topic, still gets what it asked for
    // before.
    let mut subscription = subscribe(&broker, "a.busy", Start::After(quiet.before())).await;
    let other = subscribe(&broker, "a.*", Start::Last(1)).await;
    let (live, replay) = join(&mut subscription, other);
    let all = [ids(&live), ids(&replay), ids(&ready(&mut subscription))].concat();
    assert_eq!(all, [&[quiet][..], &busy].concat());
}

#[tokio::test]
async fn an_unsubscribed_topic_begins_anew() {
    let broker = Broker::new(MemoryLog::start(RETENTION));
    let quiet = publish(&broker, "quiet").await;
    let mut busy = Vec::new();
    for _ in 0..3 {
        busy.push(publish(&broker, "busy").await);
    }
    let patterns = ["busy", "quiet"].map(|name| name.parse().expect("a pattern"));
    let mut subscription = broker.subscribe(patterns.into(), &Start::Last(1), "reader").await.expect("one");
    assert!(subscription.remove(&"busy".parse().expect("a pattern")));
    let other = subscribe(&broker, "busy", Start::After(quiet.before())).await;
    let (live, replay) = join(&mut subscription, other);
    let all = [ids(&live), ids(&replay), ids(&ready(&mut subscription))].concat();
    assert_eq!(all, [&[quiet][..], &busy].concat());
}

/// A page that was asked for before a topic was added contains nothing of that topic.
#[tokio::test]
async fn a_new_topic_loses_nothing_while_the_log_is_read_for_the_others() {
    let (log, faults) = FailingLog::new();
    let broker = Broker::new(log);
    let cursor = broker.newest().await.expect("a cursor");
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(publish(&broker, "new").await);
        expected.push(publish(&broker, "old.x").await);
    }
    faults.hold_reads(true);
    let mut subscription = subscribe(&broker, "old.*", Start::After(cursor)).await;
    assert_eq!(ids(&ready(&mut subscription)), []);
    assert!(subscription.is_reading());
    let other = subscribe(&broker, "new", Start::After(cursor)).await;
    assert!(matches!(join(&mut subscription, other), (live, replay) if live.is_empty() && replay.is_empty()));
    faults.hold_reads(false);
    let mut given = Vec::new();
    while given.len() < expected.len() {
        let next = std::future::poll_fn(|cx| subscription.poll_delivery(cx));
        given.push(tokio::time::timeout(Duration::from_secs(10), next).await.expect("a message"));
    }
    assert_eq!(ids(&given), expected);
}

/// The tail of the pattern begins after the point up to which it has to be read.
#[tokio::test]
async fn a_pattern_can_be_added_while_messages_come() {
    let broker = Broker::new(MemoryLog::start(RETENTION));
    let mut expected = vec![publish(&broker, "a.x").await, publish(&broker, "b").await];
    let mut subscription = subscribe(&broker, "b", Start::Now).await;
    assert_eq!(ids(&ready(&mut subscription)), []);
    for topic in ["b", "a.x", "a.y"] {
        expected.push(publish(&broker, topic).await);
    }
    let other = subscribe(&broker, "a.*", Start::Everything).await;
    let (live, replay) = join(&mut subscription, other);
    assert_eq!((ids(&live), ids(&replay)), (vec![], expected[..1].to_vec()));
    assert_eq!(ids(&ready(&mut subscription)), expected[2..]);
}

#[tokio::test]
async fn during_a_replay_the_gaps_of_the_other_topics_wait() {
    let broker = Broker::new(MemoryLog::start(RETENTION));
    for _ in 0..5 {
        publish(&broker, "again").await;
    }
    let mut subscription = subscribe(&broker, "busy", Start::Now).await;
    assert_eq!(ids(&ready(&mut subscription)), []);
    let mut other = subscribe(&broker, "again", Start::Everything).await;
    let mut cx = Context::from_waker(Waker::noop());
    for nth in 0..5 {
        for _ in 0..10 {
            publish(&broker, "busy").await;
        }
        let given = subscription.poll_join(&mut other, &mut cx);
        assert!(matches!(given, Poll::Ready(Join::Replay(Delivery::Message(_)))), "{nth}: {given:?}");
    }
    assert!(matches!(subscription.poll_join(&mut other, &mut cx), Poll::Ready(Join::SameCursor)));
    subscription.absorb(other, None);
    let given = ready(&mut subscription);
    assert_eq!((gaps(&given), given.len()), (1, 6), "then each gap comes once: {given:?}");
}
