//! The answers of the scripts, with their parts in order.

use redis::{FromRedisValue, ParsingError, Value};

use super::{
    codec::{self, Place},
    facts::Facts,
};
use crate::message::{Id, Message, Topic};

/// Structs that are parsed from answers: one part for each field.
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
    /// The outcome of a publish, and the id that it is about.
    struct Published {
        outcome: String,
        id: Id,
        /// The generation that stored the message; zero if nothing was stored.
        began: Id,
    }

    /// The outcome of a change of a list, and the id of the entry.
    struct Listed {
        outcome: String,
        id: Id,
        began: Id,
    }

    /// The list of a subject: the members of the sorted set.
    struct Lists {
        facts: Facts,
        members: Vec<Vec<u8>>,
    }

    /// The outcome of the end of a subject.
    struct Ends {
        outcome: String,
        id: Id,
        began: Id,
        /// These are zero if no tokens are refused.
        second: u64,
        until_ms: u64,
    }

    /// The outcome of holds of presence.
    struct Noted {
        /// `gone` if the replica must take a new name first.
        standing: String,
        began: Id,
        outcomes: Vec<String>,
        unnamed: Vec<String>,
        joined: u64,
        left: u64,
        is_more: u8,
    }

    /// A page of the members of a topic.
    struct MembersPage {
        facts: Facts,
        count: usize,
        /// Subject, id of the join, connections, and the payload that told it.
        members: Vec<(String, Id, u64, String)>,
    }

    struct Deleted {
        facts: Facts,
        /// The messages of the topic up to this id are gone; zero if the index did not know the topic.
        gone: Id,
    }

    /// Older messages, with which a tail is filled backwards.
    struct Older {
        facts: Facts,
        /// The newest id that the topic had there. If the newest of `found` has another one, messages were lost.
        newest: Id,
        /// Newest message first.
        found: Vec<Stored>,
    }

    /// A part of the history of a topic.
    struct Past {
        facts: Facts,
        /// The oldest message that is not below the id.
        behind: Retained,
        /// 1 if older messages are retained.
        has_older: u8,
        /// Newest message first.
        found: Vec<Stored>,
    }

    /// A page of topics that are read one by one.
    struct TopicsPage {
        facts: Facts,
        /// The page is complete up to here.
        end: Id,
        topics: Vec<Retained>,
        found: Vec<FoundStored>,
    }

    /// The retained messages of one topic. An id is zero if there is no such message.
    struct Retained {
        newest: Id,
        deleted: Id,
        /// The oldest message after the point of the reader.
        first: Id,
        /// The message before that one.
        prev: Id,
    }

    struct FoundStored {
        /// The number of the topic in the question, counted from one.
        number: usize,
        stored: Stored,
    }

    /// The topics whose names begin with some texts; `None` if there are too many.
    struct Names {
        facts: Facts,
        topics: Option<Vec<Vec<u8>>>,
    }

    /// A part of the order.
    struct Scanned {
        facts: Facts,
        end: Id,
        state: ScanState,
        order: Vec<(Id, Vec<u8>)>,
    }

    struct Fetched {
        facts: Facts,
        /// As many as fit.
        messages: Vec<Sought>,
        topics: Vec<Retained>,
    }

    struct Begun {
        facts: Facts,
        firsts: Vec<First>,
    }

    /// The message at which one topic begins.
    struct First {
        newest: Id,
        /// The oldest message to give.
        first: Id,
        prev: Id,
        /// How many messages the script stepped over to find it.
        passed: usize,
    }

    /// The counts of one topic.
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

/// How far a scan of the order went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanState {
    AtEnd,
    HasMore,
    /// Too many expired messages are not swept yet, so the store cannot tell which topics lost messages.
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

/// An entry of a topic's stream.
#[derive(Debug)]
pub struct Stored {
    pub id: Id,
    /// The id of the message before it; its own id if this program cannot have written the entry.
    pub prev: Id,
    /// True if no message can have the id of the entry.
    pub is_foreign: bool,
    head: Vec<u8>,
    bytes: Vec<u8>,
}

impl Stored {
    /// The message; `None` if this program did not write it.
    pub fn message(&self, topic: &Topic) -> Option<Message> {
        let draft = (!self.is_foreign).then(|| codec::draft(topic.clone(), &self.head, &self.bytes))??;
        let message = Message::new(draft, self.id, self.prev);
        // Old messages keep no renderings: each reader renders them for itself.
        message.cool();
        Some(message)
    }
}

/// A message that was looked for by its id.
#[derive(Debug)]
pub enum Sought {
    Stored(Stored),
    /// The stream of the topic does not have it.
    Missing {
        /// When the topic last lost something.
        marked: Id,
        /// The id of the topic's last deletion.
        deleted: Id,
    },
}

impl FromRedisValue for Sought {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let parts: Vec<Value> = FromRedisValue::from_redis_value(value)?;
        match <[Value; 3]>::try_from(parts) {
            Ok([_, marked, deleted]) => {
                let [marked, deleted] = [Id::from_redis_value(marked)?, Id::from_redis_value(deleted)?];
                Ok(Self::Missing { marked, deleted })
            }
            Err(entry) => Stored::from_redis_value(Value::Array(entry)).map(Self::Stored),
        }
    }
}

impl FromRedisValue for Stored {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (Place { id, number }, fields): (Place, Vec<Vec<u8>>) = FromRedisValue::from_redis_value(value)?;
        // Other programs may write other fields, and a later version may add some.
        let mut values = fields.into_iter().skip(1).step_by(2);
        let mut value = || values.next().unwrap_or_default();
        let [link, head, bytes] = [value(), value(), value()];
        let prev = Id::from_redis_value(Value::BulkString(link)).ok().filter(|prev| *prev < id);
        Ok(Self { id, prev: prev.unwrap_or(id), is_foreign: number > 0, head, bytes })
    }
}
