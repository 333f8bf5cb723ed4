//! Subscriptions that stand at the same place: one of them can read for the others.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::Subscription;
use crate::{
    log::{Follower, Position},
    message::{Id, PatternSet},
};

/// The place of a subscription that has given out everything: the same place in the log, and among the ephemeral
/// messages.
#[derive(Clone, Debug)]
pub struct Place {
    position: Position,
    seen_ephemerals: u64,
}

impl Place {
    pub fn cursor(&self) -> Id {
        self.position.cursor
    }
}

/// How two subscriptions to the same patterns stand to each other.
#[derive(Clone, Debug)]
pub enum Meeting {
    /// At this same place: what one of them gives out next, the other would give out too.
    Level(Place),
    /// The first one has something to give out before they can be level.
    FirstHasMore,
    /// The second one has.
    SecondHasMore,
}

impl Subscription {
    /// True if each topic has another follower here, so that it may be worth to stand level. They need not read the
    /// same set of topics: to know that would cost a table of all readers.
    pub fn has_company(&self) -> bool {
        !self.followed.is_empty() && self.followed.iter().all(|followed| followed.tail().follower_count() > 1)
    }

    /// The topics and patterns that are read, to be shared.
    pub fn pattern_set(&self) -> &Arc<PatternSet> {
        &self.patterns
    }

    /// The place where this stands. `None` if it is more than a place: if something waits to be given out, is being
    /// read, or was given or told ahead of the cursor, or if the list of a subject is read too.
    pub fn place(&self) -> Option<Place> {
        let is_plain = self.ready.is_empty()
            && self.page.is_none()
            && self.arrival.is_none()
            && self.unknown_cursor.is_none()
            && self.mine.is_none()
            && self.until == Id::MAX
            && self.cursor <= self.position.cursor
            && self.position.told <= self.position.cursor
            && !self.position.has_floors()
            && self.ephemerals_since.is_empty()
            && !self.holds_ephemerals
            && !self.patterns.is_empty();
        let seen_ephemerals = self.seen_ephemerals.filter(|_| is_plain)?;
        Some(Place { position: self.position.clone(), seen_ephemerals })
    }

    /// Another subscription to the same patterns, at `place`, for the connection of that name. It follows the same
    /// tails, and has yet to look at them.
    pub fn fork(&self, place: Place, connection: Arc<str>) -> Self {
        let follower = Arc::new(Follower::default());
        Self {
            log: self.log.clone(),
            patterns: self.patterns.clone(),
            followed: self.followed.iter().map(|followed| followed.share(&follower)).collect(),
            follower,
            cursor: place.position.cursor,
            position: place.position,
            until: Id::MAX,
            looked_upto: None,
            ready: VecDeque::new(),
            page: None,
            arrival: None,
            has_failed: false,
            seen_ephemerals: Some(place.seen_ephemerals),
            ephemerals_since: BTreeMap::new(),
            holds_ephemerals: false,
            connection,
            unknown_cursor: None,
            keeps_cursor: self.keeps_cursor,
            mine: None,
        }
    }

    /// A subscription at the same place that gives out every message, also those that exclude this one's connection.
    /// `None` if this stands at no place, or ahead of the messages that have arrived in this process.
    pub fn fork_for_all(&self) -> Option<Self> {
        let place = self.place().filter(|place| place.cursor() <= self.log.watermark())?;
        Some(self.fork(place, "".into()))
    }

    /// Counts as so many readers of its topics.
    pub fn count_as(&self, readers: usize) {
        self.follower.count_as(readers);
    }

    /// Looks at what has arrived, until both stand at the same place or one of them has something to give out.
    ///
    /// Both read the same patterns, and `other` stands at a place. Each looks up to where the other has looked: so they are
    /// level if nothing for them came in between.
    pub fn meet(&mut self, other: &mut Self) -> Meeting {
        debug_assert!(self.patterns[..] == other.patterns[..] && other.place().is_some());
        if self.place().is_none() {
            return Meeting::FirstHasMore;
        }
        if self.position.cursor < other.position.cursor {
            self.look(Id::MAX);
        }
        if other.position.cursor < self.position.cursor {
            other.look(self.position.cursor);
        }
        let (here, there) = match (self.place(), other.place()) {
            (Some(here), Some(there)) => (here, there),
            (None, _) => return Meeting::FirstHasMore,
            (_, None) => return Meeting::SecondHasMore,
        };
        if here.cursor() != there.cursor() {
            return Meeting::FirstHasMore;
        }
        let seen_ephemerals = here.seen_ephemerals.max(there.seen_ephemerals);
        self.take_ephemerals(seen_ephemerals);
        other.take_ephemerals(seen_ephemerals);
        if !other.ready.is_empty() {
            return Meeting::SecondHasMore;
        }
        self.position.checked = here.position.checked.min(there.position.checked);
        self.place().map_or(Meeting::FirstHasMore, Meeting::Level)
    }

    /// Reads the tails up to `until`, without waiting for more.
    fn look(&mut self, until: Id) {
        self.until = until;
        self.take_tails();
        self.until = Id::MAX;
        if until < Id::MAX {
            self.looked_upto = None;
        }
        if self.ready.is_empty() {
            self.cursor = self.cursor.max(self.position.cursor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        broker::Broker,
        log::{Append, MemoryLog, Retention, Rules, Start},
        message::{Draft, Payload},
    };

    fn broker() -> Broker {
        let (age, rules) = (Duration::from_secs(3600), Rules::NONE);
        let (messages, bytes, total_bytes, topics) = (1000, 16 << 20, 256 << 20, 10_000);
        Broker::new(MemoryLog::start(Retention { messages, age, bytes, total_bytes, topics, rules }))
    }

    /// Otherwise the second one would be asked to go on, which has nothing to give out.
    #[tokio::test]
    async fn one_that_has_to_read_the_log_has_more() {
        let broker = broker();
        let caught_up = async || {
            let patterns = vec!["a".parse().expect("a pattern")];
            let mut subscription = broker.subscribe(patterns, &Start::Now, "c").await.expect("it begins");
            assert!(subscription.next().now_or_never().is_none(), "it is caught up");
            subscription
        };
        let mut first = caught_up().await;
        let topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        broker.publish(Append { draft, idempotency_key: None, if_match: None }).await.expect("stored");
        broker.delete(&"a".parse().expect("a topic")).await.expect("deleted");
        let mut second = caught_up().await;
        assert!(matches!(first.meet(&mut second), Meeting::FirstHasMore));
        assert!(first.place().is_none() && second.place().is_some());
    }

    /// Otherwise a group could leave out a gap that another one of its members has yet to be told.
    #[tokio::test]
    async fn one_that_was_told_a_gap_ahead_of_its_cursor_stands_at_no_place() {
        let patterns = vec!["a".parse().expect("a pattern")];
        let mut reader = broker().subscribe(patterns, &Start::Now, "c").await.expect("it begins");
        assert!(reader.next().now_or_never().is_none() && reader.place().is_some(), "it is caught up");
        reader.position.told = Id::new(reader.position.cursor.get() + 1);
        assert!(reader.place().is_none());
    }
}
