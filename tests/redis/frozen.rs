//! Redis refuses writes: publishing is refused, and reading goes on.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Append, AppendError, LogError, Start},
    message::Id,
};

use crate::{
    bare::{draft, log, publish, read_until, subscribe, until_reachable},
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
