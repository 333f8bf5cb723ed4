//! Copies of Redis come, go and take over as planned. No message is lost, and no gap is told without cause.

use std::time::Duration;

use rejoin::{broker::Subscription, log::Start, message::Id};

use crate::{
    bare::{log, publish, read_until, subscribe, until_reachable},
    proxy::Proxy,
    support::redis::Redis,
};

/// Longer than the time until a replica asks which primary it uses.
const NOTICED: Duration = Duration::from_millis(1500);

fn copy_of(primary: &Redis) -> Redis {
    Redis::start(&["--replicaof", &format!("127.0.0.1 {}", primary.port)]).expect("another")
}

fn replication_id(redis: &Redis) -> String {
    let info = redis.say(&["INFO", "replication"]);
    let id = info.split_once("master_replid:").and_then(|(_, rest)| rest.lines().next());
    id.unwrap_or_else(|| panic!("no id: {info}")).to_owned()
}

async fn is_given(reader: &mut Subscription, ids: &[Id]) {
    let last = *ids.last().expect("something was published");
    let expected: Vec<_> = ids.iter().copied().map(Some).collect();
    assert_eq!(read_until(reader, last).await, expected);
}

/// The address of the primary leads new connections to the promoted copy, and keeps the old connections open.
/// The old primary is a copy of the new one now. A link that stays there still brings the whole feed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_stays_at_a_demoted_primary_misses_nothing() {
    let Some(old) = Redis::start(&[]) else { return };
    let new = copy_of(&old);
    new.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let way = Proxy::to(old.addr(), Duration::ZERO).await;
    let (here, there) = (log(&way.url()).await, log(&way.url()).await);
    let mut readers = [subscribe(&here, "a", Start::Now).await, subscribe(&here, "*", Start::Now).await];
    let before = publish(&there, "a").await;
    for reader in &mut readers {
        is_given(reader, &[before]).await;
    }
    new.until_says(&["XREVRANGE", "{rejoin}:topic:a", "+", "-"], &before.to_string()).await;
    way.lead_new_to(new.addr());
    new.say(&["REPLICAOF", "NO", "ONE"]);
    old.say(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    until_reachable(&there).await;
    let mut after = publish(&there, "a").await;
    for reader in &mut readers {
        assert_eq!(read_until(reader, after).await, [None, Some(after)], "a promotion is told");
    }
    // The first message may have been found by comparing the tails with the store. The next ones come only
    // over the link.
    for _ in 0..2 {
        tokio::time::sleep(NOTICED).await;
        after = publish(&there, "a").await;
        for reader in &mut readers {
            is_given(reader, &[after]).await;
        }
    }
}

/// A primary takes another replication id when its first copy connects, and again when its last copy has been
/// away for a while. It has lost nothing by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_comes_and_goes_is_no_gap() {
    let Some(primary) = Redis::start(&["--repl-backlog-ttl", "1"]) else { return };
    let broker = log(&primary.url()).await;
    let mut live = subscribe(&broker, "a", Start::Now).await;
    let mut ids = vec![publish(&broker, "a").await];
    let alone = replication_id(&primary);
    let copy = copy_of(&primary);
    copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
    let accompanied = replication_id(&primary);
    assert_ne!(alone, accompanied);
    tokio::time::sleep(NOTICED).await;
    ids.push(publish(&broker, "a").await);
    drop(copy);
    primary.until_says(&["INFO", "replication"], "repl_backlog_active:0").await;
    assert_ne!(accompanied, replication_id(&primary));
    tokio::time::sleep(NOTICED).await;
    ids.push(publish(&broker, "a").await);
    is_given(&mut live, &ids).await;
    assert!(ids[2].get() - ids[0].get() < 9_000_000, "no id was skipped: {ids:?}");
    let mut later = subscribe(&broker, "*", Start::After(ids[0])).await;
    is_given(&mut later, &ids[1..]).await;
}

/// The data of the primary may have been replaced in between, and no replica looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_demoted_for_a_moment_is_another_one() {
    let Some(primary) = Redis::start(&[]) else { return };
    let other = Redis::start(&[]).expect("another");
    let broker = log(&primary.url()).await;
    let mut live = subscribe(&broker, "a", Start::Now).await;
    let before = publish(&broker, "a").await;
    is_given(&mut live, &[before]).await;
    let demote = ["REPLICAOF", "127.0.0.1", &other.port.to_string()];
    primary.say(&demote);
    primary.say(&["REPLICAOF", "NO", "ONE"]);
    tokio::time::sleep(NOTICED).await;
    until_reachable(&broker).await;
    let after = publish(&broker, "a").await;
    assert_eq!(read_until(&mut live, after).await, [None, Some(after)]);
}
