//! The requests of the benchmark, as bytes.

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use memchr::memmem;

use crate::{
    Outcome,
    decode::{Decoder, Framing, Record},
};

/// The `Host` of every request: an open server accepts only a loopback name.
const HOST: &str = "host: localhost\r\n";

/// The longest wait of the benchmark, unless a row says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The transports that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Sse,
    Ndjson,
    Poll,
}

impl Transport {
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::Sse, Self::Ndjson, Self::Poll];

    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Sse => "SSE",
            Self::Ndjson => "NDJSON",
            Self::Poll => "long-poll",
        }
    }

    pub fn framing(self) -> Framing {
        match self {
            Self::WebSocket => Framing::WebSocket,
            Self::Sse => Framing::Sse,
            Self::Ndjson => Framing::Ndjson,
            Self::Poll => Framing::Answers,
        }
    }

    /// A request to read `topic`, with `query` as the start.
    pub fn subscribe(self, topic: &str, query: &str) -> Vec<u8> {
        let headers = match self {
            Self::WebSocket => {
                "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            }
            Self::Sse => "accept: text/event-stream\r\n",
            Self::Ndjson => "accept: application/x-ndjson\r\n",
            Self::Poll => "accept: application/json\r\n",
        };
        let mark = if query.is_empty() { "" } else { "?" };
        format!("GET /topics/{topic}{mark}{query} HTTP/1.1\r\n{HOST}{headers}\r\n").into_bytes()
    }
}

/// The next poll after `cursor`.
pub fn poll(topic: &str, cursor: &str) -> Vec<u8> {
    format!(
        "GET /topics/{topic}?after={cursor}&wait=60&limit=1000 HTTP/1.1\r\n{HOST}accept: application/json\r\n\r\n"
    )
    .into_bytes()
}

pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{HOST}accept: application/json\r\n\r\n").into_bytes()
}

pub fn post(path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    with_body("POST", path, content_type, body)
}

pub fn put(path: &str, body: &[u8]) -> Vec<u8> {
    with_body("PUT", path, "application/octet-stream", body)
}

fn with_body(method: &str, path: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\n{HOST}content-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend(body);
    request
}

/// A JSON payload of exactly `bytes` bytes that begins with a time, in 20 digits.
pub fn payload(bytes: usize, time: u64) -> String {
    let mut json = format!(r#"{{"at":"{time:020}","fill":""#);
    let fill = bytes.saturating_sub(json.len() + 2);
    json.extend(std::iter::repeat_n('x', fill));
    json.push_str("\"}");
    json
}

/// One `POST /publish` with a message to each of `topics`.
pub fn batch(topics: impl IntoIterator<Item = String>, payload: &str) -> Vec<u8> {
    let mut body = String::new();
    for topic in topics {
        writeln!(body, r#"{{"topic":"{topic}","data":{payload}}}"#).expect("writing to a string cannot fail");
    }
    post("/publish", "application/x-ndjson", body.as_bytes())
}

/// One connection that publishes and waits for each answer.
pub struct Publisher {
    socket: TcpStream,
    decoder: Decoder,
}

impl Publisher {
    pub fn connect(addr: SocketAddr) -> Outcome<Self> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, decoder: Decoder::http(Framing::Answers) })
    }

    /// Sends a request. Call [`Publisher::accepted`] before the next one.
    pub fn send(&mut self, request: &[u8]) -> Outcome<()> {
        Ok(self.socket.write_all(request)?)
    }

    /// Waits for the answer. A batch with any refused message is an error.
    pub fn accepted(&mut self) -> Outcome<()> {
        let mut inbox = [0; 64 * 1024];
        let (mut answered, mut refused) = (false, None);
        while !answered {
            let count = self.socket.read(&mut inbox)?;
            if count == 0 {
                return Err("the publisher's connection was closed".into());
            }
            self.decoder.feed(&inbox[..count], &mut |record| {
                let Record::Answer(body) = record else { return };
                answered = true;
                if let Some(at) = memmem::find(body, br#""code":"#) {
                    let end = body.len().min(at + 200);
                    refused = Some(String::from_utf8_lossy(&body[at..end]).into_owned());
                }
            })?;
        }
        match refused {
            Some(problem) => Err(format!("a message was refused: {problem}").into()),
            None => Ok(()),
        }
    }

    pub fn publish(&mut self, request: &[u8]) -> Outcome<()> {
        self.send(request)?;
        self.accepted()
    }
}
