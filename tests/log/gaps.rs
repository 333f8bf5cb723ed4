//! The gaps of readers that are behind, and of cursors that the log does not know.

use rejoin::{
    broker::{Broker, Delivery},
    log::{Reason, Retention, Start},
    message::Id,
};

use crate::{New, RETENTION, drain, of, publish, publish_many, subscribe, topic};

pub async fn a_cursor_just_before_the_oldest_message_is_no_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let ids = publish_many(&broker, "a", 6).await;
    let mut subscription = subscribe(&broker, &["a"], Start::After(ids[0])).await;
    assert_eq!(drain(&broker, &mut subscription).await, of("a", &ids[1..]));
}

pub async fn a_trimmed_message_is_a_gap_before_anything_else(new: New) {
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

pub async fn only_the_last_of_several_gaps_moves_the_cursor(new: New) {
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

pub async fn a_deletion_is_a_gap_only_for_readers_behind(new: New) {
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

pub async fn a_cursor_before_the_log_began_is_a_gap_for_everything(new: New) {
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

pub async fn a_cursor_ahead_of_the_log_is_a_gap_and_then_everything(new: New) {
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

pub async fn zero_last_and_since_have_no_gap(new: New) {
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

pub async fn the_first_cursor_of_zero_and_last_leads_to_no_false_gap(new: New) {
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

pub async fn a_slow_reader_gets_a_gap(new: New) {
    let broker = Broker::new(new(RETENTION));
    let mut subscription = subscribe(&broker, &["a"], Start::Now).await;
    let first = publish(&broker, "a").await;
    assert_eq!(drain(&broker, &mut subscription).await, of("a", &[first]));
    let missed = publish_many(&broker, "a", 20).await;
    let mut expected = vec![format!("a!{first}..{} retention", missed[15])];
    expected.extend(of("a", &missed[15..]));
    assert_eq!(drain(&broker, &mut subscription).await, expected);
}

/// One request of a hundred patterns was told a hundred thousand gaps.
pub async fn many_patterns_share_the_gaps_that_are_told(new: New) {
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
