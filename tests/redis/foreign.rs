//! Another program writes to the keys of the store. Its entries are passed over or told as a gap, and no topic becomes
//! unreadable.

use std::time::Duration;

use rejoin::{
    broker::{Broker, Subscription},
    log::{Append, Retention, Start},
    message::Id,
};
use tokio::time::{sleep, timeout};

use crate::{
    bare::{PATIENCE, RETENTION, draft, log, log_that_keeps, read_until},
    support::redis::Redis,
};

const READERS: [&[&str]; 6] = [&["a"], &["b.x"], &["a", "b.x"], &["**"], &["b.*"], &["a", "b.*"]];

/// The commands of another program. `NEXT` stands for the id after the newest one, which the next message of `a` gets;
/// `PASSED` for the same id, which a message of `c` gets; and the other capitals for ids of messages of `a`.
struct Damage {
    commands: &'static [&'static str],
    /// True if no message is gone and none can be missing, so readers get no gap.
    is_harmless: bool,
}

const fn harmless(commands: &'static [&'static str]) -> Damage {
    Damage { commands, is_harmless: true }
}

const fn harmful(commands: &'static [&'static str]) -> Damage {
    Damage { commands, is_harmless: false }
}

const DAMAGES: [Damage; 41] = [
    harmless(&["XADD {rejoin}:topic:a * x y"]),
    harmless(&["XADD {rejoin}:topic:a * p nonsense h x d x", "XADD {rejoin}:topic:a * p 1 h t d x"]),
    harmful(&["XADD {rejoin}:topic:a NEXT-0 x y"]),
    harmful(&["XADD {rejoin}:topic:a NEXT-0 p 1 h x d x"]),
    harmful(&["XADD {rejoin}:topic:a PASSED-0 x y"]),
    harmful(&["XADD {rejoin}:topic:a PASSED-0 p 1 h x d x"]),
    // The number of the message before it is ahead of the entry, and the second one is no id at all.
    harmful(&["XADD {rejoin}:topic:a PASSED-0 p 9007199254740000 h t d x"]),
    harmful(&["XADD {rejoin}:topic:a PASSED-0 p 99999999999999999999 h t d x"]),
    harmful(&["XADD {rejoin}:topic:a 9999999999999999-3 x y"]),
    harmful(&["XADD {rejoin}:topic:a 18446744073709551615-1 x y"]),
    harmful(&["XADD {rejoin}:topic:a 18446744073709551615-18446744073709551615 x y"]),
    harmful(&["XDEL {rejoin}:topic:a SECOND-0"]),
    harmful(&["XDEL {rejoin}:topic:a FIRST-0 SECOND-0"]),
    // A message of `b.x` comes between the hole and the next message of `a`.
    harmful(&["XDEL {rejoin}:topic:a THIRD-0"]),
    harmful(&["XADD {rejoin}:topic:a NEXT-0 x y", "XDEL {rejoin}:topic:a SECOND-0 THIRD-0"]),
    harmful(&["DEL {rejoin}:topic:a", "SET {rejoin}:topic:a mine"]),
    harmful(&["DEL {rejoin}:topic:a", "RPUSH {rejoin}:topic:a mine"]),
    harmful(&["DEL {rejoin}:topic:a", "XADD {rejoin}:topic:a * x y"]),
    harmless(&["XADD {rejoin}:order * t a"]),
    harmless(&["XADD {rejoin}:order * t a*b", "XADD {rejoin}:order * x y"]),
    harmful(&["XADD {rejoin}:order NEXT-0 t a"]),
    harmful(&["XADD {rejoin}:order 9999999999999999-0 t a"]),
    harmful(&["XADD {rejoin}:order 18446744073709551615-0 x y"]),
    harmful(&["XADD {rejoin}:order 18446744073709551615-18446744073709551615 x y"]),
    harmless(&["XADD {rejoin}:feed * x y", "XADD {rejoin}:feed * m nonsense"]),
    harmless(&["XADD {rejoin}:feed * e 1", "XADD {rejoin}:feed NEXT-0 m nonsense more fields"]),
    harmless(&["XADD {rejoin}:feed 9999999999999999-0 x y"]),
    harmless(&["XADD {rejoin}:feed 18446744073709551615-7 m nonsense"]),
    harmless(&["XADD {rejoin}:feed 18446744073709551615-18446744073709551615 x y"]),
    harmless(&["HSET {rejoin}:store a nonsense\u{d9}", "HSET {rejoin}:store other x"]),
    harmless(&["HDEL {rejoin}:store a"]),
    harmful(&["HDEL {rejoin}:store *forgotten"]),
    harmful(&["HSET {rejoin}:store *forgotten x"]),
    harmful(&["HSET {rejoin}:store *boundaries junk"]),
    harmful(&["HDEL {rejoin}:store *boundaries"]),
    harmless(&["ZADD {rejoin}:index 1.5 weird", "ZADD {rejoin}:index inf weirder"]),
    harmless(&["ZADD {rejoin}:index -1.5 ,weird", "ZADD {rejoin}:index -inf ,weirder"]),
    harmless(&["ZADD {rejoin}:names 0 a*b", "ZADD {rejoin}:names 0 \u{7f}", "ZADD {rejoin}:names 5 c"]),
    // A name that comes before those of the narrow pattern, and sorts behind them.
    harmless(&["ZADD {rejoin}:names 5 aa"]),
    harmless(&["ZADD {rejoin}:names -5 zz"]),
    harmful(&["DEL {rejoin}:feed"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_never_makes_a_topic_unreadable_and_no_message_is_lost_in_silence() {
    let Some(redis) = Redis::start(&[]) else { return };
    for damage in &DAMAGES {
        redis.say(&["FLUSHALL"]);
        Scene::set(&redis).await.survives(&redis, damage).await;
    }
}

/// The entry hides what came before it, and only a mark shows that something was trimmed.
#[tokio::test]
async fn a_trimmed_message_before_an_entry_of_another_program_is_a_gap() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log_that_keeps(&redis.url(), &Retention { messages: 2, ..RETENTION }).await;
    let cursor = publish(&broker, "before").await;
    let trimmed = [publish(&broker, "a").await, publish(&broker, "a").await];
    redis.say(&["XADD", "{rejoin}:topic:a", &format!("{}-0", trimmed[1].get() + 1), "x", "y"]);
    let last = publish(&broker, "a").await;
    let other = log_that_keeps(&redis.url(), &Retention { messages: 2, ..RETENTION }).await;
    for topics in [&["a"][..], &["*"], &["a", "*.no.such"]] {
        let mut reader = read(&other, topics, cursor).await;
        assert_eq!(read_until(&mut reader, last).await, [None, Some(last)], "{topics:?}");
    }
}

struct Scene {
    brokers: [Broker; 2],
    published: Vec<(Id, &'static str)>,
    live: Vec<(&'static [&'static str], Subscription)>,
}

impl Scene {
    async fn set(redis: &Redis) -> Self {
        let brokers = [log(&redis.url()).await, log(&redis.url()).await];
        let mut scene = Self { brokers, published: Vec::new(), live: Vec::new() };
        scene.publish().await;
        for topics in READERS {
            let mut reader = read(&scene.brokers[0], topics, scene.published[0].0).await;
            read_until(&mut reader, scene.newest(topics)).await;
            scene.live.push((topics, reader));
        }
        scene
    }

    async fn publish(&mut self) {
        for number in 0..8 {
            let topic = ["a", "b.x"][number % 2];
            let id = publish(&self.brokers[number / 4], topic).await;
            self.published.push((id, topic));
        }
    }

    async fn survives(mut self, redis: &Redis, Damage { commands, is_harmless }: &Damage) {
        let before = self.published.clone();
        let next = before.last().expect("some").0.get() + 1;
        let of_a: Vec<_> = before.iter().filter(|(_, topic)| *topic == "a").map(|(id, _)| *id).collect();
        for command in *commands {
            let command = command.replace("NEXT", &next.to_string()).replace("PASSED", &next.to_string());
            let command = command.replace("FIRST", &of_a[0].to_string());
            let command =
                command.replace("SECOND", &of_a[1].to_string()).replace("THIRD", &of_a[2].to_string());
            redis.say(&command.split(' ').collect::<Vec<_>>());
        }
        if commands.iter().any(|command| command.contains("PASSED")) {
            let id = publish(&self.brokers[0], "c").await;
            assert_eq!(id.get(), next, "the store is ahead of the clock");
            self.published.push((id, "c"));
        }
        // Before anything new comes, another replica reads what there is.
        let early = log(&redis.url()).await;
        for topics in READERS {
            let mut reader = read(&early, topics, before[0].0).await;
            let seen = read_until(&mut reader, self.newest(topics)).await;
            self.accounts(topics, before[0].0, &seen, &format!("{topics:?} early after {commands:?}"));
        }
        self.publish().await;
        for (topics, mut reader) in std::mem::take(&mut self.live) {
            let cursor = reader.cursor();
            let seen = read_until(&mut reader, self.newest(topics)).await;
            self.accounts(topics, cursor, &seen, &format!("{topics:?} live after {commands:?}"));
            assert_eq!(
                seen.last(),
                self.owed(topics, cursor).last(),
                "{topics:?} live after {commands:?}: {seen:?}"
            );
        }
        let fresh = log(&redis.url()).await;
        let mut stay = Vec::new();
        for broker in [&self.brokers[0], &self.brokers[1], &fresh] {
            for topics in READERS {
                for (cursor, _) in &self.published {
                    let about = format!("{topics:?} from {cursor} after {commands:?}");
                    let mut reader = read(broker, topics, *cursor).await;
                    let seen = read_until(&mut reader, self.newest(topics)).await;
                    self.accounts(topics, *cursor, &seen, &about);
                    let newest = self.owed(topics, *cursor).pop();
                    assert!(newest.is_none() || newest == seen.last().copied(), "{about}: {seen:?}");
                    assert!(!is_harmless || seen.iter().all(Option::is_some), "{about}: {seen:?}");
                    stay.push((topics, reader));
                }
            }
            broker.stats().await.expect("they can be read");
            broker.topics("", 100).await.expect("they can be read");
        }
        // A gap does not reach into what comes later.
        self.publish().await;
        let later = self.published[self.published.len() - 8].0.before();
        for (topics, mut reader) in stay {
            let seen = read_until(&mut reader, self.newest(topics)).await;
            assert_eq!(seen, self.owed(topics, later), "{topics:?} after {commands:?}");
        }
    }

    fn owed(&self, topics: &[&str], cursor: Id) -> Vec<Option<Id>> {
        let is_read = |topic: &str| {
            topics.contains(&topic) || topics == ["**"] || (topics.contains(&"b.*") && topic == "b.x")
        };
        let owed = self.published.iter().filter(|(id, topic)| *id > cursor && is_read(topic));
        owed.map(|(id, _)| Some(*id)).collect()
    }

    fn newest(&self, topics: &[&str]) -> Id {
        self.owed(topics, Id::ZERO).last().copied().flatten().expect("something was published")
    }

    /// The reader was given every message up to its first gap, each once and in order.
    fn accounts(&self, topics: &[&str], cursor: Id, seen: &[Option<Id>], about: &str) {
        let owed = self.owed(topics, cursor);
        let told = seen.iter().position(Option::is_none).unwrap_or(seen.len());
        assert_eq!(owed[..told.min(owed.len())], seen[..told], "{about}: {seen:?}");
        assert!(told < seen.len() || owed.len() == told, "{about}: {seen:?} of {owed:?}");
        let given: Vec<_> = seen.iter().flatten().collect();
        assert!(given.is_sorted_by(|one, next| one < next), "{about}: {seen:?}");
    }
}

async fn read(broker: &Broker, topics: &[&str], cursor: Id) -> Subscription {
    let patterns = || topics.iter().map(|topic| topic.parse().expect("a pattern")).collect();
    let attempt = async {
        loop {
            if let Ok(reader) = broker.subscribe(patterns(), &Start::After(cursor), "me").await {
                return reader;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, attempt).await.unwrap_or_else(|_| panic!("{topics:?} cannot be read"))
}

/// Publishes a message, again if it was not acknowledged.
async fn publish(broker: &Broker, topic: &str) -> Id {
    let append = || Append { draft: draft(topic), idempotency_key: None, if_match: None };
    let attempt = async {
        loop {
            if let Ok(stored) = broker.publish(append()).await {
                return stored.id();
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, attempt).await.unwrap_or_else(|_| panic!("{topic} cannot be published to"))
}
