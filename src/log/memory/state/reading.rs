//! Where a reader begins, what it has missed, and the messages of patterns.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use super::{Known, State};
use crate::{
    log::{Beginning, Gap, Page, Position, Reason, Start, Tail},
    message::{Id, Message, Pattern, PatternSet, Topic},
};

/// How many entries of the log one page looks at, so that others may have the lock.
const MAX_SCANNED: usize = 8192;
/// How many topics a pattern's `last` covers: those with the newest messages.
const MAX_LAST_TOPICS: usize = 1000;

impl State {
    pub fn begin(&mut self, patterns: &PatternSet, start: &Start, expired: Id) -> Beginning {
        self.expire(expired);
        match *start {
            Start::Now => Beginning { position: Position::at(self.newest), gaps: Vec::new() },
            Start::After(cursor) if cursor <= self.newest => {
                Beginning { position: Position::at(cursor), gaps: Vec::new() }
            }
            Start::After(_) | Start::Unreadable(_) => Beginning {
                gaps: patterns.iter().map(|pattern| self.unknown_gap(pattern)).collect(),
                ..self.begin_with(patterns, |_, tail| tail.ring().oldest().cloned())
            },
            Start::Everything => self.begin_with(patterns, |_, tail| tail.ring().oldest().cloned()),
            Start::Since(time) => {
                self.begin_with(patterns, |_, tail| tail.ring().after(time.before()).cloned())
            }
            Start::Last(count) => {
                let is_bounded = !patterns.wildcards().is_empty();
                self.begin_with(patterns, |nth, tail| {
                    let is_given =
                        !is_bounded || nth < MAX_LAST_TOPICS || patterns.names(tail.name().as_str());
                    if is_given { tail.ring().nth_newest(count).cloned() } else { None }
                })
            }
        }
    }

    /// Begins just before the oldest of the messages that `first` chooses, one for each topic.
    fn begin_with(
        &self,
        patterns: &PatternSet,
        first: impl Fn(usize, &Tail) -> Option<Arc<Message>>,
    ) -> Beginning {
        let mut cursor = self.newest;
        let mut floors = Vec::new();
        for (nth, (topic, known)) in self.matching(patterns, Id::ZERO).into_iter().enumerate() {
            match self.tails.get(&topic).and_then(|tail| first(nth, tail)) {
                Some(message) => {
                    cursor = cursor.min(message.id.before());
                    floors.push((topic, message.prev));
                }
                None => floors.push((topic, known.newest)),
            }
        }
        let mut position = Position::at(cursor);
        for (topic, floor) in floors {
            position.raise_floor(topic, floor);
        }
        Beginning { position, gaps: Vec::new() }
    }

    /// The gaps after `position`, and what is retained of the patterns.
    pub fn read(&mut self, patterns: &PatternSet, position: &Position, limit: usize, expired: Id) -> Page {
        self.expire(expired);
        let mut page = Page { told: position.told.max(self.forgotten), end: self.newest, ..Page::default() };
        page.checked = Some(self.losses.count());
        if position.checked != page.checked {
            page.gaps = self.gaps(patterns, position);
        }
        let mut position = Cow::Borrowed(position);
        for gap in &page.gaps {
            if let Some(topic) = gap.topic.topic() {
                position.to_mut().raise_floor(topic, gap.floor);
            }
        }
        self.fill(&mut page, patterns, &position, limit);
        page
    }

    /// What is gone after `position`: of each topic, and of the patterns what the index does not know by name.
    fn gaps(&self, patterns: &PatternSet, position: &Position) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for topic in patterns.topics().iter().filter_map(Pattern::topic) {
            gaps.extend(self.gap(&topic, position.given(&topic), position.vouched(&topic)));
        }
        if patterns.wildcards().is_empty() {
            return gaps;
        }
        let vouched = position.cursor.max(position.told);
        if vouched < self.forgotten {
            for pattern in patterns.wildcards() {
                let next = self.oldest_matching(pattern, position.cursor);
                let (topic, reason) = (pattern.clone(), self.reason(vouched, Id::ZERO));
                gaps.push(Gap { topic, next, reason, floor: Id::ZERO });
            }
        }
        let lost = position.checked.and_then(|checked| self.losses.since(checked));
        let topics: BTreeSet<Topic> = match lost {
            Some(lost) => lost.filter(|topic| patterns.matches(topic)).cloned().collect(),
            None => self.matching(patterns, position.cursor).into_iter().map(|(topic, _)| topic).collect(),
        };
        for topic in topics {
            if patterns.names(&topic) {
                continue;
            }
            // The pattern's own gap has said what lay before `forgotten`.
            let vouched = position.vouched(&topic).max(self.forgotten);
            gaps.extend(self.gap(&topic, position.given(&topic), vouched));
        }
        gaps
    }

    fn gap(&self, topic: &Topic, given: Id, vouched: Id) -> Option<Gap> {
        let tail = self.tails.get(topic);
        let known = self.index.get(topic);
        let complete_from = match (tail, known) {
            (Some(tail), _) => tail.ring().complete_from(),
            (None, Some(known)) => known.newest,
            (None, None) => self.forgotten,
        };
        if vouched >= complete_from {
            return None;
        }
        let next = tail.and_then(|tail| tail.ring().after(given).map(|message| message.id));
        let reason = self.reason(vouched, known.map_or(Id::ZERO, |known| known.deleted));
        Some(Gap { topic: topic.into(), next, reason, floor: complete_from })
    }

    fn reason(&self, vouched: Id, deleted: Id) -> Reason {
        match vouched {
            vouched if vouched < self.began => Reason::Restarted,
            vouched if vouched < deleted => Reason::Deleted,
            _ => Reason::Retention,
        }
    }

    /// The retained messages, where there is a wildcard; topics alone are read from their tails.
    fn fill(&self, page: &mut Page, patterns: &PatternSet, position: &Position, limit: usize) {
        if patterns.wildcards().is_empty() {
            let first_ungiven = |pattern: &Pattern| {
                let tail = self.tails.get(pattern.as_str())?;
                tail.ring().after(position.given(pattern.as_str())).map(|message| message.id.before())
            };
            page.past = patterns.iter().filter_map(first_ungiven).min().unwrap_or(self.newest);
            page.end = page.past;
            return;
        }
        let begin = self.order.partition_point(|(id, _)| *id <= position.cursor);
        for (scanned, (id, tail)) in self.order.range(begin..).enumerate() {
            let name = tail.name().as_str();
            if patterns.matches(name) && *id > position.given(name) {
                page.messages.extend(tail.ring().find(*id).cloned());
            }
            if scanned + 1 == MAX_SCANNED || page.messages.len() == limit {
                page.end = *id;
                break;
            }
        }
        page.past = page.messages.first().map_or(page.end, |message| message.id.before());
    }

    fn unknown_gap(&self, pattern: &Pattern) -> Gap {
        let next = match pattern.topic() {
            Some(topic) => self.tails.get(&topic).and_then(|tail| tail.ring().oldest().map(|m| m.id)),
            None => self.oldest_matching(pattern, Id::ZERO),
        };
        Gap { topic: pattern.clone(), next, reason: Reason::UnknownCursor, floor: Id::ZERO }
    }

    fn oldest_matching(&self, pattern: &Pattern, after: Id) -> Option<Id> {
        let begin = self.order.partition_point(|(id, _)| *id <= after);
        self.order
            .range(begin..)
            .find(|(id, tail)| pattern.matches(tail.name().as_str()) && tail.ring().find(*id).is_some())
            .map(|(id, _)| *id)
    }

    /// The topics of `patterns` that have had something after `after`, newest first.
    fn matching(&self, patterns: &PatternSet, after: Id) -> Vec<(Topic, Known)> {
        if patterns.wildcards().is_empty() {
            let known = |pattern: &Pattern| {
                let topic = pattern.topic()?;
                self.index.get(&topic).filter(|known| known.newest > after).map(|known| (topic, *known))
            };
            return patterns.iter().filter_map(known).collect();
        }
        self.index
            .iter()
            .rev()
            .take_while(|(_, known)| known.newest > after)
            .filter(|(topic, _)| patterns.matches(topic))
            .map(|(topic, known)| (topic.clone(), *known))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        log::{Append, memory::Retention},
        message::{Draft, Payload},
    };

    const RETENTION: Retention =
        Retention { messages: 2, age: Duration::from_secs(60), bytes: 1 << 20, total_bytes: 4_000 };

    fn topic(name: &str, number: u32) -> Topic {
        format!("{name}.{number}").parse().expect("a topic")
    }

    fn publish(state: &mut State, topic: Topic) {
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        state.append(append, &RETENTION).expect("stored");
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
                    6 => state.expire(Id::new(state.newest.get() - random.random_range(0..20))),
                    7 if random.random_ratio(1, 10) => {
                        let later = Id::new(Id::now().get() + 8 * 24 * 3600 * 1_000_000);
                        while state.sweep(&RETENTION, later) {}
                    }
                    _ => {
                        let mut anew = position.clone();
                        anew.checked = None;
                        let expected = state.read(patterns, &anew, 3, Id::ZERO);
                        let page = state.read(patterns, &position, 3, Id::ZERO);
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
}
