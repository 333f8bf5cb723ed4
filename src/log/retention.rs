//! The limits of retention.

use std::time::Duration;

use super::Rules;
use crate::message::Message;

/// How many bytes a message counts in addition to its payload, its event and its publisher.
pub const MESSAGE_OVERHEAD_BYTES: usize = 200;

/// How long the index remembers a topic after its last message.
pub const INDEX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the index remembers a topic, at least, after its last message has expired. A read in steps must
/// not find a message in one step, and neither the message nor its topic in the next.
pub const AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// The limits of retention. Whichever is reached first removes the oldest messages.
///
/// The newest message of a topic is kept however large it is.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Messages of each topic.
    pub messages: usize,
    /// Age of each message.
    pub age: Duration,
    /// Bytes of each topic: payload, event, publisher and 200 bytes for each message.
    pub bytes: usize,
    /// Bytes of everything: messages, counted in the same way, topics and idempotency keys.
    pub total_bytes: usize,
    /// How many topics the index remembers. It refuses one more, and forgets none early.
    pub topics: usize,
    /// Limits of their own for some topics.
    pub rules: Rules,
}

/// The limits of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub messages: usize,
    pub age: Duration,
    pub bytes: usize,
}

impl Limits {
    /// True if a topic with so many messages and bytes has to lose its oldest one.
    pub fn are_exceeded_by(&self, (messages, bytes): (usize, usize)) -> bool {
        messages > self.messages || (bytes > self.bytes && messages > 1)
    }
}

impl Retention {
    /// The limits of a topic, by the first rule that matches it.
    pub fn limits(&self, topic: &str) -> Limits {
        let rule = self.rules.of(topic);
        Limits {
            messages: rule.and_then(|rule| rule.messages).unwrap_or(self.messages),
            age: rule.and_then(|rule| rule.age).unwrap_or(self.age),
            bytes: rule.and_then(|rule| rule.bytes).unwrap_or(self.bytes),
        }
    }

    /// The longest age that a topic has.
    pub fn longest_age(&self) -> Duration {
        self.rules.ages(self.age).1
    }

    /// How many of all bytes the topics themselves may take. The index forgets no topic early, so without
    /// this limit messages would have no room.
    pub fn topic_bytes(&self) -> usize {
        self.total_bytes / 2
    }

    /// How many bytes the idempotency keys may take. The log does not forget keys early either.
    pub fn key_bytes(&self) -> usize {
        self.total_bytes / 4
    }
}

/// How many bytes `message` counts in retention.
pub fn cost(message: &Message) -> usize {
    MESSAGE_OVERHEAD_BYTES
        + message.bytes().len()
        + message.event().map_or(0, |event| event.len())
        + message.by().map_or(0, |by| by.len())
}
