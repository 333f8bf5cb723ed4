//! The limits of retention, and the history of a topic.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rejoin::{
    broker::Broker,
    log::{History, MemoryLog, Reason, Retention, Rule, Rules, Start},
    message::Id,
};
use tokio::time::timeout;

use crate::{New, PATIENCE, RETENTION, append, drain, of, publish, publish_many, subscribe, topic};

pub async fn retention_by_bytes_keeps_the_newest(new: New) {
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

pub async fn the_history_of_a_topic_comes_backwards_up_to_its_beginning(new: New) {
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

pub async fn all_pages_of_a_history_are_what_was_published_without_the_gaps(new: New) {
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

pub async fn each_topic_is_retained_by_the_first_rule_that_matches(new: New) {
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
