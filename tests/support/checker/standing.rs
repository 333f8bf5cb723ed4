//! The state of a subscriber, as a correct client keeps it, and the frames that may come next.
//!
//! This checks everything that can be checked at once: the order, that nothing comes twice, that a gap is
//! told in time. The verdict checks what needs the whole truth.

use std::{collections::VecDeque, fmt, mem};

use super::{
    Retention,
    truth::{Counts, matches},
};
use crate::support::{
    client::{Start, Transport},
    frame::{Answer, Body, Cursor, Done, Frame, Gap, Message},
};

/// A broken promise, and what came instead.
#[derive(Debug)]
pub struct Wrong {
    pub expected: String,
    pub came: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, and {}", self.expected, self.came)
    }
}

fn wrong(expected: impl Into<String>, came: impl fmt::Debug) -> Wrong {
    Wrong { expected: expected.into(), came: format!("there came {came:?}") }
}

pub struct Standing {
    pub name: String,
    pub retention: Retention,
    /// The cursor that counts for every entry that is caught up.
    pub cursor: Option<Cursor>,
    pub entries: Vec<Entry>,
    pub given: Vec<Given>,
    pub gaps: Vec<Told>,
    /// The current connection.
    pub now: Place,
    /// The newest frames, for the report of a failure.
    recent: VecDeque<String>,
}

/// One topic or pattern of the subscription.
pub struct Entry {
    pub filter: String,
    pub lane: Lane,
    /// The promise of the server; `None` until it has said where reading starts.
    pub promise: Option<Promise>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The cursor of the connection counts for it.
    CaughtUp,
    /// A command still has to subscribe to it, from its own start.
    Behind(Start),
    /// A command has subscribed to it, and `subscribed` has not come yet.
    Replaying(Start),
}

/// A promise of everything after the id `after`, except for the oldest `counts - newest` messages of each
/// topic.
#[derive(Debug, Clone)]
pub struct Promise {
    pub after: Option<Cursor>,
    pub counts: Counts,
    pub newest: u64,
}

pub struct Given {
    pub id: Cursor,
    pub topic: String,
    pub event: Option<String>,
    pub body: Body,
    pub place: Place,
}

pub struct Told {
    pub gap: Gap,
    /// The messages that may have been published when this came.
    pub started: Counts,
    pub place: Place,
    /// The stream had given out messages before, so it fell behind while it was read.
    pub is_midway: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub session: usize,
    pub transport: Transport,
    /// How many polls were answered before; a stream is one answer.
    pub answers: usize,
}

impl Place {
    pub fn new(session: usize, transport: Transport) -> Self {
        Self { session, transport, answers: 0 }
    }
}

/// The state of one connection.
pub struct Session {
    /// The start that the connection asked for.
    pub start: Start,
    /// The newest message that was acknowledged before the connection asked.
    pub newest_before: Cursor,
    pub is_open: bool,
}

impl Standing {
    pub fn new(name: String, retention: Retention, filters: Vec<String>, lane: Lane) -> Self {
        let entries = filters.into_iter().map(|filter| Entry { filter, lane, promise: None }).collect();
        Self {
            name,
            retention,
            cursor: None,
            entries,
            given: Vec::new(),
            gaps: Vec::new(),
            now: Place::new(0, Transport::WebSocket),
            recent: VecDeque::new(),
        }
    }

    /// The id up to which an entry has been read.
    pub fn position(&self, entry: &Entry) -> Cursor {
        match entry.lane {
            Lane::CaughtUp => self.cursor.unwrap_or(0),
            Lane::Behind(Start::After(cursor)) | Lane::Replaying(Start::After(cursor)) => cursor,
            Lane::Behind(_) | Lane::Replaying(_) => 0,
        }
    }

    pub fn is_caught_up(&self) -> bool {
        self.entries.iter().all(|entry| entry.lane == Lane::CaughtUp)
    }

    pub fn filters(&self, lane: Lane) -> Vec<String> {
        let entries = self.entries.iter().filter(|entry| entry.lane == lane);
        entries.map(|entry| entry.filter.clone()).collect()
    }

    /// The filters that commands still have to subscribe to.
    pub fn behind(&self) -> Vec<String> {
        let entries = self.entries.iter().filter(|entry| matches!(entry.lane, Lane::Behind(_)));
        entries.map(|entry| entry.filter.clone()).collect()
    }

    /// The next connection begins without a topic, and subscribes to each entry from where it stopped.
    pub fn resubscribe_all_by_commands(&mut self) {
        let Some(cursor) = self.cursor else { return };
        for entry in self.entries.iter_mut().filter(|entry| entry.lane == Lane::CaughtUp) {
            entry.lane = Lane::Behind(Start::After(cursor));
        }
    }

    /// The start with which to subscribe to `filter`; `None` if it is subscribed already or caught up.
    pub fn begin_replay(&mut self, filter: &str) -> Option<Start> {
        let entry = self.entries.iter_mut().find(|entry| entry.filter == filter)?;
        let Lane::Behind(start) = entry.lane else { return None };
        entry.lane = Lane::Replaying(start);
        Some(start)
    }

    pub fn recent(&self) -> String {
        self.recent.iter().map(|frame| format!("\n    {frame}")).collect()
    }

    /// A connection broke: every interrupted replay has to be asked for again.
    pub fn lose_connection(&mut self) {
        for entry in &mut self.entries {
            if let Lane::Replaying(start) = entry.lane {
                entry.lane = Lane::Behind(start);
            }
        }
        self.remember("the connection ended".to_owned());
    }

    pub fn remember(&mut self, line: String) {
        if self.recent.len() == 16 {
            self.recent.pop_front();
        }
        self.recent.push_back(format!("session {}, {}: {line}", self.now.session, self.now.transport));
    }

    /// Takes the next frame, if it is allowed here. `started` counts the messages that may have been
    /// published.
    pub fn take(&mut self, frame: Frame, started: &Counts, session: &mut Session) -> Result<(), Wrong> {
        self.remember(summary(&frame));
        let opens = matches!(frame, Frame::Open { .. } | Frame::Answer(_));
        if !mem::replace(&mut session.is_open, true) && !opens {
            return Err(wrong("the frame open before anything else", frame));
        }
        match frame {
            Frame::Open { cursor } => self.open(cursor, started, session),
            Frame::Message(message) if message.replay => self.take_replayed(message, started),
            Frame::Message(message) => self.take_message(message),
            Frame::Gap(gap) if gap.replay => self.take_replayed_gap(gap, started),
            Frame::Gap(gap) => {
                let cursor = gap.cursor;
                self.take_gap(gap, started)?;
                self.move_to(cursor)
            }
            Frame::Cursor { cursor } => self.move_to(cursor),
            Frame::Subscribed(done) => self.subscribed(&done, started),
            Frame::Unsubscribed(done) => self.unsubscribed(&done),
            Frame::Answer(answer) => self.take_answer(answer, started, session),
            Frame::Refusal(_) | Frame::Published(_) => Err(wrong("messages, gaps and cursors", frame)),
        }
    }

    /// The first frame. `cursor` is where reading starts.
    fn open(&mut self, cursor: Cursor, started: &Counts, session: &Session) -> Result<(), Wrong> {
        match session.start {
            Start::After(asked) if cursor != asked => {
                return Err(wrong(format!("the frame open to repeat the cursor {asked}"), cursor));
            }
            Start::Now if cursor < session.newest_before => {
                let expected = format!("now to be at or past {}, acknowledged before", session.newest_before);
                return Err(wrong(expected, cursor));
            }
            _ => self.cursor = Some(cursor),
        }
        self.promise(|entry| entry.lane == Lane::CaughtUp, session.start, cursor, started);
        Ok(())
    }

    /// From here on the server has to send what it was asked for.
    fn promise(&mut self, which: impl Fn(&Entry) -> bool, start: Start, cursor: Cursor, started: &Counts) {
        let (after, newest) = match (start, self.retention) {
            (Start::Now, _) => (Some(cursor), 0),
            (Start::After(asked), _) => (Some(asked), 0),
            (Start::Last(count), Retention::Everything) => (None, count),
            (Start::Last(count), Retention::Newest(kept)) => (None, count.min(kept)),
            (Start::All, Retention::Everything) => (Some(0), 0),
            (Start::All, Retention::Newest(kept)) => (None, kept),
        };
        let promise = Promise { after, counts: started.clone(), newest };
        for entry in self.entries.iter_mut().filter(|entry| which(entry)) {
            entry.promise.get_or_insert_with(|| promise.clone());
        }
    }

    /// Moves the cursor, which must never go back.
    fn move_to(&mut self, cursor: Cursor) -> Result<(), Wrong> {
        if cursor == 0 || self.cursor.is_some_and(|stood| cursor < stood) {
            return Err(wrong(format!("a cursor not before {:?}", self.cursor), cursor));
        }
        self.cursor = Some(cursor);
        Ok(())
    }

    fn take_message(&mut self, message: Message) -> Result<(), Wrong> {
        let subscribed =
            |entry: &Entry| entry.lane == Lane::CaughtUp && matches(&entry.filter, &message.topic);
        if !self.entries.iter().any(subscribed) {
            return Err(wrong("a message of a topic that is subscribed and caught up", message));
        }
        if self.cursor.is_none_or(|cursor| message.id <= cursor) {
            return Err(wrong(format!("a message after {:?}, once and in order", self.cursor), message));
        }
        self.cursor = Some(message.id);
        self.give(message);
        Ok(())
    }

    /// A replayed message, which does not move the cursor. The end of the replay is known only with
    /// `subscribed`: the server's cursor may be higher than this one, because of topics that nobody reads
    /// here.
    fn take_replayed(&mut self, message: Message, started: &Counts) -> Result<(), Wrong> {
        let (filter, start) = self.replaying(&message.topic, &message)?;
        let read_to = if let Start::After(cursor) = start { cursor } else { 0 };
        if message.id <= read_to {
            return Err(wrong(format!("a message replayed after {read_to}, once and in order"), message));
        }
        // The server tells where "now" was only with `subscribed`, but it was before this message.
        self.promise(|entry| entry.filter == filter, start, message.id - 1, started);
        self.enter(&filter, Lane::Replaying(Start::After(message.id)));
        self.give(message);
        Ok(())
    }

    /// The entry that is being replayed. The frame must belong to it.
    fn replaying(&self, topic: &str, came: &dyn fmt::Debug) -> Result<(String, Start), Wrong> {
        let mut covering = self.entries.iter().filter(|entry| covers(&entry.filter, topic));
        match covering.next() {
            Some(Entry { filter, lane: Lane::Replaying(start), .. }) => Ok((filter.clone(), *start)),
            _ => Err(wrong("only a replay that a command asked for", came)),
        }
    }

    fn give(&mut self, Message { topic, id, event, body, .. }: Message) {
        self.given.push(Given { id, topic, event, body, place: self.now });
    }

    /// A gap comes before anything newer than its `after`, and before any cursor past `after`.
    fn take_gap(&mut self, gap: Gap, started: &Counts) -> Result<(), Wrong> {
        if self.retention == Retention::Everything {
            return Err(wrong("no gap, because everything is retained", gap));
        }
        if !self.entries.iter().any(|entry| covers(&entry.filter, &gap.topic)) {
            return Err(wrong("a gap of a topic that is subscribed", gap));
        }
        if gap.reason != "retention" {
            return Err(wrong("no other reason for a gap than retention", gap));
        }
        if self.cursor.is_none_or(|cursor| gap.after < cursor) && !gap.replay {
            return Err(wrong(
                format!("a gap told before anything newer than its after {:?}", self.cursor),
                gap,
            ));
        }
        if gap.next.is_some_and(|next| next <= gap.after || (next <= gap.cursor && !gap.replay)) {
            return Err(wrong("a gap that ends after its beginning, and a cursor before its end", gap));
        }
        let is_midway = self.given.last().is_some_and(|given| given.place == self.now);
        self.gaps.push(Told { gap, started: started.clone(), place: self.now, is_midway });
        Ok(())
    }

    fn take_replayed_gap(&mut self, gap: Gap, started: &Counts) -> Result<(), Wrong> {
        match self.replaying(&gap.topic, &gap)? {
            (_, Start::After(cursor)) if gap.after < cursor => {
                Err(wrong(format!("a gap told before anything newer than its after, {cursor}"), gap))
            }
            (_, Start::After(_)) => self.take_gap(gap, started),
            (_, start) => Err(wrong(format!("no gap after {start:?}, which is no cursor"), gap)),
        }
    }

    /// From here on one cursor counts for all entries.
    fn subscribed(&mut self, done: &Done, started: &Counts) -> Result<(), Wrong> {
        let Some(entry) = self.entries.iter().find(|entry| entry.filter == done.topic) else {
            return Err(wrong("subscribed for a topic that was asked for", done));
        };
        let Lane::Replaying(start) = entry.lane else {
            return Err(wrong("subscribed for a topic that was asked for", done));
        };
        let read_to = self.position(entry);
        if done.cursor < read_to {
            return Err(wrong(format!("a cursor not before {read_to}, replayed already"), done));
        }
        self.move_to(done.cursor)?;
        self.promise(|entry| entry.filter == done.topic, start, done.cursor, started);
        self.enter(&done.topic, Lane::CaughtUp);
        Ok(())
    }

    /// Everything of the topic up to the cursor has been sent.
    fn unsubscribed(&mut self, done: &Done) -> Result<(), Wrong> {
        self.move_to(done.cursor)?;
        self.enter(&done.topic, Lane::Behind(Start::After(done.cursor)));
        Ok(())
    }

    pub fn enter(&mut self, filter: &str, lane: Lane) {
        for entry in self.entries.iter_mut().filter(|entry| entry.filter == filter) {
            entry.lane = lane;
        }
    }

    /// The gaps of an answer count before its messages.
    fn take_answer(&mut self, answer: Answer, started: &Counts, session: &mut Session) -> Result<(), Wrong> {
        let asked = mem::replace(&mut session.start, Start::After(answer.cursor));
        if asked == Start::Now && (!answer.messages.is_empty() || answer.cursor < session.newest_before) {
            let expected = format!("no messages, and a cursor at or past {}", session.newest_before);
            return Err(wrong(expected, answer));
        }
        self.promise(|entry| entry.lane == Lane::CaughtUp, asked, answer.cursor, started);
        // A request without a cursor has nothing before its first answer.
        self.cursor.get_or_insert(if let Start::After(cursor) = asked { cursor } else { 0 });
        answer.gaps.into_iter().try_for_each(|gap| self.take_gap(gap, started))?;
        answer.messages.into_iter().try_for_each(|message| self.take_message(message))?;
        self.now.answers += 1;
        self.move_to(answer.cursor)
    }
}

/// True if a gap of `named`, a topic or a pattern, belongs to a subscription of `filter`.
fn covers(filter: &str, named: &str) -> bool {
    filter == named || matches(filter, named)
}

fn summary(frame: &Frame) -> String {
    match frame {
        Frame::Message(message) => {
            let replay = if message.replay { " (replay)" } else { "" };
            format!("message {} of {}{replay}", message.id, message.topic)
        }
        Frame::Answer(Answer { gaps, messages, cursor }) => {
            let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
            format!("answer {ids:?} {gaps:?} {cursor}")
        }
        other => format!("{other:?}"),
    }
}
