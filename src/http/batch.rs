//! Joins messages that leave together, once for all readers of the same messages.
//!
//! The readers of a topic wake one after the other and need the same bytes. So each thread remembers the last
//! bytes that it joined, and the next reader takes them.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{
    gzip::Sum,
    wire::{self, Framing},
};
use crate::message::{Id, Message};

/// The size of an envelope without its payload, roughly: it serves only for a bound.
const OVERHEAD_BYTES: usize = 160;
/// The largest joined bytes that are remembered.
const MAX_REMEMBERED_BYTES: usize = 128 << 10;

type Messages = SmallVec<[Message; 4]>;

/// The form in which messages that leave together are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// WebSocket frames.
    Frames,
    /// WebSocket frames, of which longer ones are compressed.
    Deflated,
    /// A part of a response body.
    Body(Framing),
    /// A part of a response body in gzip.
    Gzip(Framing),
}

/// Ready bytes, and the sum of what they were before they were coded in gzip. In other forms it is that of nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub bytes: Bytes,
    pub plain: Sum,
}

/// Messages of one reader that leave together.
pub struct Batch {
    form: Form,
    messages: Messages,
    payload_bytes: usize,
}

/// The bytes that were joined last.
struct Remembered {
    form: Form,
    messages: Messages,
    encoded: Encoded,
}

thread_local! {
    static LAST: RefCell<Option<Remembered>> = const { RefCell::new(None) };
}

impl Batch {
    pub fn new(form: Form) -> Self {
        Self { form, messages: Messages::new(), payload_bytes: 0 }
    }

    /// Adds a message that has an id.
    pub fn push(&mut self, message: Message) {
        debug_assert!(!message.is_ephemeral(), "its bytes may be another reader's");
        self.payload_bytes += message.bytes().len();
        self.messages.push(message);
    }

    /// The approximate size in bytes.
    pub fn size(&self) -> usize {
        self.payload_bytes + self.messages.len() * OVERHEAD_BYTES
    }

    /// The bytes of all messages, if there are any. It empties the batch.
    pub fn take(&mut self) -> Option<Encoded> {
        let encoded = match &*self.messages {
            [] => return None,
            [message] => self.form.encode(message, message.id),
            _ => {
                let size = self.size();
                let messages = std::mem::take(&mut self.messages);
                self.payload_bytes = 0;
                return Some(together(self.form, messages, size));
            }
        };
        self.messages.clear();
        self.payload_bytes = 0;
        Some(encoded)
    }
}

impl Form {
    /// The bytes of one message. `cursor` is that of the reader; only an ephemeral message shows it.
    pub fn encode(self, message: &Message, cursor: Id) -> Encoded {
        let (bytes, plain) = match self {
            Self::Frames => (wire::message_frame(message), Sum::default()),
            Self::Deflated => (wire::deflated_frame(message), Sum::default()),
            Self::Body(framing) => (framing.message(message, cursor), Sum::default()),
            Self::Gzip(framing) => framing.gzipped(message, cursor),
        };
        Encoded { bytes, plain }
    }
}

fn together(form: Form, messages: Messages, size: usize) -> Encoded {
    LAST.with_borrow_mut(|last| {
        let is_same = |last: &&Remembered| {
            last.form == form
                && last.messages.len() == messages.len()
                && last.messages.iter().zip(&messages).all(|(a, b)| a.is(b))
        };
        if let Some(same) = last.as_ref().filter(is_same) {
            return same.encoded.clone();
        }
        let (mut bytes, mut plain) = (BytesMut::with_capacity(size), Sum::default());
        for message in &messages {
            let encoded = form.encode(message, message.id);
            bytes.extend_from_slice(&encoded.bytes);
            plain = plain.then(encoded.plain);
        }
        let encoded = Encoded { bytes: bytes.freeze(), plain };
        if encoded.bytes.len() <= MAX_REMEMBERED_BYTES {
            *last = Some(Remembered { form, messages, encoded: encoded.clone() });
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Payload};

    fn message(id: u64) -> Message {
        let topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        Message::new(draft, Id::new(id), Id::ZERO)
    }

    fn take(form: Form, messages: &[Message]) -> Bytes {
        let mut batch = Batch::new(form);
        messages.iter().for_each(|message| batch.push(message.clone()));
        batch.take().expect("bytes").bytes
    }

    #[test]
    fn readers_of_the_same_messages_share_the_bytes_and_others_do_not() {
        let messages = [message(1), message(2), message(3)];
        let lines = Form::Body(Framing::Ndjson);
        let first = take(lines, &messages);
        assert_eq!(first.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert_eq!(take(lines, &messages).as_ptr(), first.as_ptr());
        assert_ne!(take(Form::Frames, &messages), first);
        assert_ne!(take(lines, &messages[1..]), first);
        let twin = [message(1), message(2), message(3)];
        let other = take(lines, &twin);
        assert!(other == first && other.as_ptr() != first.as_ptr());
    }
}
