//! Replicas follow the Sentinels, which know where the primary is.

use std::time::Duration;

use rejoin::{
    broker::{Broker, Subscription},
    log::{Append, Start},
    message::Id,
};

use tokio::time::timeout;

use crate::{
    bare::{PATIENCE, draft, log, publish, read_until, subscribe, until_reachable},
    support::{redis::Redis, sentinel::Sentinels},
};

/// The settings of a Redis that lets the Sentinels in, and refuses to change its role for them.
const STUBBORN: &str = "sentinels on >theirs ~* &* +@all -replicaof -slaveof -config -client";

/// A primary, a copy, and Sentinels that watch both.
struct Watched {
    sentinels: Sentinels,
    primary: Redis,
    copy: Redis,
}

impl Watched {
    async fn start(primary_settings: &[&str], copy_settings: &[&str], lines: &[&str]) -> Option<Self> {
        let primary = Redis::start(primary_settings)?;
        let of_primary = format!("127.0.0.1 {}", primary.port);
        let copy = Redis::start(&[&["--replicaof", &of_primary], copy_settings].concat()).expect("another");
        copy.until_says(&["INFO", "replication"], "master_link_status:up").await;
        let sentinels = Sentinels::watch(&primary, &[&copy], lines).await;
        Some(Self { sentinels, primary, copy })
    }
}

/// Readers of a topic and of a pattern, on two replicas.
struct Readers {
    brokers: [Broker; 2],
    live: Vec<Subscription>,
    /// The cursor of a reader from before the failover.
    before: Id,
}

impl Readers {
    async fn open(url: &str) -> Self {
        let brokers = [log(url).await, log(url).await];
        let mut live = Vec::new();
        for broker in &brokers {
            for pattern in ["a", "*"] {
                live.push(subscribe(broker, pattern, Start::Now).await);
            }
        }
        let mut readers = Self { brokers, live, before: Id::ZERO };
        readers.before = readers.are_given(&[]).await;
        readers
    }

    /// Publishes a message on each replica, and checks that all readers get `gaps` and then both messages.
    async fn are_given(&mut self, gaps: &[Option<Id>]) -> Id {
        let ids = [publish(&self.brokers[0], "a").await, publish(&self.brokers[1], "a").await];
        let expected = [gaps, &ids.map(Some)].concat();
        for reader in &mut self.live {
            assert_eq!(read_until(reader, ids[1]).await, expected);
        }
        ids[1]
    }

    /// Waits until all replicas use `new`. Live readers and readers that resume then get one gap and the new
    /// messages.
    async fn follow_to(mut self, new: &Redis) {
        for broker in &self.brokers {
            until_stored(broker, new).await;
            until_reachable(broker).await;
        }
        self.are_given(&[None]).await;
        let last = self.are_given(&[]).await;
        for broker in &self.brokers {
            let mut reader = subscribe(broker, "a", Start::After(self.before)).await;
            let seen = read_until(&mut reader, last).await;
            assert_eq!((seen[0], seen.len(), seen[4]), (None, 5, Some(last)), "{seen:?}");
        }
    }
}

/// Waits until published messages are stored in this Redis.
async fn until_stored(broker: &Broker, redis: &Redis) {
    // No reader's pattern matches this topic.
    let append = || Append { draft: draft("until.stored"), idempotency_key: None, if_match: None };
    let attempt = async {
        loop {
            let stored = broker.publish(append()).await.map(|stored| stored.id().to_string());
            let newest = redis.say(&["XREVRANGE", "{rejoin}:topic:until.stored", "+", "-", "COUNT", "1"]);
            if stored.is_ok_and(|id| newest.contains(&id)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, attempt).await.expect("it is stored there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_a_failover_that_sentinels_were_told_to_make() {
    let Some(Watched { sentinels, copy, .. }) = &Watched::start(&[], &[], &[]).await else { return };
    let readers = Readers::open(&sentinels.url()).await;
    sentinels.fail_over().await;
    sentinels.until_named(copy).await;
    readers.follow_to(copy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_sentinels_when_the_primary_is_killed() {
    let Some(Watched { sentinels, mut primary, copy }) = Watched::start(&[], &[], &[]).await else { return };
    let readers = Readers::open(&sentinels.url()).await;
    primary.kill();
    sentinels.until_named(&copy).await;
    readers.follow_to(&copy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_sentinels_when_the_primary_is_frozen() {
    let Some(Watched { sentinels, primary, copy }) = Watched::start(&[], &[], &[]).await else { return };
    let readers = Readers::open(&sentinels.url()).await;
    primary.stop();
    sentinels.until_named(&copy).await;
    readers.follow_to(&copy).await;
    primary.go_on();
}

/// The Sentinels cannot make the old primary a copy, so it still works as a primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_sentinels_no_longer_name_is_left_though_it_still_answers() {
    let lines = [
        &format!("sentinel auth-user {} sentinels", crate::support::sentinel::MASTER)[..],
        &format!("sentinel auth-pass {} theirs", crate::support::sentinel::MASTER),
    ];
    let stubborn: Vec<_> = ["--user"].into_iter().chain(STUBBORN.split(' ')).collect();
    let obedient = ["--user", "sentinels", "on", ">theirs", "~*", "&*", "+@all"];
    let Some(watched) = Watched::start(&stubborn, &obedient, &lines).await else { return };
    let Watched { sentinels, primary, copy } = watched;
    let readers = Readers::open(&sentinels.url()).await;
    sentinels.fail_over().await;
    sentinels.until_named(&copy).await;
    readers.follow_to(&copy).await;
    assert!(primary.say(&["ROLE"]).contains("master"), "nothing was tested");
}
