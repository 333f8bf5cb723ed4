//! The subjects that connections of this process hold present, and the task that tells the log.
//!
//! Connections only change counts here. The task tells the log what has changed, many holds in one step. A log that
//! may forget is told everything again, part by part.

mod held;
mod present;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use self::held::{AGAIN_AFTER, Place, State, Wait, Waiting};
pub use self::present::{EnterError, Present};
use crate::{
    log::{HOLDS_STEP, Hold, Holds, Log, LogError, Members},
    message::Topic,
};

/// How much later than the log this process forgets a member that has left. So the log is asked once the grace is over.
const MARGIN: Duration = Duration::from_millis(50);
/// How long the end of this process waits until the last holds are noted.
const LAST_WITHIN: Duration = Duration::from_millis(500);

/// The subjects that the connections of this process hold, and the log that is told.
pub struct Presences {
    log: Arc<dyn Log>,
    grace: Duration,
    // A std mutex: no await happens while it is held, and each holder does a bounded step.
    state: Mutex<State>,
    changed: Arc<Notify>,
    /// Notifies when there is nothing to tell the log.
    is_told: Notify,
    joined: AtomicU64,
    left: AtomicU64,
}

/// Too many are present for this subject, or for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are present")]
pub struct TooMany;

impl Presences {
    /// Begins a task that tells the log, until the result is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(log: Arc<dyn Log>, grace: Duration) -> Arc<Self> {
        let this = Arc::new(Self {
            log: log.clone(),
            grace,
            state: Mutex::default(),
            changed: Arc::default(),
            is_told: Notify::new(),
            joined: AtomicU64::new(0),
            left: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&this);
        let changed = this.changed.clone();
        tokio::spawn(async move {
            let (mut due_at, mut has_failed) = (None, false);
            loop {
                // The task holds only what it waits for, so that it ends with the rest.
                let due = async {
                    match due_at {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = changed.notified() => {}
                    () = due => {}
                    // A log that has failed is asked again at its time, and not at once.
                    () = log.holds_due(), if !has_failed => {}
                }
                let Some(this) = weak.upgrade() else { return };
                let again_at = this.tell().await;
                (due_at, has_failed) = (this.due_at(again_at), again_at.is_some());
            }
        });
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of this subject, which is present nowhere yet.
    pub fn connection(self: &Arc<Self>, sub: Arc<str>, info: Option<Arc<str>>) -> Present {
        Present { presences: self.clone(), sub, info, named: BTreeSet::new(), listed: None }
    }

    /// Some members of a topic.
    ///
    /// # Errors
    /// If the log cannot be asked.
    pub async fn members(&self, topic: &Topic, after: &str, limit: usize) -> Result<Members, LogError> {
        self.log.members(topic, after, limit).await
    }

    /// How many subjects in topics the connections of this process hold now.
    pub fn count(&self) -> usize {
        let state = self.state();
        state.held.len() - state.idle.len()
    }

    /// How many joins and leaves this process has told.
    pub fn told(&self) -> (u64, u64) {
        (self.joined.load(Ordering::Relaxed), self.left.load(Ordering::Relaxed))
    }

    /// No member leaves from now on, if the next process takes them over.
    pub fn keep_members(&self) {
        self.log.keep_members();
    }

    /// Waits until the log was told everything, for as long as that may take.
    pub async fn settle(&self) {
        let told = async {
            loop {
                let is_told = self.is_told.notified();
                if self.state().is_settled() {
                    return;
                }
                is_told.await;
            }
        };
        let _ = timeout(LAST_WITHIN, told).await;
    }

    /// Tells the log everything that has changed. Returns when to try again if that failed.
    async fn tell(&self) -> Option<Instant> {
        loop {
            let (holds, places, waiting) = self.next_holds();
            match self.log.hold(&holds).await {
                Ok(noted) => {
                    self.joined.fetch_add(noted.joined, Ordering::Relaxed);
                    self.left.fetch_add(noted.left, Ordering::Relaxed);
                    for (waiting, outcome) in waiting.into_iter().zip(&noted.outcomes) {
                        waiting.iter().filter_map(Weak::upgrade).for_each(|wait| wait.note(*outcome));
                    }
                    let is_more = noted.is_more;
                    if !self.state().conclude(&holds, noted) && !is_more {
                        self.is_told.notify_waiters();
                        return None;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the log did not note who is present");
                    self.give_back(places, waiting, error);
                    return Some(Instant::now() + AGAIN_AFTER);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// The holds of the next step, their places, and those who wait for each.
    fn next_holds(&self) -> (Holds, Vec<Place>, Vec<Waiting>) {
        let mut state = self.state();
        state.forget_idle(Instant::now());
        state.is_telling = true;
        // With changes all the time, they and the parts take turns.
        state.is_part = state.must_repeat() && (state.changed.is_empty() || !state.is_part);
        let (places, part) = if state.is_part {
            let (places, part) = state.next_part();
            (places, Some(part))
        } else {
            let count = state.changed.len().min(HOLDS_STEP);
            (state.changed.drain(..count).collect(), None)
        };
        let (mut holds, mut waiting) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for place in &places {
            let held = state.held.get_mut(place);
            let (connections, info, waits) = held.map_or((0, None, Vec::new()), |held| {
                held.is_changed = false;
                (held.connections, held.info.clone(), std::mem::take(&mut held.waiting))
            });
            waiting.push(waits);
            holds.push(Hold { topic: place.0.clone(), sub: place.1.clone(), connections, info });
        }
        (Holds { holds, part, grace: self.grace }, places, waiting)
    }

    /// Has holds made again that the log may not have noted.
    fn give_back(&self, places: Vec<Place>, waiting: Vec<Waiting>, error: LogError) {
        let mut state = self.state();
        state.is_telling = false;
        if error == LogError::UnknownOutcome {
            // The log may note these holds after newer ones.
            (state.repeated, state.hurries) = (None, true);
        }
        for (place, waiting) in places.into_iter().zip(waiting) {
            if let Some(held) = state.held.get_mut(&place) {
                held.waiting.extend(waiting);
            }
            state.mark(&place);
        }
    }

    /// When the log is to be told something though nothing has changed.
    fn due_at(&self, again_at: Option<Instant>) -> Option<Instant> {
        let state = self.state();
        let idle = state.idle.first().map(|(at, _)| *at);
        let repeat = state.repeat_at;
        [again_at, again_at.map_or(idle, |_| None), again_at.map_or(repeat, |_| None)]
            .into_iter()
            .flatten()
            .min()
    }

    /// One connection of `sub` more in these topics.
    fn enter(
        &self,
        sub: &Arc<str>,
        info: Option<&Arc<str>>,
        topics: &[Topic],
        wait: &Arc<Wait>,
    ) -> Result<(), TooMany> {
        let mut state = self.state();
        for (at, topic) in topics.iter().enumerate() {
            let place = (topic.clone(), sub.clone());
            if !state.enter(place, info, wait, Instant::now() + self.grace + MARGIN) {
                drop(state);
                self.leave(sub, topics[..at].iter());
                return Err(TooMany);
            }
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// One connection of `sub` less in these topics.
    fn leave<'a>(&self, sub: &Arc<str>, topics: impl Iterator<Item = &'a Topic>) {
        let mut topics = topics.peekable();
        while topics.peek().is_some() {
            let mut state = self.state();
            let until = Instant::now() + self.grace + MARGIN;
            for topic in topics.by_ref().take(HOLDS_STEP) {
                state.leave(&(topic.clone(), sub.clone()), until);
            }
        }
        self.changed.notify_one();
    }
}

impl Drop for Presences {
    fn drop(&mut self) {
        // The task then finds that it is over.
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::{held::MAX_OF_SUBJECT, *};
    use crate::log::{MemoryLog, Retention, Rules};

    fn topics(numbers: std::ops::Range<usize>) -> Vec<Topic> {
        numbers.map(|number| format!("t{number}").parse().expect("a topic")).collect()
    }

    fn start(grace: Duration) -> Arc<Presences> {
        let (age, rules) = (Duration::from_secs(3600), Rules::NONE);
        let (bytes, total_bytes) = (16 << 20, 256 << 20);
        let retention = Retention { messages: 1000, age, bytes, total_bytes, topics: 100_000, rules };
        Presences::start(MemoryLog::start(retention), grace)
    }

    async fn count(presences: &Presences, topic: &str) -> usize {
        let topic = topic.parse().expect("a topic");
        presences.members(&topic, "", 1).await.expect("the log answers").count
    }

    // The log takes long for so many topics, and the time limit is not what is tested.
    #[tokio::test(start_paused = true)]
    async fn a_subject_is_present_in_so_many_topics_and_one_more_is_refused_as_a_whole() {
        let presences = start(Duration::from_secs(3600));
        let mut present = presences.connection("u1".into(), None);
        present.enter(topics(0..MAX_OF_SUBJECT - 1)).await.expect("there is room");
        let mut other = presences.connection("u1".into(), None);
        other.enter(topics(MAX_OF_SUBJECT..MAX_OF_SUBJECT + 2)).await.expect_err("there is room for one");
        assert!(!other.is_in(&format!("t{MAX_OF_SUBJECT}")));
        presences.connection("u2".into(), None).enter(topics(0..1)).await.expect("another subject");
        // Those that were just left count until their grace is over.
        drop(present);
        other.enter(topics(MAX_OF_SUBJECT..MAX_OF_SUBJECT + 2)).await.expect_err("it was just there");
        assert_eq!(presences.count(), 0);
    }

    /// The log may have forgotten a place that the next changes do not name.
    #[tokio::test]
    async fn parts_are_told_again_while_changes_come_all_the_time() {
        let presences = start(Duration::from_secs(3600));
        presences.connection("u1".into(), None).enter(topics(0..3)).await.expect("there is room");
        presences.settle().await;
        let part_of = || {
            presences.state().mark(&("t0".parse().expect("a topic"), "u1".into()));
            presences.next_holds().0.part.is_some()
        };
        {
            let mut state = presences.state();
            (state.record, state.hurries) = (Some(1), true);
        }
        assert_eq!([part_of(), part_of(), part_of()], [true, false, true]);
    }

    /// A log that refuses for long is asked by many connections, one after the other.
    #[tokio::test(start_paused = true)]
    async fn those_who_have_given_up_are_not_kept() {
        let presences = start(Duration::from_secs(3600));
        let mut state = presences.state();
        let place = ("t0".parse().expect("a topic"), Arc::<str>::from("u1"));
        for _ in 0..100 {
            assert!(state.enter(place.clone(), None, &Arc::default(), Instant::now()));
        }
        assert_eq!(state.held[&place].waiting.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_those_who_have_left() {
        let presences = start(Duration::from_secs(5));
        let (mut one, mut other) =
            (presences.connection("u1".into(), None), presences.connection("u1".into(), None));
        one.enter(topics(0..300)).await.expect("there is room");
        other.enter(topics(200..300)).await.expect("there is room");
        one.absorb(other);
        assert_eq!((presences.count(), count(&presences, "t250").await), (300, 1));
        one.leave("t0");
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!((presences.count(), count(&presences, "t0").await), (299, 0));
        drop(one);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((presences.count(), count(&presences, "t250").await), (0, 0));
        assert!(presences.state().held.is_empty() && presences.state().of_subject.is_empty());
        assert_eq!(presences.told(), (300, 300));
    }
}
