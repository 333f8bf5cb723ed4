//! Messages in batches, sent until each is stored or refused.
//!
//! Every message has an idempotency key, so that it can be sent again after a broken connection without being
//! stored twice. The server forgets keys after some minutes; if the outcome is unknown for longer, the caller is
//! told.

mod batch;
mod draft;

use std::{
    fmt,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use async_stream::try_stream;
use reqwest::{StatusCode, header};
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::{Instant, sleep};
use tokio_stream::{Stream, StreamExt};

use self::batch::Batch;
pub use self::draft::Draft;
use super::{Client, ClientError, error::Problem, retry::Retry};

/// How long the answer to a request may take. After that the server may still be working on the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a message with an unknown outcome is sent again under the same key. The server remembers a key
/// for 5 minutes; the answer to a request may take one of them, and a proxy may delay the request.
const KEY_TRUSTED: Duration = Duration::from_secs(3 * 60);

/// One thing that a [`Publishing`] tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// The next message is stored.
    Stored {
        /// Its id.
        id: String,
    },
    /// The next message is ephemeral, and was sent to the subscriptions that are caught up.
    Sent,
    /// The next message is refused, with [`ClientError::Refused`]; the others go on. It is not stored, unless an
    /// earlier attempt, told as [`Retrying`](Self::Retrying) with [`ClientError::Lost`], has stored it.
    Refused(ClientError),
    /// The outcome of the next messages is unknown, and their keys do not protect them any more. The client sends
    /// them again, so they may be stored twice. To prevent that, drop the [`Publishing`] now.
    Doubtful {
        /// How many messages these are.
        count: usize,
    },
    /// A request failed. The client tries again by itself, after a pause.
    Retrying(ClientError),
    /// The server answers again, after [`Retrying`](Self::Retrying).
    Recovered,
}

/// The outcomes of [`Client::publish_all`], in the order of the messages. It sends only while it is polled.
///
/// # Cancel safety
/// Dropping the future of `next()` loses nothing. Dropping this ends the publishing: messages that were taken
/// and have no outcome yet may be stored.
pub struct Publishing<'a>(Pin<Box<dyn Stream<Item = Result<Progress, ClientError>> + Send + 'a>>);

impl<'a> Publishing<'a> {
    pub(super) fn new(client: Client, drafts: impl Stream<Item = Draft> + Send + 'a) -> Self {
        Self(Box::pin(publish(client, drafts)))
    }
}

impl Stream for Publishing<'_> {
    type Item = Result<Progress, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Publishing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publishing").finish_non_exhaustive()
    }
}

/// The loop: a batch, sent until every message of it is stored or refused, and the next one.
fn publish(
    client: Client,
    drafts: impl Stream<Item = Draft> + Send,
) -> impl Stream<Item = Result<Progress, ClientError>> + Send {
    try_stream! {
        let mut drafts = pin!(drafts.fuse());
        let mut batch = Batch::new();
        let mut retry = Retry::new(client.give_up);
        while batch.fill(&mut drafts).await {
            // When a request was first sent whose outcome is unknown.
            let mut in_doubt: Option<Instant> = None;
            let mut has_failed = false;
            while !batch.is_empty() {
                let trusted = if batch.has_keys() { KEY_TRUSTED } else { Duration::ZERO };
                if in_doubt.is_some_and(|since| since.elapsed() > trusted) {
                    yield Progress::Doubtful { count: batch.len() };
                    in_doubt = None;
                }
                let sent_at = Instant::now();
                let (outcomes, error) = match client.send_batch(&batch).await {
                    Ok(answers) => settle(&client, batch.len(), answers),
                    Err(error) => (Vec::new(), Some(error)),
                };
                for outcome in outcomes {
                    retry.progress();
                    batch.pop();
                    yield outcome;
                }
                let Some(error) = error else {
                    if std::mem::take(&mut has_failed) {
                        yield Progress::Recovered;
                    }
                    continue;
                };
                if matches!(error, ClientError::Lost { .. }) {
                    in_doubt.get_or_insert(sent_at);
                }
                let pause = retry.after(&error).map_err(|error| end(error, in_doubt.is_some()))?;
                has_failed = true;
                yield Progress::Retrying(error);
                sleep(pause).await;
            }
        }
    }
}

/// The error with which publishing ends. It does not say that nothing was stored, if an earlier attempt may have
/// stored something.
fn end(error: ClientError, is_in_doubt: bool) -> ClientError {
    match error {
        ClientError::Unavailable { why, retry_after, .. } if is_in_doubt => {
            ClientError::Lost { why, retry_after }
        }
        error => error,
    }
}

/// The answer for one message.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused(Problem),
    Stored {
        id: String,
    },
    /// An ephemeral message has no id.
    Sent {
        topic: IgnoredAny,
    },
}

impl Client {
    async fn send_batch(&self, batch: &Batch) -> Result<Vec<Answer>, ClientError> {
        // With `ordered` no message is stored before an earlier one that was refused.
        let request = self
            .http
            .post(self.at("/publish?ordered"))
            .timeout(ANSWER_TIMEOUT)
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(batch.body());
        let answer = self.ask(request, StatusCode::OK).await?.bytes().await?;
        serde_json::from_slice(&answer).map_err(ClientError::not_ours)
    }
}

/// The outcomes of the first messages of a batch, and why the rest must be sent again.
fn settle(client: &Client, count: usize, answers: Vec<Answer>) -> (Vec<Progress>, Option<ClientError>) {
    if answers.is_empty() {
        return (Vec::new(), Some(ClientError::lost("the answer has no result for any message")));
    }
    let mut outcomes = Vec::with_capacity(count);
    for answer in answers.into_iter().take(count) {
        let error = match answer {
            Answer::Stored { id } => {
                outcomes.push(Progress::Stored { id });
                continue;
            }
            Answer::Sent { topic: IgnoredAny } => {
                outcomes.push(Progress::Sent);
                continue;
            }
            Answer::Refused(problem) => ClientError::of_problem(problem, None),
        };
        if error.is_of_credential() && client.credential.can_renew() {
            // The token has expired since the request was sent; the next one gets a new token.
            return (outcomes, Some(ClientError::unsent(error.to_string())));
        }
        if !error.is_final() {
            return (outcomes, Some(error));
        }
        outcomes.push(Progress::Refused(error));
    }
    (outcomes, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last attempt starts just before the key is forgotten, and must not arrive after that.
    #[test]
    fn the_last_attempt_arrives_long_before_its_key_is_forgotten() {
        let (remembered, margin) = (Duration::from_secs(5 * 60), Duration::from_secs(60));
        assert!(KEY_TRUSTED + ANSWER_TIMEOUT + margin <= remembered);
    }
}
