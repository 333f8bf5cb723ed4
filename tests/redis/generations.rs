//! Generations of the store that follow each other, and events that could hide the end of one.

use std::{sync::Arc, time::Duration};

use rejoin::{
    broker::Broker,
    log::{Retention, Start},
    message::Id,
};

use crate::{
    bare::{Lagging, RETENTION, draft, log, log_that_keeps, publish, read_until, subscribe, until_reachable},
    proxy::{Proxy, Stall},
    support::redis::Redis,
};

/// The time between two messages that are published while the test waits.
const BEAT: Duration = Duration::from_millis(5);

/// An announcement carries the newest id of its time. If it is the first entry of a new generation, a reader
/// that is caught up must not take that id as the point up to which nothing is missing.
#[tokio::test]
async fn an_announcement_that_begins_a_generation_hides_no_gap() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (here, there) = (log(&redis.url()).await, log(&redis.url()).await);
    let mut reader = subscribe(&here, "a", Start::Now).await;
    let first = publish(&there, "a").await;
    assert_eq!(read_until(&mut reader, first).await, [Some(first)]);
    redis.say(&["FLUSHALL"]);
    there.announce(draft("a")).await.expect("announced");
    let last = publish(&there, "a").await;
    assert_eq!(read_until(&mut reader, last).await, [None, Some(last)]);
}

/// Messages were lost at the end of each of two generations: a1 a2 (a3), b1 (b2), c1. Each loss is told at
/// its place.
#[tokio::test]
async fn each_of_two_losses_is_told_at_its_own_place() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let (mut lives, mut saved) = (Vec::new(), 3);
    for _ in 0..2 {
        let mut ids = Vec::new();
        for _ in 0..saved {
            ids.push(publish(&broker, "a").await);
        }
        redis.say(&["SAVE"]);
        let lost = publish(&broker, "a").await;
        redis.kill();
        redis.start_again();
        until_reachable(&broker).await;
        lives.push((ids, lost));
        saved = 2;
    }
    let last = publish(&broker, "a").await;
    let [(first, lost), (second, lost_too)] = &lives[..] else { unreachable!("two generations have ended") };
    for pattern in ["a", "*"] {
        for cursor in [first[0], first[2], *lost] {
            let mut reader = subscribe(&broker, pattern, Start::After(cursor)).await;
            // Each gap lies where messages were lost.
            let first = first.iter().filter(|id| **id > cursor).copied().map(Some);
            let second = second.iter().copied().map(Some);
            let expected: Vec<_> = first.chain([None]).chain(second).chain([None, Some(last)]).collect();
            assert_eq!(read_until(&mut reader, last).await, expected, "{pattern} after {cursor}");
        }
        let mut reader = subscribe(&broker, pattern, Start::After(second[0])).await;
        assert_eq!(read_until(&mut reader, last).await, [Some(second[1]), None, Some(last)]);
        let mut reader = subscribe(&broker, pattern, Start::After(*lost_too)).await;
        assert_eq!(read_until(&mut reader, last).await, [None, Some(last)]);
    }
}

/// Messages of a topic from before a restart were trimmed after it. The gap comes at the cursor of the
/// reader, and not behind the messages of another topic between there and the restart.
#[tokio::test]
async fn a_loss_across_a_restart_is_told_before_anything_newer() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 1, ..RETENTION }).await;
    let first = publish(&broker, "a").await;
    let other = publish(&broker, "b").await;
    redis.say(&["SAVE"]);
    redis.kill();
    redis.start_again();
    until_reachable(&broker).await;
    publish(&broker, "a").await;
    let last = publish(&broker, "a").await;
    for patterns in [&["a", "b"][..], &["*"]] {
        let patterns = patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        let start = Start::After(first.before());
        let mut reader = broker.subscribe(patterns, &start, "me").await.expect("the log can be read");
        let seen = read_until(&mut reader, last).await;
        let given = seen.iter().position(|seen| *seen == Some(other)).expect("it is given");
        assert!(given > 0 && seen[..given].iter().all(Option::is_none), "{seen:?}");
        assert_eq!(seen.last(), Some(&Some(last)));
    }
}

/// Topic `a` has no retained message between its two losses.
#[tokio::test]
async fn losses_between_which_nothing_is_retained_are_one_gap() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let (kept, _) = (publish(&broker, "a").await, redis.say(&["SAVE"]));
    for _ in 0..2 {
        publish(&broker, "a").await;
        redis.kill();
        redis.start_again();
        until_reachable(&broker).await;
        publish(&broker, "b").await;
        redis.say(&["SAVE"]);
    }
    let last = publish(&broker, "a").await;
    let mut reader = subscribe(&broker, "a", Start::After(kept)).await;
    assert_eq!(read_until(&mut reader, last).await, [None, Some(last)]);
}

/// No replica is left that has seen the newest ids. Only the generation shows that they may be gone.
#[tokio::test]
async fn a_loss_that_no_replica_remembers_is_still_told() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let before = log(&redis.url()).await;
    let kept = publish(&before, "a").await;
    redis.say(&["SAVE"]);
    publish(&before, "a").await;
    drop(before);
    redis.kill();
    redis.start_again();
    is_told(&log(&redis.url()).await, kept).await;
}

#[tokio::test]
async fn a_promotion_that_no_replica_has_seen_is_still_told() {
    let Some(Lagging { copy, kept, primary: _primary, link: _link, .. }) = Lagging::start().await else {
        return;
    };
    copy.say(&["REPLICAOF", "NO", "ONE"]);
    is_told(&log(&copy.url()).await, kept).await;
}

async fn is_told(broker: &Broker, cursor: Id) {
    let last = publish(broker, "a").await;
    for pattern in ["a", "*"] {
        let mut reader = subscribe(broker, pattern, Start::After(cursor)).await;
        assert_eq!(read_until(&mut reader, last).await, [None, Some(last)], "{pattern}");
    }
}

/// A message that is on disk before it is acknowledged is there after a restart, even if no replica has seen
/// it.
#[tokio::test]
async fn messages_on_disk_are_no_gap_for_a_new_replica() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let before = log(&redis.url()).await;
    let (first, second) = (publish(&before, "a").await, publish(&before, "a").await);
    drop(before);
    redis.kill();
    redis.start_again();
    let broker = log(&redis.url()).await;
    let last = publish(&broker, "a").await;
    for pattern in ["a", "*"] {
        let mut reader = subscribe(&broker, pattern, Start::After(first)).await;
        assert_eq!(read_until(&mut reader, last).await, [Some(second), Some(last)], "{pattern}");
    }
}

/// The link has broken and leads to the promoted copy, and the publishing connection still leads to the old
/// primary. The entries of the feed and the reads of the store are of different generations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_another_primary_gives_readers_nothing() {
    let Some(primary) = Redis::start(&[]) else { return };
    let way = Proxy::to(primary.addr(), Duration::ZERO).await;
    let to_copy = Proxy::to(primary.addr(), Duration::ZERO).await;
    let copy =
        Redis::start(&["--replicaof", &format!("127.0.0.1 {}", to_copy.addr.port())]).expect("another");
    let here = log(&way.url()).await;
    let mut readers = [subscribe(&here, "a", Start::Now).await, subscribe(&here, "*", Start::Now).await];
    let kept = publish(&here, "a").await;
    copy.until_says(&["XREVRANGE", "{rejoin}:topic:a", "+", "-"], &kept.to_string()).await;
    to_copy.stall(Stall::Both);
    let lost = publish(&here, "a").await;
    for reader in &mut readers {
        assert_eq!(read_until(reader, lost).await, [Some(kept), Some(lost)]);
    }
    copy.say(&["REPLICAOF", "NO", "ONE"]);
    let there = Arc::new(log(&copy.url()).await);
    let beat = tokio::spawn(beat(there.clone()));
    way.lead_new_to(copy.addr());
    let links = way.links();
    assert!(primary.kill_links() > 0);
    // Each of these links has led to the copy, and the replica found it useless.
    while way.links() < links + 4 {
        tokio::time::sleep(BEAT).await;
    }
    primary.kill_clients("normal");
    until_reachable(&here).await;
    let newest = publish(&there, "a").await;
    beat.abort();
    for reader in &mut readers {
        let seen = read_until(reader, newest).await;
        assert_eq!(seen[0], None, "{seen:?}");
        assert!(seen[1..].iter().all(Option::is_some), "{seen:?}");
    }
}

async fn beat(broker: Arc<Broker>) {
    loop {
        publish(&broker, "a").await;
        tokio::time::sleep(BEAT).await;
    }
}
