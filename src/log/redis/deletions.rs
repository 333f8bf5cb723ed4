//! The newest deletions: a page that was read before one of them must not bring back what is gone.

use std::collections::{HashMap, VecDeque};

use crate::message::{Id, Message, Topic};

/// How many are remembered by name. A page that was read before even more of them counts as outdated.
const MAX_NAMED: usize = 256;

#[derive(Default)]
pub struct Deletions {
    count: u64,
    newest: VecDeque<(Topic, Id)>,
    /// Those that were done here, as long as the feed has not brought them.
    expected: HashMap<Topic, Id>,
}

impl Deletions {
    /// A deletion that was done here. The feed will bring it, and before it perhaps messages that it has deleted.
    pub fn expect(&mut self, topic: &Topic, gone: Id) {
        self.remember(topic, gone);
        let known = self.expected.entry(topic.clone()).or_default();
        *known = gone.max(*known);
    }

    /// A deletion that the feed has brought.
    pub fn note(&mut self, topic: &Topic, gone: Id) {
        if self.expected.get(topic).is_some_and(|expected| *expected <= gone) {
            self.expected.remove(topic);
        }
        self.remember(topic, gone);
    }

    /// Whether a message that the feed brings is already deleted.
    pub fn is_expected(&self, topic: &Topic, id: Id) -> bool {
        self.expected.get(topic).is_some_and(|gone| id <= *gone)
    }

    /// The feed has left out everything up to `upto`, deletions too, and the tails hold nothing of it.
    pub fn forget(&mut self, upto: Id) {
        self.expected.retain(|_, gone| *gone > upto);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether `message` may have been deleted since there had been `count` deletions.
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
