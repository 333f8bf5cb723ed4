//! One connection that reads topics, by any transport, as frames.
//!
//! It ends with the connection: who comes back, when and from where is the caller's business.

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

/// How long an answer may take, and a stream until it has said how often it shows that it lives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest frame that is read: far more than a server lets anybody publish.
const MAX_FRAME_BYTES: usize = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// WebSocket
    Ws,
    /// Server-Sent Events
    Sse,
    /// An HTTP answer that goes on, one JSON object a line
    Ndjson,
    /// Long-polling
    Poll,
}

/// Where to begin.
#[derive(Clone, Debug)]
pub enum Start {
    Now,
    After(String),
    Last(u32),
    Since(String),
}

/// What to read, and how.
#[derive(Clone, Debug)]
pub struct Wish {
    pub topics: Vec<String>,
    pub start: Start,
    pub transport: Transport,
}

pub struct Feed {
    connection: Connection,
    /// After this long without a word the connection is dead, whatever the system believes of it.
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

    /// The next frame, of which the first is [`Frame::Open`].
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
            // A heartbeat that is late is no reason to leave yet; a second one is.
            self.silence = 2 * *heartbeat + ANSWER_TIMEOUT;
        }
        Ok(frame)
    }
}

fn silent() -> Trouble {
    Trouble::lost("the server says nothing any more")
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
