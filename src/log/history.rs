//! A page of a topic's history: its newest messages below an id, and what is gone among them, for both logs.
//!
//! Everything here is a value. This module does not know where messages are stored.

use super::{
    Reason,
    loss::{self, Boundary, Loss},
};
use crate::message::{Id, Message};

/// A page of the history of one topic.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The messages, in the order of their ids.
    pub messages: Vec<Message>,
    /// The messages that are gone, in the order of ids.
    pub gaps: Vec<Missing>,
    /// The page covers everything from here on; `None` if nothing older is retained.
    pub before: Option<Id>,
    /// True if the topic had no message before these. If this is false and nothing older is retained, the first gap
    /// begins at zero.
    pub is_beginning: bool,
}

/// Messages of the topic that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The message before them; zero if nothing older is retained.
    pub after: Id,
    /// The oldest retained message after them; `None` if there is none. `None` too on a last page without messages.
    pub next: Option<Id>,
    pub reason: Reason,
}

/// The part of a topic that a store has found for a page.
#[derive(Debug)]
pub struct Found<'a> {
    /// All boundaries of the store, oldest first.
    pub boundaries: &'a [Boundary],
    /// The newest id that the topic had when it was last deleted.
    pub deleted: Id,
    /// In the order of ids.
    pub entries: Vec<Entry>,
    /// True if older entries are retained.
    pub has_older: bool,
    /// The topic has lost nothing between this and the end of the page. If no entry comes behind this, it has nothing
    /// there.
    pub complete_after: Id,
    /// The oldest retained message after the page.
    pub next: Option<Id>,
}

/// An entry of a topic.
#[derive(Debug)]
pub struct Entry {
    pub id: Id,
    /// The newest id that the topic had before.
    pub prev: Id,
    /// `None` if the message cannot be read.
    pub message: Option<Message>,
}

impl Found<'_> {
    /// The page below `before`.
    pub fn page(mut self, before: Id) -> History {
        // An entry that is no message is told with what is gone before it. So the next page tells it, if it can.
        if self.has_older
            && let Some(first) = self.entries.iter().position(|entry| entry.message.is_some())
        {
            self.entries.drain(..first);
        }
        let mut page = History { before: self.before(), ..History::default() };
        let mut complete_after = Id::ZERO;
        for Entry { id, prev, message } in std::mem::take(&mut self.entries) {
            // An entry that is no message may stand for one that this version cannot read.
            complete_after = complete_after.max(if message.is_some() { prev } else { id });
            let Some(message) = message else { continue };
            self.tell(&mut page, id, Some(id), complete_after);
            page.messages.push(message);
            complete_after = Id::ZERO;
        }
        let next = self.next.filter(|_| page.before.is_some() || !page.messages.is_empty());
        self.tell(&mut page, before, next, complete_after.max(self.complete_after));
        page
    }

    fn before(&self) -> Option<Id> {
        self.entries.first().map(|entry| entry.id).filter(|_| self.has_older)
    }

    /// Tells what is gone between the last message of the page, so far, and `upto`.
    fn tell(&self, page: &mut History, upto: Id, next: Option<Id>, complete_after: Id) {
        let loss = Loss { complete_after, next, deleted: self.deleted };
        let (after, reason) = match (page.messages.last(), page.before) {
            (Some(message), _) => (message.id, loss::between(self.boundaries, message.id, upto, loss)),
            // The next page tells what is gone before its end.
            (None, Some(before)) => {
                let after = before.before();
                (after, loss::between(self.boundaries, after, upto, loss))
            }
            (None, None) => {
                let reason = loss::before_all(self.boundaries, upto, loss);
                page.is_beginning = reason.is_none();
                (Id::ZERO, reason)
            }
        };
        page.gaps.extend(reason.map(|reason| Missing { after, next, reason }));
    }
}

impl History {
    /// Adds the page below this one.
    pub fn extend(&mut self, mut older: Self) {
        // Two gaps with no message between them are one.
        let is_at_start = |gap: &&Missing| self.messages.first().is_none_or(|message| gap.after < message.id);
        if let Some(next) = self.gaps.first().filter(is_at_start).map(|gap| gap.next)
            && let end = older.messages.last().map(|message| message.id).unwrap_or_default()
            && let Some(gap) = older.gaps.last_mut().filter(|gap| gap.after >= end)
        {
            gap.next = next;
            self.gaps.remove(0);
        }
        if older.before.is_none() && older.messages.is_empty() {
            // Its gap now ends at the first message of both.
            let next = self.messages.first().map(|message| message.id);
            older.gaps.iter_mut().for_each(|gap| gap.next = next);
        }
        older.messages.append(&mut self.messages);
        older.gaps.append(&mut self.gaps);
        *self = older;
    }

    /// Leaves all but the newest `count` messages to the next page.
    pub fn keep_newest(&mut self, count: usize) {
        let Some(left) = self.messages.len().checked_sub(count).filter(|left| *left > 0 && count > 0) else {
            return;
        };
        self.messages.drain(..left);
        let first = self.messages[0].id;
        self.gaps.retain(|gap| gap.after >= first);
        (self.before, self.is_beginning) = (Some(first), false);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::message::{Draft, Payload};

    /// One topic of a store, and all that was ever published to it.
    struct Store {
        newest: u64,
        boundaries: Vec<Boundary>,
        deleted: u64,
        published: Vec<Published>,
        /// The newest id of the topic, as far as the store knows.
        known: u64,
    }

    #[derive(Clone, Copy, Debug)]
    struct Published {
        id: u64,
        prev: u64,
        is_retained: bool,
        is_readable: bool,
    }

    impl Store {
        fn new() -> Self {
            let boundary = Boundary { began: Id::new(100), inherited: Id::ZERO, reason: Reason::Restarted };
            Self { newest: 100, boundaries: vec![boundary], deleted: 0, published: Vec::new(), known: 100 }
        }

        fn happen(&mut self, random: &mut StdRng) {
            match random.random_range(0..20) {
                0..9 => {
                    self.newest += random.random_range(1..4);
                    let (id, prev, is_readable) = (self.newest, self.known, random.random_range(0..15) > 0);
                    self.known = id;
                    self.published.push(Published { id, prev, is_retained: true, is_readable });
                }
                9..12 => {
                    let retained = self.published.iter_mut().filter(|it| it.is_retained);
                    retained.take(2).for_each(|it| it.is_retained = false);
                }
                12 => {
                    self.published.iter_mut().for_each(|it| it.is_retained = false);
                    self.deleted = if self.known > 100 { self.known } else { 0 };
                }
                // Another program takes a message out of the middle.
                13 if !self.published.is_empty() => {
                    let at = random.random_range(0..self.published.len());
                    self.published[at].is_retained = false;
                }
                14 => self.restart(random),
                // Something is published to another topic.
                _ => self.newest += 1,
            }
        }

        /// The newest messages are lost. Only the boundary shows it.
        fn restart(&mut self, random: &mut StdRng) {
            let inherited = self.newest - random.random_range(0..6).min(self.newest - 100);
            let lost = self.published.iter_mut().filter(|it| it.id > inherited && it.is_retained);
            lost.for_each(|it| it.is_retained = false);
            let left = self.published.iter().filter(|it| it.id <= inherited).map(|it| it.id).max();
            self.known = left.unwrap_or(100);
            self.deleted = self.deleted.min(self.known);
            self.newest += 10;
            let [began, inherited] = [self.newest, inherited].map(Id::new);
            self.boundaries.push(Boundary { began, inherited, reason: Reason::Failover });
        }

        fn retained(&self) -> impl DoubleEndedIterator<Item = &Published> {
            self.published.iter().filter(|it| it.is_retained)
        }

        fn page(&self, before: Id, limit: usize) -> History {
            let mut entries: Vec<_> = self.retained().rev().filter(|it| it.id < before.get()).collect();
            let has_older = entries.len() > limit;
            entries.truncate(limit);
            let entries = entries.into_iter().rev().map(|it| Entry {
                id: Id::new(it.id),
                prev: Id::new(it.prev),
                message: it.is_readable.then(|| message(it)),
            });
            let next = self.retained().find(|it| it.id >= before.get());
            let found = Found {
                boundaries: &self.boundaries,
                deleted: Id::new(self.deleted),
                entries: entries.collect(),
                has_older,
                complete_after: Id::new(next.map_or(self.known, |it| it.prev)),
                next: next.map(|it| Id::new(it.id)),
            };
            found.page(before)
        }

        /// All pages below `before`, each checked for its own form.
        fn pages(&self, before: Id, random: &mut StdRng) -> History {
            let mut all: Option<History> = None;
            let mut before = before;
            loop {
                let mut page = self.page(before, random.random_range(1..4));
                page.keep_newest(random.random_range(1..4));
                let next = page.before;
                assert!(next.is_none_or(|next| next < before), "it goes on: {page:?}");
                match &mut all {
                    Some(all) => all.extend(page),
                    None => all = Some(page),
                }
                match next {
                    Some(next) => before = next,
                    None => return all.expect("a page"),
                }
            }
        }
    }

    fn message(of: &Published) -> Message {
        let topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, by: None, payload: Payload::text("x"), exclude: None };
        Message::new(draft, Id::new(of.id), Id::new(of.prev))
    }

    #[test]
    fn all_pages_together_are_what_was_published_without_the_gaps_that_they_tell() {
        for seed in 0..5_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut store = Store::new();
            (0..random.random_range(0..40)).for_each(|_| store.happen(&mut random));
            let before =
                [Id::MAX, Id::new(random.random_range(0..store.newest + 5))][random.random_range(0..2)];
            let page = store.pages(before, &mut random);
            let is_given = |it: &&Published| it.is_retained && it.is_readable && it.id < before.get();
            let due: Vec<_> = store.published.iter().filter(is_given).map(|it| it.id).collect();
            let ids: Vec<_> = page.messages.iter().map(|it| it.id.get()).collect();
            assert_eq!(ids, due, "seed {seed}");
            check_gaps(&store, before, &page, seed);
        }
    }

    fn check_gaps(store: &Store, before: Id, page: &History, seed: u64) {
        let end = |gap: &Missing| gap.next.map_or(before.get(), |next| next.get().min(before.get()));
        // Everything that is not given lies in a gap, and so does everything that a boundary may have lost.
        let given = |id: u64| page.messages.iter().any(|it| it.id.get() == id);
        let told = |id: u64| {
            page.gaps.iter().any(|gap| {
                // The gap of an empty last page has no end.
                gap.after.get() < id && id < end(gap)
            })
        };
        for it in store.published.iter().filter(|it| it.id < before.get() && !given(it.id)) {
            assert!(told(it.id), "seed {seed}: {it:?} is not told: {page:?}");
        }
        for boundary in &store.boundaries[1..] {
            let lost = boundary.inherited.get() + 1;
            assert!(lost >= before.get() || told(lost), "seed {seed}: {boundary:?} is not told: {page:?}");
        }
        // Every gap has a cause, and each is told once.
        for gap in &page.gaps {
            let is_within = |id: u64| gap.after.get() < id && id < end(gap);
            let is_before_life =
                gap.after == Id::ZERO && gap.reason == Reason::Restarted && before.get() <= 100;
            let has_lost = store.published.iter().any(|it| !given(it.id) && is_within(it.id));
            // The id that a hole ends at may be at or past the end of the page.
            let may_have_lost = store.known >= before.get() && gap.next.is_none();
            let is_boundary = store.boundaries[1..].iter().any(|it| is_within(it.inherited.get() + 1));
            assert!(
                has_lost
                    || is_boundary
                    || is_before_life
                    || may_have_lost
                    || gap.next.is_some_and(|next| next >= before),
                "seed {seed}: without cause: {gap:?} of {page:?}"
            );
        }
        // A message lies between any two.
        let is_told_once =
            |two: &[Missing]| page.messages.iter().any(|it| two[0].after < it.id && it.id <= two[1].after);
        assert!(page.gaps.windows(2).all(is_told_once), "seed {seed}: {page:?}");
        let is_open = page.gaps.first().is_some_and(|gap| gap.after == Id::ZERO);
        assert_ne!(is_open, page.is_beginning, "seed {seed}: {page:?}");
        if is_open {
            assert_eq!(page.gaps[0].next, page.messages.first().map(|it| it.id), "seed {seed}");
        }
    }

    #[test]
    fn ids_from_before_the_life_of_the_store_have_no_beginning() {
        let store = Store::new();
        for before in [0, 1, 2, 99, 100] {
            let page = store.page(Id::new(before), 10);
            let gap = Missing { after: Id::ZERO, next: None, reason: Reason::Restarted };
            assert_eq!((page.is_beginning, page.gaps), (false, vec![gap]), "{before}");
        }
        assert!(store.page(Id::new(101), 10).is_beginning);
    }

    #[test]
    fn a_store_that_has_forgotten_its_first_boundary_never_says_that_a_topic_begins() {
        let mut store = Store::new();
        store.boundaries[0].began = Id::new(50_000);
        store.newest = 60_000;
        store.published.push(Published { id: 60_000, prev: 100, is_retained: true, is_readable: true });
        let page = store.page(Id::MAX, 10);
        assert_eq!((page.is_beginning, page.before, page.gaps.len()), (false, None, 1));
        assert_eq!((page.gaps[0].after, page.gaps[0].reason), (Id::ZERO, Reason::Restarted));
    }
}
