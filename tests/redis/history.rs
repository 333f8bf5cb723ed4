//! The history of a topic, when Redis or another program has lost a part of it.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Append, History, Missing, Reason, Retention},
    message::{Draft, Id, Payload, Topic},
};
use tokio::time::{sleep, timeout};

use crate::{
    bare::{PATIENCE, RETENTION, draft, log, log_that_keeps, publish, until_reachable},
    holes::run,
    proxy::{Proxy, Stall},
    support::redis::Redis,
};

async fn pages(broker: &Broker, limit: usize) -> History {
    let page = async |before| {
        let topic = "a".parse().expect("a topic");
        broker.history(&topic, before, limit).await.expect("reachable")
    };
    let mut pages = page(Id::MAX).await;
    while let Some(before) = pages.before {
        pages.extend(page(before).await);
    }
    pages
}

fn ids(history: &History) -> Vec<Id> {
    history.messages.iter().map(|message| message.id).collect()
}

/// Two generations have lost their last message: a1 a2 (a3), b1 (b2).
#[tokio::test]
async fn a_boundary_is_a_gap_at_its_place_in_the_history() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let mut kept = Vec::new();
    for count in [2, 1] {
        for _ in 0..count {
            kept.push(publish(&broker, "a").await);
        }
        redis.say(&["SAVE"]);
        publish(&broker, "a").await;
        redis.kill();
        redis.start_again();
        until_reachable(&broker).await;
    }
    let gap = |after, next| Missing { after, next, reason: Reason::Restarted };
    for limit in [1, 2, 10] {
        let history = pages(&broker, limit).await;
        assert_eq!((ids(&history), history.is_beginning), (kept.clone(), true), "{limit}");
        let expected = [gap(kept[1], Some(kept[2])), gap(kept[2], None)];
        assert_eq!(history.gaps, expected, "{limit}");
    }
    kept.push(publish(&broker, "a").await);
    for limit in [1, 2, 10] {
        let history = pages(&broker, limit).await;
        assert_eq!((ids(&history), history.is_beginning), (kept.clone(), true), "{limit}");
        let expected = [gap(kept[1], Some(kept[2])), gap(kept[2], Some(kept[3]))];
        assert_eq!(history.gaps, expected, "{limit}");
    }
    redis.say(&["FLUSHALL"]);
    until_reachable(&broker).await;
    // A new life of the store: nothing of it is missing, and an id from before it says so.
    let history = pages(&broker, 10).await;
    assert!(history.is_beginning && history.messages.is_empty(), "{history:?}");
    let history = broker.history(&"a".parse().expect("a topic"), kept[3], 10).await.expect("reachable");
    assert_eq!(history.gaps, [gap(Id::ZERO, None)]);
}

/// Another program takes messages out, and adds entries that no message can have.
#[tokio::test]
async fn a_hole_in_a_stream_is_a_gap_at_its_place_in_the_history() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 100, ..RETENTION }).await;
    let mut published = Vec::new();
    for _ in 0..6 {
        published.push(publish(&broker, "a").await);
    }
    let key = "{rejoin}:topic:a";
    redis.say(&["XDEL", key, &format!("{}-0", published[2])]);
    redis.say(&["XADD", key, &format!("{}-1", published[5]), "x", "y"]);
    let left = [&published[..2], &published[3..]].concat();
    for limit in [1, 2, 3, 10] {
        let history = pages(&broker, limit).await;
        assert_eq!((ids(&history), history.is_beginning), (left.clone(), true), "{limit}");
        let gap = Missing { after: published[1], next: Some(published[3]), reason: Reason::Retention };
        assert_eq!(history.gaps, [gap], "{limit}");
    }
    redis.say(&["DEL", key]);
    let history = pages(&broker, 10).await;
    let gap = Missing { after: Id::ZERO, next: None, reason: Reason::Retention };
    assert_eq!((history.gaps.as_slice(), history.is_beginning), (&[gap][..], false));
}

/// A batch of 16 large messages was many times more than a page.
#[tokio::test]
async fn a_page_reads_few_messages_that_do_not_fit() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    for _ in 0..20 {
        let draft = Draft { payload: Payload::text("x".repeat(64 << 10)), ..draft("a") };
        let append = Append { draft, idempotency_key: None, if_match: None };
        broker.publish(append).await.expect("stored");
    }
    let counting = |prelude: &str| {
        let count = "if command == 'XREVRANGE' then redis.call('INCRBY', 'read', #found) end";
        let body = format!("local found = read(topic, command, ...) {count} return found");
        format!("{prelude}\nlocal read = on_stream\non_stream = function(topic, command, ...) {body} end")
    };
    let script = include_str!("../../src/log/redis/scripts/history.lua");
    run(&redis, counting, script, "a", &["9007199254740991", "1000"]);
    let read: usize =
        redis.say(&["GET", "read"]).lines().nth(1).and_then(|read| read.parse().ok()).expect("a number");
    assert!((4..=8).contains(&read), "{read} of 20 for a page that has 4 of them");
}

/// The history is read from the store, so it does not wait for the live feed of a replica.
#[tokio::test]
async fn a_page_has_what_another_replica_has_just_stored() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (here, there) = (log(&redis.url()).await, log(&redis.url()).await);
    for _ in 0..50 {
        let id = publish(&here, "a").await;
        let page = there.history(&"a".parse().expect("a topic"), Id::MAX, 1).await.expect("reachable");
        assert_eq!(ids(&page), [id]);
    }
}

/// A request never gets the answer to a question that was sent before it.
#[tokio::test]
async fn a_page_has_what_was_stored_while_another_request_waited_for_the_same_page() {
    let Some(redis) = Redis::start(&[]) else { return };
    let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
    let (here, there) = (log(&redis.url()).await, log(&proxy.url()).await);
    let topic: Topic = "a".parse().expect("a topic");
    let ask = || there.history(&topic, Id::MAX, 10);
    ask().await.expect("reachable");
    let draft = Draft { payload: Payload::text("the early answer"), ..draft("a") };
    let append = Append { draft, idempotency_key: None, if_match: None };
    here.publish(append).await.expect("stored");
    proxy.count_answers("the early answer");
    proxy.stall(Stall::Answers);
    let early = async { ask().await.expect("reachable") };
    let late = async {
        let has_answered = async {
            while proxy.counted() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, has_answered).await.expect("Redis answers the first question");
        here.delete(&topic).await.expect("reachable");
        let id = publish(&here, "a").await;
        // It waits by the time that the first answer comes.
        let goes_on = async { proxy.stall(Stall::Nothing) };
        let (page, ()) = tokio::join!(ask(), goes_on);
        assert_eq!(ids(&page.expect("reachable")), [id]);
    };
    tokio::join!(early, late);
}
