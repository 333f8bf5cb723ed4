//! The messages in the tails of topics, with one bound for all of them.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    log::{Tail, cost, hot::Hot},
    message::{Id, Message},
};

/// How many messages the tail of a topic holds. A reader that is further behind reads the store.
pub const MAX_TAIL_MESSAGES: usize = 1024;
/// How many bytes the tail of a topic holds.
const MAX_TAIL_BYTES: usize = 4 << 20;
/// How many bytes are read from the store to fill a tail. A tail that holds as many is not filled further.
pub const FILL_BYTES: usize = MAX_TAIL_BYTES / 2;
/// How many bytes all tails hold, as retention counts them. If every topic has one tiny message, the process
/// takes three times that.
const MAX_BYTES: usize = 32 << 20;

#[derive(Default)]
pub struct Held {
    /// Every message in the tails, roughly in the order of ids. Some of them are gone meanwhile.
    order: VecDeque<(Id, Arc<Tail>)>,
    messages: usize,
    bytes: usize,
    hot: Hot,
}

impl Held {
    /// Appends the newest message of a topic.
    pub fn push(&mut self, tail: &Arc<Tail>, message: Message) {
        self.count(&message);
        self.order.push_back((message.id, tail.clone()));
        self.hot.push(message.clone());
        tail.push(message);
        self.bound(tail);
    }

    /// Counts older messages that were put before the others of a tail.
    pub fn prepended(&mut self, tail: &Arc<Tail>, older: &[Message]) {
        for message in older.iter().rev() {
            self.count(message);
            self.order.push_front((message.id, tail.clone()));
        }
        self.bound(tail);
    }

    /// Drops the messages of a topic up to `upto` from memory: readers that need them read the store.
    pub fn drop_upto(&mut self, tail: &Tail, upto: Id) {
        tail.drop_upto(upto, |message| self.let_go(&message));
    }

    /// Drops the messages of a topic up to `upto`, which are not retained any more.
    pub fn remove(&mut self, tail: &Tail, upto: Id) {
        tail.remove_upto(upto, |message| self.let_go(&message));
    }

    fn let_go(&mut self, message: &Message) {
        // The tails of patterns may still hold the message.
        message.trim();
        self.messages -= 1;
        self.bytes -= cost(message);
    }

    /// Drops the renderings of old messages, and returns the memory of a burst that has passed.
    pub fn give_back(&mut self, now: Id) {
        self.hot.cool_at(now);
        self.clear_out();
        if self.order.capacity() > 4096 && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(self.order.len() * 2);
        }
    }

    fn count(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += cost(message);
    }

    fn bound(&mut self, tail: &Arc<Tail>) {
        loop {
            let over = {
                let ring = tail.ring();
                let is_over =
                    ring.len() > MAX_TAIL_MESSAGES || (ring.bytes() > MAX_TAIL_BYTES && ring.len() > 1);
                if is_over { ring.oldest().map(|oldest| oldest.id) } else { None }
            };
            let Some(oldest) = over else { break };
            self.drop_upto(tail, oldest);
        }
        while self.bytes > MAX_BYTES
            && let Some((id, tail)) = self.order.pop_front()
        {
            if tail.ring().oldest().is_some_and(|oldest| oldest.id == id) {
                self.drop_upto(&tail, id);
            }
        }
        if self.order.len() > 2 * self.messages + 1024 {
            self.clear_out();
        }
    }

    fn clear_out(&mut self) {
        self.order.retain(|(id, tail)| tail.ring().complete_after() < *id);
    }
}
