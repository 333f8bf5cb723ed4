//! A cursor moving over the log.

mod ephemerals;
mod joining;
mod level;
mod mine;

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, Stream, future::BoxFuture};
use serde::Serializer;

pub use self::{
    joining::Join,
    level::{Meeting, Place},
    mine::{ListChange, Mine},
};
use super::driven::Driven;
use crate::{
    log::{
        Beginning, Followed, Follower, Gap, Log, LogError, Page, Position, Reason, Start, Uncovered, merge,
    },
    message::{Id, Message, Pattern, PatternSet},
};

/// How many messages are taken from the tails at once. They are shared: the subscription holds only pointers.
const TAIL_LIMIT: usize = 128;
/// How many messages one read of the log may bring.
const PAGE_LIMIT: usize = 256;
/// The capacity for waiting messages that a quiet subscription keeps.
const KEPT_CAPACITY: usize = 16;
/// How long to wait after a failed read before the log is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An item of a subscription.
#[derive(Clone, Debug)]
pub enum Delivery {
    Message(Message),
    Gap(Box<GapNotice>),
}

/// Says that messages are gone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GapNotice {
    /// The topic, or the pattern if the topics are not known.
    pub topic: Pattern,
    /// The cursor after which messages are missing, or the text that was no cursor. Gaps that are told together share it.
    #[serde(serialize_with = "as_text")]
    pub after: Arc<str>,
    /// The oldest retained message after the gap.
    pub next: Option<Id>,
    /// The cursor once this gap has been told.
    pub cursor: Id,
    pub reason: Reason,
}

fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Reads topics and patterns from a cursor on: first the retained messages, then new ones, in the order of
/// ids.
///
/// A [`Stream`] that never ends. It holds one page of items at most, and no queue that grows: a slow reader
/// falls behind in the log, and gets a gap once its next message is no longer retained. At every moment,
/// everything up to [`cursor`](Self::cursor) has been given out.
///
/// Each poll runs this loop:
///
/// ```text
/// loop {
///     if an item is ready: give it out, and move the cursor
///     if a page of the log is being read: wait for it; its gaps and messages are ready, and the position moves
///     if the follower was not woken and the watermark has not moved: wait for the follower, or for `arrival`
///     note the watermark; the new messages in the tails up to there are ready, and the position moves
///     if a tail does not reach back to the position: read a page of the log from there instead
/// }
/// ```
///
/// # Cancel safety
/// A poll that is pending loses no item. Dropping the subscription ends it.
pub struct Subscription {
    log: Arc<dyn Log>,
    patterns: Arc<PatternSet>,
    /// The tails of the patterns, in the same order.
    followed: Vec<Followed>,
    follower: Arc<Follower>,
    /// The point up to which the log has been read. It is ahead of the cursor by the items in `ready`.
    position: Position,
    cursor: Id,
    /// The subscription does not read past this id.
    until: Id,
    /// The watermark up to which the tails were last read, if they were read completely.
    looked_upto: Option<Id>,
    ready: VecDeque<Delivery>,
    page: Option<Driven<Result<Page, LogError>>>,
    /// Gives true once the watermark reaches `until`, and false after a time limit. The watermark alone does
    /// not wake the follower.
    arrival: Option<BoxFuture<'static, bool>>,
    /// The last read of the log failed, and the log is asked again.
    has_failed: bool,
    /// How many ephemeral messages of the log this subscription has seen. `None` until it is caught up for the
    /// first time.
    seen_ephemerals: Option<u64>,
    /// Patterns of which the ephemeral messages after another count are read, until they are taken.
    ephemerals_since: BTreeMap<Pattern, u64>,
    /// Ephemeral messages wait in the log.
    holds_ephemerals: bool,
    connection: Arc<str>,
    /// A cursor ahead of the store, until the gap about it has been given out.
    unknown_cursor: Option<Id>,
    /// The cursor stays where it is while nothing is read.
    keeps_cursor: bool,
    /// The list of the client's subject.
    mine: Option<Box<Mine>>,
}

impl Subscription {
    pub(super) fn new(
        log: Arc<dyn Log>,
        patterns: Arc<PatternSet>,
        followed: Vec<Followed>,
        follower: Arc<Follower>,
        start: &Start,
        beginning: Beginning,
        connection: &str,
    ) -> Self {
        let Beginning { position, gaps } = beginning;
        let mut subscription = Self {
            log,
            patterns,
            followed,
            follower,
            cursor: position.cursor,
            position,
            until: Id::MAX,
            looked_upto: None,
            ready: VecDeque::new(),
            page: None,
            arrival: None,
            has_failed: false,
            seen_ephemerals: None,
            ephemerals_since: BTreeMap::new(),
            holds_ephemerals: false,
            connection: connection.into(),
            unknown_cursor: None,
            keeps_cursor: false,
            mine: None,
        };
        if !gaps.is_empty() {
            let (sent, unknown) = match start {
                Start::Unreadable(sent) => (sent.clone(), Id::MAX),
                Start::After(sent) => (sent.to_string(), *sent),
                _ => (subscription.cursor.to_string(), subscription.cursor),
            };
            subscription.tell(gaps, &sent, unknown, subscription.cursor);
            subscription.unknown_cursor = Some(unknown);
        }
        subscription
    }

    /// The point up to which everything has been given out.
    ///
    /// If the client's cursor is ahead of the store, this is that cursor until the gap has been given out. If
    /// the client is cut off first, it resumes with that cursor and gets the gap.
    pub fn cursor(&self) -> Id {
        self.unknown_cursor.unwrap_or(self.cursor)
    }

    /// True while the log is being read, so that more items may follow soon.
    pub fn is_reading(&self) -> bool {
        self.page.is_some() && !self.has_failed
    }

    /// True if the last read of the log failed. The log is asked again.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Every message up to this id has arrived in this process.
    pub fn watermark(&self) -> Id {
        self.log.watermark()
    }

    /// The connection that reads. Messages may exclude it.
    pub fn connection(&self) -> &Arc<str> {
        &self.connection
    }

    /// Keeps the cursor while there are no patterns, until one is added. If a list is read too, the cursor moves on: each
    /// entry of the list is read from where it was added.
    pub fn keep_cursor(&mut self) {
        self.keeps_cursor = self.mine.is_none();
    }

    /// How far the items that this has still to give out reach back, in milliseconds of the messages' time. Zero if it
    /// has given out everything.
    pub fn behind_ms(&self) -> u64 {
        let is_caught_up = self.ready.is_empty() && self.page.is_none() && !self.follower.is_woken();
        if is_caught_up || self.patterns.is_empty() {
            return 0;
        }
        self.ms_since(self.cursor)
    }

    /// How long after this id the newest message came, in milliseconds.
    pub fn ms_since(&self, id: Id) -> u64 {
        self.log.watermark().get().saturating_sub(id.get()) / 1000
    }

    fn read_until(&mut self, until: Id) {
        if self.until != until {
            self.until = until;
            self.arrival = None;
            self.looked_upto = None;
        }
    }

    /// How many topics and patterns are read.
    pub fn width(&self) -> usize {
        self.patterns.len()
    }

    /// How many of these have a wildcard.
    pub fn wildcards(&self) -> usize {
        self.patterns.wildcards().len()
    }

    /// The topics and patterns that are read.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter()
    }

    /// True if `pattern` is one of those that are read.
    pub fn reads(&self, pattern: &Pattern) -> bool {
        self.patterns.contains(pattern)
    }

    /// Stops reading `pattern`. False if it was not read.
    pub fn remove(&mut self, pattern: &Pattern) -> bool {
        let Some(index) = Arc::make_mut(&mut self.patterns).remove(pattern) else { return false };
        self.ephemerals_since.remove(pattern);
        self.followed.remove(index);
        let patterns = &self.patterns;
        self.ready.retain(|delivery| match delivery {
            Delivery::Message(message) => patterns.matches(&message.topic),
            // The gap of a topic may concern another pattern too.
            Delivery::Gap(gap) => match gap.topic.topic() {
                Some(topic) => patterns.matches(&topic) || &*topic == mine::GAP_TOPIC,
                None => patterns.contains(&gap.topic),
            },
        });
        // A page that is being read may contain messages of the removed pattern.
        self.page = None;
        self.has_failed = false;
        self.looked_upto = None;
        self.let_last_gap_move_cursor();
        true
    }

    /// Among several gaps about an unknown cursor, only the last moves the cursor. If that one was dropped, the
    /// last that is left must do it.
    fn let_last_gap_move_cursor(&mut self) {
        let is_about_cursor = |gap: &&mut Box<GapNotice>| gap.reason == Reason::UnknownCursor;
        let gaps = self.ready.iter_mut().rev().filter_map(|delivery| match delivery {
            Delivery::Gap(gap) => Some(gap),
            Delivery::Message(_) => None,
        });
        match gaps.into_iter().find(is_about_cursor) {
            Some(gap) => gap.cursor = self.cursor,
            None => self.unknown_cursor = None,
        }
    }

    /// The next item, now or once there is one.
    pub fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Delivery> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                self.note(&delivery);
                return Poll::Ready(delivery);
            }
            std::task::ready!(self.poll_ready(cx));
        }
    }

    /// Ready once [`poll_delivery`](Self::poll_delivery) has an item.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(());
            }
            self.cursor = self.cursor.max(self.position.cursor);
            if let Some(page) = &mut self.page {
                let Poll::Ready(page) = page.poll(cx) else { return Poll::Pending };
                let page = page.unwrap_or(Err(LogError::Unavailable));
                self.page = None;
                self.has_failed = page.is_err();
                match page {
                    Ok(page) => self.take_page(page),
                    Err(_) => self.begin_page(RETRY_AFTER),
                }
                continue;
            }
            let is_idle = self.keeps_cursor && self.patterns.is_empty() && self.until == Id::MAX;
            if is_idle || self.position.cursor >= self.until {
                return Poll::Pending;
            }
            if let Some(arrival) = &mut self.arrival
                && let Poll::Ready(has_arrived) = arrival.poll_unpin(cx)
            {
                self.arrival = None;
                self.looked_upto = None;
                if !has_arrived {
                    self.begin_page(Duration::ZERO);
                    continue;
                }
            }
            // Listen first, then look.
            let was_woken = self.follower.take_wakeup(cx);
            let (read_upto, watermark) = (self.position.cursor, self.log.watermark());
            if self.mine.as_mut().is_some_and(|mine| mine.holds(read_upto, watermark)) {
                self.looked_upto = None;
                return Poll::Pending;
            }
            if !was_woken && self.looked_upto == Some(self.log.watermark()) {
                if self.ready.capacity() > KEPT_CAPACITY {
                    self.ready = VecDeque::new();
                }
                return Poll::Pending;
            }
            self.take_tails();
        }
    }

    fn note(&mut self, delivery: &Delivery) {
        match delivery {
            Delivery::Message(message) => self.cursor = self.cursor.max(message.id),
            Delivery::Gap(gap) if gap.cursor <= self.position.cursor => {
                self.cursor = self.cursor.max(gap.cursor);
                self.unknown_cursor = None;
            }
            // This gap repeats the unknown cursor, and another gap follows: the cursor stays.
            Delivery::Gap(_) => {}
        }
    }

    /// Reads the tails.
    fn take_tails(&mut self) {
        // Note both points before reading the tails: messages that arrive meanwhile are for the next time. Count
        // the ephemeral messages before the watermark is read: so it covers every message that was stored
        // before one of them.
        let ephemerals = self.log.ephemerals().count();
        let watermark = self.log.watermark();
        let upto = self.limit(watermark);
        if self.mine.as_ref().is_some_and(|mine| mine.owes_gap(self.cursor)) {
            self.looked_upto = None;
            self.begin_page(Duration::ZERO);
            return;
        }
        let Self { followed, position, ready, connection, log, .. } = self;
        let tails = followed.iter().map(Followed::tail);
        let merged = merge(tails, position, upto, &log.expiry(), TAIL_LIMIT, |message| {
            if message.exclude() != Some(&**connection) {
                ready.push_back(Delivery::Message(message));
            }
        });
        match merged {
            Ok(end) => {
                self.position.advance(end);
                // A subscription that stops at `until` takes the ephemeral messages when it reads on. One that is
                // being merged into another never takes them. Below the watermark stands a change of the list that is to
                // be taken first, and some of them may have come after it.
                let is_level = end >= upto && upto >= watermark;
                if is_level && self.until == Id::MAX && !self.holds_ephemerals {
                    self.take_ephemerals(ephemerals);
                    self.seen_ephemerals = Some(ephemerals);
                    self.ephemerals_since.clear();
                }
                self.looked_upto = (end >= upto).then_some(watermark);
                if end >= upto && upto < self.until && self.until < Id::MAX {
                    self.await_arrival();
                }
            }
            Err(Uncovered) => {
                self.ready.clear();
                self.looked_upto = None;
                self.begin_page(Duration::ZERO);
            }
        }
    }

    /// How far this may read, if everything has arrived up to this watermark.
    fn limit(&mut self, watermark: Id) -> Id {
        let until = watermark.min(self.until);
        self.mine.as_mut().map_or(until, |mine| mine.limit(watermark).min(until))
    }

    fn await_arrival(&mut self) {
        let (log, until) = (self.log.clone(), self.until);
        self.arrival.get_or_insert_with(|| Box::pin(async move { log.arrived(until).await }));
    }

    fn begin_page(&mut self, delay: Duration) {
        let (log, patterns, position) = (self.log.clone(), self.patterns.clone(), self.position.clone());
        self.page = Some(Driven::new(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            log.read(&patterns, &position, PAGE_LIMIT).await
        }));
    }

    fn take_page(&mut self, page: Page) {
        let Page { mut gaps, told, checked, messages, mut past, mut end } = page;
        // A list may change between what this process has read and what the store had.
        let until = if self.mine.is_some() { self.limit(self.log.watermark()) } else { self.until };
        if let Some(mine) = &mut self.mine {
            mine.merge_gaps(&mut gaps, self.cursor);
            if self.patterns.is_empty() {
                // There is nothing to read, so everything was given.
                (past, end) = (until, until);
            }
        }
        for gap in &gaps {
            if let Some(topic) = gap.topic.topic() {
                self.position.raise_floor(topic, gap.floor);
            }
        }
        self.position.told = self.position.told.max(told);
        self.position.checked = checked;
        let (cursor, past) = (self.cursor, past.min(until).max(self.cursor));
        self.tell(gaps, &cursor.to_string(), cursor, past);
        for message in messages.into_iter().filter(|message| message.id <= until) {
            if message.exclude() != Some(&*self.connection) {
                self.ready.push_back(Delivery::Message(message));
            }
        }
        self.position.advance(end.min(until).max(past));
    }

    /// Queues the gaps, first those with a retained message after them. Only the last gap may move the
    /// cursor. If the client is cut off before that gap, it gets all of them again.
    fn tell(&mut self, mut gaps: Vec<Gap>, after: &str, cursor: Id, past: Id) {
        let after: Arc<str> = after.into();
        gaps.sort_by_key(|gap| gap.next.is_none());
        let last = gaps.len().saturating_sub(1);
        for (index, gap) in gaps.into_iter().enumerate() {
            let Gap { topic, next, reason, floor: _ } = gap;
            let moves = index == last && (next.is_none() || reason == Reason::UnknownCursor);
            let (after, cursor) = (after.clone(), if moves { past } else { cursor });
            self.ready.push_back(Delivery::Gap(Box::new(GapNotice { topic, after, next, cursor, reason })));
        }
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll_delivery(cx).map(Some)
    }
}
