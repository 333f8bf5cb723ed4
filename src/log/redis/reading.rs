//! Where a reader begins, what it has missed, and what is retained for it: read from the store.
//!
//! What a cursor means is decided here from what the scripts answer; nothing of it is kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{
    codec,
    facts::{Facts, Num, Prev},
    store::Store,
};
use crate::{
    log::{Beginning, Gap, LogError, Page, Position, Reason, Start},
    message::{Id, Message, Pattern, Topic},
};

/// How many bytes of payload one page may have. One message more is given, however large it is.
const PAGE_BYTES: usize = 1 << 20;
/// How many entries of the order one page looks at.
const SCAN_LIMIT: usize = 2000;
/// How many topics one script looks at, so that others get their turn.
const TOPIC_BATCH: usize = 200;
/// How many topics a pattern's `last` covers: those with the newest messages.
const MAX_LAST_TOPICS: usize = 1000;
/// How far is looked for the message behind a gap.
const MAX_SCANS: usize = 64;

/// What is retained of one topic: its newest id, when it was deleted, its oldest message after the reader's
/// point, and the one before that.
type Retained = (Num, Num, Num, Prev);
/// Number of its topic, id, link, head, payload.
type Found = (usize, Num, Prev, Vec<u8>, Vec<u8>);

/// Id, link, head, payload.
pub type Entry = (Num, Prev, Vec<u8>, Vec<u8>);
/// A topic with an id.
type Mark = (String, Num);
/// Where the scan ended, whether there is more, what is gone, what was deleted, the newest ids of topics, the order.
type Scanned = (Facts, Num, u8, Vec<Mark>, Vec<Mark>, Vec<Num>, Vec<(Num, String)>);
/// Link, head and payload of messages, each nothing if it is not there; and for other topics the oldest message
/// after a point, the one before that, and the newest id.
type Fetched = (Facts, Vec<Vec<Vec<u8>>>, Vec<(Num, Prev, Num)>);

/// Reads the store.
pub struct Reading<'a> {
    pub store: &'a Store,
    pub patterns: &'a [Pattern],
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

    fn matches(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(topic))
    }

    pub async fn begin(&self, start: &Start, newest: Id) -> Result<Beginning, LogError> {
        let position = match *start {
            Start::Now => Position::at(newest),
            Start::After(cursor) if cursor <= newest => Position::at(cursor),
            Start::After(_) | Start::Unreadable(_) => {
                let position = self.begin_with(Id::ZERO, None, newest).await?;
                let mut gaps = Vec::new();
                for pattern in self.patterns {
                    let next = self.oldest_matching(pattern, Id::ZERO).await?;
                    gaps.push(Gap {
                        topic: pattern.clone(),
                        next,
                        reason: Reason::UnknownCursor,
                        floor: Id::ZERO,
                    });
                }
                return Ok(Beginning { position, gaps });
            }
            Start::Everything => self.begin_with(Id::ZERO, None, newest).await?,
            Start::Since(time) => self.begin_with(time, None, newest).await?,
            Start::Last(count) => self.begin_with(Id::ZERO, Some(count), newest).await?,
        };
        Ok(Beginning { position, gaps: Vec::new() })
    }

    /// Begins just before the oldest message of each topic since `since`, or the newest `last` of each.
    async fn begin_with(&self, since: Id, last: Option<usize>, newest: Id) -> Result<Position, LogError> {
        let topics = self.matching().await?;
        let mut position = Position::at(newest);
        let mut floors = Vec::new();
        let args = [since.to_string(), last.map_or("-1".to_owned(), |count| count.to_string())];
        let is_bounded = self.patterns.iter().any(Pattern::has_wildcard);
        for (nth, topics) in topics.chunks(TOPIC_BATCH).enumerate() {
            let args = match last {
                Some(_) if is_bounded && nth * TOPIC_BATCH >= MAX_LAST_TOPICS => {
                    [since.to_string(), "0".to_owned()]
                }
                _ => args.clone(),
            };
            let args: Vec<&str> =
                args.iter().map(String::as_str).chain(topics.iter().map(|topic| &**topic)).collect();
            let (facts, firsts): (Facts, Vec<(Num, Num, Prev)>) =
                self.run(&self.store.scripts.begin, &args).await?;
            // No cursor was given, so nothing from before the store began can be missed.
            position.told = position.told.max(facts.began);
            for (topic, (known, first, prev)) in topics.iter().zip(firsts) {
                match first.0 {
                    Id::ZERO => floors.push((topic.clone(), known.0)),
                    first => {
                        position.cursor = position.cursor.min(first.before());
                        floors.push((topic.clone(), prev.0));
                    }
                }
            }
        }
        for (topic, floor) in floors {
            position.raise_floor(topic, floor);
        }
        Ok(position)
    }

    /// The topics that are read, those of patterns newest first.
    async fn matching(&self) -> Result<Vec<Topic>, LogError> {
        if !self.patterns.iter().any(Pattern::has_wildcard) {
            return Ok(self.topics());
        }
        let (_, names): (Facts, Vec<String>) = self.run(&self.store.scripts.topics, &[""; 0]).await?;
        let names = names.iter().rev().filter(|name| self.matches(name));
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The gaps after `position`, and what is retained after it.
    pub async fn read(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        if self.patterns.iter().any(Pattern::has_wildcard) {
            self.scan(position, limit).await
        } else {
            self.read_topics(position, limit).await
        }
    }

    async fn read_topics(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        let topics = self.topics();
        let mut args = vec![
            Id::MAX.to_string(),
            limit.to_string(),
            PAGE_BYTES.to_string(),
            position.told.max(position.cursor).to_string(),
            position.cursor.to_string(),
        ];
        for topic in &topics {
            args.extend([topic.to_string(), position.given(topic).to_string()]);
        }
        let (facts, end, retained, found): (Facts, Num, Vec<Retained>, Vec<Found>) =
            self.run(&self.store.scripts.read, &args).await?;
        let life = Life::at(&facts, position);
        let mut page = Page { told: life.told(position), end: end.0, ..Page::default() };
        let mut past = page.end;
        for (topic, (newest, deleted, first, prev)) in topics.iter().zip(&retained) {
            let complete_from = match (newest.0, first.0) {
                (Id::ZERO, _) => facts.forgotten.max(facts.began),
                (newest, Id::ZERO) => newest,
                _ => prev.0,
            };
            if first.0 > Id::ZERO {
                past = past.min(first.0.before());
            }
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            page.gaps.extend(life.gap(topic, position, complete_from, next, deleted.0));
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
            page.messages.extend(message(topic, id.0, prev.0, &head, &bytes));
        }
        Ok((facts, page))
    }

    async fn scan(&self, position: &Position, limit: usize) -> Result<(Facts, Page), LogError> {
        let exact = self.topics();
        let told = position.told.max(position.cursor);
        let mut args =
            vec![position.cursor.to_string(), told.to_string(), SCAN_LIMIT.to_string(), Id::MAX.to_string()];
        args.extend(exact.iter().map(|topic| topic.to_string()));
        let (facts, end, _is_full, gone, deleted, newest, order): Scanned =
            self.run(&self.store.scripts.scan, &args).await?;
        let deleted: HashMap<_, _> = deleted.into_iter().map(|(topic, id)| (topic, id.0)).collect();
        let life = Life::at(&facts, position);
        let mut page = Page { told: life.told(position).max(facts.forgotten), end: end.0, ..Page::default() };

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

        // Which topics have lost something.
        let mut lost: Vec<(Topic, Id)> = Vec::new();
        for (name, id) in gone.iter().filter(|(name, _)| self.matches(name)) {
            let vouched = position.vouched(name).max(facts.forgotten);
            if vouched < id.0 {
                lost.extend(name.parse().map(|topic| (topic, id.0)));
            }
        }
        for (topic, newest) in exact.iter().zip(newest) {
            if newest.0 == Id::ZERO {
                lost.push((topic.clone(), facts.forgotten.max(facts.began)));
            } else if life.is_before && !lost.iter().any(|(known, _)| known == topic) {
                lost.push((topic.clone(), facts.began));
            }
        }
        for pattern in self.patterns.iter().filter(|pattern| pattern.has_wildcard()) {
            let vouched = position.cursor.max(position.told);
            let has_forgotten = vouched < facts.forgotten;
            if life.is_before || has_forgotten {
                let next = self.oldest_matching(pattern, position.cursor).await?;
                let reason = if life.is_before { facts.reason } else { Reason::Retention };
                page.gaps.push(Gap { topic: pattern.clone(), next, reason, floor: Id::ZERO });
            }
        }
        if life.is_before {
            // The gaps of the patterns say it for all of their topics.
            lost.retain(|(topic, _)| exact.contains(topic));
        }
        self.fetch(&mut page, &facts, &life, position, &wanted, &lost, &deleted).await?;
        Ok((facts, page))
    }

    /// Fetches the `wanted` messages, and tells of what is `lost` and of what is not there any more.
    #[allow(clippy::too_many_arguments, reason = "one step of `scan`, which shares all of it")]
    async fn fetch(
        &self,
        page: &mut Page,
        facts: &Facts,
        life: &Life<'_>,
        position: &Position,
        wanted: &[(Topic, Id)],
        lost: &[(Topic, Id)],
        deleted: &HashMap<String, Id>,
    ) -> Result<(), LogError> {
        let mut told: HashSet<Topic> = HashSet::new();
        page.past = wanted.first().map_or(page.end, |(_, id)| id.before()).min(page.end);
        if wanted.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let mut args = vec![PAGE_BYTES.to_string(), wanted.len().to_string()];
        args.extend(wanted.iter().flat_map(|(topic, id)| [topic.to_string(), id.to_string()]));
        args.extend(
            lost.iter().flat_map(|(topic, _)| [topic.to_string(), position.given(topic).to_string()]),
        );
        let (_, found, firsts): Fetched = self.run(&self.store.scripts.fetch, &args).await?;
        if found.len() < wanted.len() {
            // Not all of it fits.
            page.end = wanted[found.len().max(1) - 1].1;
        }
        for ((topic, complete_from), (first, _, _)) in lost.iter().zip(&firsts) {
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            let deleted = deleted.get(&**topic).copied().unwrap_or_default();
            page.gaps.extend(life.gap(topic, position, *complete_from, next, deleted));
            told.insert(topic.clone());
        }
        let mut missing: Vec<(Topic, Id)> = Vec::new();
        for ((topic, id), parts) in wanted.iter().zip(found) {
            if let [link, head, bytes] = &*parts {
                let prev =
                    std::str::from_utf8(link).ok().and_then(|link| link.split(' ').next()?.parse().ok());
                page.messages.extend(message(topic, *id, prev.unwrap_or_default(), head, bytes));
            } else {
                // It went between two looks, or somebody else took it.
                match missing.iter_mut().find(|(known, _)| known == topic) {
                    Some((_, newest)) => *newest = *id,
                    None => missing.push((topic.clone(), *id)),
                }
            }
        }
        missing.retain(|(topic, id)| {
            let known = lost.iter().find(|(known, _)| known == topic);
            position.vouched(topic) < *id && known.is_none_or(|(_, upto)| upto < id)
        });
        if missing.is_empty() {
            return Ok(());
        }
        let mut args = vec![PAGE_BYTES.to_string(), "0".to_owned()];
        args.extend(missing.iter().flat_map(|(topic, id)| [topic.to_string(), id.to_string()]));
        let (_, _, firsts): Fetched = self.run(&self.store.scripts.fetch, &args).await?;
        for ((topic, id), (first, prev, newest)) in missing.iter().zip(&firsts) {
            let next = Some(first.0).filter(|first| *first > Id::ZERO);
            let floor = if next.is_some() { prev.0 } else { newest.0 }.max(*id);
            page.gaps.retain(|gap| gap.topic.as_str() != &**topic);
            page.gaps.push(Gap { topic: topic.into(), next, reason: Reason::Retention, floor });
            // Nothing before the hole is given after it was told.
            page.messages.retain(|message| message.topic != *topic || message.id > floor);
        }
        let _ = facts;
        Ok(())
    }

    async fn oldest_matching(&self, pattern: &Pattern, after: Id) -> Result<Option<Id>, LogError> {
        let scan = [Pattern::clone(pattern)];
        let reading = Reading { store: self.store, patterns: &scan };
        let mut after = after;
        for _ in 0..MAX_SCANS {
            let args = [after.to_string(), Id::MAX.to_string(), SCAN_LIMIT.to_string(), Id::MAX.to_string()];
            type Scanned =
                (Facts, Num, u8, Vec<(String, Num)>, Vec<(String, Num)>, Vec<Num>, Vec<(Num, String)>);
            let (_, end, is_full, _, _, _, order): Scanned =
                self.run(&self.store.scripts.scan, &args).await?;
            if let Some((id, _)) = order.iter().find(|(_, name)| reading.matches(name)) {
                return Ok(Some(id.0));
            }
            if is_full == 0 {
                return Ok(None);
            }
            after = end.0;
        }
        Ok(None)
    }
}

/// Where a reader stands in the lives of the store.
struct Life<'a> {
    facts: &'a Facts,
    /// It stands before this life, and has read what an earlier one has left.
    is_before: bool,
    /// It still reads that.
    is_in_earlier: bool,
}

impl<'a> Life<'a> {
    fn at(facts: &'a Facts, position: &Position) -> Self {
        let is_outside = position.told.max(position.cursor) < facts.began;
        let is_in_earlier = is_outside && position.cursor < facts.inherited;
        Self { facts, is_before: is_outside && !is_in_earlier, is_in_earlier }
    }

    fn told(&self, position: &Position) -> Id {
        if self.is_before { self.facts.began.max(position.told) } else { position.told }
    }

    /// What `topic` has lost, which is complete only after `complete_from`.
    fn gap(
        &self,
        topic: &Topic,
        position: &Position,
        complete_from: Id,
        next: Option<Id>,
        deleted: Id,
    ) -> Option<Gap> {
        let vouched = position.vouched(topic);
        let floor = if self.is_before { complete_from.max(self.facts.began) } else { complete_from };
        // What began later is told of once what came before it has been read.
        if vouched >= floor || (self.is_in_earlier && complete_from >= self.facts.began) {
            return None;
        }
        let reason = if self.is_before {
            self.facts.reason
        } else if vouched < deleted {
            Reason::Deleted
        } else {
            Reason::Retention
        };
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
