//! Finds in the store what a reader has missed, and the messages that are retained for it.
//!
//! This module decides what a cursor means, from the answers of the scripts. It keeps no state.

mod history;
mod seeking;

use std::collections::{BTreeSet, HashMap, HashSet};

pub use self::history::history;
use super::{
    answers::{Fetched, FoundStored, Names, Retained, ScanState, Scanned, Sought, Stored, TopicsPage},
    facts::Facts,
    scripts::ReadScript,
    store::Store,
};
use crate::{
    log::{
        Gap, LogError, Mark, Page, Position, Reason,
        loss::{Loss, max_gaps},
        position::MAX_READ_TOPICS,
    },
    message::{Id, Pattern, PatternSet, Topic},
};

/// How many topics one script reads, so that other scripts get their turn.
const TOPIC_BATCH: usize = 200;
/// How many parts of the order are searched for the message behind a gap.
const MAX_SCANS: usize = 64;

/// The facts that the store gave when it said which topics there were.
struct Bound {
    began: Id,
    newest: Id,
}

/// Some messages, and what is retained of other topics. A message is `None` if it is not there.
#[derive(Default)]
struct Retrieved {
    messages: Vec<Sought>,
    topics: Vec<Retained>,
}

/// Reads the store.
pub struct Reading<'a> {
    pub store: &'a Store,
    pub patterns: &'a PatternSet,
}

impl Reading<'_> {
    async fn run<T: redis::FromRedisValue>(
        &self,
        script: &ReadScript,
        args: &[impl AsRef<[u8]>],
    ) -> Result<T, LogError> {
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        self.store.read(script, "", &args).await
    }

    fn topics(&self) -> Vec<Topic> {
        self.patterns.iter().filter_map(Pattern::topic).collect()
    }

    fn has_wildcards(&self) -> bool {
        !self.patterns.wildcards().is_empty()
    }

    fn matches(&self, topic: &str) -> bool {
        self.patterns.matches(topic)
    }

    /// The gaps after `position`, and the retained messages after it.
    pub async fn read(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        if let Some((topics, upto)) = self.few_topics().await? {
            let (facts, mut page) = self.read_topics(&topics, position, limit).await?;
            // Read the order instead if a gap for the whole pattern is due, or if a new generation may have
            // brought topics with older messages.
            let is_whole = facts.began == upto.began && !is_far(&facts, position);
            if is_whole || !self.has_wildcards() {
                cut(&mut page, upto.newest);
                return Ok((facts, page));
            }
        }
        self.scan(position, limit).await
    }

    /// The topics that are read, if they are few, and the facts that the store gave when there were no
    /// others.
    async fn few_topics(&self) -> Result<Option<(Vec<Topic>, Bound)>, LogError> {
        let named = self.patterns.topics().len();
        // If all topics of a pattern may get gaps of their own, it needs no gap of all of them.
        let most = match self.patterns.wildcards().len() {
            0 => MAX_READ_TOPICS,
            patterns => MAX_READ_TOPICS.min(max_gaps(patterns)),
        };
        let texts: Option<Vec<_>> = self.patterns.wildcards().iter().map(Pattern::literal_start).collect();
        let (Some(texts), Some(room)) = (texts, most.checked_sub(named)) else { return Ok(None) };
        let mut topics = self.topics();
        if texts.is_empty() {
            return Ok(Some((topics, Bound { began: Id::ZERO, newest: Id::MAX })));
        }
        let room = room.to_string();
        let args: Vec<_> = std::iter::once(&*room).chain(texts).collect();
        let Names { facts, topics: under } = self.run(&self.store.scripts.names, &args).await?;
        let Some(under) = under else { return Ok(None) };
        let names = under.iter().filter_map(|name| std::str::from_utf8(name).ok());
        let under: BTreeSet<Topic> =
            names.filter(|name| self.matches(name)).flat_map(|name| name.parse()).collect();
        topics.extend(under.into_iter().filter(|topic| !self.patterns.names(topic)));
        Ok(Some((topics, Bound { began: facts.began, newest: facts.newest })))
    }

    async fn read_topics(
        &self,
        topics: &[Topic],
        position: &Position,
        limit: usize,
    ) -> Result<(Facts, Page), LogError> {
        let mut args = vec![limit.to_string()];
        for topic in topics {
            args.extend([topic.to_string(), position.given(topic).to_string()]);
        }
        let TopicsPage { facts, end, topics: retained, mut found } =
            self.run(&self.store.scripts.read, &args).await?;
        let standing = facts.standing(position);
        found.retain(|found| found.stored.id <= standing.upto);
        let next = retained.iter().filter_map(Retained::next).min();
        let told = standing.told_upto(next.unwrap_or(Id::MAX)).max(position.told);
        let mut page =
            Page { told, checked: position.checked, end: end.min(standing.upto), ..Page::default() };
        page.past = next.map_or(page.end, |next| page.end.min(next.before()));
        for (topic, retained) in topics.iter().zip(&retained) {
            page.gaps.extend(standing.gap(&topic.into(), position.told_upto(topic), retained.loss(&facts)));
        }

        let mut accounted: Vec<Accounted> = topics
            .iter()
            .zip(&retained)
            .map(|(topic, retained)| Accounted {
                upto: position.told_upto(topic).max(retained.complete_after(facts.forgotten)),
                has_message: false,
            })
            .collect();
        for FoundStored { number, stored } in found {
            let Some(index) = number.checked_sub(1).filter(|index| *index < topics.len()) else { continue };
            if !accounted[index].take(&mut page, &topics[index], &stored) {
                break;
            }
        }
        Ok((facts, page))
    }

    async fn scan(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        let told = position.told.max(position.cursor);
        let Scanned { facts, end, mut order, .. } = self.scan_order(position.cursor).await?;
        // Read the marks after the order. A message that left the order before it was read has left its mark
        // by now.
        let (gone, marked) = self.gone(told.max(position.checked.newest), &facts).await?;
        let standing = facts.standing(position);
        order.retain(|(id, _)| *id <= standing.upto);
        let checked = Mark { newest: marked, nth: 0 };
        let mut page = Page { checked, end: end.min(standing.upto), ..Page::default() };

        // Find the scanned messages that are to be given.
        let mut wanted: Vec<(Topic, Id)> = Vec::new();
        for (id, name) in named(&order) {
            if !self.matches(name) || id <= position.given(name) {
                continue;
            }
            if wanted.len() == limit {
                page.end = wanted.last().map_or(page.end, |(_, id)| *id);
                break;
            }
            if let Ok(topic) = name.parse() {
                wanted.push((topic, id));
            }
        }
        page.past = wanted.first().map_or(page.end, |(_, id)| id.before()).min(page.end);

        let (gaps, next) = self.gaps(&gone, position, &facts).await?;
        page.gaps = gaps;
        page.told = standing.told_upto(next).max(position.told).max(facts.forgotten);
        // Read the messages after the losses. A message that goes in between is missing, and is told below.
        let found = self.fetch(&wanted, &[], position, Some(&facts)).await?.messages;
        if found.len() < wanted.len() {
            // Not all of the messages fit on the page.
            page.end = wanted[found.len().max(1) - 1].1;
        }
        let mut missing: HashMap<Topic, Id> = HashMap::new();
        for ((topic, id), sought) in wanted.into_iter().zip(found) {
            match sought {
                Sought::Stored(stored) => match stored.message(&topic) {
                    Some(message) => page.messages.push(message),
                    None => {
                        say_unreadable(&topic, &stored);
                        missing.insert(topic, id);
                    }
                },
                // A gap about the deletion was told when its mark was seen.
                Sought::Missing { marked: at, deleted } if deleted > id && at <= marked => {}
                // The message went between two reads, or another program took it.
                Sought::Missing { .. } => _ = missing.insert(topic, id),
            }
        }
        for gap in &page.gaps {
            missing.retain(|topic, id| gap.topic.as_str() != &**topic || gap.floor < *id);
        }
        missing.retain(|topic, id| position.told_upto(topic) < *id);
        self.tell_missing(&mut page, position, missing).await?;
        Ok((facts, page))
    }

    /// The gaps of the topics that lost messages, and of patterns with too many such topics. Also returns the oldest
    /// retained message of all of these.
    async fn gaps(
        &self,
        gone: &HashMap<Topic, Id>,
        position: &Position,
        facts: &Facts,
    ) -> Result<(Vec<Gap>, Id), LogError> {
        let standing = facts.standing(position);
        // A gap of the pattern tells everything that was lost before this.
        let told = standing.told_upto(Id::ZERO).max(facts.forgotten);
        let is_lost = |(topic, gone): &(&Topic, &Id)| position.told_upto(topic).max(told) < **gone;
        let mut lost: BTreeSet<Topic> = gone.iter().filter(is_lost).map(|(topic, _)| topic.clone()).collect();
        let mut wide: HashSet<&Pattern> = HashSet::new();
        if is_far(facts, position) {
            lost.extend(self.topics());
            wide.extend(self.patterns.wildcards());
        }
        let most = max_gaps(self.patterns.wildcards().len());
        let (mut gaps, mut next, mut counts) = (Vec::new(), Id::MAX, HashMap::new());
        for topics in lost.into_iter().collect::<Vec<_>>().chunks(TOPIC_BATCH) {
            let topics: Vec<_> =
                topics.iter().filter(|topic| self.is_told_alone(topic, &wide)).cloned().collect();
            let found = self.fetch(&[], &topics, position, Some(facts)).await?.topics;
            for (topic, retained) in topics.iter().zip(found) {
                next = retained.next().map_or(next, |first| first.min(next));
                let gap = standing.gap(&topic.into(), position.told_upto(topic), retained.loss(facts));
                let Some(gap) = gap else { continue };
                self.patterns.for_each_wildcard(topic, |pattern| {
                    let count = counts.entry(pattern).or_insert(0);
                    *count += 1;
                    if *count > most {
                        wide.insert(pattern);
                    }
                });
                gaps.push((topic.clone(), gap));
            }
        }
        gaps.retain(|(topic, _)| self.is_told_alone(topic, &wide));
        let mut gaps: Vec<_> = gaps.into_iter().map(|(_, gap)| gap).collect();
        if !wide.is_empty() {
            let oldest = self.oldest_of_wildcards(position.cursor).await?;
            next = next.min(oldest.first());
            let reason = standing.reason(position.told.max(position.cursor), Id::ZERO);
            let gap = |pattern: &Pattern| Gap {
                topic: pattern.clone(),
                next: oldest.of(pattern),
                reason,
                floor: Id::ZERO,
            };
            gaps.extend(wide.into_iter().map(gap));
        }
        Ok((gaps, next))
    }

    /// True if a gap of `topic` is told by itself: it is named, or a pattern matches it that gets no gap of its own.
    fn is_told_alone(&self, topic: &Topic, wide: &HashSet<&Pattern>) -> bool {
        let mut is_alone = self.patterns.names(topic);
        self.patterns.for_each_wildcard(topic, |pattern| is_alone |= !wide.contains(pattern));
        is_alone
    }

    /// Tells a gap for messages that are in the order and not in their streams.
    async fn tell_missing(
        &self,
        page: &mut Page,
        position: &Position,
        missing: HashMap<Topic, Id>,
    ) -> Result<(), LogError> {
        let mut beyond = position.clone();
        for (topic, id) in &missing {
            beyond.raise_floor(topic.clone(), *id);
        }
        let missing: Vec<_> = missing.into_iter().collect();
        let topics: Vec<_> = missing.iter().map(|(topic, _)| topic.clone()).collect();
        let found = self.fetch(&[], &topics, &beyond, None).await?;
        for ((topic, id), retained) in missing.into_iter().zip(found.topics) {
            let (next, floor) = (retained.next(), retained.complete_after(Id::ZERO).max(id));
            page.gaps.retain(|gap| gap.topic.as_str() != &*topic);
            // Messages from before the hole must not come after its gap.
            page.messages.retain(|message| message.topic != topic || message.id > floor);
            let reason = if retained.deleted > id { Reason::Deleted } else { Reason::Retention };
            page.gaps.push(Gap { topic: (&topic).into(), next, reason, floor });
        }
        Ok(())
    }

    /// Fetches the `wanted` messages, as many as fit, and reads what is retained of other topics after
    /// `position`.
    async fn fetch(
        &self,
        wanted: &[(Topic, Id)],
        others: &[Topic],
        position: &Position,
        known: Option<&Facts>,
    ) -> Result<Retrieved, LogError> {
        let mut retrieved = Retrieved::default();
        let (first, rest) = others.split_at(others.len().min(TOPIC_BATCH));
        for others in [first].into_iter().chain(rest.chunks(TOPIC_BATCH)) {
            let wanted = if retrieved.topics.is_empty() { wanted } else { &[] };
            if wanted.is_empty() && others.is_empty() {
                continue;
            }
            let mut args = vec![wanted.len().to_string()];
            args.extend(wanted.iter().flat_map(|(topic, id)| [topic.to_string(), id.to_string()]));
            args.extend(
                others.iter().flat_map(|topic| [topic.to_string(), position.given(topic).to_string()]),
            );
            let Fetched { facts, messages, topics } = self.run(&self.store.scripts.fetch, &args).await?;
            if known.is_some_and(|known| !known.is_as(&facts)) {
                return Err(LogError::Unavailable);
            }
            retrieved.messages.extend(messages);
            retrieved.topics.extend(topics);
        }
        Ok(retrieved)
    }

    /// When each of the matching topics last lost messages, if that was after `after`. Also returns when the
    /// newest mark was set.
    async fn gone(&self, after: Id, facts: &Facts) -> Result<(HashMap<Topic, Id>, Id), LogError> {
        let mut gone = HashMap::new();
        let take = |members: Vec<(String, Id)>| {
            let marks = members.iter().filter_map(|(member, id)| Some((member.strip_prefix(',')?, *id)));
            let read = marks.filter(|(name, _)| self.matches(name));
            gone.extend(read.filter_map(|(name, id)| Some((name.parse::<Topic>().ok()?, id))));
        };
        let known = self.store.marks(after, take).await?;
        // Marks of another generation say nothing about the messages that were read.
        if known.is_as(facts) { Ok((gone, known.marked)) } else { Err(LogError::Unavailable) }
    }

    async fn scan_order(&self, after: Id) -> Result<Scanned, LogError> {
        loop {
            let scanned: Scanned = self.run(&self.store.scripts.scan, &[after.to_string()]).await?;
            // Each scan removes a thousand expired messages, for all readers that wait.
            if scanned.state != ScanState::Unswept {
                return Ok(scanned);
            }
        }
    }

    /// The oldest message after `after` of each pattern with a wildcard. One pass over the order serves all
    /// patterns.
    async fn oldest_of_wildcards(&self, after: Id) -> Result<Oldest<'_>, LogError> {
        let (mut oldest, mut after) = (Oldest { found: HashMap::new(), looked_upto: Id::MAX }, after);
        for _ in 0..MAX_SCANS {
            if oldest.found.len() == self.patterns.wildcards().len() {
                return Ok(oldest);
            }
            let Scanned { end, state, order, .. } = self.scan_order(after).await?;
            for (id, name) in named(&order) {
                self.patterns.for_each_wildcard(name, |pattern| {
                    oldest.found.entry(pattern).or_insert(id);
                });
            }
            if state == ScanState::AtEnd {
                return Ok(oldest);
            }
            after = end;
        }
        oldest.looked_upto = after;
        Ok(oldest)
    }
}

/// The oldest message of each pattern, in the part of the order that was searched.
struct Oldest<'a> {
    found: HashMap<&'a Pattern, Id>,
    looked_upto: Id,
}

impl Oldest<'_> {
    fn of(&self, pattern: &Pattern) -> Option<Id> {
        self.found.get(pattern).copied()
    }

    /// No message of any of the patterns comes before this id.
    fn first(&self) -> Id {
        self.found.values().copied().min().unwrap_or(Id::MAX).min(self.looked_upto)
    }
}

impl Retained {
    /// The oldest message after the point of the reader.
    fn next(&self) -> Option<Id> {
        Some(self.first).filter(|first| *first > Id::ZERO)
    }

    /// The id from which everything of the topic is retained, in the part that the reader has not been given.
    fn complete_after(&self, forgotten: Id) -> Id {
        match self.next() {
            Some(_) => self.prev,
            None if self.newest > Id::ZERO => self.newest,
            None => forgotten,
        }
    }

    fn loss(&self, facts: &Facts) -> Loss {
        Loss {
            complete_after: self.complete_after(facts.forgotten),
            next: self.next(),
            deleted: self.deleted,
        }
    }
}

/// True if each pattern gets a gap, because topics that the index no longer knows may have lost messages.
fn is_far(facts: &Facts, position: &Position) -> bool {
    facts.standing(position).is_at_boundary() || position.told.max(position.cursor) < facts.forgotten
}

/// Leaves messages newer than `upto` to the next page.
fn cut(page: &mut Page, upto: Id) {
    page.messages.retain(|message| message.id <= upto);
    (page.end, page.past) = (page.end.min(upto), page.past.min(upto));
}

/// The places of the order whose topics can be read.
fn named(order: &[(Id, Vec<u8>)]) -> impl Iterator<Item = (Id, &str)> {
    order.iter().filter_map(|(id, name)| Some((*id, std::str::from_utf8(name).ok()?)))
}

/// How far a page accounts for one topic: up to there each message is on the page, was given before, or is told as a gap.
struct Accounted {
    upto: Id,
    /// True if the page has a message of the topic.
    has_message: bool,
}

impl Accounted {
    /// Takes the next entry of the topic. False if the page ends before it.
    fn take(&mut self, page: &mut Page, topic: &Topic, stored: &Stored) -> bool {
        let message = stored.message(topic);
        if message.is_none() {
            say_unreadable(topic, stored);
        }
        // Up to here something is missing, unless the page accounts for it. An entry that is not a message may stand for
        // one that this version cannot read.
        let missing = if message.is_some() { stored.prev } else { stored.id };
        let next = message.is_some().then_some(stored.id);
        let is_hole = self.upto < missing;
        if is_hole && self.has_message {
            // The next page begins before the hole, and tells it.
            cut(page, missing.before());
            return false;
        }
        if !self.has_message {
            // The gap was told with the first entry as the next message, which it may not be.
            let told = page.gaps.iter_mut().find(|gap| gap.topic.as_str() == &**topic);
            match told {
                Some(gap) => (gap.next, gap.floor) = (next, gap.floor.max(missing)),
                None if is_hole => {
                    let reason = Reason::Retention;
                    page.gaps.push(Gap { topic: topic.into(), next, reason, floor: missing });
                }
                None => {}
            }
        }
        self.upto = self.upto.max(missing);
        if let Some(message) = message {
            self.upto = stored.id;
            self.has_message = true;
            page.messages.push(message);
        }
        true
    }
}

fn say_unreadable(topic: &Topic, stored: &Stored) {
    let id = stored.id;
    if stored.is_foreign {
        tracing::warn!(%topic, %id, "an entry behind this message is not from this program; it is passed over");
    } else {
        tracing::error!(%topic, %id, "a stored message cannot be read; readers get a gap");
    }
}
