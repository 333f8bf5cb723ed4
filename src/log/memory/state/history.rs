//! Reads the history of one topic, in one step: its messages are all in its tail.

use super::State;
use crate::{
    log::history::{Entry, Found, History},
    message::{Id, Message, Topic},
};

impl State {
    /// The newest `limit` messages of `topic` below `before`.
    pub fn history(&self, topic: &Topic, before: Id, limit: usize) -> History {
        let entry = |message: &std::sync::Arc<Message>| Entry {
            id: message.id,
            prev: message.prev,
            message: Some(message.clone()),
        };
        // A message that is not in all tails yet is not given: its id would be ahead of the watermark.
        let upto = before.before().min(self.newest());
        let (entries, has_older) = match self.tails.get(topic) {
            Some(tail) => {
                let ring = tail.ring();
                let (messages, has_older) = ring.upto(upto, limit);
                (messages.map(entry).collect(), has_older)
            }
            None => (Vec::new(), false),
        };
        let deleted = self.index.get(topic).map_or(Id::ZERO, |known| known.deleted);
        // The tail of a topic lacks messages only at its old end.
        let (complete_after, _) = self.left_of(topic);
        let boundaries = &self.beginning();
        Found { boundaries, deleted, entries, has_older, complete_after, next: None }.page(before)
    }
}
