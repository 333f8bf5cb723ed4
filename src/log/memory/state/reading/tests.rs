//! Checks that a read in steps gives or tells everything, at a bounded cost.

use std::{collections::HashSet, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    super::{
        Seeking,
        tests::{begin, read, store},
    },
    *,
};
use crate::{
    log::{Append, Retention, Rules, Start, loss::MAX_GAPS, retention::INDEX_AGE},
    message::{Draft, Payload, steps},
};

const RETENTION: Retention = Retention {
    messages: 2,
    age: Duration::from_secs(60),
    bytes: 1 << 20,
    total_bytes: 7_000,
    topics: 1_000_000,
    rules: Rules::NONE,
};

pub fn topic(name: &str, number: u32) -> Topic {
    format!("{name}.{number}").parse().expect("a topic")
}

/// Limits that keep all messages of a test.
pub const ROOMY: Retention = Retention { total_bytes: 1 << 30, ..RETENTION };

fn publish(state: &mut State, topic: Topic) {
    publish_to(state, topic, &RETENTION);
}

pub fn publish_to(state: &mut State, topic: Topic, retention: &Retention) -> Id {
    let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
    let append = Append { draft, idempotency_key: None, if_match: None };
    store(state, append, retention).expect("stored").id()
}

/// Moves the position as a subscription does.
pub fn take(position: &mut Position, page: &Page) {
    for gap in &page.gaps {
        gap.topic.topic().into_iter().for_each(|topic| position.raise_floor(topic, gap.floor));
    }
    (position.told, position.checked) = (page.told, page.checked);
    position.advance(page.end);
}

#[test]
fn to_look_only_where_something_was_lost_finds_every_gap() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = State::new(Id::now());
        let mut position = Position::at(state.newest);
        let patterns = ["a.*", "b.1", "**"].map(|name| name.parse::<Pattern>().expect("a pattern"));
        let patterns = &patterns.into_iter().take(random.random_range(1..=3)).collect();
        for _ in 0..100 {
            match random.random_range(0..10) {
                0..5 => publish(
                    &mut state,
                    topic(["a", "b"][random.random_range(0..2)], random.random_range(0..4)),
                ),
                5 => state.delete(&topic("a", random.random_range(0..4))).expect("open"),
                // Publishes more messages than the log retains.
                6 if random.random_ratio(1, 10) => {
                    (0..1_100).for_each(|_| publish(&mut state, topic("b", random.random_range(0..4))));
                }
                6 => {
                    let expired = Id::new(state.newest.get() - random.random_range(0..20));
                    expire(&mut state, expired);
                }
                7 if random.random_ratio(1, 10) => {
                    let later = Id::new(Id::now().get() + 8 * 24 * 3600 * 1_000_000);
                    while state.sweep(&RETENTION, later) {}
                }
                _ => {
                    let mut anew = position.clone();
                    anew.checked = Mark::default();
                    let expected = read(&mut state, patterns, &anew, 3, Id::ZERO);
                    let page = read(&mut state, patterns, &position, 3, Id::ZERO);
                    let sorted = |page: &Page| {
                        let mut gaps: Vec<_> = page.gaps.iter().map(|gap| format!("{gap:?}")).collect();
                        gaps.sort();
                        gaps
                    };
                    assert_eq!(sorted(&page), sorted(&expected), "seed {seed}");
                    take(&mut position, &page);
                }
            }
        }
    }
}

/// Lets messages with ids below `expired` expire.
fn expire(state: &mut State, expired: Id) -> usize {
    state.expire(&RETENTION, expired.plus(RETENTION.age), 100)
}

pub fn set(names: &[&str]) -> PatternSet {
    names.iter().map(|name| name.parse().expect("a pattern")).collect()
}

/// Changes the log at random. Returns the topic and id if it published a message.
pub fn disturb(state: &mut State, random: &mut StdRng) -> Option<(Topic, Id)> {
    let topic = topic(["a", "b"][random.random_range(0..2)], random.random_range(0..4));
    let now = Id::new(state.newest.get() - random.random_range(0..20));
    match random.random_range(0..40) {
        0..4 => state.delete(&topic).expect("open"),
        4..8 => _ = expire(state, now),
        8 => while state.sweep(&RETENTION, Id::new(now.get() + INDEX_AGE.as_micros() as u64)) {},
        _ => {
            publish(state, topic.clone());
            return Some((topic, state.newest));
        }
    }
    None
}

/// A message that was trimmed between a look at the losses and a look at the order was in neither. The
/// `next` of a gap was trimmed while the read went on.
#[test]
fn each_message_is_given_or_told_if_anything_happens_between_two_steps() {
    for seed in 0..1_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = State::new(Id::now());
        let patterns = [&["a.*"][..], &["**"], &["b.1", "a.*"], &["a.0", "*.1"], &["a.0", "a.1", "b.2"]];
        let patterns = set(patterns[random.random_range(0..5)]);
        let max_gaps = [1, 2, MAX_GAPS][random.random_range(0..3)];
        let mut published: Vec<_> =
            (0..random.random_range(0..30)).filter_map(|_| disturb(&mut state, &mut random)).collect();
        let mut position = Position::at(state.newest);
        if random.random() {
            let mut seeking = Seeking::new(&patterns, &Start::Last(1), state.newest).expect("sought");
            seeking.max_topics = 2;
            while !state.seek_on(&mut seeking, 100) {}
            position = seeking.into_beginning().position;
        }
        let is_retained = |state: &State, id: &Id| state.order.contains(*id);
        // The messages that were given, lost before, or told as gaps.
        let mut past: HashSet<Id> = published.iter().map(|(_, id)| *id).collect();
        past.retain(|id| !is_retained(&state, id));
        let mut last = Id::ZERO;
        for _ in 0..20 {
            let mut reading = Reading::new(&patterns, &position, random.random_range(1..5));
            reading.max_gaps = max_gaps;
            while !state.read_on(&mut reading, random.random_range(1..40)) {
                published.extend(disturb(&mut state, &mut random));
            }
            let wide: Vec<_> =
                (0..patterns.wildcards().len()).map(|number| reading.has_many_gaps(number)).collect();
            let page = reading.into_page();
            let lost: Vec<&(Topic, Id)> = published
                .iter()
                .filter(|(topic, id)| *id > position.given(topic) && patterns.matches(topic))
                .filter(|(_, id)| !past.contains(id) && !is_retained(&state, id))
                .filter(|(_, id)| page.messages.iter().all(|message| message.id != *id))
                .collect();

            for gap in &page.gaps {
                let name = gap.topic.as_str();
                let number = patterns.wildcards().iter().position(|pattern| *pattern == gap.topic);
                let of: Vec<_> = lost.iter().filter(|(topic, _)| gap.topic.matches(topic)).collect();
                let is_caused = match number {
                    Some(number) if wide[number] => {
                        // The log does not know if a forgotten topic had messages.
                        let forgotten = position.floored().filter(|topic| {
                            gap.topic.matches(topic) && position.told_upto(topic) < page.told
                        });
                        let topics: HashSet<_> = of.iter().map(|(topic, _)| topic).chain(forgotten).collect();
                        topics.len() > max_gaps
                    }
                    Some(_) => position.settled().max(position.told) < page.told,
                    None => {
                        position.told_upto(name) < gap.floor
                            && (gap.floor <= page.told || of.iter().any(|(_, id)| *id <= gap.floor))
                    }
                };
                assert!(is_caused, "seed {seed}: told without cause: {gap:?}");
                let after = number.map_or_else(|| position.given(name), |_| position.cursor);
                let mut order = state.order.after(after);
                let next = order.find(|(_, tail)| gap.topic.matches(tail.name().as_str()));
                let next = next.map(|(id, _)| *id);
                // A message behind the page may have come after `next` was read.
                let is_behind = number.is_none() && gap.next.is_none() && next > Some(page.end);
                assert!(gap.next == next || is_behind, "seed {seed}: {gap:?} but {next:?}");
            }
            let is_told = |topic: &Topic, id: Id| {
                let is_of = |gap: &Gap| match patterns.wildcards().iter().position(|it| *it == gap.topic) {
                    Some(number) => gap.topic.matches(topic) && (wide[number] || id <= page.told),
                    None => gap.topic.as_str() == &**topic && id <= gap.floor,
                };
                page.gaps.iter().any(is_of)
            };
            for (topic, id) in lost.iter().filter(|(_, id)| *id <= page.end) {
                assert!(is_told(topic, *id), "seed {seed}: {topic} {id} is lost and not told");
            }
            past.extend(lost.iter().filter(|(topic, id)| is_told(topic, *id)).map(|(_, id)| *id));

            for (topic, id) in published.iter().filter(|(topic, _)| patterns.matches(topic)) {
                let is_due = *id > position.given(topic) && *id <= page.end;
                let is_given = page.messages.iter().any(|message| message.id == *id);
                let is_told_apart =
                    page.gaps.iter().any(|gap| gap.topic.as_str() == &**topic && gap.floor >= *id);
                assert!(!is_given || (is_due && !is_told_apart), "seed {seed}: {topic} {id}");
                // Topics alone are read from their tails, which `end` does not pass.
                let is_given = is_given || (patterns.wildcards().is_empty() && *id > page.end);
                assert!(!is_due || is_given || !is_retained(&state, id), "seed {seed}: {topic} {id}");
            }
            for message in &page.messages {
                assert!(std::mem::replace(&mut last, message.id) < message.id, "seed {seed}");
                past.insert(message.id);
            }
            take(&mut position, &page);
            for _ in 0..random.random_range(0..6) {
                published.extend(disturb(&mut state, &mut random));
            }
        }
    }
}

/// The pattern got a gap for topics from which nothing was to be given, and the chosen topic got none.
#[test]
fn a_topic_that_was_not_chosen_is_no_gap_when_it_is_forgotten() {
    let mut state = State::new(Id::now());
    publish(&mut state, topic("a", 1));
    publish(&mut state, topic("a", 0));
    let patterns = set(&["a.*"]);
    let mut seeking = Seeking::new(&patterns, &Start::Last(1), state.newest).expect("sought");
    seeking.max_topics = 1;
    while !state.seek_on(&mut seeking, 100) {}
    let position = seeking.into_beginning().position;
    let later = Id::new(state.newest.get() + 1 + INDEX_AGE.as_micros() as u64);
    while state.sweep(&RETENTION, later) {}
    assert_eq!((state.index.len(), state.forgotten), (0, state.newest));
    let page = read(&mut state, &patterns, &position, 10, Id::ZERO);
    let told: Vec<_> = page.gaps.iter().map(|gap| gap.topic.as_str()).collect();
    assert_eq!(told, ["a.0"]);
}

/// A log of `count` topics, each with one message lost and one retained.
pub fn worn(name: &str, count: u32) -> (State, Position) {
    let mut state = State::new(Id::now());
    let position = Position::at(state.newest);
    for number in (0..count).chain(0..count) {
        publish_to(&mut state, topic(name, number), &Retention { messages: 1, ..ROOMY });
    }
    (state, position)
}

/// Runs all steps, and returns how many there were. A step may exceed its budget by one entry.
fn count_steps(budget: usize, entry: usize, mut step: impl FnMut(usize) -> bool) -> usize {
    for count in 1.. {
        let mut is_done = false;
        let cost = steps::of(|| is_done = step(budget));
        assert!(cost < budget + entry, "{cost} nodes in one step");
        if is_done {
            return count;
        }
    }
    unreachable!("it ends")
}

/// A reader of patterns that share no segments held the lock for a second.
#[test]
fn a_step_looks_at_no_more_than_its_budget_and_all_steps_at_no_more_than_there_is() {
    let (state, position) = worn("a", 3_000);
    let shallow: PatternSet =
        (0..100).map(|number| format!("*.x.{number}.*").parse().expect("a pattern")).collect();
    // A topic of two segments touches two nodes of these patterns.
    let count_reads = |state: &State, patterns: &PatternSet, position: &Position, entry, losses| {
        let mut reading = Reading::new(patterns, position, 10);
        let steps = count_steps(300, entry, |budget| state.read_on(&mut reading, budget));
        assert_eq!(reading.into_page().gaps.len(), losses);
        for start in [Start::Everything, Start::Last(1), Start::After(Id::MAX)] {
            let mut seeking = Seeking::new(patterns, &start, state.newest).expect("sought");
            count_steps(300, entry, |budget| state.seek_on(&mut seeking, budget));
        }
        steps
    };
    let count = count_reads(&state, &shallow, &position, 3, 0);
    assert!((120..=125).contains(&count), "{count} steps for 3 000 marks and 3 000 messages");

    // A topic of 12 segments visits nearly all nodes of a hundred patterns of 12 segments.
    let deep: PatternSet = (0..100)
        .map(|number: u32| {
            let segments = (0..11).map(|at| if number >> at & 1 == 0 { "*" } else { "a" });
            format!("{}.**", segments.collect::<Vec<_>>().join(".")).parse().expect("a pattern")
        })
        .collect();
    let (state, position) = worn(&["a"; 11].join("."), 200);
    let name = topic(&["a"; 11].join("."), 1);
    let mut all = 0;
    let entry = steps::of(|| deep.number_wildcards(&name, &mut 0, |_| all += 1));
    assert_eq!(all, 100);
    assert!((500..1_000).contains(&entry), "{entry} nodes for one entry");
    count_reads(&state, &deep, &position, 2 * entry, 200);
}

#[test]
fn the_nodes_of_a_match_are_counted() {
    let set = set(&["a.*.c", "a.b.*", "*.b.c", "**"]);
    for topic in ["a.b.c", "a.x.y.z", "b", "$a"] {
        let (mut nodes, mut counted) = (0, 0);
        let cost = steps::of(|| set.number_wildcards(topic, &mut nodes, |_| {}));
        assert_eq!(nodes, cost);
        let cost = steps::of(|| _ = set.matches_counting(topic, &mut counted));
        assert_eq!(counted, cost);
    }
}

#[test]
fn more_than_a_thousand_gaps_become_one_gap_of_the_pattern() {
    let (mut state, mut position) = worn("a", 1_500);
    for number in (0..3).chain(0..3).chain(0..3) {
        publish_to(&mut state, topic("b", number), &ROOMY);
    }
    let first = state.order.oldest().expect("something is retained").0;
    let patterns = set(&["a.*", "b.*", "*.1", "a.7"]);
    let page = read(&mut state, &patterns, &position, 10, Id::ZERO);
    let told: Vec<_> = page.gaps.iter().map(|gap| (gap.topic.as_str(), gap.next)).collect();
    let next = |name: &str| state.tails.get(name).expect("a tail").ring().oldest().map(|message| message.id);
    // A topic keeps its own gap if it is named, or if another pattern with few gaps matches it.
    let expected = ["a.1", "a.7", "b.0", "b.1", "b.2"].map(|name| (name, next(name)));
    assert_eq!(told, [&expected[..], &[("a.*", Some(first))]].concat());
    take(&mut position, &page);
    assert_eq!(read(&mut state, &patterns, &position, 10, Id::ZERO).gaps, []);
    state.delete(&topic("a", 1_400)).expect("open");
    assert_eq!(read(&mut state, &patterns, &position, 10, Id::ZERO).gaps.len(), 1);
}

#[test]
fn one_gap_of_a_pattern_ends_the_search_for_its_other_losses() {
    let (state, position) = worn("a", 5_000);
    let patterns = set(&["a.*", "a.7"]);
    let mut reading = Reading::new(&patterns, &position, 10);
    let cost = steps::of(|| while !state.read_on(&mut reading, 2_000) {});
    assert!(cost <= 2 * 5_000, "{cost} nodes");
    assert_eq!(reading.into_page().gaps.len(), 2);
}

#[test]
fn only_the_losses_since_the_cursor_are_examined() {
    let (mut state, _) = worn("a", 1_000);
    let position = Position::at(state.newest);
    publish_to(&mut state, topic("a", 1), &Retention { messages: 1, ..ROOMY });
    let patterns = set(&["**"]);
    let cost = steps::of(|| _ = read(&mut state, &patterns, &position, 10, Id::ZERO));
    assert!(cost <= 5, "{cost} nodes for one loss and one message");
}

#[test]
fn last_of_a_pattern_gives_nothing_of_topics_that_were_not_chosen_until_something_new_comes() {
    let mut state = State::new(Id::now());
    let publish = |state: &mut State, number| publish_to(state, topic("a", number), &ROOMY);
    let ids: Vec<_> = (0..1_200).chain(0..1_200).map(|number| publish(&mut state, number)).collect();
    let patterns = set(&["a.*"]);
    let beginning = begin(&mut state, &patterns, &Start::Last(2), Id::ZERO);
    let late = publish(&mut state, 0);
    let (mut position, mut given) = (beginning.position, Vec::new());
    while position.cursor < late {
        let page = read(&mut state, &patterns, &position, 100, Id::ZERO);
        // The new message trimmed one that was not to be given.
        assert_eq!(page.gaps, []);
        given.extend(page.messages.iter().map(|message| message.id));
        take(&mut position, &page);
    }
    let expected = [&ids[200..1_200], &ids[1_400..], &[late]].concat();
    assert_eq!(given, expected);
}

/// A client stops reading a topic, and the position keeps the floor of it.
#[test]
fn a_topic_that_is_no_longer_read_gets_no_gap_and_holds_nothing_up() {
    let mut state = State::new(Id::now());
    let cursor = state.newest;
    publish_to(&mut state, topic("a", 1), &ROOMY);
    publish_to(&mut state, topic("a", 1), &ROOMY);
    let others = state.newest;
    for number in [1, 1, 1, 2] {
        publish_to(&mut state, topic("b", number), &ROOMY);
    }
    let floors = [(topic("b", 1), cursor), (topic("b", 2), cursor)];
    let position = Position::with_floors(cursor, floors.into(), others);
    for patterns in [set(&["a.1"]), set(&["a.*"]), set(&["a.*", "*.no"])] {
        let page = read(&mut state, &patterns, &position, 10, Id::ZERO);
        assert_eq!((page.gaps, page.end), (Vec::new(), state.newest), "{:?}", patterns.topics());
    }
}

#[test]
fn what_a_topic_was_given_past_the_cursor_holds_nothing_up() {
    let mut state = State::new(Id::now());
    let mut position = Position::at(state.newest);
    let ids = [1, 2, 2].map(|number| publish_to(&mut state, topic("a", number), &ROOMY));
    position.raise_floor(topic("a", 1), ids[0]);
    let page = read(&mut state, &set(&["a.1", "a.2"]), &position, 10, Id::ZERO);
    assert_eq!((page.gaps, page.end), (Vec::new(), ids[1].before()));
}

/// The reason of a topic's own gap is about what comes after the messages that the gap of its pattern covers.
#[test]
fn a_deletion_that_the_gap_of_a_pattern_covers_is_no_reason_for_the_gap_of_a_topic() {
    let mut state = State::new(Id::now());
    let position = Position::at(state.newest);
    publish(&mut state, topic("a", 1));
    state.delete(&topic("a", 1)).expect("open");
    publish(&mut state, topic("b", 1));
    let forgotten = state.newest;
    publish(&mut state, topic("a", 1));
    while state.sweep(&RETENTION, Id::new(forgotten.get() + 1).plus(INDEX_AGE)) {}
    assert_eq!((state.forgotten, state.index.len()), (forgotten, 1));
    let page = read(&mut state, &set(&["*.1"]), &position, 10, Id::ZERO);
    let told: Vec<_> = page.gaps.iter().map(|gap| (gap.topic.as_str(), gap.reason)).collect();
    assert_eq!(told, [("a.1", Reason::Retention), ("*.1", Reason::Retention)]);
}
