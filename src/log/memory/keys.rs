//! Idempotency keys, remembered for a limited time.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, time::Duration};

use hashlink::LinkedHashMap;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cost::KEY_BYTES;
use crate::{
    log::{AppendError, IDEMPOTENCY_WINDOW, MAX_KEYS, Payer, open_to},
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
    /// How many of these bytes the keys of each client take.
    of_payers: HashMap<Payer, usize>,
    /// The same of each topic, of keys that count for no client.
    of_topics: HashMap<Topic, usize>,
    /// A random number, so that clients cannot find two payloads with the same digest.
    seed: u64,
}

#[derive(Debug)]
struct Use {
    at: Instant,
    id: Id,
    digest: u64,
    payer: Option<Payer>,
}

impl Use {
    fn has_run_out(&self) -> bool {
        self.at.elapsed() >= IDEMPOTENCY_WINDOW
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            used: LinkedHashMap::new(),
            bytes: 0,
            of_payers: HashMap::new(),
            of_topics: HashMap::new(),
            seed: rand::random(),
        }
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

    /// Remembers a key of another process. It counts for its topic.
    pub fn restore(&mut self, name: Box<str>, id: Id, digest: u64, now: Id) {
        // The age of a key follows from its id. If the id is not in the past, the key counts as new.
        let age = Duration::from_micros(now.get().saturating_sub(id.get()));
        let at = Instant::now();
        if let Ok(topic) = topic_in(&name).parse() {
            let at = at.checked_sub(age).unwrap_or(at);
            self.insert(topic, name, Use { at, id, digest, payer: None });
        }
    }

    /// The id of the message that this key stored, if it was used recently for the same payload.
    ///
    /// All keys may take `max_bytes`. Those of one client may take no more than the room that is left, so no
    /// client can use up all of it, and all clients together leave a part to those without a payer. If they count for no
    /// client, the same holds for those of one topic.
    ///
    /// # Errors
    /// [`AppendError::KeyReused`] if the key was used for another payload, [`AppendError::TooManyKeys`] if
    /// there is no room for a new key.
    pub fn find(
        &mut self,
        topic: &Topic,
        payer: Option<Payer>,
        key: &str,
        payload: &Payload,
        max_bytes: usize,
    ) -> Result<Option<Id>, AppendError> {
        if !self.has_room_for(topic, payer, max_bytes) {
            self.forget_old(MAX_FORGOTTEN);
        }
        match self.used.get(&*name(topic, key)).filter(|used| !used.has_run_out()) {
            Some(used) if used.digest == self.digest(payload) => Ok(Some(used.id)),
            Some(_) => Err(AppendError::KeyReused),
            None if !self.has_room_for(topic, payer, max_bytes) => Err(AppendError::TooManyKeys),
            None => Ok(None),
        }
    }

    pub fn remember(&mut self, topic: &Topic, payer: Option<Payer>, key: &str, digest: u64, id: Id) {
        let name = name(topic, key);
        // An old key of this name may not have been removed yet.
        self.remove(&name);
        self.insert(topic.clone(), name.into(), Use { at: Instant::now(), id, digest, payer });
    }

    fn insert(&mut self, topic: Topic, name: Box<str>, used: Use) {
        self.bytes += cost(&name);
        *match used.payer {
            Some(payer) => self.of_payers.entry(payer).or_default(),
            None => self.of_topics.entry(topic).or_default(),
        } += cost(&name);
        self.used.insert(name, used);
    }

    fn remove(&mut self, name: &str) {
        let Some(used) = self.used.remove(name) else { return };
        self.bytes -= cost(name);
        match used.payer {
            Some(payer) => give_back(&mut self.of_payers, &payer, cost(name)),
            None => give_back(&mut self.of_topics, topic_in(name), cost(name)),
        }
    }

    /// How many bytes the keys take.
    pub fn footprint(&self) -> usize {
        self.bytes
    }

    fn has_room_for(&self, topic: &Topic, payer: Option<Payer>, max_bytes: usize) -> bool {
        let share = match payer {
            Some(payer) => self.of_payers.get(&payer),
            None => self.of_topics.get(topic),
        };
        self.used.len() < open_to(payer, MAX_KEYS)
            && share.copied().unwrap_or_default() < open_to(payer, max_bytes).saturating_sub(self.bytes)
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

fn give_back<K, Q>(shares: &mut HashMap<K, usize>, of: &Q, bytes: usize)
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    if let Some(share) = shares.get_mut(of) {
        *share -= bytes;
        if *share == 0 {
            shares.remove(of);
        }
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

    fn remember_for(keys: &mut Keys, payer: Option<Payer>, topic: &str, key: usize) -> bool {
        let (topic, key) = (topic.parse().expect("a topic"), key.to_string());
        let is_new = keys.find(&topic, payer, &key, &Payload::text("x"), MAX_BYTES) == Ok(None);
        if is_new {
            keys.remember(&topic, payer, &key, 0, Id::ZERO);
        }
        is_new
    }

    fn remember(keys: &mut Keys, topic: &str, key: usize) -> bool {
        remember_for(keys, None, topic, key)
    }

    /// How many bytes the keys of a topic take when it has as many as it may.
    fn fill(keys: &mut Keys, topic: &str) -> usize {
        (0..2_000).for_each(|key| _ = remember(keys, topic, key));
        keys.of_topics[topic]
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
        assert_eq!(restored(Duration::ZERO).of_topics, keys.of_topics);
        let mut keys = restored(IDEMPOTENCY_WINDOW);
        // An old key counts as new, even if it was not removed.
        assert!(remember(&mut keys, "quiet.99", 0) && !remember(&mut keys, "quiet.99", 0));
        assert_eq!(keys.forget_old(10), 10);
        assert!(is_about(fill(&mut keys, "loud"), MAX_BYTES / 2));
        assert_eq!(keys.of_topics.len(), 2);
        assert_eq!(keys.bytes, keys.used.keys().map(|name| cost(name)).sum::<usize>());
        assert_eq!(keys.bytes, keys.of_topics.values().sum::<usize>());
    }

    /// The keys of eight users filled the room, and each publish of a backend with a key was refused for five minutes.
    #[test]
    fn all_clients_together_leave_room_for_the_keys_of_a_backend() {
        let mut keys = Keys::default();
        for user in 0..20 {
            let payer = Some(Payer::subject(&user.to_string()));
            (0..1_000).for_each(|key| _ = remember_for(&mut keys, payer, &format!("user.{user}"), key));
        }
        assert!(is_about(keys.bytes, MAX_BYTES / 8 * 7), "{}", keys.bytes);
        assert!(is_about(fill(&mut keys, "backend"), MAX_BYTES / 16));
    }

    /// The keys were shared by topic alone, so a user who may publish to many topics took the room of all others.
    #[tokio::test(start_paused = true)]
    async fn a_client_with_many_topics_leaves_as_much_room_for_keys_as_it_takes() {
        let mut keys = Keys::default();
        let (loud, quiet) = (Payer::subject("loud"), Payer::subject("quiet"));
        let topic = |number: usize| format!("topic.{number}");
        (0..2_000).for_each(|number| _ = remember_for(&mut keys, Some(loud), &topic(number), 0));
        assert!(is_about(keys.of_payers[&loud], MAX_BYTES / 16 * 7));
        assert!((0..100).all(|key| remember_for(&mut keys, Some(quiet), "topic.1", key + 1)));
        assert!((0..100).all(|key| remember(&mut keys, "backend", key)), "a key that counts for no client");
        assert!(!remember_for(&mut keys, Some(loud), "topic.x", 0));

        tokio::time::advance(IDEMPOTENCY_WINDOW).await;
        assert!(remember_for(&mut keys, Some(loud), "topic.x", 0), "old keys give the room back");
        keys.forget_old(2_000);
        assert_eq!((keys.of_payers.len(), keys.of_topics.len(), keys.used.len()), (1, 0, 1));
    }
}
