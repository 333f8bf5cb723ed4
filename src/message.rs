//! Messages, topics, patterns and ids: pure values, parsed once.
//!
//! This room knows nothing of I/O, of HTTP, or of how messages are stored.

mod id;
mod object;
mod pattern;
mod pattern_set;
mod payload;
mod topic;

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use triomphe::ThinArc;

#[cfg(test)]
pub use self::pattern_set::steps;
pub use self::{
    id::{Id, ParseIdError},
    object::Object,
    pattern::{ParsePatternError, Pattern},
    pattern_set::{PatternMap, PatternSet, Walk},
    payload::{JSON, MAX_TYPE_BYTES, Payload, PayloadError, PayloadKind},
    topic::{ParseTopicError, Topic},
};

/// A published message, shared by the log and all readers. A clone is a pointer to the same message.
///
/// A short payload stands behind the head in one allocation, because very many messages are retained.
#[derive(Clone, Debug)]
pub struct Message(ThinArc<Head, u8>);

/// The parts of a message that every message has, and what it remembers.
#[derive(Debug)]
pub struct Head {
    /// The id. An ephemeral message has [`Id::ZERO`] instead.
    pub id: Id,
    /// The id of the message before it in the same topic, as far as the log knows.
    pub prev: Id,
    pub topic: Topic,
    pub kind: PayloadKind,
    is_trimmed: AtomicBool,
    is_cool: AtomicBool,
    rare: Option<Box<Rare>>,
    rendered: ArcSwapOption<Renderings>,
}

/// The parts that few messages have.
#[derive(Debug)]
struct Rare {
    event: Option<Box<str>>,
    content_type: Option<Box<str>>,
    exclude: Option<Box<str>>,
    by: Option<Arc<str>>,
    long: Option<Box<[u8]>>,
}

/// A longer payload has an allocation of its own. A message is made while the log is locked, and copies no more than this.
const SHORT_BYTES: usize = 512;

/// A shared text has two counts before it.
const SHARED_BYTES: usize = 2 * size_of::<usize>();

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
pub const RENDERINGS: usize = 9;

/// The bytes of a message in each of its forms, made when first needed.
#[derive(Debug, Default)]
struct Renderings([OnceLock<Bytes>; RENDERINGS]);

impl Message {
    /// A message that remembers its renderings until [`cool`](Self::cool) is called.
    pub fn new(draft: Draft, id: Id, prev: Id) -> Self {
        let Draft { topic, event, payload, exclude, by } = draft;
        let Payload { kind, content_type, bytes } = payload;
        let (short, long) =
            if bytes.len() <= SHORT_BYTES { (bytes, None) } else { (Box::default(), Some(bytes)) };
        let is_plain = event.is_none() && content_type.is_none() && exclude.is_none() && by.is_none();
        let rare =
            (!is_plain || long.is_some()).then(|| Box::new(Rare { event, content_type, exclude, by, long }));
        let (is_trimmed, is_cool) = (AtomicBool::new(false), AtomicBool::new(false));
        let rendered = ArcSwapOption::empty();
        let head = Head { id, prev, topic, kind, is_trimmed, is_cool, rare, rendered };
        Self(ThinArc::from_header_and_slice(head, &short))
    }

    /// The payload, exactly as it was published.
    pub fn bytes(&self) -> &[u8] {
        let long = self.rare.as_ref().and_then(|rare| rare.long.as_deref());
        long.unwrap_or_else(|| &self.0.slice)
    }

    /// The payload as text, unless it is binary.
    pub fn as_str(&self) -> Option<&str> {
        match self.kind {
            PayloadKind::Binary => None,
            PayloadKind::Json | PayloadKind::Text => std::str::from_utf8(self.bytes()).ok(),
        }
    }

    /// True if both are the same message, and not only equal ones.
    pub fn is(&self, other: &Self) -> bool {
        self.0.as_ptr() == other.0.as_ptr()
    }

    /// The bytes in slot `form`, rendered at most once while the message is hot.
    ///
    /// The caller gives each slot its meaning. The message only remembers the bytes.
    pub fn rendered(&self, form: usize, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        match self.renderings() {
            Some(renderings) => renderings.0[form].get_or_init(|| render(self)).clone(),
            None => render(self),
        }
    }

    /// The renderings, with their memory. `None` once the message is cool.
    fn renderings(&self) -> Option<Arc<Renderings>> {
        if self.is_cool.load(Ordering::Acquire) {
            return None;
        }
        if let Some(renderings) = self.rendered.load_full() {
            return Some(renderings);
        }
        self.rendered.compare_and_swap(&None::<Arc<Renderings>>, Some(Arc::default()));
        // If the message was cooled meanwhile, nothing would free them.
        if self.is_cool.load(Ordering::Acquire) {
            self.rendered.store(None);
        }
        self.rendered.load_full()
    }

    /// Forgets the renderings. A reader of an old message renders it for itself.
    pub fn cool(&self) {
        self.is_cool.store(true, Ordering::Release);
        self.rendered.store(None);
    }
}

impl Deref for Message {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.0.header.header
    }
}

impl Head {
    /// How many bytes the parts take that few messages have, beside the text of the event and that of the publisher.
    pub fn rare_bytes(&self) -> usize {
        let Some(rare) = &self.rare else { return 0 };
        let texts = [&rare.content_type, &rare.exclude].into_iter().flatten();
        let shared = if rare.by.is_some() { SHARED_BYTES } else { 0 };
        size_of::<Rare>() + texts.map(|text| text.len()).sum::<usize>() + shared
    }

    /// The event type that subscribers see.
    pub fn event(&self) -> Option<&str> {
        self.rare.as_ref()?.event.as_deref()
    }

    /// The declared type of the payload, if it says more than its kind.
    pub fn content_type(&self) -> Option<&str> {
        self.rare.as_ref()?.content_type.as_deref()
    }

    /// The one connection that does not get this message.
    pub fn exclude(&self) -> Option<&str> {
        self.rare.as_ref()?.exclude.as_deref()
    }

    /// The subject that has published it, if the server names it.
    pub fn by(&self) -> Option<&str> {
        self.rare.as_ref()?.by.as_deref()
    }

    /// Marks that the log no longer retains this message: a reader that still finds it must not send it.
    pub fn trim(&self) {
        self.is_trimmed.store(true, Ordering::Release);
    }

    /// True if the log has trimmed the message. A tail of a pattern may still hold it.
    pub fn is_trimmed(&self) -> bool {
        self.is_trimmed.load(Ordering::Acquire)
    }

    /// True if the message is not stored: its id is zero.
    pub fn is_ephemeral(&self) -> bool {
        self.id == Id::ZERO
    }
}
