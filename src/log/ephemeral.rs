//! Ephemeral messages: for the subscriptions that are caught up, and never stored.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::cost;
use crate::message::{Id, Message};

/// How many ephemeral messages wait for readers that are slow to wake.
const MAX_MESSAGES: usize = 1024;
/// How many bytes these may have. Newer ones push out older ones, because their delivery is not promised.
const MAX_BYTES: usize = 8 << 20;

/// The newest ephemeral messages of all topics, in one ring that all readers share.
#[derive(Debug, Default)]
pub struct Ephemerals {
    /// How many there have ever been. A reader notes up to which of them it has seen.
    count: AtomicU64,
    // A std mutex: no await happens while it is held.
    ring: Mutex<Newest>,
}

#[derive(Debug, Default)]
struct Newest {
    messages: VecDeque<(Id, Message)>,
    bytes: usize,
}

impl Ephemerals {
    /// The count for a reader that has seen all of them.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Announces `message`. `newest` is the newest id at this time.
    pub fn push(&self, newest: Id, message: Message) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.bytes += cost(&message);
        ring.messages.push_back((newest, message));
        while ring.messages.len() > MAX_MESSAGES || (ring.bytes > MAX_BYTES && ring.messages.len() > 1) {
            let Some((_, oldest)) = ring.messages.pop_front() else { break };
            ring.bytes -= cost(&oldest);
        }
        self.count.fetch_add(1, Ordering::Release);
    }

    /// The count for a reader that has seen all of them from before the first message newer than `cursor`.
    pub fn count_at(&self, cursor: Id) -> u64 {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = ring.messages.partition_point(|(newest, _)| *newest <= cursor);
        self.count() - (ring.messages.len() - seen) as u64
    }

    /// Gives `take` those after the count `seen` and up to the count `upto`, each with its own count and the newest id of
    /// its time.
    pub fn between(&self, seen: u64, upto: u64, mut take: impl FnMut(u64, Id, &Message)) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let length = ring.messages.len();
        let index = |count: u64| {
            let younger = usize::try_from(self.count() - count).unwrap_or(usize::MAX);
            length.saturating_sub(younger)
        };
        let taken = index(seen)..index(upto);
        let first = self.count() - (length - taken.start) as u64 + 1;
        for (count, (newest, message)) in (first..).zip(ring.messages.range(taken)) {
            take(count, *newest, message);
        }
    }
}
