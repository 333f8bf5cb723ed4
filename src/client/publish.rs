//! Messages in batches, sent until each is stored or refused.
//!
//! Every message has an idempotency key, so that it can be sent again after a broken connection without being
//! stored twice. The server forgets keys after some minutes; if the outcome is unknown for longer, the caller is
//! told.

mod batch;
mod doubt;
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
use tokio::time::sleep;
use tokio_stream::{Stream, StreamExt};

pub use self::draft::Draft;
use self::{
    batch::Batch,
    doubt::{Doubt, KEY_REMEMBERED, KEY_TRUSTED, Moment},
};
use super::{
    Client, ClientError,
    answer::{body, within},
    error::Problem,
    retry::Retry,
};

/// How long a request may take, from the wait for a token to the end of the answer. After that the server may
/// still be working on it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read: far more than a refusal of each message of a batch takes.
const MAX_ANSWER_BYTES: usize = 32 << 20;

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
    /// them again, so they may be stored twice. To prevent that, drop the [`Publishing`] now. Only if the machine
    /// has slept, it may be too late: then the outcomes follow at once.
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
            let mut doubt = Doubt::default();
            let mut has_failed = false;
            while !batch.is_empty() {
                let trusted = if batch.has_keys() { KEY_TRUSTED } else { Duration::ZERO };
                if doubt.is_due(trusted) {
                    yield Progress::Doubtful { count: batch.len() };
                }
                let sent_at = Moment::now();
                let (outcomes, error) = match client.send_batch(&batch).await {
                    Ok(answers) => settle(&client, batch.len(), answers),
                    Err(error) => (Vec::new(), Some(error)),
                };
                // The machine may have slept between the check above and the arrival of the request.
                if !outcomes.is_empty() && doubt.is_due(KEY_REMEMBERED) {
                    yield Progress::Doubtful { count: batch.len() };
                }
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
                    doubt.begin(sent_at);
                }
                let pause = retry.after(&error).map_err(|error| doubt.end(error))?;
                has_failed = true;
                yield Progress::Retrying(error);
                sleep(pause).await;
            }
        }
    }
}

/// The answer for one message.
#[derive(Deserialize)]
#[serde(untagged)]
enum ItemAnswer {
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
    async fn send_batch(&self, batch: &Batch) -> Result<Vec<ItemAnswer>, ClientError> {
        // With `ordered` no message is stored before an earlier one that was refused.
        let request = self
            .http
            .post(self.at("/publish?ordered"))
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(batch.body());
        let answer = async { body(self.ask(request, StatusCode::OK).await?, MAX_ANSWER_BYTES).await };
        let answer = within(ANSWER_TIMEOUT, answer).await?;
        serde_json::from_slice(&answer).map_err(ClientError::not_ours)
    }
}

/// The outcomes of the first messages of a batch, and why the rest must be sent again.
fn settle(client: &Client, count: usize, answers: Vec<ItemAnswer>) -> (Vec<Progress>, Option<ClientError>) {
    if answers.is_empty() {
        return (Vec::new(), Some(ClientError::lost("the answer has no result for any message")));
    }
    let mut outcomes = Vec::with_capacity(count);
    for answer in answers.into_iter().take(count) {
        let error = match answer {
            ItemAnswer::Stored { id } => {
                outcomes.push(Progress::Stored { id });
                continue;
            }
            ItemAnswer::Sent { topic: IgnoredAny } => {
                outcomes.push(Progress::Sent);
                continue;
            }
            ItemAnswer::Refused(problem) => ClientError::of_problem(problem, None),
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

    /// The last attempt starts just before the key is forgotten, and must not arrive after that. Its tokens are
    /// part of its time.
    #[test]
    fn the_last_attempt_arrives_long_before_its_key_is_forgotten() {
        let margin = Duration::from_secs(60);
        assert!(KEY_TRUSTED + ANSWER_TIMEOUT + margin <= KEY_REMEMBERED);
    }

    /// A token that does not come must not use up the time of the request.
    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_token_ends_within_its_time() {
        let client = Client::new("http://127.0.0.1:1").expect("a URL").with_tokens_from(std::future::pending);
        let mut batch = Batch::new();
        let mut drafts = pin!(tokio_stream::iter([Draft::new("t", "x")]));
        assert!(batch.fill(&mut drafts).await);
        let outcome =
            tokio::time::timeout(ANSWER_TIMEOUT, client.send_batch(&batch)).await.expect("in its time");
        assert!(matches!(outcome, Err(ClientError::Unavailable { .. })));
    }
}
