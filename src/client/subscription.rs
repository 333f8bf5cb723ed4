//! A subscription: a cursor that outlives connections.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use async_stream::try_stream;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;

use super::{
    Client, ClientError, Gap, Message, Start,
    connection::{Connection, Frame},
    retry::Retry,
};

/// One thing that a [`Subscription`] tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is open, and messages come.
    Connected,
    /// The next message.
    Message(Message),
    /// Messages are gone: load the state again from its source, and read on.
    Gap(Gap),
    /// The backend has added this topic or pattern to the list or to this connection, and it is read from here on. Only a
    /// subscription that [reads the list](Client::subscribe_mine) tells it.
    Added(String),
    /// The backend has removed this topic or pattern. The others are still read. Messages of this one may still come if it
    /// was added to the connection too.
    Removed(String),
    /// The connection is over, or it could not be made. The subscription tries again by itself, after a pause.
    Disconnected(ClientError),
}

/// A stream of messages and gaps, which reconnects and resumes by itself.
///
/// It connects when it is first polled, and does nothing while it is not polled. It ends only with an error: a
/// refusal, also if the backend removes the last topic that it reads, or after [`Client::with_give_up`].
///
/// # Cancel safety
/// Dropping the future of `next()` loses nothing. Dropping the subscription closes its connection; another one
/// that begins with [`Start::After`] and [`cursor`](Self::cursor) continues without loss.
pub struct Subscription {
    cursor: Option<String>,
    steps: Pin<Box<dyn Stream<Item = Result<Step, ClientError>> + Send>>,
}

/// The cursor moves, an event is told, or both.
struct Step {
    cursor: Option<String>,
    event: Option<Event>,
}

/// The topics that a subscription reads.
struct Reading {
    topics: Vec<String>,
    /// The list of the subject, if it is read.
    mine: Option<BTreeSet<String>>,
    /// Changes of the list that are yet to be told.
    changes: VecDeque<Event>,
}

impl Reading {
    /// The meaning of a frame, and the error with which it ends the connection.
    fn take(&mut self, frame: Frame) -> (Step, Option<ClientError>) {
        let (cursor, event) = match frame {
            Frame::Open { cursor, mine, .. } => {
                self.compare(mine);
                (cursor, Some(Event::Connected))
            }
            Frame::Message(message) => {
                (message.id.clone().filter(|_| !message.is_replay), Some(Event::Message(message)))
            }
            Frame::Gap { gap, cursor } => (cursor, Some(Event::Gap(gap))),
            Frame::Cursor(cursor) => (Some(cursor), None),
            Frame::Added(topic) => (None, self.add(topic)),
            Frame::Removed(topic) => match self.remove(topic) {
                Ok(event) => (None, event),
                Err(error) => return (Step { cursor: None, event: None }, Some(error)),
            },
            Frame::Closing { error, cursor } => return (Step { cursor, event: None }, Some(error)),
        };
        (Step { cursor, event }, None)
    }

    /// Takes the list as it is now, and tells how it differs from the one before.
    fn compare(&mut self, now: Vec<String>) {
        let Some(mine) = &mut self.mine else { return };
        let now: BTreeSet<_> = now.into_iter().collect();
        let before = std::mem::replace(mine, now);
        let is_told = |topic: &&String| !self.topics.contains(topic);
        self.changes.extend(before.difference(mine).filter(is_told).cloned().map(Event::Removed));
        self.changes.extend(mine.difference(&before).filter(is_told).cloned().map(Event::Added));
    }

    fn add(&mut self, topic: String) -> Option<Event> {
        let is_new = self.mine.as_mut()?.insert(topic.clone());
        (is_new && !self.topics.contains(&topic)).then_some(Event::Added(topic))
    }

    /// Takes out a topic that the backend has removed: from the list, or else from those that the client has named. To come
    /// back to that one by itself would undo the removal. An error if nothing is left to read, or if it is not known what is.
    fn remove(&mut self, topic: String) -> Result<Option<Event>, ClientError> {
        let is_named = self.topics.contains(&topic);
        if self.mine.as_mut().is_some_and(|mine| mine.remove(&topic)) {
            return match is_named {
                // The server may read it for the client, or no longer. A new connection names it again.
                true => Err(doubted(&topic)),
                false => Ok(Some(Event::Removed(topic))),
            };
        }
        if !is_named {
            return Ok(None);
        }
        self.topics.retain(|other| *other != topic);
        match self.topics.is_empty() && self.mine.is_none() {
            true => Err(removed(&topic)),
            false => Ok(Some(Event::Removed(topic))),
        }
    }
}

/// The end of a subscription whose last topic the backend has removed.
fn removed(topic: &str) -> ClientError {
    let detail = format!("the backend has removed {topic} from the connection");
    ClientError::Refused { code: "conflict".to_owned(), detail }
}

/// The end of a connection that may read a topic no longer which the client has named.
fn doubted(topic: &str) -> ClientError {
    ClientError::lost(format!("the backend has removed {topic}, so only a new connection surely reads it"))
}

impl Subscription {
    /// Reads topics and, with `mine`, the list of the subject.
    pub(super) fn new(client: Client, topics: Vec<String>, mine: bool, start: Start) -> Self {
        let cursor = match &start {
            Start::After(cursor) => Some(cursor.clone()),
            _ => None,
        };
        let mine = mine.then(BTreeSet::new);
        let reading = Reading { topics, mine, changes: VecDeque::new() };
        Self { cursor, steps: Box::pin(steps(client, reading, start)) }
    }

    /// Up to here the subscription has given out everything. It is not known until the server has said where
    /// reading begins.
    ///
    /// Store it together with the effect of the last message, and each message has its effect once.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }
}

impl Stream for Subscription {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(step) = ready!(self.steps.as_mut().poll_next(context)?) else {
                return Poll::Ready(None);
            };
            if step.cursor.is_some() {
                self.cursor = step.cursor;
            }
            if let Some(event) = step.event {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

/// The loop: connect at the cursor, read, and again.
fn steps(
    client: Client,
    mut reading: Reading,
    mut start: Start,
) -> impl Stream<Item = Result<Step, ClientError>> + Send {
    try_stream! {
        let mut retry = Retry::new(client.give_up);
        loop {
            let mut open_at = None;
            let error = match Connection::open(&client, &reading.topics, reading.mine.is_some(), &start).await {
                Err(error) => error,
                Ok(mut connection) => loop {
                    let (step, closing) = match connection.next().await {
                        Ok(frame) => reading.take(frame),
                        Err(error) => break error,
                    };
                    match step.event {
                        Some(Event::Connected) => open_at = Some(Instant::now()),
                        Some(_) => retry.progress(),
                        None => {}
                    }
                    if let Some(cursor) = &step.cursor {
                        start = Start::After(cursor.clone());
                    }
                    yield step;
                    while let Some(change) = reading.changes.pop_front() {
                        yield Step { cursor: None, event: Some(change) };
                    }
                    if let Some(error) = closing {
                        break error;
                    }
                },
            };
            if let Some(open_at) = open_at {
                retry.cut(open_at);
            }
            let pause = retry.after(&error)?;
            yield Step { cursor: None, event: Some(Event::Disconnected(error)) };
            sleep(pause).await;
        }
    }
}
