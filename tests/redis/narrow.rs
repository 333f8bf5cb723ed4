//! A pattern with few topics is read by the names of its topics, and every other pattern by the order.
//! Readers notice no difference but the cost.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rejoin::{
    broker::{Broker, Delivery},
    log::{Retention, Start},
    message::Id,
};

use crate::{
    bare::{RETENTION, draft, log, log_that_keeps, publish, until_reachable},
    deployment::seed,
    support::redis::Redis,
};

/// The messages and gaps of a reader: a gap by its topic, its `next` and its reason.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    messages: Vec<Id>,
    gaps: BTreeSet<String>,
}

async fn read(broker: &Broker, patterns: &[&str], cursor: Id, newest: Id) -> Read {
    let patterns = patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
    let start = Start::After(cursor);
    let mut reader = broker.subscribe(patterns, &start, "me").await.expect("the log can be read");
    let mut read = Read::default();
    while reader.cursor() < newest {
        match reader.next().await.expect("it never ends") {
            Delivery::Message(message) => {
                assert!(read.messages.last().is_none_or(|last| *last < message.id), "{read:?}");
                read.messages.push(message.id);
            }
            Delivery::Gap(gap) => {
                let told = format!("{} {:?} {}", gap.topic, gap.next, gap.reason.as_str());
                assert!(read.gaps.insert(told), "{gap:?} was told twice: {read:?}");
            }
        }
    }
    read
}

async fn publish_all(broker: &Broker, topics: impl Iterator<Item = String>) {
    let publishes = topics.map(|topic| async move { publish(broker, &topic).await });
    stream::iter(publishes).buffer_unordered(64).collect::<Vec<_>>().await;
}

fn scripts_run(redis: &Redis) -> usize {
    let info = redis.say(&["INFO", "commandstats"]);
    let (_, rest) = info.split_once("cmdstat_evalsha:calls=").unwrap_or(("", "0,"));
    rest.split(',').next().and_then(|calls| calls.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_pattern_gets_the_same_messages_and_gaps_as_a_wide_one() {
    let Some(redis) = Redis::start(&[]) else { return };
    let mut random = StdRng::seed_from_u64(seed());
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 2, ..RETENTION }).await;
    let mut cursors = vec![publish(&broker, "m.1").await];
    for round in 0..60 {
        for _ in 0..random.random_range(1..6) {
            let topic = format!("{}.{}", ["m", "n"][random.random_range(0..2)], random.random_range(0..4));
            match random.random_range(0..12) {
                0 => broker.delete(&topic.parse().expect("a topic")).await.expect("deleted"),
                1 => _ = redis.say(&["DEL", &format!("{{rejoin}}:topic:{topic}")]),
                _ => cursors.push(publish(&broker, &topic).await),
            }
        }
        let cursor = cursors[random.random_range(cursors.len().saturating_sub(20)..cursors.len())];
        // Another replica has no messages in its tails.
        let other = log_that_keeps(&redis.url(), &Retention { messages: 2, ..RETENTION }).await;
        let newest = publish(&broker, "n.end").await;
        other.newest().await.expect("it can be asked");
        let narrow = read(&other, &["n.*"], cursor, newest).await;
        // A pattern that begins with a wildcard is read by the order.
        let wide = read(&other, &["n.*", "*.no.such"], cursor, newest).await;
        assert_eq!(narrow, wide, "round {round}, from {cursor}");
        assert!(!narrow.messages.is_empty());
        cursors.push(newest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_pattern_does_not_read_the_messages_of_other_topics() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let cursor = publish(&broker, "o.17.a").await;
    publish_all(&broker, (0..9_000).map(|number| format!("noise.{}", number % 900))).await;
    let newest = publish(&broker, "o.17.b").await;
    let other = log(&redis.url()).await;
    let mut least = usize::MAX;
    for _ in 0..5 {
        let before = scripts_run(&redis);
        let given = read(&other, &["o.17.*"], cursor, newest).await;
        assert_eq!(given, Read { messages: vec![newest], gaps: BTreeSet::new() });
        least = least.min(scripts_run(&redis) - before);
    }
    // The newest id, the names and one page, and perhaps a probe or two. On a slow machine more of them come in between.
    assert!(least <= 6, "{least} scripts at least");
    let before = scripts_run(&redis);
    read(&other, &["o.17.*", "*.no.such"], cursor, newest).await;
    assert!(scripts_run(&redis) - before > 6, "the control reads the whole order");
}

/// Patterns find their topics by the names, so a store without the names is not whole.
#[tokio::test]
async fn a_store_without_its_names_begins_anew() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let cursor = publish(&broker, "o.a").await;
    redis.say(&["DEL", "{rejoin}:names"]);
    until_reachable(&broker).await;
    let newest = publish(&broker, "o.b").await;
    let read = read(&broker, &["o.*"], cursor, newest).await;
    assert_eq!(
        (read.messages, read.gaps.len()),
        (vec![newest], 1),
        "the topics before it are not known any more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_thousand_lost_topics_are_one_gap_for_their_pattern() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 1, ..RETENTION }).await;
    let cursor = publish(&broker, "first").await;
    for _ in 0..2 {
        publish_all(&broker, (0..1_500).map(|number| format!("w.{number}"))).await;
        publish_all(&broker, (0..3).map(|number| format!("few.{number}"))).await;
    }
    let newest = publish(&broker, "few.end").await;
    let other = log(&redis.url()).await;
    let read = read(&other, &["w.*", "few.*", "w.7"], cursor, newest).await;
    let told: Vec<_> = read.gaps.iter().map(|gap| gap.split(' ').next().expect("a topic")).collect();
    assert_eq!(told, ["few.0", "few.1", "few.2", "w.*", "w.7"]);
    // Each topic but `first` has its newest message, and the reader is given each of them.
    assert_eq!(read.messages.len(), 1_500 + 3 + 1);
    let first = format!("w.* Some({:?})", read.messages[0]);
    assert!(read.gaps.iter().any(|gap| gap.starts_with(&first)), "{first}: {:?}", read.gaps);
}

/// The reader has read the marks. Then more topics lose messages, and nothing new is published.
#[tokio::test]
async fn a_loss_after_the_marks_were_read_is_told() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let cursor = publish(&broker, "a.0").await;
    publish_all(&broker, (1..600).map(|number| format!("a.{number}"))).await;
    let newest = broker.newest().await.expect("it can be asked");
    let patterns = vec!["**".parse().expect("a pattern")];
    let other = log(&redis.url()).await;
    let mut reader = other.subscribe(patterns, &Start::After(cursor), "me").await.expect("it can be read");
    // The reader has read one page, with all marks that there were.
    assert!(matches!(reader.next().await, Some(Delivery::Message(_))));
    for number in [590, 591] {
        broker.delete(&draft(&format!("a.{number}")).topic).await.expect("deleted");
    }
    let (mut messages, mut gaps) = (1, 0);
    while reader.cursor() < newest {
        match reader.next().await {
            Some(Delivery::Message(_)) => messages += 1,
            _ => gaps += 1,
        }
    }
    assert_eq!((messages, gaps), (597, 2));
}

/// Each topic lost a message that the reader had been given, so the reader misses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_thousand_marks_without_a_loss_are_no_gap() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 2, ..RETENTION }).await;
    let topics = || (0..1_100).map(|number| format!("w.{number}"));
    publish_all(&broker, topics().chain(topics())).await;
    let cursor = publish(&broker, "now").await;
    publish_all(&broker, topics()).await;
    let newest = publish(&broker, "end").await;
    let read = read(&log(&redis.url()).await, &["w.*", "end"], cursor, newest).await;
    assert_eq!((read.messages.len(), read.gaps), (1_101, BTreeSet::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_thousand_deleted_topics_are_one_gap_and_told_once() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let cursor = publish(&broker, "now").await;
    publish_all(&broker, (0..1_200).map(|number| format!("w.{number}"))).await;
    for number in 0..1_200 {
        broker.delete(&draft(&format!("w.{number}")).topic).await.expect("deleted");
    }
    let newest = publish(&broker, "w.end").await;
    let read = read(&log(&redis.url()).await, &["w.*"], cursor, newest).await;
    assert_eq!((read.messages, read.gaps.len()), (vec![newest], 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_boundary_more_than_a_thousand_lost_topics_are_one_gap_too() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let retention = Retention { messages: 1, ..RETENTION };
    let broker = log_that_keeps(&redis.url(), &retention).await;
    let cursor = publish(&broker, "now").await;
    redis.say(&["SAVE"]);
    redis.kill();
    redis.start_again();
    until_reachable(&broker).await;
    let topics = || (0..1_100).map(|number| format!("w.{number}"));
    publish_all(&broker, topics().chain(topics())).await;
    let newest = publish(&broker, "w.end").await;
    let read = read(&log_that_keeps(&redis.url(), &retention).await, &["w.*"], cursor, newest).await;
    assert_eq!((read.messages.len(), read.gaps.len()), (1_101, 1), "{:?}", read.gaps);
}
