//! What is published and read: pure values, parsed once.
//!
//! This room knows nothing of I/O, of HTTP, or of where messages are kept.

mod id;
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
    pattern::{ParsePatternError, Pattern},
    pattern_set::{PatternMap, PatternSet, Walk},
    payload::{Payload, PayloadError, PayloadKind},
    topic::{ParseTopicError, Topic},
};

/// A published message: one allocation shared by the log and all who read it.
#[derive(Debug)]
pub struct Message {
    /// The id, [`Id::ZERO`] for an ephemeral message, which has none.
    pub id: Id,
    /// The id of the message before it in the same topic, as far as the log can vouch for it.
    pub prev: Id,
    pub topic: Topic,
    /// The event type that subscribers see.
    pub event: Option<Box<str>>,
    pub payload: Payload,
    /// The one connection that is not given this message.
    pub exclude: Option<Box<str>>,
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
}

/// How many renderings a message can remember.
pub const RENDERINGS: usize = 4;

/// The bytes of a message in each of its wire forms, made when first asked for.
#[derive(Debug, Default)]
struct Renderings([OnceLock<Bytes>; RENDERINGS]);

impl Message {
    /// A message that remembers its renderings until it is told to [`cool`](Self::cool).
    pub fn new(draft: Draft, id: Id, prev: Id) -> Arc<Self> {
        let Draft { topic, event, payload, exclude } = draft;
        let rendered = ArcSwapOption::new(Some(Arc::default()));
        let trimmed = AtomicBool::new(false);
        Arc::new(Self { id, prev, topic, event, payload, exclude, trimmed, rendered })
    }

    /// The log has let go of this message: whoever still finds it must not give it out.
    pub fn trim(&self) {
        self.trimmed.store(true, Ordering::Release);
    }

    pub fn is_trimmed(&self) -> bool {
        self.trimmed.load(Ordering::Acquire)
    }

    pub fn is_ephemeral(&self) -> bool {
        self.id == Id::ZERO
    }

    /// The bytes in slot `form`, rendered at most once while the message is hot.
    ///
    /// What the slots mean is for the caller to decide; the message only remembers.
    pub fn rendered(&self, form: usize, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        match &*self.rendered.load() {
            Some(renderings) => renderings.0[form].get_or_init(|| render(self)).clone(),
            None => render(self),
        }
    }

    /// Forgets the renderings: who reads an old message renders it for itself.
    pub fn cool(&self) {
        self.rendered.store(None);
    }
}
