//! The subjects that connections of this process hold present, and the task that tells the log.
//!
//! Connections only change counts here. The task tells the log what has changed, many claims in one step. A log that
//! may forget is told everything again, part by part.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    log::{CLAIMS_STEP, Claim, ClaimError, Claimed, Claims, Log, LogError, Members, Part},
    message::Topic,
};

/// In how many topics one subject may be present at one process, those counted that it has just left.
pub const MAX_OF_SUBJECT: usize = 10_000;
/// How many subjects in topics one process holds, those counted that have just left.
pub const MAX_HELD: usize = 1_000_000;
/// How long a connection waits until it is told that its subject is present.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon claims are made again that the log did not note.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How often a log that may forget is told one more part.
const REPEAT_EVERY: Duration = Duration::from_secs(1);
/// How much later than the log this process forgets a member that has left. So the log is asked once the grace is over.
const MARGIN: Duration = Duration::from_millis(50);
/// How long the end of this process waits until the last claims are noted.
const LAST_WITHIN: Duration = Duration::from_millis(500);

type Place = (Topic, Arc<str>);
type Waiting = Vec<Arc<Wait>>;

/// What the connections of this process hold.
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

#[derive(Default)]
struct State {
    held: BTreeMap<Place, Held>,
    /// The places that the log is to be told, each once.
    changed: VecDeque<Place>,
    /// The places without a connection, by the end of their grace. The log lets their members leave then.
    idle: BTreeSet<(Instant, Place)>,
    /// How many places each subject has.
    of_subject: HashMap<Arc<str>, usize>,
    /// The end of the last part that was told again.
    repeated: Option<Place>,
    repeat_at: Option<Instant>,
    /// All parts are told again without a pause, because the log may have forgotten.
    hurries: bool,
    life: Option<u64>,
}

struct Held {
    connections: u32,
    info: Option<Arc<str>>,
    is_changed: bool,
    idle_until: Option<Instant>,
    waiting: Waiting,
}

/// A connection that waits until the log has noted its claims.
#[derive(Default)]
struct Wait {
    left: AtomicUsize,
    refused: Mutex<Option<ClaimError>>,
    done: Notify,
}

impl Wait {
    fn note(&self, outcome: Result<(), ClaimError>) {
        if let Err(error) = outcome {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
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
            let mut due_at = None;
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
                    () = log.claims_due() => {}
                }
                let Some(this) = weak.upgrade() else { return };
                let again_at = this.tell().await;
                due_at = this.due_at(again_at);
            }
        });
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of this subject, which is present nowhere yet.
    pub fn connection(self: &Arc<Self>, sub: Arc<str>, info: Option<Arc<str>>) -> Present {
        Present { presences: self.clone(), sub, info, topics: BTreeSet::new() }
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
                if self.state().changed.is_empty() {
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
            let (claims, places, waiting) = self.next_claims();
            match self.log.claim(&claims).await {
                Ok(claimed) => {
                    self.joined.fetch_add(claimed.joined, Ordering::Relaxed);
                    self.left.fetch_add(claimed.left, Ordering::Relaxed);
                    for (waiting, outcome) in waiting.into_iter().zip(&claimed.outcomes) {
                        waiting.iter().for_each(|wait| wait.note(*outcome));
                    }
                    let is_more = claimed.is_more;
                    if !self.state().conclude(&claims, claimed) && !is_more {
                        self.is_told.notify_waiters();
                        return None;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the log did not note who is present");
                    self.give_back(places, waiting);
                    return Some(Instant::now() + AGAIN_AFTER);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// The claims of the next step, their places, and those who wait for each.
    fn next_claims(&self) -> (Claims, Vec<Place>, Vec<Waiting>) {
        let mut state = self.state();
        state.forget_idle(Instant::now());
        let (places, part) = if state.changed.is_empty() && state.must_repeat() {
            let (places, part) = state.next_part();
            (places, Some(part))
        } else {
            let count = state.changed.len().min(CLAIMS_STEP);
            (state.changed.drain(..count).collect(), None)
        };
        let (mut claims, mut waiting) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for place in &places {
            let held = state.held.get_mut(place);
            let (connections, info, waits) = held.map_or((0, None, Vec::new()), |held| {
                held.is_changed = false;
                (held.connections, held.info.clone(), std::mem::take(&mut held.waiting))
            });
            waiting.push(waits);
            claims.push(Claim { topic: place.0.clone(), sub: place.1.clone(), connections, info });
        }
        (Claims { claims, part, grace: self.grace }, places, waiting)
    }

    /// Has claims made again that the log may not have noted.
    fn give_back(&self, places: Vec<Place>, waiting: Vec<Waiting>) {
        let mut state = self.state();
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
            for topic in topics.by_ref().take(CLAIMS_STEP) {
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

impl State {
    /// Has the log told of this place.
    fn mark(&mut self, place: &Place) {
        match self.held.get_mut(place) {
            Some(held) if held.is_changed => {}
            Some(held) => {
                held.is_changed = true;
                self.changed.push_back(place.clone());
            }
            None => self.changed.push_back(place.clone()),
        }
    }

    /// False if there is no room.
    fn enter(
        &mut self,
        place: Place,
        info: Option<&Arc<str>>,
        wait: &Arc<Wait>,
        idle_until: Instant,
    ) -> bool {
        if !self.held.contains_key(&place) {
            let count = self.of_subject.get(&place.1).copied().unwrap_or_default();
            if count >= MAX_OF_SUBJECT || self.held.len() >= MAX_HELD {
                return false;
            }
            self.hold(place.clone(), info, idle_until);
        }
        if let Some(held) = self.held.get_mut(&place) {
            if let Some(until) = held.idle_until.take() {
                self.idle.remove(&(until, place.clone()));
            }
            if held.connections == 0 {
                held.info = info.cloned();
            }
            held.connections += 1;
            held.waiting.push(wait.clone());
        }
        self.mark(&place);
        true
    }

    /// Begins to know a place, without a connection.
    fn hold(&mut self, place: Place, info: Option<&Arc<str>>, idle_until: Instant) {
        *self.of_subject.entry(place.1.clone()).or_default() += 1;
        self.idle.insert((idle_until, place.clone()));
        let held = Held {
            connections: 0,
            info: info.cloned(),
            is_changed: false,
            idle_until: Some(idle_until),
            waiting: Vec::new(),
        };
        self.held.insert(place, held);
    }

    fn leave(&mut self, place: &Place, until: Instant) {
        let Some(held) = self.held.get_mut(place) else { return };
        held.connections = held.connections.saturating_sub(1);
        if held.connections == 0 && held.idle_until.is_none() {
            held.idle_until = Some(until);
            self.idle.insert((until, place.clone()));
        }
        self.mark(place);
    }

    /// Forgets places whose grace is over, and that the log was told of.
    fn forget_idle(&mut self, now: Instant) {
        for _ in 0..CLAIMS_STEP {
            let Some((until, place)) = self.idle.first().filter(|(until, _)| *until <= now).cloned() else {
                return;
            };
            self.idle.remove(&(until, place.clone()));
            let Some(held) = self.held.get_mut(&place) else { continue };
            if held.is_changed {
                let again = now + AGAIN_AFTER;
                held.idle_until = Some(again);
                self.idle.insert((again, place));
                continue;
            }
            self.held.remove(&place);
            let count = self.of_subject.get_mut(&place.1);
            if let Some(count) = count {
                *count -= 1;
                if *count == 0 {
                    self.of_subject.remove(&place.1);
                }
            }
        }
    }

    /// True if it is time to tell one more part again.
    fn must_repeat(&self) -> bool {
        let is_due = self.repeat_at.is_some_and(|at| at <= Instant::now());
        self.life.is_some() && (self.hurries || is_due)
    }

    fn next_part(&mut self) -> (Vec<Place>, Part) {
        let after = self.repeated.take();
        let from = after.as_ref().map_or(Unbounded, Excluded);
        let places: Vec<Place> = self
            .held
            .range::<Place, _>((from, Unbounded))
            .take(CLAIMS_STEP)
            .map(|(place, _)| place.clone())
            .collect();
        let to = if places.len() == CLAIMS_STEP { places.last().cloned() } else { None };
        (places, Part { after, to })
    }

    /// Notes the outcome of a step. True if another step should follow at once.
    fn conclude(&mut self, claims: &Claims, claimed: Claimed) -> bool {
        let now = Instant::now();
        if claimed.life != self.life {
            // The log has noted these claims, and may have forgotten all others.
            self.hurries = self.life.is_some();
            (self.life, self.repeated) = (claimed.life, None);
        } else if let Some(part) = &claims.part {
            if claimed.unnamed.is_empty() {
                self.repeated = part.to.clone();
                self.hurries &= part.to.is_some();
            } else {
                // The log holds what this process does not. It is told so, and then this part once more.
                self.repeated = part.after.clone();
            }
        }
        for place in claimed.unnamed {
            if !self.held.contains_key(&place) {
                self.mark(&place);
            }
        }
        if self.life.is_some() && (claims.part.is_some() || self.repeat_at.is_none()) {
            self.repeat_at = Some(now + REPEAT_EVERY);
        }
        !self.changed.is_empty() || self.hurries
    }
}

/// A connection whose subject is present in some topics. Dropping this ends that.
pub struct Present {
    presences: Arc<Presences>,
    sub: Arc<str>,
    info: Option<Arc<str>>,
    topics: BTreeSet<Topic>,
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
        let topics: BTreeSet<Topic> =
            topics.into_iter().filter(|topic| !self.topics.contains(topic)).collect();
        let topics: Vec<Topic> = topics.into_iter().collect();
        if topics.is_empty() {
            return Ok(());
        }
        let wait = Arc::new(Wait { left: AtomicUsize::new(topics.len()), ..Wait::default() });
        for step in topics.chunks(CLAIMS_STEP) {
            self.presences.enter(&self.sub, self.info.as_ref(), step, &wait)?;
            self.topics.extend(step.iter().cloned());
        }
        let done = timeout(PATIENCE, wait.done.notified()).await;
        let refused = *wait.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match (done, refused) {
            (Ok(()), None) => Ok(()),
            (Err(_), None) => Err(ClaimError::Log(LogError::Unavailable).into()),
            (_, Some(error)) => Err(error.into()),
        }
    }

    /// Takes over what another one of the same connection holds.
    pub fn absorb(&mut self, mut other: Self) {
        let topics = std::mem::take(&mut other.topics);
        let (twice, new): (Vec<_>, Vec<_>) =
            topics.into_iter().partition(|topic| self.topics.contains(topic));
        self.topics.extend(new);
        self.presences.leave(&self.sub, twice.iter());
    }

    /// True if this connection makes its subject present in the topic.
    pub fn is_in(&self, topic: &str) -> bool {
        self.topics.contains(topic)
    }

    /// Ends being present in one topic.
    pub fn leave(&mut self, topic: &str) {
        if let Some(topic) = self.topics.take(topic) {
            self.presences.leave(&self.sub, std::iter::once(&topic));
        }
    }
}

/// Why a connection cannot be present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl Drop for Present {
    fn drop(&mut self) {
        if !self.topics.is_empty() {
            self.presences.leave(&self.sub, self.topics.iter());
        }
    }
}
