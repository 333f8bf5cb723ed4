//! The refusals of tokens, as a replica reads them when it starts.

use std::{collections::BTreeSet, sync::Arc};

use rejoin::log::{End, Refusal, Told};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    bare::{PATIENCE, log},
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

struct Hears(mpsc::UnboundedSender<Vec<(Box<str>, Refusal)>>);

impl Told for Hears {
    fn ended(&self, _end: End) {}

    fn missed(&self) {}

    fn refused(&self, refusals: Vec<(Box<str>, Refusal)>) {
        let _ = self.0.send(refusals);
    }
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
    let (sender, mut heard) = mpsc::unbounded_channel();
    broker.subjects().expect("subjects").tell(Arc::new(Hears(sender)));
    let mut subjects = BTreeSet::new();
    let read = async {
        while subjects.len() < COUNT {
            let refusals = heard.recv().await.expect("the log lives");
            subjects.extend(refusals.into_iter().map(|(subject, _)| subject));
        }
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{} of {COUNT} are read", subjects.len()));
    let steps = calls(&redis, "zrange") - before;
    assert!(steps > COUNT / 2 / STEP, "{steps} steps");
}

/// The replica accepted all older tokens for as long as it could not read one of the refusals.
#[tokio::test]
async fn a_step_that_fails_hides_no_earlier_refusals() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    redis.say(&["EVAL", WRITE, "1", "{rejoin}:refused", &COUNT.to_string()]);
    // The last one cannot be read.
    let last = format!("{{rejoin}}:refused:u{COUNT}");
    redis.say(&["DEL", &last]);
    redis.say(&["LPUSH", &last, "x"]);
    let (sender, mut heard) = mpsc::unbounded_channel();
    broker.subjects().expect("subjects").tell(Arc::new(Hears(sender)));
    let mut subjects = BTreeSet::new();
    let read = async {
        while subjects.len() < COUNT / 2 {
            let refusals = heard.recv().await.expect("the log lives");
            subjects.extend(refusals.into_iter().map(|(subject, _)| subject));
        }
    };
    timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{} are read", subjects.len()));
}
