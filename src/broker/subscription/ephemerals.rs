//! The ephemeral messages of one subscription, in the order in which they came.
//!
//! They are read in one walk, and each pattern counts from where it was added. So none is given twice, and none of a
//! pattern that was added is left out, whatever is added and removed before the walk.

use super::{Delivery, Subscription};
use crate::message::{Id, Message, Pattern};

impl Subscription {
    /// Leaves the ephemeral messages in the log while a topic is being added, so that they come in their order after it is.
    pub fn hold_ephemerals(&mut self, is_so: bool) {
        if std::mem::replace(&mut self.holds_ephemerals, is_so) && !is_so {
            self.looked_upto = None;
        }
    }

    /// How many ephemeral messages there are, for a pattern that is added now.
    pub fn ephemerals_now(&self) -> u64 {
        self.log.ephemerals().count()
    }

    /// Reads the ephemeral messages of `pattern` after this count, also while the subscription has yet to catch up.
    pub fn read_ephemerals_since(&mut self, pattern: &Pattern, since: Option<u64>) {
        let Some(since) = since.filter(|_| self.patterns.contains(pattern)) else { return };
        let known = self.ephemerals_since.entry(pattern.clone()).or_insert(since);
        *known = since.min(*known);
    }

    /// Reads the ephemeral messages of `pattern` from now on. If they are read already, nothing changes.
    pub fn read_ephemerals_from_now(&mut self, pattern: &Pattern) {
        if self.seen_ephemerals.is_none() {
            self.read_ephemerals_since(pattern, Some(self.ephemerals_now()));
        }
    }

    /// The count of those from before the message or the change with this id.
    pub(super) fn ephemerals_before(&self, id: Id) -> u64 {
        self.log.ephemerals().count_at(id.before())
    }

    /// Takes those that came before this count, if every stored message from before them was given out.
    pub fn take_held_ephemerals(&mut self, upto: Option<u64>) {
        let given = self.log.ephemerals().count_at(self.cursor);
        self.take_ephemerals(upto.map_or(given, |upto| upto.min(given)));
    }

    /// Takes those from before this id. True if some of them are to be given out now.
    pub(super) fn has_ephemerals_before(&mut self, id: Id) -> bool {
        if !self.holds_ephemerals {
            self.take_ephemerals(self.ephemerals_before(id));
        }
        !self.ready.is_empty()
    }

    /// Takes the ephemeral messages up to this count, and queues each behind the stored messages that are
    /// older.
    pub(super) fn take_ephemerals(&mut self, upto: u64) {
        let Some(seen) = self.seen_ephemerals.or_else(|| self.ephemerals_since.values().min().copied())
        else {
            return;
        };
        if seen >= upto {
            return;
        }
        let mut ready = std::mem::take(&mut self.ready);
        let mut index = 0;
        self.log.ephemerals().between(seen, upto, |count, newest, message| {
            if self.wants_ephemeral(count, message) {
                let is_before = |delivery: &Delivery| match delivery {
                    Delivery::Message(before) => before.id <= newest,
                    Delivery::Gap(_) => true,
                };
                while ready.get(index).is_some_and(is_before) {
                    index += 1;
                }
                ready.insert(index, Delivery::Message(message.clone()));
                index += 1;
            }
        });
        self.ready = ready;
        match &mut self.seen_ephemerals {
            Some(seen) => {
                *seen = upto;
                self.ephemerals_since.retain(|_, since| *since > upto);
            }
            None => self.ephemerals_since.values_mut().for_each(|since| *since = upto.max(*since)),
        }
    }

    /// True if the ephemeral message with this count is for a pattern that was read then.
    fn wants_ephemeral(&self, count: u64, message: &Message) -> bool {
        let topic = &message.topic;
        let is_read = || {
            if self.ephemerals_since.is_empty() {
                return self.patterns.matches(topic);
            }
            let others_since = self.seen_ephemerals.unwrap_or(u64::MAX);
            let is_since =
                |pattern: &Pattern| *self.ephemerals_since.get(pattern).unwrap_or(&others_since) < count;
            let mut is_wanted = self.patterns.names(topic) && is_since(&Pattern::from(topic));
            self.patterns.for_each_wildcard(topic, |pattern| is_wanted |= is_since(pattern));
            is_wanted
        };
        message.exclude() != Some(&*self.connection) && is_read()
    }
}
