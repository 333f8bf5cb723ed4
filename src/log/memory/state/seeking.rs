//! Finds where a reader begins, in steps that release the lock in between.

use std::collections::{BTreeSet, HashMap};

use super::{State, budget::Budget, firsts::Firsts};
use crate::{
    log::{Beginning, Gap, Mark, Position, Reason, Start, Tail, position::MAX_LAST_TOPICS},
    message::{Id, Message, Pattern, PatternSet, Topic},
};

/// A search that is under way.
///
/// The last step has seen every loss since the search began. So messages that were lost meanwhile count as
/// lost before the beginning, and the reader gets no gap for them.
#[derive(Debug)]
pub struct Seeking<'a> {
    pub(super) patterns: &'a PatternSet,
    pub(super) what: What,
    pub(super) max_topics: usize,
    /// The newest id when the search began.
    pub(super) newest: Option<Id>,
    /// How many of the named topics were searched.
    looked: usize,
    /// Losses up to this mark were examined.
    seen: Option<Mark>,
    /// The order was searched up to here.
    searched: Option<Id>,
    pub(super) floors: HashMap<Topic, Id>,
    /// The oldest messages of the chosen topics, and some that were lost meanwhile.
    pub(super) starts: BTreeSet<Id>,
    /// How many topics were chosen for the patterns.
    pub(super) chosen: usize,
    /// The oldest message of each named topic.
    nexts: HashMap<Pattern, Id>,
    pub(super) firsts: Firsts,
    /// The point from which to read, once the last step is done.
    cursor: Id,
    /// The `forgotten` of the index by then. It is no gap, because the reader has no cursor.
    told: Id,
}

/// The messages to give.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    After(Id),
    /// Everything, after a gap that says that the cursor is unknown.
    Unknown,
    Last(usize),
}

impl<'a> Seeking<'a> {
    /// Begins a search. Returns the position as an error if it is known without one.
    pub fn new(patterns: &'a PatternSet, start: &Start, newest: Id) -> Result<Self, Position> {
        let what = match *start {
            Start::Now => return Err(Position::at(newest)),
            Start::After(cursor) if cursor <= newest => return Err(Position::at(cursor)),
            Start::After(_) | Start::Unreadable(_) => What::Unknown,
            Start::Everything => What::After(Id::ZERO),
            Start::Since(time) => What::After(time.before()),
            Start::Last(count) => What::Last(count),
        };
        Ok(Self {
            patterns,
            what,
            max_topics: MAX_LAST_TOPICS,
            newest: None,
            looked: 0,
            seen: None,
            searched: None,
            floors: HashMap::new(),
            starts: BTreeSet::new(),
            chosen: 0,
            nexts: HashMap::new(),
            firsts: Firsts::new(patterns, Id::ZERO),
            cursor: Id::MAX,
            told: Id::ZERO,
        })
    }

    /// Chooses the point from which the messages of a topic are given.
    pub(super) fn choose(&mut self, topic: Topic, first: Option<&Message>, newest: Id) {
        self.starts.extend(first.map(|message| message.id));
        self.floors.insert(topic, first.map_or(newest, |message| message.prev));
    }

    /// The beginning, once the last step is done.
    pub fn into_beginning(self) -> Beginning {
        let newest = self.newest.unwrap_or_default();
        let others = if self.chosen == self.max_topics { newest } else { Id::ZERO };
        let mut position = Position::with_floors(self.cursor.min(newest), self.floors, others);
        (position.told, position.checked) = (self.told, self.seen.unwrap_or_default());
        let numbers = (0..self.patterns.wildcards().len()).map(|number| self.firsts.of(number));
        let nexts = self.patterns.topics().iter().map(|topic| self.nexts.get(topic).copied());
        let gap = |(pattern, next): (&Pattern, Option<Id>)| {
            let (topic, reason) = (pattern.clone(), Reason::UnknownCursor);
            Gap { topic, next, reason, floor: Id::ZERO }
        };
        let gaps = self.patterns.iter().zip(nexts.chain(numbers)).map(gap);
        let is_unknown = matches!(self.what, What::Unknown);
        Beginning { position, gaps: gaps.filter(|_| is_unknown).collect() }
    }
}

impl What {
    pub(super) fn first(self, tail: &Tail) -> Option<Message> {
        let ring = tail.ring();
        match self {
            Self::After(id) => ring.after(id).cloned(),
            Self::Unknown => ring.oldest().cloned(),
            Self::Last(count) => ring.nth_newest(count).cloned(),
        }
    }
}

impl State {
    /// Continues a search, and visits up to `nodes`. True once the search is done.
    pub fn seek_on(&self, seeking: &mut Seeking<'_>, nodes: usize) -> bool {
        let (mut budget, is_first_step) = (Budget::of(nodes), seeking.newest.is_none());
        seeking.newest.get_or_insert(self.newest());
        seeking.seen.get_or_insert(self.losses.last());
        if seeking.told < self.forgotten {
            // A forgotten topic takes its mark along.
            seeking.nexts.retain(|_, next| self.order.contains(*next));
        }
        let is_done = (is_first_step && self.seek_by_topics(seeking))
            || (self.seek_topics(seeking, &mut budget)
                && self.look_at_what_was_chosen(seeking, &mut budget)
                && self.seek_patterns(seeking, &mut budget));
        seeking.told = self.forgotten;
        seeking.cursor = self.start(seeking).map_or(Id::MAX, Id::before);
        is_done
    }

    /// Chooses for the named topics.
    pub(super) fn seek_topics(&self, seeking: &mut Seeking<'_>, budget: &mut Budget) -> bool {
        let patterns = seeking.patterns;
        for pattern in &patterns.topics()[seeking.looked..] {
            if budget.is_spent() {
                return false;
            }
            let first = self.tails.get(pattern.as_str()).and_then(|tail| seeking.what.first(tail));
            let newest = self.index.get(pattern.as_str()).map_or(Id::ZERO, |known| known.newest);
            if let Some(message) = &first {
                seeking.nexts.insert(pattern.clone(), message.id);
            }
            pattern.topic().into_iter().for_each(|topic| seeking.choose(topic, first.as_ref(), newest));
            seeking.looked += 1;
            budget.spend(0);
        }
        true
    }

    /// Lets topics that have lost messages since they were chosen begin with their remaining messages. True
    /// once all losses were examined.
    fn look_at_what_was_chosen(&self, seeking: &mut Seeking<'_>, budget: &mut Budget) -> bool {
        for (mark, topic) in self.losses.after(seeking.seen.unwrap_or_default()) {
            if budget.is_spent() {
                return false;
            }
            seeking.seen = Some(mark);
            budget.spend(0);
            let Some(floor) = seeking.floors.get_mut(topic) else { continue };
            let (complete_after, oldest) = self.left_of(topic);
            if *floor < complete_after {
                *floor = complete_after;
                seeking.starts.extend(oldest);
                match (seeking.nexts.get_mut(&**topic), oldest) {
                    (Some(next), Some(oldest)) => *next = oldest,
                    _ => _ = seeking.nexts.remove(&**topic),
                }
            }
        }
        !budget.is_spent()
    }

    fn seek_patterns(&self, seeking: &mut Seeking<'_>, budget: &mut Budget) -> bool {
        if seeking.patterns.wildcards().is_empty() {
            return true;
        }
        match seeking.what {
            What::After(id) => self.seek_first(seeking, id, budget),
            What::Unknown => self.look_for_firsts(&mut seeking.firsts, seeking.patterns, |_| true, budget),
            What::Last(0) => true,
            What::Last(_) => self.seek_newest(seeking, budget),
        }
    }

    /// The oldest message to give, as far as the search has come.
    fn start(&self, seeking: &mut Seeking<'_>) -> Option<Id> {
        while let Some(first) = seeking.starts.first()
            && !self.order.contains(*first)
        {
            seeking.starts.pop_first();
        }
        seeking.starts.first().copied().into_iter().chain(seeking.firsts.oldest()).min()
    }

    /// Searches for the oldest message after `after` that some pattern matches.
    fn seek_first(&self, seeking: &mut Seeking<'_>, after: Id, budget: &mut Budget) -> bool {
        let start = self.start(seeking).unwrap_or(Id::MAX);
        let from = seeking.searched.unwrap_or(after);
        for (id, tail) in self.order.after(from) {
            // The patterns cannot make the beginning later than that of a named topic.
            if *id >= start {
                return true;
            }
            let mut nodes = 0;
            if seeking.patterns.matches_counting(tail.name().as_str(), &mut nodes) {
                seeking.starts.insert(*id);
                return true;
            }
            seeking.searched = Some(*id);
            budget.spend(nodes);
            if budget.is_spent() {
                return false;
            }
        }
        true
    }

    /// Chooses the topics with the newest messages.
    fn seek_newest(&self, seeking: &mut Seeking<'_>, budget: &mut Budget) -> bool {
        let newest = seeking.newest.unwrap_or(self.newest());
        let until = seeking.searched.unwrap_or(Id::new(newest.get() + 1));
        for (id, tail) in self.order.before(until) {
            let (name, mut nodes) = (tail.name(), 0);
            if !seeking.floors.contains_key(name.as_str())
                && seeking.patterns.matches_counting(name.as_str(), &mut nodes)
            {
                let first = seeking.what.first(tail);
                name.topic().into_iter().for_each(|topic| seeking.choose(topic, first.as_ref(), *id));
                seeking.chosen += 1;
                if seeking.chosen == seeking.max_topics {
                    return true;
                }
            }
            seeking.searched = Some(*id);
            budget.spend(nodes);
            if budget.is_spent() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{
        super::{
            reading::tests::{disturb, set},
            tests::read,
        },
        *,
    };

    /// A reader without a cursor was told a gap for a message that was trimmed after its topic had been
    /// chosen.
    #[test]
    fn a_loss_during_the_search_for_the_beginning_is_no_gap() {
        for seed in 0..1_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::new(Id::now());
            (0..random.random_range(0..40)).for_each(|_| _ = disturb(&mut state, &mut random));
            let patterns = [&["a.*"][..], &["**"], &["b.1", "a.*"], &["a.0", "a.1", "b.2"], &["a.*", "*.1"]];
            let patterns = set(patterns[random.random_range(0..5)]);
            let since = Id::new(state.newest.get() - random.random_range(0..20));
            let starts = [Start::Everything, Start::Since(since), Start::Last(2), Start::After(Id::MAX)];
            let start = &starts[random.random_range(0..4)];
            let begun = state.newest;
            let mut seeking = Seeking::new(&patterns, start, begun).expect("it is sought");
            seeking.max_topics = [2, 1_000][random.random_range(0..2)];
            while !state.seek_on(&mut seeking, random.random_range(1..30)) {
                (0..random.random_range(1..4)).for_each(|_| _ = disturb(&mut state, &mut random));
            }
            let covers_all = seeking.chosen < seeking.max_topics;
            let Beginning { position, gaps } = seeking.into_beginning();

            let page = read(&mut state, &patterns, &position, 1_000, Id::ZERO);
            let order = state.order.iter().map(|(id, tail)| (*id, tail.name().as_str()));
            let retained: Vec<_> = order.filter(|(_, name)| patterns.matches(name)).collect();
            let is_given = |(id, name): &(Id, &str)| *id > position.given(name);
            let given: Vec<_> = retained.iter().copied().filter(is_given).collect();
            assert_eq!(page.gaps, [], "seed {seed}: {start:?}");
            if !patterns.wildcards().is_empty() {
                let ids: Vec<_> = given.iter().map(|(id, _)| *id).collect();
                assert_eq!(page.messages.iter().map(|it| it.id).collect::<Vec<_>>(), ids, "seed {seed}");
            }
            let first = given.first().map_or(Id::MAX, |(id, _)| id.before());
            assert_eq!(position.cursor, first.min(begun), "seed {seed}: {start:?}");

            for (at, message @ (id, name)) in retained.iter().enumerate() {
                let newer = retained[at + 1..].iter().filter(|(_, other)| other == name).count();
                let is_due = match start {
                    Start::Last(count) => newer < *count && (covers_all || patterns.names(name)),
                    Start::Since(time) => id >= time,
                    _ => true,
                };
                assert!(!(is_due || *id > begun) || given.contains(message), "seed {seed}: {start:?} {name}");
            }
            for gap in gaps {
                let next = retained.iter().find(|(_, name)| gap.topic.matches(name)).map(|(id, _)| *id);
                // A message that came after the search began may not have been found.
                assert!(
                    gap.next == next || (gap.next.is_none() && next > Some(begun)),
                    "seed {seed}: {gap:?}"
                );
            }
        }
    }
}
