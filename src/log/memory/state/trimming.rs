//! Keeps messages within the limits of retention: trims, expires and evicts, and marks the topics that lose messages.

use std::sync::Arc;

use super::{STEP, State, due::Due, made_bytes};
use crate::{
    log::{
        Retention, Ring, Tail,
        memory::cost,
        retention::{AFTER_EXPIRY, INDEX_AGE},
    },
    message::{Id, Message},
};

impl State {
    /// Removes what has expired by `now`, one batch at a time. True if there may be more.
    pub fn sweep(&mut self, retention: &Retention, now: Id) -> bool {
        let mut budget = STEP - self.keys.forget_old(STEP);
        budget -= self.expire(retention, now, budget);
        let unknown = now.minus(INDEX_AGE.max(retention.longest_age() + AFTER_EXPIRY));
        while budget > 0
            && self.index.front().is_some_and(|(_, known)| known.newest < unknown)
            && let Some((topic, known)) = self.index.pop_front()
        {
            self.forgotten = self.forgotten.max(known.newest);
            self.names.remove(&topic);
            self.name_bytes -= topic.len();
            self.makers.remove(known.maker, made_bytes(&topic));
            self.losses.forget(known.lost);
            budget -= 1;
        }
        self.hot.cool_at(now);
        if budget > 0 {
            self.give_back();
        }
        budget == 0
    }

    pub(super) fn retain(&mut self, tail: &Arc<Tail>, message: Message, retention: &Retention) {
        self.bytes += cost::of_message(&message);
        self.order.push(message.id, tail.clone());
        let limits = self.limits_of(&message.topic, retention);
        if tail.ring().len() == 0 {
            self.held += 1;
            self.due.iter_mut().for_each(|due| due.insert(&message.topic, tail, message.id, limits));
        }
        tail.push(message);
        // A topic that the review has not come to may exceed its new limits by any number. It leaves the rest to the review.
        let mut room = if self.review.is_some() { STEP } else { usize::MAX };
        self.pop_while(tail, |ring| {
            let is_due = room > 0 && limits.are_exceeded_by(ring.size());
            room -= usize::from(is_due);
            is_due
        });
        while self.footprint() > retention.total_bytes && self.order.len() > 1 {
            if self.holds_more_than_its_share(tail, retention) {
                self.pop_one(tail);
            } else {
                self.evict_oldest();
            }
        }
    }

    /// How much memory the log takes, without its followers.
    pub fn footprint(&self) -> usize {
        self.bytes
            + self.held * cost::TAIL_BYTES
            + self.index.len() * cost::TOPIC_BYTES
            + self.name_bytes
            + self.losses.len() * cost::MARK_BYTES
            + self.due.as_ref().map_or(0, Due::len) * cost::DUE_BYTES
            + self.keys.footprint()
            + self.subjects.bytes()
    }

    /// True if a topic holds more than an even share, and can remove an older message to make room for its
    /// newest.
    fn holds_more_than_its_share(&self, tail: &Tail, retention: &Retention) -> bool {
        let (messages, bytes) = tail.ring().size();
        let share = retention.total_bytes / self.held.max(1);
        messages > 1 && bytes - messages * cost::SPARED_BYTES > share
    }

    /// Removes expired messages, and returns how many entries it looked at or removed: at most `limit`.
    pub fn expire(&mut self, retention: &Retention, now: Id, limit: usize) -> usize {
        let mut count = self.review(retention, limit);
        while count < limit && self.expire_one(retention, now) {
            count += 1;
        }
        count
    }

    fn expire_one(&mut self, retention: &Retention, now: Id) -> bool {
        if self.due.is_some() {
            return self.expire_due(now);
        }
        let expired = now.minus(retention.age);
        let is_expired = self.order.oldest().is_some_and(|(id, _)| *id < expired);
        if is_expired {
            self.evict_oldest();
        }
        is_expired
    }

    pub(super) fn evict_oldest(&mut self) {
        let Some(tail) = self.order.oldest().map(|(_, tail)| tail.clone()) else { return };
        self.pop_one(&tail);
        self.drop_if_idle(&tail);
    }

    pub(super) fn pop_one(&mut self, tail: &Tail) {
        let mut is_first = true;
        self.pop_while(tail, |_| std::mem::take(&mut is_first));
    }

    /// Removes the oldest messages of a topic while `is_due` is true, and marks the topic.
    pub(super) fn pop_while(&mut self, tail: &Tail, mut is_due: impl FnMut(&Ring) -> bool) {
        let mut lost = None;
        loop {
            let mut ring = tail.ring();
            if !is_due(&ring) {
                break;
            }
            let Some(message) = ring.pop() else { break };
            self.held -= usize::from(ring.len() == 0);
            drop(ring);
            // The tails of patterns may still hold the message.
            message.trim();
            self.order.remove(message.id);
            self.bytes -= cost::of_message(&message);
            lost = Some(message);
        }
        if let Some(message) = &lost
            && let Some(due) = &mut self.due
            && tail.ring().len() == 0
        {
            due.remove(&message.topic);
        }
        if let Some(message) = lost
            && let Some(known) = self.index.get_mut(&message.topic)
        {
            known.lost = self.losses.note(&message.topic, known.lost, self.newest);
        }
    }

    pub(super) fn drop_if_idle(&mut self, tail: &Arc<Tail>) {
        let Some(topic) = tail.name().topic() else { return };
        if tail.is_idle() && self.tails.get(&topic).is_some_and(|known| Arc::ptr_eq(known, tail)) {
            self.tails.remove(&topic);
        }
    }

    /// Returns the memory of a burst that has passed.
    fn give_back(&mut self) {
        self.tails.shrink();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::tests::{RETENTION, begin, gaps, later, patterns, publish, read, store},
        *,
    };
    use crate::{
        log::{Append, AppendError, Payer, Position, Reason, Start},
        message::{Draft, PatternSet, Payload},
    };

    #[test]
    fn an_expired_topic_leaves_its_mark_until_the_index_forgets_it_and_then_in_forgotten() {
        let mut state = State::new(Id::now());
        let began = state.began;
        let id = publish(&mut state, "a");
        while state.sweep(&RETENTION, later(1)) {}
        assert_eq!(
            (state.order.len(), state.bytes, state.tails.iter().count(), state.index.len()),
            (0, 0, 0, 1)
        );
        assert_eq!(gaps(&mut state, "a", id.before()), [("a".to_owned(), Reason::Retention)]);
        assert_eq!(gaps(&mut state, "a", id), []);
        assert_eq!(gaps(&mut state, "never", id.before()), []);

        while state.sweep(&RETENTION, later(8)) {}
        assert_eq!((state.index.len(), state.forgotten), (0, id));
        // A forgotten message may have been in any topic.
        for name in ["a", "never", "*"] {
            assert_eq!(gaps(&mut state, name, id.before()), [(name.to_owned(), Reason::Retention)]);
            assert_eq!(gaps(&mut state, name, id), []);
        }
        let next = publish(&mut state, "a");
        assert_eq!(gaps(&mut state, "a", id), []);
        assert_eq!(gaps(&mut state, "a", began).len(), 1);
        assert!(next > id);
    }

    #[test]
    fn a_topic_is_remembered_for_a_day_after_its_last_message_has_expired() {
        let retention = Retention { age: Duration::from_secs(10 * 24 * 3600), ..RETENTION };
        let mut state = State::new(Id::now());
        publish(&mut state, "a");
        for (days, known) in [(9, 1), (10, 1), (11, 0)] {
            // A little later than this many days.
            let now = Id::new(later(days).get() + 60_000_000);
            while state.sweep(&retention, now) {}
            assert_eq!(
                (state.stats().messages, state.index.len()),
                (usize::from(days < 10), known),
                "{days} days"
            );
        }
    }

    #[test]
    fn messages_that_expire_during_a_read_leave_nothing_behind() {
        let mut state = State::new(Id::now());
        let cursor = state.newest;
        let patterns = patterns(&["*"]);
        let reads: [fn(&mut State, &PatternSet, Id); 2] = [
            |state, patterns, _| {
                _ = begin(state, patterns, &Start::Everything, state.newest.plus(RETENTION.age))
            },
            |state, patterns, at| {
                _ = read(state, patterns, &Position::at(at), 10, state.newest.plus(RETENTION.age))
            },
        ];
        for look in reads {
            publish(&mut state, "a");
            look(&mut state, &patterns, cursor);
            while state.sweep(&RETENTION, later(1)) {}
            assert_eq!((state.order.len(), state.tails.iter().count()), (0, 0));
        }
    }

    /// A user who made many topics had the messages of all others evicted, for as long as the index
    /// remembered the topics.
    #[test]
    fn topics_leave_half_of_the_room_to_messages() {
        let retention = Retention { total_bytes: 100_000, ..RETENTION };
        let mut state = State::new(Id::now());
        let store = |state: &mut State, number: usize| {
            let topic = format!("topic.{number}").parse().expect("a topic");
            let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
            let append = Append { draft, idempotency_key: None, if_match: None };
            super::tests::store(state, append, &retention).map(|_| ())
        };
        let stored = (0..1_000).filter(|number| store(&mut state, *number).is_ok()).count();
        assert!((150..180).contains(&stored), "{stored} topics in half of the room");
        assert_eq!(store(&mut state, stored), Err(AppendError::TooManyTopics));
        assert_eq!(store(&mut state, 0), Ok(()), "a topic that is known");
        assert!(state.order.len() > 50, "{} messages in the other half", state.order.len());
        assert!(state.footprint() <= retention.total_bytes);
        let held = state.tails.iter().filter(|tail| tail.ring().len() > 0).count();
        let named: usize = state.index.iter().map(|(topic, _)| topic.len()).sum();
        assert_eq!((state.held, state.name_bytes), (held, named));
    }

    #[test]
    fn topics_count_for_their_maker_until_the_index_forgets_them() {
        let retention = Retention { total_bytes: 100_000, ..RETENTION };
        let mut state = State::new(Id::now());
        let maker = Some(Payer::subject("u1"));
        let make_all = |state: &mut State| {
            let make = |number: usize| {
                let topic = format!("topic.{number:03}").parse().expect("a topic");
                let draft =
                    Draft { topic, event: None, by: None, payload: Payload::text("x"), exclude: None };
                let append = Append { draft, idempotency_key: None, if_match: None };
                let stored = state.append(append, maker, &retention, Id::now());
                while state.fan_out_on().is_none() {}
                stored.is_ok()
            };
            (0..1_000).map(make).filter(|is_made| *is_made).count()
        };
        let made = make_all(&mut state);
        assert!((70..80).contains(&made), "{made} topics, as many as it leaves free of its part of the room");
        assert_eq!(make_all(&mut state), made, "those that are known");
        while state.sweep(&retention, later(8)) {}
        assert_eq!((state.index.len(), state.makers.len()), (0, 0));
        assert_eq!(make_all(&mut state), made);
    }

    #[test]
    fn trimming_leaves_no_entry_behind() {
        let mut state = State::new(Id::now());
        for _ in 0..10_000 {
            publish(&mut state, "busy");
        }
        assert_eq!((state.order.len(), state.losses.len(), state.names.len()), (2, 1, 1));
        let patterns = patterns(&["*"]);
        let beginning = begin(&mut state, &patterns, &Start::Everything, Id::ZERO);
        let page = read(&mut state, &patterns, &beginning.position, 10, Id::ZERO);
        assert_eq!((page.messages.len(), page.gaps.len()), (2, 0));
    }
}
