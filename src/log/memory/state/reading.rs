//! What a reader has missed, and the messages of patterns, read in steps between which others have the lock.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::State;
use crate::{
    log::{Gap, Mark, Page, Position, Reason},
    message::{Id, Message, Pattern, PatternSet},
};

/// How many gaps are told of the topics of one pattern; with one more a single gap tells it for the pattern.
const MAX_GAPS: usize = 1000;

/// A read that is under way.
///
/// Nothing is lost between two steps. A message after the cursor is given if it is in the order when the order is
/// read there. If it is not, its topic has a mark from when it was lost, and the step that reads the order
/// does so only after it has seen every mark that there is.
pub struct Reading<'a> {
    patterns: &'a PatternSet,
    limit: usize,
    /// Where the reader stands once it has been given what was found so far.
    position: Position,
    /// No gap before this was to be told when the read began.
    vouched: Id,
    /// The newest id when the read began.
    newest: Option<Id>,
    /// How many of the named topics were looked at.
    looked: usize,
    /// Just before the oldest message of them that the reader was not given.
    ungiven: Id,
    /// What was lost up to here was looked at.
    seen: Mark,
    /// The last loss when the named topics were first looked at.
    lost: Option<Mark>,
    gaps: BTreeMap<Pattern, Gap>,
    /// How many of the gaps are of topics of each pattern.
    counts: HashMap<Pattern, usize>,
    /// The oldest retained message of each pattern, as far as was looked for it.
    firsts: HashMap<Pattern, Id>,
    searched: Id,
    messages: Vec<Arc<Message>>,
    told: Id,
    /// That of the gaps of patterns.
    reason: Reason,
    end: Id,
}

impl<'a> Reading<'a> {
    pub fn new(patterns: &'a PatternSet, position: &Position, limit: usize) -> Self {
        let vouched = position.cursor.max(position.told);
        Self {
            patterns,
            limit,
            position: position.clone(),
            vouched,
            newest: None,
            looked: 0,
            ungiven: Id::MAX,
            // What was lost when nothing newer was there cannot be after the cursor.
            seen: position.checked.max(Mark::at(vouched)),
            lost: None,
            gaps: BTreeMap::new(),
            counts: HashMap::new(),
            firsts: HashMap::new(),
            searched: position.cursor,
            messages: Vec::new(),
            told: position.told,
            reason: Reason::Retention,
            end: Id::ZERO,
        }
    }

    fn note(&mut self, gap: Gap) {
        let topic = gap.topic.clone();
        if self.gaps.contains_key(&topic) || self.is_told_apart(&topic) {
            let is_new = self.gaps.insert(topic.clone(), gap).is_none();
            let counts = &mut self.counts;
            self.patterns.for_each_wildcard(topic.as_str(), |pattern| {
                *counts.entry(pattern.clone()).or_default() += usize::from(is_new);
            });
        }
    }

    fn is_wide(&self, pattern: &Pattern) -> bool {
        self.counts.get(pattern).is_some_and(|count| *count > MAX_GAPS)
    }

    /// Whether a gap of this topic is told by itself: it is named, or some pattern of it has few gaps.
    fn is_told_apart(&self, topic: &Pattern) -> bool {
        let mut is_apart = self.patterns.names(topic.as_str());
        self.patterns.for_each_wildcard(topic.as_str(), |pattern| is_apart |= !self.is_wide(pattern));
        is_apart
    }

    /// The patterns for which one gap is told.
    fn wide(&self, forgotten: Id) -> impl Iterator<Item = &'a Pattern> {
        let is_forgotten = self.vouched < forgotten;
        self.patterns.wildcards().iter().filter(move |pattern| is_forgotten || self.is_wide(pattern))
    }

    /// What was found, once the last step is done.
    pub fn into_page(mut self) -> Page {
        let wide: Vec<_> = self.wide(self.told).cloned().collect();
        let mut gaps = std::mem::take(&mut self.gaps);
        gaps.retain(|topic, _| self.is_told_apart(topic));
        let wide = wide.into_iter().map(|topic| {
            let next = self.firsts.get(&topic).copied();
            Gap { topic, next, reason: self.reason, floor: Id::ZERO }
        });
        Page {
            gaps: gaps.into_values().chain(wide).collect(),
            told: self.told,
            checked: self.seen,
            past: self.messages.first().map_or(self.end, |message| message.id.before()),
            messages: self.messages,
            end: self.end,
        }
    }
}

impl State {
    /// Goes on with a read, looking at up to `budget` entries. True once it is done.
    pub fn read_on(&self, reading: &mut Reading<'_>, mut budget: usize) -> bool {
        reading.newest.get_or_insert(self.newest);
        reading.lost.get_or_insert(self.losses.last());
        self.look_at_topics(reading, &mut budget)
            && self.look_at_losses(reading, &mut budget)
            && self.look_for_firsts(reading, &mut budget)
            && self.take(reading, budget)
    }

    /// Looks at the topics that are named, whether they lost something or not.
    fn look_at_topics(&self, reading: &mut Reading<'_>, budget: &mut usize) -> bool {
        let topics = reading.patterns.topics();
        let end = topics.len().min(reading.looked + *budget);
        for topic in &topics[reading.looked..end] {
            let gap = self.gap(topic, &reading.position, Id::ZERO);
            let given =
                reading.position.given(topic.as_str()).max(gap.as_ref().map_or(Id::ZERO, |it| it.floor));
            let ungiven =
                self.tails.get(topic.as_str()).and_then(|tail| tail.ring().after(given).map(|it| it.id));
            reading.ungiven = reading.ungiven.min(ungiven.map_or(Id::MAX, Id::before));
            gap.into_iter().for_each(|gap| reading.note(gap));
        }
        *budget -= end - reading.looked;
        reading.looked = end;
        end == topics.len()
    }

    /// Looks at what lost something. True if that is all there is.
    fn look_at_losses(&self, reading: &mut Reading<'_>, budget: &mut usize) -> bool {
        if reading.patterns.wildcards().is_empty() {
            return true;
        }
        if reading.patterns.wildcards().iter().all(|pattern| reading.is_wide(pattern)) {
            // Another gap changes nothing, but for named topics that lost something since they were looked at.
            reading.seen = reading.seen.max(reading.lost.unwrap_or_default());
        }
        for (mark, topic) in self.losses.after(reading.seen).take(*budget) {
            reading.seen = mark;
            *budget -= 1;
            if reading.patterns.matches(topic) {
                // The pattern's own gap says what lay before `forgotten`.
                let least = if reading.patterns.names(topic) { Id::ZERO } else { self.forgotten };
                self.gap(&topic.into(), &reading.position, least)
                    .into_iter()
                    .for_each(|gap| reading.note(gap));
            }
        }
        *budget > 0
    }

    /// Looks for the oldest retained message of each pattern for which one gap is told.
    fn look_for_firsts(&self, reading: &mut Reading<'_>, budget: &mut usize) -> bool {
        let missing = |reading: &Reading<'_>| {
            reading.wide(self.forgotten).any(|pattern| !reading.firsts.contains_key(pattern))
        };
        let mut is_missing = missing(reading);
        let mut order = self.order.range((Excluded(reading.searched), Unbounded));
        while is_missing && *budget > 0 {
            let Some((id, tail)) = order.next() else { break };
            (reading.searched, *budget) = (*id, *budget - 1);
            let known = reading.firsts.len();
            let firsts = &mut reading.firsts;
            reading.patterns.for_each_wildcard(tail.name().as_str(), |pattern| {
                firsts.entry(pattern.clone()).or_insert(*id);
            });
            if reading.firsts.len() > known {
                is_missing = missing(reading);
            }
        }
        *budget > 0
    }

    /// Reads the order, where there is a wildcard; topics alone are read from their tails.
    fn take(&self, reading: &mut Reading<'_>, budget: usize) -> bool {
        reading.told = reading.told.max(self.forgotten);
        reading.reason = self.reason(reading.vouched, Id::ZERO);
        if reading.patterns.wildcards().is_empty() {
            // What has come since the read began may be of a topic that was looked at before.
            reading.end = reading.ungiven.min(reading.newest.unwrap_or(self.newest));
            return true;
        }
        let mut order = self.order.range((Excluded(reading.position.cursor), Unbounded)).take(budget);
        let (mut looked, mut end) = (0, self.newest);
        for (id, tail) in &mut order {
            looked += 1;
            let name = tail.name().as_str();
            if *id > reading.position.given(name) && reading.patterns.matches(name) {
                reading.messages.extend(tail.ring().find(*id).cloned());
            }
            if looked == budget || reading.messages.len() == reading.limit {
                end = *id;
                break;
            }
        }
        reading.end = end;
        reading.position.advance(end);
        end == self.newest || !reading.messages.is_empty()
    }

    /// What is gone of `topic` after what the reader was given, and after `least`.
    fn gap(&self, topic: &Pattern, position: &Position, least: Id) -> Option<Gap> {
        let name = topic.as_str();
        let (tail, known) = (self.tails.get(name), self.index.get(name));
        let complete_from = match (tail, known) {
            (Some(tail), _) => tail.ring().complete_from(),
            (None, Some(known)) => known.newest,
            (None, None) => self.forgotten,
        };
        let vouched = position.vouched(name).max(least);
        if vouched >= complete_from {
            return None;
        }
        let given = position.given(name);
        let next = tail.and_then(|tail| tail.ring().after(given).map(|message| message.id));
        let reason = self.reason(vouched, known.map_or(Id::ZERO, |known| known.deleted));
        Some(Gap { topic: topic.clone(), next, reason, floor: complete_from })
    }

    fn reason(&self, vouched: Id, deleted: Id) -> Reason {
        match vouched {
            vouched if vouched < self.began => Reason::Restarted,
            vouched if vouched < deleted => Reason::Deleted,
            _ => Reason::Retention,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::{
        super::{
            Seeking,
            tests::{begin, read},
        },
        *,
    };
    use crate::{
        log::{Append, Retention, Start},
        message::{Draft, Payload, Topic, steps},
    };

    const RETENTION: Retention = Retention {
        messages: 2,
        age: Duration::from_secs(60),
        bytes: 1 << 20,
        total_bytes: 7_000,
        topics: 1_000_000,
    };

    fn topic(name: &str, number: u32) -> Topic {
        format!("{name}.{number}").parse().expect("a topic")
    }

    /// As many messages as there are.
    const ROOMY: Retention = Retention { total_bytes: 1 << 30, ..RETENTION };

    fn publish(state: &mut State, topic: Topic) {
        publish_to(state, topic, &RETENTION);
    }

    fn publish_to(state: &mut State, topic: Topic, retention: &Retention) -> Id {
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        state.append(append, retention).expect("stored").0.id()
    }

    /// Moves on as a subscription does.
    fn take(position: &mut Position, page: &Page) {
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
                    // More than are remembered by name.
                    6 if random.random_ratio(1, 10) => {
                        (0..1_100).for_each(|_| publish(&mut state, topic("b", random.random_range(0..4))));
                    }
                    6 => _ = state.expire(Id::new(state.newest.get() - random.random_range(0..20)), 100),
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
    fn set(names: &[&str]) -> PatternSet {
        names.iter().map(|name| name.parse().expect("a pattern")).collect()
    }

    /// Something that changes the log, and the id of what was published.
    fn disturb(state: &mut State, random: &mut StdRng) -> Option<(Topic, Id)> {
        let topic = topic(["a", "b"][random.random_range(0..2)], random.random_range(0..4));
        match random.random_range(0..10) {
            0 => state.delete(&topic).expect("open"),
            1 => _ = state.expire(Id::new(state.newest.get() - random.random_range(0..20)), 100),
            _ => {
                publish(state, topic.clone());
                return Some((topic, state.newest));
            }
        }
        None
    }

    /// A message that was trimmed between a look at the losses and a look at the order was in neither.
    #[test]
    fn whatever_happens_between_two_steps_each_message_is_given_or_told() {
        for seed in 0..400 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::new(Id::now());
            let patterns =
                [&["a.*"][..], &["**"], &["b.1", "a.*"], &["a.0", "*.1"]][random.random_range(0..4)];
            let patterns = set(patterns);
            let mut position = Position::at(state.newest);
            let (mut published, mut given) = (Vec::new(), Vec::new());
            for _ in 0..20 {
                let mut reading = Reading::new(&patterns, &position, random.random_range(1..5));
                while !state.read_on(&mut reading, random.random_range(1..4)) {
                    published.extend(disturb(&mut state, &mut random));
                }
                let page = reading.into_page();
                for gap in &page.gaps {
                    let name = gap.topic.as_str();
                    let is_lost = |(topic, id): &(Topic, Id)| {
                        &**topic == name
                            && *id > position.given(name)
                            && *id <= gap.floor
                            && !given.contains(id)
                    };
                    assert!(published.iter().any(is_lost), "seed {seed}: told without cause: {gap:?}");
                }
                for (topic, id) in published.iter().filter(|(topic, _)| patterns.matches(topic)) {
                    let is_due = *id > position.given(topic) && *id <= page.end;
                    let is_given = page.messages.iter().any(|message| message.id == *id);
                    let is_told =
                        page.gaps.iter().any(|gap| gap.topic.as_str() == &**topic && gap.floor >= *id);
                    assert!(!is_due || is_given != is_told, "seed {seed}: {topic} {id} {is_given} {is_told}");
                }
                given.extend(page.messages.iter().map(|message| message.id));
                assert!(given.is_sorted_by(|one, next| one < next), "seed {seed}");
                take(&mut position, &page);
                for _ in 0..random.random_range(0..6) {
                    published.extend(disturb(&mut state, &mut random));
                }
            }
        }
    }

    /// A log of `count` topics of which each has lost a message and has one.
    fn worn(name: &str, count: u32) -> (State, Position) {
        let mut state = State::new(Id::now());
        let position = Position::at(state.newest);
        for number in (0..count).chain(0..count) {
            publish_to(&mut state, topic(name, number), &Retention { messages: 1, ..ROOMY });
        }
        (state, position)
    }

    #[test]
    fn a_step_looks_at_no_more_than_its_budget_and_all_steps_at_no_more_than_there_is() {
        let (state, position) = worn("a", 3_000);
        let patterns: PatternSet =
            (0..100).map(|number| format!("*.x.{number}.*").parse().expect("a pattern")).collect();
        // A topic of two segments can touch three nodes of these patterns.
        let most = 3 * 50;
        let (mut reading, mut count) = (Reading::new(&patterns, &position, 10), 0);
        let mut is_done = false;
        while !is_done {
            let cost = steps::of(|| is_done = state.read_on(&mut reading, 50));
            assert!(cost <= most, "{cost} nodes in one step");
            count += 1;
        }
        assert!((120..=125).contains(&count), "{count} steps for 3 000 marks and 3 000 messages");

        for start in [Start::Everything, Start::Last(1), Start::After(Id::MAX)] {
            let (mut seeking, mut count) =
                (Seeking::new(&patterns, &start, state.newest).expect("sought"), 0);
            let mut is_done = false;
            while !is_done {
                let cost = steps::of(|| is_done = state.seek_on(&mut seeking, 50));
                assert!(cost <= most, "{cost} nodes in one step");
                count += 1;
            }
            assert!((60..=62).contains(&count), "{count} steps for 3 000 messages");
        }
    }

    #[test]
    fn of_more_gaps_than_a_thousand_one_is_told_for_the_pattern() {
        let (mut state, mut position) = worn("a", 1_500);
        for number in (0..3).chain(0..3).chain(0..3) {
            publish_to(&mut state, topic("b", number), &ROOMY);
        }
        let first = *state.order.first_key_value().expect("something is retained").0;
        let patterns = set(&["a.*", "b.*", "*.1", "a.7"]);
        let page = read(&mut state, &patterns, &position, 10, Id::ZERO);
        let told: Vec<_> = page.gaps.iter().map(|gap| (gap.topic.as_str(), gap.next)).collect();
        let next = |name: &str| state.tails[name].ring().oldest().map(|message| message.id);
        // What another pattern or a name tells too is told by itself.
        let expected = ["a.1", "a.7", "b.0", "b.1", "b.2"].map(|name| (name, next(name)));
        assert_eq!(told, [&expected[..], &[("a.*", Some(first))]].concat());
        take(&mut position, &page);
        assert_eq!(read(&mut state, &patterns, &position, 10, Id::ZERO).gaps, []);
        state.delete(&topic("a", 1_400)).expect("open");
        assert_eq!(read(&mut state, &patterns, &position, 10, Id::ZERO).gaps.len(), 1);
    }

    #[test]
    fn where_one_gap_tells_it_for_the_pattern_the_other_losses_are_not_looked_at() {
        let (state, position) = worn("a", 5_000);
        let patterns = set(&["a.*", "a.7"]);
        let mut reading = Reading::new(&patterns, &position, 10);
        let cost = steps::of(|| while !state.read_on(&mut reading, 500) {});
        assert!(cost <= 2 * 10 * 500, "{cost} nodes");
        assert_eq!(reading.into_page().gaps.len(), 2);
    }

    #[test]
    fn the_losses_since_the_cursor_are_looked_at_and_no_others() {
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
            // The new one pushed out one that was not to be given.
            assert_eq!(page.gaps, []);
            given.extend(page.messages.iter().map(|message| message.id));
            take(&mut position, &page);
        }
        let expected = [&ids[200..1_200], &ids[1_400..], &[late]].concat();
        assert_eq!(given, expected);
    }
}
