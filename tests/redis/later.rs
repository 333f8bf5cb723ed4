//! A later build of the same format may write more than this one knows. This build reads on beside it.

use std::{collections::HashSet, task::Poll};

use rejoin::{
    broker::{Broker, Delivery, Subscription},
    log::Start,
    message::{Draft, Id, Payload},
};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    bare::{PATIENCE, draft, log, publish, read_until, subscribe},
    holes::run,
    support::redis::Redis,
};

const PUBLISH: &str = concat!(
    include_str!("../../src/log/redis/scripts/store.lua"),
    include_str!("../../src/log/redis/scripts/publish.lua")
);

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

/// The same, while ephemeral messages come without a pause. Reading goes on at once, and no message comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_messages_behind_an_unreadable_entry_hold_nothing_back_and_come_once() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut live = subscribe(&broker, "a", Start::Now).await;
    let mut announcers = JoinSet::new();
    for announcer in 0..4 {
        announcers.spawn(announce_for_ever(broker.clone(), announcer));
    }
    let mut seen = HashSet::new();
    for _ in 0..8 {
        let stats = include_str!("../../src/log/redis/scripts/stats.lua");
        run(&redis, |prelude| format!("{prelude}\n{KIND}"), stats, "", &[]);
        let newest = broker.newest().await.expect("it can be asked");
        assert!(newest > live.cursor(), "nothing was tested");
        let read = timeout(PATIENCE, ephemerals_until(&mut live, newest, &mut seen)).await;
        read.expect("the ephemeral messages hold the reader back");
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

async fn announce_for_ever(broker: Broker, announcer: u32) {
    for number in 0_u32.. {
        let payload = Payload::text(&*format!("{announcer} {number}"));
        broker.announce(Draft { payload, ..draft("a") }).await.expect("announced");
    }
}

/// Reads ephemeral messages until the cursor has reached an id. Panics if one comes twice.
async fn ephemerals_until(reader: &mut Subscription, last: Id, seen: &mut HashSet<Vec<u8>>) {
    std::future::poll_fn(|cx| {
        while reader.cursor() < last {
            match reader.poll_delivery(cx) {
                Poll::Ready(Delivery::Message(message)) => {
                    let payload = message.bytes().to_vec();
                    assert!(seen.insert(payload), "{:?} came twice", message);
                }
                Poll::Ready(Delivery::Gap(gap)) => panic!("{gap:?} without cause"),
                Poll::Pending if reader.cursor() >= last => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    })
    .await;
}
