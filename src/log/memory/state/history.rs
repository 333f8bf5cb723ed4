//! Reads the history of one topic, in one step: its messages are all in its tail.

use super::State;
use crate::{
    log::history::{Entry, Found, History},
    message::{Id, Message, Topic},
};

impl State {
    /// The newest `limit` messages of `topic` below `before`.
    pub fn history(&self, topic: &Topic, before: Id, limit: usize) -> History {
        let entry =
            |message: &Message| Entry { id: message.id, prev: message.prev, message: Some(message.clone()) };
        // A message that is not in all tails yet is not given: its id would be ahead of the watermark.
        let upto = before.before().min(self.newest());
        let (entries, has_older) = match self.tails.get(topic) {
            Some(tail) => {
                let ring = tail.ring();
                let (messages, has_older) = ring.upto(upto, limit);
                (messages.map(entry).collect(), has_older)
            }
            None => (Vec::new(), false),
        };
        let deleted = self.index.get(topic).map_or(Id::ZERO, |known| known.deleted);
        // The tail of a topic lacks messages only at its old end.
        let (complete_after, _) = self.left_of(topic);
        let boundaries = &self.beginning();
        Found { boundaries, deleted, entries, has_older, complete_after, next: None }.page(before)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{RETENTION, later, publish},
        *,
    };
    use crate::{
        log::{Append, Reason},
        message::{Draft, Payload},
    };

    fn history(state: &State, name: &str) -> History {
        state.history(&name.parse().expect("a topic"), Id::MAX, 10)
    }

    /// A client that subscribes after its id would be ahead of the log.
    #[test]
    fn a_message_that_is_not_in_all_tails_yet_is_not_in_the_history() {
        let mut state = State::new(Id::now());
        let first = publish(&mut state, "a");
        let topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, by: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        let second = state.append(append, None, &RETENTION, Id::now()).expect("stored").id();
        let ids = |state: &State| history(state, "a").messages.iter().map(|it| it.id).collect::<Vec<_>>();
        assert_eq!((ids(&state), history(&state, "a").is_beginning), (vec![first], true));
        while state.fan_out_on().is_none() {}
        assert_eq!(ids(&state), [first, second]);
    }

    #[test]
    fn a_topic_that_the_index_may_have_forgotten_has_no_beginning() {
        let mut state = State::new(Id::now());
        assert!(history(&state, "never").is_beginning);
        publish(&mut state, "a");
        while state.sweep(&RETENTION, later(8)) {}
        for name in ["a", "never"] {
            let page = history(&state, name);
            assert_eq!((page.is_beginning, page.gaps[0].reason), (false, Reason::Retention), "{name}");
        }
        let id = publish(&mut state, "a");
        let page = history(&state, "a");
        assert_eq!((page.is_beginning, page.gaps[0].next), (false, Some(id)));
    }
}
