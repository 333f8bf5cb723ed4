//! Messages for those who are level now: announced, never stored.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::cost;
use crate::message::{Id, Message};

/// How many announcements wait for readers that are slow to wake.
const MAX_MESSAGES: usize = 1024;
/// How many bytes of them. Newer ones push out older ones: an announcement is not a promise.
const MAX_BYTES: usize = 8 << 20;

/// The newest announcements of all topics, in a ring that nobody owns an entry of.
#[derive(Debug, Default)]
pub struct Ephemerals {
    /// How many there have ever been; the place of a reader is such a number.
    count: AtomicU64,
    // A std mutex: no await happens while it is held.
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    messages: VecDeque<(Id, Arc<Message>)>,
    bytes: usize,
}

impl Ephemerals {
    /// The place of a reader who has seen all.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Announces `message`, which came when `newest` was the newest id.
    pub fn push(&self, newest: Id, message: Arc<Message>) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.bytes += cost(&message);
        ring.messages.push_back((newest, message));
        while ring.messages.len() > MAX_MESSAGES || (ring.bytes > MAX_BYTES && ring.messages.len() > 1) {
            let Some((_, oldest)) = ring.messages.pop_front() else { break };
            ring.bytes -= cost(&oldest);
        }
        self.count.fetch_add(1, Ordering::Release);
    }

    /// The place of a reader who has seen all that came when nothing newer than `cursor` was stored.
    pub fn place_at(&self, cursor: Id) -> u64 {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = ring.messages.partition_point(|(newest, _)| *newest <= cursor);
        self.count() - (ring.messages.len() - seen) as u64
    }

    /// What came after the place `seen` and up to the place `upto`, each with the newest id of its time.
    pub fn between(&self, seen: u64, upto: u64, mut take: impl FnMut(Id, &Arc<Message>)) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let length = ring.messages.len();
        let index = |place: u64| {
            let younger = usize::try_from(self.count() - place).unwrap_or(usize::MAX);
            length.saturating_sub(younger)
        };
        for (newest, message) in ring.messages.range(index(seen)..index(upto)) {
            take(*newest, message);
        }
    }
}
