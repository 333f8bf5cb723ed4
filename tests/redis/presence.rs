//! Presence over several replicas, of which some are killed, hang or drain, and over a Redis that loses everything.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rejoin::{
    broker::{Broker, EnterError, Presences, Present},
    log::{HoldError, Log, Member, Position, RedisLog, Retention, Rules},
    message::{Id, PatternSet, Topic},
};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};

use crate::{
    across::post,
    deployment::{Deployment, seed},
    outage::Lines,
    support::redis::Redis,
};

const GRACE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(30);
const RETENTION: Retention = Retention {
    messages: 100_000,
    age: Duration::from_secs(3600),
    bytes: 64 << 20,
    total_bytes: 256 << 20,
    topics: 1_000,
    rules: Rules::NONE,
};

/// A replica without HTTP.
struct Replica {
    log: Arc<RedisLog>,
    presences: Arc<Presences>,
}

impl Replica {
    async fn start(redis: &Redis) -> Self {
        Self::start_at(&redis.url(), GRACE).await
    }

    async fn start_at(url: &str, grace: Duration) -> Self {
        let log = RedisLog::start(url.parse().expect("an address"), &RETENTION, 0);
        log.check_format().await.expect("the store is ours");
        let presences = Broker::new(log.clone()).start_presence(grace);
        Self { log, presences }
    }

    async fn enter(&self, sub: &str) -> Present {
        let mut present = self.presences.connection(sub.into(), None);
        let entered = async {
            // The replica gives its first sign of life meanwhile.
            while present.enter(vec![room()]).await.is_err() {
                present.leave(&room());
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, entered).await.expect("it is present");
        present
    }

    /// There is no answer while Redis is away.
    async fn members(&self) -> Option<Vec<(String, u64)>> {
        let page = self.presences.members(&room(), "", 1000).await.ok()?;
        let shown = |one: Member| (one.sub.to_string(), one.connections);
        Some(page.members.into_iter().map(shown).collect())
    }

    async fn until(&self, wanted: &[(&str, u64)]) {
        let wanted: Vec<_> = wanted.iter().map(|(sub, count)| ((*sub).to_owned(), *count)).collect();
        let mut seen = None;
        let come = async {
            while seen.as_ref() != Some(&wanted) {
                sleep(Duration::from_millis(20)).await;
                seen = self.members().await;
            }
        };
        if timeout(PATIENCE, come).await.is_err() {
            panic!("{seen:?} is not {wanted:?}");
        }
    }

    /// Every change that was told, in order.
    async fn changes(&self) -> Vec<(String, String)> {
        let patterns: PatternSet = ["$presence.room".parse().expect("a pattern")].into_iter().collect();
        let mut position = Position::at(Id::new(1));
        let mut changes = Vec::new();
        loop {
            let page = self.log.read(&patterns, &position, 256).await.expect("a page");
            if page.messages.is_empty() {
                return changes;
            }
            for message in &page.messages {
                let data: serde_json::Value = serde_json::from_slice(message.bytes()).expect("JSON");
                let event = message.event().expect("an event").to_owned();
                changes.push((event, data["sub"].as_str().expect("a subject").to_owned()));
            }
            position.advance(page.end);
            (position.checked, position.told) = (page.checked, page.told);
        }
    }
}

fn room() -> Topic {
    "room".parse().expect("a topic")
}

/// Joins and leaves take turns for each subject, and those who are present have joined last.
fn check(changes: &[(String, String)], present: &[&str]) {
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for (event, sub) in changes {
        let before = last.insert(sub, event);
        assert_ne!(before, Some(&**event), "{sub}: {event} twice in {changes:?}");
        assert!(before.is_some() || event == "join", "{sub} leaves first in {changes:?}");
    }
    let here: Vec<_> = last.into_iter().filter(|(_, event)| *event == "join").map(|(sub, _)| sub).collect();
    assert_eq!(here, present);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_changes_that_are_told_are_those_that_happened_on_all_replicas() {
    let Some(redis) = Redis::start(&[]) else { return };
    let replicas = [Replica::start(&redis).await, Replica::start(&redis).await];
    let mut random = SmallRng::seed_from_u64(seed());
    let subjects = ["u1", "u2", "u3", "u4"];
    let mut held: Vec<(&str, Present)> = Vec::new();
    for _ in 0..60 {
        if held.len() < 8 && random.random_bool(0.6) {
            let sub = subjects[random.random_range(0..subjects.len())];
            held.push((sub, replicas[random.random_range(0..2)].enter(sub).await));
        } else if !held.is_empty() {
            drop(held.swap_remove(random.random_range(0..held.len())));
        }
        if random.random_bool(0.1) {
            sleep(GRACE + GRACE).await;
        }
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    held.iter().for_each(|(sub, _)| *counts.entry(sub).or_default() += 1);
    let wanted: Vec<_> = counts.iter().map(|(sub, count)| (*sub, *count)).collect();
    for replica in &replicas {
        replica.until(&wanted).await;
    }
    let present: Vec<_> = counts.keys().copied().collect();
    check(&replicas[0].changes().await, &present);
    held.clear();
    replicas[1].until(&[]).await;
    check(&replicas[1].changes().await, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_topic_takes_no_member_and_a_page_repeats_none() {
    let Some(redis) = Redis::start(&[]) else { return };
    let replica = Replica::start(&redis).await;
    let _held = [replica.enter("u1").await, replica.enter("u2").await];
    let page = replica.presences.members(&room(), "u1", 10).await.expect("a page");
    assert_eq!(page.members.iter().map(|one| &*one.sub).collect::<Vec<_>>(), ["u2"]);
    let fill = "for number = 3, 100000 do redis.call('ZADD', KEYS[1], 0, 'v' .. number) end";
    redis.say(&["EVAL", fill, "1", "{rejoin}:subjects:room"]);
    let mut one_more = replica.presences.connection("w".into(), None);
    let refused = one_more.enter(vec![room()]).await;
    assert!(matches!(refused, Err(EnterError::Hold(HoldError::TooManyMembers))), "{refused:?}");
    one_more.leave(&room());
    redis.say(&["ZREM", "{rejoin}:subjects:room", "v3"]);
    let _one_more = replica.enter("w").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_loses_its_members_and_a_client_that_moved_stays() {
    let Some(redis) = Redis::start(&[]) else { return };
    let other = Replica::start(&redis).await;
    // Its tasks end with their runtime, without a word, and with them its signs of life.
    let process = Runtime::new().expect("a runtime");
    let url = redis.url().to_owned();
    let held = process.spawn(async move {
        let killed = Replica::start_at(&url, GRACE).await;
        let held = [killed.enter("lost").await, killed.enter("moved").await];
        (killed, held)
    });
    let held = held.await.expect("they are present");
    let _moved_to = other.enter("moved").await;
    other.until(&[("lost", 1), ("moved", 2)]).await;
    let began = Instant::now();
    process.shutdown_background();
    other.until(&[("moved", 1)]).await;
    assert!(began.elapsed() < PATIENCE);
    check(&other.changes().await, &["moved"]);
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ends_hands_its_members_over_without_a_leave() {
    let Some(redis) = Redis::start(&[]) else { return };
    let hour = Duration::from_secs(3600);
    let [ending, other] =
        [Replica::start_at(&redis.url(), hour).await, Replica::start_at(&redis.url(), hour).await];
    drop(ending.enter("moved").await);
    ending.presences.settle().await;
    assert_eq!(other.members().await, Some(vec![("moved".to_owned(), 0)]), "it was told before the end");
    drop(ending);
    let _moved_to = other.enter("moved").await;
    other.until(&[("moved", 1)]).await;
    assert_eq!(other.changes().await, [("join".to_owned(), "moved".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_again_after_redis_has_lost_everything() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let replicas = [Replica::start(&redis).await, Replica::start(&redis).await];
    let mut held = Vec::new();
    for number in 0..150 {
        held.push(replicas[number % 2].enter(&format!("u{number:03}")).await);
    }
    redis.kill();
    held.truncate(100);
    redis.start_again();
    let come = async {
        while replicas[0].members().await.is_none_or(|members| members.len() != 100) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, come).await.expect("all come again, and no others");
    // The store has nothing else. A step that was on its way when some left may have told their join, and then a leave.
    let present: Vec<_> = (0..100).map(|number| format!("u{number:03}")).collect();
    let present: Vec<_> = present.iter().map(String::as_str).collect();
    check(&replicas[0].changes().await, &present);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_back_from_a_snapshot_has_the_members_of_now() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let replica = Replica::start(&redis).await;
    let gone = replica.enter("gone").await;
    let _stays = replica.enter("stays").await;
    redis.say(&["SAVE"]);
    drop(gone);
    replica.until(&[("stays", 1)]).await;
    let _new = replica.enter("new").await;
    redis.kill();
    redis.start_again();
    replica.until(&[("new", 1), ("stays", 1)]).await;
    check(&replica.changes().await, &["new", "stays"]);
}

/// How often the slow log has a sign of life, and how often a script that notes who is present.
fn scripts_run(redis: &Redis) -> (usize, usize) {
    let log = redis.say(&["SLOWLOG", "GET", "1000000"]);
    // Each note has the head of a join: its length, and the event.
    (log.matches("$4\r\nbeat\r\n").count(), log.matches("\u{5}join\0").count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_runs_no_script_where_it_is_not_used() {
    let all = ["--slowlog-log-slower-than", "0", "--slowlog-max-len", "1000000"];
    let Some(redis) = Redis::start(&all) else { return };
    let deployment = Deployment::of(2, &redis).await;
    for addr in deployment.addrs() {
        let mut reader = Lines::open(addr, "/events?topic=room").await;
        assert_eq!(post(addr, "/topics/room", None, "x").await.status(), 201);
        assert_eq!(reader.next().await["data"], "x");
    }
    // A task that runs now and then has run a few times meanwhile.
    let (before, _) = scripts_run(&redis);
    let enough = before + 4 * deployment.addrs().len();
    let signs = async {
        while scripts_run(&redis).0 < enough {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, signs).await.expect("the replicas live");
    assert_eq!(scripts_run(&redis).1, 0);
    // The slow log shows it once somebody is present.
    let replica = Replica::start(&redis).await;
    let _present = replica.enter("u1").await;
    assert!(scripts_run(&redis).1 > 0);
    deployment.stop().await;
}
