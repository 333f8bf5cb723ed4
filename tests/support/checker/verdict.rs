//! The guarantee, compared with everything that was published and everything that came.
//!
//! 1. Every message that came was published, with this payload.
//! 2. Every promised message came once, or is inside a gap that was told.
//! 3. Every gap covers at least one message, and none that was still retained.
//! 4. The same stream or answer does not send a message that it has told as gone.

use std::collections::{BTreeMap, HashMap};

use super::{
    Retention,
    standing::{Given, Place, Promise, Standing, Told, Wrong},
    truth::{Counts, Published, Truth, matches},
};
use crate::support::frame::Cursor;

/// Everything published, in the order of the ids, and the place of each message within its topic.
pub struct History {
    messages: BTreeMap<Cursor, Entry>,
    retention: Retention,
}

struct Entry {
    published: Published,
    /// The place of the message within its topic; the first is 1.
    rank: u64,
}

impl History {
    pub fn of(truth: &Truth, retention: Retention) -> Self {
        let mut ranks = Counts::new();
        let ranked = truth.all().into_iter().map(|(id, published)| {
            let rank = ranks.entry(published.topic).or_default();
            *rank += 1;
            (id, Entry { rank: *rank, published })
        });
        Self { messages: ranked.collect(), retention }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True if a message may have been trimmed when its topic had `started` publications. Messages that are
    /// still being published count, because a gap can arrive before the answer to the publish that caused it.
    fn may_be_forgotten(&self, entry: &Entry, started: &Counts) -> bool {
        match self.retention {
            Retention::Everything => false,
            Retention::Newest(kept) => entry.rank + kept <= count(started, entry.published.topic),
        }
    }

    fn covered<'a>(&'a self, told: &'a Told) -> impl Iterator<Item = (&'a Cursor, &'a Entry)> {
        let messages = self.messages.range(told.gap.after + 1..told.end());
        messages.filter(|(_, entry)| matches(&told.gap.topic, entry.published.topic))
    }
}

impl Told {
    /// The first id after the gap.
    fn end(&self) -> Cursor {
        let end = self.gap.next.unwrap_or(self.gap.cursor + 1);
        end.max(self.gap.after + 1)
    }

    fn holds(&self, id: Cursor, topic: &str) -> bool {
        self.gap.after < id && id < self.end() && matches(&self.gap.topic, topic)
    }
}

pub fn judge(standing: &Standing, history: &History) -> Result<(), Wrong> {
    let given = what_was_given_was_published_and_came_once(standing, history)?;
    what_was_promised_was_given_or_told(standing, history, &given)?;
    no_gap_was_told_without_cause(standing, history)?;
    nothing_came_after_it_was_told_as_gone(standing)
}

fn what_was_given_was_published_and_came_once<'a>(
    standing: &'a Standing,
    history: &History,
) -> Result<HashMap<Cursor, &'a Given>, Wrong> {
    let mut once = HashMap::new();
    for given in &standing.given {
        let place = place(given.place);
        let came = format!("{place} gave {} of {}", given.id, given.topic);
        let Some(Entry { published, .. }) = history.messages.get(&given.id) else {
            return Err(wrong("only published messages", came));
        };
        let same = published.topic == given.topic && published.event == given.event;
        if !same || !published.body.arrived_as(&given.body) {
            let came = format!("{came} with {:?} and {:?}", given.event, given.body);
            return Err(wrong(format!("{published:?}"), came));
        }
        if once.insert(given.id, given).is_some() {
            return Err(wrong("each message once", came));
        }
    }
    Ok(once)
}

fn what_was_promised_was_given_or_told(
    standing: &Standing,
    history: &History,
    given: &HashMap<Cursor, &Given>,
) -> Result<(), Wrong> {
    for (&id, entry) in &history.messages {
        let topic = entry.published.topic;
        let promised = standing.entries.iter().any(|subscribed| {
            let owed = |promise: &Promise| promise.holds(id, topic, entry.rank);
            matches(&subscribed.filter, topic) && subscribed.promise.as_ref().is_some_and(owed)
        });
        if !promised || given.contains_key(&id) || standing.gaps.iter().any(|told| told.holds(id, topic)) {
            continue;
        }
        let newer = standing.given.iter().filter(|given| given.id > id).min_by_key(|given| given.id);
        let came = match newer {
            Some(newer) => format!("{} went on with {} of {}", place(newer.place), newer.id, newer.topic),
            None => "nothing newer came at all".to_owned(),
        };
        let number = entry.rank;
        return Err(wrong(
            format!("the message {id}, number {number} of {topic}, or a gap that covers it"),
            format!("neither came; {came}"),
        ));
    }
    Ok(())
}

impl Promise {
    fn holds(&self, id: Cursor, topic: &str, rank: u64) -> bool {
        self.after.is_some_and(|after| id > after) || rank + self.newest > count(&self.counts, topic)
    }
}

fn count(counts: &Counts, topic: &str) -> u64 {
    counts.get(topic).copied().unwrap_or(0)
}

fn no_gap_was_told_without_cause(standing: &Standing, history: &History) -> Result<(), Wrong> {
    for told in &standing.gaps {
        let came = format!("{} told {:?}", place(told.place), told.gap);
        let mut covered = history.covered(told).peekable();
        if covered.peek().is_none() {
            return Err(wrong("no gap that covers nothing", came));
        }
        let is_forgotten = |entry: &Entry| history.may_be_forgotten(entry, &told.started);
        // A gap of a pattern spans topics, and some of them may have lost nothing.
        if told.gap.topic.contains('*') {
            if !covered.any(|(_, entry)| is_forgotten(entry)) {
                return Err(wrong("a gap to cover something that is no longer retained", came));
            }
        } else if let Some((id, entry)) = covered.find(|(_, entry)| !is_forgotten(entry)) {
            let started = count(&told.started, entry.published.topic);
            let expected = format!("a gap not to cover {id}, number {} of {started} at most", entry.rank);
            return Err(wrong(expected, came));
        }
    }
    Ok(())
}

fn nothing_came_after_it_was_told_as_gone(standing: &Standing) -> Result<(), Wrong> {
    for told in standing.gaps.iter().filter(|told| !told.gap.topic.contains('*')) {
        let is_inside = |given: &&Given| given.place == told.place && told.holds(given.id, &given.topic);
        if let Some(given) = standing.given.iter().find(is_inside) {
            let expected = format!("nothing from inside {:?}, told by {}", told.gap, place(told.place));
            return Err(wrong(expected, format!("{} gave {}", place(given.place), given.id)));
        }
    }
    Ok(())
}

fn place(place: Place) -> String {
    format!("session {} ({})", place.session, place.transport)
}

fn wrong(expected: impl Into<String>, came: String) -> Wrong {
    Wrong { expected: expected.into(), came }
}
