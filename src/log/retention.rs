//! How much is kept.

use std::time::Duration;

use crate::message::Message;

/// What a message counts beside its payload and its event.
pub const MESSAGE_OVERHEAD_BYTES: usize = 200;

/// How long a topic is remembered after its last message.
pub const INDEX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long it is remembered at least after its last message has expired. A read in steps must not find a message in
/// one step, and neither the message nor its topic in the next.
pub const AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

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
    /// Bytes of everything: messages, counted in the same way, topics and idempotency keys.
    pub total_bytes: usize,
    /// How many topics are remembered; a new one beyond that is refused, and none is forgotten early.
    pub topics: usize,
}

impl Retention {
    /// How much of all bytes the topics may take themselves. They are not forgotten early, so without a
    /// bound there would be no room for messages.
    pub fn topic_bytes(&self) -> usize {
        self.total_bytes / 2
    }

    /// How much the idempotency keys may take, which are not forgotten early either.
    pub fn key_bytes(&self) -> usize {
        self.total_bytes / 4
    }
}

/// What `message` counts in retention by bytes.
pub fn cost(message: &Message) -> usize {
    MESSAGE_OVERHEAD_BYTES
        + message.payload.bytes.len()
        + message.event.as_ref().map_or(0, |event| event.len())
}
