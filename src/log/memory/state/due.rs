//! When the oldest message of each topic expires, if topics have limits of their own. Without such limits the order of all
//! messages says it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use super::State;
use crate::{
    log::{Limits, Retention, Tail},
    message::{Id, Topic},
};

/// The topics with retained messages, by the time at which the oldest of them may expire.
///
/// A topic that loses its oldest message keeps its place, which is then too early. It moves on when its time comes. So
/// trimming costs nothing here, and each topic is looked at once for each age that passes.
#[derive(Debug, Default)]
pub struct Due {
    queue: BTreeMap<Place, Arc<Tail>>,
    topics: HashMap<Topic, (Place, Limits)>,
}

/// A time, and the id of a message of the topic, which no other topic has.
type Place = (Id, Id);

/// How far the topics were looked at after the rules had changed: the last of them by name.
#[derive(Debug, Default)]
pub struct Review(Option<Topic>);

impl Due {
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    fn limits(&self, topic: &Topic) -> Option<Limits> {
        self.topics.get(topic).map(|(_, limits)| *limits)
    }

    /// Adds a topic whose oldest message has this id.
    pub fn insert(&mut self, topic: &Topic, tail: &Arc<Tail>, oldest: Id, limits: Limits) {
        let place = (oldest.plus(limits.age), oldest);
        self.queue.insert(place, tail.clone());
        if let Some((old, _)) = self.topics.insert(topic.clone(), (place, limits))
            && old != place
        {
            self.queue.remove(&old);
        }
    }

    /// Removes a topic that retains nothing any more.
    pub fn remove(&mut self, topic: &Topic) {
        if let Some((place, _)) = self.topics.remove(topic) {
            self.queue.remove(&place);
        }
    }

    /// The first topic whose time is before `now`.
    fn first(&self, now: Id) -> Option<Arc<Tail>> {
        let (_, tail) = self.queue.first_key_value().filter(|((time, _), _)| *time < now)?;
        Some(tail.clone())
    }
}

impl State {
    /// The limits of a topic.
    pub(super) fn limits_of(&self, topic: &Topic, retention: &Retention) -> Limits {
        let known = self.due.as_ref().and_then(|due| due.limits(topic));
        known.unwrap_or_else(|| retention.limits(topic))
    }

    /// Puts the rules of `retention` in force. [`expire`](Self::expire) then looks at all topics, in steps. Returns what
    /// the rules before had, so that the caller drops it without the lock.
    pub fn take_rules(&mut self, retention: &Retention) -> Option<Due> {
        self.review = Some(Review::default());
        std::mem::replace(&mut self.due, (!retention.rules.is_empty()).then(Due::default))
    }

    /// Continues to apply changed rules to the topics, and looks at or removes up to `limit` entries. Returns how many.
    pub(super) fn review(&mut self, retention: &Retention, limit: usize) -> usize {
        let mut budget = limit;
        while budget > 0
            && let Some(Review(last)) = &self.review
        {
            // The times of the topics take room too.
            if self.footprint() > retention.total_bytes && self.order.len() > 1 {
                self.evict_oldest();
                budget -= 1;
                continue;
            }
            let from = last.as_ref().map_or(Unbounded, |last| Excluded(&**last));
            let Some(topic) = self.names.range::<str, _>((from, Unbounded)).next().cloned() else {
                self.review = None;
                break;
            };
            budget -= 1;
            if let Some(tail) = self.tails.get(&topic).cloned() {
                let limits = retention.limits(&topic);
                let oldest = tail.ring().oldest().map(|message| message.id);
                if let (Some(due), Some(oldest)) = (&mut self.due, oldest) {
                    due.insert(&topic, &tail, oldest, limits);
                }
                let mut room = budget;
                self.pop_while(&tail, |ring| {
                    let is_due = limits.are_exceeded_by(ring.size()) && room > 0;
                    room -= usize::from(is_due);
                    is_due
                });
                budget = room;
                if limits.are_exceeded_by(tail.ring().size()) {
                    break;
                }
            }
            self.review = Some(Review(Some(topic)));
        }
        limit - budget
    }

    /// Removes one message that has expired by its topic's own age, or moves its topic on. False if there is none.
    pub(super) fn expire_due(&mut self, now: Id) -> bool {
        let Some(tail) = self.due.as_ref().and_then(|due| due.first(now)) else { return false };
        let (Some(topic), Some(due)) = (tail.name().topic(), &mut self.due) else { return false };
        let oldest = tail.ring().oldest().map(|message| message.id);
        match (oldest, due.limits(&topic)) {
            (Some(oldest), Some(limits)) if oldest >= now.minus(limits.age) => {
                due.insert(&topic, &tail, oldest, limits);
            }
            (Some(_), Some(_)) => {
                self.pop_one(&tail);
                self.drop_if_idle(&tail);
            }
            _ => due.remove(&topic),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{
        super::{
            STEP,
            tests::{RETENTION, gaps, store},
        },
        *,
    };
    use crate::{
        log::{Append, Reason, Rule, Rules},
        message::{Draft, Payload},
    };

    const AGE: Duration = RETENTION.age;

    fn rules(ages: &[(&str, u32)]) -> Rules {
        let rule = |(topics, times): &(&str, u32)| Rule {
            topics: topics.parse().expect("a pattern"),
            messages: None,
            age: Some(*times * AGE),
            bytes: None,
        };
        Rules::new(ages.iter().map(rule).collect())
    }

    fn publish(state: &mut State, name: &str, retention: &Retention) -> Id {
        let topic = name.parse().expect("a topic");
        let draft = Draft { topic, event: None, by: None, payload: Payload::text("x"), exclude: None };
        store(state, Append { draft, idempotency_key: None, if_match: None }, retention).expect("stored").id()
    }

    fn expire_all(state: &mut State, retention: &Retention, now: Id) {
        while state.expire(retention, now, 7) == 7 {}
    }

    fn retained(state: &State) -> Vec<(String, u64)> {
        state.order.iter().map(|(id, tail)| (tail.name().to_string(), id.get())).collect()
    }

    /// Rules come, change and go, and messages are trimmed and deleted meanwhile.
    #[test]
    fn every_message_expires_by_the_age_of_its_topic_and_no_other_does() {
        for seed in 0..300 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut state = State::new(Id::now());
            let mut retention = Retention { messages: 4, ..RETENTION };
            for _ in 0..random.random_range(5..60) {
                let name = ["short.a", "short.b", "long.a", "other"][random.random_range(0..4)];
                match random.random_range(0..16) {
                    0 => state.delete(&name.parse().expect("a topic")).expect("open"),
                    1 => {
                        retention.rules = match random.random_range(0..4) {
                            0 => Rules::NONE,
                            1 => rules(&[("short.*", 1), ("long.*", 5)]),
                            2 => rules(&[("long.*", 2)]),
                            _ => rules(&[("short.a", 3), ("**", 4)]),
                        };
                        state.take_rules(&retention);
                    }
                    2..5 => {
                        let now = state.newest.plus(AGE * random.random_range(0..6));
                        let has_expired = |name: &str, id: u64| {
                            let topic = name.parse::<Topic>().expect("a topic");
                            Id::new(id) < now.minus(retention.limits(&topic).age)
                        };
                        let mut left = retained(&state);
                        left.retain(|(name, id)| !has_expired(name, *id));
                        expire_all(&mut state, &retention, now);
                        assert_eq!(retained(&state), left, "seed {seed}");
                        state.newest = state.newest.max(now);
                    }
                    _ => _ = publish(&mut state, name, &retention),
                }
                let held = state.tails.iter().filter(|tail| tail.ring().len() > 0).count();
                let due = state.due.as_ref().filter(|_| state.review.is_none());
                assert!(due.is_none_or(|due| due.len() == held && due.queue.len() == held), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_rule_that_changes_is_applied_in_steps() {
        let mut state = State::new(Id::now());
        let mut retention = Retention { messages: 1_000, ..RETENTION };
        for number in 0..600 {
            publish(&mut state, &format!("chat.{}", number % 3), &retention);
        }
        let rule =
            Rule { topics: "chat.1".parse().expect("a pattern"), messages: Some(2), age: None, bytes: None };
        retention.rules = Rules::new(vec![rule]);
        state.take_rules(&retention);
        let now = state.newest;
        for limit in [1, 2, 50] {
            let before = state.order.len();
            assert_eq!(state.expire(&retention, now, limit), limit);
            assert!(before - state.order.len() <= limit);
        }
        expire_all(&mut state, &retention, now);
        let sizes =
            ["chat.0", "chat.1", "chat.2"].map(|name| state.tails.get(name).expect("a tail").ring().len());
        assert_eq!(sizes, [200, 2, 200]);
        publish(&mut state, "chat.1", &retention);
        assert_eq!(state.tails.get("chat.1").expect("a tail").ring().len(), 2);
    }

    /// The first publish to a topic removed its whole surplus under the lock.
    #[test]
    fn a_publish_during_a_review_removes_one_step_at_most() {
        let mut state = State::new(Id::now());
        let mut retention = Retention { messages: 10_000, total_bytes: 1 << 24, ..RETENTION };
        for _ in 0..STEP + 100 {
            publish(&mut state, "chat.a", &retention);
        }
        let rule =
            Rule { topics: "chat.*".parse().expect("a pattern"), messages: Some(2), age: None, bytes: None };
        retention.rules = Rules::new(vec![rule]);
        state.take_rules(&retention);
        publish(&mut state, "chat.a", &retention);
        assert_eq!(state.order.len(), 101);
        let now = state.newest;
        expire_all(&mut state, &retention, now);
        assert_eq!(state.order.len(), 2);
    }

    /// The first publish after the review had to make the room, under the lock.
    #[test]
    fn a_review_makes_room_for_what_it_adds() {
        let mut state = State::new(Id::now());
        for number in 0..200 {
            publish(&mut state, &format!("chat.{number}"), &RETENTION);
        }
        let retention =
            Retention { total_bytes: state.footprint(), rules: rules(&[("chat.*", 2)]), ..RETENTION };
        state.take_rules(&retention);
        let now = state.newest;
        while state.expire(&retention, now, 5) == 5 {
            assert!(state.footprint() <= retention.total_bytes + 5 * 150);
        }
        assert!(state.footprint() <= retention.total_bytes && state.order.len() > 100);
    }

    #[test]
    fn the_index_remembers_a_topic_until_the_longest_age_has_passed() {
        let mut state = State::new(Id::now());
        let day = Duration::from_secs(24 * 3600);
        let rule = Rule {
            topics: "chat.*".parse().expect("a pattern"),
            messages: None,
            age: Some(30 * day),
            bytes: None,
        };
        let retention = Retention { rules: Rules::new(vec![rule]), ..RETENTION };
        state.take_rules(&retention);
        let (cursor, id) = (state.newest, publish(&mut state, "chat.a", &retention));
        let sweep = |state: &mut State, days: u32| {
            while state.sweep(&retention, id.plus(days * day)) {}
        };
        sweep(&mut state, 29);
        assert_eq!((state.order.len(), state.index.len()), (1, 1));
        sweep(&mut state, 30);
        assert_eq!((state.order.len(), state.index.len()), (1, 1), "exactly this old is not too old");
        while state.sweep(&retention, id.plus(30 * day + AGE)) {}
        assert_eq!((state.order.len(), state.index.len()), (0, 1));
        assert_eq!(gaps(&mut state, "chat.a", cursor), [("chat.a".to_owned(), Reason::Retention)]);
        sweep(&mut state, 32);
        assert_eq!(state.index.len(), 0);
    }
}
