//! Idempotency keys, remembered for a while.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    log::{AppendError, IDEMPOTENCY_WINDOW},
    message::{Id, Payload, Topic},
};

/// How many keys are remembered. One more is refused: to forget one early would store a message twice.
const MAX_KEYS: usize = 1_000_000;

#[derive(Debug, Default)]
pub struct Keys {
    used: HashMap<Arc<str>, Use>,
    by_age: VecDeque<(Instant, Arc<str>)>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Use {
    id: Id,
    digest: u64,
}

impl Keys {
    /// The id that was given for this key, if it was used of late for the same payload.
    ///
    /// # Errors
    /// [`AppendError::KeyReused`] if the payload was another one,
    /// [`AppendError::TooManyKeys`] if there is no room to remember a new one.
    pub fn find(&mut self, topic: &Topic, key: &str, payload: &Payload) -> Result<Option<Id>, AppendError> {
        self.forget_old();
        match self.used.get(&*name(topic, key)) {
            Some(used) if used.digest == self.hasher.hash_one(&payload.bytes) => Ok(Some(used.id)),
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
        self.hasher.hash_one(&payload.bytes)
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
