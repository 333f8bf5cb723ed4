//! The newest messages of one topic or pattern, in memory, and the followers to wake when there are more.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Context,
};

use futures_util::task::AtomicWaker;

use super::{Expiry, Followers, Position, cost};
use crate::message::{Id, Message, Pattern};

/// Wakes the task of one subscription. Its tails call it when a message comes.
#[derive(Debug)]
pub struct Follower {
    /// True if a message has come since the task last looked.
    is_woken: AtomicBool,
    task: AtomicWaker,
    /// For how many readers it follows.
    readers: AtomicUsize,
}

impl Default for Follower {
    /// A follower that has not looked yet.
    fn default() -> Self {
        Self { is_woken: AtomicBool::new(true), task: AtomicWaker::new(), readers: AtomicUsize::new(1) }
    }
}

impl Follower {
    /// Registers the task, and takes its wake-up. True if there was one since the last call: then the task must
    /// read the tails.
    pub fn take_wakeup(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.is_woken.swap(false, Ordering::AcqRel)
    }

    /// Follows for so many readers from now on. At first it follows for one.
    pub fn count_as(&self, readers: usize) {
        self.readers.store(readers, Ordering::Relaxed);
    }

    /// True if a message has come since the task last looked.
    pub fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }

    /// Wakes the task, unless it is woken already.
    pub fn wake(&self) {
        // If the task is woken already, it will find this message too when it looks.
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }
}

/// The newest messages of a topic or a pattern.
#[derive(Debug)]
pub struct Tail {
    name: Pattern,
    /// A reader that has everything up to this id need not look at this tail. Reading it needs no lock.
    newest: AtomicU64,
    // Std mutexes: no await happens while one is held.
    ring: Mutex<Ring>,
    followers: Mutex<Followers>,
}

/// The messages of a [`Tail`].
#[derive(Debug)]
pub struct Ring {
    messages: VecDeque<Message>,
    bytes: usize,
    /// The ring holds every message after this id.
    complete_after: Id,
    /// Messages up to this id were removed from the log: `prepend` refuses them.
    removed_upto: Id,
}

/// The tail does not hold everything after the reader's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncovered;

impl Tail {
    /// An empty tail that will hold every message after `complete_after`.
    pub fn new(name: Pattern, complete_after: Id) -> Self {
        Self {
            name,
            newest: AtomicU64::new(complete_after.get()),
            ring: Mutex::new(Ring {
                messages: VecDeque::new(),
                bytes: 0,
                complete_after,
                removed_upto: Id::ZERO,
            }),
            followers: Mutex::default(),
        }
    }

    /// The topic or pattern whose messages this holds.
    pub fn name(&self) -> &Pattern {
        &self.name
    }

    /// A reader that has everything up to this id need not look at this tail.
    pub fn newest(&self) -> Id {
        Id::new(self.newest.load(Ordering::Acquire))
    }

    /// Locks the messages. Hold it for a short time, and over no await.
    pub fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followers(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the newest message. The watermark may move only after this.
    pub fn push(&self, message: Message) {
        let id = message.id;
        self.ring().push(message);
        self.newest.store(id.get(), Ordering::Release);
    }

    /// Drops the messages up to `upto` from memory. The log may still retain them.
    pub fn drop_upto(&self, upto: Id, mut dropped: impl FnMut(Message)) {
        let mut ring = self.ring();
        while ring.oldest().is_some_and(|oldest| oldest.id <= upto) {
            ring.pop().into_iter().for_each(&mut dropped);
        }
        ring.complete_after = ring.complete_after.max(upto);
        drop(ring);
        self.newest.fetch_max(upto.get(), Ordering::AcqRel);
    }

    /// Drops the messages up to `upto`, because the log has removed them. The tail does not take them back.
    pub fn remove_upto(&self, upto: Id, dropped: impl FnMut(Message)) {
        self.drop_upto(upto, dropped);
        let mut ring = self.ring();
        ring.removed_upto = ring.removed_upto.max(upto);
    }

    /// Puts `older` messages, oldest first, before those of the tail. The tail then holds every message after
    /// `after`.
    ///
    /// Does nothing and returns false if the tail no longer begins after `expected`, or if some of these
    /// messages were removed from the log since they were read.
    pub fn prepend(&self, older: &[Message], after: Id, expected: Id) -> bool {
        let mut ring = self.ring();
        if ring.complete_after != expected || ring.removed_upto > after {
            return false;
        }
        for message in older.iter().rev() {
            ring.bytes += cost(message);
            ring.messages.push_front(message.clone());
        }
        ring.complete_after = after;
        true
    }

    /// True if the tail holds every message after `position`, and the oldest of them has not expired.
    pub fn covers(&self, position: &Position, expiry: &Expiry) -> bool {
        self.ring().covered_from(position, &self.name, expiry).is_ok()
    }

    /// Adds a follower to wake, and returns the key with which it is removed.
    pub fn add_follower(&self, follower: Arc<Follower>) -> usize {
        self.followers().add(follower)
    }

    /// Removes the follower with this key.
    pub fn remove_follower(&self, key: usize) {
        self.followers().remove(key);
    }

    /// How many followers there are.
    pub fn follower_count(&self) -> usize {
        self.followers().len()
    }

    /// For how many readers they follow.
    pub fn reader_count(&self) -> usize {
        self.followers().iter().map(|follower| follower.readers.load(Ordering::Relaxed)).sum()
    }

    /// True if the tail has no reader and no messages.
    pub fn is_idle(&self) -> bool {
        self.ring().messages.is_empty() && self.followers().len() == 0
    }

    /// Wakes every follower.
    pub fn wake(&self) {
        for follower in self.followers().iter() {
            follower.wake();
        }
    }

    /// Gives `take` up to `limit` messages after `position`. Returns an id: no message up to it is missing.
    fn read(
        &self,
        position: &Position,
        upto: Id,
        expiry: &Expiry,
        limit: usize,
        mut take: impl FnMut(Message),
    ) -> Result<Id, Uncovered> {
        let ring = self.ring();
        let begin = ring.covered_from(position, &self.name, expiry)?;
        let (mut taken, mut end) = (0, None);
        for message in ring.messages.range(begin..).take_while(|message| message.id <= upto) {
            if message.id > position.given(&message.topic) {
                // The log has trimmed it, or will soon, and the tail of a pattern still holds it.
                if message.is_trimmed() || expiry.has_expired(message) {
                    return end.ok_or(Uncovered);
                }
                take(message.clone());
                taken += 1;
            }
            end = Some(message.id);
            if taken == limit {
                return Ok(message.id);
            }
        }
        Ok(upto)
    }
}

impl Ring {
    fn push(&mut self, message: Message) {
        self.bytes += cost(&message);
        self.messages.push_back(message);
    }

    /// Removes the oldest message.
    pub fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.bytes -= cost(&message);
        self.complete_after = self.complete_after.max(message.id);
        // Return the memory of a burst, but not so eagerly that every message frees and allocates again.
        if self.messages.capacity() > 64 && self.messages.len() < self.messages.capacity() / 4 {
            self.messages.shrink_to(self.messages.len() * 2);
        }
        Some(message)
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many messages, and how many bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.len(), self.bytes)
    }

    pub fn complete_after(&self) -> Id {
        self.complete_after
    }

    pub fn oldest(&self) -> Option<&Message> {
        self.messages.front()
    }

    /// The oldest message after `id`.
    pub fn after(&self, id: Id) -> Option<&Message> {
        self.messages.get(self.index_after(id))
    }

    /// The newest messages up to `id`, at most `limit` of them, in the order of ids. Also true if older ones are here.
    pub fn upto(&self, id: Id, limit: usize) -> (impl Iterator<Item = &Message>, bool) {
        let end = self.index_after(id);
        let begin = end.saturating_sub(limit);
        (self.messages.range(begin..end), begin > 0)
    }

    /// The message with this id.
    pub fn find(&self, id: Id) -> Option<&Message> {
        self.after(id.before()).filter(|message| message.id == id)
    }

    /// The oldest of the newest `count` messages.
    pub fn nth_newest(&self, count: usize) -> Option<&Message> {
        if count == 0 { None } else { self.messages.get(self.messages.len().saturating_sub(count)) }
    }

    fn index_after(&self, id: Id) -> usize {
        // Most readers stand just before the newest message.
        match self.messages.len().checked_sub(2).map(|index| self.messages[index].id <= id) {
            Some(true) => self.messages.len() - usize::from(self.messages[self.messages.len() - 1].id > id),
            _ => self.messages.partition_point(|message| message.id <= id),
        }
    }

    /// The index of the first message after `position`, if every message after it is here.
    fn covered_from(&self, position: &Position, name: &Pattern, expiry: &Expiry) -> Result<usize, Uncovered> {
        let begin = self.index_after(position.given(name.as_str()));
        let is_expired = self.messages.get(begin).is_some_and(|message| expiry.has_expired(message));
        let is_covered = position.told_upto(name.as_str()) >= self.complete_after && !is_expired;
        if is_covered { Ok(begin) } else { Err(Uncovered) }
    }
}

/// Reads up to `limit` messages of all `tails` after `position` and up to `upto`, in the order of their ids,
/// each once. Returns an id: no message up to it is missing.
///
/// `upto` must be a watermark that was read before this call.
///
/// # Errors
/// [`Uncovered`] if a tail lacks messages after the position, or if the first message to give was trimmed. The
/// caller must then drop what was taken, and read the log.
pub fn merge<'a>(
    tails: impl Iterator<Item = &'a Arc<Tail>>,
    position: &Position,
    upto: Id,
    expiry: &Expiry,
    limit: usize,
    mut take: impl FnMut(Message),
) -> Result<Id, Uncovered> {
    let mut active = tails.filter(|tail| tail.newest() > position.given(tail.name.as_str()));
    let Some(first) = active.next() else { return Ok(upto) };
    let Some(second) = active.next() else { return first.read(position, upto, expiry, limit, take) };

    let mut heap = BinaryHeap::new();
    let active: Vec<_> = [first, second].into_iter().chain(active).collect();
    for (index, tail) in active.iter().enumerate() {
        let ring = tail.ring();
        let begin = ring.covered_from(position, &tail.name, expiry)?;
        if let Some(message) = ring.messages.get(begin) {
            heap.push(Reverse((message.id, index)));
        }
    }
    let (mut taken, mut end) = (0, None);
    while let Some(Reverse((id, index))) = heap.pop() {
        if id > upto {
            break;
        }
        if taken == limit {
            return end.ok_or(Uncovered);
        }
        let ring = active[index].ring();
        let begin = ring.index_after(id.before());
        // The message may have been trimmed since it was found. The next read tells a gap for it.
        let Some(message) = ring.messages.get(begin).filter(|message| message.id == id) else {
            return end.ok_or(Uncovered);
        };
        if let Some(next) = ring.messages.get(begin + 1) {
            heap.push(Reverse((next.id, index)));
        }
        // A message that several of the tails hold is given once.
        if end != Some(id) && id > position.given(&message.topic) {
            if message.is_trimmed() || expiry.has_expired(message) {
                return end.ok_or(Uncovered);
            }
            taken += 1;
            take(message.clone());
        }
        end = Some(id);
    }
    Ok(upto)
}
