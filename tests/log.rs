//! The claims that hold for every log. A new log is added by a line in `logs!`.

#[path = "log/gaps.rs"]
mod gaps;
#[path = "log/joining.rs"]
mod joining;
#[path = "log/retain.rs"]
mod retain;
#[path = "support/redis.rs"]
mod server;
#[path = "log/shares.rs"]
mod shares;

use std::{sync::Arc, task::Poll, time::Duration};

use self::{gaps::*, joining::*, retain::*, server::Redis, shares::*};
use rejoin::{
    broker::{Broker, Delivery, Subscription},
    log::{Append, AppendError, Appended, Log, MemoryLog, RedisLog, Retention, Rules, Start},
    message::{Draft, Id, Pattern, Payload, Topic},
};
use tokio::time::timeout;

/// Turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(10);

const RETENTION: Retention = Retention {
    messages: 5,
    age: Duration::from_secs(3600),
    bytes: 1 << 20,
    total_bytes: 8 << 20,
    topics: 1_000_000,
    rules: Rules::NONE,
};

fn memory() -> Option<New> {
    Some(Box::new(|retention| MemoryLog::start(retention)))
}

/// A log in a Redis of its own. Dropping the maker ends that Redis.
fn redis() -> Option<New> {
    let redis = Redis::start(&[])?;
    Some(Box::new(move |retention| RedisLog::start(redis.url().parse().expect("an address"), &retention, 0)))
}

/// Makes a test of each claim for one log.
macro_rules! suite {
    ($log:ident; $($claim:ident),* $(,)?) => {
        mod $log {
            $(
                #[tokio::test]
                async fn $claim() {
                    let Some(new) = super::$log() else { return };
                    super::$claim(new).await;
                }
            )*
        }
    };
}

macro_rules! logs {
    ($($log:ident),*) => {$(
        suite! {
            $log;
            ids_grow_over_all_topics,
            an_idempotency_key_stores_once,
            a_precondition_is_about_the_topic_alone,
            a_cursor_just_before_the_oldest_message_is_no_gap,
            a_trimmed_message_is_a_gap_before_anything_else,
            only_the_last_of_several_gaps_moves_the_cursor,
            a_deletion_is_a_gap_only_for_readers_behind,
            a_cursor_before_the_log_began_is_a_gap_for_everything,
            a_cursor_ahead_of_the_log_is_a_gap_and_then_everything,
            zero_last_and_since_have_no_gap,
            the_first_cursor_of_zero_and_last_leads_to_no_false_gap,
            several_topics_come_in_the_order_of_ids_and_once,
            a_pattern_far_behind_reads_the_same_as_one_that_is_caught_up,
            a_slow_reader_gets_a_gap,
            an_announcement_reaches_only_readers_that_are_caught_up,
            an_excluded_reader_still_moves_on,
            a_topic_that_joins_is_read_up_to_the_cursor_of_the_others,
            a_topic_that_joins_brings_no_older_announcement,
            a_removed_topic_does_not_come,
            a_topic_that_leaves_before_its_gap_leaves_no_unknown_cursor_behind,
            a_pattern_that_leaves_takes_along_only_its_own_gaps,
            last_of_named_topics_has_no_limit,
            retention_by_bytes_keeps_the_newest,
            the_history_of_a_topic_comes_backwards_up_to_its_beginning,
            all_pages_of_a_history_are_what_was_published_without_the_gaps,
            each_topic_is_retained_by_the_first_rule_that_matches,
            a_client_makes_as_many_topics_as_it_leaves_free,
            all_clients_together_leave_topics_to_a_backend,
            all_clients_together_leave_room_for_the_keys_of_a_backend,
            a_client_with_many_topics_leaves_room_for_the_keys_of_others,
            many_patterns_share_the_gaps_that_are_told,
        }
    )*};
}

logs!(memory, redis);

type New = Box<dyn Fn(Retention) -> Arc<dyn Log>>;

fn topic(name: &str) -> Topic {
    name.parse().expect("a topic")
}

fn patterns(names: &[&str]) -> Vec<Pattern> {
    names.iter().map(|name| name.parse().expect("a pattern")).collect()
}

fn draft(name: &str, text: &str) -> Draft {
    Draft { topic: topic(name), event: None, payload: Payload::text(text), exclude: None, by: None }
}

fn append(name: &str, text: &str) -> Append {
    Append { draft: draft(name, text), idempotency_key: None, if_match: None }
}

async fn publish(broker: &Broker, name: &str) -> Id {
    broker.publish(append(name, "x")).await.expect("stored").id()
}

async fn publish_many(broker: &Broker, name: &str, count: usize) -> Vec<Id> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(publish(broker, name).await);
    }
    ids
}

async fn subscribe(broker: &Broker, names: &[&str], start: Start) -> Subscription {
    broker.subscribe(patterns(names), &start, "me").await.expect("the log can be read")
}

/// All deliveries until the cursor reaches the newest id, as `topic:id`, `topic!gap` or the text of an
/// announcement.
async fn drain(broker: &Broker, subscription: &mut Subscription) -> Vec<String> {
    let newest = broker.newest().await.expect("reachable");
    drain_until(subscription, |cursor| cursor >= newest).await
}

/// All deliveries until nothing more comes and the cursor is where it should be.
async fn drain_until(subscription: &mut Subscription, stands: impl Fn(Id) -> bool) -> Vec<String> {
    let mut seen = Vec::new();
    let drained = std::future::poll_fn(|cx| {
        loop {
            match subscription.poll_delivery(cx) {
                Poll::Ready(delivery) => seen.push(shown(&delivery)),
                Poll::Pending if stands(subscription.cursor()) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    timeout(PATIENCE, drained).await.expect("nothing comes any more");
    seen
}

fn shown(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Message(message) if message.is_ephemeral() => message.as_str().expect("text").to_owned(),
        Delivery::Message(message) => format!("{}:{}", message.topic, message.id),
        Delivery::Gap(gap) => {
            let next = gap.next.map_or("null".to_owned(), |next| next.to_string());
            format!("{}!{}..{} {}", gap.topic, gap.after, next, gap.reason.as_str())
        }
    }
}

fn of(name: &str, ids: &[Id]) -> Vec<String> {
    ids.iter().map(|id| format!("{name}:{id}")).collect()
}

async fn ids_grow_over_all_topics(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut last = broker.newest().await.expect("reachable");
    for name in ["a", "b", "a", "c"] {
        let id = publish(&broker, name).await;
        assert!(id > last && id < Id::MAX, "{id} after {last}");
        last = id;
    }
    assert_eq!(broker.newest().await, Ok(last));
}

async fn an_idempotency_key_stores_once(new: New) {
    let broker = Broker::new(new(RETENTION));
    let with_key = |name, text| Append { idempotency_key: Some("k".into()), ..append(name, text) };
    let first = broker.publish(with_key("a", "x")).await.expect("stored");
    assert_eq!(broker.publish(with_key("a", "x")).await, Ok(Appended::Replayed(first.id())));
    assert_eq!(broker.publish(with_key("a", "y")).await, Err(AppendError::KeyReused));
    assert!(matches!(broker.publish(with_key("b", "y")).await, Ok(Appended::Stored(_))));
    // The key is checked before the condition, which would fail now.
    let outdated = Append { if_match: Some(Id::ZERO), ..with_key("a", "x") };
    assert_eq!(broker.publish(outdated).await, Ok(Appended::Replayed(first.id())));
}

async fn a_precondition_is_about_the_topic_alone(new: New) {
    let broker = Broker::new(new(RETENTION));
    let when = |name, newest| Append { if_match: Some(newest), ..append(name, "x") };
    let first = broker.publish(when("a", Id::ZERO)).await.expect("nothing was ever there").id();
    publish(&broker, "b").await;
    assert_eq!(
        broker.publish(when("a", Id::ZERO)).await,
        Err(AppendError::PreconditionFailed { newest: first })
    );
    let second = broker.publish(when("a", first)).await.expect("nothing newer").id();
    assert_eq!(
        broker.publish(when("a", first)).await,
        Err(AppendError::PreconditionFailed { newest: second })
    );
    let ahead = broker.publish(when("a", Id::MAX)).await;
    assert_eq!(ahead, Err(AppendError::PreconditionFailed { newest: second }));
}

async fn several_topics_come_in_the_order_of_ids_and_once(new: New) {
    let broker = Broker::new(new(Retention { messages: 1000, ..RETENTION }));
    let start = broker.newest().await.expect("reachable");
    let mut expected = Vec::new();
    for turn in 0..900 {
        let name = ["a.x", "a.y", "b.x"][turn * 7 % 3];
        let id = publish(&broker, name).await;
        expected.push(format!("{name}:{id}"));
    }
    for names in [&["a.x", "a.y", "b.x"][..], &["a.*", "**", "b.x", "*.x"]] {
        let mut subscription = subscribe(&broker, names, Start::After(start)).await;
        assert_eq!(drain(&broker, &mut subscription).await, expected, "{names:?}");
    }
}

async fn a_pattern_far_behind_reads_the_same_as_one_that_is_caught_up(new: New) {
    let broker = Broker::new(new(Retention { messages: 5000, ..RETENTION }));
    let mut level = subscribe(&broker, &["a.**"], Start::Now).await;
    let start = level.cursor();
    let mut seen = Vec::new();
    for turn in 0..3000 {
        publish(&broker, ["a.b", "other", "a.b.c"][turn % 3]).await;
        if turn % 50 == 0 {
            seen.extend(drain(&broker, &mut level).await);
        }
    }
    seen.extend(drain(&broker, &mut level).await);
    let mut behind = subscribe(&broker, &["a.**"], Start::After(start)).await;
    assert_eq!(drain(&broker, &mut behind).await, seen);
    assert_eq!(seen.len(), 2000);
}

async fn an_announcement_reaches_only_readers_that_are_caught_up(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut level = subscribe(&broker, &["a"], Start::Now).await;
    let mut pattern = subscribe(&broker, &["*"], Start::Now).await;
    let mut other = subscribe(&broker, &["b"], Start::Now).await;
    for subscription in [&mut level, &mut pattern, &mut other] {
        assert!(drain(&broker, subscription).await.is_empty());
    }
    let before = publish(&broker, "a").await;
    broker.announce(draft("a", "psst")).await.expect("announced");
    let after = publish(&broker, "a").await;
    let expected = [format!("a:{before}"), "psst".to_owned(), format!("a:{after}")];
    assert_eq!(drain(&broker, &mut level).await, expected);
    assert_eq!(drain(&broker, &mut pattern).await, expected);
    assert!(drain(&broker, &mut other).await.is_empty());
    let mut late = subscribe(&broker, &["a"], Start::After(before)).await;
    assert_eq!(drain(&broker, &mut late).await, of("a", &[after]));
}

async fn an_excluded_reader_still_moves_on(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut subscription = subscribe(&broker, &["a"], Start::Now).await;
    let excluding = Draft { exclude: Some("me".into()), ..draft("a", "x") };
    let append = Append { draft: excluding, idempotency_key: None, if_match: None };
    let id = broker.publish(append).await.expect("stored").id();
    assert!(drain(&broker, &mut subscription).await.is_empty());
    assert!(subscription.cursor() >= id);
}

async fn last_of_named_topics_has_no_limit(new: New) {
    let broker = Broker::new(new(RETENTION));
    let names: Vec<_> = (0..1_100).map(|number| format!("t{number:04}")).collect();
    let mut expected = Vec::new();
    for name in &names {
        expected.extend(of(name, &[publish(&broker, name).await]));
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut subscription = subscribe(&broker, &names, Start::Last(1)).await;
    assert_eq!(drain(&broker, &mut subscription).await, expected);
    // A pattern beside the topics has a limit.
    let mut subscription = subscribe(&broker, &["t0000", "**"], Start::Last(1)).await;
    let expected = [&expected[..1], &expected[100..]].concat();
    assert_eq!(drain(&broker, &mut subscription).await, expected);
}
