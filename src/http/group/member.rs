//! One reader in a group, and how it leaves.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::SystemTime,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::Group;
use crate::{
    broker::{Place, Subscription},
    http::{gzip::Sum, shared_socket::SharedSocket},
    message::{Id, PatternSet},
};

/// A reader, as its group knows it.
pub struct Member {
    pub socket: SharedSocket,
    /// Messages may exclude it.
    pub connection: Arc<str>,
    /// Its rights end then.
    pub ends_at: Option<SystemTime>,
    pub seat: Arc<Seat>,
    /// The number of the batch after which it joined.
    pub since: u64,
    /// All that the group had given by then.
    pub given: Given,
}

/// How much was written, and when the last of it.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub messages: usize,
    pub bytes: usize,
    /// The sum of the messages before they were coded in gzip.
    pub plain: Sum,
    pub at: Instant,
}

impl Given {
    pub fn nothing() -> Self {
        Self { messages: 0, bytes: 0, plain: Sum::default(), at: Instant::now() }
    }

    /// The part that was given after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        let (messages, bytes) = (self.messages - earlier.messages, self.bytes - earlier.bytes);
        Self { messages, bytes, plain: self.plain.since(earlier.plain), at: self.at }
    }
}

/// Members of a group stand here.
#[derive(Clone)]
pub struct Stand {
    pub place: Place,
    /// All that the group has given out up to there.
    pub given: Given,
}

/// The seat of a member: the group puts here what the member needs to go on by itself.
pub struct Seat {
    pub task: Waker,
    // A std mutex: no await happens while it is held.
    state: Mutex<Sitting>,
}

enum Sitting {
    /// A member of the group.
    Sits,
    /// The group has let it go.
    Left(Box<Left>),
    /// It has gone on.
    Gone,
}

/// A reader takes this along when it leaves.
pub struct Left {
    pub subscription: Subscription,
    /// The rest of a batch of which the socket has taken the beginning. It must be written before anything else.
    pub rest: Bytes,
    /// So much has the group written to the reader, the rest included.
    pub given: Given,
}

impl Left {
    /// The member follows before it leaves, so its tails never lose their last follower.
    pub fn of(reading: &Subscription, stand: Stand, rest: Bytes, member: &Member) -> Self {
        let subscription = reading.fork(stand.place, member.connection.clone());
        Self { subscription, rest, given: stand.given.since(member.given) }
    }
}

impl Seat {
    pub fn new(task: Waker) -> Self {
        Self { task, state: Mutex::new(Sitting::Sits) }
    }

    fn state(&self) -> MutexGuard<'_, Sitting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the reader go on by itself, and wakes it.
    pub fn put(&self, left: Left) {
        *self.state() = Sitting::Left(Box::new(left));
        self.task.wake_by_ref();
    }

    /// Notes that the reader goes on. Returns what it takes along if the group has let it go, and nothing more if it has
    /// gone on before. `None` if it is a member still: then the group must take it out.
    pub fn leave(&self) -> Option<Option<Left>> {
        match std::mem::replace(&mut *self.state(), Sitting::Gone) {
            Sitting::Sits => None,
            Sitting::Left(left) => Some(Some(*left)),
            Sitting::Gone => Some(None),
        }
    }

    /// The cursor of a reader that the group has let go.
    pub fn cursor(&self) -> Option<Id> {
        match &*self.state() {
            Sitting::Left(left) => Some(left.subscription.cursor()),
            _ => None,
        }
    }

    /// The same for [`Subscription::behind_ms`].
    pub fn behind_ms(&self) -> Option<u64> {
        match &*self.state() {
            Sitting::Left(left) => Some(left.subscription.behind_ms()),
            _ => None,
        }
    }
}

/// A place in a group. Dropping it leaves, which costs a subscription that is dropped at once.
pub struct Parked {
    group: Arc<Group>,
    key: usize,
    seat: Arc<Seat>,
}

impl Parked {
    pub fn new(group: Arc<Group>, key: usize, seat: Arc<Seat>) -> Self {
        Self { group, key, seat }
    }

    /// Goes on by itself. From then on the group does not write to the socket. `None` if it has left before.
    pub fn leave(&self) -> Option<Left> {
        self.group.leave(self.key, &self.seat)
    }

    pub fn patterns(&self) -> &PatternSet {
        &self.group.key.patterns
    }

    /// The point up to which the reader was given everything.
    pub fn cursor(&self) -> Id {
        self.group.cursor_of(self.key, &self.seat)
    }

    /// See [`Subscription::behind_ms`].
    pub fn behind_ms(&self) -> u64 {
        self.group.behind_ms(self.key, &self.seat)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        drop(self.leave());
    }
}
