//! A connection whose subject is present in some topics.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use tokio::time::timeout;

use super::{Presences, TooMany, held::Wait};
use crate::{
    log::{CLAIMS_STEP, ClaimError, LogError},
    message::Topic,
};

/// How long a connection waits until it is told that its subject is present.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection whose subject is present in some topics. Dropping this ends that.
pub struct Present {
    pub(super) presences: Arc<Presences>,
    pub(super) sub: Arc<str>,
    pub(super) info: Option<Arc<str>>,
    pub(super) topics: BTreeSet<Topic>,
}

impl Present {
    /// Becomes present in these topics, and waits until the log has noted it.
    ///
    /// # Errors
    /// If that is not possible. Then the subject may be present until this is dropped.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves has the same effect as an error.
    pub async fn enter(&mut self, topics: Vec<Topic>) -> Result<(), EnterError> {
        let topics: BTreeSet<Topic> =
            topics.into_iter().filter(|topic| !self.topics.contains(topic)).collect();
        let topics: Vec<Topic> = topics.into_iter().collect();
        if topics.is_empty() {
            return Ok(());
        }
        let wait = Arc::new(Wait { left: AtomicUsize::new(topics.len()), ..Wait::default() });
        for step in topics.chunks(CLAIMS_STEP) {
            self.presences.enter(&self.sub, self.info.as_ref(), step, &wait)?;
            self.topics.extend(step.iter().cloned());
        }
        let done = timeout(PATIENCE, wait.done.notified()).await;
        let refused = *wait.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match (done, refused) {
            (Ok(()), None) => Ok(()),
            (Err(_), None) => Err(ClaimError::Log(LogError::Unavailable).into()),
            (_, Some(error)) => Err(error.into()),
        }
    }

    /// Takes over what another one of the same connection holds.
    pub fn absorb(&mut self, mut other: Self) {
        let topics = std::mem::take(&mut other.topics);
        let (twice, new): (Vec<_>, Vec<_>) =
            topics.into_iter().partition(|topic| self.topics.contains(topic));
        self.topics.extend(new);
        self.presences.leave(&self.sub, twice.iter());
    }

    /// True if this connection makes its subject present in the topic.
    pub fn is_in(&self, topic: &str) -> bool {
        self.topics.contains(topic)
    }

    /// Ends being present in one topic.
    pub fn leave(&mut self, topic: &str) {
        if let Some(topic) = self.topics.take(topic) {
            self.presences.leave(&self.sub, std::iter::once(&topic));
        }
    }
}

/// Why a connection cannot be present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl Drop for Present {
    fn drop(&mut self) {
        if !self.topics.is_empty() {
            self.presences.leave(&self.sub, self.topics.iter());
        }
    }
}
