//! Topics and patterns that join a subscription, or leave it.

use std::task::Poll;

use rejoin::{
    broker::{Broker, Delivery},
    log::{Retention, Start},
    message::Id,
};

use crate::{New, RETENTION, draft, drain, drain_until, patterns, publish, publish_many, shown, subscribe};

pub async fn a_topic_that_joins_is_read_up_to_the_cursor_of_the_others(new: New) {
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
pub async fn a_topic_that_joins_brings_no_older_announcement(new: New) {
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

pub async fn a_removed_topic_does_not_come(new: New) {
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
pub async fn a_topic_that_leaves_before_its_gap_leaves_no_unknown_cursor_behind(new: New) {
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

/// A pattern that left took along gaps of topics that another pattern reads too.
pub async fn a_pattern_that_leaves_takes_along_only_its_own_gaps(new: New) {
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
