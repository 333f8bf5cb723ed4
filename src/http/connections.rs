//! How many subscriptions are served, how much answers may hold, and the times that all connections keep.

use std::{sync::Arc, time::Duration};

use super::{
    MAX_TOPICS,
    body::too_many_bytes,
    overloaded,
    problem::{Code, Problem},
    refusal::Told,
    shares::{Share, Shares},
};
use crate::{
    config::Config,
    log::Payer,
    shutdown::{self, Shutdown},
};

/// How many bytes of messages one answer to a poll may contain; the next poll continues after them. Gaps do not fill an
/// answer, because a client that gets only some of them would be told the same ones again.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// The same for a client that leaves more than its share of all answers untaken, or if these are [`MANY_BYTES`] together.
const SHORT_ANSWER_BYTES: usize = 32 << 10;
pub const MANY_BYTES: usize = 64 << 20;
/// The bytes of an answer are counted in such steps, since each step takes a lock.
const STEP_BYTES: usize = 1 << 10;

/// How many topics and patterns all connections may read, for each that may be open.
const TOPICS_OF_A_CONNECTION: usize = 10;

/// How many answers to other requests may wait for their clients, at least.
const MIN_ANSWERS: usize = 1_000;
/// How many more may wait at the listener for operators: those of the public must not keep out the operators who look
/// for their reason.
const ANSWERS_OF_OPERATORS: usize = 64;
/// How many of the longest commands, or as many bytes of smaller ones and of bodies, may wait until they are whole.
const LONGEST_UNPARSED: usize = 40;

/// The subscriptions of one server.
pub struct Connections {
    subscriptions: Arc<Shares>,
    /// The topics and patterns that they read.
    topics: Arc<Shares>,
    /// The bytes in answers to polls and to `POST /publish` that have not left.
    in_answers: Arc<Shares>,
    /// The answers to other requests that have not left.
    answers: Arc<Shares>,
    /// The same, of operators while the public has taken all others.
    answers_of_operators: Arc<Shares>,
    /// The bytes of bodies and commands that are read and not done.
    unparsed: Arc<Shares>,
    /// Those of heads whose client is not known yet. They have a total of their own, so that a slow hook stops no publish.
    heads: Arc<Shares>,
    heartbeat: Duration,
    drain_grace: Duration,
    shutdown: Shutdown,
    /// The ends of connections that were told to the operator.
    pub(super) ends: Told,
}

impl Connections {
    pub fn new(config: &Config, shutdown: Shutdown) -> Self {
        let Config { heartbeat, drain_grace, max_connections, .. } = *config;
        let unparsed_bytes = config.max_command_bytes().saturating_mul(LONGEST_UNPARSED);
        Self {
            subscriptions: Shares::new(max_connections),
            topics: Shares::new(max_connections.saturating_mul(TOPICS_OF_A_CONNECTION).max(MAX_TOPICS)),
            in_answers: Shares::leaving_as_much(MANY_BYTES),
            answers: Shares::new(max_connections.max(MIN_ANSWERS)),
            answers_of_operators: Shares::new(ANSWERS_OF_OPERATORS),
            unparsed: Shares::leaving_as_much(unparsed_bytes),
            heads: Shares::leaving_as_much(unparsed_bytes),
            heartbeat,
            drain_grace,
            shutdown,
            ends: Told::default(),
        }
    }

    /// How many are served now.
    pub fn count(&self) -> usize {
        self.subscriptions.taken()
    }

    /// How many topics and patterns are read now.
    pub fn topics_read(&self) -> usize {
        self.topics.taken()
    }

    /// The bytes of all answers that have not left.
    pub fn untaken_bytes(&self) -> usize {
        self.in_answers.taken()
    }

    /// Counts one more subscription to so many topics and patterns, until the result is dropped. `None` if there are too
    /// many, or too many of this client.
    pub fn admit(&self, payer: Option<Payer>, topics: usize) -> Option<Costs> {
        let subscription = self.subscriptions.take(payer, 1)?;
        Some(Costs { _subscription: subscription, topics: self.topics.take(payer, topics)? })
    }

    /// Counts a request that waits until its client is known, as a subscription and with the bytes of its head.
    ///
    /// # Errors
    /// `overloaded` if too much is counted, or too much of this client.
    pub fn admit_waiting(&self, payer: Option<Payer>, head_bytes: usize) -> Result<WaitCosts, Problem> {
        let subscription = self.admit(payer, 0).ok_or_else(overloaded)?;
        let head = self.heads.take(payer, head_bytes).ok_or_else(too_many_bytes)?;
        Ok(WaitCosts { _subscription: subscription, _head: head })
    }

    /// How many answers to other requests have not left.
    pub fn untaken_answers(&self) -> usize {
        self.answers.taken() + self.answers_of_operators.taken()
    }

    /// Counts one more of these, until the result is dropped. `None` if there are too many, or too many of this client.
    pub fn take_answer(&self, payer: Option<Payer>, is_of_operators: bool) -> Option<Share> {
        let own = || is_of_operators.then(|| self.answers_of_operators.take(payer, 1)).flatten();
        self.answers.take(payer, 1).or_else(own)
    }

    /// The bytes of all bodies and commands that are read and not done.
    pub fn unparsed_bytes(&self) -> usize {
        self.unparsed.taken()
    }

    /// The bytes of all heads whose client is not known yet.
    pub fn waiting_head_bytes(&self) -> usize {
        self.heads.taken()
    }

    /// Those of one body, or of the commands of one WebSocket: none yet.
    pub fn unparsed(&self, payer: Option<Payer>) -> Share {
        self.unparsed.none(payer)
    }

    /// The bytes of one answer to this client, none yet.
    pub fn answer_bytes(&self, payer: Option<Payer>) -> AnswerBytes {
        AnswerBytes { own: 0, filling: 0, counted: self.in_answers.none(payer) }
    }

    /// A connection that was quiet for this long is sent a frame.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The time over which the connections leave when the server drains.
    pub fn drain_spread(&self) -> Duration {
        shutdown::spread(self.count(), self.drain_grace)
    }
}

/// The costs of one subscription, counted until this is dropped.
pub struct Costs {
    _subscription: Share,
    topics: Share,
}

impl Costs {
    /// Counts so many topics and patterns from now on. False, and nothing changes, if that is more than this client may
    /// read now.
    pub fn set_topics(&mut self, topics: usize) -> bool {
        self.topics.set(topics)
    }
}

/// The costs of a request that waits until its client is known, counted until this is dropped.
pub struct WaitCosts {
    _subscription: Costs,
    _head: Share,
}

/// The answer to a poll whose gaps alone are more than a short answer may have.
pub fn too_many_untaken() -> Problem {
    Problem::new(
        Code::Overloaded,
        "too many answers wait for clients to read them, or too many of yours; read them, and try again later",
    )
}

/// The bytes in one answer, counted until this is dropped.
pub struct AnswerBytes {
    own: usize,
    /// Those of them that fill the answer.
    filling: usize,
    counted: Share,
}

impl AnswerBytes {
    pub fn add(&mut self, bytes: usize) {
        self.filling += bytes;
        self.add_beside(bytes);
    }

    /// Counts bytes that do not fill the answer, however many they are.
    pub fn add_beside(&mut self, bytes: usize) {
        self.own += bytes;
        if self.own > self.counted.amount() {
            self.counted.grow(self.own.next_multiple_of(STEP_BYTES));
        }
    }

    pub fn count(&self) -> usize {
        self.own
    }

    /// True if the answer may have no more messages.
    pub fn is_full(&self) -> bool {
        self.filling >= MAX_ANSWER_BYTES || self.is_short()
    }

    /// True if the answer has to end early, because this client leaves more than its share of all answers untaken.
    pub fn is_short(&self) -> bool {
        self.own >= SHORT_ANSWER_BYTES && self.counted.is_in_excess()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_short_while_clients_have_not_taken_many_others() {
        let connections = Connections::new(&Config::default(), Shutdown::new());
        let mut own = connections.answer_bytes(None);
        own.add(MAX_ANSWER_BYTES - 1);
        assert!(!own.is_full() && !own.is_short());
        let mut other = connections.answer_bytes(None);
        other.add(MANY_BYTES);
        assert!(own.is_full() && own.is_short() && other.is_full() && !other.is_short());
        drop(other);
        assert!(!own.is_full());
        own.add(1);
        assert!(own.is_full() && !own.is_short(), "an answer to a publish may be longer");
    }

    /// One client that took no answers made those of all others short.
    #[test]
    fn a_client_that_takes_no_answers_leaves_those_of_others_whole() {
        let connections = Connections::new(&Config::default(), Shutdown::new());
        let payer = |number: u8| Some(Payer::address([203, 0, 113, number].into()));
        let (mut held, mut given) = (Vec::new(), Vec::new());
        for _ in 0..17 {
            let mut answer = connections.answer_bytes(payer(1));
            while !answer.is_full() {
                answer.add(32 << 10);
            }
            given.push(answer.count());
            held.push(answer);
        }
        let (whole, short) = given.split_at(7);
        assert!(whole.iter().all(|bytes| *bytes == MAX_ANSWER_BYTES), "{given:?}");
        assert!(short.iter().all(|bytes| *bytes == SHORT_ANSWER_BYTES), "{given:?}");
        for other in [payer(2), None] {
            let mut answer = connections.answer_bytes(other);
            answer.add(MAX_ANSWER_BYTES - 1);
            assert!(!answer.is_full() && !answer.is_short(), "{other:?}");
        }
        drop(held);
        assert_eq!(connections.untaken_bytes(), 0);
    }

    /// The heads of strangers took the room for the bodies of a backend.
    #[test]
    fn heads_that_wait_for_a_hook_take_no_room_of_bodies() {
        let connections = Connections::new(&Config::default(), Shutdown::new());
        let waiting: Vec<_> = std::iter::from_fn(|| connections.admit_waiting(None, 64 << 10).ok()).collect();
        assert!((1_000..2_000).contains(&waiting.len()), "{}", waiting.len());
        assert!(connections.unparsed(None).set(1 << 20));
    }
}
