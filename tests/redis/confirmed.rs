//! A message counts as stored only when copies of Redis have it.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Append, AppendError, Appended, LogError, RedisLog, Start},
    message::Id,
};

use tokio::sync::watch;

use crate::{
    across::{json, post},
    bare::{RETENTION, draft, log, publish, read_until, subscribe, until_reachable},
    deployment::{is_ready, until_ready},
    support::{Server, redis::Redis, sentinel::Sentinels},
};

fn copy_of(primary: &Redis) -> Redis {
    Redis::start(&["--replicaof", &format!("127.0.0.1 {}", primary.port)]).expect("another")
}

/// A log whose messages one copy has to confirm.
async fn confirmed_log(url: &str) -> Broker {
    let broker = Broker::new(RedisLog::start(url.parse().expect("an address"), &RETENTION, 1));
    until_reachable(&broker).await;
    broker
}

fn keyed(key: &str) -> Append {
    Append { draft: draft("a"), idempotency_key: Some(key.into()), if_match: None }
}

fn has(redis: &Redis, id: Id) -> bool {
    redis.say(&["XREVRANGE", "{rejoin}:topic:a", "+", "-"]).contains(&id.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_acknowledged_when_a_copy_has_it_and_not_before() {
    let Some(primary) = Redis::start(&[]) else { return };
    let copy = copy_of(&primary);
    copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let broker = confirmed_log(&primary.url()).await;
    for _ in 0..20 {
        let id = publish(&broker, "a").await;
        assert!(has(&copy, id), "acknowledged, and the copy lacks it");
    }
    copy.stop();
    let unknown = Err(AppendError::Log(LogError::UnknownOutcome));
    assert_eq!(broker.publish(keyed("one")).await, unknown);
    // A repeated publish is not acknowledged either, also by a replica that has written nothing yet.
    assert_eq!(broker.publish(keyed("one")).await, unknown);
    let other = confirmed_log(&primary.url()).await;
    assert_eq!(other.publish(keyed("one")).await, unknown);
    assert_eq!(other.delete(&"b".parse().expect("a topic")).await, Err(LogError::UnknownOutcome));
    copy.go_on();
    let confirmed = loop {
        match broker.publish(keyed("one")).await {
            Ok(Appended::Replayed(id)) => break id,
            answer => assert_eq!(answer, unknown),
        }
    };
    assert!(has(&copy, confirmed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishes_at_once_are_confirmed_together() {
    let Some(primary) = Redis::start(&[]) else { return };
    let copy = copy_of(&primary);
    copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let broker = confirmed_log(&primary.url()).await;
    let waits = || {
        let info = primary.say(&["INFO", "commandstats"]);
        let (_, rest) = info.split_once("cmdstat_wait:calls=").unwrap_or(("", "0,"));
        rest.split(',').next().and_then(|calls| calls.parse::<usize>().ok()).expect("a number")
    };
    let before = waits();
    let all = (0..500).map(|_| publish(&broker, "a"));
    let ids = futures_util::future::join_all(all).await;
    assert!(ids.iter().all(|id| has(&copy, *id)));
    assert!(waits() - before < 100, "{} rounds for 500 messages", waits() - before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_copies_do_not_confirm_is_not_ready() {
    let Some(primary) = Redis::start(&[]) else { return };
    let copy = copy_of(&primary);
    let server = Server::with(|config| {
        config.log = primary.url().parse().expect("an address");
        config.redis_confirm = 1;
    })
    .await;
    until_ready(server.addr).await;
    assert_eq!(post(server.addr, "/topics/a", None, "x").await.status(), 201);
    copy.stop();
    let refused = post(server.addr, "/topics/a", None, "x").await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
    assert_eq!(json(refused).await["code"], "unknown_outcome");
    while is_ready(server.addr).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    copy.go_on();
    until_ready(server.addr).await;
    assert_eq!(post(server.addr, "/topics/a", None, "x").await.status(), 201);
    server.stop().await;
}

/// The primary is killed during publishing. The copy that takes over has confirmed every acknowledged
/// message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_copy_that_confirmed_takes_over() {
    let Some(mut primary) = Redis::start(&[]) else { return };
    let copy = copy_of(&primary);
    copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let sentinels = Sentinels::watch(&primary, &[&copy], &[]).await;
    let broker = confirmed_log(&sentinels.url()).await;
    let first = publish(&broker, "a").await;
    let count = watch::Sender::new(0);
    let publishers = (0..8).map(|_| async {
        let mut acknowledged = Vec::new();
        let append = || Append { draft: draft("a"), idempotency_key: None, if_match: None };
        while let Ok(stored) = broker.publish(append()).await {
            acknowledged.push(stored.id());
            count.send_modify(|count| *count += 1);
        }
        acknowledged
    });
    let mut counted = count.subscribe();
    let kill = async {
        counted.wait_for(|count| *count > 200).await.expect("the sender lives");
        primary.kill();
    };
    let (acknowledged, ()) = tokio::join!(futures_util::future::join_all(publishers), kill);
    let mut acknowledged: Vec<_> = acknowledged.into_iter().flatten().collect();
    acknowledged.sort();
    sentinels.until_named(&copy).await;
    // The new primary has no copies, so it could confirm nothing; this replica needs no confirmation.
    let reader = log(&sentinels.url()).await;
    let last = publish(&reader, "a").await;
    let mut reader = subscribe(&reader, "a", Start::After(first)).await;
    let seen: Vec<_> = read_until(&mut reader, last).await.into_iter().flatten().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !seen.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?} of {} were lost", acknowledged.len());
}
