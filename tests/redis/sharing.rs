//! Questions to the store at the same time share their answers and round trips.

use std::sync::Arc;

use rejoin::{log::Start, message::Id};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    bare::{PATIENCE, log, publish, read_until, subscribe},
    support::redis::Redis,
};

const CLIENTS: usize = 10_000;
const MESSAGES: usize = 100;
/// Reads of messages. The clients that come while one is read share the next.
const MAX_READS: usize = 100;
/// Each message of a pattern is a read of its own.
const MAX_READS_OF_A_PATTERN: usize = 100 * (MESSAGES + 2);
/// Questions for the newest id. One is asked after the other, for as long as it takes these clients to come.
const MAX_QUESTIONS: usize = CLIENTS / 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_that_resume_on_one_topic_share_the_reads() {
    resume_on("a", MAX_READS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_that_resume_on_one_pattern_share_the_reads() {
    resume_on("*", MAX_READS_OF_A_PATTERN).await;
}

async fn resume_on(pattern: &'static str, max_reads: usize) {
    let Some(redis) = Redis::start(&[]) else { return };
    let before = log(&redis.url()).await;
    let cursor = before.newest().await.expect("reachable");
    let mut last = Id::ZERO;
    for _ in 0..MESSAGES {
        last = publish(&before, "a").await;
    }
    drop(before);
    redis.say(&["CONFIG", "RESETSTAT"]);

    let after = Arc::new(log(&redis.url()).await);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let broker = after.clone();
        clients.spawn(async move {
            let mut reader = subscribe(&broker, pattern, Start::After(cursor)).await;
            read_until(&mut reader, last).await
        });
    }
    while let Some(given) = clients.join_next().await {
        let given = given.expect("no panic");
        assert!(given.len() == MESSAGES && given.iter().all(Option::is_some), "{given:?}");
    }
    let (reads, questions) = (calls(&redis, "xrange"), calls(&redis, "xrevrange"));
    println!("{reads} reads and {questions} questions for {CLIENTS} clients of {pattern}");
    assert!(0 < reads && reads < max_reads);
    assert!(0 < questions && questions < MAX_QUESTIONS);
}

/// How often Redis has run a command since its statistics were reset.
fn calls(redis: &Redis, name: &str) -> usize {
    let stats = redis.say(&["INFO", "commandstats"]);
    let of = stats.split_once(&format!("cmdstat_{name}:calls="));
    of.map_or(0, |(_, rest)| rest.split(',').next().and_then(|calls| calls.parse().ok()).expect("a number"))
}

/// Every list that came was read twice, and each had all lists looked at.
#[tokio::test]
async fn a_list_is_read_once_for_its_first_reader() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let subjects = broker.subjects().expect("lists");
    // The lists of all are read when the log begins, and then no more.
    drop(subjects.follow("first").await.expect("reachable"));
    redis.say(&["CONFIG", "RESETSTAT"]);
    let mut followed = Vec::new();
    for number in 0..LISTS {
        followed.push(subjects.follow(&format!("u{number}")).await.expect("reachable"));
    }
    let reads = calls(&redis, "zrange");
    assert!((LISTS..LISTS + LISTS / 2).contains(&reads), "{reads}");
}

#[tokio::test]
async fn a_list_whose_first_reader_gives_up_is_read_for_the_next() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let subjects = broker.subjects().expect("lists");
    drop(subjects.follow("settled").await.expect("reachable"));
    let (mut first, mut second) = (subjects.follow("u1"), subjects.follow("u1"));
    assert!(futures_util::poll!(&mut first).is_pending() && futures_util::poll!(&mut second).is_pending());
    drop(first);
    timeout(PATIENCE, second).await.expect("in time").expect("it is known");
}

const LISTS: usize = 100;
const PUBLISHES: usize = 2000;

#[tokio::test]
async fn publishes_that_arrive_together_share_a_round_trip() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    publish(&broker, "a").await;
    let before = redis.stat("total_reads_processed");
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHES {
        let broker = broker.clone();
        publishers.spawn(async move { publish(&broker, "a").await });
    }
    publishers.join_all().await;
    let reads = redis.stat("total_reads_processed") - before;
    println!("{PUBLISHES} publishes came in {reads} reads");
    assert!(reads < PUBLISHES / 10, "{reads}");
}

/// A client that subscribes and then reads nothing is not polled for a while.
#[tokio::test]
async fn a_caller_that_is_not_polled_keeps_no_other_caller_waiting() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let slow = broker.newest();
    tokio::pin!(slow);
    // It has asked, and does not look for the answer.
    assert!(futures_util::poll!(&mut slow).is_pending());
    for _ in 0..3 {
        timeout(PATIENCE, broker.newest()).await.expect("an answer").expect("it can be asked");
    }
    slow.await.expect("it can be asked");
}
