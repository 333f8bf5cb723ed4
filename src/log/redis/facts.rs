//! The facts about the store that every script returns beside its own answer.

use std::{fmt, str::FromStr, time::Duration};

use bytesize::ByteSize;
use redis::{FromRedisValue, ParsingError, Value};

use super::Retention;
use crate::{
    log::{
        Position, Reason,
        loss::{Boundary, Standing},
    },
    message::Id,
};

/// The facts about the store.
#[derive(Clone, Debug)]
pub struct Facts {
    pub newest: Id,
    /// The id at which the generation began. The store has everything from there on.
    pub began: Id,
    /// If the index does not hold a topic, the newest id of that topic is at most this.
    pub forgotten: Id,
    pub keep: Keep,
    /// The boundaries at which messages may be lost, oldest first.
    pub boundaries: Vec<Boundary>,
    /// When the newest mark was set.
    pub marked: Id,
    /// True if Redis refuses writes. It may be a copy that lacks the newest ids.
    pub is_frozen: bool,
    /// 0 if no replica has told the store its rules of retention.
    pub has_rules: u8,
}

/// The limits of retention, as the store remembers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub messages: usize,
    pub age: Duration,
    pub bytes: usize,
    pub total_bytes: usize,
    pub topics: usize,
}

impl From<&Retention> for Keep {
    fn from(retention: &Retention) -> Self {
        let Retention { messages, age, bytes, total_bytes, topics, .. } = *retention;
        Self { messages, age, bytes, total_bytes, topics }
    }
}

impl Keep {
    /// The text that the store remembers, and that [`FromStr`] parses.
    pub fn written(&self) -> String {
        let Self { messages, bytes, total_bytes, topics, .. } = self;
        format!("{messages} {} {bytes} {total_bytes} {topics}", self.age.as_micros())
    }
}

/// The text for a log line.
impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bytes, total_bytes] = [self.bytes, self.total_bytes].map(|bytes| ByteSize::b(bytes as u64));
        let (messages, age) = (self.messages, humantime::format_duration(self.age));
        write!(
            f,
            "{messages} messages, {age} and {bytes} of each topic, {total_bytes} and {} topics in all",
            self.topics
        )
    }
}

impl FromStr for Keep {
    type Err = ParsingError;

    fn from_str(text: &str) -> Result<Self, ParsingError> {
        let mut numbers = text.split(' ').map(u64::from_str);
        let mut number = || numbers.next().and_then(Result::ok).ok_or_else(|| unexpected("how much is kept"));
        let size = |number: u64| usize::try_from(number).map_err(|_| unexpected("how much is kept"));
        Ok(Self {
            messages: size(number()?)?,
            age: Duration::from_micros(number()?),
            bytes: size(number()?)?,
            total_bytes: size(number()?)?,
            topics: size(number()?)?,
        })
    }
}

impl FromRedisValue for Keep {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        String::from_redis_value(value)?.parse()
    }
}

impl Facts {
    /// True if the store has forgotten nothing between two scripts, and its generation is the same. Otherwise their
    /// answers do not belong together.
    pub fn is_as(&self, other: &Self) -> bool {
        self.began == other.began && self.forgotten == other.forgotten
    }

    /// The place of a reader among the generations of the store.
    pub fn standing(&self, position: &Position) -> Standing<'_> {
        Standing::at(&self.boundaries, self.newest, position.told, position.cursor)
    }
}

impl FromRedisValue for Facts {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (newest, began, forgotten, keep, boundaries, marked, is_frozen, has_rules) =
            FromRedisValue::from_redis_value(value)?;
        Ok(Self { newest, began, forgotten, keep, boundaries, marked, is_frozen, has_rules })
    }
}

impl FromRedisValue for Boundary {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (began, inherited, reason): (_, _, String) = FromRedisValue::from_redis_value(value)?;
        let reason = if reason == "failover" { Reason::Failover } else { Reason::Restarted };
        Ok(Self { began, inherited, reason })
    }
}

/// An empty text means that there is no id, so the id is zero. The id of an entry of a stream ends in `-0`. A
/// link also has the cost of the message behind the id.
impl FromRedisValue for Id {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let text = String::from_redis_value(value)?;
        let id = text.split_once(' ').map_or(&*text, |(id, _)| id);
        let id = id.strip_suffix("-0").unwrap_or(id);
        if id.is_empty() { Ok(Self::ZERO) } else { id.parse().map_err(|_| unexpected("an id")) }
    }
}

fn unexpected(what: &str) -> ParsingError {
    format!("expected {what}").into()
}
