//! Redis hangs, and meets what it was asked to do only after the clients were told that the outcome is unknown.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use rejoin::{
    broker::Broker,
    log::{AddError, Append, AppendError, LogError, Start},
    message::Pattern,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    bare::{PATIENCE, draft, log, publish, read_until, subscribe, until_reachable},
    proxy::{Proxy, Stall},
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

/// A log that believes that the clock of Redis is an hour behind, as if that clock had just been set forward by an hour.
async fn behind_the_clock(redis: &Redis) -> (Proxy, Broker) {
    let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
    let broker = log(&proxy.url()).await;
    // Redis knows the script, so that one call is enough.
    publish(&broker, "t").await;
    proxy.set_back_time(3600);
    let asked = async {
        // The first one has arrived when it asks for the second.
        while proxy.wrong_times() < 2 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("the log asks for the time each second");
    proxy.count_answers("LATE");
    (proxy, broker)
}

fn append() -> Append {
    Append { draft: draft("t"), idempotency_key: None, if_match: None }
}

/// The change was refused, although Redis met it in time.
#[tokio::test]
async fn a_change_is_done_though_the_clock_of_redis_was_set_forward() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (proxy, broker) = behind_the_clock(&redis).await;
    proxy.set_back_time(0);
    broker.publish(append()).await.expect("it came in time");
    assert!(proxy.counted() > 0, "the first attempt came late by the time that was known");
}

#[tokio::test]
async fn a_change_that_is_late_twice_is_refused() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (proxy, broker) = behind_the_clock(&redis).await;
    let refused = broker.publish(append()).await;
    assert!(matches!(refused, Err(AppendError::Log(LogError::Unavailable))), "{refused:?}");
    assert!(proxy.counted() > 1, "it is tried twice");
    assert_eq!(redis.say(&["XLEN", "{rejoin}:topic:t"]), ":1\r\n", "and not stored");
}

/// With a deadline of its own the second attempt might undo what was done after the answer.
#[tokio::test]
async fn the_second_attempt_has_the_deadline_of_the_first() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (proxy, broker) = behind_the_clock(&redis).await;
    proxy.stall(Stall::Answers);
    let began = Instant::now();
    let held = async {
        while proxy.counted() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        // By this time a second is left when the request comes, and half a second too little when it is repeated.
        proxy.set_back_time(1);
        sleep_until(began + LATEST * 3 / 4).await;
        proxy.stall(Stall::Nothing);
    };
    let (outcome, ()) = tokio::join!(broker.publish(append()), held);
    assert!(outcome.is_err(), "{outcome:?}");
    assert_eq!(redis.say(&["XLEN", "{rejoin}:topic:t"]), ":1\r\n", "it is not stored");
}

/// The answer was `unknown_outcome`, although nothing was sent. The log did not say that the first attempt came late.
#[tokio::test]
async fn a_second_attempt_that_cannot_ask_for_the_time_has_stored_nothing() {
    let Some(redis) = Redis::start(&[]) else { return };
    let path = redis.folder().join("log");
    let lines = Arc::new(std::fs::File::create(&path).expect("a file"));
    let warns = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(lines).finish();
    let _guard = tracing::subscriber::set_default(warns);
    // While there is only one log, a test in another thread that writes the line first turns it off for all.
    let _other = tracing::Dispatch::new(tracing_subscriber::fmt().finish());
    let (proxy, broker) = behind_the_clock(&redis).await;
    proxy.stall(Stall::Answers);
    let hangs = async {
        while proxy.counted() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        // The first attempt is answered, and the question about the time is not.
        redis.stop();
        proxy.stall(Stall::Nothing);
    };
    let (refused, ()) = tokio::join!(broker.publish(append()), hangs);
    redis.go_on();
    assert!(matches!(refused, Err(AppendError::Log(LogError::Unavailable))), "{refused:?}");
    let lines = std::fs::read_to_string(path).expect("lines");
    assert!(lines.contains("LATE"), "{lines}");
}
