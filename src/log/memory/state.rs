//! The state of the log in memory, behind one lock.

mod budget;
mod firsts;
mod reading;
mod seeking;
mod snapshot;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use hashlink::LinkedHashMap;

pub use self::{reading::Reading, seeking::Seeking, snapshot::Snapshot};
use super::{cost, keys::Keys, losses::Losses};
use crate::{
    log::{
        Append, AppendError, Appended, Follower, LogError, LogStats, Mark, Retention, Ring, Tail, TopicStats,
        hot::Hot,
        patterns::{self, PatternTails},
        retention::{AFTER_EXPIRY, INDEX_AGE},
    },
    message::{Id, Message, Pattern, Topic, Walk},
};

/// How many entries one step removes before it releases the lock.
pub const STEP: usize = 4096;
/// How many nodes of patterns one step of a read visits. An entry counts as four, so a step reads at most 4
/// 096 entries. One entry can take 12 800 nodes for a reader of 100 patterns.
pub const NODES: usize = 16_384;

pub struct State {
    /// The newest id of any topic.
    newest: Id,
    /// The id at which this log began: it has everything from there on.
    began: Id,
    /// If the index does not hold a topic, the newest id of that topic is at most this.
    forgotten: Id,
    /// The known topics, in the order of their newest messages. A topic that lost messages has its mark here.
    index: LinkedHashMap<Topic, Known>,
    /// The topics of the index.
    names: BTreeSet<Topic>,
    /// The tail of each topic that has retained messages or followers.
    tails: HashMap<Topic, Arc<Tail>>,
    patterns: PatternTails,
    /// The tail of the topic of each retained message.
    order: BTreeMap<Id, Arc<Tail>>,
    bytes: usize,
    /// How many topics have retained messages.
    held: usize,
    /// How many bytes the names in the index have.
    name_bytes: usize,
    hot: Hot,
    keys: Keys,
    losses: Losses,
    fan_out: Option<FanOut>,
    /// True once the messages were handed to the next process: the log takes nothing more.
    closed: bool,
}

/// The newest message, on its way to the tails of the patterns that match.
#[derive(Debug)]
struct FanOut {
    message: Arc<Message>,
    /// The newest id that was in all tails before this message.
    before: Id,
    walk: Walk,
    /// The tails that hold the message. They are woken once the watermark has moved.
    tails: Vec<Arc<Tail>>,
}

/// The entry of a topic in the index.
#[derive(Clone, Copy, Debug)]
struct Known {
    newest: Id,
    /// The newest id when the topic was last deleted.
    deleted: Id,
    /// The mark of the topic's last loss.
    lost: Mark,
}

impl State {
    pub fn new(began: Id) -> Self {
        Self {
            newest: began,
            began,
            forgotten: began,
            index: LinkedHashMap::new(),
            names: BTreeSet::new(),
            tails: HashMap::new(),
            patterns: PatternTails::default(),
            order: BTreeMap::new(),
            bytes: 0,
            held: 0,
            name_bytes: 0,
            hot: Hot::default(),
            keys: Keys::default(),
            losses: Losses::new(began),
            fan_out: None,
            closed: false,
        }
    }

    /// The newest id that all tails hold. No reader is given a newer message.
    pub fn newest(&self) -> Id {
        self.fan_out.as_ref().map_or(self.newest, |fan_out| fan_out.before)
    }

    /// True while the newest message is on its way to the tails of patterns. Until it is in all of them,
    /// nothing can be appended.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_some()
    }

    /// Stores a message, which [`fan_out_on`](Self::fan_out_on) brings to the tails of the patterns.
    pub fn append(
        &mut self,
        append: Append,
        retention: &Retention,
        now: Id,
    ) -> Result<Appended, AppendError> {
        self.check_open()?;
        let Append { mut draft, idempotency_key, if_match } = append;
        if let Some(key) = &idempotency_key
            && let Some(id) = self.keys.find(&draft.topic, key, &draft.payload, retention.key_bytes())?
        {
            return Ok(Appended::Replayed(id));
        }
        if let Some(expected) = if_match {
            self.check_newest(&draft.topic, expected)?;
        }
        self.check_room_for(&draft.topic, retention)?;
        let id = self.newest.next(now);
        if let Some(key) = &idempotency_key {
            let digest = self.keys.digest(&draft.payload);
            self.keys.remember(&draft.topic, key, digest, id);
        }

        let tail = self.tail_of(&draft.topic);
        if let Some(topic) = tail.name().topic() {
            // The name is kept once, however many messages carry it.
            draft.topic = topic;
        }
        let prev = self.touch(&draft.topic, id);
        let message = Message::new(draft, id, prev);
        let before = std::mem::replace(&mut self.newest, id);
        self.hot.push(message.clone());
        self.retain(&tail, message.clone(), retention);
        self.fan_out = Some(FanOut { message, before, walk: Walk::default(), tails: vec![tail] });
        Ok(Appended::Stored(id))
    }

    /// Continues to bring the newest message to the tails of the patterns. Once they all hold it, returns the
    /// tails to wake when the watermark has moved.
    pub fn fan_out_on(&mut self) -> Option<Vec<Arc<Tail>>> {
        let Some(FanOut { message, walk, tails, .. }) = &mut self.fan_out else { return Some(Vec::new()) };
        let is_done = self.patterns.walk(&message.topic, walk, |tail| {
            bring(message, tail);
            tails.push(tail.clone());
        });
        if is_done { self.fan_out.take().map(|fan_out| fan_out.tails) } else { None }
    }

    /// Continues to collect the tails of `topic` that have followers. True once all are collected.
    pub fn followed_on(&self, topic: &Topic, walk: &mut Walk, tails: &mut Vec<Arc<Tail>>) -> bool {
        tails.extend(self.tails.get(topic).filter(|tail| tail.follower_count() > 0).cloned());
        self.patterns.walk(topic, walk, |tail| tails.push(tail.clone()))
    }

    pub fn delete(&mut self, topic: &Topic) -> Result<(), LogError> {
        self.check_open()?;
        if let Some(known) = self.index.get_mut(topic) {
            known.deleted = known.newest;
        }
        if let Some(tail) = self.tails.get(topic).cloned() {
            self.pop_while(&tail, |_| true);
            self.drop_if_idle(&tail);
        }
        Ok(())
    }

    pub fn follow(&mut self, pattern: &Pattern, follower: &Arc<Follower>) -> (Arc<Tail>, usize) {
        let newest = self.newest();
        let tail = match pattern.topic() {
            Some(topic) => self.tail_of(&topic),
            None => self.patterns.entry(pattern, || Tail::new(pattern.clone(), newest)),
        };
        if let Some(FanOut { message, tails, .. }) = &mut self.fan_out
            && pattern.has_wildcard()
            && pattern.matches(&message.topic)
        {
            // The walk may have passed this pattern already.
            bring(message, &tail);
            tails.push(tail.clone());
        }
        let key = tail.add_follower(follower.clone());
        (tail, key)
    }

    pub fn unfollow(&mut self, tail: &Arc<Tail>, follower: usize) {
        tail.remove_follower(follower);
        if !tail.name().has_wildcard() {
            self.drop_if_idle(tail);
        } else if tail.follower_count() == 0 {
            self.patterns.remove(tail.name());
        }
    }

    /// Removes what has expired by `now`, one batch at a time. True if there may be more.
    pub fn sweep(&mut self, retention: &Retention, now: Id) -> bool {
        let mut budget = STEP - self.keys.forget_old(STEP);
        budget -= self.expire(now.minus(retention.age), budget);
        let unknown = now.minus(INDEX_AGE.max(retention.age + AFTER_EXPIRY));
        while budget > 0
            && self.index.front().is_some_and(|(_, known)| known.newest < unknown)
            && let Some((topic, known)) = self.index.pop_front()
        {
            self.forgotten = self.forgotten.max(known.newest);
            self.names.remove(&topic);
            self.name_bytes -= topic.len();
            self.losses.forget(known.lost);
            budget -= 1;
        }
        self.hot.cool_at(now);
        if budget > 0 {
            self.give_back();
        }
        budget == 0
    }

    /// Up to `limit` topics, sorted by name, from the first one after `after`.
    pub fn topics(&self, after: &str, limit: usize) -> Vec<TopicStats> {
        let stats = |topic: &Topic| {
            let (known, tail) = (self.index.get(topic)?, self.tails.get(topic));
            let (messages, bytes) = tail.map_or((0, 0), |tail| tail.ring().size());
            let subscribers = tail.map_or(0, |tail| tail.follower_count());
            Some(TopicStats { topic: topic.clone(), newest: known.newest, messages, bytes, subscribers })
        };
        let names = self.names.range::<str, _>((Excluded(after), Unbounded));
        names.take(limit).filter_map(stats).collect()
    }

    pub fn stats(&self) -> LogStats {
        LogStats {
            topics: self.index.len(),
            messages: self.order.len(),
            bytes: self.bytes,
            newest: self.newest,
            began: self.began,
            state_failed: None,
        }
    }

    fn check_open(&self) -> Result<(), LogError> {
        if self.closed { Err(LogError::Unavailable) } else { Ok(()) }
    }

    fn check_newest(&self, topic: &Topic, expected: Id) -> Result<(), AppendError> {
        let known = self.index.get(topic).map(|known| known.newest);
        // If the index does not hold the topic, it may have had messages up to `forgotten`.
        let vouched = known.unwrap_or(if expected == Id::ZERO { Id::ZERO } else { self.forgotten });
        if vouched <= expected && expected <= self.newest {
            return Ok(());
        }
        Err(AppendError::PreconditionFailed { newest: known.unwrap_or_default() })
    }

    /// Checks that there is room for this topic, if it is new.
    fn check_room_for(&self, topic: &Topic, retention: &Retention) -> Result<(), AppendError> {
        let bytes = self.index.len() * (cost::TOPIC_BYTES + cost::MARK_BYTES) + self.name_bytes;
        let is_full = self.index.len() >= retention.topics || bytes > retention.topic_bytes();
        if is_full && !self.index.contains_key(topic) { Err(AppendError::TooManyTopics) } else { Ok(()) }
    }

    /// The tail of a topic, which is made if there is none.
    fn tail_of(&mut self, topic: &Topic) -> Arc<Tail> {
        if let Some(tail) = self.tails.get(topic) {
            return tail.clone();
        }
        let newest = self.index.get(topic).map_or(self.forgotten, |known| known.newest);
        // The index and the tails share one copy of the name.
        let topic = self.names.get(topic).unwrap_or(topic);
        let tail = Arc::new(Tail::new(topic.into(), newest));
        self.tails.insert(topic.clone(), tail.clone());
        tail
    }

    /// Sets the newest id of a topic, and returns the one before it.
    fn touch(&mut self, topic: &Topic, id: Id) -> Id {
        if let Some(known) = self.index.to_back(topic) {
            return std::mem::replace(&mut known.newest, id);
        }
        self.know(topic.clone(), Known { newest: id, deleted: Id::ZERO, lost: Mark::default() });
        self.forgotten
    }

    fn know(&mut self, topic: Topic, known: Known) {
        self.name_bytes += topic.len();
        self.names.insert(topic.clone());
        self.index.insert(topic, known);
    }

    fn retain(&mut self, tail: &Arc<Tail>, message: Arc<Message>, retention: &Retention) {
        self.bytes += crate::log::cost(&message);
        self.order.insert(message.id, tail.clone());
        self.held += usize::from(tail.ring().len() == 0);
        tail.push(message);
        self.pop_while(tail, |ring| {
            ring.len() > retention.messages || (ring.bytes() > retention.bytes && ring.len() > 1)
        });
        while self.footprint() > retention.total_bytes && self.order.len() > 1 {
            if self.holds_more_than_its_share(tail, retention) {
                self.pop_one(tail);
            } else {
                self.evict_oldest();
            }
        }
    }

    /// How much memory the log takes, without its followers.
    pub fn footprint(&self) -> usize {
        self.bytes
            + self.order.len() * cost::MESSAGE_BYTES
            + self.held * cost::TAIL_BYTES
            + self.index.len() * cost::TOPIC_BYTES
            + self.name_bytes
            + self.losses.len() * cost::MARK_BYTES
            + self.keys.footprint()
    }

    /// True if a topic holds more than an even share, and can remove an older message to make room for its
    /// newest.
    fn holds_more_than_its_share(&self, tail: &Tail, retention: &Retention) -> bool {
        let (messages, bytes) = tail.ring().size();
        let share = retention.total_bytes / self.held.max(1);
        messages > 1 && bytes + messages * cost::MESSAGE_BYTES > share
    }

    /// Removes up to `limit` expired messages, and returns how many it removed.
    pub fn expire(&mut self, expired: Id, limit: usize) -> usize {
        let is_expired = |state: &Self| state.order.first_key_value().is_some_and(|(id, _)| *id < expired);
        let mut count = 0;
        while count < limit && is_expired(self) {
            self.evict_oldest();
            count += 1;
        }
        count
    }

    fn evict_oldest(&mut self) {
        let Some(tail) = self.order.first_key_value().map(|(_, tail)| tail.clone()) else { return };
        self.pop_one(&tail);
        self.drop_if_idle(&tail);
    }

    fn pop_one(&mut self, tail: &Tail) {
        let mut is_first = true;
        self.pop_while(tail, |_| std::mem::take(&mut is_first));
    }

    /// Removes the oldest messages of a topic while `is_due` is true, and marks the topic.
    fn pop_while(&mut self, tail: &Tail, mut is_due: impl FnMut(&Ring) -> bool) {
        let mut lost = None;
        loop {
            let mut ring = tail.ring();
            if !is_due(&ring) {
                break;
            }
            let Some(message) = ring.pop() else { break };
            self.held -= usize::from(ring.len() == 0);
            drop(ring);
            // The tails of patterns may still hold the message.
            message.trim();
            self.order.remove(&message.id);
            self.bytes -= crate::log::cost(&message);
            lost = Some(message);
        }
        if let Some(message) = lost
            && let Some(known) = self.index.get_mut(&message.topic)
        {
            known.lost = self.losses.note(&message.topic, known.lost, self.newest);
        }
    }

    fn drop_if_idle(&mut self, tail: &Arc<Tail>) {
        let Some(topic) = tail.name().topic() else { return };
        if tail.is_idle() && self.tails.get(&topic).is_some_and(|known| Arc::ptr_eq(known, tail)) {
            self.tails.remove(&topic);
        }
    }

    /// Returns the memory of a burst that has passed.
    fn give_back(&mut self) {
        if self.tails.capacity() > 4096 && self.tails.len() < self.tails.capacity() / 8 {
            self.tails.shrink_to(self.tails.len() * 2);
        }
    }
}

/// Pushes the newest message to the tail of a pattern, unless it is already there.
fn bring(message: &Arc<Message>, tail: &Tail) {
    if tail.newest() < message.id {
        patterns::push(tail, message.clone());
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        log::{Beginning, Page, Position, Reason, Start},
        message::{Draft, PatternSet, Payload, steps},
    };

    const RETENTION: Retention = Retention {
        messages: 2,
        age: Duration::from_secs(60),
        bytes: 1 << 20,
        total_bytes: 1 << 20,
        topics: 1_000_000,
    };

    fn publish(state: &mut State, name: &str) -> Id {
        let topic = name.parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        store(state, append, &RETENTION).expect("stored").id()
    }

    /// Appends as a log does, which releases the lock between the steps.
    pub fn store(state: &mut State, append: Append, retention: &Retention) -> Result<Appended, AppendError> {
        let appended = state.append(append, retention, Id::now());
        while state.fan_out_on().is_none() {}
        appended
    }

    fn patterns(names: &[&str]) -> PatternSet {
        names.iter().map(|name| name.parse().expect("a pattern")).collect()
    }

    fn later(days: u64) -> Id {
        Id::now().plus(Duration::from_secs(days * 24 * 3600))
    }

    /// Begins as a log does.
    pub fn begin(state: &mut State, patterns: &PatternSet, start: &Start, expired: Id) -> Beginning {
        while state.expire(expired, STEP) == STEP {}
        match Seeking::new(patterns, start, state.newest) {
            Ok(mut seeking) => {
                while !state.seek_on(&mut seeking, NODES) {}
                seeking.into_beginning()
            }
            Err(position) => Beginning { position, gaps: Vec::new() },
        }
    }

    /// Reads as a log does.
    pub fn read(
        state: &mut State,
        patterns: &PatternSet,
        position: &Position,
        limit: usize,
        expired: Id,
    ) -> Page {
        while state.expire(expired, STEP) == STEP {}
        let mut reading = Reading::new(patterns, position, limit);
        while !state.read_on(&mut reading, NODES) {}
        reading.into_page()
    }

    fn gaps(state: &mut State, name: &str, cursor: Id) -> Vec<(String, Reason)> {
        let patterns = patterns(&[name]);
        let page = read(state, &patterns, &Position::at(cursor), 10, Id::ZERO);
        page.gaps.into_iter().map(|gap| (gap.topic.to_string(), gap.reason)).collect()
    }

    #[test]
    fn an_expired_topic_leaves_its_mark_until_the_index_forgets_it_and_then_in_forgotten() {
        let mut state = State::new(Id::now());
        let began = state.began;
        let id = publish(&mut state, "a");
        while state.sweep(&RETENTION, later(1)) {}
        assert_eq!((state.order.len(), state.bytes, state.tails.len(), state.index.len()), (0, 0, 0, 1));
        assert_eq!(gaps(&mut state, "a", id.before()), [("a".to_owned(), Reason::Retention)]);
        assert_eq!(gaps(&mut state, "a", id), []);
        assert_eq!(gaps(&mut state, "never", id.before()), []);

        while state.sweep(&RETENTION, later(8)) {}
        assert_eq!((state.index.len(), state.forgotten), (0, id));
        // A forgotten message may have been in any topic.
        for name in ["a", "never", "*"] {
            assert_eq!(gaps(&mut state, name, id.before()), [(name.to_owned(), Reason::Retention)]);
            assert_eq!(gaps(&mut state, name, id), []);
        }
        let next = publish(&mut state, "a");
        assert_eq!(gaps(&mut state, "a", id), []);
        assert_eq!(gaps(&mut state, "a", began).len(), 1);
        assert!(next > id);
    }

    #[test]
    fn a_topic_is_remembered_for_a_day_after_its_last_message_has_expired() {
        let retention = Retention { age: Duration::from_secs(10 * 24 * 3600), ..RETENTION };
        let mut state = State::new(Id::now());
        publish(&mut state, "a");
        for (days, known) in [(9, 1), (10, 1), (11, 0)] {
            // A little later than this many days.
            let now = Id::new(later(days).get() + 60_000_000);
            while state.sweep(&retention, now) {}
            assert_eq!(
                (state.stats().messages, state.index.len()),
                (usize::from(days < 10), known),
                "{days} days"
            );
        }
    }

    #[test]
    fn a_loss_between_two_pages_is_told_in_the_second() {
        let lose: [fn(&mut State); 3] = [
            |state| _ = [publish(state, "b"), publish(state, "b")],
            |state| state.delete(&"b".parse().expect("a topic")).expect("open"),
            |state| while state.sweep(&RETENTION, later(1)) {},
        ];
        for lose in lose {
            let mut state = State::new(Id::now());
            let mut position = Position::at(state.newest);
            let first = publish(&mut state, "a");
            publish(&mut state, "b");
            let patterns = patterns(&["*"]);
            let page = read(&mut state, &patterns, &position, 1, Id::ZERO);
            assert_eq!((page.gaps.len(), page.messages.len(), page.end), (0, 1, first));
            position.advance(page.end);
            position.checked = page.checked;
            assert_eq!(read(&mut state, &patterns, &position, 1, Id::ZERO).gaps, []);
            lose(&mut state);
            let gaps = read(&mut state, &patterns, &position, 1, Id::ZERO).gaps;
            assert_eq!(gaps.iter().map(|gap| gap.topic.as_str()).collect::<Vec<_>>(), ["b"]);
        }
    }

    #[test]
    fn an_expiry_between_two_pages_is_told_in_the_second() {
        let mut state = State::new(Id::now());
        let mut position = Position::at(state.newest);
        let first = publish(&mut state, "a");
        let second = publish(&mut state, "b");
        let patterns = patterns(&["*"]);
        let page = read(&mut state, &patterns, &position, 1, Id::ZERO);
        position.advance(page.end);
        position.checked = page.checked;
        assert_eq!(position.cursor, first);
        let page = read(&mut state, &patterns, &position, 1, Id::new(second.get() + 1));
        assert_eq!((page.gaps.len(), page.messages.len()), (1, 0));
    }

    #[test]
    fn messages_that_expire_during_a_read_leave_nothing_behind() {
        let mut state = State::new(Id::now());
        let cursor = state.newest;
        let patterns = patterns(&["*"]);
        let reads: [fn(&mut State, &PatternSet, Id); 2] = [
            |state, patterns, _| {
                _ = begin(state, patterns, &Start::Everything, state.newest.plus(RETENTION.age))
            },
            |state, patterns, at| {
                _ = read(state, patterns, &Position::at(at), 10, state.newest.plus(RETENTION.age))
            },
        ];
        for look in reads {
            publish(&mut state, "a");
            look(&mut state, &patterns, cursor);
            while state.sweep(&RETENTION, later(1)) {}
            assert_eq!((state.order.len(), state.tails.len()), (0, 0));
        }
    }

    /// A user who made many topics had the messages of all others evicted, for as long as the index
    /// remembered the topics.
    #[test]
    fn topics_leave_half_of_the_room_to_messages() {
        let retention = Retention { total_bytes: 100_000, ..RETENTION };
        let mut state = State::new(Id::now());
        let store = |state: &mut State, number: usize| {
            let topic = format!("topic.{number}").parse().expect("a topic");
            let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
            let append = Append { draft, idempotency_key: None, if_match: None };
            super::tests::store(state, append, &retention).map(|_| ())
        };
        let stored = (0..1_000).filter(|number| store(&mut state, *number).is_ok()).count();
        assert!((150..180).contains(&stored), "{stored} topics in half of the room");
        assert_eq!(store(&mut state, stored), Err(AppendError::TooManyTopics));
        assert_eq!(store(&mut state, 0), Ok(()), "a topic that is known");
        assert!(state.order.len() > 50, "{} messages in the other half", state.order.len());
        assert!(state.footprint() <= retention.total_bytes);
        let held = state.tails.values().filter(|tail| tail.ring().len() > 0).count();
        let named: usize = state.index.iter().map(|(topic, _)| topic.len()).sum();
        assert_eq!((state.held, state.name_bytes), (held, named));
    }

    #[test]
    fn trimming_leaves_no_entry_behind() {
        let mut state = State::new(Id::now());
        for _ in 0..10_000 {
            publish(&mut state, "busy");
        }
        assert_eq!((state.order.len(), state.losses.len(), state.names.len()), (2, 1, 1));
        let patterns = patterns(&["*"]);
        let beginning = begin(&mut state, &patterns, &Start::Everything, Id::ZERO);
        let page = read(&mut state, &patterns, &beginning.position, 10, Id::ZERO);
        assert_eq!((page.messages.len(), page.gaps.len()), (2, 0));
    }

    /// Patterns that match `a.a.a.…`, with this many segments: all but the one without a wildcard.
    fn overlapping(segments: u32) -> Vec<Pattern> {
        let name = |number: u32| {
            let segments = (0..segments).map(|at| if number >> at & 1 == 0 { "*" } else { "a" });
            segments.collect::<Vec<_>>().join(".")
        };
        let names = (0..(1 << segments) - 1).map(name);
        names.map(|name| name.parse().expect("a pattern")).collect()
    }

    /// A publish that very many patterns matched held the lock until all their tails held the message.
    #[test]
    fn a_message_is_brought_to_many_tails_in_steps_and_seen_when_all_hold_it() {
        let mut state = State::new(Id::now());
        let follower = Arc::new(Follower::default());
        let mut tails: Vec<_> =
            overlapping(12).iter().map(|pattern| state.follow(pattern, &follower)).collect();
        let (name, topic) = (["a"; 12].join("."), ["a"; 12].join(".").parse().expect("a topic"));
        let other = publish(&mut state, "other");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        let id = state.append(append, &RETENTION, Id::now()).expect("stored").id();
        let late = [&name.replace("a.a", "a.*"), "**", "a.**"];
        let (mut steps, mut woken) = (0, None);
        while woken.is_none() {
            assert_eq!(state.newest(), other);
            let everything = patterns(&["**"]);
            let page = read(&mut state, &everything, &Position::at(other), 10, Id::ZERO);
            assert_eq!((page.messages.len(), page.end), (0, other));
            let beginning = begin(&mut state, &everything, &Start::Last(1), Id::ZERO);
            assert!(beginning.position.cursor < other);
            if let Some(pattern) = late.get(steps) {
                tails.push(state.follow(&pattern.parse().expect("a pattern"), &follower));
                let (tail, key) = tails.swap_remove(7 * steps);
                state.unfollow(&tail, key);
            }
            let cost = steps::of(|| woken = state.fan_out_on());
            assert!(cost <= patterns::NODES, "{cost} nodes in one step");
            steps += 1;
        }
        assert_eq!((state.newest(), steps), (id, 4));
        let next = publish(&mut state, &name);
        let woken = woken.expect("tails");
        for (tail, _) in &tails {
            let after = |id| tail.ring().after(id).map(|message| message.id);
            assert_eq!((after(other), after(id)), (Some(id), Some(next)), "{:?}", tail.name());
            assert_eq!(tail.ring().len(), 2);
            assert!(tail.ring().complete_from() <= other);
            assert!(woken.iter().any(|it| Arc::ptr_eq(it, tail)), "{:?}", tail.name());
        }
    }
}
