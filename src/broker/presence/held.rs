//! The counts of the connections that hold subjects in topics, and what the log is yet to be told of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    log::{HOLDS_STEP, HoldError, Holds, NotedHolds, Part},
    message::Topic,
};

/// In how many topics one subject may be present at one process, those counted that it has just left.
pub const MAX_OF_SUBJECT: usize = 10_000;
/// How many subjects in topics one process holds, those counted that have just left.
pub const MAX_HELD: usize = 1_000_000;
/// How soon holds are made again that the log did not note.
pub const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How often a log that may forget is told one more part.
const REPEAT_EVERY: Duration = Duration::from_secs(1);

pub type Place = (Topic, Arc<str>);
/// Those who have given up are in it until the place is entered again.
pub type Waiting = Vec<Weak<Wait>>;

#[derive(Default)]
pub struct State {
    pub held: BTreeMap<Place, PlaceState>,
    /// The places that the log is to be told, each once.
    pub changed: VecDeque<Place>,
    /// The places without a connection, by the end of their grace. The log lets their members leave then.
    pub idle: BTreeSet<(Instant, Place)>,
    /// How many places each subject has.
    pub of_subject: HashMap<Arc<str>, usize>,
    /// The end of the last part that was told again.
    pub repeated: Option<Place>,
    pub repeat_at: Option<Instant>,
    /// All parts are told again without a pause, because the log may have forgotten.
    pub hurries: bool,
    /// The newest step told a part again.
    pub is_part: bool,
    /// A step is on its way to the log.
    pub is_telling: bool,
    /// The log's record of this process; see [`NotedHolds`].
    pub record: Option<u64>,
}

/// The connections of this process that hold a place, and what the log is yet to be told of them.
pub struct PlaceState {
    pub connections: u32,
    pub info: Option<Arc<str>>,
    pub is_changed: bool,
    pub idle_until: Option<Instant>,
    pub waiting: Waiting,
}

/// A connection that waits until the log has noted its holds.
#[derive(Default)]
pub struct Wait {
    pub left: AtomicUsize,
    pub refused: Mutex<Option<HoldError>>,
    pub done: Notify,
}

impl Wait {
    pub fn note(&self, outcome: Result<(), HoldError>) {
        if let Err(error) = outcome {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

impl State {
    /// Has the log told of this place.
    pub fn mark(&mut self, place: &Place) {
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
    pub fn enter(
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
            held.waiting.retain(|wait| wait.strong_count() > 0);
            held.waiting.push(Arc::downgrade(wait));
        }
        self.mark(&place);
        true
    }

    /// Begins to know a place, without a connection.
    pub fn hold(&mut self, place: Place, info: Option<&Arc<str>>, idle_until: Instant) {
        *self.of_subject.entry(place.1.clone()).or_default() += 1;
        self.idle.insert((idle_until, place.clone()));
        let held = PlaceState {
            connections: 0,
            info: info.cloned(),
            is_changed: false,
            idle_until: Some(idle_until),
            waiting: Vec::new(),
        };
        self.held.insert(place, held);
    }

    pub fn leave(&mut self, place: &Place, until: Instant) {
        let Some(held) = self.held.get_mut(place) else { return };
        held.connections = held.connections.saturating_sub(1);
        if held.connections == 0 && held.idle_until.is_none() {
            held.idle_until = Some(until);
            self.idle.insert((until, place.clone()));
        }
        self.mark(place);
    }

    /// Forgets places whose grace is over, and that the log was told of.
    pub fn forget_idle(&mut self, now: Instant) {
        for _ in 0..HOLDS_STEP {
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

    /// True if the log was told everything.
    pub fn is_settled(&self) -> bool {
        self.changed.is_empty() && !self.is_telling
    }

    /// True if it is time to tell one more part again.
    pub fn must_repeat(&self) -> bool {
        let is_due = self.repeat_at.is_some_and(|at| at <= Instant::now());
        self.record.is_some() && (self.hurries || is_due)
    }

    pub fn next_part(&mut self) -> (Vec<Place>, Part) {
        let after = self.repeated.take();
        let from = after.as_ref().map_or(Unbounded, Excluded);
        let places: Vec<Place> = self
            .held
            .range::<Place, _>((from, Unbounded))
            .take(HOLDS_STEP)
            .map(|(place, _)| place.clone())
            .collect();
        let to = if places.len() == HOLDS_STEP { places.last().cloned() } else { None };
        (places, Part { after, to })
    }

    /// Notes the outcome of a step. True if another step should follow at once.
    pub fn conclude(&mut self, holds: &Holds, noted: NotedHolds) -> bool {
        let now = Instant::now();
        self.is_telling = false;
        if noted.record != self.record {
            // The log has noted these holds, and may have forgotten all others.
            self.hurries = self.record.is_some();
            (self.record, self.repeated) = (noted.record, None);
        } else if let Some(part) = &holds.part {
            if noted.unnamed.is_empty() {
                self.repeated = part.to.clone();
                self.hurries &= part.to.is_some();
            } else {
                // The log holds what this process does not. It is told so, and then this part once more.
                self.repeated = part.after.clone();
            }
        }
        for place in noted.unnamed {
            if !self.held.contains_key(&place) {
                self.mark(&place);
            }
        }
        if self.record.is_some() && (holds.part.is_some() || self.repeat_at.is_none()) {
            self.repeat_at = Some(now + REPEAT_EVERY);
        }
        !self.changed.is_empty() || self.hurries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn place(number: usize) -> Place {
        (format!("t{number:03}").parse().expect("a topic"), "u1".into())
    }

    /// The log has a record of this process, and was told everything.
    fn told(places: usize) -> State {
        let mut state = State { record: Some(1), ..State::default() };
        for number in 0..places {
            assert!(state.enter(place(number), None, &Arc::default(), Instant::now()));
        }
        tell_all(&mut state);
        state
    }

    fn tell_all(state: &mut State) {
        state.changed.clear();
        state.held.values_mut().for_each(|held| held.is_changed = false);
    }

    fn noted(record: u64, unnamed: Vec<Place>) -> NotedHolds {
        NotedHolds { record: Some(record), unnamed, ..NotedHolds::default() }
    }

    /// Tells the next part, and returns it.
    fn tell_part(state: &mut State, noted: NotedHolds) -> Part {
        let (_, part) = state.next_part();
        state.conclude(&Holds { part: Some(part.clone()), ..Holds::default() }, noted);
        part
    }

    /// It came back part by part, one each second.
    #[tokio::test(start_paused = true)]
    async fn a_log_that_has_forgotten_is_told_all_parts_at_once() {
        let mut state = told(HOLDS_STEP + 1);
        assert!(!state.conclude(&Holds::default(), noted(1, vec![])) && !state.must_repeat());
        assert!(state.conclude(&Holds::default(), noted(2, vec![])) && state.must_repeat());
        assert!(tell_part(&mut state, noted(2, vec![])).to.is_some() && state.must_repeat());
        assert!(tell_part(&mut state, noted(2, vec![])).to.is_none() && !state.must_repeat());
        // The first record of all says nothing about an earlier one.
        let mut new = State::default();
        assert!(!new.conclude(&Holds::default(), noted(1, vec![])) && !new.must_repeat());
    }

    /// The member stayed for good.
    #[tokio::test(start_paused = true)]
    async fn a_part_with_a_hold_that_this_process_does_not_have_is_told_once_more() {
        let mut state = told(HOLDS_STEP + 1);
        let first = tell_part(&mut state, noted(1, vec![]));
        let second = tell_part(&mut state, noted(1, vec![place(999)]));
        assert_eq!(second.after, first.to);
        assert_eq!(state.changed, [place(999)], "the log is told that nobody is there");
        assert_eq!(tell_part(&mut state, noted(1, vec![])).after, first.to);
        assert!(tell_part(&mut state, noted(1, vec![])).after.is_none(), "and then from the beginning");
    }

    /// The log was never told that the member has left.
    #[tokio::test(start_paused = true)]
    async fn a_place_is_forgotten_only_once_the_log_was_told() {
        let mut state = told(1);
        state.leave(&place(0), Instant::now() + GRACE);
        tokio::time::advance(2 * GRACE).await;
        state.forget_idle(Instant::now());
        assert!(state.held.contains_key(&place(0)));
        tell_all(&mut state);
        tokio::time::advance(AGAIN_AFTER).await;
        state.forget_idle(Instant::now());
        assert!(state.held.is_empty() && state.idle.is_empty() && state.of_subject.is_empty());
    }
}
