//! A reader that is behind, or that reads gaps, while the list of its subject changes.

use std::{future::poll_fn, time::Duration};

use super::{super::TAIL_LIMIT, *};
use crate::{
    broker::Broker,
    log::{Append, Generation, MemoryLog, Retention, Rules},
    message::{Draft, Payload, Topic},
};

fn broker() -> Broker {
    let (age, rules) = (Duration::from_secs(3600), Rules::NONE);
    let (bytes, total_bytes) = (16 << 20, 256 << 20);
    Broker::new(MemoryLog::start(Retention {
        messages: 1000,
        age,
        bytes,
        total_bytes,
        topics: 10_000,
        rules,
    }))
}

fn pattern(text: &str) -> Pattern {
    text.parse().expect("a pattern")
}

fn draft(topic: &str, text: &str) -> Draft {
    let topic: Topic = topic.parse().expect("a topic");
    Draft { topic, event: None, payload: Payload::text(text), exclude: None, by: None }
}

async fn publish(broker: &Broker, topic: &str) {
    let append = Append { draft: draft(topic, "stored"), idempotency_key: None, if_match: None };
    broker.publish(append).await.expect("it is stored");
}

async fn add(broker: &Broker, topic: &str) {
    broker.subjects().expect("lists").add("u1", &pattern(topic)).await.expect("there is room");
}

async fn remove(broker: &Broker, topic: &str) {
    broker.subjects().expect("lists").remove("u1", &pattern(topic)).await.expect("open");
}

async fn read(broker: &Broker, own: &[&str], start: &Start) -> Subscription {
    let own = own.iter().map(|topic| pattern(topic)).collect();
    broker.subscribe_with_list(own, start, "c", "u1").await.expect("it reads")
}

/// The next thing that a connection would be given.
fn poll(subscription: &mut Subscription, cx: &mut Context<'_>) -> Poll<String> {
    loop {
        let was_due = subscription.is_at_list_change();
        match subscription.poll_mine(cx) {
            Poll::Ready(Some(ListChange::Added(topic))) => return Poll::Ready(format!("+{topic}")),
            Poll::Ready(Some(ListChange::Removed(topic))) => return Poll::Ready(format!("-{topic}")),
            Poll::Ready(None) | Poll::Pending => {}
        }
        match subscription.poll_delivery(cx) {
            Poll::Ready(Delivery::Message(message)) => {
                let text = String::from_utf8_lossy(message.bytes());
                return Poll::Ready(format!("{} {text}", message.topic));
            }
            Poll::Ready(Delivery::Gap(gap)) => return Poll::Ready(format!("gap {}", gap.topic)),
            Poll::Pending if was_due || !subscription.is_at_list_change() => return Poll::Pending,
            Poll::Pending => {}
        }
    }
}

async fn next(subscription: &mut Subscription) -> String {
    let next = poll_fn(|cx| poll(subscription, cx));
    tokio::time::timeout(Duration::from_secs(5), next).await.expect("something comes")
}

async fn next_few(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut told = Vec::new();
    while told.len() < count {
        told.push(next(subscription).await);
    }
    told
}

/// It stood for ever at the change that it was to stop at.
#[tokio::test]
async fn a_reader_reads_on_if_the_change_that_is_due_is_undone_by_very_many_others() {
    let broker = broker();
    let mut reader = read(&broker, &["own.*"], &Start::Now).await;
    publish(&broker, "own.1").await;
    publish(&broker, "own.2").await;
    add(&broker, "x").await;
    assert_eq!(next(&mut reader).await, "own.1 stored");
    for _ in 0..200 {
        add(&broker, "y").await;
        remove(&broker, "y").await;
    }
    remove(&broker, "x").await;
    publish(&broker, "own.3").await;
    // Messages of `y` from in between may be missing.
    assert_eq!(next_few(&mut reader, 3).await, ["own.2 stored", "gap $mine", "own.3 stored"]);
}

/// It was removed at once, and what was published before that came to no reader.
#[tokio::test]
async fn messages_before_a_removal_that_was_missed_are_a_gap() {
    for (is_removed, is_there_before) in [(true, true), (true, false), (false, true)] {
        let broker = broker();
        if is_there_before {
            add(&broker, "x").await;
        }
        let mut reader = read(&broker, &["own"], &Start::Now).await;
        publish(&broker, "own").await;
        assert_eq!(next(&mut reader).await, "own stored");
        if !is_there_before {
            // The reader knows of the entry, and has yet to read up to it.
            publish(&broker, "own").await;
            add(&broker, "x").await;
            assert!(futures_util::poll!(poll_fn(|cx| reader.poll_mine(cx))).is_pending());
        }
        publish(&broker, "x").await;
        // The process has lost Redis meanwhile, and reads the list again.
        let followed = broker.subjects().expect("lists").follow("u1").await.expect("open");
        let list = followed.list();
        list.doubt(list.generation());
        let mut entries = reader.mine().expect("a list").clone();
        if is_removed {
            remove(&broker, "x").await;
            entries.clear();
        }
        let upto = broker.newest().await.expect("there is one");
        assert!(list.load(list.doubts().expect("it is not known"), entries, upto, list.generation()));
        publish(&broker, "own").await;
        let expected: &[_] = match (is_removed, is_there_before) {
            (true, true) => &["gap $mine", "-x", "own stored"],
            (true, false) => &["gap $mine", "own stored", "own stored"],
            _ => &["x stored", "own stored"],
        };
        assert_eq!(next_few(&mut reader, expected.len()).await, expected);
    }
}

/// It stood below the watermark until something else came.
#[tokio::test]
async fn a_reader_reads_on_though_changes_that_undo_each_other_come_while_it_reads() {
    let broker = broker();
    let mut reader = read(&broker, &["own.*"], &Start::Now).await;
    for _ in 0..=TAIL_LIMIT {
        publish(&broker, "own.1").await;
    }
    next_few(&mut reader, TAIL_LIMIT).await;
    for _ in 0..200 {
        add(&broker, "y").await;
        remove(&broker, "y").await;
    }
    publish(&broker, "own.2").await;
    // The changes came after the reader had looked for some.
    let delivery = poll_fn(|cx| reader.poll_delivery(cx)).await;
    assert!(matches!(delivery, Delivery::Message(message) if &*message.topic == "own.1"));
    assert_eq!(next_few(&mut reader, 2).await, ["gap $mine", "own.2 stored"]);
}

/// Each change waited, as long as the reader had not read up to it.
#[tokio::test]
async fn a_reader_that_is_behind_remembers_only_so_many_changes() {
    let broker = broker();
    let mut reader = read(&broker, &["own.*"], &Start::Now).await;
    publish(&broker, "own.1").await;
    publish(&broker, "own.2").await;
    assert_eq!(next(&mut reader).await, "own.1 stored");
    let mut most = 0;
    for _ in 0..MAX_DUE {
        add(&broker, "y").await;
        remove(&broker, "y").await;
        let polled = futures_util::poll!(poll_fn(|cx| reader.poll_mine(cx)));
        assert!(!matches!(polled, Poll::Ready(Some(_))), "{polled:?}");
        most = most.max(reader.mine.as_ref().expect("a list").queue.len());
    }
    assert!((MAX_DUE / 2..=MAX_DUE).contains(&most), "{most}");
    add(&broker, "x").await;
    publish(&broker, "x").await;
    assert_eq!(next(&mut reader).await, "own.2 stored");
    let mut told = next(&mut reader).await;
    let mut gaps = 0;
    while told.ends_with('y') || told == "gap $mine" {
        gaps += usize::from(told == "gap $mine");
        told = next(&mut reader).await;
    }
    assert!(gaps > 0, "some changes were forgotten");
    assert_eq!((told.as_str(), next(&mut reader).await.as_str()), ("+x", "x stored"));
}

/// It counted as empty, and what was on it came as if it were new.
#[tokio::test]
async fn a_list_that_is_not_known_is_not_taken_for_an_empty_one() {
    let broker = broker();
    add(&broker, "x").await;
    let followed = broker.subjects().expect("lists").follow("u1").await.expect("open");
    followed.list().doubt(followed.list().generation());
    assert!(Mine::new(followed).is_none());
}

#[tokio::test]
async fn the_gap_about_the_list_is_told_though_another_topic_is_removed_meanwhile() {
    let broker = broker();
    let mut reader = read(&broker, &["a", "b"], &Start::After(Id::new(1))).await;
    let first = next(&mut reader).await;
    let (told, left) = if first == "gap a" { ("a", "b") } else { ("b", "a") };
    assert_eq!(first, format!("gap {told}"));
    assert!(reader.remove(&pattern(left)));
    assert_eq!(next(&mut reader).await, "gap $mine");
    publish(&broker, told).await;
    assert_eq!(next(&mut reader).await, format!("{told} stored"));
}

#[tokio::test]
async fn an_ephemeral_message_from_before_the_entry_is_not_given() {
    let broker = broker();
    let _other = broker.subscribe(vec![pattern("x")], &Start::Now, "o").await.expect("it reads");
    let mut reader = read(&broker, &["own.*"], &Start::Now).await;
    publish(&broker, "own.1").await;
    // Now it is caught up, and takes ephemeral messages.
    assert_eq!(next(&mut reader).await, "own.1 stored");
    assert!(futures_util::poll!(std::pin::pin!(poll_fn(|cx| poll(&mut reader, cx)))).is_pending());
    publish(&broker, "own.2").await;
    broker.announce(draft("x", "too early")).await.expect("it is sent");
    broker.announce(draft("own.2", "in time")).await.expect("it is sent");
    add(&broker, "x").await;
    broker.announce(draft("x", "in time")).await.expect("it is sent");
    let told = next_few(&mut reader, 4).await;
    assert_eq!(told, ["own.2 stored", "+x", "own.2 in time", "x in time"]);
}

/// The list may have been another one where the cursor comes from.
#[tokio::test]
async fn a_cursor_from_elsewhere_is_one_gap_about_the_list() {
    for entries in [&[][..], &["x", "y.*"]] {
        let broker = broker();
        for entry in entries {
            add(&broker, entry).await;
        }
        let ahead = Id::new(9_000_000_000_000_000);
        for start in [Start::After(ahead), Start::Unreadable("elsewhere".into())] {
            let mut reader = read(&broker, &[], &start).await;
            assert!(reader.cursor() >= ahead);
            assert_eq!(next(&mut reader).await, "gap $mine", "{start:?} {entries:?}");
            assert!(reader.cursor() < ahead);
            let mut reader = read(&broker, &["own"], &start).await;
            assert_eq!(next_few(&mut reader, 2).await, ["gap own", "gap $mine"], "{start:?} {entries:?}");
            assert!(reader.cursor() < ahead);
            publish(&broker, "own").await;
            assert_eq!(next(&mut reader).await, "own stored");
            broker.delete(&"own".parse().expect("a topic")).await.expect("it is deleted");
        }
    }
}

/// The change came after the reader had looked for some, and the ephemeral message passed it.
#[tokio::test]
async fn an_ephemeral_message_passes_no_change_that_is_not_made() {
    for is_added in [true, false] {
        let broker = broker();
        let _other = broker.subscribe(vec![pattern("x")], &Start::Now, "o").await.expect("it reads");
        if !is_added {
            add(&broker, "x").await;
        }
        let mut reader = read(&broker, &["own.*"], &Start::Now).await;
        publish(&broker, "own.1").await;
        // Now it is caught up, and takes ephemeral messages.
        assert_eq!(next(&mut reader).await, "own.1 stored");
        assert!(futures_util::poll!(std::pin::pin!(poll_fn(|cx| poll(&mut reader, cx)))).is_pending());
        for _ in 0..=TAIL_LIMIT {
            publish(&broker, "own.1").await;
        }
        next_few(&mut reader, TAIL_LIMIT).await;
        match is_added {
            true => add(&broker, "x").await,
            false => remove(&broker, "x").await,
        }
        broker.announce(draft("x", "after the change")).await.expect("it is sent");
        let delivery = poll_fn(|cx| reader.poll_delivery(cx)).await;
        assert!(matches!(delivery, Delivery::Message(message) if &*message.topic == "own.1"));
        publish(&broker, "own.2").await;
        let expected: &[_] = match is_added {
            true => &["+x", "x after the change", "own.2 stored"],
            false => &["-x", "own.2 stored"],
        };
        assert_eq!(next_few(&mut reader, expected.len()).await, expected);
    }
}

/// The newest messages of each topic begin at different places, so each topic is given up to another id.
#[tokio::test]
async fn the_newest_messages_of_an_entry_are_those_after_its_id() {
    for entry in ["x", "x*", "*"].into_iter().filter(|entry| entry.parse::<Pattern>().is_ok()) {
        let broker = broker();
        publish(&broker, "own").await;
        publish(&broker, "own").await;
        publish(&broker, "x").await;
        add(&broker, entry).await;
        publish(&broker, "x").await;
        let mut reader = read(&broker, &["own"], &Start::Last(2)).await;
        publish(&broker, "own").await;
        let told = next_few(&mut reader, 4).await;
        assert_eq!(told, ["own stored", "own stored", "x stored", "own stored"], "{entry}");
    }
}

/// After a loss it is not known which entries there were, so their own gaps would say too little.
#[tokio::test]
async fn one_gap_stands_for_those_of_the_entries_after_a_loss_and_for_no_other() {
    let generation = Generation { began: Id::new(10), reason: Reason::Failover };
    let followed = broker().subjects().expect("lists").follow("u1").await.expect("open");
    followed.list().doubt(generation);
    let [x, own] = ["x", "own"].map(pattern);
    let (list, entries) =
        (followed.list(), Entries::from([(x.clone(), Id::new(1)), (own.clone(), Id::new(2))]));
    assert!(list.load(list.doubts().expect("it is not known"), entries, Id::new(10), generation));
    let mut mine = Mine::new(followed).expect("it is known");
    mine.also = [own].into();
    let gap = |topic: &str, reason| Gap { topic: pattern(topic), next: None, reason, floor: Id::ZERO };
    let mut gaps: Vec<_> = ["x", "own"].map(|topic| gap(topic, Reason::Failover)).into();
    gaps.push(gap("x", Reason::Retention));
    mine.merge_gaps(&mut gaps, Id::new(5));
    let told: Vec<_> = gaps.iter().map(|gap| (gap.topic.as_str(), gap.reason)).collect();
    assert_eq!(told, [("own", Reason::Failover), ("x", Reason::Retention), (GAP_TOPIC, Reason::Failover)]);
    assert!(!mine.owes_gap(Id::new(5)), "it is told once");
}
