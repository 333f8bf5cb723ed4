//! `rejoin::client` against a real server, which restarts, refuses, and loses connections.

#[path = "client/mine.rs"]
mod mine;
#[path = "cli/proxy.rs"]
mod proxy;
#[path = "client/publishing.rs"]
mod publishing;
#[path = "support/signer.rs"]
mod signer;
#[path = "client/stranger.rs"]
mod stranger;
#[path = "client/subscribing.rs"]
mod subscribing;
mod support;
#[path = "client/tokens.rs"]
mod tokens;

use std::time::Duration;

use rejoin::client::{Client, ClientError, Draft, Event, Gap, Message, Progress, Subscription, Transport};
use tokio::time::timeout;
use tokio_stream::StreamExt;

const TRANSPORTS: [Transport; 4] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson, Transport::Poll];

/// Every awaited event comes at once, or a little later on a busy machine. This turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn client(url: &str) -> Client {
    Client::new(url).expect("a URL")
}

/// The next event or error, whatever it is.
async fn next(subscription: &mut Subscription) -> Result<Event, ClientError> {
    timeout(PATIENCE, subscription.next()).await.expect("it comes in time").expect("it has not ended")
}

/// The next message or gap.
async fn heard(subscription: &mut Subscription) -> Result<Message, Gap> {
    let heard = async {
        loop {
            match next(subscription).await.expect("no error") {
                Event::Message(message) => return Ok(message),
                Event::Gap(gap) => return Err(gap),
                _ => {}
            }
        }
    };
    // A subscription that connects again and again is not quiet, and hears nothing all the same.
    timeout(PATIENCE, heard).await.expect("it comes in time")
}

/// The text of the next message.
async fn text(subscription: &mut Subscription) -> String {
    let message = heard(subscription).await.expect("no gap");
    String::from_utf8(message.payload).expect("UTF-8")
}

/// Publishes these texts, and returns their ids.
async fn publish(client: &Client, topic: &str, texts: impl IntoIterator<Item = String>) -> Vec<String> {
    let drafts: Vec<_> = texts.into_iter().map(|text| Draft::new(topic, text)).collect();
    let mut publishing = client.publish_all(tokio_stream::iter(drafts));
    let mut ids = Vec::new();
    while let Some(progress) = timeout(PATIENCE, publishing.next()).await.expect("it comes in time") {
        match progress.expect("no error") {
            Progress::Stored { id } => ids.push(id),
            Progress::Retrying(_) | Progress::Recovered => {}
            other => panic!("{other:?}"),
        }
    }
    ids
}
