//! The subscription of one connection: shared between its task, which reads, and the commands, which change it.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use time::OffsetDateTime;

use super::changes::{Changes, Told};
use crate::{
    broker::{Delivery, Join, ListChange, Present, Subscription},
    http::{
        MAX_TOPICS, MAX_WILDCARDS,
        group::{Comer, Given, Groups, Left, Parked},
        metrics::{Permit, Transport},
        problem::{Code, Problem},
        topic_limit_reached,
    },
    message::{Id, Pattern, PatternSet},
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
    taken_over: Option<TakenOver>,
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
    /// A message or a gap of a pattern that is joining.
    Replay(Delivery),
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
                state.changes().refuse(pattern);
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
    /// The next event of a connection that reads by itself. Messages and gaps come only while the transport `has_room`.
    pub fn poll(&mut self, cx: &mut Context<'_>, has_room: bool) -> Poll<Event> {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        if let Some(code) = self.ended {
            return Poll::Ready(Event::Ended(code));
        }
        if !has_room {
            return Poll::Pending;
        }
        if let Some(event) = self.changes.as_mut().and_then(|changes| changes.next()) {
            return Poll::Ready(event);
        }
        loop {
            let subscription = alone(&mut self.subscription);
            subscription.hold_ephemerals(!self.joining.is_empty());
            let was_due = subscription.is_at_list_change();
            let list_change = subscription.poll_mine(cx);
            self.bound_joining();
            let subscription = alone(&mut self.subscription);
            match list_change {
                Poll::Ready(Some(change)) => return Poll::Ready(self.list_changed(change)),
                Poll::Ready(None) => return self.poll_subscription(cx),
                // Read up to the change first.
                Poll::Pending => {}
            }
            if let Poll::Ready(delivery) = subscription.poll_delivery(cx) {
                self.permit.note(&delivery, false);
                return Poll::Ready(Event::Delivery(delivery));
            }
            if was_due || !subscription.is_at_list_change() {
                return Poll::Pending;
            }
        }
    }

    /// Notes a change of the list of the subject.
    fn list_changed(&mut self, change: ListChange) -> Event {
        if let Some(present) = &mut self.present {
            present.note(&change);
        }
        if !self.count_topics(0) {
            // The client comes again with its cursor, once there is room.
            self.ended = Some(Code::Overloaded);
            return Event::Ended(Code::Overloaded);
        }
        match change {
            ListChange::Added(topic) => Event::Added(topic),
            ListChange::Removed(topic) => Event::Removed(topic),
        }
    }

    /// A topic that joins is read up to the place where the list of the subject has added it.
    fn bound_joining(&mut self) {
        let subscription = alone(&mut self.subscription);
        for joining in self.joining.iter_mut().filter(|joining| joining.upto.is_none()) {
            if subscription.reads(&joining.pattern) {
                joining.upto = Some(subscription.cursor());
                subscription.read_ephemerals_since(&joining.pattern, joining.ephemerals_since);
                subscription.read_also(&joining.pattern, true);
            }
        }
    }

    fn poll_subscription(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let subscription = alone(&mut self.subscription);
        let Some(joining) = self.joining.front_mut() else {
            let delivery = std::task::ready!(subscription.poll_delivery(cx));
            self.permit.note(&delivery, false);
            return Poll::Ready(Event::Delivery(delivery));
        };
        let joined = match joining.upto {
            Some(upto) => subscription.poll_beside(&mut joining.subscription, upto, cx),
            None => subscription.poll_join(&mut joining.subscription, cx),
        };
        match std::task::ready!(joined) {
            Join::Live(delivery) => {
                self.permit.note(&delivery, false);
                Poll::Ready(Event::Delivery(delivery))
            }
            Join::Replay(delivery) => {
                self.permit.note(&delivery, true);
                Poll::Ready(Event::Replay(delivery))
            }
            Join::SameCursor => {
                let Some(joining) = self.joining.pop_front() else { return Poll::Pending };
                Poll::Ready(self.merge(joining))
            }
        }
    }

    fn merge(&mut self, joining: Joining) -> Event {
        let Joining { pattern, subscription, is_asked, upto, ephemerals_since } = joining;
        if upto.is_none() {
            let own = alone(&mut self.subscription);
            own.absorb(subscription, ephemerals_since);
            own.read_also(&pattern, true);
        }
        // Otherwise topics that are added one after the other would hold them for ever.
        let others_since = self.joining.iter().filter_map(|joining| joining.ephemerals_since).min();
        alone(&mut self.subscription).take_held_ephemerals(others_since);
        self.count_topics(0);
        let is_added = self.is_added(&pattern);
        if is_added && is_asked {
            // The client is answered first, and then told.
            self.changes().tell_next(&pattern, Told::Added);
        }
        if is_added && !is_asked { Event::Added(pattern) } else { Event::Joined(pattern) }
    }

    /// Lets a group read for this connection, if it only follows and others stand where it stands.
    pub fn park(&mut self, groups: &Arc<Groups>, comer: &Comer<'_>, waker: &Waker) -> bool {
        let is_changing = self.changes.as_ref().is_some_and(|changes| !changes.is_quiet());
        if self.ended.is_some() || is_changing || !self.joining.is_empty() {
            return false;
        }
        let Some(subscription) = &mut self.subscription else { return true };
        self.parked = groups.park(subscription, comer, waker);
        if self.parked.is_some() {
            self.subscription = None;
        }
        self.parked.is_some()
    }

    /// Takes over from the group that reads for this connection, if one does. From then on it writes nothing here.
    /// Returns what it has written since this was last called.
    pub fn take_over(&mut self) -> Option<TakenOver> {
        self.leave_group();
        self.taken_over.take()
    }

    /// Reads by itself from now on. True if a group has read for this connection.
    fn leave_group(&mut self) -> bool {
        let left = self.parked.take().and_then(|parked| parked.leave());
        left.is_some_and(|Left { subscription, rest, given }| {
            self.permit.was_given(given.messages);
            self.subscription = Some(Box::new(subscription));
            self.taken_over = Some(TakenOver { rest, given });
            true
        })
    }

    /// The subscription. If a group reads for this connection, it reads by itself from now on, and its task goes on.
    fn subscription(&mut self) -> &mut Subscription {
        if self.leave_group() {
            self.wake();
        }
        alone(&mut self.subscription)
    }

    fn pattern_set(&self) -> &PatternSet {
        match &self.parked {
            Some(parked) => parked.patterns(),
            None => self.subscription.as_ref().expect(ALONE).pattern_set(),
        }
    }

    pub fn permit(&mut self) -> &mut Permit {
        &mut self.permit
    }

    pub fn cursor(&self) -> Id {
        match &self.parked {
            Some(parked) => parked.cursor(),
            None => self.subscription.as_ref().expect(ALONE).cursor(),
        }
    }

    /// The list of the subject, if it is read too.
    pub fn mine(&self) -> Option<Vec<Pattern>> {
        let entries = self.subscription.as_ref()?.mine()?;
        Some(entries.keys().cloned().collect())
    }

    /// True while the log is being read, so that more items may follow soon.
    pub fn is_reading(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_reading())
    }

    /// True if the last read of the log failed.
    pub fn has_failed(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.has_failed())
    }

    /// True if `pattern` is read.
    pub fn reads(&self, pattern: &Pattern) -> bool {
        self.pattern_set().contains(pattern)
    }

    /// True if `pattern` is read because of the list of the subject alone.
    pub fn is_only_listed(&self, pattern: &Pattern) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_only_listed(pattern))
    }

    fn is_listed(&self, pattern: &Pattern) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_listed(pattern))
    }

    /// Notes that the client asks for a pattern that the list has too.
    pub fn read_also(&mut self, pattern: &Pattern) {
        self.subscription().read_also(pattern, true);
    }

    /// True if `pattern` was added, and is not merged yet.
    pub fn joins(&self, pattern: &Pattern) -> bool {
        self.joining.iter().any(|joining| joining.pattern == *pattern)
    }

    /// True if the client waits until the pattern that it asked for is merged.
    pub fn is_asked(&self) -> bool {
        let has_refused = self.changes.as_ref().is_some_and(|changes| changes.has_refused());
        has_refused || self.joining.iter().any(|joining| joining.is_asked)
    }

    /// True if everything that was asked for is done and told.
    pub fn is_settled(&self) -> bool {
        let is_told = self.changes.as_ref().is_none_or(|changes| changes.is_told());
        self.joining.is_empty() && is_told && !self.is_reading()
    }

    /// The patterns that the client's own grants must cover.
    pub fn own_patterns(&self) -> impl Iterator<Item = &Pattern> {
        let is_own = |pattern: &&Pattern| !self.is_added(pattern) && !self.is_only_listed(pattern);
        self.patterns().filter(is_own)
    }

    /// Notes when the client's new token was issued.
    pub fn renewed(&mut self, issued: Option<Option<u64>>) {
        self.issued = issued;
    }

    /// Makes the subject present in one topic more. Gives it back if the topic is read no longer.
    pub fn be_present(&mut self, topic: &Pattern, present: Present) -> Option<Present> {
        if self.ended.is_some() || !(self.reads(topic) || self.joins(topic)) {
            return Some(present);
        }
        match &mut self.present {
            Some(known) => known.absorb(present),
            none => *none = Some(Box::new(present)),
        }
        None
    }

    /// True if the subject is present in this topic by this connection.
    pub fn is_present(&self, topic: &Pattern) -> bool {
        self.present.as_ref().is_some_and(|present| present.is_in(topic.as_str()))
    }

    /// Every pattern that is read, or about to be merged.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.pattern_set().iter().chain(self.joining.iter().map(|joining| &joining.pattern))
    }

    /// Patterns among which are the first `count` in order of those that are read, and as many that are about to be
    /// merged. A subscription has its topics in order, and then its patterns with wildcards.
    pub fn first_patterns(&self, count: usize) -> impl Iterator<Item = &Pattern> {
        let set = self.pattern_set();
        let first = set.topics().iter().take(count);
        let wildcards = set.wildcards().iter().take(count);
        first.chain(wildcards).chain(self.joining.iter().take(count).map(|joining| &joining.pattern))
    }

    /// How many patterns are read, or about to be merged.
    pub fn count(&self) -> usize {
        self.pattern_set().len() + self.joining.len()
    }

    /// How far the items that the connection has yet to give out reach back, in milliseconds of the messages' time.
    pub fn behind_ms(&self) -> u64 {
        let joining = self.joining.iter().map(|joining| joining.subscription.behind_ms()).max();
        let own = match &self.parked {
            Some(parked) => parked.behind_ms(),
            None => self.subscription.as_ref().expect(ALONE).behind_ms(),
        };
        own.max(joining.unwrap_or_default())
    }

    /// How many patterns are read, or about to be.
    pub fn width(&self) -> usize {
        self.count() + self.begun().count()
    }

    fn begun(&self) -> impl Iterator<Item = &Pattern> {
        self.changes.iter().flat_map(|changes| changes.begun())
    }

    fn wildcards(&self) -> usize {
        let joining = self.joining.iter().map(|joining| &joining.pattern);
        let others = joining.chain(self.begun()).filter(|pattern| pattern.has_wildcard()).count();
        self.pattern_set().wildcards().len() + others
    }

    /// True if one more pattern would be over a limit of a connection.
    pub fn is_full(&self, pattern: &Pattern) -> Option<&'static str> {
        if self.width() >= MAX_TOPICS {
            return Some("10000 topics and patterns");
        }
        (pattern.has_wildcard() && self.wildcards() >= MAX_WILDCARDS)
            .then_some("100 patterns with a wildcard")
    }

    /// Counts so many patterns more than those that are read. False if this client may read no more now.
    pub fn count_topics(&mut self, more: usize) -> bool {
        self.permit.set_topics(self.width() + more)
    }

    /// Reads what the client asked for, once both subscriptions are at the same cursor.
    pub fn join(&mut self, pattern: Pattern, subscription: Subscription) {
        self.joining.push_back(Joining {
            pattern,
            subscription,
            is_asked: true,
            upto: None,
            ephemerals_since: None,
        });
    }

    /// Notes that the client asks for a pattern that a command has added, and that is not merged yet.
    pub fn ask_for(&mut self, pattern: &Pattern) {
        let joining = self.joining.iter_mut().filter(|joining| joining.pattern == *pattern);
        joining.for_each(|joining| joining.is_asked = true);
    }

    /// Stops reading `pattern`, unless the list of the subject has it.
    pub fn remove(&mut self, pattern: &Pattern) {
        let subscription = self.subscription();
        match subscription.is_listed(pattern) {
            true => subscription.read_also(pattern, false),
            false => _ = subscription.remove(pattern),
        }
        self.joining.retain(|joining| joining.pattern != *pattern);
        if self.joining.is_empty() {
            self.subscription().read_alone();
        }
        if let Some(changes) = &mut self.changes {
            changes.forget(pattern);
        }
        if let Some(present) = &mut self.present {
            present.leave(pattern.as_str());
        }
        self.count_topics(0);
    }

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
