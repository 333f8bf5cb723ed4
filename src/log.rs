//! The log: what was published, in the order of its ids, and how to read on from a point in it.
//!
//! This room knows nothing of those who subscribe, of HTTP, or of the wire.

mod clock;
mod ephemeral;
mod hot;
mod loss;
mod memory;
mod patterns;
mod position;
mod redis;
mod retention;
mod tail;

use std::sync::Arc;

use async_trait::async_trait;

#[doc(hidden)]
pub use self::redis::script_constants;
pub use self::{
    clock::Clock,
    ephemeral::Ephemerals,
    memory::MemoryLog,
    position::{Beginning, Gap, Mark, Page, Position, Reason, Start},
    redis::{Address, Credentials, ParseAddressError, RedisLog},
    retention::Retention,
    tail::{Follower, Tail, Uncovered, merge},
};
use self::{retention::cost, tail::Ring};
use crate::message::{Draft, Id, Pattern, PatternSet, Topic};

/// An append-only log of messages under one sequence of ids.
///
/// Three points are kept apart: [`newest`](Self::newest) is what the store holds,
/// [`watermark`](Self::watermark) what this process holds, and a cursor what one reader was given.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Stores a message and assigns its id.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still append the message.
    async fn append(&self, append: Append) -> Result<Appended, AppendError>;

    /// Gives `draft` to whoever is level now. It is not stored and has no id.
    async fn announce(&self, draft: Draft) -> Result<(), LogError>;

    /// Forgets what is retained of `topic`. Who is behind is told of a gap.
    async fn delete(&self, topic: &Topic) -> Result<(), LogError>;

    /// The newest messages of a topic or a pattern, kept filled until the last [`Followed`] is dropped.
    ///
    /// Resolves when the live feed is confirmed: listen first, then look back.
    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError>;

    /// The newest id of any topic, asked of the store.
    async fn newest(&self) -> Result<Id, LogError>;

    /// Every message up to this id is in the tails. Each one moves it as it arrives.
    fn watermark(&self) -> Id;

    /// Waits until the watermark has come to `id`. False if it does not come within a bounded time.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    async fn arrived(&self, id: Id) -> bool {
        self.watermark() >= id
    }

    /// What is older than this counts as expired, though it may not have been removed yet.
    fn expired(&self) -> Id;

    /// Finds where to begin to read `patterns`.
    async fn begin(&self, patterns: &PatternSet, start: &Start) -> Result<Beginning, LogError>;

    /// What the tails do not hold: the gaps after `position`, and the messages of patterns.
    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError>;

    /// What was announced of late.
    fn ephemerals(&self) -> &Ephemerals;

    /// Up to `limit` topics by name, those after `after`.
    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError>;

    async fn stats(&self) -> Result<LogStats, LogError>;

    /// Whether a message was refused of late for want of room.
    fn is_full(&self) -> bool {
        false
    }

    /// Checks that what is published now would be acknowledged, as far as that can be known without publishing.
    async fn check(&self) -> Result<(), LogError> {
        Ok(())
    }

    /// Ends a [`Followed`]; called by its drop.
    fn unfollow(&self, tail: &Arc<Tail>, follower: usize);
}

/// A message to append, and on what conditions.
#[derive(Clone, Debug)]
pub struct Append {
    pub draft: Draft,
    /// The same key on the same topic within [`IDEMPOTENCY_WINDOW`] is stored once.
    pub idempotency_key: Option<Box<str>>,
    /// Only if the topic has nothing newer than this; [`Id::ZERO`]: nothing ever, as far as known.
    pub if_match: Option<Id>,
}

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_WINDOW: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// How many keys are remembered. One more is refused: to forget one early would store a message twice.
const MAX_KEYS: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    Stored(Id),
    /// The key had been used: nothing was stored, and this is the id of the first time.
    Replayed(Id),
}

impl Appended {
    pub fn id(self) -> Id {
        match self {
            Self::Stored(id) | Self::Replayed(id) => id,
        }
    }
}

/// Why a message was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the topic has something newer than If-Match names")]
    PreconditionFailed { newest: Id },
    #[error("the idempotency key was used for another payload")]
    KeyReused,
    #[error("too many idempotency keys are remembered")]
    TooManyKeys,
    #[error("too many topics are remembered")]
    TooManyTopics,
    #[error(transparent)]
    Log(#[from] LogError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Nothing was stored.
    #[error("the log cannot be reached")]
    Unavailable,
    /// The store may or may not have done it.
    #[error("the log did not confirm in time")]
    UnknownOutcome,
    /// There is no room for another message. Nothing was stored; what is stored can be read.
    #[error("the log is full")]
    Full,
}

/// A tail that is kept filled for one follower, until this is dropped.
pub struct Followed {
    log: Arc<dyn Log>,
    tail: Arc<Tail>,
    follower: usize,
}

impl Followed {
    pub(crate) fn new(log: Arc<dyn Log>, tail: Arc<Tail>, follower: usize) -> Self {
        Self { log, tail, follower }
    }

    pub fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// The same tail for another follower.
    pub fn share(&self, follower: &Arc<Follower>) -> Self {
        let follower = self.tail.add_follower(follower.clone());
        Self { log: self.log.clone(), tail: self.tail.clone(), follower }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.log.unfollow(&self.tail, self.follower);
    }
}

/// What is known of one topic.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TopicStats {
    pub topic: Topic,
    pub newest: Id,
    pub messages: usize,
    pub bytes: usize,
    /// How many follow exactly this topic, in this process.
    pub subscribers: usize,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct LogStats {
    /// Topics that the index knows, with or without retained messages.
    pub topics: usize,
    pub messages: usize,
    pub bytes: usize,
    pub newest: Id,
    /// From here on the store vouches for having everything.
    pub began: Id,
}
