//! The four transports, each read through a client of another project, as one stream of JSON frames.

mod poll;
mod socket;
mod streams;

use serde_json::Value;

pub use self::{
    poll::Poll,
    socket::Socket,
    streams::{Events, Lines, Stream, bytes_of, frame_of},
};
use crate::{
    ask::{self, Answer, Ask, text},
    support::{Server, client::Transport},
};

type Headers<'a> = &'a [(&'a str, &'a str)];

/// One subscription. It gives out messages, gaps and `closing`, and skips frames that only show that the
/// connection is alive.
pub enum Reader {
    WebSocket(Box<Socket>),
    Sse(Box<Events>),
    Ndjson(Box<Lines>),
    Poll(Box<Poll>),
}

impl Reader {
    /// Subscribes by `/events?{query}`.
    pub async fn open(server: &Server, transport: Transport, query: &str) -> Self {
        Self::open_with(server, transport, query, &[]).await
    }

    pub async fn open_with(server: &Server, transport: Transport, query: &str, headers: Headers<'_>) -> Self {
        let path = format!("/events?{query}");
        match transport {
            Transport::WebSocket => {
                Self::WebSocket(Box::new(Socket::open_with(server, &path, headers).await))
            }
            Transport::Sse => Self::Sse(Box::new(Events::open_with(server, &path, headers).await)),
            Transport::Ndjson => Self::Ndjson(Box::new(Lines::open_with(server, &path, headers).await)),
            Transport::Poll => Self::Poll(Box::new(Poll::open_with(server, &path, headers).await)),
        }
    }

    /// The frame that opened the connection. A poll has none.
    pub fn opening(&self) -> &Value {
        match self {
            Self::WebSocket(socket) => &socket.opening,
            Self::Sse(events) => &events.opening,
            Self::Ndjson(lines) => &lines.opening,
            Self::Poll(_) => &Value::Null,
        }
    }

    /// The next message, gap or `closing`.
    pub async fn next(&mut self) -> Value {
        loop {
            let frame = match self {
                Self::WebSocket(socket) => socket.next().await,
                Self::Sse(events) => events.next_frame().await,
                Self::Ndjson(lines) => lines.next().await,
                Self::Poll(poll) => poll.next().await,
            };
            if frame["type"] != "cursor" {
                return frame;
            }
        }
    }

    /// The ids of the next messages.
    pub async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let frame = self.next().await;
            assert_eq!(frame["type"], "message", "{frame} after {ids:?}");
            ids.push(text(&frame["id"]));
        }
        ids
    }

    /// The next frame, which must be a gap.
    pub async fn gap(&mut self) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["type"], "gap", "{frame}");
        frame
    }

    /// The cursor with which this client would reconnect.
    pub fn cursor(&self) -> &str {
        match self {
            Self::WebSocket(socket) => &socket.cursor,
            Self::Sse(events) => &events.cursor,
            Self::Ndjson(lines) => &lines.cursor,
            Self::Poll(poll) => poll.cursor(),
        }
    }
}

/// The answer to a subscription by this transport that should be refused.
pub async fn refusal(server: &Server, transport: Transport, path: &str, headers: Headers<'_>) -> Answer {
    let mut request = ask::get(server, path);
    for (name, value) in transport_headers(transport).iter().chain(headers) {
        request = request.header(*name, *value);
    }
    request.answer().await
}

/// The headers that a client of this transport sends.
pub fn transport_headers(transport: Transport) -> Headers<'static> {
    match transport {
        Transport::WebSocket => &[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAECAwQFBgcICQoLDA0ODw=="),
        ],
        Transport::Sse => &[("accept", "text/event-stream")],
        Transport::Ndjson => &[("accept", "application/x-ndjson")],
        Transport::Poll => &[("accept", "application/json")],
    }
}

/// The cursor of a reader after this frame, if the frame moves it.
fn cursor_after(frame: &Value) -> Option<String> {
    if frame["replay"] == true {
        return None;
    }
    let cursor = if frame["type"] == "message" { &frame["id"] } else { &frame["cursor"] };
    cursor.as_str().map(str::to_owned)
}
