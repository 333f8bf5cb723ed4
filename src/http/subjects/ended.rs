//! The subjects that the backend has ended: those whose connections ended lately, and those whose older tokens are refused.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::missed::Missed;
use crate::{
    auth::Identity,
    http::problem::Code,
    log::{End, FORGET_AT_ONCE, Refusal, Refusals},
    message::Id,
};

/// How many ends are remembered, for connections that were being opened meanwhile.
const MAX_RECENT: usize = 1024;

/// The subjects that were ended.
#[derive(Default)]
pub struct Ended {
    /// Those that other replicas may have missed.
    pub missed: Arc<Missed>,
    /// How many ends there were.
    count: AtomicU64,
    has_refusals: AtomicBool,
    /// Refusals were noted later than their ends, and connections may live that they refuse.
    has_late_refusals: AtomicBool,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    recent: VecDeque<Box<str>>,
    /// The ends by their ids: a replica may hear twice of one. Each token is cancelled when its end is done.
    begun: VecDeque<(Id, CancellationToken)>,
    refusals: Refusals,
}

impl State {
    /// True if it refuses more than was refused before.
    fn refuse(&mut self, subject: &str, refusal: Refusal) -> bool {
        // Each forgets more than it adds, so those that are over do not pile up.
        for _ in 0..FORGET_AT_ONCE {
            self.refusals.forget_old();
        }
        let before = self.refusals.get(subject);
        Some(self.refusals.note(subject, refusal).0) != before
    }
}

impl Ended {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many ends there were so far; see [`verdict`](Self::verdict).
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Notes an end. The result is cancelled once the end is done; the flag is true if the caller is to do it.
    pub fn note(&self, end: &End) -> (CancellationToken, bool) {
        let mut state = self.state();
        if let Some(refusal) = end.refusal {
            state.refuse(&end.subject, refusal);
            self.has_refusals.store(true, Ordering::Release);
        }
        if let Some((_, done)) = state.begun.iter().find(|(id, _)| *id == end.id && *id > Id::ZERO) {
            return (done.clone(), false);
        }
        if state.recent.len() == MAX_RECENT {
            state.recent.pop_front();
            state.begun.pop_front();
        }
        let done = CancellationToken::new();
        state.recent.push_back(end.subject.clone());
        state.begun.push_back((end.id, done.clone()));
        self.count.fetch_add(1, Ordering::AcqRel);
        (done, true)
    }

    /// Notes a refusal that was made earlier.
    pub fn note_refusal(&self, subject: &str, refusal: Refusal) {
        let is_new = self.state().refuse(subject, refusal);
        self.has_refusals.store(true, Ordering::Release);
        self.has_late_refusals.fetch_or(is_new, Ordering::AcqRel);
    }

    /// True if refusals were noted since this was last called that refuse more than was refused before. The caller is to
    /// end the connections that they refuse.
    pub fn take_late_refusals(&self) -> bool {
        self.has_late_refusals.swap(false, Ordering::AcqRel)
    }

    /// True if the client's token is refused.
    pub fn refuses(&self, identity: &Identity) -> bool {
        let (Some(subject), Some(issued)) = (identity.subject(), identity.issued()) else { return false };
        self.refuses_token(subject, issued)
    }

    /// True if tokens of this subject are refused that were issued in this second. `None`: they do not say when.
    pub fn refuses_token(&self, subject: &str, issued: Option<u64>) -> bool {
        if !self.has_refusals.load(Ordering::Acquire) {
            return false;
        }
        let refusal = self.state().refusals.get(subject);
        refusal
            .is_some_and(|refusal| !refusal.is_over() && issued.is_none_or(|issued| issued <= refusal.second))
    }

    /// Why a connection must end that was being opened since there were `count` ends.
    pub fn verdict(&self, count: u64, identity: &Identity) -> Option<Code> {
        let subject = identity.subject()?;
        if self.refuses(identity) {
            return Some(Code::Forbidden);
        }
        if self.count() == count {
            return None;
        }
        // Count while no end can come: an end between the count and the look would hide an earlier one.
        let state = self.state();
        let new = usize::try_from(self.count() - count).unwrap_or(usize::MAX);
        // Some that came meanwhile are forgotten: the client comes again, and is judged then.
        let Some(from) = state.recent.len().checked_sub(new) else { return Some(Code::Draining) };
        state.recent.range(from..).any(|ended| **ended == **subject).then_some(Code::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(id: u64, subject: &str) -> End {
        End { subject: subject.into(), refusal: None, id: Id::new(id) }
    }

    #[test]
    fn a_replica_that_hears_twice_of_an_end_does_it_once() {
        let ended = Ended::default();
        let (first, is_first) = ended.note(&end(7, "u1"));
        let (again, is_again_first) = ended.note(&end(7, "u1"));
        assert!(is_first && !is_again_first && ended.count() == 1);
        first.cancel();
        assert!(again.is_cancelled());
        // Ends without an id come once.
        assert!(ended.note(&end(0, "u1")).1 && ended.note(&end(0, "u1")).1);
    }

    /// All connections were looked at for each page of refusals, however often the same ones were read.
    #[test]
    fn a_refusal_that_is_noted_again_ends_no_connections() {
        let ended = Ended::default();
        let is_late = |second, until_ms| {
            ended.note_refusal("u1", Refusal { second, until_ms });
            ended.take_late_refusals()
        };
        let last = u64::MAX;
        assert!(is_late(100, last) && !is_late(100, last) && !is_late(99, last) && is_late(101, last));
        // The end itself ends all connections of its subject.
        let refusal = Some(Refusal { second: 102, until_ms: last });
        ended.note(&End { subject: "u1".into(), refusal, id: Id::ZERO });
        assert!(!ended.take_late_refusals());
    }

    #[test]
    fn a_token_is_refused_if_it_is_not_newer_than_the_second_of_the_request() {
        let ended = Ended::default();
        let refusal = Refusal { second: 100, until_ms: u64::MAX };
        assert!(!ended.refuses_token("u1", None));
        ended.note_refusal("u1", refusal);
        ended.note_refusal("u1", Refusal { second: 90, until_ms: 1 });
        let refused = [None, Some(99), Some(100), Some(101)].map(|iat| ended.refuses_token("u1", iat));
        assert_eq!(refused, [true, true, true, false]);
        assert!(!ended.refuses_token("u2", None));
        let over = Ended::default();
        over.note_refusal("u1", Refusal { second: 100, until_ms: 1 });
        assert!(!over.refuses_token("u1", None));
    }
}
