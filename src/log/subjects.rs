//! A log keeps this of subjects beside the messages: their lists of topics, and the refusals of their tokens.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    LogError,
    list::{Entries, FollowedList},
};
use crate::message::{Id, Pattern};

/// How many entries the list of a subject may have, and how many of them may have a wildcard.
pub const MAX_ENTRIES: usize = 1000;
pub const MAX_WILD_ENTRIES: usize = 100;
/// The cost of an entry of a list, or of a refusal, in bytes, without the subject and the topic. It counts towards the
/// limit on all retained bytes.
pub const ENTRY_BYTES: usize = 200;

/// The subjects in a log.
///
/// # Cancel safety
/// Dropping a future of a change before it resolves may still have its effect.
#[async_trait]
pub trait Subjects: Send + Sync {
    /// Adds a topic to the list of a subject, and returns the id at which it was added: the first one, if it is there
    /// already.
    async fn add(&self, subject: &str, topic: &Pattern) -> Result<Id, AddError>;

    /// Removes a topic from the list of a subject, if it is there.
    async fn remove(&self, subject: &str, topic: &Pattern) -> Result<(), LogError>;

    /// The list of a subject.
    async fn list(&self, subject: &str) -> Result<Entries, LogError>;

    /// Follows the list of a subject: every change up to the watermark of the log is in it. It is known when this
    /// resolves.
    async fn follow(&self, subject: &str) -> Result<FollowedList, LogError>;

    /// Ends a subject: each process that shares the log is told. With a duration, older tokens of the subject are
    /// refused for so long.
    async fn end(&self, subject: &str, refuse: Option<Duration>) -> Result<End, AddError>;

    /// Sets who is told the ends, and tells the refusals that are known. The first call counts.
    fn tell(&self, told: Arc<dyn Told>);
}

/// Is told what other processes have done. Its functions return soon.
pub trait Told: Send + Sync + 'static {
    /// A subject was ended.
    fn ended(&self, end: End);

    /// Ends may have been missed. The refusals among them are told before this.
    fn missed(&self);

    /// Older tokens of these subjects are refused, by requests that were made earlier.
    fn refused(&self, refusals: Vec<(Box<str>, Refusal)>);
}

/// The end of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub subject: Box<str>,
    pub refusal: Option<Refusal>,
    /// Its id in the log, by which a process knows an end that it has heard of. Zero if it can hear of it only once.
    pub id: Id,
}

/// The refusal of a subject's older tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Tokens that were issued up to the end of this second are refused. In seconds since the Unix epoch.
    pub second: u64,
    /// The refusal lasts until then, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

impl Refusal {
    /// Both refusals in one. A shorter one never shortens.
    pub fn and(self, other: Self) -> Self {
        Self { second: self.second.max(other.second), until_ms: self.until_ms.max(other.until_ms) }
    }

    pub fn is_over(self) -> bool {
        self.until_ms <= now_ms()
    }
}

/// The time by the clock of this process, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Why nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error("the list has as many entries as it may have")]
    TooMany,
    #[error("the list has as many patterns with a wildcard as it may have")]
    TooManyWild,
    #[error("lists and refusals take all the room")]
    NoRoom,
    #[error(transparent)]
    Log(#[from] LogError),
}
