//! The embedded log: everything in memory, one critical section for each append.

mod keys;
pub(super) mod patterns;
mod retention;
mod state;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

pub use self::retention::Retention;
use self::state::State;
use super::{
    Append, AppendError, Appended, Beginning, Ephemerals, Followed, Follower, Log, LogError, LogStats, Page,
    Position, Start, Tail, TopicStats,
};
use crate::message::{Draft, Id, Message, Pattern, Topic};

/// How often what has expired is removed. Until then it takes memory, but nobody is given it.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A log that lives and dies with this process.
pub struct MemoryLog {
    retention: Retention,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
    watermark: AtomicU64,
    ephemerals: Ephemerals,
}

impl MemoryLog {
    /// Begins an empty log, and a task that sweeps it for as long as it lives.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(retention: Retention) -> Arc<Self> {
        let began = Id::now();
        let log = Arc::new(Self {
            retention,
            state: Mutex::new(State::new(began)),
            watermark: AtomicU64::new(began.get()),
            ephemerals: Ephemerals::default(),
        });
        // The task ends with the log: it holds no more than a weak reference while it waits.
        let weak = Arc::downgrade(&log);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(log) = weak.upgrade() else { return };
                while log.state().sweep(&log.retention, Id::now()) {
                    tokio::task::yield_now().await;
                }
            }
        });
        log
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let (appended, tails) = {
            let mut state = self.state();
            let (appended, tails) = state.append(append, &self.retention)?;
            // Only after the tails hold the message, and before anybody else can append.
            self.watermark.store(state.newest().get(), Ordering::Release);
            (appended, tails)
        };
        tails.iter().for_each(|tail| tail.wake());
        Ok(appended)
    }

    async fn announce(&self, draft: Draft) -> Result<(), LogError> {
        let tails = {
            let state = self.state();
            let tails = state.tails_of(&draft.topic);
            if !tails.is_empty() {
                self.ephemerals.push(state.newest(), Message::new(draft, Id::ZERO, Id::ZERO));
            }
            tails
        };
        tails.iter().for_each(|tail| tail.wake());
        Ok(())
    }

    async fn delete(&self, topic: &Topic) -> Result<(), LogError> {
        self.state().delete(topic);
        Ok(())
    }

    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError> {
        let (tail, key) = self.state().follow(pattern, follower);
        Ok(Followed::new(self, tail, key))
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        self.state().unfollow(tail, follower);
    }

    async fn newest(&self) -> Result<Id, LogError> {
        Ok(self.watermark())
    }

    fn watermark(&self) -> Id {
        Id::new(self.watermark.load(Ordering::Acquire))
    }

    fn expired(&self) -> Id {
        self.retention.expired()
    }

    async fn begin(&self, patterns: &[Pattern], start: &Start) -> Result<Beginning, LogError> {
        Ok(self.state().begin(patterns, start, self.expired()))
    }

    async fn read(&self, patterns: &[Pattern], position: &Position, limit: usize) -> Result<Page, LogError> {
        Ok(self.state().read(patterns, position, limit, self.expired()))
    }

    fn ephemerals(&self) -> &Ephemerals {
        &self.ephemerals
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        Ok(self.state().topics(after, limit))
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        Ok(self.state().stats())
    }
}
