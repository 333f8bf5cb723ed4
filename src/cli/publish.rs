//! `rejoin pub`: one message, or each line of standard input, in order and once.

mod input;
mod outcomes;

use std::{io, path::PathBuf, time::Duration};

use clap::Args;
use rejoin::client::Draft;
use tokio_stream::StreamExt;

use self::{
    input::{file, lines},
    outcomes::{Line, Outcomes},
};
use super::{Ending, remote::Remote};

/// How long a script waits for a server that cannot be reached.
const GIVE_UP: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = super::examples(&[
    "rejoin pub orders.42 '{\"total\":12}' --event paid --key payment-7",
    "tail -f access.log | rejoin pub logs.web",
    "rejoin pub maps.1 --file map.png --content-type image/png",
]))]
pub struct Publish {
    /// Topic to publish to.
    topic: String,

    /// The message. With `-` or without DATA, each line of standard input is a message.
    data: Option<String>,

    /// Publish the bytes of this file as one message; `-` is all of standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    file: Option<PathBuf>,

    /// Event type that subscribers see.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,

    /// Media type of the message, such as image/png [default: JSON, text or octets, as the bytes are].
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// Idempotency key of the message: within 5 minutes the server stores one message of a topic under it.
    #[arg(long, value_name = "KEY", conflicts_with = "ephemeral")]
    key: Option<String>,

    /// Send to the subscriptions that are caught up, and retain nothing.
    #[arg(long)]
    ephemeral: bool,

    /// Give up after failing to publish anything for this long [default: never with lines of standard input,
    /// else 30s].
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = rejoin::config::duration)]
    give_up: Option<Duration>,

    #[command(flatten)]
    remote: Remote,
}

impl Publish {
    pub async fn run(self) -> Ending {
        self.publish().await.unwrap_or_else(|ending| ending)
    }

    async fn publish(self) -> Result<Ending, Ending> {
        let one = match (&self.data, &self.file) {
            (Some(data), _) if data != "-" => Some(data.clone().into_bytes()),
            (_, Some(path)) => Some(file(path).await.map_err(Ending::Failed)?),
            _ => None,
        };
        if self.key.is_some() && one.is_none() {
            return Err(Ending::Mistaken("--key is for one message: give DATA or --file".into()));
        }
        let mut client = self.remote.clone().client()?;
        if let Some(give_up) = self.give_up.or(one.is_some().then_some(GIVE_UP)) {
            client = client.with_give_up(give_up);
        }
        if let Some(bytes) = one {
            let drafts = tokio_stream::once(self.draft(bytes));
            return Outcomes::new(Line::ONLY, self.ephemeral).of(client.publish_all(drafts)).await;
        }
        let mut unread: Option<io::Error> = None;
        let drafts = lines(tokio::io::stdin(), &mut unread).map(|line| self.draft(line));
        let ending = Outcomes::new(Line::FIRST, self.ephemeral).of(client.publish_all(drafts)).await?;
        match unread {
            Some(error) => Err(Ending::Failed(format!("cannot read standard input: {error}"))),
            None => Ok(ending),
        }
    }

    fn draft(&self, bytes: Vec<u8>) -> Draft {
        let mut draft = Draft::new(&self.topic, bytes);
        if let Some(event) = &self.event {
            draft = draft.with_event(event);
        }
        if let Some(content_type) = &self.content_type {
            draft = draft.with_content_type(content_type);
        }
        if let Some(key) = &self.key {
            draft = draft.with_key(key);
        }
        if self.ephemeral { draft.ephemeral() } else { draft }
    }
}
