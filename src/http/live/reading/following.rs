//! How a connection goes on: by itself from one event to the next, or in a group that reads for it.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{Event, Joining, State, TakenOver, alone};
use crate::{
    broker::{Join, ListChange, Subscription},
    http::{
        group::{Comer, Groups, Left},
        live::changes::Told,
        problem::Code,
    },
};

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
                Poll::Ready(Event::Replay(joining.pattern.clone(), delivery))
            }
            Join::SameCursor => {
                let Some(joining) = self.joining.pop_front() else { return Poll::Pending };
                Poll::Ready(self.merge(joining))
            }
        }
    }

    fn merge(&mut self, joining: Joining) -> Event {
        let Joining { pattern, subscription, is_of_command, is_asked, upto, ephemerals_since } = joining;
        if upto.is_none() {
            let own = alone(&mut self.subscription);
            own.absorb(subscription, ephemerals_since);
            own.read_also(&pattern, true);
        }
        // Otherwise topics that are added one after the other would hold them for ever.
        let others_since = self.joining.iter().filter_map(|joining| joining.ephemerals_since).min();
        alone(&mut self.subscription).take_held_ephemerals(others_since);
        self.count_topics(0);
        match (self.is_added(&pattern), is_asked) {
            (false, _) => Event::Joined(pattern),
            (true, false) => Event::Added(pattern),
            // The replay belongs to the frame that follows it. The start was that of the command.
            (true, true) if is_of_command => {
                self.changes().answer(Event::Joined(pattern.clone()));
                Event::Added(pattern)
            }
            (true, true) => {
                self.changes().tell_next(&pattern, Told::Added);
                Event::Joined(pattern)
            }
        }
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
        self.taken_over.take().map(|taken_over| *taken_over)
    }

    /// Reads by itself from now on. True if a group has read for this connection.
    pub(super) fn leave_group(&mut self) -> bool {
        let left = self.parked.take().and_then(|parked| parked.leave());
        left.is_some_and(|Left { subscription, rest, given }| {
            self.permit.was_given(given.messages);
            self.subscription = Some(Box::new(subscription));
            self.taken_over = Some(Box::new(TakenOver { rest, given }));
            true
        })
    }

    /// The subscription. If a group reads for this connection, it reads by itself from now on, and its task goes on.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        if self.leave_group() {
            self.wake();
        }
        alone(&mut self.subscription)
    }
}
