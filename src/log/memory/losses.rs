//! The topics that lost messages, in the order of their last losses. Only these can have a gap.

use std::{collections::BTreeMap, ops::Bound};

use crate::{
    log::Mark,
    message::{Id, Topic},
};

/// A mark for each topic that lost messages. It stays until the index forgets the topic.
#[derive(Debug)]
pub struct Losses {
    marks: BTreeMap<Mark, Topic>,
    last: Mark,
}

impl Losses {
    /// Begins with no losses. `newest` is the newest id.
    pub fn new(newest: Id) -> Self {
        Self { marks: BTreeMap::new(), last: Mark { newest, nth: 0 } }
    }

    /// Moves the mark of `topic` from `was` to now, and returns the new mark.
    pub fn note(&mut self, topic: &Topic, was: Mark, newest: Id) -> Mark {
        self.marks.remove(&was);
        self.last = Mark { newest, nth: self.last.nth + 1 };
        self.marks.insert(self.last, topic.clone());
        self.last
    }

    /// Adds a mark for losses from before this process began. The lost messages have ids up to `upto`.
    pub fn restore(&mut self, topic: &Topic, upto: Id) -> Mark {
        let mark = Mark { newest: upto, nth: 0 };
        self.marks.insert(mark, topic.clone());
        mark
    }

    pub fn forget(&mut self, mark: Mark) {
        self.marks.remove(&mark);
    }

    pub fn last(&self) -> Mark {
        self.last
    }

    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// The topics with a mark after `mark`, in the order of the marks.
    pub fn after(&self, mark: Mark) -> impl Iterator<Item = (Mark, &Topic)> {
        self.marks.range((Bound::Excluded(mark), Bound::Unbounded)).map(|(mark, topic)| (*mark, topic))
    }
}
