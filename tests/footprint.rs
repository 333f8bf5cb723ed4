//! Checks that the bytes that `--retain-total` counts match the memory of the process, within a quarter.

use std::{fs, process::Command, sync::Arc, time::Duration};

use rejoin::{
    broker::Broker,
    log::{Append, AppendError, Log, MemoryLog, Retention, Rules, Start},
    message::{Draft, Payload},
};

/// The allocator of the program, because another one would take other amounts.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TOTAL: usize = 64 << 20;
/// Names the case to the process that measures it.
const CASE: &str = "REJOIN_FOOTPRINT_CASE";

/// The allocator returns freed memory at once, and not only within ten seconds.
const AT_ONCE: (&str, &str) = ("MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");

/// Messages that are published until the log is full.
struct Case {
    name: &'static str,
    count: usize,
    topics: usize,
    payload: usize,
    has_key: bool,
    /// They have an event, a publisher, and a connection that does not get them.
    is_rich: bool,
}

const CASES: [Case; 7] = [
    Case {
        name: "messages_with_more",
        count: 400_000,
        topics: 100,
        payload: 20,
        has_key: false,
        is_rich: true,
    },
    Case { name: "tiny_messages", count: 500_000, topics: 100, payload: 10, has_key: false, is_rich: false },
    Case {
        name: "messages_of_300_bytes",
        count: 200_000,
        topics: 1_000,
        payload: 300,
        has_key: false,
        is_rich: false,
    },
    Case {
        name: "messages_of_10_kib",
        count: 12_000,
        topics: 100,
        payload: 10 << 10,
        has_key: false,
        is_rich: false,
    },
    Case {
        name: "topics_with_one_message",
        count: 100_000,
        topics: 100_000,
        payload: 200,
        has_key: false,
        is_rich: false,
    },
    Case {
        name: "topics_without_messages",
        count: 200_000,
        topics: 100_000,
        payload: 1_000,
        has_key: false,
        is_rich: false,
    },
    Case { name: "keys", count: 400_000, topics: 20, payload: 10, has_key: true, is_rich: false },
];

/// So few messages that none of them has to leave.
const FEW: Case = Case {
    name: "messages_of_100_bytes",
    count: 200_000,
    topics: 1_000,
    payload: 100,
    has_key: false,
    is_rich: false,
};

/// Each case runs in a process of its own, because freed memory of one case would change the next.
#[test]
fn retain_total_counts_the_memory_of_the_process_within_a_quarter() {
    let mut wrong = Vec::new();
    for Case { name, .. } in CASES {
        let percent = taken(name) * 100 / TOTAL;
        println!("{name}: {percent} % of --retain-total");
        if !(75..=125).contains(&percent) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} take another share of --retain-total");
}

#[test]
fn a_retained_message_takes_at_most_130_bytes_beside_its_payload() {
    let Case { name, count, payload, .. } = FEW;
    let beside = taken(name) / count - payload;
    assert!(beside <= 130, "{beside} bytes beside a payload of {payload}");
}

/// The subscriptions of [`measure_subscriptions`], and the topics of each, which no other follows.
const SUBSCRIPTIONS: usize = 10;
const TOPICS_OF_EACH: usize = 10_000;

#[test]
fn a_subscription_takes_at_most_240_bytes_for_a_topic_with_its_name() {
    let taken = taken_by("measure_subscriptions", "subscriptions");
    let each = taken / SUBSCRIPTIONS / TOPICS_OF_EACH;
    println!("a topic of a subscription: {each} bytes");
    assert!(each <= 240, "{each} bytes for a topic");
}

#[tokio::test]
#[ignore = "a part of the test above"]
async fn measure_subscriptions() {
    if std::env::var(CASE).is_err() {
        return;
    }
    let broker = Broker::new(MemoryLog::start(retention(1_000)));
    let before = resident_bytes();
    let mut subscriptions = Vec::new();
    for subscription in 0..SUBSCRIPTIONS {
        let name = |topic| format!("orders.{subscription}.{topic:05}").parse().expect("a topic");
        let names = (0..TOPICS_OF_EACH).map(name).collect();
        subscriptions.push(broker.subscribe(names, &Start::Now, "").await.expect("a subscription"));
    }
    println!("\ntaken {}", resident_bytes() - before);
}

/// How many bytes the process of a case took for it.
fn taken(name: &str) -> usize {
    taken_by("measure", name)
}

fn taken_by(test: &str, name: &str) -> usize {
    let this = std::env::current_exe().expect("a program");
    let measured = Command::new(this)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .envs([(CASE, name), AT_ONCE])
        .output();
    let output = measured.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let taken = text.lines().find_map(|line| line.strip_prefix("taken ")?.parse::<usize>().ok());
    taken.unwrap_or_else(|| panic!("{name}: {text} {output:?}"))
}

#[tokio::test]
#[ignore = "a part of the tests above"]
async fn measure() {
    let Ok(name) = std::env::var(CASE) else { return };
    let case = CASES.iter().chain([&FEW]).find(|case| case.name == name).expect("a case");
    let log = MemoryLog::start(retention(case.topics));
    let before = resident_bytes();
    for number in 0..case.count {
        publish(&log, case, number).await;
    }
    println!("\ntaken {}", resident_bytes() - before);
}

fn retention(topics: usize) -> Retention {
    let age = Duration::from_secs(3600);
    Retention { messages: 100_000, age, bytes: TOTAL, total_bytes: TOTAL, topics, rules: Rules::NONE }
}

async fn publish(log: &Arc<MemoryLog>, case: &Case, number: usize) {
    let topic = format!("topic.{}", number % case.topics).parse().expect("a topic");
    let payload = Payload::text("x".repeat(case.payload));
    let mut draft = Draft { topic, event: None, payload, exclude: None, by: None };
    if case.is_rich {
        draft.event = Some("rejoin.join".into());
        draft.exclude = Some(format!("connection-{number:08}").into());
        draft.by = Some(format!("user-{number:08}").into());
    }
    let idempotency_key = case.has_key.then(|| format!("key-{number:08}").into());
    let append = Append { draft, idempotency_key, if_match: None };
    if log.append(append.clone()).await == Err(AppendError::TooManyKeys) {
        log.append(Append { idempotency_key: None, ..append }).await.expect("stored");
    }
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).expect("a second field").parse().expect("a number");
    pages * 4096
}
