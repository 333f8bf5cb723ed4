//! What this replica holds of the log: the tails, filled from the link alone, and how far they can be vouched for.
//!
//! It knows nothing of connections: it is told what arrived, and by which link.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OnceCell},
    time::{Instant, timeout},
};

use super::{codec::Announced, facts::Facts, held::Held};
use crate::{
    log::{
        Ephemerals, Follower, Tail,
        memory::patterns::{self, PatternTails},
    },
    message::{Draft, Id, Message, Pattern, Topic},
};

/// How long a topic is followed after its last reader has left: most come back.
const LINGER: Duration = Duration::from_secs(30);

/// The tails, the watermark, and what is announced.
pub struct Feed {
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
    watermark: AtomicU64,
    /// The watermark, a link or a generation has moved.
    moved: Notify,
    /// The tails may lack something: they are to be compared with the store.
    unsettled: Notify,
    /// How long a message is kept, in microseconds.
    age: AtomicU64,
    pub ephemerals: Ephemerals,
}

#[derive(Default)]
struct State {
    /// The link that is listened to. What an earlier one still brings is too late.
    link: u64,
    /// Everything that was announced is in the tails. Until then nothing newer is given out.
    is_settled: bool,
    /// The generation of the store that the tails belong to.
    began: Id,
    /// The generation that the link tells of.
    heard: Id,
    /// The newest id that this link has brought.
    arrived: Id,
    /// The newest probe that came back.
    echoed: u64,
    /// The last ephemeral message, which may come over several channels.
    stamp: u64,
    topics: HashMap<Topic, Arc<Followed>>,
    patterns: HashMap<Pattern, Arc<Followed>>,
    trie: PatternTails,
    held: Held,
}

/// A tail that the link fills.
pub struct Followed {
    pub tail: Arc<Tail>,
    /// Set once its channel is subscribed to, and its newest id is known.
    pub joined: OnceCell<()>,
    /// Only one at a time fills it backwards.
    pub filling: tokio::sync::Mutex<()>,
    /// When its last reader was seen to have left; nothing while it is read, or if it never was.
    idle_since: Mutex<Option<Instant>>,
}

impl Followed {
    fn new(tail: Arc<Tail>) -> Arc<Self> {
        Arc::new(Self {
            tail,
            joined: OnceCell::new(),
            filling: tokio::sync::Mutex::default(),
            idle_since: Mutex::default(),
        })
    }

    /// Whether it has had no reader for a while.
    fn has_lingered(&self, now: Instant) -> bool {
        let mut idle_since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tail.follower_count() > 0 {
            *idle_since = None;
            return false;
        }
        now.duration_since(*idle_since.get_or_insert(now)) >= LINGER
    }
}

impl Feed {
    pub fn new(age: Duration) -> Self {
        Self {
            state: Mutex::default(),
            watermark: AtomicU64::new(0),
            moved: Notify::new(),
            unsettled: Notify::new(),
            age: AtomicU64::new(age.as_micros() as u64),
            ephemerals: Ephemerals::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watermark(&self) -> Id {
        Id::new(self.watermark.load(Ordering::Acquire))
    }

    pub fn expired(&self) -> Id {
        Id::now().minus(Duration::from_micros(self.age.load(Ordering::Relaxed)))
    }

    /// The store says how long a message is kept.
    pub fn keep_for(&self, age: Duration) {
        self.age.store(age.as_micros() as u64, Ordering::Relaxed);
    }

    /// The tail of a topic or pattern, made if there is none, and the key of its new follower.
    pub fn follow(&self, pattern: &Pattern, follower: &Arc<Follower>) -> (Arc<Followed>, usize) {
        let mut state = self.state();
        let followed = state.followed(pattern);
        let key = followed.tail.add_follower(follower.clone());
        (followed, key)
    }

    pub fn find(&self, pattern: &Pattern) -> Option<Arc<Followed>> {
        let state = self.state();
        match pattern.topic() {
            Some(topic) => state.topics.get(&topic).cloned(),
            None => state.patterns.get(pattern).cloned(),
        }
    }

    /// How many follow exactly this topic here.
    pub fn followers(&self, topic: &Topic) -> usize {
        self.state().topics.get(topic).map_or(0, |followed| followed.tail.follower_count())
    }

    /// All that has to be subscribed to on a new link.
    pub fn wanted(&self) -> Vec<Pattern> {
        let state = self.state();
        let topics = state
            .topics
            .values()
            .filter(|followed| followed.joined.initialized() || followed.tail.follower_count() > 0);
        topics.map(|followed| followed.tail.name().clone()).chain(state.patterns.keys().cloned()).collect()
    }

    /// Ends the following of what nobody has read for a while, and says what is not to be subscribed to any more.
    pub fn drop_idle(&self, now: Instant) -> Vec<Pattern> {
        let mut state = self.state();
        let mut idle = Vec::new();
        let state = &mut *state;
        state.patterns.retain(|pattern, followed| {
            let is_idle = followed.has_lingered(now);
            if is_idle {
                state.trie.remove(pattern);
                idle.push(pattern.clone());
            }
            !is_idle
        });
        let has_patterns = !state.patterns.is_empty();
        let held = &mut state.held;
        state.topics.retain(|_, followed| {
            // What only a pattern's channel has brought is complete only as long as that is subscribed to.
            let is_unfollowed = !followed.joined.initialized() && followed.tail.follower_count() == 0;
            let is_idle = if is_unfollowed {
                !idle.is_empty() || !has_patterns || followed.tail.is_idle()
            } else {
                followed.has_lingered(now)
            };
            if is_idle {
                held.forget(&followed.tail, Id::MAX);
                if followed.joined.initialized() {
                    idle.push(followed.tail.name().clone());
                }
            }
            !is_idle
        });
        held.give_back();
        idle
    }

    /// A new link is about to be made: from now on only it is listened to, and nothing is vouched for until it is settled.
    pub fn begin_link(&self) -> u64 {
        let mut state = self.state();
        state.link += 1;
        state.is_settled = false;
        (state.heard, state.arrived) = (Id::ZERO, Id::ZERO);
        state.link
    }

    /// The newest probe that came back.
    pub fn echoed(&self) -> u64 {
        self.state().echoed
    }

    /// The generation that the tails belong to, once they can be vouched for.
    pub fn generation(&self) -> Option<Id> {
        let state = self.state();
        state.is_settled.then_some(state.began)
    }

    /// The tails are to be compared with the store.
    pub fn unsettle(&self) {
        self.state().is_settled = false;
        self.unsettled.notify_one();
    }

    pub async fn is_unsettled(&self) {
        self.unsettled.notified().await;
    }

    /// Waits until `is_so`, but not for longer than `patience`.
    pub async fn wait(&self, patience: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let wait = async {
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                // Listen first, then look.
                moved.as_mut().enable();
                if is_so(self) {
                    return;
                }
                moved.await;
            }
        };
        is_so(self) || timeout(patience, wait).await.is_ok()
    }

    /// A tail is followed from now on: its channel is subscribed to, and it had nothing after `newest`.
    ///
    /// False if the link is not this one any more.
    pub fn join(&self, link: u64, followed: &Followed, newest: Id) -> bool {
        let mut state = self.state();
        if state.link != link {
            return false;
        }
        // The tail of a pattern has no chain that would show what came before its first message.
        if newest > followed.tail.newest() || followed.tail.name().has_wildcard() {
            state.forget(&followed.tail, newest);
        }
        true
    }

    /// From now on the tails belong to this generation, and take what is announced of it and nothing else.
    ///
    /// False if the link tells of another one than the store.
    pub fn turn(&self, link: u64, facts: &Facts) -> bool {
        let mut state = self.state();
        if state.link != link || state.heard != facts.began {
            return false;
        }
        if state.began != facts.began {
            tracing::info!(began = %facts.began, reason = facts.reason.as_str(), "the store vouches from here on");
            state.is_settled = false;
            state.began = facts.began;
            state.each_tail(|state, tail| state.forget(tail, facts.began));
        }
        true
    }

    /// What the tails lack: whatever the index says is newer than what a tail has is left to the store.
    ///
    /// `changed` are members of the index with their ids, as of after the subscription and the turn.
    pub fn mend(&self, changed: &[(String, Id)]) {
        let mut state = self.state();
        changed.iter().for_each(|(member, id)| state.mend(member, *id));
    }

    /// The tails were mended, now that `link` is subscribed to everything: from now on everything up to the
    /// newest id of that time is vouched for.
    pub fn settle(&self, link: u64, facts: &Facts) -> bool {
        let followed: Vec<_> = {
            let mut state = self.state();
            if state.link != link || state.began != facts.began {
                return false;
            }
            state.is_settled = true;
            let watermark = facts.newest.max(state.arrived);
            self.watermark.fetch_max(watermark.get(), Ordering::AcqRel);
            state.topics.values().chain(state.patterns.values()).cloned().collect()
        };
        followed.iter().for_each(|followed| followed.tail.wake());
        self.moved.notify_waiters();
        true
    }

    /// Older messages of a topic, oldest first, that the tail did not hold: now it is complete from `from` on.
    pub fn fill(&self, followed: &Followed, began: Id, older: &[Arc<Message>], from: Id, was: Id) {
        let mut state = self.state();
        if state.began == began && followed.tail.prepend(older, from.max(began), was) {
            state.held.prepended(&followed.tail, older);
        }
    }

    /// Takes what `link` has brought.
    pub fn arrive(&self, link: u64, announced: Announced) {
        let tails = {
            let mut state = self.state();
            if state.link != link {
                return;
            }
            let (began, newest) = announced.life();
            state.heard = began;
            let is_other = began != state.began;
            if is_other && state.is_settled {
                // Another life of the store: nothing is vouched for until the tails have been compared.
                state.is_settled = false;
                self.unsettled.notify_one();
            }
            let tails = match announced {
                // It was announced before the tails turn to its life, and so it is found in the index then.
                Announced::Message { .. } | Announced::Gone { .. } if is_other => Vec::new(),
                Announced::Message { id, prev, gone, draft, .. } => {
                    if !state.take(draft, id, prev, gone, began) && state.is_settled {
                        tracing::warn!(%id, %prev, "the link left something out");
                        state.is_settled = false;
                        self.unsettled.notify_one();
                    }
                    state.last_taken()
                }
                Announced::Ephemeral { stamp, .. } if stamp == state.stamp => Vec::new(),
                Announced::Ephemeral { stamp, newest, draft, .. } => {
                    state.stamp = stamp;
                    let tails = state.tails_of(&draft.topic);
                    if !tails.is_empty() {
                        self.ephemerals.push(newest, Message::new(draft, Id::ZERO, Id::ZERO));
                    }
                    tails
                }
                Announced::Gone { gone, topic, .. } => {
                    if let Some(followed) = state.topics.get(&topic).cloned() {
                        state.forget(&followed.tail, gone);
                    }
                    Vec::new()
                }
                Announced::Probe { token, .. } => {
                    state.echoed = state.echoed.max(token);
                    Vec::new()
                }
            };
            if !is_other {
                state.arrived = state.arrived.max(newest);
            }
            if state.is_settled {
                // Only after the tails hold it, and before anything else can arrive.
                self.watermark.fetch_max(newest.get(), Ordering::AcqRel);
            }
            tails
        };
        tails.iter().for_each(|tail| tail.wake());
        self.moved.notify_waiters();
    }
}

impl State {
    fn followed(&mut self, pattern: &Pattern) -> Arc<Followed> {
        match pattern.topic() {
            Some(topic) => {
                let new = || Followed::new(Arc::new(Tail::new(pattern.clone(), Id::ZERO)));
                self.topics.entry(topic).or_insert_with(new).clone()
            }
            None => {
                let tail = self.trie.entry(pattern, || Tail::new(pattern.clone(), Id::ZERO));
                self.patterns.entry(pattern.clone()).or_insert_with(|| Followed::new(tail)).clone()
            }
        }
    }

    /// Takes a message into all tails that want it. False if one before it was left out.
    fn take(&mut self, mut draft: Draft, id: Id, prev: Id, gone: Id, began: Id) -> bool {
        let mut tails = Vec::new();
        self.trie.matching(&draft.topic, &mut tails);
        tails.retain(|tail| tail.newest() < id);
        let followed = match self.topics.get(&draft.topic) {
            Some(followed) => followed.clone(),
            // What a pattern brings is kept by topic too, so that trimming finds it.
            None if !tails.is_empty() => {
                let name = Pattern::from(&draft.topic);
                let followed = Followed::new(Arc::new(Tail::new(name, prev.max(began))));
                self.topics.insert(draft.topic.clone(), followed.clone());
                followed
            }
            None => return true,
        };
        let newest = followed.tail.newest();
        let is_new = newest < id;
        // A tail that has had nothing yet does not know what it lacks.
        let is_whole = prev <= newest || newest == Id::ZERO;
        if is_new {
            // Where one was left out, or where another life of the store begins, the tail begins anew.
            self.forget(&followed.tail, if prev > newest { prev.max(began) } else { began });
        }
        if is_new || !tails.is_empty() {
            if let Some(topic) = followed.tail.name().topic() {
                // The name is kept once, however many messages carry it.
                draft.topic = topic;
            }
            let message = Message::new(draft, id, prev);
            tails.iter().for_each(|tail| patterns::push(tail, message.clone()));
            if is_new {
                self.held.push(&followed.tail, message);
                tails.push(followed.tail.clone());
            } else {
                // The topic's tail has passed it by, so nothing would find it when it is trimmed.
                message.trim();
            }
        }
        if gone > Id::ZERO {
            self.forget(&followed.tail, gone);
        }
        self.held.taken = tails;
        is_whole
    }

    fn last_taken(&mut self) -> Vec<Arc<Tail>> {
        std::mem::take(&mut self.held.taken)
    }

    fn tails_of(&self, topic: &Topic) -> Vec<Arc<Tail>> {
        let mut tails = Vec::new();
        self.trie.matching(topic, &mut tails);
        tails.extend(self.topics.get(topic).map(|followed| followed.tail.clone()));
        tails.retain(|tail| tail.follower_count() > 0);
        tails
    }

    /// A member of the index: a topic, or a topic behind the sign for what is gone (`,`) or was deleted (` `).
    fn mend(&mut self, member: &str, id: Id) {
        let name = member.trim_start_matches([',', ' ']);
        let Ok(topic) = name.parse::<Topic>() else { return };
        let is_mark = name.len() != member.len();
        if let Some(followed) = self.topics.get(&topic).cloned()
            && (is_mark || id > followed.tail.newest())
        {
            self.forget(&followed.tail, id);
        }
        if !is_mark {
            let mut tails = Vec::new();
            self.trie.matching(&topic, &mut tails);
            // What one topic has brought since does not show what another one lacks: there is no chain.
            tails.iter().for_each(|tail| tail.forget(id, drop));
        }
    }

    fn each_tail(&mut self, mut each: impl FnMut(&mut Self, &Arc<Tail>)) {
        let followed: Vec<_> = self.topics.values().chain(self.patterns.values()).cloned().collect();
        followed.iter().for_each(|followed| each(self, &followed.tail));
    }

    fn forget(&mut self, tail: &Arc<Tail>, upto: Id) {
        if tail.name().has_wildcard() {
            tail.forget(upto, drop);
        } else {
            self.held.forget(tail, upto);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Reason, Retention};

    const AGE: Duration = Duration::from_secs(60);

    fn probe(began: u64, newest: u64) -> Announced {
        Announced::Probe { began: Id::new(began), newest: Id::new(newest), token: 1 }
    }

    fn facts(began: u64, newest: u64) -> Facts {
        let [began, newest] = [began, newest].map(Id::new);
        let retention = Retention { messages: 1, age: AGE, bytes: 1, total_bytes: 1, topics: 1_000_000 };
        let (inherited, previous, forgotten) = (Id::ZERO, Id::ZERO, began);
        let (reason, keep) = (Reason::Failover, (&retention).into());
        Facts { newest, began, inherited, previous, forgotten, reason, keep }
    }

    /// The link leads to the old primary, which still gives out ids, and the store is asked at the new one: that
    /// may yet give out ids before the newest that the link has brought, so nobody may stand there.
    #[test]
    fn what_the_link_tells_of_one_life_vouches_for_nothing_of_another() {
        let feed = Feed::new(AGE);
        let link = feed.begin_link();
        feed.arrive(link, probe(10, 15));
        assert!(feed.turn(link, &facts(10, 15)) && feed.settle(link, &facts(10, 15)));
        assert_eq!(feed.watermark(), Id::new(15));
        feed.unsettle();
        feed.arrive(link, probe(10, 30));
        assert!(!(feed.turn(link, &facts(20, 25)) && feed.settle(link, &facts(20, 25))));
        assert_eq!((feed.watermark(), feed.generation()), (Id::new(15), None));
    }
}
