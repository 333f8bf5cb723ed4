//! The tails of the followed patterns. A topic finds those that match it by its segments.

use std::sync::Arc;

use crate::{
    log::Tail,
    message::{Message, Pattern, PatternMap, Walk},
};

/// How many messages the tail of a pattern holds. A reader that is further behind reads the log.
const MAX_MESSAGES: usize = 256;
/// How many bytes a tail may keep in memory.
const MAX_BYTES: usize = 1 << 20;

/// How many nodes of the followed patterns one step visits before it releases the lock. Each node has up to
/// three tails.
pub const NODES: usize = 1024;

#[derive(Debug, Default)]
pub struct PatternTails(PatternMap<Arc<Tail>>);

impl PatternTails {
    /// The tail of `pattern`. It is made by `new` if no subscription follows the pattern yet.
    pub fn entry(&mut self, pattern: &Pattern, new: impl FnOnce() -> Tail) -> Arc<Tail> {
        self.0.entry(pattern, || Arc::new(new())).clone()
    }

    pub fn remove(&mut self, pattern: &Pattern) {
        self.0.remove(pattern);
    }

    /// Adds the tails of all patterns that match `topic`.
    pub fn matching(&self, topic: &str, found: &mut Vec<Arc<Tail>>) {
        self.0.find(topic, |tail| {
            found.push(tail.clone());
            None::<()>
        });
    }

    /// Continues to give `take` the tails of the patterns that match `topic`. True once `take` has been given
    /// all of them.
    pub fn walk(&self, topic: &str, walk: &mut Walk, take: impl FnMut(&Arc<Tail>)) -> bool {
        self.0.walk(topic, walk, NODES, take)
    }
}

/// Appends to the tail of a pattern, which holds only the newest messages.
pub fn push(tail: &Tail, message: Message) {
    tail.push(message);
    let mut ring = tail.ring();
    while ring.len() > MAX_MESSAGES || (ring.bytes() > MAX_BYTES && ring.len() > 1) {
        ring.pop();
    }
}
