//! The state of the store lies in several keys, each of which may be deleted or evicted alone.

use std::time::Duration;

use rejoin::{
    log::{Append, AppendError, Retention, Start},
    message::Id,
};
use tokio::time::timeout;

use crate::{
    bare::{PATIENCE, RETENTION, draft, log, log_that_keeps, publish, read_until, subscribe},
    support::redis::Redis,
};

#[tokio::test]
async fn a_store_that_lacks_one_of_its_keys_begins_anew() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    for key in ["{rejoin}:index", "{rejoin}:order", "{rejoin}:store"] {
        let mut topics = subscribe(&broker, "a", Start::Now).await;
        let mut patterns = subscribe(&broker, "*", Start::Now).await;
        let before = publish(&broker, "a").await;
        assert_eq!(read_until(&mut topics, before).await, [Some(before)]);
        assert_eq!(read_until(&mut patterns, before).await, [Some(before)]);
        assert!(redis.say(&["DEL", key]).starts_with(":1"), "{key}");
        let after = publish(&broker, "a").await;
        assert!(after > before, "{key}");
        assert_eq!(read_until(&mut topics, after).await, [None, Some(after)], "{key}");
        assert_eq!(read_until(&mut patterns, after).await, [None, Some(after)], "{key}");
        // Messages from before are not counted.
        let mut again = subscribe(&broker, "a", Start::After(Id::ZERO)).await;
        assert_eq!(read_until(&mut again, after).await, [None, Some(after)], "{key}");
        let stats = broker.stats().await.expect("stats");
        assert_eq!((stats.topics, stats.messages, stats.bytes), (1, 1, 201), "{key}");
    }
}

/// An older state is put back under a primary that stays the same. Only a replica that has seen newer ids can
/// tell.
#[tokio::test]
async fn an_older_state_is_a_gap_while_a_replica_has_seen_newer_ids() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut reader = subscribe(&broker, "a", Start::Now).await;
    let kept = publish(&broker, "a").await;
    let keys = "for _, key in ipairs({'index', 'order', 'store', 'topic:a'}) do key = '{rejoin}:' .. key ";
    let save = format!("{keys} redis.call('COPY', key, key .. '.old') end");
    let put_back = format!("{keys} redis.call('RENAME', key .. '.old', key) end");
    redis.say(&["EVAL", &save, "0"]);
    let lost = publish(&broker, "a").await;
    assert_eq!(read_until(&mut reader, lost).await, [kept, lost].map(Some));
    redis.say(&["EVAL", &put_back, "0"]);
    let next = publish(&broker, "a").await;
    assert!(next > lost);
    assert_eq!(read_until(&mut reader, next).await, [None, Some(next)]);
}

/// The order remembers its newest id even if the other keys are gone and the clock is behind that id.
#[tokio::test]
async fn no_id_comes_before_one_that_the_order_has_had() {
    let Some(redis) = Redis::start(&[]) else { return };
    let ahead: Id = "4102444800000000".parse().expect("an id");
    redis.say(&["XADD", "{rejoin}:order", &format!("{ahead}-0"), "t", "a"]);
    redis.say(&["XADD", "{rejoin}:topic:a", &format!("{ahead}-0"), "p", "0 1", "h", "t", "d", "x"]);
    let broker = log(&redis.url()).await;
    assert!(publish(&broker, "a").await > ahead);
}

/// Trimming a few messages at once is less work than trimming them one by one.
#[tokio::test]
async fn a_topic_exceeds_its_limit_by_a_few_messages_at_most() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 128, ..RETENTION }).await;
    let first = publish(&broker, "a").await;
    let mut ids = Vec::new();
    for _ in 0..300 {
        ids.push(publish(&broker, "a").await);
    }
    let kept = broker.stats().await.expect("stats").messages;
    assert!((128..=130).contains(&kept), "{kept}");
    let mut reader = subscribe(&broker, "a", Start::After(first)).await;
    let seen = read_until(&mut reader, ids[299]).await;
    let expected: Vec<_> = std::iter::once(None).chain(ids[300 - kept..].iter().copied().map(Some)).collect();
    assert_eq!(seen, expected);
}

/// A stream may disappear before a sweep, and its messages must not be counted for ever.
#[tokio::test]
async fn a_stream_that_is_gone_is_not_counted() {
    let Some(redis) = Redis::start(&[]) else { return };
    let age = Duration::from_secs(1);
    let broker = log_that_keeps(&redis.url(), &Retention { age, ..RETENTION }).await;
    for _ in 0..3 {
        publish(&broker, "a").await;
    }
    assert!(redis.say(&["DEL", "{rejoin}:topic:a"]).starts_with(":1"));
    let swept = async {
        loop {
            // Each read also sweeps.
            subscribe(&broker, "*", Start::Last(1)).await;
            let stats = broker.stats().await.expect("stats");
            if (stats.messages, stats.bytes) == (0, 0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, swept).await.expect("it is counted no more");
}

/// A message exceeds the limit of all topics. A topic with more than an even share makes room, and the others
/// do not.
#[tokio::test]
async fn a_topic_that_holds_more_than_its_share_pays_for_itself() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { total_bytes: 20_000, ..RETENTION }).await;
    let quiet = publish(&broker, "quiet").await;
    for _ in 0..200 {
        publish(&broker, "loud").await;
    }
    let mut reader = subscribe(&broker, "quiet", Start::After(quiet.before())).await;
    assert_eq!(read_until(&mut reader, quiet).await, [Some(quiet)]);
    let stats = broker.stats().await.expect("stats");
    assert!(stats.bytes <= 20_000 && stats.messages > 50, "{stats:?}");
}

#[tokio::test]
async fn a_new_topic_is_refused_at_the_limit_of_topics() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { topics: 2, ..RETENTION }).await;
    publish(&broker, "a").await;
    publish(&broker, "b").await;
    let append = |topic: &str| Append { draft: draft(topic), idempotency_key: None, if_match: None };
    assert_eq!(broker.publish(append("c")).await, Err(AppendError::TooManyTopics));
    publish(&broker, "a").await;
}

/// The keys of one topic leave room for the keys of others.
#[tokio::test]
async fn the_idempotency_keys_of_one_topic_leave_room_for_others() {
    let Some(redis) = Redis::start(&[]) else { return };
    // The limit allows forty keys.
    let broker = log_that_keeps(&redis.url(), &Retention { total_bytes: 10_000, ..RETENTION }).await;
    let append = async |topic: &str, key: usize| {
        let idempotency_key = Some(key.to_string().into());
        broker.publish(Append { draft: draft(topic), idempotency_key, if_match: None }).await
    };
    for key in 0..20 {
        assert!(append("a", key).await.is_ok(), "{key}");
    }
    assert_eq!(append("a", 20).await, Err(AppendError::TooManyKeys));
    assert!(append("a", 0).await.is_ok(), "a key that was used costs nothing");
    for key in 0..10 {
        assert!(append("b", key).await.is_ok(), "{key}");
    }
    publish(&broker, "a").await;
}
