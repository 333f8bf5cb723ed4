//! Where a reader stands, and what it is told when something is missing.

use std::{collections::HashMap, sync::Arc};

use crate::message::{Id, Message, Pattern, Topic};

/// Where to begin to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From now on.
    Now,
    /// Everything after this cursor. The only start that can have a gap.
    After(Id),
    /// Everything retained.
    Everything,
    /// The newest so many messages of each topic.
    Last(usize),
    /// What was published at this time or later.
    Since(Id),
    /// A cursor that could not be read, as it was sent.
    Unreadable(String),
}

/// How far a subscription has been given everything.
///
/// Usually a cursor and nothing else. Until the cursor has passed them, some topics may be known
/// to be given further: those that begin later (`last`, `since`), and those whose gap was told.
#[derive(Clone, Debug, Default)]
pub struct Position {
    pub cursor: Id,
    /// No gap before this is still to be told.
    pub told: Id,
    /// How much the log had lost when it last looked for gaps of all topics, if it counts that.
    pub checked: Option<u64>,
    /// Given further than the cursor says. Shared with the reads of it that are under way.
    floors: Option<Arc<HashMap<Topic, Id>>>,
}

impl Position {
    pub fn at(cursor: Id) -> Self {
        Self { cursor, ..Self::default() }
    }

    /// The point up to which this topic has been given.
    pub fn given(&self, topic: &str) -> Id {
        let floor = self.floors.as_ref().and_then(|floors| floors.get(topic));
        floor.map_or(self.cursor, |floor| self.cursor.max(*floor))
    }

    /// Whether it is more than a cursor.
    pub fn has_floors(&self) -> bool {
        self.floors.is_some()
    }

    /// The point from which on a hole in this topic is a gap.
    pub fn vouched(&self, topic: &str) -> Id {
        self.given(topic).max(self.told)
    }

    pub fn raise_floor(&mut self, topic: Topic, floor: Id) {
        if floor > self.cursor {
            let known = Arc::make_mut(self.floors.get_or_insert_default()).entry(topic).or_default();
            *known = floor.max(*known);
        }
    }

    /// Moves on, and forgets the floors that the cursor has passed.
    pub fn advance(&mut self, cursor: Id) {
        self.cursor = self.cursor.max(cursor);
        if let Some(floors) = &mut self.floors {
            let floors = Arc::make_mut(floors);
            floors.retain(|_, floor| *floor > self.cursor);
            if floors.is_empty() {
                self.floors = None;
            }
        }
    }

    /// Reads on for another reader at the same cursor too. Either says which topics it reads: one that both
    /// read is given from where the one that was given less of it stands.
    pub fn join(&mut self, other: &Self, is_ours: impl Fn(&str) -> bool, is_theirs: impl Fn(&str) -> bool) {
        let given = |topic: &Topic| {
            let ours = is_ours(topic).then(|| self.given(topic));
            let theirs = is_theirs(topic).then(|| other.given(topic));
            let floor = ours.into_iter().chain(theirs).min().filter(|floor| *floor > self.cursor)?;
            Some((topic.clone(), floor))
        };
        let known = [&self.floors, &other.floors].into_iter().flatten().flat_map(|floors| floors.keys());
        let floors: HashMap<_, _> = known.filter_map(given).collect();
        self.floors = (!floors.is_empty()).then(|| Arc::new(floors));
        // A gap of either may be told again, never not at all.
        self.told = self.told.min(other.told);
        self.checked = None;
    }
}

/// What was found for a [`Start`].
#[derive(Debug, Default)]
pub struct Beginning {
    pub position: Position,
    /// A gap for each topic and pattern, if the cursor was ahead of the store or unreadable.
    pub gaps: Vec<Gap>,
}

/// One read of the log.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// To be told before the messages.
    pub gaps: Vec<Gap>,
    /// No gap before this is still to be told, once these are.
    pub told: Id,
    /// See [`Position::checked`].
    pub checked: Option<u64>,
    /// In the order of their ids.
    pub messages: Vec<Arc<Message>>,
    /// Past the gaps, but not past anything retained that the reader has not been given.
    pub past: Id,
    /// The page is complete up to here.
    pub end: Id,
}

/// Something that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The topic, or the pattern where the topics are not known.
    pub topic: Pattern,
    /// The oldest retained message after the gap.
    pub next: Option<Id>,
    pub reason: Reason,
    /// How far the topic counts as given once the gap has been told.
    pub floor: Id,
}

/// Why it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Trimmed by count, age or bytes.
    Retention,
    /// Deleted by the backend.
    Deleted,
    /// The store was started anew.
    Restarted,
    /// The store may have lost its newest messages.
    Failover,
    /// The cursor is ahead of the store, or is none.
    UnknownCursor,
}

impl Reason {
    pub const ALL: [Self; 5] =
        [Self::Retention, Self::Deleted, Self::Restarted, Self::Failover, Self::UnknownCursor];

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
    fn joined_readers_are_told_what_either_was_not() {
        let topic = |name: &str| name.parse::<Topic>().expect("a topic");
        let mut one = Position { told: Id::new(9), checked: Some(7), ..Position::at(Id::new(5)) };
        one.raise_floor(topic("a"), Id::new(8));
        one.raise_floor(topic("both"), Id::new(8));
        one.raise_floor(topic("left"), Id::new(8));
        let mut other = Position { told: Id::new(6), ..Position::at(Id::new(5)) };
        other.raise_floor(topic("a"), Id::new(7));
        other.raise_floor(topic("b"), Id::new(7));
        other.raise_floor(topic("both"), Id::new(6));
        one.join(&other, |topic| ["a", "both"].contains(&topic), |topic| ["b", "both"].contains(&topic));
        assert_eq!((one.cursor, one.told, one.checked), (Id::new(5), Id::new(6), None));
        let given = ["a", "b", "both", "left"].map(|name| one.given(name).get());
        assert_eq!(given, [8, 7, 6, 5], "who was given less of a topic says where it goes on");
    }
}
