//! The refusals of tokens, as a replica reads them when it starts.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rejoin::{
    broker::Broker,
    log::{End, MemoryLog, Refusal, Start, Told},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    bare::{PATIENCE, RETENTION, log, publish, read_until, subscribe},
    support::redis::Redis,
};

/// Writes so many refusals. Half of them end at one moment, and the others each at its own.
const WRITE: &str = "
    local now, count = redis.call('TIME')[1] * 1000, tonumber(ARGV[1])
    for number = 1, count do
        local subject, ends = 'u' .. number, string.format('%d', now + 3600000 + math.max(0, number - count / 2))
        redis.call('ZADD', KEYS[1], ends, subject)
        redis.call('SET', KEYS[1] .. ':' .. subject, '1 ' .. ends, 'PXAT', ends)
    end";
const COUNT: usize = 7000;
/// At most so many are read in one step, if they do not all end at one moment.
const STEP: usize = 1000;

#[derive(Debug)]
enum Heard {
    Refused(Vec<(Box<str>, Refusal)>),
    RefusedAll,
    Missed,
}

struct Hears(mpsc::UnboundedSender<Heard>);

impl Told for Hears {
    fn ended(&self, _end: End) {}

    fn missed(&self) {
        let _ = self.0.send(Heard::Missed);
    }

    fn refused(&self, refusals: Vec<(Box<str>, Refusal)>) {
        let _ = self.0.send(Heard::Refused(refusals));
    }

    fn refused_all(&self) {
        let _ = self.0.send(Heard::RefusedAll);
    }
}

/// The subjects that are told until all are told, and how often connections are ended meanwhile.
async fn told(broker: &Broker) -> (BTreeSet<Box<str>>, usize) {
    let (sender, mut heard) = mpsc::unbounded_channel();
    broker.subjects().expect("subjects").tell(Arc::new(Hears(sender)));
    let (mut subjects, mut ends) = (BTreeSet::new(), 0);
    let read = async {
        loop {
            match heard.recv().await.expect("the log lives") {
                Heard::Refused(refusals) => subjects.extend(refusals.into_iter().map(|(subject, _)| subject)),
                Heard::RefusedAll => ends += 1,
                Heard::Missed => return,
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{} of {COUNT} are read", subjects.len()));
    (subjects, ends)
}

/// How often a command ran.
fn calls(redis: &Redis, command: &str) -> usize {
    let stats = redis.say(&["INFO", "commandstats"]);
    let line = stats.split_once(&format!("cmdstat_{command}:calls="));
    line.and_then(|(_, rest)| rest.split(',').next()?.parse().ok()).unwrap_or_default()
}

/// All of them were read in one step, while which Redis did nothing else.
#[tokio::test]
async fn many_refusals_are_read_in_steps_and_none_is_left_out() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    redis.say(&["EVAL", WRITE, "1", "{rejoin}:refused", &COUNT.to_string()]);
    let before = calls(&redis, "zrange");
    let (subjects, ends) = told(&broker).await;
    assert_eq!((subjects.len(), ends), (COUNT, 1), "connections are looked at once for all steps");
    let steps = calls(&redis, "zrange") - before;
    assert!(steps > COUNT / 2 / STEP, "{steps} steps");
}

/// The replica accepted all older tokens for as long as it could not read one of the refusals, and then those of all later
/// ones.
#[tokio::test]
async fn a_refusal_that_cannot_be_read_hides_no_other_one() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    redis.say(&["EVAL", WRITE, "1", "{rejoin}:refused", &COUNT.to_string()]);
    for (subject, word) in [("u1", "LPUSH"), ("u5000", "SADD"), ("u6000", "APPEND")] {
        let key = format!("{{rejoin}}:refused:{subject}");
        redis.say(&["DEL", &key]);
        redis.say(&[word, &key, "x"]);
    }
    let (subjects, _) = told(&broker).await;
    assert_eq!(subjects.len(), COUNT - 3);
    // The next refusal of such a subject replaces it.
    let lasts = Some(Duration::from_secs(600));
    let end = broker.subjects().expect("subjects").end("u1", lasts).await.expect("it is ended");
    assert!(end.refusal.is_some());
    assert_eq!(redis.say(&["TYPE", "{rejoin}:refused:u1"]), "+string\r\n");
}

/// Is held up for as long as it is told refusals.
struct Hangs {
    told: mpsc::UnboundedSender<()>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Told for Hangs {
    fn ended(&self, _end: End) {}

    fn missed(&self) {}

    fn refused(&self, _refusals: Vec<(Box<str>, Refusal)>) {
        let _ = self.told.send(());
        let wait = || self.go_on.lock().expect("it is waited for once").recv();
        // Other tasks run meanwhile, and those of the same task do not.
        let _ = tokio::task::block_in_place(wait);
    }

    fn refused_all(&self) {}
}

/// A list that had to be read again waited for all refusals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_refusals_keep_no_reader_of_a_list_waiting() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let subjects = broker.subjects().expect("subjects");
    let _followed = subjects.follow("u1").await.expect("the list is known");
    let mut reader = subscribe(&broker, "t", Start::Now).await;
    redis.say(&["EVAL", WRITE, "1", "{rejoin}:refused", "10"]);
    let (told, mut is_told) = mpsc::unbounded_channel();
    let (go_on, waits) = std::sync::mpsc::channel();
    subjects.tell(Arc::new(Hangs { told, go_on: Mutex::new(waits) }));
    timeout(PATIENCE, is_told.recv()).await.expect("refusals are being told");
    // A new generation begins, so the list is not known any more.
    redis.say(&["FLUSHALL"]);
    let last = publish(&broker, "t").await;
    read_until(&mut reader, last).await;
    let known = subjects.follow("u1").await;
    drop(go_on);
    assert!(known.is_ok(), "the list is read again");
}

/// Over both logs: a backend that ends a subject again lets no older token in earlier than it had said.
#[tokio::test]
async fn a_shorter_refusal_shortens_no_longer_one() {
    let mut brokers = vec![Broker::new(MemoryLog::start(RETENTION))];
    let redis = Redis::start(&[]);
    if let Some(redis) = &redis {
        brokers.push(log(&redis.url()).await);
    }
    for broker in brokers {
        let subjects = broker.subjects().expect("subjects");
        let mut until = 0;
        for (seconds, is_longer) in [(600, true), (1, false), (1200, true)] {
            let end = subjects.end("u1", Some(Duration::from_secs(seconds))).await.expect("it is ended");
            let now = end.refusal.expect("a refusal").until_ms;
            assert_eq!(now > until, is_longer, "{seconds} s: {now} after {until}");
            assert!(now >= until, "{seconds} s: {now} after {until}");
            until = now;
        }
    }
}
