//! The state of the log in memory, behind one lock.

mod budget;
mod due;
mod fan_out;
mod firsts;
mod history;
mod members;
mod narrow;
mod reading;
mod seeking;
mod snapshot;
mod subjects;
mod trimming;

use std::{
    collections::BTreeSet,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use hashlink::LinkedHashMap;

use self::{
    due::{Due, Review},
    fan_out::FanOut,
    members::AllMembers,
    subjects::Kept,
};
pub use self::{members::Step as MemberStep, reading::Reading, seeking::Seeking, snapshot::Snapshot};
use super::{cost, keys::Keys, losses::Losses, makers::Makers, order::Order, tails::Tails};
use crate::{
    log::{
        Append, AppendError, Appended, LogError, LogStats, Mark, Payer, Refusal, Retention, Tail, TopicStats,
        hot::Hot, open_to, patterns::PatternTails,
    },
    message::{Draft, Id, Message, Topic, Walk},
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
    tails: Tails,
    patterns: PatternTails,
    /// The tail of the topic of each retained message.
    order: Order,
    bytes: usize,
    /// How many topics have retained messages.
    held: usize,
    /// How many bytes the names in the index have.
    name_bytes: usize,
    makers: Makers,
    hot: Hot,
    keys: Keys,
    losses: Losses,
    fan_out: Option<FanOut>,
    /// When topics expire, if there are rules for some of them.
    due: Option<Due>,
    /// The lists of subjects, and the refusals of their tokens.
    subjects: Kept,
    /// How far changed rules were applied.
    review: Option<Review>,
    pub all_members: AllMembers,
    /// True once the messages were handed to the next process: the log takes nothing more.
    pub(super) closed: bool,
}

/// The entry of a topic in the index.
#[derive(Clone, Copy, Debug)]
struct Known {
    newest: Id,
    /// The newest id when the topic was last deleted.
    deleted: Id,
    /// The mark of the topic's last loss.
    lost: Mark,
    /// The client that published the first message of the topic, if it shares with others.
    maker: Option<Payer>,
}

impl State {
    pub fn new(began: Id) -> Self {
        Self {
            newest: began,
            began,
            forgotten: began,
            index: LinkedHashMap::new(),
            names: BTreeSet::new(),
            tails: Tails::default(),
            patterns: PatternTails::default(),
            order: Order::default(),
            bytes: 0,
            held: 0,
            name_bytes: 0,
            makers: Makers::default(),
            hot: Hot::default(),
            keys: Keys::default(),
            losses: Losses::new(began),
            fan_out: None,
            due: None,
            subjects: Kept::default(),
            review: None,
            all_members: AllMembers::default(),
            closed: false,
        }
    }

    /// Stores a message, which [`fan_out_on`](Self::fan_out_on) brings to the tails of the patterns.
    pub fn append(
        &mut self,
        append: Append,
        payer: Option<Payer>,
        retention: &Retention,
        now: Id,
    ) -> Result<Appended, AppendError> {
        self.check_open()?;
        let Append { draft, idempotency_key, if_match } = append;
        if let Some(key) = &idempotency_key
            && let Some(id) =
                self.keys.find(&draft.topic, payer, key, &draft.payload, retention.key_bytes())?
        {
            return Ok(Appended::Replayed(id));
        }
        if let Some(expected) = if_match {
            self.check_newest(&draft.topic, expected)?;
        }
        self.check_room_for(&draft.topic, payer, retention)?;
        let id = self.newest.next(now);
        if let Some(key) = &idempotency_key {
            let digest = self.keys.digest(&draft.payload);
            self.keys.remember(&draft.topic, payer, key, digest, id);
        }
        self.store(draft, payer, id, retention);
        Ok(Appended::Stored(id))
    }

    /// Stores a message under a new id, and begins to bring it to the tails.
    fn store(&mut self, mut draft: Draft, payer: Option<Payer>, id: Id, retention: &Retention) {
        let tail = self.tail_of(&draft.topic);
        if let Some(topic) = tail.name().topic() {
            // The name is kept once, however many messages carry it.
            draft.topic = topic;
        }
        let prev = self.touch(&draft.topic, payer, id);
        let message = Message::new(draft, id, prev);
        let before = std::mem::replace(&mut self.newest, id);
        self.hot.push(message.clone());
        self.retain(&tail, message.clone(), retention);
        self.fan_out = Some(FanOut { message, before, walk: Walk::default(), tails: vec![tail] });
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

    /// Up to `limit` topics, sorted by name, from the first one after `after`.
    pub fn topics(&self, after: &str, limit: usize) -> Vec<TopicStats> {
        let stats = |topic: &Topic| {
            let (known, tail) = (self.index.get(topic)?, self.tails.get(topic));
            let (messages, bytes) = tail.map_or((0, 0), |tail| tail.ring().size());
            let subscribers = tail.map_or(0, |tail| tail.reader_count());
            Some(TopicStats { topic: topic.clone(), newest: known.newest, messages, bytes, subscribers })
        };
        let names = self.names.range::<str, _>((Excluded(after), Unbounded));
        names.take(limit).filter_map(stats).collect()
    }

    pub fn followers(&self, topic: &Topic) -> usize {
        self.tails.get(topic).map_or(0, |tail| tail.follower_count())
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

    /// The refusals of tokens.
    pub fn refusals(&self) -> impl Iterator<Item = (&Arc<str>, &Refusal)> {
        self.subjects.refusals.iter()
    }

    fn check_open(&self) -> Result<(), LogError> {
        if self.closed { Err(LogError::Unavailable) } else { Ok(()) }
    }

    fn check_newest(&self, topic: &Topic, expected: Id) -> Result<(), AppendError> {
        let known = self.index.get(topic).map(|known| known.newest);
        // If the index does not hold the topic, it may have had messages up to `forgotten`.
        let upto = known.unwrap_or(if expected == Id::ZERO { Id::ZERO } else { self.forgotten });
        if upto <= expected && expected <= self.newest {
            return Ok(());
        }
        Err(AppendError::PreconditionFailed { newest: known.unwrap_or_default() })
    }

    /// Checks that there is room for this topic, if it is new. A client may make as many topics as it leaves free, and all
    /// clients together leave some to those without a payer.
    fn check_room_for(
        &self,
        topic: &Topic,
        payer: Option<Payer>,
        retention: &Retention,
    ) -> Result<(), AppendError> {
        let bytes = self.index.len() * (cost::TOPIC_BYTES + cost::MARK_BYTES) + self.name_bytes;
        let made = self.makers.of(payer);
        let is_full = self.index.len() + made.topics >= open_to(payer, retention.topics)
            || bytes + made.bytes > open_to(payer, retention.topic_bytes());
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
        self.tails.insert(tail.clone());
        tail
    }

    /// Sets the newest id of a topic, and returns the one before it.
    fn touch(&mut self, topic: &Topic, maker: Option<Payer>, id: Id) -> Id {
        if let Some(known) = self.index.to_back(topic) {
            return std::mem::replace(&mut known.newest, id);
        }
        let known = Known { newest: id, deleted: Id::ZERO, lost: Mark::default(), maker };
        self.know(topic.clone(), known);
        self.forgotten
    }

    fn know(&mut self, topic: Topic, known: Known) {
        self.name_bytes += topic.len();
        self.makers.add(known.maker, made_bytes(&topic));
        self.names.insert(topic.clone());
        self.index.insert(topic, known);
    }
}

/// The bytes that count for a topic itself.
fn made_bytes(topic: &Topic) -> usize {
    cost::TOPIC_BYTES + cost::MARK_BYTES + topic.len()
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        log::{Beginning, Page, Position, Reason, Rules, Start},
        message::{Draft, PatternSet, Payload},
    };

    pub const RETENTION: Retention = Retention {
        messages: 2,
        age: Duration::from_secs(60),
        bytes: 1 << 20,
        total_bytes: 1 << 20,
        topics: 1_000_000,
        rules: Rules::NONE,
    };

    pub fn publish(state: &mut State, name: &str) -> Id {
        let topic = name.parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        store(state, append, &RETENTION).expect("stored").id()
    }

    /// Appends as a log does, which releases the lock between the steps.
    pub fn store(state: &mut State, append: Append, retention: &Retention) -> Result<Appended, AppendError> {
        let appended = state.append(append, None, retention, Id::now());
        while state.fan_out_on().is_none() {}
        appended
    }

    pub fn patterns(names: &[&str]) -> PatternSet {
        names.iter().map(|name| name.parse().expect("a pattern")).collect()
    }

    pub fn later(days: u64) -> Id {
        Id::now().plus(Duration::from_secs(days * 24 * 3600))
    }

    /// Begins as a log does.
    pub fn begin(state: &mut State, patterns: &PatternSet, start: &Start, expired: Id) -> Beginning {
        while state.expire(&RETENTION, expired.plus(RETENTION.age), STEP) == STEP {}
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
        while state.expire(&RETENTION, expired.plus(RETENTION.age), STEP) == STEP {}
        let mut reading = Reading::new(patterns, position, limit);
        while !state.read_on(&mut reading, NODES) {}
        reading.into_page()
    }

    pub fn gaps(state: &mut State, name: &str, cursor: Id) -> Vec<(String, Reason)> {
        let patterns = patterns(&[name]);
        let page = read(state, &patterns, &Position::at(cursor), 10, Id::ZERO);
        page.gaps.into_iter().map(|gap| (gap.topic.to_string(), gap.reason)).collect()
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
}
