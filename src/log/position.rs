//! The position of a reader, and the gaps that it is told.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::message::{Id, Message, Pattern, Topic};

/// How many topics `last` covers for a pattern: those with the newest messages.
pub const MAX_LAST_TOPICS: usize = 1000;
/// How many topics are read one by one. A reader of more topics finds their messages in the order.
pub const MAX_READ_TOPICS: usize = 500;

/// The point from which a reader begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From now on.
    Now,
    /// Everything after this cursor. Only this start and an unreadable cursor can have a gap.
    After(Id),
    /// Everything that is retained.
    Everything,
    /// This many of the newest messages of each topic.
    Last(usize),
    /// The messages that were published at this time or later.
    Since(Id),
    /// A text that is no cursor, as gaps repeat it.
    Unreadable(String),
}

/// The point up to which a subscription has been given everything.
///
/// Usually this is only a cursor. Some topics may have been given further than the cursor: those that begin
/// later (`last`, `since`), and those whose gap was told. Each has a floor until the cursor has passed it.
#[derive(Clone, Debug, Default)]
pub struct Position {
    pub cursor: Id,
    /// All gaps before this have been told.
    pub told: Id,
    /// The log has already looked for losses up to this mark, if it numbers them.
    pub checked: Mark,
    /// The topics that were given further than the cursor. Reads that are under way share this.
    floors: Option<Arc<Floors>>,
}

/// A moment in the losses of a log: the newest id at that time, and the number of the loss. The log in Redis counts by
/// ids alone: its marks have ids of their own, each newer than the one before.
///
/// A lost message had been published, so its id is at most the id of the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub newest: Id,
    pub nth: u64,
}

impl Mark {
    /// Covers every loss from the time when nothing newer than `newest` existed. All those messages have ids
    /// up to `newest`.
    pub fn at(newest: Id) -> Self {
        Self { newest, nth: u64::MAX }
    }
}

/// The floors: how far topics have been given.
#[derive(Clone, Debug, Default)]
struct Floors {
    topics: HashMap<Topic, Id>,
    /// The floor of all topics without one of their own.
    others: Id,
}

impl Floors {
    fn of(&self, name: &str) -> Id {
        match self.topics.get(name) {
            Some(floor) => *floor,
            // The cursor alone says how far a pattern has been given.
            None if name.contains('*') => Id::ZERO,
            None => self.others,
        }
    }
}

impl Position {
    /// A position at which every topic was given up to `cursor`.
    pub fn at(cursor: Id) -> Self {
        Self { cursor, ..Self::default() }
    }

    /// A position at which some topics are given further than the cursor: each up to its floor, and all
    /// others up to `others`.
    pub fn with_floors(cursor: Id, topics: HashMap<Topic, Id>, others: Id) -> Self {
        let mut position = Self { floors: Some(Arc::new(Floors { topics, others })), ..Self::at(cursor) };
        position.drop_floors();
        position
    }

    /// The point up to which this topic has been given.
    pub fn given(&self, topic: &str) -> Id {
        self.floors.as_ref().map_or(self.cursor, |floors| self.cursor.max(floors.of(topic)))
    }

    /// From this id on, the cursor alone says how far topics without a floor were given.
    pub fn settled(&self) -> Id {
        self.floors.as_ref().map_or(self.cursor, |floors| self.cursor.max(floors.others))
    }

    /// The topics with a floor of their own.
    pub fn floored(&self) -> impl Iterator<Item = &Topic> {
        self.floors.iter().flat_map(|floors| floors.topics.keys())
    }

    /// True if some topics were given further than the cursor.
    pub fn has_floors(&self) -> bool {
        self.floors.is_some()
    }

    /// Every gap of this topic up to this id has been told: a loss is a gap only after it.
    pub fn told_upto(&self, topic: &str) -> Id {
        self.given(topic).max(self.told)
    }

    /// Notes that `topic` was given up to `floor`, if that is further than before.
    pub fn raise_floor(&mut self, topic: Topic, floor: Id) {
        let floor = floor.max(self.given(&topic));
        if floor > self.cursor {
            Arc::make_mut(self.floors.get_or_insert_default()).topics.insert(topic, floor);
        }
    }

    /// Moves the cursor, and drops the floors that it has passed.
    pub fn advance(&mut self, cursor: Id) {
        self.cursor = self.cursor.max(cursor);
        self.drop_floors();
    }

    fn drop_floors(&mut self) {
        let Some(floors) = &mut self.floors else { return };
        // Until the cursor has passed `others`, a floor that it has passed still shows that `others` is not
        // about its topic.
        if floors.others > self.cursor {
            return;
        }
        let floors = Arc::make_mut(floors);
        floors.topics.retain(|_, floor| *floor > self.cursor);
        if floors.topics.is_empty() {
            self.floors = None;
        }
    }

    /// Merges the position of another reader at the same cursor. Both must have [settled](Self::settled).
    /// Each closure says which topics its reader reads. A topic that both read is given from the lower of
    /// their two points.
    pub fn join(&mut self, other: &Self, is_ours: impl Fn(&str) -> bool, is_theirs: impl Fn(&str) -> bool) {
        let given = |topic: &Topic| {
            let ours = is_ours(topic).then(|| self.given(topic));
            let theirs = is_theirs(topic).then(|| other.given(topic));
            let floor = ours.into_iter().chain(theirs).min().filter(|floor| *floor > self.cursor)?;
            Some((topic.clone(), floor))
        };
        let known =
            [&self.floors, &other.floors].into_iter().flatten().flat_map(|floors| floors.topics.keys());
        let topics: HashMap<_, _> = known.filter_map(given).collect();
        self.floors = (!topics.is_empty()).then(|| Arc::new(Floors { topics, others: Id::ZERO }));
        // A gap of either may be told twice, but is never left out.
        self.told = self.told.min(other.told);
        self.checked = self.checked.min(other.checked);
    }
}

/// The result of the search for a [`Start`].
#[derive(Debug, Default)]
pub struct Beginning {
    pub position: Position,
    /// A gap for each topic and pattern, if the cursor was ahead of the store or unreadable.
    pub gaps: Vec<Gap>,
}

/// One read of the log.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The gaps, to be told before the messages.
    pub gaps: Vec<Gap>,
    /// All gaps before this have been told, once those of this page are.
    pub told: Id,
    /// See [`Position::checked`].
    pub checked: Mark,
    /// The messages, in the order of their ids.
    pub messages: Vec<Message>,
    /// A point past the gaps. Every retained message that the reader has not been given comes after it.
    pub past: Id,
    /// The page is complete up to here.
    pub end: Id,
}

/// A notice that messages are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The topic, or the pattern if the topics are not known.
    pub topic: Pattern,
    /// The oldest retained message after the gap.
    pub next: Option<Id>,
    pub reason: Reason,
    /// How far the topic counts as given once the gap has been told.
    pub floor: Id,
}

/// Why messages are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Trimmed, expired or evicted.
    Retention,
    /// Deleted on request.
    Deleted,
    /// The store began anew.
    Restarted,
    /// The store may have lost its newest messages.
    Failover,
    /// The cursor is ahead of the store, or cannot be read.
    UnknownCursor,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Retention, Self::Deleted, Self::Restarted, Self::Failover, Self::UnknownCursor];

    /// The word of the reason, as it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Deleted => "deleted",
            Self::Restarted => "restarted",
            Self::Failover => "failover",
            Self::UnknownCursor => "unknown_cursor",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_reader_is_told_the_gaps_of_both() {
        let topic = |name: &str| name.parse::<Topic>().expect("a topic");
        let mut one =
            Position { told: Id::new(9), checked: Mark::at(Id::new(4)), ..Position::at(Id::new(5)) };
        one.raise_floor(topic("a"), Id::new(8));
        one.raise_floor(topic("both"), Id::new(8));
        one.raise_floor(topic("left"), Id::new(8));
        let mut other = Position { told: Id::new(6), ..Position::at(Id::new(5)) };
        other.raise_floor(topic("a"), Id::new(7));
        other.raise_floor(topic("b"), Id::new(7));
        other.raise_floor(topic("both"), Id::new(6));
        one.join(&other, |topic| ["a", "both"].contains(&topic), |topic| ["b", "both"].contains(&topic));
        assert_eq!((one.cursor, one.told, one.checked), (Id::new(5), Id::new(6), Mark::default()));
        let given = ["a", "b", "both", "left"].map(|name| one.given(name).get());
        assert_eq!(given, [8, 7, 6, 5], "a topic of both is given from the lower point");
    }
    #[test]
    fn topics_that_were_not_chosen_are_given_from_the_choice_on() {
        let topic = |name: &str| name.parse::<Topic>().expect("a topic");
        let chosen = [("a", 3), ("b", 7)].map(|(name, floor)| (topic(name), Id::new(floor)));
        let mut position = Position::with_floors(Id::new(5), chosen.into(), Id::new(9));
        let given = |position: &Position| ["a", "b", "c", "*"].map(|name| position.given(name).get());
        assert_eq!((given(&position), position.settled()), ([5, 7, 9, 5], Id::new(9)));
        position.advance(Id::new(8));
        assert_eq!(given(&position), [8, 8, 9, 8]);
        position.raise_floor(topic("a"), Id::new(9));
        assert_eq!(given(&position), [9, 8, 9, 8]);
        position.advance(Id::new(9));
        assert!(!position.has_floors());
        assert_eq!(position.settled(), Id::new(9));
    }
}
