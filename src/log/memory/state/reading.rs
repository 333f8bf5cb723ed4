//! Reads what a reader has missed, and the messages of its patterns, in steps that release the lock in
//! between.

use std::collections::BTreeMap;

use super::{State, budget::Budget, firsts::Firsts};
use crate::{
    log::{
        Gap, Mark, Page, Position, Reason,
        loss::{Boundary, Loss, Standing, max_gaps},
    },
    message::{Id, Message, Pattern, PatternSet, Topic},
};

/// A read that is under way.
///
/// No loss between two steps is missed. A message after the cursor is given if it is in the order when the
/// order is read there. If it is not, its topic got a mark when it was lost. The step that reads the order
/// first looks at every mark that there is.
pub struct Reading<'a> {
    pub(super) patterns: &'a PatternSet,
    pub(super) limit: usize,
    pub(super) max_gaps: usize,
    /// The position of the reader once it has been given everything that was found so far.
    pub(super) position: Position,
    /// When the read began, no gap before this was left to tell.
    told_upto: Id,
    /// The same for topics without a floor of their own.
    settled: Id,
    /// Topics of the patterns with a floor of their own, if the others have another floor.
    pub(super) apart: Vec<Pattern>,
    /// The newest id when the read began.
    newest: Option<Id>,
    /// How many of the topics that are named or apart were examined.
    looked: usize,
    /// The `forgotten` of the index when they were examined.
    forgotten: Id,
    /// The id just before the oldest message of these topics that the reader was not given.
    ungiven: Id,
    /// Losses up to this mark were examined.
    pub(super) seen: Mark,
    /// The last loss when these topics were first examined.
    lost: Option<Mark>,
    gaps: BTreeMap<Pattern, FoundGap>,
    /// How many topics of each pattern have a gap, by the number of the pattern.
    counts: Vec<usize>,
    /// The oldest retained message of each pattern, as far as the search has come.
    firsts: Firsts,
    messages: Vec<Message>,
    pub(super) told: Id,
    /// The reason for the gaps of patterns.
    reason: Reason,
    pub(super) end: Id,
}

/// A gap of a topic.
struct FoundGap {
    gap: Gap,
    is_named: bool,
    /// The numbers of the patterns that match the topic and had few gaps before this one.
    patterns: Vec<usize>,
}

impl<'a> Reading<'a> {
    pub fn new(patterns: &'a PatternSet, position: &Position, limit: usize) -> Self {
        let told_upto = position.cursor.max(position.told);
        let settled = position.settled().max(position.told);
        let is_apart = |pattern: &Pattern| {
            settled > told_upto && patterns.matches(pattern.as_str()) && !patterns.names(pattern.as_str())
        };
        Self {
            patterns,
            limit,
            max_gaps: max_gaps(patterns.wildcards().len()),
            position: position.clone(),
            told_upto,
            settled,
            apart: position.floored().map(Pattern::from).filter(is_apart).collect(),
            newest: None,
            looked: 0,
            forgotten: Id::ZERO,
            ungiven: Id::MAX,
            // Losses from when nothing newer existed cannot be after the cursor.
            seen: position.checked.max(Mark::at(told_upto)),
            lost: None,
            gaps: BTreeMap::new(),
            counts: vec![0; patterns.wildcards().len()],
            firsts: Firsts::new(patterns, position.cursor),
            messages: Vec::new(),
            told: position.told,
            reason: Reason::Retention,
            end: Id::ZERO,
        }
    }

    /// Notes the gap of a topic, and returns how many nodes were visited for it.
    fn note(&mut self, gap: Gap) -> usize {
        if let Some(found) = self.gaps.get_mut(&gap.topic) {
            found.gap = gap;
            return 0;
        }
        let name = gap.topic.as_str();
        let (is_named, mut narrow, mut nodes) = (self.patterns.names(name), Vec::new(), 0);
        self.patterns.number_wildcards(name, &mut nodes, |number| {
            if self.counts[number] <= self.max_gaps {
                narrow.push(number);
            }
            self.counts[number] += 1;
        });
        if is_named || !narrow.is_empty() {
            self.gaps.insert(gap.topic.clone(), FoundGap { gap, is_named, patterns: narrow });
        }
        nodes
    }

    /// Notes a gap that its topic gets in any case.
    pub(super) fn tell(&mut self, gap: Gap) {
        self.gaps.insert(gap.topic.clone(), FoundGap { gap, is_named: true, patterns: Vec::new() });
    }

    /// Adds a message. It may be the first retained one after a gap.
    pub(super) fn give(&mut self, message: Message) {
        if let Some(found) = self.gaps.get_mut(&*message.topic) {
            found.gap.next.get_or_insert(message.id);
        }
        self.messages.push(message);
    }

    /// A topic that is examined even if it has no mark.
    fn topic(&self, place: usize) -> Option<Pattern> {
        let named = self.patterns.topics();
        named.get(place).or_else(|| self.apart.get(place - named.len())).cloned()
    }

    fn has_many_gaps(&self, number: usize) -> bool {
        self.counts[number] > self.max_gaps
    }

    /// True if a forgotten topic may have had messages that the reader was not given.
    pub(super) fn is_before(&self, forgotten: Id) -> bool {
        self.settled < forgotten
    }

    /// True if the pattern gets a single gap.
    fn is_wide(&self, number: usize, forgotten: Id) -> bool {
        self.is_before(forgotten) || self.has_many_gaps(number)
    }

    /// True if the topic gets a gap of its own, because it is named or some pattern of it has few gaps.
    fn is_told_apart(&self, found: &FoundGap) -> bool {
        // The gap of the pattern covers the forgotten messages.
        let is_forgotten = self.is_before(self.told) && found.gap.floor <= self.told;
        let is_narrow = || found.patterns.iter().any(|number| !self.has_many_gaps(*number));
        found.is_named || (!is_forgotten && is_narrow())
    }

    /// The page, once the last step is done.
    pub fn into_page(mut self) -> Page {
        let gaps = std::mem::take(&mut self.gaps).into_values();
        let apart = gaps.filter(|found| self.is_told_apart(found)).map(|found| found.gap);
        let wide = self.patterns.wildcards().iter().enumerate();
        let wide = wide.filter(|(number, _)| self.is_wide(*number, self.told)).map(|(number, pattern)| {
            let next = self.firsts.of(number);
            Gap { topic: pattern.clone(), next, reason: self.reason, floor: Id::ZERO }
        });
        Page {
            gaps: apart.chain(wide).collect(),
            told: self.told,
            checked: self.seen,
            past: self.messages.first().map_or(self.end, |message| message.id.before()),
            messages: self.messages,
            end: self.end,
        }
    }
}

impl State {
    /// Continues a read, and visits up to `nodes`. True once the read is done.
    pub fn read_on(&self, reading: &mut Reading<'_>, nodes: usize) -> bool {
        if reading.newest.is_none() && self.read_by_topics(reading) {
            return true;
        }
        self.read_by_order(reading, nodes)
    }

    pub(super) fn read_by_order(&self, reading: &mut Reading<'_>, nodes: usize) -> bool {
        let mut budget = Budget::of(nodes);
        reading.newest.get_or_insert(self.newest());
        reading.lost.get_or_insert(self.losses.last());
        self.look_at_topics(reading, &mut budget)
            && self.look_at_losses(reading, &mut budget)
            && self.look_for_firsts_of_wide(reading, &mut budget)
            && self.take(reading, &mut budget)
    }

    /// Examines the topics that are named or apart, even if they have no mark.
    fn look_at_topics(&self, reading: &mut Reading<'_>, budget: &mut Budget) -> bool {
        if reading.forgotten < self.forgotten && reading.told_upto < self.forgotten {
            // A topic that had lost nothing when it was examined may have been forgotten since.
            reading.looked = 0;
        }
        reading.forgotten = self.forgotten;
        while let Some(topic) = reading.topic(reading.looked) {
            if budget.is_spent() {
                return false;
            }
            let gap = self.gap(&topic, &reading.position, self.least(reading, &topic));
            let given =
                reading.position.given(topic.as_str()).max(gap.as_ref().map_or(Id::ZERO, |it| it.floor));
            let ungiven =
                self.tails.get(topic.as_str()).and_then(|tail| tail.ring().after(given).map(|it| it.id));
            reading.ungiven = reading.ungiven.min(ungiven.map_or(Id::MAX, Id::before));
            reading.looked += 1;
            budget.spend(gap.map_or(0, |gap| reading.note(gap)));
        }
        true
    }

    /// Examines the topics with marks. True once all marks were seen.
    fn look_at_losses(&self, reading: &mut Reading<'_>, budget: &mut Budget) -> bool {
        if (0..reading.counts.len()).all(|number| reading.has_many_gaps(number)) {
            // One more gap changes nothing. Only topics that were examined before and have lost messages
            // since still matter.
            reading.seen = reading.seen.max(reading.lost.unwrap_or_default());
        }
        for (mark, topic) in self.losses.after(reading.seen) {
            if budget.is_spent() {
                return false;
            }
            reading.seen = mark;
            let mut nodes = 0;
            if reading.patterns.matches_counting(topic, &mut nodes) {
                let topic = topic.into();
                let gap = self.gap(&topic, &reading.position, self.least(reading, &topic));
                nodes += gap.map_or(0, |gap| reading.note(gap));
            }
            budget.spend(nodes);
        }
        !budget.is_spent()
    }

    /// The id from which this topic gets a gap of its own. The gap of its patterns covers everything up to
    /// `forgotten`.
    fn least(&self, reading: &Reading<'_>, topic: &Pattern) -> Id {
        let is_told = reading.is_before(self.forgotten) && !reading.patterns.names(topic.as_str());
        if is_told { self.forgotten } else { Id::ZERO }
    }

    /// Searches for the oldest retained message of each pattern that gets a single gap.
    fn look_for_firsts_of_wide(&self, reading: &mut Reading<'_>, budget: &mut Budget) -> bool {
        let is_before = reading.is_before(self.forgotten);
        let Reading { firsts, counts, max_gaps, patterns, .. } = reading;
        self.look_for_firsts(firsts, patterns, |number| is_before || counts[number] > *max_gaps, budget)
    }

    /// Reads the order if there is a pattern. Topics alone are read from their tails.
    fn take(&self, reading: &mut Reading<'_>, budget: &mut Budget) -> bool {
        reading.told = reading.told.max(self.forgotten);
        let settled = reading.settled;
        reading.reason =
            Standing::at(&self.beginning(), self.newest, settled, settled).reason(settled, Id::ZERO);
        if reading.patterns.wildcards().is_empty() {
            // Messages that came since the read began may belong to a topic that was examined before.
            reading.end = reading.ungiven.min(reading.newest.unwrap_or(self.newest()));
            return true;
        }
        let newest = self.newest();
        let mut end = newest;
        let order = self.order.after(reading.position.cursor);
        for (id, tail) in order.take_while(|entry| entry.0 <= newest) {
            let (name, mut nodes) = (tail.name().as_str(), 0);
            if *id > reading.position.given(name) && reading.patterns.matches_counting(name, &mut nodes) {
                tail.ring().find(*id).cloned().into_iter().for_each(|message| reading.give(message));
            }
            budget.spend(nodes);
            if budget.is_spent() || reading.messages.len() == reading.limit {
                end = *id;
                break;
            }
        }
        reading.end = end;
        reading.position.advance(end);
        end == newest || !reading.messages.is_empty()
    }

    /// The gap of `topic` after the reader's position and after `least`.
    pub(super) fn gap(&self, topic: &Pattern, position: &Position, least: Id) -> Option<Gap> {
        let name = topic.as_str();
        let (complete_after, next) = match (self.tails.get(name), self.index.get(name)) {
            (Some(tail), _) => {
                let ring = tail.ring();
                (ring.complete_after(), ring.after(position.given(name)).map(|message| message.id))
            }
            (None, Some(known)) => (known.newest, None),
            (None, None) => (self.forgotten, None),
        };
        let deleted = self.index.get(name).map_or(Id::ZERO, |known| known.deleted);
        let told_upto = position.told_upto(name).max(least);
        let loss = Loss { complete_after, next, deleted };
        Standing::at(&self.beginning(), self.newest, told_upto, told_upto).gap(topic, told_upto, loss)
    }

    /// The one boundary of this log. Messages from before it are unknown.
    pub(super) fn beginning(&self) -> [Boundary; 1] {
        [Boundary { began: self.began, inherited: Id::ZERO, reason: Reason::Restarted }]
    }

    /// The id from which everything of a topic is retained, and the oldest of its messages.
    pub(super) fn left_of(&self, topic: &Topic) -> (Id, Option<Id>) {
        match (self.tails.get(topic), self.index.get(topic)) {
            (Some(tail), _) => {
                let ring = tail.ring();
                (ring.complete_after(), ring.oldest().map(|message| message.id))
            }
            (None, Some(known)) => (known.newest, None),
            (None, None) => (self.forgotten, None),
        }
    }
}

#[cfg(test)]
pub mod tests;
