//! The tests of the feed.

use super::*;
use crate::{
    log::{
        Retention, Rules,
        redis::codec::{Before, Event},
    },
    message::{Draft, Payload},
};

const AGE: Duration = Duration::from_secs(60);

fn facts(began: u64, newest: u64) -> Facts {
    let [began, newest] = [began, newest].map(Id::new);
    let retention =
        Retention { messages: 1, age: AGE, bytes: 1, total_bytes: 1, topics: 1_000_000, rules: Rules::NONE };
    Facts {
        newest,
        began,
        forgotten: began,
        keep: (&retention).into(),
        boundaries: Vec::new(),
        marked: Id::ZERO,
        is_frozen: false,
        has_rules: 1,
    }
}

fn begun() -> Feed {
    let feed = Feed::new(Clock::stopped(), AGE, Rules::NONE);
    feed.begin(&facts(10, 10), Place { id: Id::new(10), number: 0 });
    feed
}

fn message(began: u64, before: u64, id: u64, topic: &str) -> Entry {
    let topic: Topic = topic.parse().expect("a topic");
    let draft =
        Draft { topic: topic.clone(), event: None, payload: Payload::text("x"), exclude: None, by: None };
    let before = Before { generation: Id::new(began), id: Id::new(before) };
    let (prev, gone) = (Id::ZERO, Id::ZERO);
    let event = Event::Message { before, prev, gone, topic, draft: Some(draft) };
    Entry { place: Place { id: Id::new(id), number: 0 }, event: Some(event) }
}

fn follow(feed: &Feed, pattern: &str) -> (Arc<FeedTail>, usize) {
    feed.follow(&pattern.parse().expect("a pattern"), &Arc::default())
}

/// The id from which the tail is complete, and how many messages it holds.
fn held(followed: &FeedTail) -> (u64, usize) {
    let ring = followed.tail.ring();
    (ring.complete_after().get(), ring.len())
}

#[test]
fn a_broken_chain_leaves_everything_before_it_to_the_store() {
    let feed = begun();
    let tails = ["a", "b", "*"].map(|pattern| follow(&feed, pattern).0);
    feed.arrive(message(10, 10, 11, "a"));
    assert_eq!(tails.each_ref().map(|tail| held(tail)), [(10, 1), (10, 0), (10, 1)]);
    // The store had 12, and the feed did not bring it.
    feed.arrive(message(10, 12, 13, "a"));
    assert_eq!(tails.each_ref().map(|tail| held(tail)), [(12, 1), (12, 0), (12, 1)]);
    assert_eq!(feed.watermark(), Id::new(13));
}

/// It was so only while a client read a list.
#[test]
fn refusals_are_read_again_once_a_part_of_the_feed_was_missed() {
    let feed = begun();
    assert!(feed.take_refusals_due() && !feed.take_refusals_due());
    feed.arrive(message(10, 10, 11, "a"));
    assert!(!feed.take_refusals_due());
    for missed in [message(10, 12, 13, "a"), message(20, 13, 21, "a")] {
        feed.arrive(missed);
        assert!(feed.take_refusals_due() && !feed.take_refusals_due());
    }
}

#[test]
fn a_new_generation_leaves_everything_before_it_to_the_store() {
    let feed = begun();
    let (tail, _) = follow(&feed, "a");
    feed.arrive(message(10, 10, 11, "a"));
    // This process cannot tell whether the new primary had lost messages; another replica may know.
    feed.arrive(message(20, 11, 21, "a"));
    assert_eq!((held(&tail), feed.generation()), ((20, 1), Some(Id::new(20))));
    assert!(feed.has_reached(&facts(20, 21)) && !feed.has_reached(&facts(10, 11)));
}

fn unreadable(id: u64) -> Entry {
    Entry { place: Place { id: Id::new(id), number: 0 }, event: None }
}

#[test]
fn an_entry_that_cannot_be_read_is_left_to_the_store_once_the_next_one_names_it() {
    let feed = begun();
    let (tail, _) = follow(&feed, "a");
    feed.arrive(unreadable(11));
    assert_eq!((held(&tail), feed.watermark()), ((10, 0), Id::new(10)));
    feed.arrive(message(10, 11, 12, "a"));
    assert_eq!((held(&tail), feed.watermark()), ((11, 1), Id::new(12)));
}

/// Readers would pass every message up to that id.
#[test]
fn an_entry_that_cannot_be_read_does_not_move_the_watermark() {
    let feed = begun();
    let (tail, _) = follow(&feed, "a");
    feed.arrive(unreadable(1_000_000));
    feed.arrive(message(10, 10, 11, "a"));
    assert_eq!((held(&tail), feed.watermark()), ((10, 1), Id::new(11)));
}

/// For a while the replica read from a primary of an older generation, which had given higher ids. Messages of the two must not be
/// mixed.
#[test]
fn an_entry_of_another_primary_covers_no_reader_before_it() {
    let feed = begun();
    let (tail, _) = follow(&feed, "a");
    feed.arrive(message(10, 10, 20, "a"));
    feed.arrive(message(5, 9, 30, "a"));
    assert_eq!(held(&tail), (29, 1));
    feed.arrive(message(10, 28, 31, "a"));
    assert_eq!((held(&tail), feed.watermark()), ((30, 1), Id::new(31)));
    // The tails are ahead of the store, which has nothing new. The feed begins again at the end of the
    // store.
    feed.begin(&facts(10, 29), Place { id: Id::new(29), number: 2 });
    assert!(feed.has_reached(&facts(10, 29)));
    assert_eq!((held(&tail), feed.watermark()), ((31, 0), Id::new(29)));
}

#[test]
fn messages_of_another_generation_never_complete_a_tail() {
    let feed = begun();
    feed.arrive(message(100, 40, 101, "b"));
    let (tail, _) = follow(&feed, "a");
    let topic: Topic = "a".parse().expect("a topic");
    let inherited = [20, 30, 40].map(|id| {
        let draft =
            Draft { topic: topic.clone(), event: None, payload: Payload::text("x"), exclude: None, by: None };
        Message::new(draft, Id::new(id), Id::ZERO)
    });
    feed.fill(&tail, Id::new(100), &inherited, Id::new(10), Id::new(101));
    assert_eq!(held(&tail), (100, 0));
}

#[test]
fn a_message_too_large_for_the_feed_is_left_to_the_store() {
    let feed = begun();
    let tails = ["a", "*"].map(|pattern| follow(&feed, pattern).0);
    let mut entry = message(10, 10, 11, "a");
    if let Some(Event::Message { draft, .. }) = &mut entry.event {
        *draft = None;
    }
    feed.arrive(entry);
    assert_eq!(tails.each_ref().map(|tail| held(tail)), [(11, 0), (11, 0)]);
}

#[test]
fn a_deleted_message_is_not_taken_back() {
    let feed = begun();
    let (tail, _) = follow(&feed, "a");
    let (pattern, _) = follow(&feed, "*");
    let topic: Topic = "a".parse().expect("a topic");
    let deletions = feed.deletions();
    // The message is deleted here before the feed brings it, and while a reader reads it from the store.
    feed.delete(&topic, Id::new(11), Id::new(12));
    feed.arrive(message(10, 10, 11, "a"));
    assert_eq!([held(&tail), held(&pattern)], [(11, 0); 2], "readers before it ask the store, and get a gap");
    let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
    let late = Message::new(draft, Id::new(11), Id::new(9));
    feed.fill(&tail, Id::new(10), std::slice::from_ref(&late), Id::new(9), Id::new(11));
    assert_eq!(held(&tail), (11, 0));
    let page = Page { messages: vec![late], ..Page::default() };
    assert!(feed.brings_back(&page, deletions) && !feed.brings_back(&page, feed.deletions()));
    feed.arrive(message(10, 11, 12, "a"));
    assert_eq!(held(&tail), (11, 1));
}

#[test]
fn a_tail_without_readers_is_dropped_after_a_while_unless_a_pattern_needs_it() {
    let feed = begun();
    let (topic, reader) = follow(&feed, "a");
    let (_pattern, _) = follow(&feed, "b.*");
    feed.arrive(message(10, 10, 11, "b.c"));
    topic.tail.remove_follower(reader);
    let now = Instant::now();
    for (later, is_held) in [(now, true), (now + LINGER, false)] {
        feed.drop_idle(later);
        let find = |name: &str| feed.find(&name.parse().expect("a pattern")).is_some();
        assert_eq!(["a", "b.c", "b.*"].map(find), [is_held, true, true]);
    }
}
