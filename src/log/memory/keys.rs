//! Idempotency keys, remembered for a while.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cost::KEY_BYTES;
use crate::{
    log::{AppendError, IDEMPOTENCY_WINDOW},
    message::{Id, Payload, Topic},
};

/// How many keys are remembered. One more is refused: to forget one early would store a message twice.
///
/// Of one topic no more are remembered than there is room left, so that no topic takes it from all others.
const MAX_KEYS: usize = 1_000_000;

#[derive(Debug)]
pub struct Keys {
    used: HashMap<Arc<str>, Use>,
    by_age: VecDeque<(Instant, Arc<str>)>,
    /// How many keys each topic has.
    counts: HashMap<Topic, usize>,
    /// How many bytes the names have.
    bytes: usize,
    max: usize,
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
        Self {
            used: HashMap::new(),
            by_age: VecDeque::new(),
            counts: HashMap::new(),
            bytes: 0,
            max: MAX_KEYS,
            seed: rand::random(),
        }
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
            let topic = topic_in(&name).parse().ok();
            topic.into_iter().for_each(|topic| *restored.counts.entry(topic).or_default() += 1);
            restored.bytes += name.len();
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
            None if !self.has_room_for(topic) => Err(AppendError::TooManyKeys),
            None => Ok(None),
        }
    }

    pub fn remember(&mut self, topic: &Topic, key: &str, digest: u64, id: Id) {
        let name: Arc<str> = name(topic, key).into();
        self.bytes += name.len();
        self.by_age.push_back((Instant::now(), name.clone()));
        self.used.insert(name, Use { id, digest });
        *self.counts.entry(topic.clone()).or_default() += 1;
    }

    /// How much memory the keys take.
    pub fn footprint(&self) -> usize {
        self.bytes + self.used.len() * KEY_BYTES
    }

    fn has_room_for(&self, topic: &Topic) -> bool {
        let room = self.max.saturating_sub(self.used.len());
        self.counts.get(topic).copied().unwrap_or_default() < room
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
            self.bytes -= name.len();
            self.uncount(topic_in(&name));
        }
    }

    fn uncount(&mut self, topic: &str) {
        let Some(count) = self.counts.get_mut(topic) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(topic);
        }
    }
}

/// No topic contains a NUL, so this is unambiguous.
fn name(topic: &Topic, key: &str) -> String {
    format!("{topic}\0{key}")
}

fn topic_in(name: &str) -> &str {
    name.split_once('\0').map_or(name, |(topic, _)| topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(keys: &mut Keys, topic: &str, key: usize) -> bool {
        let (topic, key) = (topic.parse().expect("a topic"), key.to_string());
        let is_new = keys.find(&topic, &key, &Payload::text("x")) == Ok(None);
        if is_new {
            keys.remember(&topic, &key, 0, Id::ZERO);
        }
        is_new
    }

    #[test]
    fn no_topic_takes_the_room_of_all_others_and_what_ran_out_gives_it_back() {
        let mut keys = Keys { max: 1_000, ..Keys::default() };
        let fill =
            |keys: &mut Keys, topic: &str| (0..2_000).filter(|key| remember(keys, topic, *key)).count();
        assert_eq!(fill(&mut keys, "loud"), 500);
        assert_eq!(fill(&mut keys, "loud.too"), 250);
        assert!((0..100).all(|number| remember(&mut keys, &format!("quiet.{number}"), 0)));

        let (seed, remembered) = keys.remembered();
        assert_eq!(Keys::restore((seed, remembered.clone())).counts, keys.counts);
        let long_ago = Id::now().minus(IDEMPOTENCY_WINDOW);
        let old = remembered.into_iter().map(|(name, _, digest)| (name, long_ago, digest)).collect();
        let mut keys = Keys { max: 1_000, ..Keys::restore((seed, old)) };
        assert_eq!(fill(&mut keys, "loud"), 500);
        assert_eq!((keys.counts.len(), keys.used.len()), (1, 500));
    }
}
