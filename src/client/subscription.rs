//! A subscription: a cursor that outlives connections.

use std::{
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
    /// The backend has removed this topic or pattern from the connection. It is not read any more, and the others are.
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

impl Step {
    /// The meaning of a frame, and the error with which it ends the connection. A topic that the backend has removed leaves
    /// `topics`: to come back by itself would undo that.
    fn of(frame: Frame, topics: &mut Vec<String>) -> (Self, Option<ClientError>) {
        let (cursor, event) = match frame {
            Frame::Open { cursor, .. } => (cursor, Some(Event::Connected)),
            Frame::Message(message) => {
                (message.id.clone().filter(|_| !message.is_replay), Some(Event::Message(message)))
            }
            Frame::Gap { gap, cursor } => (cursor, Some(Event::Gap(gap))),
            Frame::Cursor(cursor) => (Some(cursor), None),
            Frame::Removed(topic) => {
                if !topics.contains(&topic) {
                    return (Self { cursor: None, event: None }, None);
                }
                topics.retain(|other| *other != topic);
                if topics.is_empty() {
                    return (Self { cursor: None, event: None }, Some(removed(&topic)));
                }
                (None, Some(Event::Removed(topic)))
            }
            Frame::Closing { error, cursor } => return (Self { cursor, event: None }, Some(error)),
        };
        (Self { cursor, event }, None)
    }
}

/// The end of a subscription whose last topic the backend has removed.
fn removed(topic: &str) -> ClientError {
    let detail = format!("the backend has removed {topic} from the connection");
    ClientError::Refused { code: "conflict".to_owned(), detail }
}

impl Subscription {
    pub(super) fn new(client: Client, topics: Vec<String>, start: Start) -> Self {
        let cursor = match &start {
            Start::After(cursor) => Some(cursor.clone()),
            _ => None,
        };
        Self { cursor, steps: Box::pin(steps(client, topics, start)) }
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
    mut topics: Vec<String>,
    mut start: Start,
) -> impl Stream<Item = Result<Step, ClientError>> + Send {
    try_stream! {
        let mut retry = Retry::new(client.give_up);
        loop {
            let mut open_at = None;
            let error = match Connection::open(&client, &topics, &start).await {
                Err(error) => error,
                Ok(mut connection) => loop {
                    let (step, closing) = match connection.next().await {
                        Ok(frame) => Step::of(frame, &mut topics),
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
