//! Decides if a reader has missed messages of a topic, and why, for both logs.
//!
//! Everything here is a value. This module does not know where messages are stored.

use super::{Gap, Reason};
use crate::message::{Id, Pattern};

/// How many topics of one pattern get gaps of their own. If one more has a gap, the pattern gets a single
/// gap.
pub const MAX_GAPS: usize = 1000;
/// The same for all patterns of one reader, which share it evenly.
const MAX_GAPS_OF_ALL: usize = 20 * MAX_GAPS;

/// The limit of each pattern, for a reader of so many patterns.
pub fn max_gaps(patterns: usize) -> usize {
    MAX_GAPS.min(MAX_GAPS_OF_ALL / patterns.max(1))
}

/// The beginning of a generation of the store. The generation before it may have lost its newest messages.
#[derive(Clone, Copy, Debug)]
pub struct Boundary {
    pub began: Id,
    /// The messages that the generation before it has left end here.
    pub inherited: Id,
    pub reason: Reason,
}

/// The place of a reader among the boundaries of the store.
#[derive(Debug)]
pub struct Standing<'a> {
    boundaries: &'a [Boundary],
    newest: Id,
    /// The boundary that is told now. The reader has been given every message from before it.
    told: Option<&'a Boundary>,
    /// The reader reads up to here. It first reads the messages of the earlier generation, and the gap comes
    /// after them.
    pub upto: Id,
}

/// The facts about a topic that may have lost messages.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Everything of the topic after this is retained.
    pub complete_after: Id,
    /// The oldest message that the reader has not been given.
    pub next: Option<Id>,
    /// The newest id that the topic had when it was last deleted.
    pub deleted: Id,
}

impl<'a> Standing<'a> {
    /// The standing of a reader at `cursor`. Gaps up to `told` are not told to it again. The boundaries come
    /// oldest first.
    pub fn at(boundaries: &'a [Boundary], newest: Id, told: Id, cursor: Id) -> Self {
        let ahead = || boundaries.iter().filter(|boundary| boundary.began > told.max(cursor));
        let is_read = |boundary: &&Boundary| cursor >= boundary.inherited;
        let upto = ahead().find(|boundary| !is_read(boundary)).map_or(Id::MAX, |boundary| boundary.inherited);
        Self { boundaries, newest, told: ahead().next().filter(is_read), upto }
    }

    pub fn is_at_boundary(&self) -> bool {
        self.told.is_some()
    }

    /// The id up to which boundaries count as told once this one is. `next` is the oldest message of all
    /// topics that are read: all boundaries before it are one gap.
    pub fn told_upto(&self, next: Id) -> Id {
        let Some(told) = self.told else { return Id::ZERO };
        let folded = self.boundaries.iter().map(|boundary| boundary.began).take_while(|began| *began < next);
        folded.last().unwrap_or_default().max(told.began)
    }

    /// The gap of `topic` for a reader, or `None`. Losses up to `told_upto` are not told to it.
    pub fn gap(&self, topic: &Pattern, told_upto: Id, loss: Loss) -> Option<Gap> {
        let reason = self.lost(told_upto, loss)?;
        Some(Gap { topic: topic.clone(), next: loss.next, reason, floor: self.floor(told_upto, loss) })
    }

    /// Why messages after `told_upto` are gone, if any are or may be.
    fn lost(&self, told_upto: Id, loss: Loss) -> Option<Reason> {
        let is_lost = told_upto < loss.complete_after || self.boundary_after(told_upto).is_some();
        is_lost.then(|| self.reason(told_upto, loss.deleted))
    }

    /// Why messages after `told_upto` are gone.
    pub fn reason(&self, told_upto: Id, deleted: Id) -> Reason {
        match self.boundary_after(told_upto) {
            Some(boundary) => boundary.reason,
            None if told_upto < deleted => Reason::Deleted,
            None => Reason::Retention,
        }
    }

    fn boundary_after(&self, told_upto: Id) -> Option<&'a Boundary> {
        self.told.filter(|boundary| boundary.began > told_upto)
    }

    fn floor(&self, told_upto: Id, loss: Loss) -> Id {
        let Loss { complete_after, next, .. } = loss;
        let told = self.boundary_after(told_upto).map(|boundary| boundary.began);
        if told.is_none() || self.boundaries.last().map(|boundary| boundary.began) == told {
            return complete_after;
        }
        // The topic has no message before `next`, so no boundary before it is told for the topic again.
        next.map_or(self.newest, Id::before).max(complete_after)
    }
}

/// Why messages of a topic between `after` and `before` are gone, if any are or may be. The topic retains no message
/// there.
pub fn between(boundaries: &[Boundary], after: Id, before: Id, loss: Loss) -> Option<Reason> {
    let lost = |cursor: Id| {
        // No id lies between the two.
        if cursor >= before.before() {
            return None;
        }
        Standing::at(boundaries, Id::MAX, after, cursor).lost(cursor, loss)
    };
    // A reader at `after` is given nothing, and goes on to the next boundary.
    lost(after).or_else(|| lost(Standing::at(boundaries, Id::MAX, after, after).upto))
}

/// Why messages of a topic below `before` are gone, if any are or may be. The topic retains no message there.
///
/// The life of a store begins at its first boundary, which is the id before the first message of every topic. If the
/// store has forgotten that boundary, a topic's history ends before the first one that it remembers.
pub fn before_all(boundaries: &[Boundary], before: Id, loss: Loss) -> Option<Reason> {
    let began = boundaries.first().map_or(Id::ZERO, |boundary| boundary.began);
    if before <= began {
        return boundaries.first().map(|_| Reason::Restarted);
    }
    let is_of_this_life = began <= loss.complete_after;
    between(boundaries, if is_of_this_life { began } else { Id::ZERO }, before, loss)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::log::Position;

    #[test]
    fn many_patterns_share_the_gaps_that_a_request_is_told() {
        for patterns in 0..=100 {
            assert!(patterns * max_gaps(patterns) <= MAX_GAPS_OF_ALL, "{patterns} patterns");
        }
        assert_eq!([1, 20, 100].map(max_gaps), [MAX_GAPS, MAX_GAPS, 200]);
    }

    #[test]
    fn an_id_of_an_earlier_life_is_lost_by_a_restart() {
        let boundary = Boundary { began: Id::new(100), inherited: Id::ZERO, reason: Reason::Failover };
        let loss = Loss { complete_after: Id::new(100), next: None, deleted: Id::ZERO };
        let of = |before| before_all(&[boundary], Id::new(before), loss);
        assert_eq!([of(99), of(100), of(101)], [Some(Reason::Restarted), Some(Reason::Restarted), None]);
    }

    const TOPICS: [&str; 3] = ["a", "b", "c"];

    /// A store of a few topics, and all that was ever published to them.
    #[derive(Default)]
    struct Store {
        newest: u64,
        boundaries: Vec<Boundary>,
        published: Vec<Published>,
        /// The id at which each topic was last deleted.
        deleted: [u64; 3],
    }

    #[derive(Clone, Copy, Debug)]
    struct Published {
        topic: usize,
        id: u64,
        is_retained: bool,
    }

    impl Store {
        fn happen(&mut self, random: &mut StdRng) {
            let topic = random.random_range(0..TOPICS.len());
            match random.random_range(0..12) {
                0..8 => {
                    self.newest += random.random_range(1..3);
                    self.published.push(Published { topic, id: self.newest, is_retained: true });
                }
                8 => {
                    // The oldest messages of a topic are trimmed, perhaps all of them.
                    let retained: Vec<_> =
                        self.of(topic).filter(|it| it.is_retained).map(|it| it.id).collect();
                    let upto = retained.get(random.random_range(0..=retained.len())).or(retained.last());
                    let upto = upto.copied().unwrap_or_default();
                    self.lose(|it| it.topic == topic && it.id <= upto);
                }
                9 => {
                    self.deleted[topic] = self.of(topic).map(|it| it.id).max().unwrap_or_default();
                    self.lose(|it| it.topic == topic);
                }
                10 => self.restart(random),
                _ => {}
            }
        }

        fn lose(&mut self, is_lost: impl Fn(&Published) -> bool) {
            self.published
                .iter_mut()
                .filter(|it| it.is_retained)
                .for_each(|it| it.is_retained = !is_lost(it));
        }

        /// The newest messages are lost. Only the boundary shows it.
        fn restart(&mut self, random: &mut StdRng) {
            let inherited = self.newest - random.random_range(0..4).min(self.newest);
            self.published.retain(|it| it.id <= inherited);
            self.deleted.iter_mut().for_each(|deleted| *deleted = inherited.min(*deleted));
            self.newest += 10;
            let reason = [Reason::Restarted, Reason::Failover][random.random_range(0..2)];
            let [began, inherited] = [self.newest, inherited].map(Id::new);
            self.boundaries.push(Boundary { began, inherited, reason });
        }

        fn of(&self, topic: usize) -> impl Iterator<Item = &Published> {
            self.published.iter().filter(move |it| it.topic == topic)
        }

        /// The loss that a store reports of a topic to a reader that was given it up to `given`.
        fn loss(&self, topic: usize, given: Id) -> Loss {
            let next = self.of(topic).find(|it| it.is_retained && it.id > given.get()).map(|it| it.id);
            let lost = self.of(topic).filter(|it| !it.is_retained && next.is_none_or(|next| it.id < next));
            let complete_after = Id::new(lost.map(|it| it.id).max().unwrap_or_default());
            Loss { complete_after, next: next.map(Id::new), deleted: Id::new(self.deleted[topic]) }
        }
    }

    /// One item that a reader was given.
    #[derive(Debug)]
    enum Given {
        Message(u64),
        /// The topic, the id from which messages of it are gone, and the gap.
        Gap(usize, u64, Gap),
        /// The gap of a pattern that matches all topics.
        Boundary,
    }

    /// Reads everything after the position, as a subscription does, in pages of a few messages.
    fn read_all(store: &Store, position: &mut Position, random: &mut StdRng) -> Vec<Given> {
        let mut given = Vec::new();
        while position.cursor.get() < store.newest {
            let standing =
                Standing::at(&store.boundaries, Id::new(store.newest), position.told, position.cursor);
            let losses = [0, 1, 2].map(|topic| store.loss(topic, position.given(TOPICS[topic])));
            let next = losses.iter().filter_map(|loss| loss.next).min().unwrap_or(Id::MAX);
            let gaps = losses.into_iter().zip(TOPICS).enumerate().filter_map(|(topic, (loss, name))| {
                let told_upto = position.told_upto(name);
                let gap = standing.gap(&name.parse().expect("a topic"), told_upto, loss)?;
                Some((topic, told_upto, gap))
            });
            let gaps: Vec<_> = gaps.collect();
            let told = standing.told_upto(next).max(position.told);
            for (topic, told_upto, gap) in gaps {
                position.raise_floor(TOPICS[topic].parse().expect("a topic"), gap.floor);
                given.push(Given::Gap(topic, told_upto.get(), gap));
            }
            position.told = told;
            given.extend(standing.is_at_boundary().then_some(Given::Boundary));
            let is_due = |it: &&Published| it.is_retained && it.id > position.given(TOPICS[it.topic]).get();
            let limit = random.random_range(1..4);
            let due: Vec<_> = store.published.iter().filter(is_due).map(|it| it.id).take(limit).collect();
            let end = if due.len() == limit { due[limit - 1] } else { store.newest }.min(standing.upto.get());
            given.extend(due.into_iter().filter(|id| *id <= end).map(Given::Message));
            assert!(end > position.cursor.get() || told.get() > 0, "it goes on");
            position.advance(Id::new(end));
        }
        given
    }

    /// Checks what guarantees.md promises to a reader that resumes with a cursor.
    #[test]
    fn every_message_is_given_or_told_and_every_gap_has_a_cause() {
        for seed in 0..5_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut store = Store { newest: 100, ..Store::default() };
            (0..random.random_range(0..40)).for_each(|_| store.happen(&mut random));
            let cursor = random.random_range(100..=store.newest);
            let given = read_all(&store, &mut Position::at(Id::new(cursor)), &mut random);
            check(&store, cursor, &given, seed);
        }
    }

    fn check(store: &Store, cursor: u64, given: &[Given], seed: u64) {
        let ids: Vec<_> = given
            .iter()
            .filter_map(|it| match it {
                Given::Message(id) => Some(*id),
                Given::Gap(..) | Given::Boundary => None,
            })
            .collect();
        let retained = store.published.iter().filter(|it| it.is_retained && it.id > cursor).map(|it| it.id);
        assert_eq!(ids, retained.collect::<Vec<_>>(), "seed {seed}: in order, once, and nothing left out");

        let boundaries = || store.boundaries.iter().filter(|it| it.began.get() > cursor);
        for (at, item) in given.iter().enumerate() {
            let Given::Gap(topic, told_upto, gap) = item else { continue };
            let has_lost =
                |it: &&Published| !it.is_retained && it.id > *told_upto && it.id <= gap.floor.get();
            let lost = store.of(*topic).any(|it| has_lost(&it));
            let passed = boundaries().find(|it| it.began.get() > *told_upto);
            assert!(lost || passed.is_some(), "seed {seed}: without cause: {gap:?}");
            match passed.filter(|_| is_of_boundary(gap)) {
                Some(boundary) => {
                    assert_eq!(gap.reason, boundary.reason, "seed {seed}");
                    let left = ids.iter().filter(|id| **id <= boundary.inherited.get());
                    let before = given[..at].iter().filter(|it| matches!(it, Given::Message(_)));
                    assert_eq!(left.count(), before.count(), "seed {seed}: at its own place: {gap:?}");
                }
                None => {
                    assert!(lost, "seed {seed}: without cause: {gap:?}");
                    let is_deleted = *told_upto < store.deleted[*topic];
                    let reason = if is_deleted { Reason::Deleted } else { Reason::Retention };
                    assert_eq!(gap.reason, reason, "seed {seed}: {gap:?}");
                }
            }
        }
        for topic in 0..TOPICS.len() {
            is_told(store, topic, cursor, given, seed);
            is_told_once(store, Some(topic), given, seed);
        }
        is_told_once(store, None, given, seed);
    }

    /// Several boundaries are one gap if nothing between them is retained of the topic, or of the topics that
    /// the pattern matches.
    fn is_told_once(store: &Store, topic: Option<usize>, given: &[Given], seed: u64) {
        let mut is_fresh = true;
        for item in given {
            let is_boundary = match item {
                Given::Message(id) => {
                    is_fresh |= store
                        .published
                        .iter()
                        .any(|it| it.id == *id && topic.is_none_or(|of| of == it.topic));
                    continue;
                }
                Given::Boundary => topic.is_none(),
                Given::Gap(of, _, gap) => topic == Some(*of) && is_of_boundary(gap),
            };
            assert!(!is_boundary || is_fresh, "seed {seed}: {topic:?} is told twice: {given:?}");
            is_fresh &= !is_boundary;
        }
    }

    fn is_of_boundary(gap: &Gap) -> bool {
        [Reason::Restarted, Reason::Failover].contains(&gap.reason)
    }

    /// Each loss of a topic, and each boundary, lies in a gap that comes before any newer message.
    fn is_told(store: &Store, topic: usize, cursor: u64, given: &[Given], seed: u64) {
        let lost = store.of(topic).filter(|it| !it.is_retained).map(|it| it.id);
        let began = store.boundaries.iter().map(|it| it.began.get());
        for id in lost.chain(began).filter(|id| *id > cursor) {
            let newer = given.iter().position(|it| matches!(it, Given::Message(newer) if *newer > id));
            let is_gap =
                |it: &Given| matches!(it, Given::Gap(of, told_upto, _) if *of == topic && *told_upto < id);
            let told = given[..newer.unwrap_or(given.len())].iter().any(is_gap);
            assert!(told, "seed {seed}: {} {id} after {cursor} is not told: {given:?}", TOPICS[topic]);
        }
    }
}
