//! Idempotency keys, remembered for a while.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    log::{AppendError, IDEMPOTENCY_WINDOW},
    message::{Id, Payload, Topic},
};

/// How many keys are remembered. One more is refused: to forget one early would store a message twice.
const MAX_KEYS: usize = 1_000_000;

#[derive(Debug)]
pub struct Keys {
    used: HashMap<Arc<str>, Use>,
    by_age: VecDeque<(Instant, Arc<str>)>,
    /// What nobody can guess, so that nobody can make two payloads of one digest.
    seed: u64,
}

/// What is remembered of all keys: the seed of their digests, and each by age with its topic, id and digest.
pub type Remembered = (u64, Vec<(Arc<str>, Id, u64)>);

#[derive(Debug)]
struct Use {
    id: Id,
    digest: u64,
}

impl Default for Keys {
    fn default() -> Self {
        Self { used: HashMap::new(), by_age: VecDeque::new(), seed: rand::random() }
    }
}

impl Keys {
    /// What to give to [`restore`](Self::restore) in another process.
    pub fn remembered(&self) -> Remembered {
        let entry = |(_, name): &(Instant, Arc<str>)| {
            self.used.get(name).map(|used| (name.clone(), used.id, used.digest))
        };
        (self.seed, self.by_age.iter().filter_map(entry).collect())
    }

    pub fn restore((seed, keys): Remembered) -> Self {
        let mut restored = Self { seed, ..Self::default() };
        let (now, now_id) = (Instant::now(), Id::now());
        for (name, id, digest) in keys {
            // An id tells the time. Where that cannot be told, the key is remembered for longer.
            let age = Duration::from_micros(now_id.get().saturating_sub(id.get()));
            restored.by_age.push_back((now.checked_sub(age).unwrap_or(now), name.clone()));
            restored.used.insert(name, Use { id, digest });
        }
        restored
    }

    /// The id that was given for this key, if it was used of late for the same payload.
    ///
    /// # Errors
    /// [`AppendError::KeyReused`] if the payload was another one,
    /// [`AppendError::TooManyKeys`] if there is no room to remember a new one.
    pub fn find(&mut self, topic: &Topic, key: &str, payload: &Payload) -> Result<Option<Id>, AppendError> {
        self.forget_old();
        match self.used.get(&*name(topic, key)) {
            Some(used) if used.digest == self.digest(payload) => Ok(Some(used.id)),
            Some(_) => Err(AppendError::KeyReused),
            None if self.used.len() >= MAX_KEYS => Err(AppendError::TooManyKeys),
            None => Ok(None),
        }
    }

    pub fn remember(&mut self, topic: &Topic, key: &str, digest: u64, id: Id) {
        let name: Arc<str> = name(topic, key).into();
        self.by_age.push_back((Instant::now(), name.clone()));
        self.used.insert(name, Use { id, digest });
    }

    pub fn digest(&self, payload: &Payload) -> u64 {
        xxh3_64_with_seed(&payload.bytes, self.seed)
    }

    pub fn forget_old(&mut self) {
        while let Some((used_at, _)) = self.by_age.front()
            && used_at.elapsed() >= IDEMPOTENCY_WINDOW
        {
            let Some((_, name)) = self.by_age.pop_front() else { return };
            self.used.remove(&name);
        }
    }
}

/// No topic contains a NUL, so this is unambiguous.
fn name(topic: &Topic, key: &str) -> String {
    format!("{topic}\0{key}")
}
