//! The ends of subjects that replicas may have missed. They are asked again, with one question at a time for each subject.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use crate::{http::live::replica_name, log::End};

/// For how many subjects replicas are asked again at once. One more is left to the backend, which was told so.
const MAX_SUBJECTS: usize = 64;
/// How often replicas are asked again. One that is silent for so long counts as gone, and ends all its connections.
const MAX_AGAIN: usize = 30;

/// The replicas that are to be asked, because they have not said that they ended a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAsk {
    These(BTreeSet<u64>),
    /// All that live: it is not known which ones these are.
    All,
}

/// The subjects about which replicas are asked again.
#[derive(Default)]
pub struct Missed {
    // A std mutex: no await happens while it is held.
    subjects: Mutex<HashMap<Box<str>, Question>>,
}

/// A question to replicas that have not said that they ended a subject.
#[derive(Clone, Debug)]
pub struct Question {
    pub end: End,
    /// When the subject was ended.
    pub begun: Instant,
    pub to_ask: ToAsk,
    /// How often they will be asked without a conclusion that all have done it.
    left: usize,
}

impl ToAsk {
    /// True if every replica has said it.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::These(mut names), Self::These(others)) => {
                names.extend(others);
                Self::These(names)
            }
            _ => Self::All,
        }
    }
}

impl fmt::Display for ToAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::These(names) => {
                let names: Vec<_> = names.iter().map(|name| replica_name(*name)).collect();
                f.write_str(&names.join(", "))
            }
            Self::All => f.write_str("all"),
        }
    }
}

/// How an end that was missed is told again.
pub enum Noted {
    /// The caller is to ask.
    New(Asking),
    /// It goes with the question about an earlier end of the subject.
    Joined,
    /// Too many subjects are asked about.
    Full,
}

impl Missed {
    fn subjects(&self) -> MutexGuard<'_, HashMap<Box<str>, Question>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that these replicas may have missed an end.
    pub fn note(self: &Arc<Self>, end: End, begun: Instant, to_ask: ToAsk) -> Noted {
        let mut subjects = self.subjects();
        if let Some(question) = subjects.get_mut(&end.subject) {
            question.join(end, begun, to_ask);
            return Noted::Joined;
        }
        if subjects.len() >= MAX_SUBJECTS {
            return Noted::Full;
        }
        let subject = end.subject.clone();
        let question = Question { end, begun, to_ask, left: MAX_AGAIN };
        subjects.insert(subject.clone(), question);
        Noted::New(Asking { missed: self.clone(), subject: Some(subject) })
    }
}

impl Question {
    /// Asks about another end of the subject too. The newer one of the two ends every connection that the older one ends.
    fn join(&mut self, end: End, begun: Instant, to_ask: ToAsk) {
        let refusal = match (self.end.refusal, end.refusal) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        };
        if end.id > self.end.id {
            self.end = end;
        }
        self.end.refusal = refusal;
        // The request with the older id may have come later.
        self.begun = self.begun.max(begun);
        self.to_ask = std::mem::replace(&mut self.to_ask, ToAsk::All).and(to_ask);
        self.left = MAX_AGAIN;
    }
}

/// The place of one subject. Dropping this gives it up.
pub struct Asking {
    missed: Arc<Missed>,
    /// `None` once the place is given up.
    subject: Option<Box<str>>,
}

impl Asking {
    /// The next question. `None` if no replica is to be asked any more: then the place is given up.
    pub fn next(&mut self) -> Option<Question> {
        let mut subjects = self.missed.subjects();
        let question = subjects.get(self.subject.as_ref()?)?;
        if question.to_ask.is_empty() || question.left == 0 {
            // In the same step, so that no end joins a question that is not asked.
            let given_up = subjects.remove(&self.subject.take()?)?;
            drop(subjects);
            if !given_up.to_ask.is_empty() {
                tracing::warn!(
                    sub = &*given_up.end.subject,
                    replicas = %given_up.to_ask,
                    "the backend ended a subject, and replicas never said that they did it; end it again to be sure"
                );
            }
            return None;
        }
        Some(question.clone())
    }

    /// Notes that these of the replicas that were asked have not done it. If another end has joined meanwhile, all are
    /// asked again. A question is asked again without this if no replica could be asked.
    pub fn conclude(&self, asked: &Question, to_ask: ToAsk) {
        let Some(subject) = &self.subject else { return };
        if let Some(question) = self.missed.subjects().get_mut(subject)
            && question.end == asked.end
            && question.to_ask == asked.to_ask
        {
            question.to_ask = to_ask;
            question.left = question.left.saturating_sub(1);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(subject) = &self.subject {
            self.missed.subjects().remove(subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::Refusal, message::Id, warnings::Warnings};

    fn end(subject: &str, id: u64, until_ms: Option<u64>) -> End {
        let refusal = until_ms.map(|until_ms| Refusal { second: id, until_ms });
        End { subject: subject.into(), refusal, id: Id::new(id) }
    }

    fn these<const N: usize>(names: [u64; N]) -> ToAsk {
        ToAsk::These(names.into())
    }

    fn begin(missed: &Arc<Missed>, subject: &str, late: &[u64]) -> Asking {
        match missed.note(end(subject, 1, None), Instant::now(), ToAsk::These(late.iter().copied().collect()))
        {
            Noted::New(asking) => asking,
            _ => panic!("there is a place for {subject}"),
        }
    }

    /// One subject that was ended again and again took the places of all others.
    #[tokio::test]
    async fn each_subject_has_one_place_however_often_it_is_ended() {
        let missed = Arc::new(Missed::default());
        let mut asking = begin(&missed, "u1", &[1]);
        for id in 2..1000 {
            let noted = missed.note(end("u1", id, None), Instant::now(), these([id % 3]));
            assert!(matches!(noted, Noted::Joined));
        }
        let others: Vec<_> = (1..MAX_SUBJECTS).map(|it| begin(&missed, &format!("o{it}"), &[1])).collect();
        assert!(matches!(missed.note(end("one more", 1, None), Instant::now(), these([1])), Noted::Full));
        let question = asking.next().expect("replicas are to be asked");
        assert_eq!(
            (question.end.id, question.to_ask),
            (Id::new(999), these([0, 1, 2])),
            "the newest, at all replicas"
        );
        drop(others);
        begin(&missed, "one more", &[1]);
    }

    #[tokio::test]
    async fn replicas_are_asked_until_all_have_answered() {
        let missed = Arc::new(Missed::default());
        let mut asking = begin(&missed, "u1", &[1, 2]);
        let first = asking.next().expect("two replicas are late");
        asking.conclude(&first, these([2]));
        let second = asking.next().expect("one of them is still late");
        assert_eq!(second.to_ask, these([2]));
        asking.conclude(&second, these([]));
        assert!(asking.next().is_none());
        // The place is free, and a new question does not end with the old one.
        let mut new = begin(&missed, "u1", &[1]);
        drop(asking);
        assert!(new.next().is_some());
    }

    /// They were given up while Redis was away for as long, and nobody learned of it.
    #[tokio::test]
    async fn replicas_are_not_asked_for_ever_and_an_outage_does_not_count() {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        let mut asking = begin(&Arc::default(), "u1", &[1]);
        let mut count = 0;
        for _ in 0..2 * MAX_AGAIN {
            // No replica could be asked, so there is no conclusion.
            assert!(asking.next().is_some());
        }
        while let Some(question) = asking.next() {
            asking.conclude(&question, these([1]));
            count += 1;
        }
        assert!(asking.next().is_none());
        assert_eq!((count, warnings.count()), (MAX_AGAIN, 1));
        let mut answered = begin(&Arc::default(), "u1", &[1]);
        let question = answered.next().expect("a replica is late");
        answered.conclude(&question, these([]));
        assert!(answered.next().is_none());
        assert_eq!(warnings.count(), 1, "all have answered");
    }

    /// The answer to the older question says nothing about the newer end.
    #[tokio::test]
    async fn an_end_that_joins_is_asked_of_all_replicas() {
        let missed = Arc::new(Missed::default());
        let mut asking = begin(&missed, "u1", &[1]);
        let first = asking.next().expect("a replica is late");
        let later = Instant::now();
        missed.note(end("u1", 5, Some(900)), later, these([1, 2]));
        // Its request was answered later, although it came earlier.
        missed.note(end("u1", 4, Some(800)), first.begun, these([3]));
        asking.conclude(&first, these([]));
        let second = asking.next().expect("the replicas are late for the newer end");
        assert_eq!(
            (second.end, second.begun, second.to_ask),
            (end("u1", 5, Some(900)), later, these([1, 2, 3]))
        );
        // One with a newer id, whose request came before.
        missed.note(end("u1", 6, None), first.begun, these([1]));
        let third = asking.next().expect("a replica is late");
        assert_eq!((third.end.id, third.begun), (Id::new(6), later));
    }

    /// The older tokens of a subject were accepted by a replica that was asked only about a later end without a refusal.
    #[tokio::test]
    async fn an_end_without_a_refusal_takes_none_back() {
        let missed = Arc::new(Missed::default());
        let Noted::New(mut asking) = missed.note(end("u2", 1, Some(900)), Instant::now(), these([1])) else {
            panic!("there is a place")
        };
        missed.note(end("u2", 2, None), Instant::now(), these([1]));
        let question = asking.next().expect("a replica is late");
        assert_eq!(question.end.refusal, Some(Refusal { second: 1, until_ms: 900 }));
    }

    /// The end was not asked about again if it was not known which replicas live.
    #[tokio::test]
    async fn all_replicas_are_asked_until_it_is_known_which_ones_live() {
        let missed = Arc::new(Missed::default());
        let Noted::New(mut asking) = missed.note(end("u1", 1, None), Instant::now(), ToAsk::All) else {
            panic!("there is a place")
        };
        missed.note(end("u1", 2, None), Instant::now(), these([1]));
        let question = asking.next().expect("all are to be asked");
        assert_eq!(question.to_ask, ToAsk::All);
        asking.conclude(&question, these([2]));
        assert_eq!(asking.next().expect("one is late").to_ask, these([2]));
    }
}
