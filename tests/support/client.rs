//! The four transports, each read through a client of another project, behind one `Connection`.
//!
//! A connection gives out frames, and knows if it holds the beginning of the next one. It keeps no cursor
//! except the one that its transport needs, and checks nothing.

mod http;
mod websocket;

use std::{fmt, net::SocketAddr};

use serde_json::{Map, Value, json};

use self::{
    http::{Ndjson, Poll, Sse},
    websocket::WebSocket,
};
use super::frame::{Cursor, Frame};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    WebSocket,
    Sse,
    Ndjson,
    Poll,
}

impl Transport {
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::Sse, Self::Ndjson, Self::Poll];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::Poll => "poll",
        })
    }
}

/// The start of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Now,
    /// Everything retained: `after=0`.
    All,
    Last(u64),
    After(Cursor),
}

impl Start {
    /// As a parameter of a query, a body or a command.
    pub fn parameter(self) -> Option<(&'static str, Value)> {
        match self {
            Self::Now => None,
            Self::All => Some(("after", json!("0"))),
            Self::Last(count) => Some(("last", json!(count))),
            Self::After(cursor) => Some(("after", json!(cursor.to_string()))),
        }
    }
}

/// One request to read.
#[derive(Debug, Clone)]
pub struct Wish {
    pub transport: Transport,
    /// Topics and patterns. Empty only on a WebSocket.
    pub filters: Vec<String>,
    pub start: Start,
    pub manner: Manner,
}

/// The choices where the contract allows several ways to ask.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// The cursor is in `Last-Event-ID`, and the query has an older one: the header wins.
    pub cursor_in_header: bool,
    /// `POST /events` instead of `GET`.
    pub by_post: bool,
    /// `/topics/{topic}` instead of `/events?topic=`, for one topic or one pattern.
    pub by_path: bool,
    /// `transport=` instead of `Accept`.
    pub transport_in_query: bool,
    /// Server-Sent Events of a single topic as envelopes on `/topics`, and raw on `/events`.
    pub other_format: bool,
    pub wait_s: u32,
    pub limit: u32,
}

impl Wish {
    fn path(&self) -> String {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
        match &self.filters[..] {
            [only] if self.goes_by_path() => {
                format!("/topics/{}", utf8_percent_encode(only, NON_ALPHANUMERIC))
            }
            _ => "/events".to_owned(),
        }
    }

    fn goes_by_path(&self) -> bool {
        self.manner.by_path && self.filters.len() == 1 && !self.goes_by_post()
    }

    fn goes_by_post(&self) -> bool {
        self.manner.by_post && self.transport != Transport::WebSocket
    }

    /// The topic whose payloads come without an envelope, so that no frame names it.
    fn raw_topic(&self) -> Option<String> {
        let [only] = &self.filters[..] else { return None };
        let raw = !only.contains('*') && self.goes_by_path() != self.manner.other_format;
        raw.then(|| only.clone())
    }

    /// The cursor that goes into `Last-Event-ID`.
    fn header(&self) -> Option<Cursor> {
        match self.start {
            Start::After(cursor) if self.manner.cursor_in_header => Some(cursor),
            _ => None,
        }
    }

    fn options(&self) -> Vec<(&'static str, Value)> {
        let mut options = Vec::new();
        match self.header() {
            // A browser repeats its first URL.
            Some(cursor) => options.push(("after", json!((cursor - 1).to_string()))),
            None => options.extend(self.start.parameter()),
        }
        if self.transport != Transport::WebSocket && self.manner.transport_in_query {
            options.push(("transport", json!(self.transport.to_string())));
        }
        if self.transport == Transport::Sse && self.manner.other_format {
            let format = if self.raw_topic().is_some() { "raw" } else { "envelope" };
            options.push(("format", json!(format)));
        }
        if self.transport == Transport::Poll {
            options.push(("wait", json!(self.manner.wait_s)));
            options.push(("limit", json!(self.manner.limit)));
        }
        options
    }

    /// Path and query.
    fn target(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if !self.goes_by_path() {
            self.filters.iter().for_each(|filter| _ = query.append_pair("topic", filter));
        }
        for (name, value) in self.options() {
            query.append_pair(name, value.as_str().unwrap_or(&value.to_string()));
        }
        format!("{}?{}", self.path(), query.finish())
    }

    fn body(&self) -> Value {
        let mut body = Map::from_iter([("topics".to_owned(), json!(self.filters))]);
        body.extend(self.options().into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(body)
    }
}

/// Why there is no next frame.
#[derive(Debug)]
pub enum Stop {
    /// The connection has ended. A cut looks like this from here.
    Ended(String),
    /// The server refuses the request for now.
    Refused(String),
    /// The server closes the connection with a reason.
    Closed(String),
    /// The contract does not allow this frame.
    Wrong(String),
}

pub enum Connection {
    WebSocket(Box<WebSocket>),
    Sse(Box<Sse>),
    Ndjson(Box<Ndjson>),
    Poll(Box<Poll>),
}

impl Connection {
    pub async fn open(addr: SocketAddr, wish: &Wish) -> Result<Self, Stop> {
        Ok(match wish.transport {
            Transport::WebSocket => Self::WebSocket(Box::new(WebSocket::open(addr, wish).await?)),
            Transport::Sse => Self::Sse(Box::new(Sse::open(addr, wish).await?)),
            Transport::Ndjson => Self::Ndjson(Box::new(Ndjson::open(addr, wish).await?)),
            Transport::Poll => Self::Poll(Box::new(Poll::new(addr, wish))),
        })
    }

    /// # Cancel safety
    /// Dropping this loses nothing on the streaming transports. A poll is repeated.
    pub async fn next(&mut self) -> Result<Frame, Stop> {
        match self {
            Self::WebSocket(socket) => socket.next().await,
            Self::Sse(events) => events.next().await,
            Self::Ndjson(lines) => lines.next().await,
            Self::Poll(poll) => poll.next().await,
        }
    }

    /// True if the client holds the beginning of a frame, and not its end.
    pub fn is_inside_a_frame(&self) -> bool {
        match self {
            Self::WebSocket(socket) => socket.is_inside_a_frame(),
            Self::Sse(events) => events.is_inside_a_frame(),
            Self::Ndjson(lines) => lines.is_inside_a_frame(),
            Self::Poll(poll) => poll.is_inside_a_frame(),
        }
    }

    /// Sends a command. Only a WebSocket can do that.
    pub async fn send(&mut self, command: &Value) -> Result<(), Stop> {
        match self {
            Self::WebSocket(socket) => socket.send(command).await,
            _ => unreachable!("commands are sent on WebSockets only"),
        }
    }
}
