//! Where a reader begins, sought in steps between which others have the lock.

use std::{
    collections::HashMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::State;
use crate::{
    log::{Beginning, Gap, Mark, Position, Reason, Start, Tail},
    message::{Id, Message, Pattern, PatternSet, Topic},
};

/// How many topics a pattern's `last` covers: those with the newest messages.
const MAX_LAST_TOPICS: usize = 1000;

/// A search that is under way.
///
/// Losses are checked from when it began: what is lost while it goes on is told by the first read, unless it lay
/// before what was found.
#[derive(Debug)]
pub struct Seeking<'a> {
    patterns: &'a PatternSet,
    what: What,
    begun: Option<Begun>,
    /// How many of the named topics were looked at.
    looked: usize,
    /// Up to where the order was looked at.
    searched: Option<Id>,
    /// Just before the oldest message that was found to be given.
    cursor: Id,
    floors: HashMap<Topic, Id>,
    /// How many topics were chosen that are not named.
    chosen: usize,
    /// The oldest message of each topic and pattern that is given.
    firsts: HashMap<Pattern, Id>,
}

/// What is to be given.
#[derive(Clone, Copy, Debug)]
enum What {
    After(Id),
    /// The same, and it is told that the cursor is unknown.
    Unknown,
    Last(usize),
}

/// The log as it was when the search began.
#[derive(Clone, Copy, Debug)]
struct Begun {
    newest: Id,
    forgotten: Id,
    lost: Mark,
}

impl<'a> Seeking<'a> {
    /// None where nothing has to be sought: the position is known.
    pub fn new(patterns: &'a PatternSet, start: &Start, newest: Id) -> Result<Self, Position> {
        let what = match *start {
            Start::Now => return Err(Position::at(newest)),
            Start::After(cursor) if cursor <= newest => return Err(Position::at(cursor)),
            Start::After(_) | Start::Unreadable(_) => What::Unknown,
            Start::Everything => What::After(Id::ZERO),
            Start::Since(time) => What::After(time.before()),
            Start::Last(count) => What::Last(count),
        };
        Ok(Self {
            patterns,
            what,
            begun: None,
            looked: 0,
            searched: None,
            cursor: Id::MAX,
            floors: HashMap::new(),
            chosen: 0,
            firsts: HashMap::new(),
        })
    }

    /// Begins with `message`, if that is before what was found so far.
    fn found(&mut self, message: &Message) {
        self.cursor = self.cursor.min(message.id.before());
    }

    /// Chooses from where on the messages of a topic are given.
    fn choose(&mut self, topic: Topic, first: Option<&Message>, newest: Id) {
        first.into_iter().for_each(|message| self.found(message));
        self.floors.insert(topic, first.map_or(newest, |message| message.prev));
    }

    /// What was found, once the last step is done.
    pub fn into_beginning(self) -> Beginning {
        let Some(Begun { newest, forgotten, lost }) = self.begun else { return Beginning::default() };
        let others = if self.chosen == MAX_LAST_TOPICS { newest } else { Id::ZERO };
        let mut position = Position::with_floors(self.cursor.min(newest), self.floors, others);
        // What was lost before is no gap to a reader that has no cursor.
        (position.told, position.checked) = (forgotten, lost);
        let gap = |pattern: &Pattern| {
            let next = self.firsts.get(pattern).copied();
            Gap { topic: pattern.clone(), next, reason: Reason::UnknownCursor, floor: Id::ZERO }
        };
        let is_unknown = matches!(self.what, What::Unknown);
        Beginning { position, gaps: self.patterns.iter().filter(|_| is_unknown).map(gap).collect() }
    }
}

impl What {
    fn first(self, tail: &Tail) -> Option<Arc<Message>> {
        let ring = tail.ring();
        match self {
            Self::After(id) => ring.after(id).cloned(),
            Self::Unknown => ring.oldest().cloned(),
            Self::Last(count) => ring.nth_newest(count).cloned(),
        }
    }
}

impl State {
    /// Goes on with a search, looking at up to `budget` entries. True once it is done.
    pub fn seek_on(&self, seeking: &mut Seeking<'_>, mut budget: usize) -> bool {
        let (newest, forgotten, lost) = (self.newest, self.forgotten, self.losses.last());
        let begun = *seeking.begun.get_or_insert(Begun { newest, forgotten, lost });
        if !self.seek_topics(seeking, &mut budget) {
            return false;
        }
        if seeking.patterns.wildcards().is_empty() {
            return true;
        }
        if budget == 0 {
            return false;
        }
        match seeking.what {
            What::After(id) => self.seek_first(seeking, id, budget),
            What::Unknown => self.seek_firsts(seeking, budget),
            What::Last(0) => true,
            What::Last(_) => self.seek_newest(seeking, begun.newest, budget),
        }
    }

    /// Chooses for the topics that are named.
    fn seek_topics(&self, seeking: &mut Seeking<'_>, budget: &mut usize) -> bool {
        let patterns = seeking.patterns;
        let topics = &patterns.topics()[seeking.looked..];
        for pattern in topics.iter().take(*budget) {
            let first = self.tails.get(pattern.as_str()).and_then(|tail| seeking.what.first(tail));
            let newest = self.index.get(pattern.as_str()).map_or(Id::ZERO, |known| known.newest);
            if let Some(message) = &first {
                seeking.firsts.insert(pattern.clone(), message.id);
            }
            pattern.topic().into_iter().for_each(|topic| seeking.choose(topic, first.as_deref(), newest));
            seeking.looked += 1;
            *budget -= 1;
        }
        seeking.looked == patterns.topics().len()
    }

    /// Looks for the oldest message after `after` that some pattern matches.
    fn seek_first(&self, seeking: &mut Seeking<'_>, after: Id, budget: usize) -> bool {
        let from = seeking.searched.unwrap_or(after);
        for (searched, (id, tail)) in self.order.range((Excluded(from), Unbounded)).enumerate() {
            // Where a named topic begins, the patterns cannot make it begin later.
            if id.before() >= seeking.cursor {
                return true;
            }
            if seeking.patterns.matches(tail.name().as_str()) {
                seeking.cursor = id.before();
                return true;
            }
            if searched + 1 == budget {
                seeking.searched = Some(*id);
                return false;
            }
        }
        true
    }

    /// Looks for the oldest message of each pattern.
    fn seek_firsts(&self, seeking: &mut Seeking<'_>, budget: usize) -> bool {
        let patterns = seeking.patterns;
        let from = seeking.searched.unwrap_or(Id::ZERO);
        for (searched, (id, tail)) in self.order.range((Excluded(from), Unbounded)).enumerate() {
            let (name, known) = (tail.name().as_str(), seeking.firsts.len());
            let firsts = &mut seeking.firsts;
            patterns.for_each_wildcard(name, |pattern| {
                firsts.entry(pattern.clone()).or_insert(*id);
                seeking.cursor = seeking.cursor.min(id.before());
            });
            let is_found = |pattern| seeking.firsts.contains_key(pattern);
            if seeking.firsts.len() > known && patterns.wildcards().iter().all(is_found) {
                return true;
            }
            if searched + 1 == budget {
                seeking.searched = Some(*id);
                return false;
            }
        }
        true
    }

    /// Chooses the topics with the newest messages.
    fn seek_newest(&self, seeking: &mut Seeking<'_>, newest: Id, budget: usize) -> bool {
        let until = seeking.searched.unwrap_or(Id::new(newest.get() + 1));
        for (searched, (id, tail)) in self.order.range(..until).rev().enumerate() {
            let name = tail.name();
            if seeking.patterns.matches(name.as_str()) && !seeking.floors.contains_key(name.as_str()) {
                let first = seeking.what.first(tail);
                name.topic().into_iter().for_each(|topic| seeking.choose(topic, first.as_deref(), *id));
                seeking.chosen += 1;
            }
            if seeking.chosen == MAX_LAST_TOPICS {
                return true;
            }
            if searched + 1 == budget {
                seeking.searched = Some(*id);
                return false;
            }
        }
        true
    }
}
