//! How much is kept.

use std::time::Duration;

use crate::message::Id;

/// What is retained; whatever is reached first trims, oldest messages first.
///
/// The newest message of a topic is kept however large it is.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Messages of a topic.
    pub messages: usize,
    /// Age of a message.
    pub age: Duration,
    /// Bytes of a topic: payload, event and 200 bytes for each message.
    pub bytes: usize,
    /// Bytes of all topics, counted in the same way.
    pub total_bytes: usize,
    /// How many topics are remembered; a new one beyond that is refused, and none is forgotten early.
    pub topics: usize,
}

impl Retention {
    /// What is older than this has expired.
    pub fn expired(&self) -> Id {
        Id::now().minus(self.age)
    }
}
