//! Reads few topics one by one, found by their names. Such a read costs what these topics hold, however much
//! other topics hold.
//!
//! One step does all of it: at most [`MAX_READ_TOPICS`] topics and one page of messages.

use std::ops::Bound::{Included, Unbounded};

use super::{
    State,
    budget::Budget,
    reading::Reading,
    seeking::{Seeking, What},
};
use crate::{
    log::{Expiry, merge, position::MAX_READ_TOPICS},
    message::{Id, Pattern, PatternSet, Topic},
};

impl State {
    /// Each topic that a pattern matches, with the number of the pattern. `None` if a pattern begins with a
    /// wildcard, or if more than `limit` names begin like the patterns.
    pub(super) fn topics_under(&self, patterns: &PatternSet, limit: usize) -> Option<Vec<(usize, &Topic)>> {
        let (mut room, mut found) = (limit, Vec::new());
        for (number, pattern) in patterns.wildcards().iter().enumerate() {
            let start = pattern.literal_start()?;
            let names = self.names.range::<str, _>((Included(start), Unbounded));
            for name in names.take_while(|name| name.starts_with(start)) {
                #[cfg(test)]
                crate::message::steps::count();
                room = room.checked_sub(1)?;
                found.extend(pattern.matches(name).then_some((number, name)));
            }
        }
        Some(found)
    }

    /// Does the whole read if the topics are few. Returns false, and changes nothing, if the order is to be
    /// read.
    pub(super) fn read_by_topics(&self, reading: &mut Reading<'_>) -> bool {
        let Some(topics) = self.topics_to_read(reading) else { return false };
        let (mut gaps, mut tails, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        // In this position each tail reaches back to the floor of its topic: the gaps say what is gone.
        let mut position = reading.position.clone();
        for (topic, is_marked) in topics {
            if is_marked {
                gaps.extend(self.gap(&topic, &reading.position, Id::ZERO));
            }
            if let (Some(tail), Some(topic)) = (self.tails.get(topic.as_str()), topic.topic()) {
                position.raise_floor(topic, tail.ring().complete_after());
                tails.push(tail);
            }
        }
        let take = |message| messages.push(message);
        let merged = merge(tails.into_iter(), &position, self.newest(), &Expiry::NEVER, reading.limit, take);
        let Ok(end) = merged else { return false };
        gaps.into_iter().for_each(|gap| reading.tell(gap));
        messages.into_iter().for_each(|message| reading.give(message));
        reading.seen = reading.seen.max(self.losses.last());
        reading.told = reading.told.max(self.forgotten);
        reading.end = end;
        true
    }

    /// The topics to read one by one, each with true if it may have a gap. `None` if the order is to be read,
    /// because it is shorter or some pattern may get a single gap.
    fn topics_to_read(&self, reading: &Reading<'_>) -> Option<Vec<(Pattern, bool)>> {
        if reading.patterns.wildcards().is_empty() || reading.is_before(self.forgotten) {
            return None;
        }
        let examined = reading.patterns.topics().iter().chain(&reading.apart);
        let room = MAX_READ_TOPICS.min(reading.max_gaps).checked_sub(examined.clone().count())?;
        let order = self.order.after(reading.position.cursor);
        let entries = order.take(room).count() + self.losses.after(reading.seen).take(room).count();
        let under = self.topics_under(reading.patterns, room.min(entries))?;
        let is_marked = |topic: &Topic| self.index.get(topic).is_some_and(|known| known.lost > reading.seen);
        let under = under.into_iter().map(|(_, topic)| (topic.into(), is_marked(topic)));
        Some(examined.map(|topic| (topic.clone(), true)).chain(under).collect())
    }

    /// Does the whole search for the beginning if the topics are few. Returns false, and changes nothing, if
    /// the order is to be searched.
    pub(super) fn seek_by_topics(&self, seeking: &mut Seeking<'_>) -> bool {
        let patterns = seeking.patterns;
        if patterns.wildcards().is_empty() {
            return false;
        }
        let room = MAX_READ_TOPICS.min(seeking.max_topics).checked_sub(patterns.topics().len());
        let under = room.and_then(|room| self.topics_under(patterns, room.min(self.order.len())));
        let Some(under) = under else { return false };
        self.seek_topics(seeking, &mut Budget::of(usize::MAX));
        for (number, topic) in under {
            let tail = self.tails.get(topic);
            let Some(first) = tail.and_then(|tail| seeking.what.first(tail)) else { continue };
            match seeking.what {
                What::After(_) => _ = seeking.starts.insert(first.id),
                What::Unknown => seeking.firsts.note(number, first.id),
                What::Last(_) if seeking.floors.contains_key(topic) => {}
                What::Last(_) => {
                    seeking.choose(topic.clone(), Some(&first), first.id);
                    seeking.chosen += 1;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{
        super::{
            NODES,
            reading::tests::{ROOMY, disturb, publish_to, set, take, topic, worn},
            tests::{begin, read},
        },
        *,
    };
    use crate::{
        log::{Beginning, Page, Position, Retention, Start, position::MAX_LAST_TOPICS},
        message::steps,
    };

    const NARROW: [&[&str]; 8] = [
        &["a.*"],
        &["a.*", "a.**"],
        &["b.**"],
        &["a.*", "b.*"],
        &["a.*", "a.**", "a.1"],
        &["a.*", "b.1", "b.2"],
        &["a.*", "a.1.*"],
        &["b.*.x", "none.*"],
    ];

    fn read_by_order(state: &State, patterns: &PatternSet, position: &Position, limit: usize) -> Page {
        let mut reading = Reading::new(patterns, position, limit);
        while !state.read_by_order(&mut reading, NODES) {}
        reading.into_page()
    }

    fn seek_by_order(state: &State, patterns: &PatternSet, start: &Start, max_topics: usize) -> Beginning {
        let mut seeking = Seeking::new(patterns, start, state.newest).expect("it is sought");
        seeking.max_topics = max_topics;
        // It is no longer the first step.
        seeking.newest = Some(state.newest());
        while !state.seek_on(&mut seeking, NODES) {}
        seeking.into_beginning()
    }

    /// Compares all that a page says. A full page may end at its last message, or where the next one begins.
    fn assert_same(by_topics: &Page, by_order: &Page, next: Option<Id>, seed: u64) {
        assert_eq!(by_topics.gaps, by_order.gaps, "seed {seed}");
        let ids = |page: &Page| page.messages.iter().map(|message| message.id).collect::<Vec<_>>();
        assert_eq!(ids(by_topics), ids(by_order), "seed {seed}");
        assert_eq!((by_topics.told, by_topics.past), (by_order.told, by_order.past), "seed {seed}");
        assert!(by_order.checked <= by_topics.checked, "seed {seed}");
        assert!(by_order.end <= by_topics.end && next.is_none_or(|next| by_topics.end < next), "seed {seed}");
    }

    #[test]
    fn a_read_by_topics_gives_the_same_pages_as_a_read_by_order() {
        let (mut pages, mut gaps, mut full) = (0, 0, 0);
        for seed in 0..1_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::new(Id::now());
            let mut ids = vec![state.newest];
            for _ in 0..random.random_range(0..40) {
                ids.extend(disturb(&mut state, &mut random).map(|(_, id)| id));
            }
            let patterns = set(NARROW[random.random_range(0..NARROW.len())]);
            let mut position = Position::at(ids[random.random_range(0..ids.len())]);
            if random.random() {
                let start = [Start::Last(1), Start::Everything][random.random_range(0..2)].clone();
                position = seek_by_order(&state, &patterns, &start, 2).position;
            }
            for _ in 0..10 {
                let limit = random.random_range(1..6);
                let by_order = read_by_order(&state, &patterns, &position, limit);
                let mut reading = Reading::new(&patterns, &position, limit);
                let page = if state.read_by_topics(&mut reading) {
                    let by_topics = reading.into_page();
                    let mut rest = state.order.after(by_order.end);
                    let next = rest.find(|(id, tail)| {
                        let name = tail.name().as_str();
                        patterns.matches(name) && *id > position.given(name)
                    });
                    assert_same(&by_topics, &by_order, next.map(|(id, _)| *id), seed);
                    pages += 1;
                    gaps += by_topics.gaps.len();
                    full += usize::from(by_topics.messages.len() == limit);
                    by_topics
                } else {
                    by_order
                };
                take(&mut position, &page);
                for _ in 0..random.random_range(0..8) {
                    disturb(&mut state, &mut random);
                }
            }
        }
        assert!(pages > 1_000 && gaps > 200 && full > 200, "{pages} pages, {gaps} gaps, {full} full pages");
    }

    #[test]
    fn a_search_by_topics_begins_where_a_search_by_order_does() {
        let mut count = 0;
        for seed in 0..1_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::new(Id::now());
            (0..random.random_range(0..60)).for_each(|_| _ = disturb(&mut state, &mut random));
            let patterns = set(NARROW[random.random_range(0..NARROW.len())]);
            let since = Id::new(state.newest.get() - random.random_range(0..20));
            let starts = [
                Start::Everything,
                Start::Since(since),
                Start::Last(0),
                Start::Last(1),
                Start::Last(2),
                Start::After(Id::MAX),
            ];
            let start = &starts[random.random_range(0..starts.len())];
            let max_topics = [2, 4, 8, MAX_LAST_TOPICS][random.random_range(0..4)];
            let mut seeking = Seeking::new(&patterns, start, state.newest).expect("it is sought");
            seeking.max_topics = max_topics;
            while !state.seek_on(&mut seeking, NODES) {}
            let room = max_topics.saturating_sub(patterns.topics().len()).min(state.order.len());
            count += usize::from(state.topics_under(&patterns, room).is_some());
            let (by_topics, by_order) =
                (seeking.into_beginning(), seek_by_order(&state, &patterns, start, max_topics));
            assert_eq!(by_topics.gaps, by_order.gaps, "seed {seed}: {start:?}");
            let all = |position: &Position| {
                let given: Vec<_> = state.names.iter().map(|name| position.given(name)).collect();
                (position.cursor, position.told, position.settled(), given)
            };
            assert_eq!(all(&by_topics.position), all(&by_order.position), "seed {seed}: {start:?}");
        }
        assert!(count > 200, "{count} searches by topics");
    }

    /// 5 000 other topics, each with one message lost and one retained, and two topics `o.17.…` like them.
    fn mostly_noise() -> (State, Position) {
        let (mut state, position) = worn("noise", 5_000);
        for name in ["o.17.a", "o.17.b", "o.17.a", "o.17.b"] {
            let topic = name.parse().expect("a topic");
            publish_to(&mut state, topic, &Retention { messages: 1, ..ROOMY });
        }
        (state, position)
    }

    #[test]
    fn a_narrow_pattern_costs_what_its_topics_hold() {
        let (mut state, position) = mostly_noise();
        for (patterns, costs) in
            [(set(&["o.17.*"]), 0..10), (set(&["o.17.*", "*.no.such"]), 10_000..usize::MAX)]
        {
            let mut page = Page::default();
            let cost = steps::of(|| page = read(&mut state, &patterns, &position, 10, Id::ZERO));
            let is_whole = page.end == state.newest || !costs.contains(&0);
            assert!(costs.contains(&cost) && is_whole, "{cost} nodes and names to read");
            for start in [Start::Everything, Start::Since(Id::ZERO), Start::Last(1), Start::After(Id::MAX)] {
                let cost = steps::of(|| _ = begin(&mut state, &patterns, &start, Id::ZERO));
                assert!(cost < 10 || !costs.contains(&0), "{cost} nodes and names for {start:?}");
            }
        }
        let page = read(&mut state, &set(&["o.17.*"]), &position, 10, Id::ZERO);
        assert_eq!((page.gaps.len(), page.messages.len()), (2, 2));
    }

    #[test]
    fn too_many_names_are_left_after_one_more_than_the_limit() {
        let (state, _) = worn("a", 600);
        let patterns = set(&["a.*", "b.*"]);
        let cost = steps::of(|| assert!(state.topics_under(&patterns, 599).is_none()));
        assert_eq!(cost, 600);
        let under = state.topics_under(&patterns, 600).expect("there is room for all");
        assert_eq!(under.len(), 600);
        assert!(state.topics_under(&set(&["a.*", "**"]), 10_000).is_none(), "it begins with a wildcard");
    }

    #[test]
    fn an_order_that_is_shorter_than_the_names_is_read_instead() {
        let (mut state, _) = worn("a", 400);
        let position = Position::at(state.newest);
        for number in 0..3 {
            publish_to(&mut state, topic("a", number), &ROOMY);
        }
        let patterns = set(&["a.*"]);
        let cost = steps::of(|| {
            let page = read(&mut state, &patterns, &position, 10, Id::ZERO);
            assert_eq!(page.messages.len(), 3);
        });
        assert!(cost < 30, "{cost} nodes and names for three messages");
    }

    /// If each topic got a gap of its own, a pattern would get more of them than it may.
    #[test]
    fn a_pattern_with_more_topics_than_gaps_is_read_by_order() {
        let (state, position) = worn("a", 3);
        let patterns = set(&["a.*"]);
        for (max_gaps, expected) in [(2, &["a.*"][..]), (3, &["a.0", "a.1", "a.2"])] {
            let mut reading = Reading::new(&patterns, &position, 10);
            reading.max_gaps = max_gaps;
            assert_eq!(state.topics_to_read(&reading).is_some(), max_gaps == 3);
            while !state.read_on(&mut reading, NODES) {}
            let told: Vec<_> = reading.into_page().gaps.iter().map(|gap| gap.topic.to_string()).collect();
            assert_eq!(told, expected);
        }
    }
}
