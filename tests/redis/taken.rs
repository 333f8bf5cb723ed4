//! The keys of the store are deleted, one by one and in every combination.

use rejoin::{broker::Broker, log::Start, message::Id};

use crate::{
    bare::{log, publish, read_until, subscribe},
    support::redis::Redis,
};

const TOPICS: [&str; 2] = ["a", "b"];
const PATTERNS: [&str; 3] = ["a", "b", "*"];

/// The published messages in order, each with its topic.
type Published = Vec<(Id, &'static str)>;

fn newest(published: &Published, pattern: &str) -> Id {
    let matching = published.iter().filter(|(_, topic)| pattern == "*" || pattern == *topic);
    matching.map(|(id, _)| *id).max().expect("something was published")
}

async fn publish_some(brokers: [&Broker; 2], published: &mut Published) {
    for number in 0..6 {
        let topic = TOPICS[number % 2];
        let id = publish(brokers[number / 2 % 2], topic).await;
        assert!(published.last().is_none_or(|(last, _)| *last < id), "{id} after {published:?}");
        published.push((id, topic));
    }
}

/// Checks that the reader got every message after `cursor`, up to its first gap if it got one.
fn is_all_there(published: &Published, pattern: &str, cursor: Id, seen: &[Option<Id>], about: &str) {
    let is_owed = |(id, topic): &&(Id, &str)| *id > cursor && (pattern == "*" || pattern == *topic);
    let owed: Vec<_> = published.iter().filter(is_owed).map(|(id, _)| Some(*id)).collect();
    let told = seen.iter().position(Option::is_none).unwrap_or(seen.len());
    assert_eq!(owed[..told.min(owed.len())], seen[..told], "{about}");
    assert!(told < seen.len() || owed.len() == told, "{about}: {seen:?} of {owed:?}");
}

/// Deletes each key alone, and then every combination of keys.
#[tokio::test]
async fn a_missing_key_never_loses_messages_without_a_gap() {
    let Some(redis) = Redis::start(&[]) else { return };
    let mut keys = Vec::new();
    for taken in 1.. {
        redis.say(&["FLUSHALL"]);
        let (one, other) = (log(&redis.url()).await, log(&redis.url()).await);
        let mut published = Vec::new();
        publish_some([&one, &other], &mut published).await;
        let level = newest(&published, "*");
        let mut live = Vec::new();
        for pattern in PATTERNS {
            let mut reader = subscribe(&one, pattern, Start::After(published[0].0)).await;
            let seen = read_until(&mut reader, newest(&published, pattern)).await;
            assert!(seen.iter().all(Option::is_some), "{pattern}: {seen:?}");
            live.push((pattern, reader));
        }
        if keys.is_empty() {
            keys.extend(redis.say(&["KEYS", "*"]).split_ascii_whitespace().map(str::to_owned));
            // The keys of the replicas hold no message, and come and go with their signs of life.
            keys.retain(|key| key.starts_with('{') && !key.starts_with("{rejoin}:replica"));
            assert!(keys.len() >= 5, "{keys:?}");
        }
        if taken == 1 << keys.len() {
            break;
        }
        let without: Vec<_> =
            (0..keys.len()).filter(|bit| taken & (1 << bit) != 0).map(|bit| &*keys[bit]).collect();
        let gone = redis.say(&[&["DEL"], &without[..]].concat());
        assert_eq!(gone, format!(":{}\r\n", without.len()), "there were {without:?}");
        publish_some([&other, &one], &mut published).await;
        for (pattern, mut reader) in live {
            let cursor = reader.cursor();
            let seen = read_until(&mut reader, newest(&published, pattern)).await;
            is_all_there(
                &published,
                pattern,
                cursor,
                &seen,
                &format!("live on {pattern} without {without:?}"),
            );
        }
        let fresh = log(&redis.url()).await;
        for broker in [&one, &other, &fresh] {
            for pattern in PATTERNS {
                for (cursor, _) in &published {
                    let about = format!("{pattern} after {cursor} without {without:?}");
                    let mut reader = subscribe(broker, pattern, Start::After(*cursor)).await;
                    let seen = read_until(&mut reader, newest(&published, pattern)).await;
                    is_all_there(&published, pattern, *cursor, &seen, &about);
                    // A cursor from after the deletion must not get a gap.
                    assert!(*cursor <= level || seen.iter().all(Option::is_some), "{about}: {seen:?}");
                }
            }
        }
    }
}
