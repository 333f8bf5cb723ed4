//! A connection whose subject is present in some topics.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use tokio::time::timeout;

use super::{Presences, TooMany, held::Wait};
use crate::{
    broker::ListChange,
    log::{HOLDS_STEP, HoldError, LogError, changes_of},
    message::{Pattern, Topic},
};

/// How long a connection waits until it is told that its subject is present.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection whose subject is present in some topics. Dropping this ends that.
pub struct Present {
    pub(super) presences: Arc<Presences>,
    pub(super) sub: Arc<str>,
    pub(super) info: Option<Arc<str>>,
    /// The topics that the client, or a command, has named.
    pub(super) named: BTreeSet<Topic>,
    /// The topics of the subject's list, if the connection is present in these.
    pub(super) listed: Option<BTreeSet<Topic>>,
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
        self.enter_new(topics, |this| &mut this.named).await
    }

    /// Becomes present in the topics of the subject's list too, and [follows](Self::note) its changes from then on.
    ///
    /// # Errors
    /// As of [`enter`](Self::enter).
    ///
    /// # Cancel safety
    /// As of [`enter`](Self::enter).
    pub async fn enter_list<'a>(
        &mut self,
        list: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), EnterError> {
        self.enter_new(list.filter_map(countable), |this| this.listed.get_or_insert_default()).await
    }

    async fn enter_new(
        &mut self,
        topics: impl IntoIterator<Item = Topic>,
        into: fn(&mut Self) -> &mut BTreeSet<Topic>,
    ) -> Result<(), EnterError> {
        let topics: BTreeSet<Topic> = topics.into_iter().collect();
        let (known, new): (Vec<_>, Vec<_>) = topics.into_iter().partition(|topic| self.holds(topic));
        into(self).extend(known);
        if new.is_empty() {
            return Ok(());
        }
        let wait = Arc::new(Wait { left: AtomicUsize::new(new.len()), ..Wait::default() });
        for step in new.chunks(HOLDS_STEP) {
            self.presences.enter(&self.sub, self.info.as_ref(), step, &wait)?;
            into(self).extend(step.iter().cloned());
        }
        let done = timeout(PATIENCE, wait.done.notified()).await;
        let refused = *wait.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match (done, refused) {
            (Ok(()), None) => Ok(()),
            (Err(_), None) => Err(HoldError::Log(LogError::Unavailable).into()),
            (_, Some(error)) => Err(error.into()),
        }
    }

    /// Notes a change of the subject's list. The log is told soon. If there is no room for one more topic, the subject
    /// is not present there.
    pub fn note(&mut self, change: &ListChange) {
        let (ListChange::Added(pattern) | ListChange::Removed(pattern)) = change;
        let (Some(listed), Some(topic)) = (&mut self.listed, countable(pattern)) else { return };
        if let ListChange::Removed(_) = change {
            if listed.remove(&topic) && !self.named.contains(&topic) {
                self.presences.leave(&self.sub, std::iter::once(&topic));
            }
            return;
        }
        // The log is told later, without a wait.
        let wait = Arc::new(Wait { left: AtomicUsize::new(1), ..Wait::default() });
        let (is_held, one) = (self.holds(&topic), std::slice::from_ref(&topic));
        if is_held || self.presences.enter(&self.sub, self.info.as_ref(), one, &wait).is_ok() {
            self.listed.get_or_insert_default().insert(topic);
        }
    }

    /// Takes over the named topics of another one of the same connection.
    pub fn absorb(&mut self, mut other: Self) {
        let topics = std::mem::take(&mut other.named);
        let twice: Vec<_> = topics.iter().filter(|topic| self.holds(topic)).cloned().collect();
        self.named.extend(topics);
        self.presences.leave(&self.sub, twice.iter());
    }

    fn holds(&self, topic: &Topic) -> bool {
        self.named.contains(topic) || self.lists(topic)
    }

    fn lists(&self, topic: &Topic) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.contains(topic))
    }

    /// True if this connection makes its subject present in the topic, because it was named.
    pub fn is_in(&self, topic: &str) -> bool {
        self.named.contains(topic)
    }

    /// Ends being present in one topic that was named, unless the list has it too.
    pub fn leave(&mut self, topic: &str) {
        if let Some(topic) = self.named.take(topic).filter(|topic| !self.lists(topic)) {
            self.presences.leave(&self.sub, std::iter::once(&topic));
        }
    }
}

/// The topic of an entry of a list, if a subject can be present there.
fn countable(pattern: &Pattern) -> Option<Topic> {
    pattern.topic().filter(|topic| changes_of(topic).is_some())
}

/// Why a connection cannot be present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Hold(#[from] HoldError),
}

impl Drop for Present {
    fn drop(&mut self) {
        let named = self.named.iter();
        let listed = self.listed.iter().flatten().filter(|topic| !self.named.contains(*topic));
        let mut topics = named.chain(listed).peekable();
        if topics.peek().is_some() {
            self.presences.leave(&self.sub, topics);
        }
    }
}
