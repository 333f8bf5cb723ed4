//! The newest deletions. A page that was read before a deletion must not bring back the deleted messages.

use std::collections::{HashMap, VecDeque};

use crate::message::{Id, Message, Topic};

/// How many deletions are remembered by topic. A page that was read before the oldest of them counts as
/// outdated.
const MAX_NAMED: usize = 256;

#[derive(Default)]
pub struct Deletions {
    count: u64,
    newest: VecDeque<(Topic, Id)>,
    /// Deletions by this process that the feed has not brought yet.
    expected: HashMap<Topic, Id>,
}

impl Deletions {
    /// Notes a deletion by this process. The feed will bring it later, and perhaps before it some of the
    /// deleted messages.
    pub fn expect(&mut self, topic: &Topic, gone: Id) {
        self.remember(topic, gone);
        let known = self.expected.entry(topic.clone()).or_default();
        *known = gone.max(*known);
    }

    /// Notes a deletion that the feed has brought.
    pub fn note(&mut self, topic: &Topic, gone: Id) {
        if self.expected.get(topic).is_some_and(|expected| *expected <= gone) {
            self.expected.remove(topic);
        }
        self.remember(topic, gone);
    }

    /// True if the message was deleted by this process before the feed brought it.
    pub fn is_expected(&self, topic: &Topic, id: Id) -> bool {
        self.expected.get(topic).is_some_and(|gone| id <= *gone)
    }

    /// Forgets the deletions up to `upto`: the feed has skipped everything up to there, and the tails hold
    /// nothing of it.
    pub fn forget(&mut self, upto: Id) {
        self.expected.retain(|_, gone| *gone > upto);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if `message` may have been deleted since the count of deletions was `count`.
    pub fn has_since(&self, count: u64, message: &Message) -> bool {
        let Some(begin) = self.count.checked_sub(count).and_then(|new| self.begin_of(new)) else {
            return true;
        };
        self.newest.range(begin..).any(|(topic, gone)| *topic == message.topic && message.id <= *gone)
    }

    fn begin_of(&self, new: u64) -> Option<usize> {
        self.newest.len().checked_sub(usize::try_from(new).ok()?)
    }

    fn remember(&mut self, topic: &Topic, gone: Id) {
        self.count += 1;
        if self.newest.len() == MAX_NAMED {
            self.newest.pop_front();
        }
        self.newest.push_back((topic.clone(), gone));
    }
}
