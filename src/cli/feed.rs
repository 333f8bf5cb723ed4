//! One connection that reads topics, by any transport, as frames.
//!
//! It ends with the connection: the caller decides when to reconnect, and with which cursor.

mod frame;
mod lines;
mod poll;
mod websocket;

use std::time::Duration;

use clap::ValueEnum;
use reqwest::{Client, Url};
use tokio::time::timeout;

pub use self::frame::{Frame, Gap, Message};
use self::{lines::Lines, poll::Poll, websocket::WebSocket};
use super::remote::{Remote, Trouble};

/// How long an answer may take. Until a stream has sent its heartbeat, this also limits its silence.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest frame that is read: far more than any server lets a client publish.
const MAX_FRAME_BYTES: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// WebSocket
    Ws,
    /// Server-Sent Events
    Sse,
    /// Streamed HTTP, one JSON object on each line
    Ndjson,
    /// Long-polling
    Poll,
}

/// The start of reading.
#[derive(Clone, Debug)]
pub enum Start {
    Now,
    After(String),
    Last(u32),
    Since(String),
}

/// The topics to read, the start, and the transport.
#[derive(Clone, Debug)]
pub struct Wish {
    pub topics: Vec<String>,
    pub start: Start,
    pub transport: Transport,
}

pub struct Feed {
    connection: Connection,
    /// A connection that is silent for this long is dead, also if the system does not know it yet.
    silence: Duration,
}

enum Connection {
    WebSocket(Box<WebSocket>),
    Lines(Box<Lines>),
    Poll(Box<Poll>),
}

impl Feed {
    pub async fn open(remote: &Remote, client: &Client, wish: &Wish) -> Result<Self, Trouble> {
        let url = wish.url(remote);
        let opening = async {
            Ok::<_, Trouble>(match wish.transport {
                Transport::Ws => Connection::WebSocket(Box::new(WebSocket::open(client, url).await?)),
                Transport::Sse => Connection::Lines(Box::new(Lines::events(client, url).await?)),
                Transport::Ndjson => Connection::Lines(Box::new(Lines::ndjson(client, url).await?)),
                Transport::Poll => Connection::Poll(Box::new(Poll::new(client, url))),
            })
        };
        let connection = timeout(ANSWER_TIMEOUT, opening).await.map_err(|_| silent())??;
        Ok(Self { connection, silence: ANSWER_TIMEOUT })
    }

    /// The next frame. The first one is [`Frame::Open`].
    pub async fn next(&mut self) -> Result<Frame, Trouble> {
        let next = async {
            match &mut self.connection {
                Connection::WebSocket(socket) => socket.next().await,
                Connection::Lines(lines) => lines.next().await,
                Connection::Poll(poll) => poll.next().await,
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

fn silent() -> Trouble {
    Trouble::lost("the server has gone silent: no answer and no heartbeat")
}

impl Wish {
    fn url(&self, remote: &Remote) -> Url {
        let mut url = remote.at("/events");
        let mut query = url.query_pairs_mut();
        for topic in &self.topics {
            query.append_pair("topic", topic);
        }
        match &self.start {
            Start::Now => &mut query,
            Start::After(cursor) => query.append_pair("after", cursor),
            Start::Last(count) => query.append_pair("last", &count.to_string()),
            Start::Since(since) => query.append_pair("since", since),
        };
        drop(query);
        url
    }
}
