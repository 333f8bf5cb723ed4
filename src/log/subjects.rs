//! A log keeps this of subjects beside the messages: their lists of topics, and the refusals of their tokens.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    LogError,
    list::{Entries, FollowedList},
};
use crate::message::{Id, Pattern};

/// How many entries the list of a subject may have, and how many of them may have a wildcard.
pub const MAX_ENTRIES: usize = 1000;
pub const MAX_WILD_ENTRIES: usize = 100;
/// The cost of an entry of a list, or of a refusal, in bytes, without the subject and the topic. It counts towards the
/// limit on all retained bytes.
pub const ENTRY_BYTES: usize = 200;

/// How many refusals that are over are forgotten when one is added.
pub const FORGET_AT_ONCE: usize = 16;

/// The subjects in a log.
///
/// # Cancel safety
/// Dropping a future of a change before it resolves may still have its effect.
#[async_trait]
pub trait Subjects: Send + Sync {
    /// Adds a topic to the list of a subject, and returns the id at which it was added: the first one, if it is there
    /// already.
    async fn add(&self, subject: &str, topic: &Pattern) -> Result<Id, AddError>;

    /// Removes a topic from the list of a subject, if it is there.
    async fn remove(&self, subject: &str, topic: &Pattern) -> Result<(), LogError>;

    /// The list of a subject.
    async fn list(&self, subject: &str) -> Result<Entries, LogError>;

    /// Follows the list of a subject: every change up to the watermark of the log is in it. It is known when this
    /// resolves.
    async fn follow(&self, subject: &str) -> Result<FollowedList, LogError>;

    /// Ends a subject: each process that shares the log is told. With a duration, older tokens of the subject are
    /// refused for so long.
    async fn end(&self, subject: &str, refuse: Option<Duration>) -> Result<End, AddError>;

    /// Sets who is told the ends, and tells the refusals that are known. The first call counts.
    fn tell(&self, told: Arc<dyn Told>);
}

/// Is told what other processes have done. Its functions return soon.
pub trait Told: Send + Sync + 'static {
    /// A subject was ended.
    fn ended(&self, end: End);

    /// Ends may have been missed. The refusals among them are told before this.
    fn missed(&self);

    /// Older tokens of these subjects are refused, by requests that were made earlier. Connections that they refuse end with
    /// [`refused_all`](Self::refused_all).
    fn refused(&self, refusals: Vec<(Box<str>, Refusal)>);

    /// The refusals were told, or as many of them as can be read now.
    fn refused_all(&self);
}

/// The end of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub subject: Box<str>,
    pub refusal: Option<Refusal>,
    /// Its id in the log, by which a process knows an end that it has heard of. Zero if it can hear of it only once.
    pub id: Id,
}

/// The refusal of a subject's older tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Tokens that were issued up to the end of this second are refused. In seconds since the Unix epoch.
    pub second: u64,
    /// The refusal lasts until then, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

impl Refusal {
    /// Both refusals in one. A shorter one never shortens.
    pub fn and(self, other: Self) -> Self {
        Self { second: self.second.max(other.second), until_ms: self.until_ms.max(other.until_ms) }
    }

    pub fn is_over(self) -> bool {
        self.until_ms <= now_ms()
    }
}

/// The refusals of subjects. Those that are over are found without a walk.
#[derive(Debug, Default)]
pub struct Refusals {
    by_subject: HashMap<Arc<str>, Refusal>,
    by_until: BTreeSet<(u64, Arc<str>)>,
}

impl Refusals {
    /// Adds a refusal to that of the subject, and returns both in one. The flag is true if there was none.
    pub fn note(&mut self, subject: &str, refusal: Refusal) -> (Refusal, bool) {
        let (subject, known) = match self.by_subject.get_key_value(subject) {
            Some((subject, known)) => (subject.clone(), Some(*known)),
            None => (subject.into(), None),
        };
        if let Some(known) = known {
            self.by_until.remove(&(known.until_ms, subject.clone()));
        }
        let refusal = known.map_or(refusal, |known| known.and(refusal));
        self.by_until.insert((refusal.until_ms, subject.clone()));
        self.by_subject.insert(subject, refusal);
        (refusal, known.is_none())
    }

    /// Forgets one that is over, and returns its subject.
    pub fn forget_old(&mut self) -> Option<Arc<str>> {
        let (until_ms, _) = self.by_until.first()?;
        if *until_ms > now_ms() {
            return None;
        }
        let (_, subject) = self.by_until.pop_first()?;
        self.by_subject.remove(&subject);
        Some(subject)
    }

    pub fn get(&self, subject: &str) -> Option<Refusal> {
        self.by_subject.get(subject).copied()
    }

    pub fn len(&self) -> usize {
        self.by_subject.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Refusal)> {
        self.by_subject.iter()
    }
}

/// The time by the clock of this process, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Why nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error("the list has as many entries as it may have")]
    TooMany,
    #[error("the list has as many patterns with a wildcard as it may have")]
    TooManyWild,
    #[error("lists and refusals take all the room")]
    NoRoom,
    #[error(transparent)]
    Log(#[from] LogError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_forgotten_once_it_is_over_and_no_other_one_with_it() {
        let mut refusals = Refusals::default();
        let until = |until_ms| Refusal { second: 1, until_ms };
        assert!(refusals.note("extended", until(1)).1 && refusals.note("old", until(2)).1);
        assert!(refusals.note("older", until(1)).1 && refusals.note("new", until(u64::MAX)).1);
        assert_eq!(refusals.note("extended", until(u64::MAX)), (until(u64::MAX), false));
        assert_eq!(refusals.note("extended", until(5)), (until(u64::MAX), false));
        let forgotten: Vec<_> = std::iter::from_fn(|| refusals.forget_old()).collect();
        assert_eq!(forgotten.iter().map(|subject| &**subject).collect::<Vec<_>>(), ["older", "old"]);
        assert_eq!((refusals.len(), refusals.by_until.len()), (2, 2));
        assert!(refusals.get("new").is_some() && refusals.get("old").is_none());
    }
}
