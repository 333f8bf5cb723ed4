//! `rejoin pub`: one message, or each line of standard input, in order and once.
//!
//! Every message has an idempotency key, so that it can be sent again after a broken connection without being
//! stored twice. The server forgets keys after some minutes; if the outcome is unknown for longer, the user
//! is told.

mod item;
mod lines;

use std::{collections::VecDeque, time::Duration};

use clap::Args;
use reqwest::{Client, StatusCode, Url, header};
use serde::Deserialize;
use tokio::time::Instant;

use self::{
    item::Item,
    lines::{Line, Lines},
};
use super::{
    Ending,
    patience::Patience,
    remote::{Problem, Remote, Trouble, ask},
};

/// How long a script waits for a server that cannot be reached.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long the answer to a request may take. After that the server may still be working on the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a message with an unknown outcome is sent again under the same key. The server remembers a key
/// for 5 minutes; the answer to a request may take one of them, and a proxy may delay the request.
const KEY_TRUSTED: Duration = Duration::from_secs(3 * 60);

#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Publish {
    /// Topic to publish to.
    topic: String,

    /// The message. With `-` or without DATA, each line of standard input is a message.
    data: Option<String>,

    /// Give up after failing to store anything for this long [default: never with standard input, 30s with
    /// DATA].
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    give_up: Option<Duration>,

    #[command(flatten)]
    remote: Remote,
}

impl Publish {
    pub async fn run(self) -> Ending {
        match self.publish().await {
            Ok(ending) | Err(ending) => ending,
        }
    }

    async fn publish(self) -> Result<Ending, Ending> {
        let data = self.data.filter(|data| data != "-");
        let mut publisher = Publisher {
            client: self.remote.client().map_err(|trouble| Ending::Failed(trouble.to_string()))?,
            // With `ordered` no message is stored before an earlier one that was refused.
            url: self.remote.at("/publish?ordered"),
            topic: self.topic,
            keys: format!("{:032x}", rand::random::<u128>()),
            patience: Patience::new(self.give_up.or(data.is_some().then_some(GIVE_UP))),
            refused: 0,
            is_doubtful: false,
        };
        if let Some(data) = data {
            let line = Line { number: 0, bytes: data.into_bytes() };
            // The message is stored, also if its id cannot be printed.
            publisher.publish([line].into(), |id| drop(super::print(format!("{id}\n")))).await?;
        } else {
            let mut lines = Lines::of_stdin();
            loop {
                let batch = lines.next_batch().await;
                let batch =
                    batch.map_err(|error| Ending::Failed(format!("cannot read standard input: {error}")))?;
                if batch.is_empty() {
                    break;
                }
                publisher.publish(batch, |_| {}).await?;
            }
        }
        Ok(match publisher {
            Publisher { refused: 1.., .. } => {
                Ending::Failed(format!("{} of the messages were refused", publisher.refused))
            }
            Publisher { is_doubtful: true, .. } => {
                Ending::Doubtful("some messages may be stored twice".into())
            }
            _ => Ending::Done,
        })
    }
}

struct Publisher {
    client: Client,
    url: Url,
    topic: String,
    /// The beginning of every message's key: one random text for each run of the program.
    keys: String,
    patience: Patience,
    refused: u64,
    is_doubtful: bool,
}

/// The answer for one message.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused(Problem),
    Stored { id: String },
}

impl Publisher {
    /// Sends a batch until every message of it is stored or refused, and passes the ids to `stored`.
    async fn publish(&mut self, mut batch: VecDeque<Line>, stored: impl Fn(&str)) -> Result<(), Ending> {
        // When a request was first sent whose outcome is unknown.
        let mut in_doubt: Option<Instant> = None;
        while let (Some(first), Some(last)) = (batch.front(), batch.back()) {
            if in_doubt.is_some_and(|since| since.elapsed() > KEY_TRUSTED) {
                match batch.len() {
                    1 => super::tell(format_args!("{first} may be stored twice")),
                    _ => super::tell(format_args!("{first} to {last} may be stored twice")),
                }
                self.is_doubtful = true;
                in_doubt = None;
            }
            let (sent_at, count) = (Instant::now(), batch.len());
            let trouble = match self.send(&batch).await {
                Ok(answers) => self.settle(&mut batch, answers, &stored)?,
                Err(trouble) => Some(trouble),
            };
            if batch.len() < count {
                self.patience.progress();
            }
            let Some(trouble) = trouble else {
                self.patience.restore();
                continue;
            };
            if matches!(trouble, Trouble::Lost { .. }) {
                in_doubt.get_or_insert(sent_at);
            }
            self.patience.wait(trouble).await?;
        }
        Ok(())
    }

    async fn send(&self, batch: &VecDeque<Line>) -> Result<Vec<Answer>, Trouble> {
        let mut body = Vec::new();
        for Line { number, bytes } in batch {
            let key = format!("{}-{number}", self.keys);
            Item::new(&self.topic, &key, bytes).write_line(&mut body);
        }
        let request = self
            .client
            .post(self.url.clone())
            .timeout(ANSWER_TIMEOUT)
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .body(body);
        let answer = ask(request, StatusCode::OK).await?.bytes().await?;
        serde_json::from_slice(&answer).map_err(|error| {
            Trouble::Refused(format!("the server does not speak Rejoin's protocol: {error}"))
        })
    }

    /// Removes the answered messages from the batch; returns why the rest must be sent again.
    fn settle(
        &mut self,
        batch: &mut VecDeque<Line>,
        answers: Vec<Answer>,
        stored: impl Fn(&str),
    ) -> Result<Option<Trouble>, Ending> {
        if answers.is_empty() {
            return Ok(Some(Trouble::lost("the answer has no result for any message")));
        }
        for answer in answers {
            let Some(line) = batch.front() else { break };
            match answer {
                Answer::Stored { id } => stored(&id),
                Answer::Refused(problem) if problem.code == "too_large" => {
                    super::tell(format_args!("{line} was refused: {}", problem.detail));
                    self.refused += 1;
                }
                Answer::Refused(problem) => match Trouble::of_problem(problem, None) {
                    Trouble::Refused(why) => {
                        return Err(Ending::Failed(format!("{line}: {why}")));
                    }
                    trouble => return Ok(Some(trouble)),
                },
            }
            batch.pop_front();
        }
        Ok(None)
    }
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
