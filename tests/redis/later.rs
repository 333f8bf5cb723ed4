//! A later build of the same format may write more than this one knows. This build reads on beside it.

use rejoin::{log::Start, message::Id};

use crate::{
    bare::{log, publish, read_until, subscribe},
    holes::run,
    support::redis::Redis,
};

const PUBLISH: &str = include_str!("../../src/log/redis/scripts/publish.lua");

/// Runs the script that stores a message as a later build may: with further fields and numbers, and with entries of a kind
/// of its own in the feed.
fn publish_as_a_later_build(redis: &Redis, topic: &str) -> Id {
    let later = |prelude: &str| {
        let more = "local function carrying(topic, head, data) return ' 77 ' .. #topic";
        let prelude =
            prelude.replace("local function carrying(topic, head, data) return ' ' .. #topic", more);
        format!(
            "{}\n{}",
            prelude.replace("most, id, kind, entry)", "most, id, kind, entry, 'later', 'x')"),
            KIND
        )
    };
    let script = PUBLISH.replace("'d', data)", "'d', data, 'later', 'x')");
    assert_ne!(script, PUBLISH);
    let answer = run(redis, later, &script, topic, &["t\0\0\0\0\0\0", "x", "0"]);
    let id = answer.lines().nth(4).and_then(|id| id.parse().ok());
    id.unwrap_or_else(|| panic!("{answer}"))
}

/// First a kind without an id, then one with an id of its own.
const KIND: &str = "
last = math.max(now, last + 1)
redis.call('HSET', state, '*', packed(), '*later', 'x', '*', packed())
redis.call('XADD', feed, str(last) .. '-0', 'z', linked(last) .. ' 5')
redis.call('XADD', feed, str(last) .. '-*', 'y', 'whatever')";

#[tokio::test]
async fn this_build_reads_what_a_later_build_of_the_same_format_writes() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let first = publish(&broker, "a").await;
    let mut live = [subscribe(&broker, "a", Start::Now).await, subscribe(&broker, "*", Start::Now).await];
    let mut published = Vec::new();
    for _ in 0..3 {
        published.push(Some(publish_as_a_later_build(&redis, "a")));
        published.push(Some(publish(&broker, "a").await));
    }
    // The feed has no entry after this one.
    let last = publish_as_a_later_build(&redis, "a");
    published.push(Some(last));
    for reader in &mut live {
        assert_eq!(read_until(reader, last).await, published);
    }
    for broker in [&broker, &log(&redis.url()).await] {
        for pattern in ["a", "*"] {
            let mut reader = subscribe(broker, pattern, Start::After(first)).await;
            assert_eq!(read_until(&mut reader, last).await, published, "{pattern}");
        }
    }
}

/// A kind of a later build takes the newest id, and nothing comes after it in the feed.
#[tokio::test]
async fn an_id_that_only_a_later_build_can_read_keeps_no_reader_waiting() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut live = subscribe(&broker, "a", Start::Now).await;
    let announce = include_str!("../../src/log/redis/scripts/stats.lua");
    run(&redis, |prelude| format!("{prelude}\n{KIND}"), announce, "", &[]);
    let newest = broker.newest().await.expect("it can be asked");
    assert!(newest > live.cursor(), "nothing was tested");
    assert_eq!(read_until(&mut live, newest).await, []);
}
