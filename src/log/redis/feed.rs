//! The part of the log that this process holds: the tails and the watermark. The feed appends new messages to the
//! tails; readers may put older ones from the store before them.
//!
//! It knows nothing of connections. The caller gives it the entries of the feed in their order.

mod state;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::Notify,
    time::{Instant, interval, timeout},
};

use self::state::State;
use super::{
    arrivals::Arrivals,
    codec::{Entry, Place},
    facts::Facts,
};
use crate::{
    log::{
        Clock, Ephemerals, Expiry, FollowedList, Follower, Generation, List, Page, Reason, Rules, Tail, Told,
    },
    message::{Id, Message, Pattern, Topic},
};

/// How long a tail is kept after its last reader has left, because most readers reconnect.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// How often this process looks for such tails.
const DROP_EVERY: Duration = Duration::from_secs(1);

/// The tails, the watermark, and the announcements.
pub struct Feed {
    clock: Clock,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
    arrivals: Arrivals,
    /// Notifies when the watermark has moved.
    moved: Notify,
    /// How long a message is retained, in microseconds, if no rule says otherwise.
    age: AtomicU64,
    rules: ArcSwap<Rules>,
    pub ephemerals: Ephemerals,
    /// Is told the ends of subjects.
    pub told: OnceLock<Arc<dyn Told>>,
    /// Notifies when lists or refusals must be read from the store.
    pub doubted: Notify,
    are_refusals_due: AtomicBool,
}

/// A tail that is kept for its readers.
pub struct FeedTail {
    pub tail: Arc<Tail>,
    /// One task at a time adds older messages.
    pub filling: tokio::sync::Mutex<()>,
    /// When the tail was first seen without a reader; `None` while it has one.
    idle_since: Mutex<Option<Instant>>,
}

impl FeedTail {
    fn new(tail: Arc<Tail>) -> Arc<Self> {
        Arc::new(Self { tail, filling: tokio::sync::Mutex::default(), idle_since: Mutex::default() })
    }

    /// True if the tail has had no reader for a while.
    fn is_unread_for_long(&self, now: Instant) -> bool {
        let mut idle_since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tail.follower_count() > 0 {
            *idle_since = None;
            return false;
        }
        now.duration_since(*idle_since.get_or_insert(now)) >= LINGER
    }
}

impl Feed {
    pub fn new(clock: Clock, age: Duration, rules: Rules) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            arrivals: Arrivals::default(),
            moved: Notify::new(),
            age: AtomicU64::new(age.as_micros() as u64),
            rules: ArcSwap::from_pointee(rules),
            ephemerals: Ephemerals::default(),
            told: OnceLock::new(),
            doubted: Notify::new(),
            are_refusals_due: AtomicBool::new(true),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watermark(&self) -> Id {
        self.arrivals.watermark()
    }

    /// Waits until the watermark reaches `id`. False if it does not within `limit`.
    pub async fn arrived(&self, id: Id, limit: Duration) -> bool {
        timeout(limit, self.arrivals.arrived(id)).await.is_ok()
    }

    /// Which messages have expired by now.
    pub fn expiry(&self) -> Expiry {
        let age = Duration::from_micros(self.age.load(Ordering::Relaxed));
        Expiry::at(self.clock.now(), age, &self.rules.load())
    }

    /// Lets messages expire by other rules.
    pub fn retain_by(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// Sets how long a message is retained, as the store says.
    pub fn keep_for(&self, age: Duration) {
        self.age.store(age.as_micros() as u64, Ordering::Relaxed);
    }

    /// Starts, or restarts, reading the feed at `end`. The facts are what the store said at that moment. The tails
    /// drop everything that is older.
    pub fn begin(&self, facts: &Facts, end: Place) {
        let mut state = self.state();
        let upto = facts.newest.max(state.newest);
        (state.generation, state.newest, state.place) = (facts.began, facts.newest, end);
        let woken = state.drop_upto(upto);
        state.doubt_lists();
        self.arrivals.set(facts.newest);
        let changed = std::mem::take(&mut state.changed);
        state.has_missed = false;
        drop(state);
        self.wake(&woken);
        changed.iter().for_each(|list| list.wake());
        self.doubt();
    }

    /// The last entry that was read, once the feed has begun.
    pub fn place(&self) -> Option<Place> {
        let state = self.state();
        (state.generation > Id::ZERO).then_some(state.place)
    }

    /// The generation of the store that the tails belong to, once the feed has begun.
    pub fn generation(&self) -> Option<Id> {
        Some(self.state().generation).filter(|generation| *generation > Id::ZERO)
    }

    /// True if this process has read everything up to `facts.newest`, in the same generation.
    pub fn has_reached(&self, facts: &Facts) -> bool {
        let state = self.state();
        state.generation == facts.began && state.newest >= facts.newest
    }

    /// True if this process has read the entry at `end`, in the same generation.
    pub fn has_read(&self, facts: &Facts, end: Place) -> bool {
        let state = self.state();
        state.generation == facts.began && state.place >= end
    }

    /// Takes the next entry of the feed.
    pub fn arrive(&self, entry: Entry) {
        let (woken, changed, ends, has_missed) = {
            let mut state = self.state();
            let woken = state.take(entry, &self.ephemerals);
            // Only now: the tails hold the message, and nothing else can arrive before the watermark moves.
            self.arrivals.set(state.newest);
            let has_missed = std::mem::take(&mut state.has_missed);
            (woken, std::mem::take(&mut state.changed), std::mem::take(&mut state.ends), has_missed)
        };
        self.wake(&woken);
        changed.iter().for_each(|list| list.wake());
        if has_missed {
            self.doubt();
        }
        if let Some(told) = self.told.get() {
            ends.into_iter().for_each(|end| told.ended(end));
        }
    }

    /// Has the lists and the refusals read from the store.
    fn doubt(&self) {
        self.refusals_are_due();
        self.doubted.notify_waiters();
    }

    /// Follows the list of a subject, which is not known yet if no other reader follows it. Then it is new, as the flag says.
    pub fn follow_list(&self, subject: &str) -> (FollowedList, bool) {
        let mut state = self.state();
        let generation = Generation { began: state.generation, reason: Reason::Restarted };
        state.lists.follow(subject, generation)
    }

    /// The lists that are followed and not known.
    pub fn doubted_lists(&self) -> Vec<Arc<List>> {
        self.state().lists.all().filter(|list| list.doubts().is_some()).collect()
    }

    /// Notes that refusals may have been missed.
    pub fn refusals_are_due(&self) {
        self.are_refusals_due.store(true, Ordering::Release);
    }

    /// True if refusals may have been missed since this was last called.
    pub fn take_refusals_due(&self) -> bool {
        self.are_refusals_due.swap(false, Ordering::AcqRel)
    }

    fn wake(&self, tails: &[Arc<Tail>]) {
        tails.iter().for_each(|tail| tail.wake());
        self.arrivals.wake();
        self.moved.notify_waiters();
    }

    /// Follows a topic or pattern. Returns its tail, which is made if there is none, and the key of the new
    /// follower.
    pub fn follow(&self, pattern: &Pattern, follower: &Arc<Follower>) -> (Arc<FeedTail>, usize) {
        let mut state = self.state();
        let followed = state.find_or_make(pattern);
        let key = followed.tail.add_follower(follower.clone());
        (followed, key)
    }

    pub fn find(&self, pattern: &Pattern) -> Option<Arc<FeedTail>> {
        let state = self.state();
        match pattern.topic() {
            Some(topic) => state.topics.get(&topic).cloned(),
            None => state.patterns.get(pattern).cloned(),
        }
    }

    /// How many followers this process has for exactly this topic.
    pub fn followers(&self, topic: &Topic) -> usize {
        self.state().topics.get(topic).map_or(0, |followed| followed.tail.reader_count())
    }

    /// Drops idle tails again and again, also while the store cannot be reached: clients try to subscribe all the same.
    /// Never ends.
    pub async fn keep_dropping_idle(self: Arc<Self>) {
        let mut rounds = interval(DROP_EVERY);
        loop {
            rounds.tick().await;
            self.drop_idle(Instant::now());
        }
    }

    /// Drops the tails that have had no reader for a while.
    pub fn drop_idle(&self, now: Instant) {
        let mut state = self.state();
        let State { topics, patterns, trie, held, .. } = &mut *state;
        patterns.retain(|pattern, followed| {
            let is_droppable = followed.is_unread_for_long(now);
            if is_droppable {
                trie.remove(pattern);
            }
            !is_droppable
        });
        // While any pattern is followed, keep the tails of topics that hold messages: trimming finds a pattern's
        // messages through them.
        let has_patterns = !patterns.is_empty();
        topics.retain(|_, followed| {
            let is_droppable = followed.is_unread_for_long(now) && (!has_patterns || followed.tail.is_idle());
            if is_droppable {
                held.drop_upto(&followed.tail, Id::MAX);
            }
            !is_droppable
        });
        held.give_back(self.clock.now());
    }

    /// Waits until `is_so` is true. False if it is not within `patience`.
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

    /// Puts `older` messages, oldest first, before those of the tail, which then holds every message after `after`.
    /// Does nothing if the generation has changed, or if the tail no longer begins after `expected`.
    pub fn fill(&self, followed: &FeedTail, generation: Id, older: &[Message], after: Id, expected: Id) {
        // Skip messages of older generations. Readers ask the store for them, and it tells the boundary.
        let older = &older[older.partition_point(|message| message.id <= generation)..];
        let mut state = self.state();
        if state.generation == generation && followed.tail.prepend(older, after.max(generation), expected) {
            state.held.prepended(&followed.tail, older);
        }
    }

    /// Removes the messages of `topic` up to `gone`. The entry of the feed with this id announces the deletion; it
    /// may arrive later.
    pub fn delete(&self, topic: &Topic, gone: Id, id: Id) {
        let mut state = self.state();
        if state.newest < id {
            state.deletions.expect(topic, gone);
        } else {
            state.deletions.note(topic, gone);
        }
        state.remove(topic, gone);
    }

    /// How many deletions there were so far; see [`brings_back`](Self::brings_back).
    pub fn deletions(&self) -> u64 {
        self.state().deletions.count()
    }

    /// True if the page may have a message that was deleted after [`deletions`](Self::deletions) gave `count`.
    pub fn brings_back(&self, page: &Page, count: u64) -> bool {
        let state = self.state();
        page.messages.iter().any(|message| state.deletions.has_since(count, message))
    }
}
