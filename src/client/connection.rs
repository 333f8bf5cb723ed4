//! One connection that reads topics, by any transport, as frames.
//!
//! It ends with the connection: the subscription decides when to reconnect, and with which cursor.

mod frame;
mod lines;
mod poll;
mod websocket;

use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

pub(super) use self::frame::Frame;
pub use self::frame::{Gap, Message};
use self::{lines::Lines, poll::Poll, websocket::WebSocket};
use super::{Client, ClientError, Start, Transport};

/// How long an answer may take. Until a stream has sent its heartbeat, this also limits its silence.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest frame that is read: far more than any server lets a client publish.
const MAX_FRAME_BYTES: usize = 64 << 20;

pub(super) struct Connection {
    by: By,
    /// A connection that is silent for this long is dead, also if the system does not know it yet.
    silence: Duration,
}

enum By {
    WebSocket(Box<WebSocket>),
    Lines(Box<Lines>),
    Poll(Box<Poll>),
}

impl Connection {
    pub async fn open(client: &Client, topics: &[String], start: &Start) -> Result<Self, ClientError> {
        let url = url(client, topics, start);
        let opening = async {
            Ok::<_, ClientError>(match client.transport {
                Transport::WebSocket => By::WebSocket(Box::new(WebSocket::open(client, url).await?)),
                Transport::Sse => By::Lines(Box::new(Lines::events(client, url).await?)),
                Transport::Ndjson => By::Lines(Box::new(Lines::ndjson(client, url).await?)),
                Transport::Poll => By::Poll(Box::new(Poll::new(client, url))),
            })
        };
        let by = timeout(ANSWER_TIMEOUT, opening).await.map_err(|_| silent())??;
        Ok(Self { by, silence: ANSWER_TIMEOUT })
    }

    /// The next frame. The first one is [`Frame::Open`].
    ///
    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        let next = async {
            match &mut self.by {
                By::WebSocket(socket) => socket.next().await,
                By::Lines(lines) => lines.next().await,
                By::Poll(poll) => poll.next().await,
            }
        };
        let frame = timeout(self.silence, next).await.map_err(|_| silent())??;
        if let Frame::Open { heartbeat, .. } = &frame {
            // One late heartbeat is no reason to leave; two are.
            self.silence = 2 * *heartbeat + ANSWER_TIMEOUT;
        }
        Ok(frame)
    }
}

fn silent() -> ClientError {
    ClientError::lost("the server has gone silent: no answer and no heartbeat")
}

fn url(client: &Client, topics: &[String], start: &Start) -> Url {
    let mut url = client.at("/events");
    let mut query = url.query_pairs_mut();
    for topic in topics {
        query.append_pair("topic", topic);
    }
    match start {
        Start::Now => &mut query,
        Start::After(cursor) => query.append_pair("after", cursor),
        Start::Last(count) => query.append_pair("last", &count.to_string()),
        Start::Since(since) => query.append_pair("since", since),
    };
    drop(query);
    url
}
