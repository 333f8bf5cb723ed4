//! Idempotency keys, remembered for a limited time.

use std::{collections::HashMap, time::Duration};

use hashlink::LinkedHashMap;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cost::KEY_BYTES;
use crate::{
    log::{AppendError, IDEMPOTENCY_WINDOW, MAX_KEYS},
    message::{Id, Payload, Topic},
};

/// How many old keys are removed at once to make room. The sweep removes the others.
const MAX_FORGOTTEN: usize = 4096;

#[derive(Debug)]
pub struct Keys {
    /// The keys by topic and name, oldest first.
    used: LinkedHashMap<Box<str>, Use>,
    /// How many bytes they take.
    bytes: usize,
    /// How many of these bytes the keys of each topic take.
    shares: HashMap<Topic, usize>,
    /// A random number, so that clients cannot find two payloads with the same digest.
    seed: u64,
}

#[derive(Debug)]
struct Use {
    at: Instant,
    id: Id,
    digest: u64,
}

impl Use {
    fn has_run_out(&self) -> bool {
        self.at.elapsed() >= IDEMPOTENCY_WINDOW
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self { used: LinkedHashMap::new(), bytes: 0, shares: HashMap::new(), seed: rand::random() }
    }
}

impl Keys {
    /// No keys yet, and the seed of the digests that [`restore`](Self::restore) is given.
    pub fn with_seed(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// The topic and name, the id and the digest of each key, oldest first, for [`restore`](Self::restore) in
    /// another process.
    pub fn remembered(&self) -> impl Iterator<Item = (&str, Id, u64)> {
        self.used.iter().map(|(name, used)| (&**name, used.id, used.digest))
    }

    /// Remembers a key of another process.
    pub fn restore(&mut self, name: Box<str>, id: Id, digest: u64, now: Id) {
        // The age of a key follows from its id. If the id is not in the past, the key counts as new.
        let age = Duration::from_micros(now.get().saturating_sub(id.get()));
        let at = Instant::now();
        if let Ok(topic) = topic_in(&name).parse() {
            self.insert(topic, name, Use { at: at.checked_sub(age).unwrap_or(at), id, digest });
        }
    }

    /// The id of the message that this key stored, if it was used recently for the same payload.
    ///
    /// All keys may take `max_bytes`. Those of one topic may take no more than the room that is left, so no
    /// topic can use up all of it.
    ///
    /// # Errors
    /// [`AppendError::KeyReused`] if the key was used for another payload, [`AppendError::TooManyKeys`] if
    /// there is no room for a new key.
    pub fn find(
        &mut self,
        topic: &Topic,
        key: &str,
        payload: &Payload,
        max_bytes: usize,
    ) -> Result<Option<Id>, AppendError> {
        if !self.has_room_for(topic, max_bytes) {
            self.forget_old(MAX_FORGOTTEN);
        }
        match self.used.get(&*name(topic, key)).filter(|used| !used.has_run_out()) {
            Some(used) if used.digest == self.digest(payload) => Ok(Some(used.id)),
            Some(_) => Err(AppendError::KeyReused),
            None if !self.has_room_for(topic, max_bytes) => Err(AppendError::TooManyKeys),
            None => Ok(None),
        }
    }

    pub fn remember(&mut self, topic: &Topic, key: &str, digest: u64, id: Id) {
        let name = name(topic, key);
        // An old key of this name may not have been removed yet.
        self.remove(&name);
        self.insert(topic.clone(), name.into(), Use { at: Instant::now(), id, digest });
    }

    fn insert(&mut self, topic: Topic, name: Box<str>, used: Use) {
        self.bytes += cost(&name);
        *self.shares.entry(topic).or_default() += cost(&name);
        self.used.insert(name, used);
    }

    fn remove(&mut self, name: &str) {
        if self.used.remove(name).is_none() {
            return;
        }
        self.bytes -= cost(name);
        if let Some(share) = self.shares.get_mut(topic_in(name)) {
            *share -= cost(name);
            if *share == 0 {
                self.shares.remove(topic_in(name));
            }
        }
    }

    /// How many bytes the keys take.
    pub fn footprint(&self) -> usize {
        self.bytes
    }

    fn has_room_for(&self, topic: &Topic, max_bytes: usize) -> bool {
        let share = self.shares.get(topic).copied().unwrap_or_default();
        self.used.len() < MAX_KEYS && share < max_bytes.saturating_sub(self.bytes)
    }

    pub fn digest(&self, payload: &Payload) -> u64 {
        xxh3_64_with_seed(&payload.bytes, self.seed)
    }

    /// Removes up to `limit` old keys, and returns how many it removed.
    pub fn forget_old(&mut self, limit: usize) -> usize {
        for count in 0..limit {
            let Some((name, _)) = self.used.front().filter(|(_, used)| used.has_run_out()) else {
                return count;
            };
            let name = name.clone();
            self.remove(&name);
        }
        limit
    }
}

/// A topic cannot contain a NUL, so the name is unambiguous.
fn name(topic: &Topic, key: &str) -> String {
    format!("{topic}\0{key}")
}

fn cost(name: &str) -> usize {
    KEY_BYTES + name.len()
}

fn topic_in(name: &str) -> &str {
    name.split_once('\0').map_or(name, |(topic, _)| topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: usize = 200_000;

    fn remember(keys: &mut Keys, topic: &str, key: usize) -> bool {
        let (topic, key) = (topic.parse().expect("a topic"), key.to_string());
        let is_new = keys.find(&topic, &key, &Payload::text("x"), MAX_BYTES) == Ok(None);
        if is_new {
            keys.remember(&topic, &key, 0, Id::ZERO);
        }
        is_new
    }

    /// How many bytes the keys of a topic take when it has as many as it may.
    fn fill(keys: &mut Keys, topic: &str) -> usize {
        (0..2_000).for_each(|key| _ = remember(keys, topic, key));
        keys.shares[topic]
    }

    fn is_about(bytes: usize, expected: usize) -> bool {
        bytes.abs_diff(expected) < 1_000
    }

    #[test]
    fn no_topic_takes_the_room_of_all_others_and_old_keys_give_it_back() {
        let mut keys = Keys::default();
        assert!(is_about(fill(&mut keys, "loud"), MAX_BYTES / 2));
        assert!(is_about(fill(&mut keys, "loud.too"), MAX_BYTES / 4));
        assert!((0..100).all(|number| remember(&mut keys, &format!("quiet.{number}"), 0)));

        let now = Id::now();
        let restored = |age| {
            let mut restored = Keys::with_seed(keys.seed());
            keys.remembered().for_each(|(name, _, digest)| {
                restored.restore(name.into(), now.minus(age), digest, now);
            });
            restored
        };
        assert_eq!(restored(Duration::ZERO).shares, keys.shares);
        let mut keys = restored(IDEMPOTENCY_WINDOW);
        // An old key counts as new, even if it was not removed.
        assert!(remember(&mut keys, "quiet.99", 0) && !remember(&mut keys, "quiet.99", 0));
        assert_eq!(keys.forget_old(10), 10);
        assert!(is_about(fill(&mut keys, "loud"), MAX_BYTES / 2));
        assert_eq!(keys.shares.len(), 2);
        assert_eq!(keys.bytes, keys.used.keys().map(|name| cost(name)).sum::<usize>());
        assert_eq!(keys.bytes, keys.shares.values().sum::<usize>());
    }
}
