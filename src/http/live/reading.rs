//! The subscription of one connection: shared between its task, which reads, and the commands, which change it.

mod following;
mod patterns;

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use bytes::Bytes;
use time::OffsetDateTime;

use super::changes::{Changes, Told};
use crate::{
    broker::{Delivery, Present, Subscription},
    http::{
        group::{Given, Parked},
        metrics::{Permit, Transport},
        problem::{Code, Problem},
        topic_limit_reached,
    },
    message::{Id, Pattern},
};

/// The properties of a connection that never change.
pub struct About {
    pub sub: Option<Box<str>>,
    /// JSON that is told with the subject where it is present.
    pub info: Option<Arc<str>>,
    pub transport: Transport,
    pub address: Option<IpAddr>,
    pub since: OffsetDateTime,
    /// The frames do not name the topic of a message, so another topic cannot be added.
    pub is_raw: bool,
}

/// One connection's subscription, and the topics that are being added to it.
pub struct Reading {
    about: About,
    // A std mutex: no await happens while it is held, and each holder does a bounded step.
    state: Mutex<State>,
}

pub struct State {
    /// `None` while a group reads for this connection.
    subscription: Option<Box<Subscription>>,
    parked: Option<Parked>,
    /// The work of the group for this connection, of which its task has yet to hear.
    taken_over: Option<Box<TakenOver>>,
    permit: Permit,
    /// Patterns that were added and are not merged yet. The first of them is being merged.
    joining: VecDeque<Joining>,
    /// Made by the first command about this connection.
    changes: Option<Box<Changes>>,
    /// The topics in which the subject is present by this connection.
    present: Option<Box<Present>>,
    /// The task that reads. Only a command wakes it.
    task: Option<Waker>,
    ended: Option<Code>,
    /// When the client's token was issued. The outer option is none for other credentials.
    issued: Option<Option<u64>>,
}

/// The work of a group for a connection that it no longer reads for.
pub struct TakenOver {
    /// The rest of a batch that the socket has begun to take. It must be written before anything else.
    pub rest: Bytes,
    pub given: Given,
}

/// A pattern that was added, and that is not merged yet.
struct Joining {
    pattern: Pattern,
    subscription: Subscription,
    /// A command about the connection has begun it, and not the client.
    is_of_command: bool,
    /// The client has asked for it, and is answered once it is merged.
    is_asked: bool,
    /// The list of the subject has added it meanwhile, so the other subscription reads it after this id.
    upto: Option<Id>,
    /// A command has added it when there were so many ephemeral messages: its client misses none that comes later.
    ephemerals_since: Option<u64>,
}

/// The next event of a connection.
#[derive(Debug)]
pub enum Event {
    Delivery(Delivery),
    /// A message or a gap of this pattern, which is joining.
    Replay(Pattern, Delivery),
    /// The pattern that the client asked for is part of the subscription now.
    Joined(Pattern),
    /// The pattern that the client asked for was removed by a command before it was merged.
    Overtaken(Pattern),
    /// A command has added the pattern, and it is part of the subscription now.
    Added(Pattern),
    /// A command has removed the pattern.
    Removed(Pattern),
    /// A command has ended the connection.
    Ended(Code),
}

impl Reading {
    pub fn new(
        about: About,
        subscription: Subscription,
        permit: Permit,
        issued: Option<Option<u64>>,
        present: Option<Present>,
    ) -> Self {
        let (parked, taken_over, joining, changes, task, ended) = Default::default();
        let (subscription, present) = (Some(Box::new(subscription)), present.map(Box::new));
        let state = State {
            subscription,
            parked,
            taken_over,
            permit,
            joining,
            changes,
            present,
            task,
            ended,
            issued,
        };
        Self { about, state: Mutex::new(state) }
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the client's token was issued, if it has one.
    pub fn issued(&self) -> Option<Option<u64>> {
        self.lock().issued
    }

    /// Ends the reading, and keeps only the permit.
    pub fn into_permit(self) -> Permit {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).permit
    }

    /// Asks for `pattern` to be read. Returns the number with which [`finish`](Self::finish) or
    /// [`give_up`](Self::give_up) is called, or none if it is read already.
    ///
    /// # Errors
    /// If this connection cannot read it, or is no more.
    pub fn begin(&self, pattern: &Pattern) -> Result<Option<u64>, Problem> {
        let mut state = self.lock();
        state.check_alive()?;
        if state.reads(pattern) || state.joins(pattern) {
            state.mark_added(pattern)?;
            return Ok(None);
        }
        if self.about.is_raw {
            let detail = "this event stream has format=raw, in which no event names its topic; open it with format=envelope, or at /events";
            return Err(Problem::new(Code::Conflict, detail).about(pattern));
        }
        state.check_room(pattern)?;
        Ok(Some(state.changes().begin(pattern.clone())))
    }

    /// Adds the subscription to `pattern` that was begun, unless the command was overtaken.
    ///
    /// # Errors
    /// If the connection is no more.
    pub fn finish(&self, number: u64, pattern: Pattern, subscription: Subscription) -> Result<(), Problem> {
        let mut state = self.lock();
        if !state.changes().finish(number) {
            state.count_topics(0);
            return Ok(());
        }
        state.check_alive()?;
        if state.reads(&pattern) || state.joins(&pattern) {
            state.count_topics(0);
            return state.mark_added(&pattern);
        }
        // From here on a group gives no ephemeral message in the place of this connection.
        let ephemerals_since = Some(state.subscription().ephemerals_now());
        state.changes().add(&pattern);
        state.joining.push_back(Joining {
            pattern,
            subscription,
            is_of_command: true,
            is_asked: false,
            upto: None,
            ephemerals_since,
        });
        state.wake();
        Ok(())
    }

    /// Gives up a pattern that was not begun.
    pub fn give_up(&self, number: u64) {
        let mut state = self.lock();
        state.changes().finish(number);
        state.count_topics(0);
    }

    /// Stops reading `pattern`. The client is given nothing of it that is published later.
    ///
    /// # Errors
    /// If the connection is no more, or if too much waits for its reader.
    pub fn remove(&self, pattern: &Pattern) -> Result<(), Problem> {
        let mut state = self.lock();
        state.check_alive()?;
        if let Some(changes) = &mut state.changes {
            changes.overtake(pattern);
        }
        if state.reads(pattern) || state.joins(pattern) {
            // Its messages keep coming, because the subject's list has it.
            if !state.is_listed(pattern) {
                state.changes().tell(pattern, Told::Removed)?;
            }
            if state.joining.iter().any(|joining| joining.is_asked && joining.pattern == *pattern) {
                state.changes().answer(Event::Overtaken(pattern.clone()));
            }
            state.remove(pattern);
            state.wake();
        }
        Ok(())
    }

    /// Ends the connection. Its client is given nothing more.
    pub fn end(&self, code: Code) {
        let mut state = self.lock();
        // Otherwise the group would still give messages.
        state.leave_group();
        state.ended.get_or_insert(code);
        state.wake();
    }

    /// Notes that the task has left, so that later commands do not find a connection here.
    pub fn close(&self) {
        let mut state = self.lock();
        state.ended.get_or_insert(Code::Disconnected);
        (state.task, state.present) = (None, None);
    }
}

const ALONE: &str = "a connection reads by itself unless a group does";

fn alone(subscription: &mut Option<Box<Subscription>>) -> &mut Subscription {
    subscription.as_mut().expect(ALONE)
}
impl State {
    fn changes(&mut self) -> &mut Changes {
        self.changes.get_or_insert_default()
    }

    fn is_added(&self, pattern: &Pattern) -> bool {
        self.changes.as_ref().is_some_and(|changes| changes.has_added(pattern))
    }

    /// Notes that a command has added a pattern that is read already. The first time, the client is told.
    fn mark_added(&mut self, pattern: &Pattern) -> Result<(), Problem> {
        if self.is_added(pattern) {
            return Ok(());
        }
        // From the answer on, the client misses no ephemeral message, also while it has yet to catch up.
        if self.reads(pattern) {
            self.changes().tell(pattern, Told::Added)?;
            let subscription = self.subscription();
            subscription.read_ephemerals_from_now(pattern);
            subscription.read_also(pattern, true);
        }
        if self.joins(pattern) {
            let now = self.subscription().ephemerals_now();
            let joining = self.joining.iter_mut().filter(|joining| joining.pattern == *pattern);
            joining.for_each(|joining| _ = joining.ephemerals_since.get_or_insert(now));
        }
        self.changes().add(pattern);
        self.wake();
        Ok(())
    }

    fn check_alive(&self) -> Result<(), Problem> {
        if self.ended.is_some() { Err(super::across::no_connection()) } else { Ok(()) }
    }

    fn check_room(&mut self, pattern: &Pattern) -> Result<(), Problem> {
        if let Some(limit) = self.is_full(pattern) {
            let detail = format!("limit reached: a connection reads up to {limit}; remove one first");
            return Err(Problem::new(Code::Conflict, detail).about(pattern));
        }
        if self.count_topics(1) { Ok(()) } else { Err(topic_limit_reached().about(pattern)) }
    }

    fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}
