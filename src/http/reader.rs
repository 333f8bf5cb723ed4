//! A reader of topics on one connection: the part that all transports share.
//!
//! It gives out one event after another, and the transport renders it. It knows no transport.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{
    access::{Access, Lease},
    batch::Form,
    connections::Connections,
    group::{Comer, Groups},
    gzip::Sum,
    identify::{Begun, Identified},
    live::{Event, Held, State, TakenOver},
    metrics::Permit,
    problem::Problem,
    pulse::{Beat, Pulse},
    refusal::of_end,
    shared_socket::SharedSocket,
    topic_limit_reached,
    wire::Control,
};
use crate::{
    broker::{Present, Subscription},
    message::{Id, Pattern},
};

/// The reading of one connection, with the lease and the timers that decide how long it lasts.
pub struct Reader {
    connection: Arc<str>,
    reading: Held,
    lease: Lease,
    pulse: Pulse,
    /// A group may read for this connection.
    is_parked: bool,
    /// Something was sent since the timers were last told.
    has_sent: bool,
    is_leaving: bool,
}

/// The next event on a connection.
#[derive(Debug)]
pub enum Next {
    Event(Event),
    /// The connection was quiet for one heartbeat: send a frame now.
    Quiet,
    /// One heartbeat has passed, whether or not anything was sent.
    Heartbeat,
    /// The client may not read any longer, or a command has ended the connection.
    Ended(Box<Problem>),
    /// The grace of the drain is over: close the connection.
    GraceOver,
}

impl Reader {
    pub fn new(connections: Arc<Connections>, connection: Arc<str>, reading: Held, access: Access) -> Self {
        Self::with(Pulse::new(connections), connection, reading, access)
    }

    /// The reader of a poll. It needs no heartbeats, and no client knows its name.
    pub fn of_poll(connections: Arc<Connections>, reading: Held, access: Access) -> Self {
        Self::with(Pulse::silent(connections), Arc::default(), reading, access)
    }

    fn with(pulse: Pulse, connection: Arc<str>, reading: Held, access: Access) -> Self {
        let lease = access.lease();
        let (is_parked, has_sent, is_leaving) = Default::default();
        Self { connection, reading, lease, pulse, is_parked, has_sent, is_leaving }
    }

    /// The next event, now or once there is one. Messages and gaps come only while the transport `has_room`.
    pub fn poll(&mut self, cx: &mut Context<'_>, has_room: bool) -> Poll<Next> {
        let mut state = self.reading.lock();
        if let Poll::Ready(problem) = self.lease.poll(cx, || state.own_patterns()) {
            return Poll::Ready(Next::Ended(problem.into()));
        }
        if let Poll::Ready(event) = state.poll(cx, has_room) {
            self.has_sent = true;
            return Poll::Ready(match event {
                Event::Ended(code) => Next::Ended(of_end(code).into()),
                event => Next::Event(event),
            });
        }
        drop(state);
        if std::mem::take(&mut self.has_sent) {
            self.pulse.sent();
        }
        while let Poll::Ready(beat) = self.pulse.poll(cx) {
            match beat {
                Beat::Leave => self.is_leaving = true,
                Beat::End => return Poll::Ready(Next::GraceOver),
                Beat::Quiet => return Poll::Ready(Next::Quiet),
                Beat::Heartbeat => return Poll::Ready(Next::Heartbeat),
            }
        }
        Poll::Pending
    }

    /// Lets a group read for this connection and write to its socket, if there is nothing to do but to follow. Call it
    /// when this was polled, gave nothing, and everything is written. The task is woken when it is its turn again: then
    /// call [`take_over`](Self::take_over) first.
    pub fn park(&mut self, cx: &Context<'_>, groups: &Arc<Groups>, form: Form, socket: &SharedSocket) {
        if self.is_leaving || self.has_sent || self.pulse.is_draining() {
            return;
        }
        let access = self.lease.access();
        let mut state = self.reading.lock();
        let metrics = state.permit().metrics().clone();
        let comer =
            Comer { form, socket, metrics: &metrics, rules: access.rules(), ends_at: access.ends_at() };
        self.is_parked = state.park(groups, &comer, cx.waker());
    }

    /// Reads by itself again, if a group reads for this connection. Returns the rest of what the group has begun to
    /// write: it must be written before anything else. And the sum of all that the group wrote in gzip.
    pub fn take_over(&mut self) -> Option<(Bytes, Sum)> {
        if !std::mem::take(&mut self.is_parked) {
            return None;
        }
        let TakenOver { rest, given } = self.reading.lock().take_over()?;
        if given.messages > 0 {
            self.pulse.was_sent(given.at);
        }
        if let Some(record) = self.access().record() {
            record.count(given.bytes);
        }
        Some((rest, given.plain))
    }

    /// Lets commands find no connection here any more. Call it before the last frame leaves.
    pub fn leave(&self) {
        self.reading.leave();
    }

    /// Ends the reading of a poll, and keeps its place among the connections until the rest of the answer has left.
    pub fn into_permit(self) -> Option<Permit> {
        self.reading.into_permit()
    }

    /// The first frame of a connection.
    pub fn open(&self) -> Control<'_> {
        Control::Open {
            connection: &self.connection,
            cursor: self.cursor(),
            heartbeat_ms: self.pulse.heartbeat().as_millis() as u64,
            sub: self.access().subject().map(|subject| &**subject),
            expires_in_ms: self.access().expires_in_ms(),
            mine: self.mine(),
        }
    }

    /// The list of the subject, if the client reads it.
    pub fn mine(&self) -> Option<Vec<Pattern>> {
        self.reading.lock().mine()
    }

    pub fn cursor(&self) -> Id {
        self.reading.lock().cursor()
    }

    /// The name of the connection. Messages may exclude it.
    pub fn connection(&self) -> &Arc<str> {
        &self.connection
    }

    /// True while the log is being read, so that more items may follow soon.
    pub fn is_reading(&self) -> bool {
        self.reading.lock().is_reading()
    }

    /// True if the last read of the log failed.
    pub fn has_failed(&self) -> bool {
        self.reading.lock().has_failed()
    }

    pub fn access(&self) -> &Access {
        self.lease.access()
    }

    /// True if the drain has asked this connection to leave, and everything that was asked for is done and told.
    pub fn may_leave(&self) -> bool {
        self.is_leaving && self.reading.lock().is_settled()
    }

    /// True if the client waits until the pattern that it asked for is merged.
    pub fn is_joining(&self) -> bool {
        self.reading.lock().is_asked()
    }

    /// Prepares to read `pattern`, because the client asks for it.
    ///
    /// # Errors
    /// If the client may not read it, or if it is one too many.
    pub fn ask_for(&self, pattern: &Pattern) -> Result<Step, Problem> {
        let mut state = self.reading.lock();
        if state.is_only_listed(pattern) {
            self.access().subscribe(std::slice::from_ref(pattern))?;
        }
        if state.reads(pattern) {
            state.read_also(pattern);
            return Ok(Step::IsRead);
        }
        if state.joins(pattern) {
            state.ask_for(pattern);
            return Ok(Step::Joins);
        }
        self.check_one_more(&mut state, pattern)?;
        Ok(Step::MayBegin)
    }

    /// Counts one more pattern that the client asks for, if it may read it.
    fn check_one_more(&self, state: &mut State, pattern: &Pattern) -> Result<(), Problem> {
        if let Some(limit) = state.is_full(pattern) {
            let detail =
                format!("topic: limit reached: a connection reads up to {limit}; unsubscribe from one first");
            return Err(Problem::bad_request(detail).about(pattern));
        }
        self.access().subscribe(std::slice::from_ref(pattern))?;
        if state.count_topics(1) { Ok(()) } else { Err(topic_limit_reached().about(pattern)) }
    }

    /// Adds `pattern` to this reader: it first reads `subscription` up to the reader's cursor, and then merges
    /// the two.
    ///
    /// # Errors
    /// If the client may not read the pattern, or if it is one too many: since it asked, the rules may have changed, and
    /// commands may have added others.
    pub fn join(&mut self, pattern: Pattern, subscription: Subscription) -> Result<Step, Problem> {
        let mut state = self.reading.lock();
        // A command may have added it meanwhile.
        if state.reads(&pattern) {
            if state.is_only_listed(&pattern) {
                self.access().subscribe(std::slice::from_ref(&pattern))?;
            }
            state.read_also(&pattern);
            state.count_topics(0);
            return Ok(Step::IsRead);
        }
        if state.joins(&pattern) {
            state.count_topics(0);
            state.ask_for(&pattern);
            return Ok(Step::Joins);
        }
        self.check_one_more(&mut state, &pattern)?;
        state.join(pattern, subscription);
        Ok(Step::Joins)
    }

    /// Makes the subject present in one topic more. Gives it back if the topic is read no longer.
    pub fn be_present(&mut self, topic: &Pattern, present: Present) -> Option<Present> {
        self.reading.lock().be_present(topic, present)
    }

    /// True if the subject is present in this topic by this connection.
    pub fn is_present(&self, topic: &Pattern) -> bool {
        self.reading.lock().is_present(topic)
    }

    /// Counts the patterns that are read, after one could not be added.
    pub fn not_added(&mut self) {
        self.reading.lock().count_topics(0);
    }

    /// Stops reading `pattern`.
    pub fn remove(&mut self, pattern: &Pattern) {
        self.reading.lock().remove(pattern);
    }

    /// Begins to continue with a new token.
    pub fn begin_renewal(&self, token: &str) -> Begun {
        match self.access().is_open() {
            true => Begun::Done(Err(Problem::bad_request(
                "auth: this server requires no credentials; leave it out",
            ))),
            false => self.access().begin_renewal(token),
        }
    }

    /// Continues with a new token; see [`Access::renew`].
    pub fn renew(&mut self, identified: Identified) -> Result<(), Problem> {
        // One lock for both: if the token is refused later, the connection is found by it.
        let mut state = self.reading.lock();
        self.lease.renew(identified, state.own_patterns())?;
        state.renewed(self.lease.access().issued());
        Ok(())
    }

    /// Call this when the transport has sent a frame of its own.
    pub fn sent(&mut self) {
        self.has_sent = true;
    }

    /// Adds the counts to the metrics, because the bytes are written now.
    pub fn add_up(&mut self, bytes: usize) {
        self.reading.lock().permit().add_up(bytes);
    }

    /// Tells the operator why the server ends the connection.
    pub fn tell_end(&self, problem: &Problem) {
        self.pulse.connections().ends.tell_end(problem, self.access().client(), &self.connection);
    }

    /// Logs the end of the connection, with the reason. A WebSocket has a close code too.
    pub fn log_end(&self, why: fmt::Arguments<'_>, close: Option<u16>) {
        if let Some(record) = self.access().record() {
            record.note_end(why.to_string(), close);
        }
        let mut state = self.reading.lock();
        let (cursor, behind_ms) = (state.cursor(), state.behind_ms());
        state.permit().log_end(why, self.access().client(), &self.connection, cursor, behind_ms);
    }
}

/// The next step for a pattern that the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    IsRead,
    /// [`Event::Joined`] or [`Event::Overtaken`] follows.
    Joins,
    /// It is to be begun, and then [joined](Reader::join).
    MayBegin,
}

#[cfg(test)]
mod tests;
