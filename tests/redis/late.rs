//! Redis hangs, and meets what it was asked to do only after the clients were told that the outcome is unknown.

use std::time::Duration;

use futures_util::future::join_all;
use rejoin::{
    broker::Broker,
    log::{AddError, Append, LogError, Start},
    message::Pattern,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    bare::{draft, log, publish, read_until, subscribe, until_reachable},
    support::redis::Redis,
};

/// How long after a request Redis may still do it.
const LATEST: Duration = Duration::from_secs(2);

fn pattern(name: &str) -> Pattern {
    name.parse().expect("a pattern")
}

async fn list(broker: &Broker, topic: &str) {
    broker.subjects().expect("lists").add("u1", &pattern(topic)).await.expect("there is room");
}

/// A change that was answered with `unknown_outcome` undid newer ones when Redis went on.
#[tokio::test]
async fn redis_does_nothing_that_it_meets_too_late() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    list(&broker, "kept").await;
    let stored = publish(&broker, "t").await;
    // Redis knows the scripts already, so that one call is enough.
    let (subjects, topic) = (broker.subjects().expect("lists"), "t".parse().expect("a topic"));
    subjects.remove("u1", &pattern("other")).await.expect("it is not there");
    subjects.end("u2", None).await.expect("it is told");
    broker.delete(&"other".parse().expect("a topic")).await.expect("there is none");
    broker.announce(draft("other")).await.expect("it is sent");
    let mut reader = subscribe(&broker, "t", Start::Now).await;

    redis.stop();
    let began = Instant::now();
    let (kept, late) = (pattern("kept"), pattern("late"));
    let publish_late = Append { draft: draft("t"), idempotency_key: None, if_match: None };
    let unknown = |outcome| assert!(matches!(outcome, Err(LogError::UnknownOutcome)), "{outcome:?}");
    let lists = async {
        let (removed, added) = tokio::join!(subjects.remove("u1", &kept), subjects.add("u1", &late));
        unknown(removed);
        assert!(matches!(added, Err(AddError::Log(LogError::UnknownOutcome))), "{added:?}");
        assert!(began.elapsed() >= LATEST, "a newer change may follow this answer");
    };
    let deleted = async {
        unknown(broker.delete(&topic).await);
        assert!(began.elapsed() >= LATEST, "a newer message may follow this answer");
    };
    let ended = async {
        let ended = subjects.end("u1", Some(Duration::from_secs(600))).await;
        assert!(matches!(ended, Err(AddError::Log(LogError::UnknownOutcome))), "{ended:?}");
        assert!(began.elapsed() >= LATEST, "a newer token may follow this answer");
    };
    let published = async {
        let (published, announced) = tokio::join!(broker.publish(publish_late), broker.announce(draft("t")));
        published.expect_err("there is no answer");
        unknown(announced);
    };
    tokio::join!(lists, deleted, ended, published);
    sleep_until(began + LATEST).await;
    redis.go_on();
    let calls = redis.stat("total_commands_processed");

    // Everything that waited there is met before this.
    until_reachable(&broker).await;
    while redis.stat("total_commands_processed") < calls + 10 {
        sleep(Duration::from_millis(10)).await;
    }
    let entries = broker.subjects().expect("lists").list("u1").await.expect("it can be read");
    assert_eq!(entries.keys().collect::<Vec<_>>(), [&kept]);
    assert!(!redis.say(&["KEYS", "{rejoin}:refused*"]).contains("refused"), "its tokens are refused");
    let last = publish(&broker, "t").await;
    assert_eq!(read_until(&mut reader, last).await, [Some(last)]);
    let mut history = subscribe(&broker, "t", Start::Last(9)).await;
    assert_eq!(read_until(&mut history, last).await, [Some(stored), Some(last)]);
}

/// A change that is done in time is never refused.
#[tokio::test]
async fn a_slow_redis_does_what_it_meets_in_time() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    redis.stop();
    let begun = join_all(["a", "b", "c"].map(|topic| publish(&broker, topic)));
    let goes_on = async {
        sleep(LATEST / 4).await;
        redis.go_on();
    };
    let (ids, ()) = tokio::join!(begun, goes_on);
    assert_eq!(ids.len(), 3);
}
