//! The claims that hold for every log. A new log is added by a line in `logs!`.

#[path = "support/redis.rs"]
mod server;

use std::{sync::Arc, task::Poll, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rejoin::{
    broker::{Broker, Delivery, Subscription},
    log::{
        Append, AppendError, Appended, History, Log, MemoryLog, Payer, Reason, RedisLog, Retention, Rule,
        Rules, Start,
    },
    message::{Draft, Id, Pattern, Payload, Topic},
};
use server::Redis;
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

async fn a_cursor_just_before_the_oldest_message_is_no_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let ids = publish_many(&broker, "a", 6).await;
    let mut subscription = subscribe(&broker, &["a"], Start::After(ids[0])).await;
    assert_eq!(drain(&broker, &mut subscription).await, of("a", &ids[1..]));
}

async fn a_trimmed_message_is_a_gap_before_anything_else(new: New) {
    let broker = Broker::new(new(RETENTION));
    let start = publish(&broker, "b").await;
    let old = publish(&broker, "a").await;
    let between = publish(&broker, "b").await;
    let kept = publish_many(&broker, "a", 5).await;
    for names in [&["a", "b"][..], &["*"]] {
        let mut subscription = subscribe(&broker, names, Start::After(start)).await;
        let mut expected = vec![format!("a!{start}..{} retention", kept[0]), format!("b:{between}")];
        expected.extend(of("a", &kept));
        assert_eq!(drain(&broker, &mut subscription).await, expected, "{names:?}, lost {old}");
    }
}

async fn only_the_last_of_several_gaps_moves_the_cursor(new: New) {
    let broker = Broker::new(new(RETENTION));
    let start = broker.newest().await.expect("reachable");
    publish_many(&broker, "a", 2).await;
    publish_many(&broker, "b", 2).await;
    let ungiven = publish(&broker, "c").await;
    let last = publish(&broker, "b").await;
    for name in ["a", "b"] {
        broker.delete(&topic(name)).await.expect("deleted");
    }
    let mut subscription = subscribe(&broker, &["a", "b", "c"], Start::After(start)).await;
    let mut cursors = Vec::new();
    while cursors.len() < 3 {
        let delivery = std::future::poll_fn(|cx| subscription.poll_delivery(cx)).await;
        cursors.push((matches!(delivery, Delivery::Gap(_)), subscription.cursor()));
    }
    assert!(drain(&broker, &mut subscription).await.is_empty());
    // The cursor moves past the gaps, but not past the message of `c`, which is between them.
    assert_eq!(cursors, [(true, start), (true, ungiven.before()), (false, ungiven)]);
    assert!(subscription.cursor() >= last);
}

async fn a_deletion_is_a_gap_only_for_readers_behind(new: New) {
    let broker = Broker::new(new(RETENTION));
    let ids = publish_many(&broker, "a", 3).await;
    let mut level = subscribe(&broker, &["a"], Start::After(ids[2])).await;
    let mut level_pattern = subscribe(&broker, &["*"], Start::After(ids[2])).await;
    broker.delete(&topic("a")).await.expect("deleted");
    assert!(
        drain(&broker, &mut level).await.is_empty() && drain(&broker, &mut level_pattern).await.is_empty()
    );
    for names in ["a", "*"] {
        let mut behind = subscribe(&broker, &[names], Start::After(ids[0])).await;
        assert_eq!(drain(&broker, &mut behind).await, [format!("a!{}..null deleted", ids[0])]);
        assert!(behind.cursor() >= ids[2], "the gap is passed");
    }
    let next = publish(&broker, "a").await;
    for subscription in [&mut level, &mut level_pattern] {
        assert_eq!(drain(&broker, subscription).await, of("a", &[next]));
    }
}

async fn a_cursor_before_the_log_began_is_a_gap_for_everything(new: New) {
    let broker = Broker::new(new(RETENTION));
    let old = broker.newest().await.expect("reachable").before();
    let id = publish(&broker, "a").await;
    let mut subscription = subscribe(&broker, &["a", "never", "x.*"], Start::After(old)).await;
    let mut seen = drain(&broker, &mut subscription).await;
    assert_eq!(seen.pop(), Some(format!("a:{id}")));
    seen.sort();
    let gap = |name, next: String| format!("{name}!{old}..{next} restarted");
    assert_eq!(seen, [gap("a", id.to_string()), gap("never", "null".into()), gap("x.*", "null".into())]);
}

async fn a_cursor_ahead_of_the_log_is_a_gap_and_then_everything(new: New) {
    let broker = Broker::new(new(RETENTION));
    let ids = publish_many(&broker, "a", 7).await;
    for start in [Start::After(Id::MAX), Start::Unreadable("?".into())] {
        let mut subscription = subscribe(&broker, &["a"], start).await;
        assert!(subscription.cursor() > ids[6], "a client that is cut now must get the gap when it resumes");
        let first = std::future::poll_fn(|cx| subscription.poll_delivery(cx)).await;
        let Delivery::Gap(gap) = first else { panic!("{first:?}") };
        assert_eq!(
            (gap.reason, gap.next, gap.cursor),
            (Reason::UnknownCursor, Some(ids[2]), ids[2].before())
        );
        assert_eq!(subscription.cursor(), ids[2].before());
        assert_eq!(drain(&broker, &mut subscription).await, of("a", &ids[2..]));
    }
}

async fn zero_last_and_since_have_no_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let a = publish_many(&broker, "a", 8).await;
    let b = publish_many(&broker, "b", 8).await;
    for names in [&["a", "b"][..], &["*"]] {
        for start in [Start::Everything, Start::Since(Id::new(1)), Start::Last(100)] {
            let mut subscription = subscribe(&broker, names, start.clone()).await;
            let expected = [of("a", &a[3..]), of("b", &b[3..])].concat();
            assert_eq!(drain(&broker, &mut subscription).await, expected, "{names:?} {start:?}");
        }
        let mut last = subscribe(&broker, names, Start::Last(2)).await;
        assert_eq!(drain(&broker, &mut last).await, [of("a", &a[6..]), of("b", &b[6..])].concat());
        let mut none = subscribe(&broker, names, Start::Last(0)).await;
        assert!(drain(&broker, &mut none).await.is_empty());
        let mut since = subscribe(&broker, names, Start::Since(b[4])).await;
        assert_eq!(drain(&broker, &mut since).await, of("b", &b[4..]));
    }
}

async fn the_first_cursor_of_zero_and_last_leads_to_no_false_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let ids = publish_many(&broker, "a", 8).await;
    for (start, from) in [(Start::Everything, 3), (Start::Last(2), 6), (Start::Since(ids[5]), 5)] {
        let first = subscribe(&broker, &["a"], start).await.cursor();
        let mut again = subscribe(&broker, &["a"], Start::After(first)).await;
        assert_eq!(drain(&broker, &mut again).await, of("a", &ids[from..]));
    }
    let empty = subscribe(&broker, &["empty"], Start::Everything).await;
    assert_ne!(empty.cursor(), Id::ZERO);
    let mut again = subscribe(&broker, &["empty"], Start::After(empty.cursor())).await;
    assert!(drain(&broker, &mut again).await.is_empty());
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

async fn a_slow_reader_gets_a_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut subscription = subscribe(&broker, &["a"], Start::Now).await;
    let first = publish(&broker, "a").await;
    assert_eq!(drain(&broker, &mut subscription).await, of("a", &[first]));
    let missed = publish_many(&broker, "a", 20).await;
    let mut expected = vec![format!("a!{first}..{} retention", missed[15])];
    expected.extend(of("a", &missed[15..]));
    assert_eq!(drain(&broker, &mut subscription).await, expected);
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

async fn a_topic_that_joins_is_read_up_to_the_cursor_of_the_others(new: New) {
    let broker = Broker::new(new(RETENTION));
    let a = publish_many(&broker, "a", 2).await;
    let mut subscription = subscribe(&broker, &["b"], Start::Now).await;
    let b = publish(&broker, "b").await;
    let mut other = subscribe(&broker, &["a"], Start::After(a[0])).await;
    let late = publish(&broker, "a").await;
    let mut seen = Vec::new();
    std::future::poll_fn(|cx| {
        loop {
            use rejoin::broker::Join::{Live, Replay, SameCursor};
            match subscription.poll_join(&mut other, cx) {
                Poll::Ready(Live(delivery)) => seen.push(format!("live {}", shown(&delivery))),
                Poll::Ready(Replay(delivery)) => seen.push(format!("replay {}", shown(&delivery))),
                Poll::Ready(SameCursor) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    subscription.absorb(other, None);
    seen.extend(drain(&broker, &mut subscription).await);
    // The reader that is behind reads up to the cursor of the other, and gets no message twice.
    let caught_up = seen.iter().filter(|line| line.ends_with(&format!("a:{late}"))).count();
    assert_eq!(caught_up, 1, "{seen:?}");
    assert!(seen.contains(&format!("live b:{b}")) || seen.contains(&format!("b:{b}")), "{seen:?}");
    assert!(seen.contains(&format!("replay a:{}", a[1])), "{seen:?}");
    let both = [publish(&broker, "b").await, publish(&broker, "a").await];
    assert_eq!(drain(&broker, &mut subscription).await, [format!("b:{}", both[0]), format!("a:{}", both[1])]);
}

/// Announcements from before the topic joined were given to the reader later, because nothing had woken it
/// for them.
async fn a_topic_that_joins_brings_no_older_announcement(new: New) {
    use rejoin::broker::Join::SameCursor;
    let broker = Broker::new(new(RETENTION));
    let mut subscription = subscribe(&broker, &["a"], Start::Now).await;
    // A message is announced only if a reader follows its topic.
    let mut listener = subscribe(&broker, &["b"], Start::Now).await;
    for subscription in [&mut subscription, &mut listener] {
        assert!(drain(&broker, subscription).await.is_empty());
    }
    for text in ["b once", "b twice"] {
        broker.announce(draft("b", text)).await.expect("announced");
    }
    broker.announce(draft("a", "psst")).await.expect("announced");
    assert_eq!(drain(&broker, &mut listener).await, ["b once", "b twice"]);
    let mut other = subscribe(&broker, &["b"], Start::Now).await;
    let joined = std::future::poll_fn(|cx| subscription.poll_join(&mut other, cx)).await;
    assert!(matches!(joined, SameCursor), "there is nothing to read");
    subscription.absorb(other, None);
    let stored = publish(&broker, "b").await;
    broker.announce(draft("b", "thrice")).await.expect("announced");
    let expected = ["psst".to_owned(), format!("b:{stored}"), "thrice".to_owned()];
    assert_eq!(drain(&broker, &mut subscription).await, expected);
}

async fn a_removed_topic_does_not_come(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut subscription = subscribe(&broker, &["a", "a.*", "b"], Start::Now).await;
    assert!(subscription.remove(&patterns(&["a"])[0]) && !subscription.remove(&patterns(&["a"])[0]));
    publish(&broker, "a").await;
    let kept = [publish(&broker, "a.x").await, publish(&broker, "b").await];
    let expected = [format!("a.x:{}", kept[0]), format!("b:{}", kept[1])];
    assert_eq!(drain(&broker, &mut subscription).await, expected);
}

/// The only gap that could reset the cursor was removed with its topic, so the cursor stayed ahead of the log
/// for ever.
async fn a_topic_that_leaves_before_its_gap_leaves_no_unknown_cursor_behind(new: New) {
    let broker = Broker::new(new(RETENTION));
    let a = publish(&broker, "a").await;
    let ahead = Id::new(a.get() + 1_000_000_000);
    for names in [&["a"][..], &["a", "b"]] {
        let mut subscription = subscribe(&broker, names, Start::After(ahead)).await;
        assert_eq!(subscription.cursor(), ahead);
        for pattern in patterns(names) {
            assert!(subscription.remove(&pattern));
        }
        assert_eq!(drain_until(&mut subscription, |cursor| cursor == a).await, [""; 0], "{names:?}");
    }
    let mut subscription = subscribe(&broker, &["a", "b"], Start::After(ahead)).await;
    subscription.remove(&patterns(&["b"])[0]);
    let expected = [format!("a!{ahead}..{a} unknown_cursor"), format!("a:{a}")];
    assert_eq!(drain_until(&mut subscription, |cursor| cursor == a).await, expected);
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

async fn retention_by_bytes_keeps_the_newest(new: New) {
    let bytes = 122_000;
    let broker = Broker::new(new(Retention { bytes, total_bytes: 190_000, messages: 100, ..RETENTION }));
    let large = |name| append(name, &"x".repeat(30_000));
    let mut ids = Vec::new();
    for name in ["a", "a", "a", "a", "a", "b", "b", "b"] {
        ids.push(broker.publish(large(name)).await.expect("stored").id());
    }
    // Each message counts 30 200 bytes: four fit in a topic, six in the log.
    let mut all = subscribe(&broker, &["a", "b"], Start::Everything).await;
    let expected = [of("a", &ids[2..5]), of("b", &ids[5..])].concat();
    assert_eq!(drain(&broker, &mut all).await, expected);
    let huge = broker.publish(append("a", &"x".repeat(150_000))).await.expect("stored").id();
    let mut newest = subscribe(&broker, &["a"], Start::Last(9)).await;
    assert_eq!(drain(&broker, &mut newest).await, of("a", &[huge]));
}

/// A pattern that left took along gaps of topics that another pattern reads too.
async fn a_pattern_that_leaves_takes_along_only_its_own_gaps(new: New) {
    let broker = Broker::new(new(Retention { messages: 1, ..RETENTION }));
    let cursor = publish(&broker, "before").await;
    let mut newest = Vec::new();
    for name in ["t.a", "t.b", "t.a", "t.b"] {
        newest.push(publish(&broker, name).await);
    }
    let mut subscription = subscribe(&broker, &["t.*", "*.a"], Start::After(cursor)).await;
    // Both gaps are queued before the first of them is given.
    let first = std::future::poll_fn(|cx| subscription.poll_delivery(cx)).await;
    assert!(matches!(first, Delivery::Gap(_)), "{first:?}");
    assert!(subscription.remove(&patterns(&["t.*"])[0]));
    let told = drain_until(&mut subscription, |cursor| cursor >= newest[2]).await;
    let told = [vec![shown(&first)], told].concat();
    let gap = format!("t.a!{cursor}..{} retention", newest[2]);
    assert!(told.contains(&gap), "{told:?}");
    assert_eq!(told.last(), Some(&format!("t.a:{}", newest[2])), "{told:?}");
    assert!(told.iter().skip(1).all(|line| line.starts_with("t.a")), "{told:?}");
}

/// All pages of the history below `before`.
async fn pages(broker: &Broker, name: &str, before: Id, limit: usize) -> History {
    let mut pages = broker.history(&topic(name), before, limit).await.expect("reachable");
    while let Some(before) = pages.before {
        pages.extend(broker.history(&topic(name), before, limit).await.expect("reachable"));
    }
    pages
}

fn ids(history: &History) -> Vec<Id> {
    history.messages.iter().map(|message| message.id).collect()
}

async fn the_history_of_a_topic_comes_backwards_up_to_its_beginning(new: New) {
    let broker = Broker::new(new(Retention { messages: 10, ..RETENTION }));
    let began = broker.newest().await.expect("reachable");
    let published = publish_many(&broker, "a", 5).await;
    publish(&broker, "b").await;
    let page = async |name: &str, before| broker.history(&topic(name), before, 2).await.expect("reachable");
    let first = page("a", Id::MAX).await;
    assert_eq!(
        (ids(&first), first.before, first.is_beginning),
        (published[3..].to_vec(), Some(published[3]), false)
    );
    let last = page("a", published[2]).await;
    assert_eq!((ids(&last), last.before, last.is_beginning), (published[..2].to_vec(), None, true));
    for (name, before) in [("a", published[0]), ("never", Id::MAX)] {
        let page = page(name, before).await;
        assert_eq!(
            (page.messages.len(), page.gaps.len(), page.is_beginning),
            (0, 0, true),
            "{name} {before}"
        );
    }
    // An id from before the log began.
    for before in [began, began.before(), Id::new(2), Id::new(1), Id::ZERO] {
        let page = page("a", before).await;
        assert_eq!((page.gaps.len(), page.gaps[0].reason, page.is_beginning), (1, Reason::Restarted, false));
    }
}

async fn all_pages_of_a_history_are_what_was_published_without_the_gaps(new: New) {
    let broker = Broker::new(new(Retention { total_bytes: 8 << 20, ..RETENTION }));
    let mut random = StdRng::seed_from_u64(1);
    let mut published: Vec<(&str, Id)> = Vec::new();
    let mut deleted = [false; 3];
    for round in 0..150 {
        let at = random.random_range(0..3);
        let name = ["a", "b", "c.d"][at];
        if random.random_range(0..12) == 0 {
            broker.delete(&topic(name)).await.expect("deleted");
            deleted[at] = published.iter().any(|(known, _)| *known == name);
        } else {
            published.push((name, publish(&broker, name).await));
        }
        let of_topic: Vec<_> =
            published.iter().filter(|(known, _)| *known == name).map(|(_, id)| *id).collect();
        let before = if round % 3 == 0 { Id::MAX } else { *of_topic.last().unwrap_or(&Id::MAX) };
        let history = pages(&broker, name, before, random.random_range(1..4)).await;
        let wanted: Vec<_> = of_topic.iter().copied().filter(|id| *id < before).collect();
        let given = ids(&history);
        assert!(wanted.ends_with(&given), "round {round}: {name} {history:?} of {wanted:?}");
        if given.len() == wanted.len() && !deleted[at] && of_topic.len() <= 5 {
            assert!(history.is_beginning && history.gaps.is_empty(), "round {round}: {name} {history:?}");
        } else if given.len() < wanted.len() {
            let gap = history.gaps[0];
            assert_eq!(
                (history.gaps.len(), history.is_beginning),
                (1, false),
                "round {round}: {name} {history:?}"
            );
            assert_eq!((gap.after, gap.next), (Id::ZERO, given.first().copied()), "round {round}: {name}");
            let expected = if deleted[at] { Reason::Deleted } else { Reason::Retention };
            assert_eq!(gap.reason, expected, "round {round}: {name}");
        }
    }
}

fn rule(topics: &str, messages: Option<usize>, age: Option<Duration>) -> Rule {
    Rule { topics: topics.parse().expect("a pattern"), messages, age, bytes: None }
}

/// Publishes to `name` until this many messages are retained: rules are in force a moment after they were set.
async fn until_retained(broker: &Broker, name: &str, count: usize) {
    let mut published = 0;
    let retained = async {
        loop {
            publish(broker, name).await;
            published += 1;
            if published > count && pages(broker, name, Id::MAX, 100).await.messages.len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, retained).await.unwrap_or_else(|_| panic!("{name} does not come to {count} messages"));
}

async fn each_topic_is_retained_by_the_first_rule_that_matches(new: New) {
    let rules = Rules::new(vec![rule("chat.lobby", Some(2), None), rule("chat.**", Some(8), None)]);
    let broker = Broker::new(new(Retention { rules, ..RETENTION }));
    for (name, count) in [("chat.lobby", 2), ("chat.a", 8), ("chat.a.b", 8), ("other", 5)] {
        until_retained(&broker, name, count).await;
    }
    broker.retain_by(Rules::new(vec![rule("chat.a", Some(3), None), rule("other", Some(9), None)]));
    for (name, count) in [("chat.a", 3), ("other", 9), ("chat.lobby", 5)] {
        until_retained(&broker, name, count).await;
    }
    broker.retain_by(Rules::NONE);
    until_retained(&broker, "other", 5).await;
    until_retained(&broker, "chat.a", 5).await;
}

/// In Redis the ids of a new store are ahead of its clock, so `tests/redis` has this claim with a store of its own.
#[tokio::test]
async fn messages_expire_by_the_age_of_their_own_topic() {
    let short = Duration::from_millis(300);
    let rules = Rules::new(vec![rule("short.*", None, Some(short)), rule("long.*", Some(9), None)]);
    let broker = Broker::new(MemoryLog::start(Retention { rules, ..RETENTION }));
    until_retained(&broker, "long.ready", 9).await;
    let cursor = broker.newest().await.expect("reachable");
    let mut behind = Vec::new();
    for name in ["**", "*.a", "short.a", "long.a"] {
        behind.push((name, subscribe(&broker, &[name], Start::After(cursor)).await));
    }
    publish(&broker, "short.a").await;
    let kept = publish(&broker, "long.a").await;
    let gone = async {
        while !pages(&broker, "short.a", Id::MAX, 10).await.messages.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it expires");
    let gap = format!("short.a!{cursor}..null retention");
    let (both, expected) = (vec![gap.clone(), format!("long.a:{kept}")], |name: &str| match name {
        "short.a" => vec![gap.clone()],
        "long.a" => of("long.a", &[kept]),
        _ => Vec::new(),
    });
    for (name, mut reader) in behind {
        let mut fresh = subscribe(&broker, &[name], Start::After(cursor)).await;
        for reader in [&mut reader, &mut fresh] {
            let expected = if name.contains('*') { both.clone() } else { expected(name) };
            assert_eq!(drain(&broker, reader).await, expected, "{name}");
        }
    }
    let history = pages(&broker, "short.a", Id::MAX, 10).await;
    assert_eq!((history.gaps[0].reason, history.is_beginning), (Reason::Retention, false));
}

/// This many readers of 50 patterns each. All patterns match one topic, and all readers are caught up.
async fn readers_of_one_topic(broker: &Broker, count: usize) -> Vec<Subscription> {
    let name = |number: usize| {
        // The first segment changes last, so that the patterns of one reader lie together in the walk.
        let segments = (0..12).rev().map(|at| if number >> at & 1 == 0 { "*" } else { "a" });
        segments.collect::<Vec<_>>().join(".")
    };
    let mut readers = Vec::new();
    for reader in 0..count {
        let names: Vec<_> = (reader * 50..(reader + 1) * 50).map(name).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut subscription = subscribe(broker, &names, Start::Now).await;
        assert!(drain(broker, &mut subscription).await.is_empty());
        readers.push(subscription);
    }
    readers
}

/// The log was locked while it brought a message to all patterns that match it.
#[tokio::test]
async fn a_publish_that_many_patterns_match_is_seen_by_all_though_its_publisher_leaves() {
    let log = MemoryLog::start(RETENTION);
    let broker = Broker::new(log.clone());
    let readers = readers_of_one_topic(&broker, 80).await;
    let readers = tokio::spawn(woken_for(readers, 2));
    tokio::task::yield_now().await;
    let start = log.watermark();
    let name = ["a"; 12].join(".");
    {
        let first = std::pin::pin!(broker.publish(append(&name, "x")));
        assert!(futures_util::poll!(first).is_pending(), "it takes more than one step");
    }
    assert_eq!(log.watermark(), start, "not all tails hold it yet");
    // A reader that subscribes meanwhile gets the message too, and the subscribing does not wait for it.
    let mut late = subscribe(&broker, &["a.**", "*.*.*.*.*.*.*.*.*.*.*.*"], Start::Now).await;
    assert!(futures_util::poll!(std::future::poll_fn(|cx| late.poll_delivery(cx))).is_pending());
    let second = publish(&broker, &name).await;
    let (readers, seen) = readers.await.expect("they are woken");
    let expected = seen[0].clone();
    assert_eq!(expected[1], format!("{name}:{second}"));
    assert!(seen.iter().all(|seen| *seen == expected), "all are given the same");

    let readers = tokio::spawn(woken_for(readers, 1));
    tokio::task::yield_now().await;
    broker.announce(draft(&name, "psst")).await.expect("announced");
    let (_, seen) = readers.await.expect("they are woken");
    assert!(seen.iter().all(|seen| seen == &["psst"]), "{seen:?}");
    let expected = [expected, vec!["psst".to_owned()]].concat();
    assert_eq!(drain(&broker, &mut late).await, expected);
}

/// The first `count` deliveries of each reader. Each reader is woken by its messages, and by nothing else.
async fn woken_for(readers: Vec<Subscription>, count: usize) -> (Vec<Subscription>, Vec<Vec<String>>) {
    let next = async |mut reader: Subscription| {
        let mut seen = Vec::new();
        while seen.len() < count {
            seen.push(shown(&std::future::poll_fn(|cx| reader.poll_delivery(cx)).await));
        }
        (reader, seen)
    };
    let all = futures_util::future::join_all(readers.into_iter().map(next));
    timeout(PATIENCE, all).await.expect("each is woken").into_iter().unzip()
}

/// A user who may publish to many topics made all of them, and no other client could make one for a week.
async fn a_client_makes_as_many_topics_as_it_leaves_free(new: New) {
    let broker = Broker::new(new(Retention { topics: 40, ..RETENTION }));
    let (loud, quiet) = (Payer::subject("loud"), Payer::subject("quiet"));
    let make = async |payer: Option<Payer>, name: &str| {
        let mut made = 0;
        while broker.publish_for(append(&format!("{name}.{made}"), "x"), payer).await.is_ok() {
            made += 1;
        }
        made
    };
    assert_eq!(make(Some(loud), "loud").await, 20);
    assert_eq!(make(Some(quiet), "quiet").await, 10);
    let known = broker.publish_for(append("quiet.0", "x"), Some(loud)).await;
    assert!(matches!(known, Ok(Appended::Stored(_))), "a topic that is known costs nothing: {known:?}");
    assert_eq!(make(None, "backend").await, 10, "a backend makes all that are left");
    let refused = broker.publish_for(append("x", "x"), Some(quiet)).await;
    assert_eq!(refused, Err(AppendError::TooManyTopics));
}

/// The keys were shared by topic alone, so a user who may publish to many topics used up those of all others.
async fn a_client_with_many_topics_leaves_room_for_the_keys_of_others(new: New) {
    let broker = Broker::new(new(Retention { total_bytes: 40_000, ..RETENTION }));
    let (loud, quiet) = (Payer::subject("loud"), Payer::subject("quiet"));
    let use_key = async |payer: Option<Payer>, name: &str, key: usize| {
        let append = Append { idempotency_key: Some(key.to_string().into()), ..append(name, "x") };
        broker.publish_for(append, payer).await
    };
    let mut used = 0;
    while use_key(Some(loud), &format!("loud.{}", used % 5), used).await.is_ok() {
        used += 1;
        assert!(used < 150, "the room for all keys");
    }
    assert!(used > 20, "{used}");
    for key in 0..5 {
        assert_eq!(use_key(Some(loud), "loud.x", key).await, Err(AppendError::TooManyKeys));
        use_key(Some(quiet), "loud.0", 1_000 + key).await.expect("another client, in the same topic");
        use_key(None, "backend", key).await.expect("a backend");
    }
    assert!(matches!(use_key(Some(loud), "loud.0", 0).await, Ok(Appended::Replayed(_))), "it is known");
}

/// One request of a hundred patterns was told a hundred thousand gaps.
async fn many_patterns_share_the_gaps_that_are_told(new: New) {
    let broker = Broker::new(new(Retention { messages: 1, ..RETENTION }));
    let start = broker.newest().await.expect("reachable");
    for number in 0..201 {
        publish(&broker, &format!("p0.{number}")).await;
        broker.delete(&topic(&format!("p0.{number}"))).await.expect("deleted");
    }
    let names: Vec<String> = (0..100).map(|number| format!("p{number}.*")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (names, expected) in [(&names[..1], 201), (&names[..99], 201), (&names[..], 1)] {
        let mut behind = subscribe(&broker, names, Start::After(start)).await;
        let told = drain(&broker, &mut behind).await;
        assert_eq!(told.len(), expected, "{} patterns: {told:?}", names.len());
    }
}
