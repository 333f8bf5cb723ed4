//! The room and the time that one client, or one publish, leaves to the others.

use rejoin::{
    broker::{Broker, Subscription},
    log::{Append, AppendError, Appended, Log, MemoryLog, Payer, Retention, Start},
};
use tokio::time::timeout;

use crate::{New, PATIENCE, RETENTION, append, draft, drain, publish, shown, subscribe};

/// This many readers of 50 patterns each. All patterns match one topic, and all readers are caught up.
async fn readers_of_one_topic(broker: &Broker, count: usize) -> Vec<Subscription> {
    let name = |number: usize| {
        // The first segment changes last, so that the patterns of one reader lie together in the walk.
        let segments = (0..12).rev().map(|at| if number >> at & 1 == 0 { "*" } else { "a" });
        segments.collect::<Vec<_>>().join(".")
    };
    let mut readers = Vec::new();
    for reader in 0..count {
        let names: Vec<_> = (reader * 50..(reader + 1) * 50).map(name).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut subscription = subscribe(broker, &names, Start::Now).await;
        assert!(drain(broker, &mut subscription).await.is_empty());
        readers.push(subscription);
    }
    readers
}

/// The log was locked while it brought a message to all patterns that match it.
#[tokio::test]
async fn a_publish_that_many_patterns_match_is_seen_by_all_though_its_publisher_leaves() {
    let log = MemoryLog::start(RETENTION);
    let broker = Broker::new(log.clone());
    let readers = readers_of_one_topic(&broker, 80).await;
    let readers = tokio::spawn(woken_for(readers, 2));
    tokio::task::yield_now().await;
    let start = log.watermark();
    let name = ["a"; 12].join(".");
    {
        let first = std::pin::pin!(broker.publish(append(&name, "x")));
        assert!(futures_util::poll!(first).is_pending(), "it takes more than one step");
    }
    assert_eq!(log.watermark(), start, "not all tails hold it yet");
    // A reader that subscribes meanwhile gets the message too, and the subscribing does not wait for it.
    let mut late = subscribe(&broker, &["a.**", "*.*.*.*.*.*.*.*.*.*.*.*"], Start::Now).await;
    assert!(futures_util::poll!(std::future::poll_fn(|cx| late.poll_delivery(cx))).is_pending());
    let second = publish(&broker, &name).await;
    let (readers, seen) = readers.await.expect("they are woken");
    let expected = seen[0].clone();
    assert_eq!(expected[1], format!("{name}:{second}"));
    assert!(seen.iter().all(|seen| *seen == expected), "all are given the same");

    let readers = tokio::spawn(woken_for(readers, 1));
    tokio::task::yield_now().await;
    broker.announce(draft(&name, "psst")).await.expect("announced");
    let (_, seen) = readers.await.expect("they are woken");
    assert!(seen.iter().all(|seen| seen == &["psst"]), "{seen:?}");
    let expected = [expected, vec!["psst".to_owned()]].concat();
    assert_eq!(drain(&broker, &mut late).await, expected);
}

/// The first `count` deliveries of each reader. Each reader is woken by its messages, and by nothing else.
async fn woken_for(readers: Vec<Subscription>, count: usize) -> (Vec<Subscription>, Vec<Vec<String>>) {
    let next = async |mut reader: Subscription| {
        let mut seen = Vec::new();
        while seen.len() < count {
            seen.push(shown(&std::future::poll_fn(|cx| reader.poll_delivery(cx)).await));
        }
        (reader, seen)
    };
    let all = futures_util::future::join_all(readers.into_iter().map(next));
    timeout(PATIENCE, all).await.expect("each is woken").into_iter().unzip()
}

/// How many new topics this client may make.
async fn make_topics(broker: &Broker, payer: Option<Payer>, name: &str) -> usize {
    let mut made = 0;
    while broker.publish_for(append(&format!("{name}.{made}"), "x"), payer).await.is_ok() {
        made += 1;
    }
    made
}

/// A user who may publish to many topics made all of them, and no other client could make one for a week.
pub async fn a_client_makes_as_many_topics_as_it_leaves_free(new: New) {
    let broker = Broker::new(new(Retention { topics: 40, ..RETENTION }));
    let (loud, quiet) = (Payer::subject("loud"), Payer::subject("quiet"));
    assert_eq!(make_topics(&broker, Some(loud), "loud").await, 18);
    assert_eq!(make_topics(&broker, Some(quiet), "quiet").await, 9);
    let known = broker.publish_for(append("quiet.0", "x"), Some(loud)).await;
    assert!(matches!(known, Ok(Appended::Stored(_))), "a topic that is known costs nothing: {known:?}");
    assert_eq!(make_topics(&broker, None, "backend").await, 13, "a backend makes all that are left");
    let refused = broker.publish_for(append("x", "x"), Some(quiet)).await;
    assert_eq!(refused, Err(AppendError::TooManyTopics));
}

/// Publishes with this key.
async fn use_key(
    broker: &Broker,
    payer: Option<Payer>,
    name: &str,
    key: usize,
) -> Result<Appended, AppendError> {
    let append = Append { idempotency_key: Some(key.to_string().into()), ..append(name, "x") };
    broker.publish_for(append, payer).await
}

/// Each user made no more than it left free, and together they made all: a backend could make none for a week.
pub async fn all_clients_together_leave_topics_to_a_backend(new: New) {
    let broker = Broker::new(new(Retention { topics: 40, ..RETENTION }));
    for user in 0..10 {
        make_topics(&broker, Some(Payer::subject(&user.to_string())), &user.to_string()).await;
    }
    assert_eq!(make_topics(&broker, None, "backend").await, 40 / 8);
}

/// The keys of eight users filled the room, and each publish of a backend with a key was refused for five minutes.
pub async fn all_clients_together_leave_room_for_the_keys_of_a_backend(new: New) {
    let broker = Broker::new(new(Retention { total_bytes: 40_000, ..RETENTION }));
    let mut used = 0;
    for user in 0..50 {
        let (payer, mut own) = (Some(Payer::subject(&user.to_string())), 0);
        while use_key(&broker, payer, &user.to_string(), own).await.is_ok() {
            own += 1;
            assert!(own < 150, "the room for all keys");
        }
        used += own;
    }
    assert!(used > 40, "{used}");
    for topic in 0..4 {
        use_key(&broker, None, &format!("backend.{topic}"), 0).await.expect("a backend");
    }
}

/// The keys were shared by topic alone, so a user who may publish to many topics used up those of all others.
pub async fn a_client_with_many_topics_leaves_room_for_the_keys_of_others(new: New) {
    let broker = Broker::new(new(Retention { total_bytes: 40_000, ..RETENTION }));
    let (loud, quiet) = (Payer::subject("loud"), Payer::subject("quiet"));
    let mut used = 0;
    while use_key(&broker, Some(loud), &format!("loud.{}", used % 5), used).await.is_ok() {
        used += 1;
        assert!(used < 150, "the room for all keys");
    }
    assert!(used > 20, "{used}");
    for key in 0..5 {
        assert_eq!(use_key(&broker, Some(loud), "loud.x", key).await, Err(AppendError::TooManyKeys));
        use_key(&broker, Some(quiet), "loud.0", 1_000 + key)
            .await
            .expect("another client, in the same topic");
        use_key(&broker, None, "backend", key).await.expect("a backend");
    }
    assert!(
        matches!(use_key(&broker, Some(loud), "loud.0", 0).await, Ok(Appended::Replayed(_))),
        "it is known"
    );
}
