//! The log: the published messages, in the order of their ids, and how to read on from a point in it.
//!
//! This room knows nothing of the subscribers, of HTTP, or of the wire.

mod clock;
mod ephemeral;
mod followers;
mod history;
mod hot;
mod list;
mod loss;
mod memory;
mod patterns;
mod payer;
mod position;
mod presence;
mod redis;
mod replicas;
mod retention;
mod rules;
mod subjects;
mod tail;

use std::sync::Arc;

use async_trait::async_trait;

#[cfg(test)]
pub use self::loss::{Boundary, Loss, Standing};
#[doc(hidden)]
pub use self::redis::script_constants;
pub use self::{
    clock::Clock,
    ephemeral::Ephemerals,
    history::{History, Missing},
    list::{Change, Entries, FollowedList, Generation, List, News},
    memory::MemoryLog,
    payer::Payer,
    position::{Beginning, Gap, Mark, Page, Position, Reason, Start},
    presence::{
        Hold, HoldError, Holds, MAX_MEMBERS, Member, MemberEvent, Members, NotedHolds, Part,
        STEP as HOLDS_STEP, changes_of, data as change_data,
    },
    redis::{Address, Credentials, ParseAddressError, RedisLog, Replicas},
    replicas::{Answering, Unanswered},
    retention::{Limits, Retention},
    rules::{Expiry, MAX_RULES, PRESENCE, Rule, Rules},
    subjects::{AddError, End, MAX_ENTRIES, Refusal, Subjects, Told},
    tail::{Follower, Tail, Uncovered, merge},
};
use self::{followers::Followers, retention::cost, tail::Ring};
pub(crate) use self::{
    payer::open_to,
    subjects::{FORGET_AT_ONCE, Refusals},
};
use crate::message::{Draft, Id, Pattern, PatternSet, Topic};

/// An append-only log of messages under one sequence of ids.
///
/// Three points are kept apart. [`newest`](Self::newest) is the newest id in the store.
/// [`watermark`](Self::watermark) is how far the tails of this process go. A cursor is how far one reader has
/// been given everything.
///
/// # Cancel safety
/// Dropping a future of [`append`](Self::append), [`announce`](Self::announce) or [`delete`](Self::delete) before it
/// resolves may still have its effect. Dropping any other future changes nothing.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Stores a message and assigns its id.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still append the message.
    async fn append(&self, append: Append) -> Result<Appended, AppendError>;

    /// The same for a client: its new topics and its idempotency keys are counted, and may be as many as it leaves free.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still append the message.
    async fn append_for(&self, append: Append, payer: Option<Payer>) -> Result<Appended, AppendError> {
        _ = payer;
        self.append(append).await
    }

    /// Gives `draft` to the subscriptions that are caught up now. It is not stored and has no id.
    async fn announce(&self, draft: Draft) -> Result<(), LogError>;

    /// Deletes the retained messages of `topic`. A reader that is behind is told a gap.
    async fn delete(&self, topic: &Topic) -> Result<(), LogError>;

    /// Follows a topic or a pattern: its tail is kept filled until the last [`Followed`] is dropped.
    ///
    /// Resolves when the live feed is confirmed. Listen first, then look back.
    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError>;

    /// The newest id of any topic. The log asks the store for it.
    async fn newest(&self) -> Result<Id, LogError>;

    /// Every message up to this id is in the tails. Each message moves it as it arrives.
    fn watermark(&self) -> Id;

    /// Waits until the watermark reaches `id`. False if it does not within a bounded time.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    async fn arrived(&self, id: Id) -> bool {
        self.watermark() >= id
    }

    /// Which messages count as expired now, though the log may not have removed them yet.
    fn expiry(&self) -> Expiry;

    /// Retains topics by other rules from now on. Messages that these rules do not allow are removed soon.
    fn retain_by(&self, rules: Rules);

    /// Finds where a reader of `patterns` begins.
    async fn begin(&self, patterns: &PatternSet, start: &Start) -> Result<Beginning, LogError>;

    /// Reads what the tails do not hold: the gaps after `position`, and the messages of the patterns.
    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError>;

    /// The newest messages of `topic` below `before`, up to `limit` and as many as fit in one step of the store. It asks
    /// the store, and not the tails of this process.
    async fn history(&self, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError>;

    /// Notes which subjects the connections of this process hold present, tells the joins, and tells the leaves of
    /// members whose grace is over. One call at a time.
    ///
    /// # Errors
    /// If the log may not have noted it. The same holds may be made again.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still have its effect.
    async fn hold(&self, holds: &Holds) -> Result<NotedHolds, LogError>;

    /// Resolves when [`hold`](Self::hold) should be called, though this process has nothing new to tell.
    async fn holds_due(&self);

    /// No member leaves from now on, because this process ends and the next one has its members.
    fn keep_members(&self) {}

    /// Up to `limit` members of `topic`, in the order of their subjects, from the first one after `after`.
    async fn members(&self, topic: &Topic, after: &str, limit: usize) -> Result<Members, LogError>;

    /// The newest ephemeral messages.
    fn ephemerals(&self) -> &Ephemerals;

    /// Up to `limit` topics, sorted by name, from the first one after `after`.
    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError>;

    /// How many followers this process has for exactly this topic.
    fn followers(&self, topic: &Topic) -> usize;

    /// Counts of the whole log.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the store cannot be asked.
    async fn stats(&self) -> Result<LogStats, LogError>;

    /// True if the log recently refused a message because there was no room.
    fn is_full(&self) -> bool {
        false
    }

    /// The replicas that share this log, if others may.
    fn replicas(&self) -> Option<Arc<Replicas>> {
        None
    }

    /// The lists of subjects, and the refusals of their tokens, if this log keeps them.
    fn subjects(&self) -> Option<Arc<dyn Subjects>> {
        None
    }

    /// Checks that a publish would be acknowledged now, as far as the log can tell without publishing.
    async fn check(&self) -> Result<(), Unfit> {
        Ok(())
    }

    /// Ends a [`Followed`], whose drop calls this.
    fn unfollow(&self, tail: &Arc<Tail>, follower: usize);
}

/// A message to append, and the conditions for it.
#[derive(Clone, Debug)]
pub struct Append {
    pub draft: Draft,
    /// A message with the same key and topic is stored once within [`IDEMPOTENCY_WINDOW`].
    pub idempotency_key: Option<Box<str>>,
    /// Append only if the topic has no message newer than this. [`Id::ZERO`]: only if, as far as the log
    /// knows, it never had one.
    pub if_match: Option<Id>,
}

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_WINDOW: std::time::Duration = std::time::Duration::from_secs(5 * 60);
/// How many keys are remembered. One more is refused, because a key that is forgotten early could let a
/// message be stored twice.
const MAX_KEYS: usize = 1_000_000;

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    Stored(Id),
    /// The key was used before: nothing was stored. This is the id of the first message.
    Replayed(Id),
}

impl Appended {
    /// The id of the message, whether it was stored now or before.
    pub fn id(self) -> Id {
        match self {
            Self::Stored(id) | Self::Replayed(id) => id,
        }
    }
}

/// Why a message was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error("the topic has a message newer than the id in If-Match")]
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

/// Why the log did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The message was not stored.
    #[error("the log cannot be reached")]
    Unavailable,
    /// The store may or may not have stored the message.
    #[error("the log did not confirm in time")]
    UnknownOutcome,
    /// There is no room for another message. The message was not stored; the retained ones can still be read.
    #[error("the log is full")]
    Full,
}

/// A publish would not be acknowledged now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Unfit {
    pub error: LogError,
    /// The fault of the store, in words without secrets, if the store named it.
    pub why: Option<String>,
}

impl From<LogError> for Unfit {
    fn from(error: LogError) -> Self {
        Self { error, why: None }
    }
}

/// A tail that is kept filled for one follower until this is dropped.
pub struct Followed {
    log: Arc<dyn Log>,
    tail: Arc<Tail>,
    follower: usize,
}

impl Followed {
    pub(crate) fn new(log: Arc<dyn Log>, tail: Arc<Tail>, follower: usize) -> Self {
        Self { log, tail, follower }
    }

    /// The tail that is kept filled.
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

/// The counts of one topic.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TopicStats {
    pub topic: Topic,
    pub newest: Id,
    pub messages: usize,
    pub bytes: usize,
    /// How many followers this process has for exactly this topic.
    pub subscribers: usize,
}

/// Counts of a whole log.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LogStats {
    /// Topics that the index knows, with or without retained messages.
    pub topics: usize,
    pub messages: usize,
    pub bytes: usize,
    pub newest: Id,
    /// The store vouches for every message from here on.
    pub began: Id,
    /// True while the state file cannot be written, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_failed: Option<bool>,
}
