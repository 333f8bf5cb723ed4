//! The newest messages, which remember the bytes of their renderings.

use std::{collections::VecDeque, time::Duration};

use crate::message::{Id, Message};

/// How many of the newest messages keep their renderings.
const MAX_MESSAGES: usize = 4096;
/// How many bytes of payload these messages may have.
const MAX_BYTES: usize = 8 << 20;
/// The age at which all messages drop their renderings.
const AGE: Duration = Duration::from_secs(10);

/// Makes all but the newest messages drop their renderings.
#[derive(Default)]
pub struct Hot {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Hot {
    pub fn push(&mut self, message: Message) {
        self.bytes += message.bytes().len();
        self.messages.push_back(message);
        self.cool(MAX_MESSAGES, MAX_BYTES);
    }

    /// Makes all messages drop their renderings if the newest one is old.
    pub fn cool_at(&mut self, now: Id) {
        if self.messages.back().is_some_and(|message| message.id < now.minus(AGE)) {
            self.cool(0, 0);
        }
    }

    fn cool(&mut self, max_messages: usize, max_bytes: usize) {
        while self.messages.len() > max_messages || (self.bytes > max_bytes && self.messages.len() > 1) {
            let Some(message) = self.messages.pop_front() else { return };
            self.bytes -= message.bytes().len();
            message.cool();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Draft, Payload};

    fn message(id: u64, bytes: usize) -> Message {
        let topic = "a".parse().expect("a topic");
        let draft =
            Draft { topic, event: None, payload: Payload::text("x".repeat(bytes)), exclude: None, by: None };
        Message::new(draft, Id::new(id), Id::ZERO)
    }

    /// True if the message remembers its rendering.
    fn is_hot(message: &Message) -> bool {
        message.rendered(0, |_| Bytes::from_static(b"first"));
        message.rendered(0, |_| Bytes::from_static(b"second")) == "first"
    }

    #[test]
    fn the_newest_messages_keep_their_renderings_until_they_are_old() {
        for (count, bytes, kept) in [(5_000, 1, MAX_MESSAGES), (20, 1 << 20, 8), (2, 9 << 20, 1)] {
            let mut hot = Hot::default();
            let messages: Vec<_> = (0..count).map(|id| message(id, bytes)).collect();
            messages.iter().for_each(|message| hot.push(message.clone()));
            assert_eq!(messages.iter().filter(|message| is_hot(message)).count(), kept);
            let newest = Id::new(count - 1);
            for (age, kept) in [(AGE, kept), (AGE + Duration::from_micros(1), 0)] {
                hot.cool_at(Id::new(newest.get() + age.as_micros() as u64));
                assert_eq!(messages.iter().filter(|message| is_hot(message)).count(), kept);
            }
        }
    }
}
