//! Retention by pattern in Redis: rules that a store loses, rules of two replicas, and the sweep.

use std::time::Duration;

use rejoin::{
    broker::Broker,
    log::{Reason, Retention, Rule, Rules, Start},
    message::{Id, Pattern},
};
use tokio::time::{sleep, timeout};

use crate::{
    bare::{PATIENCE, RETENTION, log_that_keeps, publish, read_until, subscribe},
    holes::run,
    support::{
        program::{Folder, Program},
        redis::Redis,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

fn rule(topics: &str, messages: Option<usize>, age: Option<Duration>) -> Rule {
    Rule { topics: topics.parse().expect("a pattern"), messages, age, bytes: None }
}

/// The rules that the store has.
fn rules_of(redis: &Redis) -> String {
    redis.say(&["HGET", "{rejoin}:store", "*rules"])
}

async fn until_rules(redis: &Redis, are_told: impl Fn(&str) -> bool) {
    let told = async {
        while !are_told(&rules_of(redis)) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("the store is told");
}

async fn until_retained(broker: &Broker, topic: &str, count: usize) {
    let name = topic.parse().expect("a topic");
    let retained = async {
        for published in 1.. {
            publish(broker, topic).await;
            let page = broker.history(&name, Id::MAX, 1000).await.expect("reachable");
            if published > count && page.messages.len() == count {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, retained).await.unwrap_or_else(|_| panic!("{topic} does not come to {count} messages"));
}

#[tokio::test]
async fn a_store_that_begins_anew_gets_the_rules_again() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = Rules::new(vec![rule("a", Some(3), None)]);
    let broker = log_that_keeps(&redis.url(), &Retention { rules, ..RETENTION }).await;
    until_retained(&broker, "a", 3).await;
    redis.say(&["FLUSHALL"]);
    until_retained(&broker, "a", 3).await;
}

/// Messages that expire sooner lie behind those of a topic that is retained for long, more topics than one step sweeps.
#[tokio::test]
async fn the_sweep_finds_what_has_expired_in_every_topic() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules =
        Rules::new(vec![rule("short.*", None, Some(HOUR)), rule("long.*", Some(3), Some(100 * HOUR))]);
    let broker = log_that_keeps(&redis.url(), &Retention { age: 50 * HOUR, rules, ..RETENTION }).await;
    until_retained(&broker, "long.a", 3).await;
    for number in 0..250 {
        publish(&broker, &format!("short.{number}")).await;
    }
    publish(&broker, "other").await;
    let probe = include_str!("../../src/log/redis/scripts/probe.lua");
    let sweep_in = |hours: usize| {
        let time = format!("{{redis.call('TIME')[1] + {hours} * 3600 + 60, 0}}");
        let later = |prelude: &str| prelude.replace("redis.call('TIME')", &time);
        run(&redis, later, probe, "", &["1"]);
    };
    let messages = async || broker.stats().await.expect("reachable").messages;
    for (hours, left) in [(0, 254), (1, 4), (50, 3), (100, 0)] {
        // One step looks at 200 topics and removes 200 messages at most.
        let swept = async {
            loop {
                sweep_in(hours);
                if messages().await == left {
                    return;
                }
            }
        };
        timeout(PATIENCE, swept).await.unwrap_or_else(|_| panic!("not {left} after {hours} hours"));
    }
    assert_eq!(redis.say(&["XLEN", "{rejoin}:topic:short.7"]).trim(), ":0");
}

/// A sweep by the longest age alone left the short-lived messages where they were, so the long-lived ones were evicted. A
/// change of an age made all topics due at once, so a publish looked at topics in which nothing had expired.
#[tokio::test]
async fn what_has_expired_goes_before_what_is_retained_for_long() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = |hours| Rules::new(vec![rule("long.*", Some(5), Some(hours * HOUR))]);
    let total_bytes = 128 << 10;
    let retention = Retention { age: HOUR, bytes: 64 << 10, total_bytes, rules: rules(100), ..RETENTION };
    let broker = log_that_keeps(&redis.url(), &retention).await;
    until_retained(&broker, "long.a", 5).await;
    for number in 0..130 {
        publish(&broker, &format!("long.{number}")).await;
    }
    for number in 0..60 {
        publish(&broker, &format!("short.{number}")).await;
    }
    let told = rules_of(&redis);
    broker.retain_by(rules(101));
    until_rules(&redis, |rules| rules != told).await;
    let length = |topic: &str| redis.say(&["XLEN", &format!("{{rejoin}}:topic:{topic}")]).trim().to_owned();
    let script = concat!(
        include_str!("../../src/log/redis/scripts/store.lua"),
        include_str!("../../src/log/redis/scripts/publish.lua")
    );
    // One publish in 16 sweeps, by the number of its id. These have other numbers.
    let hours_later = format!("{} + 2 * 3600", redis.say(&["TIME"]).lines().nth(2).expect("the seconds"));
    let data = "x".repeat(400);
    for number in 0..60 {
        let time = format!("{{{hours_later} + {number}, 1}}");
        let later = |prelude: &str| prelude.replace("redis.call('TIME')", &time);
        run(&redis, later, script, &format!("new.{number}"), &["t\0\0\0\0\0\0", &data, "0"]);
    }
    let long = (0..130).filter(|number| length(&format!("long.{number}")) == ":1").count();
    let short = (0..60).filter(|number| length(&format!("short.{number}")) == ":1").count();
    assert_eq!([long, short], [130, 0], "the last ones had no room without those that have expired");
    assert_eq!([length("long.a"), length("new.0")], [":5", ":1"]);
}

/// The end of `due`, which says which topics are there.
fn place_in_due(redis: &Redis) -> String {
    redis
        .say(&["ZRANGE", "{rejoin}:due", "+inf", "+inf", "BYSCORE"])
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

/// One step took all topics, which stopped Redis for a second.
#[tokio::test]
async fn other_ages_are_applied_to_all_topics_in_steps() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = |messages, hours| Rules::new(vec![rule("short.*", Some(messages), Some(hours * HOUR))]);
    let broker = log_that_keeps(&redis.url(), &RETENTION).await;
    for first in (0..700).step_by(100) {
        let names: Vec<_> = (first..first + 100).map(|number| format!("short.{number}")).collect();
        futures_util::future::join_all(names.iter().map(|name| publish(&broker, name))).await;
    }
    let probe = include_str!("../../src/log/redis/scripts/probe.lua");
    let sweep = || run(&redis, |prelude| format!("{prelude}\n"), probe, "", &["1"]);
    let until_all_are_there = async || {
        let swept = async {
            while place_in_due(&redis) != "*" {
                sweep();
            }
        };
        timeout(PATIENCE, swept).await.expect("it comes to the end");
    };
    broker.retain_by(rules(5, 3));
    until_rules(&redis, |rules| rules.contains("5 10800000000 0 ")).await;
    let step = "redis.call('DEL', due) sweep_due(0, 500) return redis.call('ZCARD', due)";
    assert_eq!(run(&redis, |prelude| format!("{prelude}\n"), step, "", &[]).trim(), ":500");
    until_all_are_there().await;
    assert_eq!(redis.say(&["ZCARD", "{rejoin}:due"]).trim(), ":701");
    // The number of messages does not change when they expire, and the age does.
    broker.retain_by(rules(6, 3));
    until_rules(&redis, |rules| rules.contains("6 10800000000 0 ")).await;
    assert_eq!(place_in_due(&redis), "*");
    let due_of = || redis.say(&["ZSCORE", "{rejoin}:due", "short.7"]);
    let before = due_of();
    broker.retain_by(rules(6, 4));
    until_rules(&redis, |rules| rules.contains("6 14400000000 0 ")).await;
    until_all_are_there().await;
    assert_ne!(due_of(), before);
    broker.retain_by(Rules::NONE);
    until_rules(&redis, |rules| !rules.contains("short")).await;
    assert_eq!(redis.say(&["EXISTS", "{rejoin}:due"]).trim(), ":0");
}

/// After a change of an age each read looked at a thousand topics.
#[tokio::test]
async fn a_script_that_reads_does_not_look_for_topics_that_are_due() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = Rules::new(vec![rule("a", None, Some(HOUR))]);
    let broker = log_that_keeps(&redis.url(), &Retention { rules, ..RETENTION }).await;
    publish(&broker, "a").await;
    until_rules(&redis, |rules| rules.contains("^a$")).await;
    let telling =
        |prelude: &str| format!("{prelude}\nsweep_due = function() redis.call('SET', 'it looks', '1') end");
    let looks = || redis.say(&["EXISTS", "it looks"]).trim() == ":1";
    let upto = "9007199254740991";
    for (script, rest) in [
        (include_str!("../../src/log/redis/scripts/history.lua"), &[upto, "10"][..]),
        (include_str!("../../src/log/redis/scripts/begin.lua"), &["0", "1", "a", "+"]),
        (include_str!("../../src/log/redis/scripts/read.lua"), &["10", "a", "0"]),
        (include_str!("../../src/log/redis/scripts/newest.lua"), &[upto, "10", "0"]),
        (include_str!("../../src/log/redis/scripts/scan.lua"), &["0"]),
    ] {
        run(&redis, telling, script, "a", rest);
        assert!(!looks(), "{script}");
    }
    run(&redis, telling, include_str!("../../src/log/redis/scripts/probe.lua"), "", &["1"]);
    assert!(looks());
}

/// The topics of a client were counted for two weeks, and the store remembers them for longer by a long age.
#[tokio::test]
async fn topics_count_for_their_client_as_long_as_the_longest_age_keeps_them() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = Rules::new(vec![rule("long.*", Some(3), Some(100 * 24 * HOUR))]);
    let broker = log_that_keeps(&redis.url(), &Retention { topics: 11, rules, ..RETENTION }).await;
    until_retained(&broker, "long.a", 3).await;
    let script = concat!(
        include_str!("../../src/log/redis/scripts/store.lua"),
        include_str!("../../src/log/redis/scripts/publish.lua")
    );
    let publish_as_client = |day: usize, number: usize| {
        let time = format!("{{redis.call('TIME')[1] + {day} * 86400 + 1, 0}}");
        let later = |prelude: &str| prelude.replace("redis.call('TIME')", &time);
        let rest = ["t\0\0\0\0\0\0", "x", "0", "", "", "7"];
        run(&redis, later, script, &format!("new.{number}"), &rest).contains("stored")
    };
    for day in [0, 21, 98] {
        let made = (0..20).filter(|number| publish_as_client(day, *number)).count();
        assert_eq!(made, 5, "half of what the store leaves free, on day {day}");
    }
}

/// Another program changes the rules into what cannot be read.
#[tokio::test]
async fn rules_that_cannot_be_read_are_told_again() {
    let Some(redis) = Redis::start(&[]) else { return };
    let rules = Rules::new(vec![rule("a", Some(3), None)]);
    let broker = log_that_keeps(&redis.url(), &Retention { rules, ..RETENTION }).await;
    until_retained(&broker, "a", 3).await;
    let told = rules_of(&redis);
    for damaged in ["?", "0 0\n3 0 0 ^a[$\n"] {
        redis.say(&["HSET", "{rejoin}:store", "*rules", damaged]);
        let again = async {
            while rules_of(&redis) != told {
                publish(&broker, "a").await;
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, again).await.unwrap_or_else(|_| panic!("{damaged:?} stays"));
    }
    redis.say(&["HDEL", "{rejoin}:store", "*rules"]);
    until_retained(&broker, "a", 3).await;
}

#[tokio::test]
async fn readers_are_given_each_message_until_it_has_expired_in_its_own_topic() {
    let Some(redis) = Redis::start(&[]) else { return };
    // The ids of a new store are ahead of the clock. Those of this one are not, so that messages expire soon.
    run(&redis, |prelude| prelude.replace("SKEW = 10000000", "SKEW = 0"), "return 1", "", &[]);
    let rules = Rules::new(vec![
        rule("short.*", None, Some(Duration::from_millis(300))),
        rule("long.*", Some(3), None),
    ]);
    let broker = log_that_keeps(&redis.url(), &Retention { rules, ..RETENTION }).await;
    until_retained(&broker, "long.ready", 3).await;
    let cursor = broker.newest().await.expect("reachable");
    let mut behind = Vec::new();
    for name in ["**", "*.a", "short.*", "short.a", "long.a"] {
        behind.push((name, subscribe(&broker, name, Start::After(cursor)).await));
    }
    publish(&broker, "short.a").await;
    let kept = publish(&broker, "long.a").await;
    let topic = "short.a".parse().expect("a topic");
    let gone = async {
        loop {
            let page = broker.history(&topic, Id::MAX, 10).await.expect("reachable");
            if page.messages.is_empty() {
                return page;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let history = timeout(PATIENCE, gone).await.expect("it expires");
    assert_eq!((history.gaps[0].reason, history.is_beginning), (Reason::Retention, false));
    for (name, mut reader) in behind {
        let mut fresh = subscribe(&broker, name, Start::After(cursor)).await;
        for reader in [&mut reader, &mut fresh] {
            let expected = match name {
                "long.a" => vec![Some(kept)],
                "short.*" | "short.a" => vec![None],
                _ => vec![None, Some(kept)],
            };
            assert_eq!(read_until(reader, kept).await, expected, "{name}");
        }
    }
}

/// The patterns of Lua match what the patterns of the protocol match.
#[tokio::test]
async fn rules_match_in_redis_as_they_do_here() {
    let Some(redis) = Redis::start(&[]) else { return };
    let patterns = [
        "a", "a.b", "*", "**", "a.*", "a.**", "*.b", "*.*", "*.**", "a.*.c", "$s.*", "a.$b", "a-b.%d", "β.*",
        "a.*.**",
    ];
    let topics = [
        "a", "b", "a.b", "a.b.c", "x.b", "$s", "$s.b", "a.$b", "a.$b.c", "a-b.%d", "ab.1", "aXb", "β.x", "β",
        "a.b.c.d",
    ];
    let broker = log_that_keeps(&redis.url(), &RETENTION).await;
    for pattern in patterns {
        broker.retain_by(Rules::new(vec![rule(pattern, Some(7), None)]));
        let told = async {
            loop {
                let rules = rules_of(&redis);
                if let Some(line) = rules.lines().find_map(|line| line.strip_prefix("7 0 0 ")) {
                    return line.to_owned();
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let lua = timeout(PATIENCE, told).await.expect("the store is told");
        for topic in topics {
            let script = "return string.find(ARGV[1], ARGV[2]) and 1 or 0";
            let found = redis.say(&["EVAL", script, "0", topic, &lua]).trim() == ":1";
            let matches = pattern.parse::<Pattern>().expect("a pattern").matches(topic);
            assert_eq!(found, matches, "{pattern} {topic} by {lua}");
        }
        broker.retain_by(Rules::NONE);
        let gone = async {
            while rules_of(&redis).contains("7 0 0 ") {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the store is told");
    }
}

#[tokio::test]
async fn a_replica_with_other_rules_warns_that_its_own_hold_now() {
    let Some(redis) = Redis::start(&[]) else { return };
    let folder = Folder::new();
    let file = |name: &str, messages: usize| {
        let text = format!("[[retain]]\ntopics = \"a\"\nmessages = {messages}\n");
        std::fs::write(folder.path(name), text).expect("a file");
        folder.path(name)
    };
    let start = async |file: &str| Program::start(&["--log", &redis.url(), "--config", file]).await;
    let (one, other) = (file("one.toml", 5), file("other.toml", 6));
    let told = async |line: &str| {
        let told = async {
            while !rules_of(&redis).contains(line) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, told).await.expect("the store is told");
    };
    let warning = "the store kept messages by other [[retain]] entries";
    let first = start(&one).await;
    told("5 0 0 ^a$").await;
    let mut second = start(&other).await;
    second.until_logged(warning).await;
    told("6 0 0 ^a$").await;
    assert!(!first.terminate().await.log.contains(warning), "the first replica found no others");
    // A reload on the only replica replaces its own entries.
    file("other.toml", 7);
    second.send_sighup();
    told("7 0 0 ^a$").await;
    let log = second.terminate().await.log;
    assert_eq!(log.matches(warning).count(), 1, "{log}");
}
