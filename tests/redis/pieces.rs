//! What the store knows lies in several keys, each of which may be deleted or evicted alone.

use std::time::Duration;

use rejoin::{
    log::{Retention, Start},
    message::Id,
};
use tokio::time::timeout;

use crate::{
    bare::{PATIENCE, RETENTION, log, log_that_keeps, publish, read_until, subscribe},
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
        // Nothing of before is counted on.
        let mut again = subscribe(&broker, "a", Start::After(Id::ZERO)).await;
        assert_eq!(read_until(&mut again, after).await, [None, Some(after)], "{key}");
        let stats = broker.stats().await.expect("stats");
        assert_eq!((stats.topics, stats.messages, stats.bytes), (1, 1, 201), "{key}");
    }
}

/// An older state is put back beneath a primary that stays the same: only who has seen newer ids can tell.
#[tokio::test]
async fn an_older_state_is_a_gap_while_somebody_has_seen_newer_ids() {
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

/// The last of all ids is in the order, also when nothing else is left, and the clock is behind it.
#[tokio::test]
async fn no_id_comes_before_one_that_the_order_has_had() {
    let Some(redis) = Redis::start(&[]) else { return };
    let ahead: Id = "4102444800000000".parse().expect("an id");
    redis.say(&["XADD", "{rejoin}:order", &format!("{ahead}-0"), "t", "a"]);
    redis.say(&["XADD", "{rejoin}:topic:a", &format!("{ahead}-0"), "p", "0 1", "h", "t", "d", "x"]);
    let broker = log(&redis.url()).await;
    assert!(publish(&broker, "a").await > ahead);
}

/// A few at once are removed with less work than one at a time.
#[tokio::test]
async fn as_many_as_are_to_be_kept_are_kept_and_few_more() {
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

/// Streams expire by themselves while nobody sweeps, and what they cost is not to be counted for ever.
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
            // Whoever reads sweeps.
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
