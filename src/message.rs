//! Messages, topics, patterns and ids: pure values, parsed once.
//!
//! This room knows nothing of I/O, of HTTP, or of how messages are stored.

mod id;
mod object;
mod pattern;
mod pattern_set;
mod payload;
mod topic;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

#[cfg(test)]
pub use self::pattern_set::steps;
pub use self::{
    id::{Id, ParseIdError},
    object::Object,
    pattern::{ParsePatternError, Pattern},
    pattern_set::{PatternMap, PatternSet, Walk},
    payload::{JSON, Payload, PayloadError, PayloadKind},
    topic::{ParseTopicError, Topic},
};

/// A published message: one allocation, shared by the log and all readers.
#[derive(Debug)]
pub struct Message {
    /// The id. An ephemeral message has [`Id::ZERO`] instead.
    pub id: Id,
    /// The id of the message before it in the same topic, as far as the log knows.
    pub prev: Id,
    pub topic: Topic,
    /// The event type that subscribers see.
    pub event: Option<Box<str>>,
    pub payload: Payload,
    /// The one connection that does not get this message.
    pub exclude: Option<Box<str>>,
    /// The subject that has published it, if the server names it.
    pub by: Option<Arc<str>>,
    trimmed: AtomicBool,
    rendered: ArcSwapOption<Renderings>,
}

/// A message that has no id yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub topic: Topic,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    pub exclude: Option<Box<str>>,
    pub by: Option<Arc<str>>,
}

/// How many renderings a message can remember.
pub const RENDERINGS: usize = 4;

/// The bytes of a message in each of its forms, made when first needed.
#[derive(Debug, Default)]
struct Renderings([OnceLock<Bytes>; RENDERINGS]);

impl Message {
    /// A message that remembers its renderings until [`cool`](Self::cool) is called.
    pub fn new(draft: Draft, id: Id, prev: Id) -> Arc<Self> {
        let Draft { topic, event, payload, exclude, by } = draft;
        let rendered = ArcSwapOption::new(Some(Arc::default()));
        let trimmed = AtomicBool::new(false);
        Arc::new(Self { id, prev, topic, event, payload, exclude, by, trimmed, rendered })
    }

    /// Marks that the log no longer retains this message: a reader that still finds it must not send it.
    pub fn trim(&self) {
        self.trimmed.store(true, Ordering::Release);
    }

    /// True if the log has trimmed the message. A tail of a pattern may still hold it.
    pub fn is_trimmed(&self) -> bool {
        self.trimmed.load(Ordering::Acquire)
    }

    /// True if the message is not stored: its id is zero.
    pub fn is_ephemeral(&self) -> bool {
        self.id == Id::ZERO
    }

    /// The bytes in slot `form`, rendered at most once while the message is hot.
    ///
    /// The caller gives each slot its meaning. The message only remembers the bytes.
    pub fn rendered(&self, form: usize, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        match &*self.rendered.load() {
            Some(renderings) => renderings.0[form].get_or_init(|| render(self)).clone(),
            None => render(self),
        }
    }

    /// Forgets the renderings. A reader of an old message renders it for itself.
    pub fn cool(&self) {
        self.rendered.store(None);
    }
}
