//! Of which topics something was lost of late: only these can have a new gap.

use std::collections::VecDeque;

use crate::message::Topic;

/// How many are remembered by name. Who looked for gaps longer ago looks at all topics again.
const MAX_NAMED: usize = 1024;

/// What was removed or forgotten, counted, and the newest by name.
#[derive(Debug, Default)]
pub struct Losses {
    count: u64,
    newest: VecDeque<Topic>,
}

impl Losses {
    pub fn note(&mut self, topic: Topic) {
        self.count += 1;
        if self.newest.len() == MAX_NAMED {
            self.newest.pop_front();
        }
        self.newest.push_back(topic);
    }

    /// How many there have been. As long as that stays, nobody has a new gap.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The topics that lost something since there had been `count` losses, if so many are remembered.
    pub fn since(&self, count: u64) -> Option<impl Iterator<Item = &Topic>> {
        let new = usize::try_from(self.count - count).ok()?;
        let begin = self.newest.len().checked_sub(new)?;
        Some(self.newest.range(begin..))
    }
}
