//! Brings each new message to the tails of the patterns that match it, in steps, and keeps who follows which tail.

use std::sync::Arc;

use super::State;
use crate::{
    log::{Follower, Tail, patterns},
    message::{Id, Message, Pattern, Topic, Walk},
};

/// The newest message, on its way to the tails of the patterns that match.
#[derive(Debug)]
pub struct FanOut {
    pub(super) message: Message,
    /// The newest id that was in all tails before this message.
    pub(super) before: Id,
    pub(super) walk: Walk,
    /// The tails that hold the message. They are woken once the watermark has moved.
    pub(super) tails: Vec<Arc<Tail>>,
}

impl State {
    /// The newest id that all tails hold. No reader is given a newer message.
    pub fn newest(&self) -> Id {
        self.fan_out.as_ref().map_or(self.newest, |fan_out| fan_out.before)
    }

    /// True while the newest message is on its way to the tails of patterns. Until it is in all of them,
    /// nothing can be appended.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_some()
    }

    /// Continues to bring the newest message to the tails of the patterns. Once they all hold it, returns the
    /// tails to wake when the watermark has moved.
    pub fn fan_out_on(&mut self) -> Option<Vec<Arc<Tail>>> {
        let Some(FanOut { message, walk, tails, .. }) = &mut self.fan_out else { return Some(Vec::new()) };
        let is_done = self.patterns.walk(&message.topic, walk, |tail| {
            bring(message, tail);
            tails.push(tail.clone());
        });
        if is_done { self.fan_out.take().map(|fan_out| fan_out.tails) } else { None }
    }

    /// Continues to collect the tails of `topic` that have followers. True once all are collected.
    pub fn followed_on(&self, topic: &Topic, walk: &mut Walk, tails: &mut Vec<Arc<Tail>>) -> bool {
        tails.extend(self.tails.get(topic).filter(|tail| tail.follower_count() > 0).cloned());
        self.patterns.walk(topic, walk, |tail| tails.push(tail.clone()))
    }

    pub fn follow(&mut self, pattern: &Pattern, follower: &Arc<Follower>) -> (Arc<Tail>, usize) {
        let newest = self.newest();
        let tail = match pattern.topic() {
            Some(topic) => self.tail_of(&topic),
            None => self.patterns.entry(pattern, || Tail::new(pattern.clone(), newest)),
        };
        if let Some(FanOut { message, tails, .. }) = &mut self.fan_out
            && pattern.has_wildcard()
            && pattern.matches(&message.topic)
        {
            // The walk may have passed this pattern already.
            bring(message, &tail);
            tails.push(tail.clone());
        }
        let key = tail.add_follower(follower.clone());
        (tail, key)
    }

    pub fn unfollow(&mut self, tail: &Arc<Tail>, follower: usize) {
        tail.remove_follower(follower);
        if !tail.name().has_wildcard() {
            self.drop_if_idle(tail);
        } else if tail.follower_count() == 0 {
            self.patterns.remove(tail.name());
        }
    }
}

/// Pushes the newest message to the tail of a pattern, unless it is already there.
fn bring(message: &Message, tail: &Tail) {
    if tail.newest() < message.id {
        patterns::push(tail, message.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{RETENTION, begin, patterns, publish, read},
        *,
    };
    use crate::{
        log::{Append, Position, Start},
        message::{Draft, Payload, steps},
    };

    /// Patterns that match `a.a.a.…`, with this many segments: all but the one without a wildcard.
    fn overlapping(segments: u32) -> Vec<Pattern> {
        let name = |number: u32| {
            let segments = (0..segments).map(|at| if number >> at & 1 == 0 { "*" } else { "a" });
            segments.collect::<Vec<_>>().join(".")
        };
        let names = (0..(1 << segments) - 1).map(name);
        names.map(|name| name.parse().expect("a pattern")).collect()
    }

    /// A publish that very many patterns matched held the lock until all their tails held the message.
    #[test]
    fn a_message_is_brought_to_many_tails_in_steps_and_seen_when_all_hold_it() {
        let mut state = State::new(Id::now());
        let follower = Arc::new(Follower::default());
        let mut tails: Vec<_> =
            overlapping(12).iter().map(|pattern| state.follow(pattern, &follower)).collect();
        let (name, topic) = (["a"; 12].join("."), ["a"; 12].join(".").parse().expect("a topic"));
        let other = publish(&mut state, "other");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        let id = state.append(append, None, &RETENTION, Id::now()).expect("stored").id();
        let late = [&name.replace("a.a", "a.*"), "**", "a.**"];
        let (mut steps, mut woken) = (0, None);
        while woken.is_none() {
            assert_eq!(state.newest(), other);
            for pattern in ["**", "a.**"] {
                let patterns = patterns(&[pattern]);
                let page = read(&mut state, &patterns, &Position::at(other), 10, Id::ZERO);
                assert_eq!((page.messages.len(), page.end), (0, other), "{pattern}");
                let beginning = begin(&mut state, &patterns, &Start::Last(1), Id::ZERO);
                assert!(beginning.position.cursor <= other, "{pattern}");
            }
            let beginning = begin(&mut state, &patterns(&["**"]), &Start::Last(1), Id::ZERO);
            assert!(beginning.position.cursor < other);
            if let Some(pattern) = late.get(steps) {
                tails.push(state.follow(&pattern.parse().expect("a pattern"), &follower));
                let (tail, key) = tails.swap_remove(7 * steps);
                state.unfollow(&tail, key);
            }
            let cost = steps::of(|| woken = state.fan_out_on());
            assert!(cost <= patterns::NODES, "{cost} nodes in one step");
            steps += 1;
        }
        assert_eq!((state.newest(), steps), (id, 4));
        let next = publish(&mut state, &name);
        let woken = woken.expect("tails");
        for (tail, _) in &tails {
            let after = |id| tail.ring().after(id).map(|message| message.id);
            assert_eq!((after(other), after(id)), (Some(id), Some(next)), "{:?}", tail.name());
            assert_eq!(tail.ring().len(), 2);
            assert!(tail.ring().complete_after() <= other);
            assert!(woken.iter().any(|it| Arc::ptr_eq(it, tail)), "{:?}", tail.name());
        }
    }
}
