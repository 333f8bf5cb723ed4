//! Compares what was answered with what was given.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::{Change, Got, Journal, Published, Session, What};

/// How long before a leave a fault of a replica may be the reason for it, in microseconds.
const AFTERMATH_US: u64 = 30_000_000;

/// A span in which a topic was surely read, or surely not.
struct Span {
    is_on: bool,
    from: u64,
    until: u64,
}

/// The spans between the changes of one topic. A loss ends those in which it is read.
fn spans(changes: &[&Change], losses: &[u64]) -> Vec<Span> {
    let first = changes.first().map_or(u64::MAX, |change| change.asked);
    let mut spans = vec![Span { is_on: false, from: 0, until: first }];
    for (at, change) in changes.iter().enumerate() {
        let other = changes[at + 1..].iter().find(|later| later.is_added != change.is_added);
        let mut until = other.map_or(u64::MAX, |later| later.asked);
        if change.is_added {
            // A loss after the question may have taken what was answered.
            let lost = losses.iter().find(|loss| **loss > change.asked);
            until = until.min(lost.copied().unwrap_or(u64::MAX));
        }
        spans.push(Span { is_on: change.is_added, from: change.answered, until });
    }
    spans
}

/// True if this is a gap in which the message lies. Without a next message it reaches up to the moment at which it was told.
fn is_told_gone(got: &Got, topic: &str, asked: u64, id: u64) -> bool {
    let What::Gap { topic: of, after, next, .. } = &got.what else { return false };
    let is_meant = of == topic || of == "$mine";
    is_meant && *after < id && next.map_or(asked < got.at, |next| id < next)
}

/// Counts what was checked, so that a round that proves nothing is seen.
#[derive(Debug, Default)]
struct Counts {
    given_to_connections: usize,
    not_due_to_connections: usize,
    given_to_readers: usize,
    not_due_to_readers: usize,
    /// Messages that were due, and lie in a gap that was told.
    gaps: usize,
    /// Connections that were ended, each of them by its id or by its subject, while messages came; in a long round only
    /// after the first fault.
    ends_by_id: usize,
    ends_by_subject: usize,
    holds: usize,
    leaves: usize,
}

impl Counts {
    /// The shortest round has more of each.
    fn are_enough(&self) -> bool {
        let connections = self.given_to_connections.min(self.not_due_to_connections);
        let readers = self.given_to_readers.min(self.not_due_to_readers);
        let rare = self.ends_by_id.min(self.ends_by_subject).min(self.leaves);
        connections.min(readers) >= 20 && self.holds >= 10 && rare >= 1
    }
}

/// # Panics
/// If something was answered that does not hold, or if too little was answered and given.
pub fn check(journal: &Journal) -> String {
    let mut counts = Counts::default();
    let mut by_topic: BTreeMap<&str, Vec<(usize, &Published)>> = BTreeMap::new();
    for (number, message) in journal.messages.iter().enumerate() {
        by_topic.entry(&message.topic).or_default().push((number, message));
    }
    let mut changes: BTreeMap<(&str, &str), Vec<&Change>> = BTreeMap::new();
    for change in &journal.changes {
        changes.entry((&change.of, &change.topic)).or_default().push(change);
    }
    for shared in &journal.connections {
        let session = shared.lock().expect("no actor panics");
        check_order(&[&session]);
        for (topic, messages) in by_topic.iter().filter(|(topic, _)| topic.starts_with("c.")) {
            let changes = changes.get(&(&*session.connection, *topic));
            for span in spans(changes.map_or(&[][..], |changes| changes), &[]) {
                check_connection(&session, topic, &span, messages, &mut counts);
            }
        }
    }
    let gone: BTreeSet<_> = journal.gone.iter().collect();
    for shared in &journal.connections {
        let session = shared.lock().expect("no actor panics");
        let last = journal.messages.last().and_then(|last| last.stored).map_or(0, |(_, id)| id);
        assert!(
            !gone.contains(&session.connection) || session.cursor() < last,
            "{} was gone",
            session.connection
        );
    }
    for (number, sessions) in &journal.readers {
        let sessions: Vec<_> = sessions.iter().map(|one| one.lock().expect("no actor panics")).collect();
        let sessions: Vec<&Session> = sessions.iter().map(|one| &**one).collect();
        check_order(&sessions);
        for (topic, messages) in by_topic.iter().filter(|(topic, _)| topic.starts_with("l.")) {
            let changes = changes.get(&(&*sessions[0].sub, *topic));
            for span in spans(changes.map_or(&[][..], |changes| changes), &journal.losses) {
                check_reader(*number, &sessions, topic, &span, messages, &mut counts);
            }
        }
    }
    check_ends(journal, &mut counts);
    check_leaves(journal, &mut counts);
    assert!(counts.are_enough(), "this proves too little: {counts:?}");
    let messages = journal.messages.iter().filter(|message| message.stored.is_some()).count();
    format!("{messages} messages, {} changes, {counts:?}", journal.changes.len())
}

/// Ids grow on one connection, and over all connections of a reader that resumes.
fn check_order(sessions: &[&Session]) {
    let mut last = 0;
    let all: Vec<_> = sessions.iter().flat_map(|session| &session.got).collect();
    for (at, got) in all.iter().enumerate() {
        match &got.what {
            What::Message { .. } if got.cursor > 0 => {
                assert!(
                    got.cursor > last,
                    "{got:?} comes after {last}: {:?}",
                    &all[at.saturating_sub(5)..=at]
                );
                last = got.cursor;
            }
            What::Gap { reason, .. } if reason == "unknown_cursor" => last = 0,
            _ => {}
        }
    }
}

fn has(session: &Session, number: usize) -> bool {
    session.got.iter().any(|got| matches!(got.what, What::Message { number: given } if given == number))
}

fn check_connection(
    session: &Session,
    topic: &str,
    span: &Span,
    messages: &[(usize, &Published)],
    counts: &mut Counts,
) {
    let given: BTreeSet<usize> = numbers(session);
    for (number, message) in messages.iter().filter(|(_, message)| message.asked > span.from) {
        let Some((stored_at, id)) = message.stored else { continue };
        if !span.is_on {
            if stored_at < span.until {
                counts.not_due_to_connections += 1;
                assert!(
                    !given.contains(number),
                    "{} got {number} of {topic} though it was removed",
                    session.connection
                );
            }
            continue;
        }
        // A message that was not given yet when the topic was removed may never be.
        let passed = session.got.iter().find(|got| got.cursor >= id);
        if passed.is_none_or(|got| got.at >= span.until) {
            continue;
        }
        if given.contains(number) {
            counts.given_to_connections += 1;
            continue;
        }
        counts.gaps += 1;
        assert!(
            session.got.iter().any(|got| is_told_gone(got, topic, message.asked, id)),
            "{} of {} at {} never got {number} ({id}) of {topic}, asked at {} after {}, and passed it by {passed:?}",
            session.connection,
            session.sub,
            session.replica,
            message.asked,
            span.from
        );
    }
}

fn check_reader(
    reader: u64,
    sessions: &[&Session],
    topic: &str,
    span: &Span,
    messages: &[(usize, &Published)],
    counts: &mut Counts,
) {
    let given: BTreeSet<usize> = sessions.iter().flat_map(|session| numbers(session)).collect();
    for (number, message) in messages.iter().filter(|(_, message)| message.asked > span.from) {
        let Some((stored_at, id)) = message.stored else { continue };
        if !span.is_on {
            if stored_at < span.until {
                counts.not_due_to_readers += 1;
                assert!(
                    !given.contains(number),
                    "reader {reader} got {number} ({id}) of {topic}, asked at {} and stored at {stored_at}, though it was \
                     removed from {} until {}: {:?}",
                    message.asked,
                    span.from,
                    span.until,
                    sessions
                        .iter()
                        .map(|one| (one.replica, one.opened, one.from, around(one, id)))
                        .collect::<Vec<_>>()
                );
            }
            continue;
        }
        // The connection that passed the message, if the entry was still there when it opened.
        let passed = sessions.iter().find(|session| session.cursor() >= id);
        let Some(session) = passed.filter(|session| session.opened < span.until) else { continue };
        if id <= sessions[0].from || stored_at >= span.until {
            continue;
        }
        if given.contains(number) {
            counts.given_to_readers += 1;
            continue;
        }
        counts.gaps += 1;
        assert!(
            sessions.iter().flat_map(|one| &one.got).any(|got| is_told_gone(got, topic, message.asked, id)),
            "reader {reader} never got {number} ({id}) of {topic}, asked at {} after {} until {}, stored at {stored_at}; \
             it opened at {} from {}: {:#?}",
            message.asked,
            span.from,
            span.until,
            session.opened,
            session.from,
            around(session, id)
        );
    }
}

/// The frames just before and after this id.
fn around(session: &Session, id: u64) -> Vec<&Got> {
    let at = session.got.iter().position(|got| got.cursor >= id).unwrap_or_default();
    session.got[at.saturating_sub(4)..].iter().take(8).collect()
}

fn numbers(session: &Session) -> BTreeSet<usize> {
    let number = |got: &Got| match got.what {
        What::Message { number } => Some(number),
        _ => None,
    };
    session.got.iter().filter_map(number).collect()
}

/// A connection from before the question is given no message that was published after the answer.
fn check_ends(journal: &Journal, counts: &mut Counts) {
    let all = journal.readers.values().flatten().chain(&journal.connections);
    let sessions: Vec<_> = all.map(|one| one.lock().expect("no actor panics")).collect();
    for end in &journal.ends {
        let is_meant = |session: &&std::sync::MutexGuard<'_, Session>| {
            (session.sub == end.of || session.connection == end.of) && session.opened < end.asked
        };
        for session in sessions.iter().filter(is_meant) {
            let mut later = journal
                .messages
                .iter()
                .enumerate()
                .filter(|(_, message)| message.asked > end.answered)
                .peekable();
            let is_checked = usize::from(later.peek().is_some() && end.asked >= journal.ends_count_from);
            match session.sub == end.of {
                true => counts.ends_by_subject += is_checked,
                false => counts.ends_by_id += is_checked,
            }
            for (number, _) in later {
                assert!(!has(session, number), "{} got {number} after its end", session.connection);
            }
        }
    }
}

/// No member leaves while a client holds it at a replica without a fault.
fn check_leaves(journal: &Journal, counts: &mut Counts) {
    counts.holds = journal.holds.len();
    for leave in &journal.leaves {
        counts.leaves += 1;
        // Ids can be ahead of the clock. A message that was stored later than the hold began has a higher id.
        let holds = journal.holds.iter().filter(|hold| {
            let later = journal.messages.iter().find(|message| message.asked > hold.opened);
            let id = later.and_then(|message| message.stored).map_or(u64::MAX, |(_, id)| id);
            hold.topic == leave.topic && hold.sub == leave.sub && id < leave.id && leave.at < hold.closed
        });
        for hold in holds {
            let is_faulty = |(number, from, to): &(usize, u64, u64)| {
                *number == hold.replica
                    && *from < leave.at_us
                    && to.saturating_add(AFTERMATH_US) > leave.at_us
            };
            assert!(
                journal.faults.iter().any(is_faulty),
                "{} left {} at {}, and was held at {}",
                leave.sub,
                leave.topic,
                leave.id,
                hold.replica
            );
        }
    }
}
