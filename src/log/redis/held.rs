//! The messages that the tails of topics hold, bounded together.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    log::{Tail, cost, hot::Hot},
    message::{Id, Message},
};

/// How many messages the tail of a topic holds; who is further behind reads the store.
pub const MAX_TAIL_MESSAGES: usize = 1024;
/// How many bytes.
const MAX_TAIL_BYTES: usize = 4 << 20;
/// How many bytes are read from the store to fill a tail, and how many it holds at most while it is filled.
pub const FILL_BYTES: usize = MAX_TAIL_BYTES / 2;
/// How many bytes all of them hold, as retention counts them. Tiny messages of as many topics take three times that.
const MAX_BYTES: usize = 32 << 20;

#[derive(Default)]
pub struct Held {
    /// Every message that is held, about in the order of ids, and some that are gone meanwhile.
    order: VecDeque<(Id, Arc<Tail>)>,
    messages: usize,
    bytes: usize,
    hot: Hot,
}

impl Held {
    /// Appends the newest message of a topic.
    pub fn push(&mut self, tail: &Arc<Tail>, message: Arc<Message>) {
        self.count(&message);
        self.order.push_back((message.id, tail.clone()));
        self.hot.push(message.clone());
        tail.push(message);
        self.bound(tail);
    }

    /// Counts what was put before the messages of a tail, oldest first.
    pub fn prepended(&mut self, tail: &Arc<Tail>, older: &[Arc<Message>]) {
        for message in older.iter().rev() {
            self.count(message);
            self.order.push_front((message.id, tail.clone()));
        }
        self.bound(tail);
    }

    /// Lets go of everything of a topic up to `upto`: whoever needs it reads the store.
    pub fn forget(&mut self, tail: &Tail, upto: Id) {
        tail.forget(upto, |message| self.let_go(&message));
    }

    /// Lets go of everything of a topic up to `upto`, which is not retained any more.
    pub fn remove(&mut self, tail: &Tail, upto: Id) {
        tail.remove(upto, |message| self.let_go(&message));
    }

    fn let_go(&mut self, message: &Message) {
        // The tails of patterns may hold it still.
        message.trim();
        self.messages -= 1;
        self.bytes -= cost(message);
    }

    /// Lets old messages forget their renderings, and gives back the room of a burst that has passed.
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
            self.forget(tail, oldest);
        }
        while self.bytes > MAX_BYTES
            && let Some((id, tail)) = self.order.pop_front()
        {
            if tail.ring().oldest().is_some_and(|oldest| oldest.id == id) {
                self.forget(&tail, id);
            }
        }
        if self.order.len() > 2 * self.messages + 1024 {
            self.clear_out();
        }
    }

    fn clear_out(&mut self) {
        self.order.retain(|(id, tail)| tail.ring().complete_from() < *id);
    }
}
