//! Redis refuses writes: publishing is refused, and reading goes on.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Append, AppendError, LogError, Retention, Start},
    message::Id,
};

use tokio::time::Instant;

use crate::{
    bare::{
        Lagging, PATIENCE, RETENTION, draft, log, log_that_keeps, publish, read_until, subscribe,
        until_reachable,
    },
    support::redis::Redis,
};

async fn is_refused(broker: &Broker) -> bool {
    let append = Append { draft: draft("other"), idempotency_key: None, if_match: None };
    broker.publish(append).await == Err(AppendError::Log(LogError::Unavailable))
}

/// Readers resume from each cursor, on a replica that has the messages in its tails and on a new one.
async fn all_can_resume(brokers: &[&Broker], ids: &[Id]) {
    let last = *ids.last().expect("some");
    for broker in brokers {
        for pattern in ["a", "a.*", "*", "**"] {
            let expected: &[Id] = if pattern == "a.*" { &[] } else { &ids[2..] };
            let mut reader = subscribe(broker, pattern, Start::After(ids[1])).await;
            let seen = read_until(&mut reader, last).await;
            assert_eq!(seen, expected.iter().copied().map(Some).collect::<Vec<_>>(), "{pattern}");
        }
        let mut reader = subscribe(broker, "a", Start::Last(2)).await;
        assert_eq!(read_until(&mut reader, last).await, [Some(ids[3]), Some(ids[4])]);
        broker.stats().await.expect("they can be read");
        assert!(broker.topics("", 10).await.expect("they can be read").len() >= 2);
        assert!(broker.check().await.is_err(), "a publish would be refused");
    }
}

async fn reading_goes_on(redis: &Redis, freeze: &[&[&str]], thaw: &[&str]) {
    let broker = log(&redis.url()).await;
    let mut ids = Vec::new();
    for topic in ["a", "b", "a", "a", "a"] {
        ids.push(publish(&broker, topic).await);
    }
    let mut live = subscribe(&broker, "a", Start::Now).await;
    freeze.iter().for_each(|words| _ = redis.say(words));
    while !is_refused(&broker).await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let other = log(&redis.url()).await;
    all_can_resume(&[&broker, &other], &ids).await;
    redis.say(thaw);
    while is_refused(&broker).await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until_reachable(&broker).await;
    let last = publish(&broker, "a").await;
    let seen = read_until(&mut live, last).await;
    assert_eq!(seen.last(), Some(&Some(last)));
}

#[tokio::test]
async fn reading_goes_on_while_too_few_copies_are_there() {
    let Some(redis) = Redis::start(&[]) else { return };
    let freeze = ["CONFIG", "SET", "min-replicas-to-write", "1"];
    reading_goes_on(&redis, &[&freeze], &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
}

#[tokio::test]
async fn reading_goes_on_while_redis_cannot_save() {
    let Some(redis) = Redis::start(&["--enable-protected-configs", "yes"]) else { return };
    let folder = redis.folder().join("gone");
    std::fs::create_dir(&folder).expect("a folder");
    let folder_name = folder.display().to_string();
    redis.say(&["CONFIG", "SET", "dir", &folder_name]);
    std::fs::remove_dir(&folder).expect("it is empty");
    let freeze: &[&[&str]] = &[&["CONFIG", "SET", "save", "3600 1"], &["BGSAVE"]];
    reading_goes_on(&redis, freeze, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]).await;
}

/// A primary becomes a copy and stays at the address. The messages are still there.
#[tokio::test]
async fn reading_goes_on_while_the_server_at_the_address_is_a_copy() {
    let Some(redis) = Redis::start(&[]) else { return };
    let thaw = ["REPLICAOF", "NO", "ONE"];
    reading_goes_on(&redis, &[&["REPLICAOF", "127.0.0.1", "1"]], &thaw).await;
}

/// The address leads to a copy that is behind. A new process has seen no id, so only the store can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_ahead_of_a_copy_is_refused_and_not_unknown() {
    let Some(Lagging { copy, kept, ahead, primary: _primary, link: _link }) = Lagging::start().await else {
        return;
    };
    let broker = log(&copy.url()).await;
    let resume = |pattern: &str, cursor| {
        let patterns = vec![pattern.parse().expect("a pattern")];
        let broker = &broker;
        async move { broker.subscribe(patterns, &Start::After(cursor), "me").await.map(drop) }
    };
    for pattern in ["a", "*"] {
        assert!(resume(pattern, ahead).await.is_err(), "{pattern}");
        resume(pattern, kept).await.expect("the copy has this id");
    }
}

/// Each new connection finds out that the server is a copy. It is kept for reading.
#[tokio::test]
async fn a_connection_to_a_copy_is_not_made_again_and_again() {
    let Some(redis) = Redis::start(&[]) else { return };
    publish(&log(&redis.url()).await, "a").await;
    redis.say(&["REPLICAOF", "127.0.0.1", "1"]);
    let broker = log(&redis.url()).await;
    let (made, began) = (redis.stat("total_connections_received"), Instant::now());
    for _ in 0..60 {
        broker.stats().await.expect("it can be read");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let made = redis.stat("total_connections_received") - made;
    // One connection asks for the count.
    let most = 2 + 3 * usize::try_from(began.elapsed().as_secs()).expect("a few seconds") / 2;
    assert!(made <= most, "{made} connections, and not {most}");
}

/// The server started while Redis refused writes, so it could not set its retention then.
#[tokio::test]
async fn a_server_that_starts_while_redis_refuses_writes_sets_its_retention_later() {
    let Some(redis) = Redis::start(&[]) else { return };
    publish(&log(&redis.url()).await, "a").await;
    redis.say(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 1, ..RETENTION }).await;
    assert!(broker.check().await.is_err(), "nothing was tested");
    redis.say(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let trimmed = async {
        loop {
            let append = Append { draft: draft("a"), idempotency_key: None, if_match: None };
            let _ = broker.publish(append).await;
            if broker.stats().await.is_ok_and(|stats| stats.messages == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trimmed).await.expect("the retention holds");
}
