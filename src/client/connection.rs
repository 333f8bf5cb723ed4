//! One connection that reads topics, by any transport, as frames.
//!
//! It ends with the connection: the subscription decides when to reconnect, and with which cursor.

mod frame;
mod lines;
mod poll;
mod websocket;

use std::time::Duration;

use reqwest::Url;

pub(super) use self::frame::Frame;
pub use self::frame::{Gap, Message};
use self::{lines::Lines, poll::Poll, websocket::WebSocket};
use super::{Client, ClientError, Start, Transport, answer::within};

/// How long the head of an answer may take. Until a stream has sent its heartbeat, this also limits its silence.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest frame that is read: far more than any server lets a client publish.
const MAX_FRAME_BYTES: usize = 64 << 20;
/// The longest URL that is sent: with its headers it fits into the 64 KiB that a server takes.
const MAX_URL_BYTES: usize = 65_000;

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
    /// Opens a connection that reads these topics and, with `mine`, the list of the subject.
    pub async fn open(
        client: &Client,
        topics: &[String],
        mine: bool,
        start: &Start,
    ) -> Result<Self, ClientError> {
        let url = url(client, topics, mine, start);
        if url.as_str().len() > MAX_URL_BYTES {
            let why = format!("the URL has more than {MAX_URL_BYTES} bytes; use fewer topics, or patterns");
            return Err(ClientError::Unusable(why));
        }
        let opening = async {
            Ok::<_, ClientError>(match client.transport {
                Transport::WebSocket => By::WebSocket(Box::new(WebSocket::open(client, url).await?)),
                Transport::Sse => By::Lines(Box::new(Lines::events(client, url).await?)),
                Transport::Ndjson => By::Lines(Box::new(Lines::ndjson(client, url).await?)),
                Transport::Poll => By::Poll(Box::new(Poll::new(client, url))),
            })
        };
        let by = within(ANSWER_TIMEOUT, opening).await?;
        Ok(Self { by, silence: ANSWER_TIMEOUT })
    }

    /// The next frame. The first one is [`Frame::Open`].
    ///
    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        let frame = match &mut self.by {
            By::WebSocket(socket) => within(self.silence, socket.next()).await?,
            By::Lines(lines) => within(self.silence, lines.next()).await?,
            By::Poll(poll) => poll.next(self.silence).await?,
        };
        if let Frame::Open { heartbeat, .. } = &frame {
            // One late heartbeat is no reason to leave; two are.
            self.silence = 2 * *heartbeat + ANSWER_TIMEOUT;
        }
        Ok(frame)
    }
}

fn url(client: &Client, topics: &[String], mine: bool, start: &Start) -> Url {
    let mut url = client.at("/events");
    let mut query = url.query_pairs_mut();
    for topic in topics {
        query.append_pair("topic", topic);
    }
    if mine {
        query.append_pair("mine", "");
    }
    query.extend_pairs(start.parameter());
    drop(query);
    url
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::sleep,
    };

    use super::*;

    /// A large answer over a slow link takes longer than any silence. If that ended the poll, the client would ask
    /// for the same answer for ever.
    #[tokio::test]
    async fn a_poll_waits_for_an_answer_that_arrives_slowly() {
        let silence = Duration::from_secs(2);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let client =
            Client::new(&format!("http://{address}")).expect("a URL").with_transport(Transport::Poll);
        let mut connection =
            Connection::open(&client, &["t".into()], false, &Start::Now).await.expect("a poll");
        connection.silence = silence;
        let server = async {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            assert!(socket.read(&mut [0; 4096]).await.expect("a request") > 0);
            let body = r#"{"messages":[],"cursor":"1"}"#;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).await.expect("the head is sent");
            for byte in body.bytes() {
                sleep(2 * silence / body.len() as u32).await;
                socket.write_all(&[byte]).await.expect("the client still reads");
            }
            socket
        };
        let (frame, _) = tokio::join!(connection.next(), server);
        assert!(matches!(frame, Ok(Frame::Open { .. })), "{frame:?}");
    }
}
