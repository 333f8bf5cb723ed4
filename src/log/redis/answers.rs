//! What the scripts answer, in the order of its parts.

use std::sync::Arc;

use redis::{FromRedisValue, ParsingError, Value};

use super::{codec, facts::Facts};
use crate::message::{Id, Message, Topic};

/// Structs that are read from answers with a part for each field.
macro_rules! answers {
    ($($(#[$about:meta])* struct $name:ident { $($(#[$field_about:meta])* $field:ident: $kind:ty,)+ })+) => {$(
        $(#[$about])*
        #[derive(Debug)]
        pub struct $name { $($(#[$field_about])* pub $field: $kind,)+ }

        impl FromRedisValue for $name {
            fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
                let ($($field,)+) = FromRedisValue::from_redis_value(value)?;
                Ok(Self { $($field,)+ })
            }
        }
    )+};
}

answers! {
    /// What became of a publish, and the id that this is about.
    struct Published {
        outcome: String,
        id: Id,
        /// The generation that has it; zero where nothing is stored.
        began: Id,
    }

    struct Deleted {
        facts: Facts,
        /// What the topic had up to here is gone; zero where nothing was known of it.
        gone: Id,
    }

    /// What fills a tail backwards.
    struct Older {
        facts: Facts,
        /// The id that the newest of them must have, or that of none if nothing was lost.
        newest: Id,
        /// Newest first.
        found: Vec<Stored>,
    }

    /// A page of topics that are read one by one.
    struct TopicsPage {
        facts: Facts,
        /// The page is complete up to here.
        end: Id,
        topics: Vec<Retained>,
        found: Vec<Found>,
    }

    /// What is retained of one topic. An id of what there is not is zero.
    struct Retained {
        newest: Id,
        deleted: Id,
        /// The oldest message after the reader's point.
        first: Id,
        /// The message before that one.
        prev: Id,
    }

    struct Found {
        /// The number of its topic, from one.
        number: usize,
        stored: Stored,
    }

    /// The topics under some names, unless they are too many.
    struct Names {
        facts: Facts,
        topics: Option<Vec<String>>,
    }

    /// A part of the order.
    struct Scanned {
        facts: Facts,
        end: Id,
        state: ScanState,
        order: Vec<(Id, String)>,
    }

    struct Fetched {
        /// As many as fit, each nothing if it is not there.
        messages: Vec<Option<Stored>>,
        topics: Vec<Retained>,
    }

    struct Begun {
        facts: Facts,
        firsts: Vec<First>,
    }

    /// Where to begin in one topic.
    struct First {
        newest: Id,
        /// The message to begin with.
        first: Id,
        prev: Id,
        /// How many messages were stepped over to find it.
        passed: usize,
    }

    /// What is known of one topic.
    struct Known {
        newest: Id,
        messages: usize,
        bytes: usize,
    }

    struct Stats {
        facts: Facts,
        topics: usize,
        messages: usize,
        bytes: usize,
    }
}

/// How far a scan of the order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanState {
    AtEnd,
    HasMore,
    /// Too much has expired to know what is gone.
    Unswept,
}

impl FromRedisValue for ScanState {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match u8::from_redis_value(value)? {
            0 => Ok(Self::AtEnd),
            1 => Ok(Self::HasMore),
            _ => Ok(Self::Unswept),
        }
    }
}

/// A stored message, as an entry of its topic's stream.
#[derive(Debug)]
pub struct Stored {
    pub id: Id,
    /// The id of the message before it.
    pub prev: Id,
    head: Vec<u8>,
    bytes: Vec<u8>,
}

impl Stored {
    /// The message; nothing if it was not stored by us.
    pub fn message(&self, topic: &Topic) -> Option<Arc<Message>> {
        let draft = codec::draft(topic.clone(), &self.head, &self.bytes)?;
        let message = Message::new(draft, self.id, self.prev);
        // Who reads what is old renders it for itself.
        message.cool();
        Some(message)
    }
}

impl FromRedisValue for Stored {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (id, fields): (Id, Vec<Value>) = FromRedisValue::from_redis_value(value)?;
        let mut values = fields.into_iter().skip(1).step_by(2);
        let mut value = || values.next().ok_or("expected a link, a head and a payload");
        let [prev, head, bytes] = [value()?, value()?, value()?];
        let prev = Id::from_redis_value(prev)?;
        let (head, bytes) = (Vec::from_redis_value(head)?, Vec::from_redis_value(bytes)?);
        Ok(Self { id, prev, head, bytes })
    }
}
