//! Which topics lost something, in the order in which they last did: only these can have a gap.

use std::{collections::BTreeMap, ops::Bound};

use crate::{
    log::Mark,
    message::{Id, Topic},
};

/// A mark for each topic that lost something, kept until the topic is forgotten.
#[derive(Debug)]
pub struct Losses {
    marks: BTreeMap<Mark, Topic>,
    last: Mark,
}

impl Losses {
    /// Begins where `newest` is the newest id.
    pub fn new(newest: Id) -> Self {
        Self { marks: BTreeMap::new(), last: Mark { newest, nth: 0 } }
    }

    /// Moves the mark of `topic` from where it `was` to now, and returns where that is.
    pub fn note(&mut self, topic: &Topic, was: Mark, newest: Id) -> Mark {
        self.marks.remove(&was);
        self.last = Mark { newest, nth: self.last.nth + 1 };
        self.marks.insert(self.last, topic.clone());
        self.last
    }

    /// A mark for what was lost before this process began: nothing of it is after `upto`.
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

    /// What lost something after `mark`, in the order of the marks.
    pub fn after(&self, mark: Mark) -> impl Iterator<Item = (Mark, &Topic)> {
        self.marks.range((Bound::Excluded(mark), Bound::Unbounded)).map(|(mark, topic)| (*mark, topic))
    }
}
