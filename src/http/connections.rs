//! How many subscriptions are served, how much answers may hold, and the times that all connections keep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::Config,
    shutdown::{self, Shutdown},
};

/// How many bytes of messages one answer to a poll may contain; the next poll continues after them. Gaps are not
/// counted, because a client that gets only some of them would be told the same ones again.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// The same, while the answers that clients have not taken are [`MANY_BYTES`] together.
const SHORT_ANSWER_BYTES: usize = 32 << 10;
const MANY_BYTES: usize = 64 << 20;

/// The subscriptions of one server.
pub struct Connections {
    free: Arc<Semaphore>,
    max: usize,
    /// The bytes of messages in answers to polls that have not left.
    in_answers: Arc<AtomicUsize>,
    heartbeat: Duration,
    drain_grace: Duration,
    shutdown: Shutdown,
}

impl Connections {
    pub fn new(config: &Config, shutdown: Shutdown) -> Self {
        let max = config.max_connections.min(Semaphore::MAX_PERMITS);
        let Config { heartbeat, drain_grace, .. } = *config;
        let (free, in_answers) = (Arc::new(Semaphore::new(max)), Arc::default());
        Self { free, max, in_answers, heartbeat, drain_grace, shutdown }
    }

    /// How many are served now.
    pub fn count(&self) -> usize {
        self.max - self.free.available_permits()
    }

    /// A place for one more, until this is dropped. `None` if all places are taken.
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// The bytes of one answer, none yet.
    pub fn answer_bytes(&self) -> AnswerBytes {
        AnswerBytes { own: 0, all: self.in_answers.clone() }
    }

    /// A connection that was quiet for this long is sent a frame.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The time over which the connections leave when the server drains.
    pub fn drain_spread(&self) -> Duration {
        shutdown::spread(self.count(), self.drain_grace)
    }
}

/// The bytes of messages in one answer to a poll, counted until this is dropped.
pub struct AnswerBytes {
    own: usize,
    all: Arc<AtomicUsize>,
}

impl AnswerBytes {
    pub fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn count(&self) -> usize {
        self.own
    }

    /// True if the answer may have no more messages.
    pub fn is_full(&self) -> bool {
        let others = self.all.load(Ordering::Relaxed).saturating_sub(self.own);
        self.own >= if others < MANY_BYTES { MAX_ANSWER_BYTES } else { SHORT_ANSWER_BYTES }
    }
}

impl Drop for AnswerBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}
