//! Where a reader begins, what it has missed, and what is retained for it: read from the store.
//!
//! What a cursor means is decided here from what the scripts answer; nothing of it is kept.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    codec,
    facts::{Boundary, Facts, Num, Prev},
    store::Store,
};
use crate::{
    log::{Beginning, Gap, LogError, Page, Position, Reason, Start},
    message::{Id, Message, Pattern, PatternSet, Topic},
};

/// How many topics are read one by one. Readers of more look for them in the order of all messages.
const MAX_READ_TOPICS: usize = 500;
/// How many topics one script looks at, so that others get their turn.
const TOPIC_BATCH: usize = 200;
/// How many messages one script steps over to find where the newest so many begin.
const STEP_LIMIT: usize = 2000;
/// How many topics a pattern's `last` covers: those with the newest messages.
const MAX_LAST_TOPICS: usize = 1000;
/// How far is looked for the message behind a gap.
const MAX_SCANS: usize = 64;

/// What is retained of one topic: its newest id, when it was deleted, its oldest message after the reader's
/// point, and the one before that.
type Retained = (Num, Num, Num, Prev);
/// The newest id of a topic, the message to begin with, the one before that, and how many were passed.
type First = (Num, Num, Prev, usize);
/// Number of its topic, id, link, head, payload.
type Found = (usize, Num, Prev, Vec<u8>, Vec<u8>);

/// Id, link, head, payload.
pub type Entry = (Num, Prev, Vec<u8>, Vec<u8>);
/// What a scan says when it has come to the end.
const NO_MORE: u8 = 0;
/// What it says when too much has expired to know what is gone.
const UNSWEPT: u8 = 2;
/// Where the scan ended, whether there is more, and the order.
type Scanned = (Facts, Num, u8, Vec<(Num, String)>);
/// Link, head and payload of messages, each nothing if it is not there; and for other topics the oldest message
/// after a point, the one before that, and the newest id.
type Fetched = (Facts, Vec<Vec<Vec<u8>>>, Vec<(Num, Prev, Num)>);

/// What is gone of topics, and up to where each was deleted.
#[derive(Default)]
struct Marks {
    gone: HashMap<Topic, Id>,
    deleted: HashMap<Topic, Id>,
}

/// The parts of some messages, each nothing if it is not there, and where others begin.
#[derive(Default)]
struct Retrieved {
    messages: Vec<Vec<Vec<u8>>>,
    firsts: Vec<(Num, Prev, Num)>,
}

/// Reads the store.
pub struct Reading<'a> {
    pub store: &'a Store,
    pub patterns: &'a PatternSet,
}

impl Reading<'_> {
    async fn run<T: redis::FromRedisValue>(
        &self,
        script: &redis::Script,
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

    pub async fn begin(&self, start: &Start, newest: Id) -> Result<Beginning, LogError> {
        let position = match *start {
            Start::Now => Position::at(newest),
            Start::After(cursor) if cursor <= newest => Position::at(cursor),
            Start::After(_) | Start::Unreadable(_) => {
                let position = self.begin_with(Id::ZERO, None, newest).await?;
                return Ok(Beginning { position, gaps: self.unknown_gaps().await? });
            }
            Start::Everything => self.begin_with(Id::ZERO, None, newest).await?,
            Start::Since(time) => self.begin_with(time, None, newest).await?,
            Start::Last(count) => self.begin_with(Id::ZERO, Some(count), newest).await?,
        };
        Ok(Beginning { position, gaps: Vec::new() })
    }

    /// A gap for each topic and pattern, since nothing is known of the cursor.
    async fn unknown_gaps(&self) -> Result<Vec<Gap>, LogError> {
        let topics = self.topics();
        let firsts = self.fetch(&[], &topics, &Position::default()).await?.firsts;
        let firsts = firsts.into_iter().map(|(Num(first), ..)| Some(first).filter(|first| *first > Id::ZERO));
        let oldest = self.oldest_of_wildcards(Id::ZERO).await?;
        let wildcards = self.patterns.wildcards().iter();
        let known = topics.iter().map(Pattern::from).zip(firsts);
        let known = known.chain(wildcards.map(|pattern| (pattern.clone(), oldest.of(pattern))));
        let gap = |(topic, next)| Gap { topic, next, reason: Reason::UnknownCursor, floor: Id::ZERO };
        Ok(known.map(gap).collect())
    }

    /// Begins just before the oldest message of each topic since `since`, or the newest `last` of each.
    async fn begin_with(&self, since: Id, last: Option<usize>, newest: Id) -> Result<Position, LogError> {
        let mut topics = self.matching(since).await?;
        let mut covered = topics.len();
        if last.is_some() && covered > MAX_LAST_TOPICS && self.has_wildcards() {
            // A topic that is named is given however many others are newer.
            let is_named = |topic: &Topic| self.patterns.names(topic);
            let (named, others): (Vec<_>, Vec<_>) =
                topics.split_off(MAX_LAST_TOPICS).into_iter().partition(is_named);
            topics.extend(named);
            covered = topics.len();
            topics.extend(others);
        }
        let mut position = Position::at(newest);
        let mut firsts = self.firsts(&topics[..covered], since, last, &mut position.told).await?;
        firsts.extend(self.firsts(&topics[covered..], since, Some(0), &mut position.told).await?);
        for (_, first, ..) in firsts.iter().filter(|(_, first, ..)| first.0 > Id::ZERO) {
            position.cursor = position.cursor.min(first.0.before());
        }
        for (topic, (newest, first, prev, _)) in topics.iter().zip(firsts) {
            position.raise_floor(topic.clone(), if first.0 > Id::ZERO { prev.0 } else { newest.0 });
        }
        Ok(position)
    }

    /// Where to begin in each topic. Says from where on the store vouches: no cursor was given, so nothing from
    /// before that can be missed.
    async fn firsts(
        &self,
        topics: &[Topic],
        since: Id,
        last: Option<usize>,
        began: &mut Id,
    ) -> Result<Vec<First>, LogError> {
        let batch = last.map_or(TOPIC_BATCH, |count| (STEP_LIMIT / count.max(1)).clamp(1, TOPIC_BATCH));
        let mut firsts = Vec::with_capacity(topics.len());
        for topics in topics.chunks(batch) {
            let step = last.map_or("-1".to_owned(), |count| count.min(STEP_LIMIT).to_string());
            let mut args = vec![since.to_string(), step];
            args.extend(topics.iter().flat_map(|topic| [topic.to_string(), "+".to_owned()]));
            let (facts, mut found): (Facts, Vec<First>) = self.run(&self.store.scripts.begin, &args).await?;
            *began = facts.began.max(*began);
            if let (Some(count), [topic], [first]) = (last, topics, &mut found[..]) {
                self.step_back(topic, count, first).await?;
            }
            firsts.extend(found);
        }
        Ok(firsts)
    }

    /// Goes on where one step did not lead far enough back.
    async fn step_back(&self, topic: &Topic, count: usize, first: &mut First) -> Result<(), LogError> {
        let (mut passed, mut left) = (first.3, count.saturating_sub(first.3));
        while passed == STEP_LIMIT && left > 0 {
            let step = left.min(STEP_LIMIT).to_string();
            let args = ["0".to_owned(), step, topic.to_string(), format!("({}-0", first.1.0)];
            let (_, found): (Facts, Vec<First>) = self.run(&self.store.scripts.begin, &args).await?;
            let Some(further) = found.into_iter().next().filter(|(_, _, _, passed)| *passed > 0) else {
                break;
            };
            passed = further.3;
            left -= passed.min(left);
            *first = further;
        }
        Ok(())
    }

    /// The topics that are read, those of patterns newest first, and only such as may have something since `since`.
    async fn matching(&self, since: Id) -> Result<Vec<Topic>, LogError> {
        if !self.has_wildcards() {
            return Ok(self.topics());
        }
        let mut topics = HashMap::new();
        let take = |members: Vec<(String, Id)>| {
            let matching = members.into_iter().filter(|(name, _)| self.matches(name));
            topics.extend(matching.filter_map(|(name, id)| Some((name.parse::<Topic>().ok()?, id))));
        };
        self.store.index(since.before(), take).await?;
        let mut topics: Vec<_> = topics.into_iter().collect();
        topics.sort_unstable_by_key(|(_, newest)| Reverse(*newest));
        Ok(topics.into_iter().map(|(topic, _)| topic).collect())
    }

    /// The gaps after `position`, and what is retained after it.
    pub async fn read(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        if self.has_wildcards() || self.patterns.len() > MAX_READ_TOPICS {
            self.scan(position, limit).await
        } else {
            self.read_topics(position, limit).await
        }
    }

    async fn read_topics(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        let topics = self.topics();
        let mut args = vec![limit.to_string()];
        for topic in &topics {
            args.extend([topic.to_string(), position.given(topic).to_string()]);
        }
        let (facts, end, retained, mut found): (Facts, Num, Vec<Retained>, Vec<Found>) =
            self.run(&self.store.scripts.read, &args).await?;
        let standing = Standing::at(&facts, position);
        found.retain(|(_, id, ..)| id.0 <= standing.upto);
        let next = retained.iter().map(|(_, _, first, _)| first.0).filter(|first| *first > Id::ZERO).min();
        let told = standing.told_upto(position, next.unwrap_or(Id::MAX));
        let mut page = Page { told, end: end.0.min(standing.upto), ..Page::default() };
        let mut past = page.end;
        for (topic, (newest, deleted, first, prev)) in topics.iter().zip(&retained) {
            let complete_from = match (newest.0, first.0) {
                (Id::ZERO, _) => facts.forgotten,
                (newest, Id::ZERO) => newest,
                _ => prev.0,
            };
            if first.0 > Id::ZERO {
                past = past.min(first.0.before());
            }
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            let loss = Loss { complete_from, next, deleted: deleted.0 };
            page.gaps.extend(standing.gap(topic, position, loss));
        }
        page.past = past;

        let mut links: HashMap<usize, Id> = HashMap::new();
        for (number, id, prev, head, bytes) in found {
            let Some(topic) = number.checked_sub(1).and_then(|index| topics.get(index)) else { continue };
            // A hole in the midst was made by somebody else: the page ends before it, and the next one tells.
            if links.insert(number, id.0).is_some_and(|last| last < prev.0) {
                page.end = page.messages.last().map_or(page.end, |last| last.id);
                break;
            }
            match message(topic, id.0, prev.0, &head, &bytes) {
                Some(message) => page.messages.push(message),
                None => page.gaps.push(unreadable(topic, id.0)),
            }
        }
        Ok((facts, page))
    }

    async fn scan(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        let exact = self.topics();
        let told = position.told.max(position.cursor);
        let (facts, end, _, mut order) = self.scan_order(position.cursor).await?;
        // After the order: what left that before it was read has left its mark by now.
        let marks = self.marks(told, &facts).await?;
        let standing = Standing::at(&facts, position);
        order.retain(|(id, _)| id.0 <= standing.upto);
        let is_far = standing.is_at_boundary || told < facts.forgotten;
        let mut page = Page { end: end.0.min(standing.upto), ..Page::default() };
        let mut next = Id::MAX;
        if is_far {
            let oldest = self.oldest_of_wildcards(position.cursor).await?;
            next = oldest.first();
            let reason = standing.told().map_or(Reason::Retention, |boundary| boundary.reason);
            page.gaps.extend(self.patterns.wildcards().iter().map(|pattern| Gap {
                topic: pattern.clone(),
                next: oldest.of(pattern),
                reason,
                floor: Id::ZERO,
            }));
        }

        // Which of the scanned messages are to be given.
        let mut wanted: Vec<(Topic, Id)> = Vec::new();
        for (id, name) in &order {
            if !self.matches(name) || id.0 <= position.given(name) {
                continue;
            }
            if wanted.len() == limit {
                page.end = wanted.last().map_or(page.end, |(_, id)| *id);
                break;
            }
            if let Ok(topic) = name.parse() {
                wanted.push((topic, id.0));
            }
        }

        // Which topics may have lost something.
        let forgotten = facts.forgotten;
        let mut lost: HashSet<Topic> = HashSet::new();
        // What lay before a gap of the pattern was told by it.
        let told = standing.told().map_or(forgotten, |boundary| boundary.began.max(forgotten));
        let is_lost = |(topic, gone): &(&Topic, &Id)| position.vouched(topic).max(told) < **gone;
        lost.extend(marks.gone.iter().filter(is_lost).map(|(topic, _)| topic.clone()));
        if is_far {
            lost.extend(exact);
        }
        let lost: Vec<_> = lost.into_iter().collect();
        let found = self.fetch(&wanted, &lost, position).await?;
        page.past = wanted.first().map_or(page.end, |(_, id)| id.before()).min(page.end);
        if found.messages.len() < wanted.len() {
            // Not all of it fits.
            page.end = wanted[found.messages.len().max(1) - 1].1;
        }
        let firsts = found.firsts.iter().map(|(first, ..)| first.0).filter(|first| *first > Id::ZERO);
        page.told = standing.told_upto(position, firsts.fold(next, Id::min)).max(forgotten);
        for (topic, (first, prev, newest)) in lost.iter().zip(found.firsts) {
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            let complete_from = match (next, newest.0) {
                (Some(_), _) => prev.0,
                (None, Id::ZERO) => facts.forgotten,
                (None, newest) => newest,
            };
            let deleted = marks.deleted.get(topic).copied().unwrap_or_default();
            let loss = Loss { complete_from, next, deleted };
            page.gaps.extend(standing.gap(topic, position, loss));
        }
        let mut missing: HashMap<Topic, Id> = HashMap::new();
        for ((topic, id), parts) in wanted.into_iter().zip(found.messages) {
            if let [link, head, bytes] = &*parts {
                let prev =
                    std::str::from_utf8(link).ok().and_then(|link| link.split(' ').next()?.parse().ok());
                match message(&topic, id, prev.unwrap_or_default(), head, bytes) {
                    Some(message) => page.messages.push(message),
                    None => page.gaps.push(unreadable(&topic, id)),
                }
            } else {
                // It went between two looks, or somebody else took it.
                missing.insert(topic, id);
            }
        }
        for gap in &page.gaps {
            missing.retain(|topic, id| gap.topic.as_str() != &**topic || gap.floor < *id);
        }
        missing.retain(|topic, id| position.vouched(topic) < *id);
        self.tell_missing(&mut page, position, missing).await?;
        Ok((facts, page))
    }

    /// Tells of messages that the order has, and their streams have not.
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
        let found = self.fetch(&[], &topics, &beyond).await?;
        for ((topic, id), (first, prev, newest)) in missing.into_iter().zip(found.firsts) {
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            let floor = if next.is_some() { prev.0 } else { newest.0 }.max(id);
            page.gaps.retain(|gap| gap.topic.as_str() != &*topic);
            // Nothing before the hole is given after it was told.
            page.messages.retain(|message| message.topic != topic || message.id > floor);
            page.gaps.push(Gap { topic: (&topic).into(), next, reason: Reason::Retention, floor });
        }
        Ok(())
    }

    /// Fetches the `wanted` messages, as many as fit, and what is retained of other topics after `position`.
    async fn fetch(
        &self,
        wanted: &[(Topic, Id)],
        others: &[Topic],
        position: &Position,
    ) -> Result<Retrieved, LogError> {
        let mut retrieved = Retrieved::default();
        let (first, rest) = others.split_at(others.len().min(TOPIC_BATCH));
        for others in [first].into_iter().chain(rest.chunks(TOPIC_BATCH)) {
            let wanted = if retrieved.firsts.is_empty() { wanted } else { &[] };
            if wanted.is_empty() && others.is_empty() {
                continue;
            }
            let mut args = vec![wanted.len().to_string()];
            args.extend(wanted.iter().flat_map(|(topic, id)| [topic.to_string(), id.to_string()]));
            args.extend(
                others.iter().flat_map(|topic| [topic.to_string(), position.given(topic).to_string()]),
            );
            let (_, messages, firsts): Fetched = self.run(&self.store.scripts.fetch, &args).await?;
            retrieved.messages.extend(messages);
            retrieved.firsts.extend(firsts);
        }
        Ok(retrieved)
    }

    /// The marks of what is gone after `after`, of the topics that are read.
    async fn marks(&self, after: Id, facts: &Facts) -> Result<Marks, LogError> {
        let mut marks = Marks::default();
        let take = |members: Vec<(String, Id)>| {
            for (member, id) in members {
                let (sign, name) = member.split_at_checked(1).unwrap_or_default();
                if self.matches(name)
                    && let Ok(topic) = name.parse()
                {
                    let kind = if sign == "," { &mut marks.gone } else { &mut marks.deleted };
                    kind.insert(topic, id);
                }
            }
        };
        let began = self.store.marks(after, take).await?;
        // Those of another generation say nothing of what was read.
        if began == facts.began { Ok(marks) } else { Err(LogError::Unavailable) }
    }

    async fn scan_order(&self, after: Id) -> Result<Scanned, LogError> {
        loop {
            let scanned: Scanned = self.run(&self.store.scripts.scan, &[after.to_string()]).await?;
            // Each time removes a thousand of what has expired, for all who wait.
            if scanned.2 != UNSWEPT {
                return Ok(scanned);
            }
        }
    }

    /// The oldest message after `after` of each pattern with a wildcard. The order is looked through once for all.
    async fn oldest_of_wildcards(&self, after: Id) -> Result<Oldest<'_>, LogError> {
        let (mut oldest, mut after) = (Oldest { found: HashMap::new(), looked_upto: Id::MAX }, after);
        for _ in 0..MAX_SCANS {
            if oldest.found.len() == self.patterns.wildcards().len() {
                return Ok(oldest);
            }
            let (_, end, more, order) = self.scan_order(after).await?;
            for (Num(id), name) in &order {
                self.patterns.for_each_wildcard(name, |pattern| {
                    oldest.found.entry(pattern).or_insert(*id);
                });
            }
            if more == NO_MORE {
                return Ok(oldest);
            }
            after = end.0;
        }
        oldest.looked_upto = after;
        Ok(oldest)
    }
}

/// The oldest message of each pattern, as far as was looked.
struct Oldest<'a> {
    found: HashMap<&'a Pattern, Id>,
    looked_upto: Id,
}

impl Oldest<'_> {
    fn of(&self, pattern: &Pattern) -> Option<Id> {
        self.found.get(pattern).copied()
    }

    /// No message of any of the patterns comes before this.
    fn first(&self) -> Id {
        self.found.values().copied().min().unwrap_or(Id::MAX).min(self.looked_upto)
    }
}

/// Where a reader stands among the generations of the store.
struct Standing<'a> {
    facts: &'a Facts,
    /// The first generation that began after what the reader knows of.
    boundary: Option<&'a Boundary>,
    /// The reader has everything that came before that boundary, so it is told now.
    is_at_boundary: bool,
    /// What an earlier generation has left is read first, up to here: the gap lies behind it.
    upto: Id,
}

/// What is known of a topic that may have lost something.
struct Loss {
    /// It is complete only after this.
    complete_from: Id,
    /// The oldest message after the reader's point.
    next: Option<Id>,
    deleted: Id,
}

impl<'a> Standing<'a> {
    fn at(facts: &'a Facts, position: &Position) -> Self {
        let vouched = position.told.max(position.cursor);
        let boundary = facts.boundaries.iter().find(|boundary| boundary.began > vouched);
        let is_at_boundary = boundary.is_some_and(|boundary| position.cursor >= boundary.inherited);
        let is_ahead =
            |boundary: &&Boundary| boundary.began > vouched && position.cursor < boundary.inherited;
        let upto = facts.boundaries.iter().find(is_ahead).map_or(Id::MAX, |boundary| boundary.inherited);
        Self { facts, boundary, is_at_boundary, upto }
    }

    /// The boundary that is told now.
    fn told(&self) -> Option<&'a Boundary> {
        self.boundary.filter(|_| self.is_at_boundary)
    }

    /// Up to where boundaries were told, once this one is. Those between which nothing is retained are one gap: `next` is
    /// the oldest message that is retained of anything that is read.
    fn told_upto(&self, position: &Position, next: Id) -> Id {
        let Some(told) = self.told() else { return position.told };
        let boundaries = self.facts.boundaries.iter().map(|boundary| boundary.began);
        let folded = boundaries.filter(|began| *began < next).max();
        folded.unwrap_or_default().max(told.began).max(position.told)
    }

    /// What `topic` has lost.
    fn gap(&self, topic: &Topic, position: &Position, loss: Loss) -> Option<Gap> {
        let Loss { complete_from, next, deleted } = loss;
        let vouched = position.vouched(topic);
        let upto = complete_from.max(self.told().map_or(Id::ZERO, |boundary| boundary.began));
        if vouched >= upto {
            return None;
        }
        let reason = match self.told() {
            Some(boundary) => boundary.reason,
            None if vouched < deleted => Reason::Deleted,
            None => Reason::Retention,
        };
        // Nothing of this topic lies between here and there, so no other boundary on the way is told for it.
        let nothing_until = self.told().map(|_| next.map_or(self.facts.newest, Id::before));
        let floor = nothing_until.map_or(complete_from, |until| until.max(complete_from));
        Some(Gap { topic: topic.into(), next, reason, floor })
    }
}

/// A stored message; nothing if it was not stored by us.
pub fn message(topic: &Topic, id: Id, prev: Id, head: &[u8], bytes: &[u8]) -> Option<Arc<Message>> {
    let draft = codec::draft(topic.clone(), head, bytes)?;
    let message = Message::new(draft, id, prev);
    // Who reads what is old renders it for itself.
    message.cool();
    Some(message)
}

/// A message that this version cannot read, or that somebody else wrote, is told as a gap of its own.
fn unreadable(topic: &Topic, id: Id) -> Gap {
    tracing::error!(%topic, %id, "a stored message cannot be read; its readers are told a gap");
    Gap { topic: topic.into(), next: None, reason: Reason::Retention, floor: id }
}
