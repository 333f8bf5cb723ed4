//! The chain of ids finds messages that the link leaves out, and marks find messages that have expired.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Retention, Start, script_constants},
    message::Id,
};
use tokio::task::JoinSet;

use crate::{
    bare::{RETENTION, draft, log, log_that_keeps, publish, read_until, subscribe},
    support::redis::Redis,
};

/// Runs a script with the prelude that `change` returns.
pub fn run(
    redis: &Redis,
    change: impl Fn(&str) -> String,
    script: &str,
    topic: &str,
    rest: &[&str],
) -> String {
    let prelude = include_str!("../../src/log/redis/scripts/prelude.lua");
    let changed = change(prelude);
    assert_ne!(changed, prelude);
    let script = format!("{}\n{changed}\n{script}", script_constants());
    let args = ["{rejoin}:", "0", "10", "", "1000 3600000000 16777216 268435456 1000000", topic];
    redis.say(&[&["EVAL", &script, "0"], &args[..], rest].concat())
}

/// Runs the script that stores a message, without its entry in the feed.
pub fn store_in_silence(redis: &Redis, topic: &str) -> Id {
    let publish = concat!(
        include_str!("../../src/log/redis/scripts/store.lua"),
        include_str!("../../src/log/redis/scripts/publish.lua")
    );
    let silent = |prelude: &str| format!("{prelude}\ntell = function() end");
    let answer = run(redis, silent, publish, topic, &["t\0\0\0\0\0\0", "x", "0"]);
    // The answer has the outcome, the id and the generation, each behind its length.
    let id = answer.lines().nth(4).and_then(|id| id.parse().ok());
    id.unwrap_or_else(|| panic!("{answer}"))
}

/// Runs the script that sweeps as it will run in this many days.
fn sweep_in_days(redis: &Redis, days: usize) {
    let probe = include_str!("../../src/log/redis/scripts/probe.lua");
    let time = format!("{{redis.call('TIME')[1] + {days} * 24 * 3600, 0}}");
    let later = |prelude: &str| prelude.replace("redis.call('TIME')", &time);
    run(redis, later, probe, "", &["1"]);
}

#[tokio::test]
async fn messages_that_the_link_leaves_out_come_before_newer_ones() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    for pattern in ["a", "*"] {
        let mut reader = subscribe(&broker, pattern, Start::Now).await;
        let first = publish(&broker, "a").await;
        assert_eq!(read_until(&mut reader, first).await, [Some(first)]);
        for _ in 0..3 {
            let silent = [store_in_silence(&redis, "a"), store_in_silence(&redis, "a")];
            let told = publish(&broker, "a").await;
            let expected = [silent[0], silent[1], told].map(Some);
            assert_eq!(read_until(&mut reader, told).await, expected, "{pattern}");
        }
    }
}

/// The message without an entry is the newest one, so only the next probe can find it.
#[tokio::test]
async fn a_message_stored_by_a_failed_script_is_given() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut readers = [subscribe(&broker, "a", Start::Now).await, subscribe(&broker, "*", Start::Now).await];
    for _ in 0..2 {
        let silent = store_in_silence(&redis, "a");
        for reader in &mut readers {
            assert_eq!(read_until(reader, silent).await, [Some(silent)]);
        }
    }
    // An announcement carries the newest id too, and must not look like the missing entry.
    let silent = store_in_silence(&redis, "a");
    broker.announce(draft("elsewhere")).await.expect("announced");
    for reader in &mut readers {
        assert_eq!(read_until(reader, silent).await, [Some(silent)]);
    }
}

/// A forgotten topic may be any topic, also one that is published to again. So the chain of a new topic
/// begins with `forgotten` and not with zero.
#[tokio::test]
async fn a_forgotten_topic_that_begins_again_is_a_gap_only_for_older_cursors() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut level = subscribe(&broker, "*", Start::Now).await;
    let (first, second) = (publish(&broker, "a").await, publish(&broker, "a").await);
    let forgotten = publish(&broker, "b").await;
    assert_eq!(read_until(&mut level, forgotten).await, [first, second, forgotten].map(Some));
    sweep_in_days(&redis, 8);
    assert_eq!(redis.say(&["ZSCORE", "{rejoin}:index", "a"]), "$-1\r\n", "it is not forgotten");
    let last = publish(&broker, "a").await;
    assert_eq!(read_until(&mut level, last).await, [Some(last)]);
    // The second replica has only the store.
    for broker in [&broker, &log(&redis.url()).await] {
        for pattern in ["a", "*"] {
            for (cursor, told) in [(first, true), (second, true), (forgotten, false)] {
                let mut reader = subscribe(broker, pattern, Start::After(cursor)).await;
                let expected = if told { vec![None, Some(last)] } else { vec![Some(last)] };
                assert_eq!(read_until(&mut reader, last).await, expected, "{pattern} after {cursor}");
            }
        }
    }
}

/// The stream of a topic is deleted, and then its messages expire. They still leave a mark, because readers
/// of a pattern have nothing else.
#[tokio::test]
async fn a_message_without_its_stream_leaves_a_mark_when_it_expires() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let cursor = publish(&broker, "before").await;
    publish(&broker, "p.a").await;
    let last = publish(&broker, "p.b").await;
    assert!(redis.say(&["DEL", "{rejoin}:topic:p.a"]).starts_with(":1"));
    sweep_in_days(&redis, 1);
    let newest = publish(&broker, "after").await;
    assert!(newest > last);
    for (pattern, expected) in [("p.*", vec![None, None]), ("p.a", vec![None]), ("p.b", vec![None])] {
        let mut reader = subscribe(&broker, pattern, Start::After(cursor)).await;
        assert_eq!(read_until(&mut reader, newest).await, expected, "{pattern}");
    }
}

const TOPICS: usize = 3000;

/// More messages expire at once than one step removes. Readers of a pattern learn of losses from the marks
/// that the sweep leaves, so they must read nothing before the sweep is done.
#[tokio::test]
async fn messages_that_expire_all_at_once_are_told_and_never_given() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { age: Duration::from_secs(4), ..RETENTION }).await;
    let cursor = publish(&broker, "before").await;
    let ids = publish_all(&broker, (0..TOPICS).map(|number| format!("p.{number}")).collect()).await;
    let last = *ids.iter().max().expect("some were published");
    while Id::now().minus(Duration::from_secs(4)) <= last {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let newest = publish(&broker, "after").await;
    // This reader comes first, because each read also sweeps.
    let mut all = subscribe(&broker, "**", Start::After(cursor)).await;
    // The server tells one gap for so many topics of a pattern.
    assert_eq!(read_until(&mut all, newest).await, [None, Some(newest)]);
    let mut one = subscribe(&broker, "p.7", Start::After(cursor)).await;
    assert_eq!(read_until(&mut one, newest).await, [None]);
}

/// One reader is far behind. The others ask for more of the newest messages than one step passes.
#[tokio::test]
async fn a_large_last_and_a_cursor_far_behind_find_their_messages() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 10_000, ..RETENTION }).await;
    let ids = publish_all(&broker, vec!["a".to_owned(); 5000]).await;
    let last = ids[4999];
    for count in [1, 2000, 2001, 4500, 6000] {
        let mut reader = subscribe(&broker, "a", Start::Last(count)).await;
        let expected: Vec<_> = ids[5000 - count.min(5000)..].iter().copied().map(Some).collect();
        assert!(read_until(&mut reader, last).await == expected, "the newest {count}");
    }
    for pattern in ["a", "*"] {
        let mut reader = subscribe(&broker, pattern, Start::After(ids[9])).await;
        let expected: Vec<_> = ids[10..].iter().copied().map(Some).collect();
        assert!(read_until(&mut reader, last).await == expected, "{pattern}");
    }
}

/// How many publishes at once are answered in time even on a busy machine.
const AT_ONCE: usize = 100;

/// Publishes a message to each of these topics.
async fn publish_all(broker: &Broker, topics: Vec<String>) -> Vec<Id> {
    let mut ids = Vec::new();
    for topics in topics.chunks(AT_ONCE) {
        let mut publishers = JoinSet::new();
        for topic in topics {
            let (broker, topic) = (broker.clone(), topic.clone());
            publishers.spawn(async move { publish(&broker, &topic).await });
        }
        ids.extend(publishers.join_all().await);
    }
    ids.sort_unstable();
    ids
}
