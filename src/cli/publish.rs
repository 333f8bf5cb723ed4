//! `rejoin pub`: one message, or each line of standard input, in order and once.
//!
//! Every message has an idempotency key, so that what may have been stored when a connection breaks is sent again
//! without being stored twice. The server forgets keys; what is in doubt for longer is told.

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

/// How long a script waits for a server that is not there.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long the answer to a request may take. The server may be at work on it all the same.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// For how long a message that may be stored is sent again as the same one: the server remembers a key for 5 minutes,
/// a request may take as long as its answer, and something between may hold it back for a while.
const KEY_TRUSTED: Duration = Duration::from_secs(3 * 60);

#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Publish {
    /// Where to publish.
    topic: String,

    /// The message; `-` or nothing: each line of standard input is one.
    data: Option<String>,

    /// How long to try while nothing can be stored [default: for ever with standard input, 30s with DATA].
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
            // What comes behind a message that is refused must not be stored before it.
            url: self.remote.at("/publish?ordered"),
            topic: self.topic,
            keys: format!("{:032x}", rand::random::<u128>()),
            patience: Patience::new(self.give_up.or(data.is_some().then_some(GIVE_UP))),
            refused: 0,
            is_doubtful: false,
        };
        if let Some(data) = data {
            let line = Line { number: 0, bytes: data.into_bytes() };
            // It is stored, whether its id can be printed or not.
            publisher.publish([line].into(), |id| drop(super::print(format!("{id}\n")))).await?;
        } else {
            let mut lines = Lines::of_stdin();
            loop {
                let batch = lines.next_batch().await;
                let batch = batch.map_err(|error| Ending::Failed(format!("cannot read on: {error}")))?;
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
                Ending::Doubtful("some messages may be there twice".into())
            }
            _ => Ending::Done,
        })
    }
}

struct Publisher {
    client: Client,
    url: Url,
    topic: String,
    /// What the key of every message begins with: a run of the program is one publisher.
    keys: String,
    patience: Patience,
    refused: u64,
    is_doubtful: bool,
}

/// What became of one message.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused(Problem),
    Stored { id: String },
}

impl Publisher {
    /// Sends a batch until every message of it is stored or refused, and hands out the ids.
    async fn publish(&mut self, mut batch: VecDeque<Line>, stored: impl Fn(&str)) -> Result<(), Ending> {
        // Since when something of the batch may have been stored without our knowing.
        let mut in_doubt: Option<Instant> = None;
        while let (Some(first), Some(last)) = (batch.front(), batch.back()) {
            if in_doubt.is_some_and(|since| since.elapsed() > KEY_TRUSTED) {
                match batch.len() {
                    1 => super::tell(format_args!("{first} may be there twice")),
                    _ => super::tell(format_args!("{first} to {last} may be there twice")),
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
        serde_json::from_slice(&answer)
            .map_err(|error| Trouble::Refused(format!("the answer is not of Rejoin's protocol: {error}")))
    }

    /// Takes what was answered from the batch; gives why the rest has to be sent again.
    fn settle(
        &mut self,
        batch: &mut VecDeque<Line>,
        answers: Vec<Answer>,
        stored: impl Fn(&str),
    ) -> Result<Option<Trouble>, Ending> {
        if answers.is_empty() {
            return Ok(Some(Trouble::lost("the answer says nothing of what was sent")));
        }
        for answer in answers {
            let Some(line) = batch.front() else { break };
            match answer {
                Answer::Stored { id } => stored(&id),
                Answer::Refused(problem) if problem.code == "too_large" => {
                    super::tell(format_args!("{line} was refused: {}", problem.detail));
                    self.refused += 1;
                }
                Answer::Refused(problem) => match Trouble::told(problem, None) {
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

    /// It was sent for the last time just before the key was forgotten, and could come just after.
    #[test]
    fn what_is_sent_as_the_same_message_comes_long_before_its_key_is_forgotten() {
        let (remembered, margin) = (Duration::from_secs(5 * 60), Duration::from_secs(60));
        assert!(KEY_TRUSTED + ANSWER_TIMEOUT + margin <= remembered);
    }
}
