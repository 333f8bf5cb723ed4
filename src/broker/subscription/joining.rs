//! Two subscriptions of one connection, until one of them is merged into the other.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{Delivery, Subscription};
use crate::message::Id;

/// An item of [`Subscription::poll_join`].
#[derive(Clone, Debug)]
pub enum Join {
    /// From the subscription itself.
    Live(Delivery),
    /// From the subscription that will be merged into it.
    Replay(Delivery),
    /// Both subscriptions are at the same cursor now.
    SameCursor,
}

impl Subscription {
    /// Reads whichever of the two subscriptions is behind, until both have the same cursor.
    ///
    /// It gives out the items of this one, then those of `other`, and then [`Join::SameCursor`]. After that
    /// call [`absorb`](Self::absorb).
    pub fn poll_join(&mut self, other: &mut Self, cx: &mut Context<'_>) -> Poll<Join> {
        self.read_until(self.position.settled().max(other.position.settled()));
        if let Poll::Ready(delivery) = self.poll_delivery(cx) {
            return Poll::Ready(Join::Live(delivery));
        }
        if self.cursor < self.until {
            return Poll::Pending;
        }
        other.read_until(self.cursor);
        match other.poll_delivery(cx) {
            Poll::Ready(delivery) => Poll::Ready(Join::Replay(delivery)),
            Poll::Pending if other.cursor < other.until => Poll::Pending,
            Poll::Pending => Poll::Ready(Join::SameCursor),
        }
    }

    /// Reads this subscription, and `other` up to an id, after which this one reads the same. It gives out the items of
    /// both, and [`Join::SameCursor`] once `other` is there.
    pub fn poll_beside(&mut self, other: &mut Self, upto: Id, cx: &mut Context<'_>) -> Poll<Join> {
        self.read_until(Id::MAX);
        if let Poll::Ready(delivery) = self.poll_delivery(cx) {
            return Poll::Ready(Join::Live(delivery));
        }
        other.read_until(upto);
        match other.poll_delivery(cx) {
            Poll::Ready(delivery) => Poll::Ready(Join::Replay(delivery)),
            Poll::Pending if other.cursor < other.until => Poll::Pending,
            Poll::Pending => Poll::Ready(Join::SameCursor),
        }
    }

    /// Merges `other` into this subscription. Both must be at the same cursor, as [`Join::SameCursor`] says. The ephemeral
    /// messages of its patterns are read after the count `since`, or if there is none, from the cursor on.
    pub fn absorb(&mut self, other: Self, since: Option<u64>) {
        self.read_until(Id::MAX);
        self.position.join(
            &other.position,
            |topic| self.patterns.matches(topic),
            |topic| other.patterns.matches(topic),
        );
        let from_here =
            self.seen_ephemerals.map(|seen| self.log.ephemerals().count_at(self.cursor).max(seen));
        // The tails of `other` wake the follower of `other`. Make them wake this one too.
        for (pattern, followed) in other.patterns.iter().zip(&other.followed) {
            if let Some(index) = Arc::make_mut(&mut self.patterns).insert(pattern.clone()) {
                self.followed.insert(index, followed.share(&self.follower));
                self.read_ephemerals_since(pattern, since.or(from_here));
            }
        }
        // A page that is being read does not cover the patterns of the other.
        self.page = None;
        self.has_failed = false;
        // Messages that arrived in between have not woken this follower.
        self.looked_upto = None;
        self.follower.wake();
    }

    /// Reads on alone, after a subscription that was to be merged into this one was dropped.
    pub fn read_alone(&mut self) {
        self.read_until(Id::MAX);
    }
}
