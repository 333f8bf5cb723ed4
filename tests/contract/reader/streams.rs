//! Responses that stay open: Server-Sent Events and NDJSON.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::header::HeaderMap;
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use super::{Headers, cursor_after, transport_headers};
use crate::{
    ask::{self, text, within},
    support::{Server, client::Transport},
};

/// The head and the body of a response that stays open.
pub struct Stream {
    pub headers: HeaderMap,
    pub chunks: BoxStream<'static, reqwest::Result<Bytes>>,
}

impl Stream {
    pub async fn open(server: &Server, transport: Transport, path: &str, headers: Headers<'_>) -> Self {
        let mut request = ask::get(server, path);
        for (name, value) in transport_headers(transport).iter().chain(headers) {
            request = request.header(*name, *value);
        }
        Self::of(request).await
    }

    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        // The client that has made the request, since it may have options of its own.
        let (client, request) = request.build_split();
        let request = request.expect("a request that can be sent");
        let what = format!("{} {}", request.method(), request.url());
        let response = within(&what, client.execute(request)).await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        if status != 200 {
            panic!("{status} {:?} to {what}", response.text().await);
        }
        Self { headers, chunks: response.bytes_stream().boxed() }
    }
}

/// Server-Sent Events, read by `sse-stream`.
pub struct Events {
    pub headers: HeaderMap,
    pub opening: Value,
    /// The last event id.
    pub cursor: String,
    pub retry_ms: Option<u64>,
    events: SseByteStream<BoxStream<'static, reqwest::Result<Bytes>>>,
}

impl Events {
    pub async fn open(server: &Server, path: &str) -> Self {
        Self::open_with(server, path, &[]).await
    }

    pub async fn open_with(server: &Server, path: &str, headers: Headers<'_>) -> Self {
        let stream = Stream::open(server, Transport::Sse, path, headers).await;
        let mut events = Self::of(stream);
        events.opening = events.next_frame().await;
        events
    }

    pub fn of(Stream { headers, chunks }: Stream) -> Self {
        let (opening, cursor, retry_ms) = (Value::Null, String::new(), None);
        Self { headers, opening, cursor, retry_ms, events: SseByteStream::new(chunks) }
    }

    /// The next event, or `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Option<Sse> {
        let event = within("an event", self.events.next()).await?.expect("a stream that is not cut");
        self.cursor = event.id.clone().unwrap_or_else(|| panic!("an event without an id: {event:?}"));
        self.retry_ms = event.retry.or(self.retry_ms);
        assert!(event.data.is_some(), "an event without data: {event:?}");
        Some(event)
    }

    pub async fn next(&mut self) -> Sse {
        self.try_next().await.expect("an event, and not the end of the stream")
    }

    /// The next event of a stream of envelopes, as a frame.
    pub async fn next_frame(&mut self) -> Value {
        frame_of(&self.next().await)
    }
}

/// The object in an event of a stream of envelopes.
pub fn frame_of(event: &Sse) -> Value {
    let data = event.data.as_deref().expect("data");
    let frame: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {event:?}"));
    match event.event.as_deref() {
        Some(name) if name.starts_with("rejoin.") => {
            assert_eq!(name, format!("rejoin.{}", text(&frame["type"])), "{event:?}");
            assert_eq!(event.id.as_deref(), frame["cursor"].as_str(), "the id is the cursor: {event:?}");
        }
        _ => assert_eq!(frame["type"], "message", "{event:?}"),
    }
    frame
}

/// NDJSON, one object on each line.
pub struct Lines {
    pub headers: HeaderMap,
    pub opening: Value,
    pub cursor: String,
    chunks: BoxStream<'static, reqwest::Result<Bytes>>,
    line: Vec<u8>,
}

impl Lines {
    pub async fn open(server: &Server, path: &str) -> Self {
        Self::open_with(server, path, &[]).await
    }

    pub async fn open_with(server: &Server, path: &str, headers: Headers<'_>) -> Self {
        let mut lines = Self::of(Stream::open(server, Transport::Ndjson, path, headers).await);
        lines.opening = lines.next().await;
        lines
    }

    pub fn of(Stream { headers, chunks }: Stream) -> Self {
        Self { headers, opening: Value::Null, cursor: String::new(), chunks, line: Vec::new() }
    }

    /// The next line without its end, or `None` at the end of the stream.
    pub async fn try_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let rest = self.line.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.line, rest);
                line.pop();
                return Some(String::from_utf8(line).expect("a line of UTF-8"));
            }
            match within("a line", self.chunks.next()).await {
                Some(chunk) => self.line.extend_from_slice(&chunk.expect("a stream that is not cut")),
                None => {
                    assert!(self.line.is_empty(), "the stream ends within a line");
                    return None;
                }
            }
        }
    }

    pub async fn next(&mut self) -> Value {
        let line = self.try_line().await.expect("a line, and not the end of the stream");
        let frame: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.cursor = cursor_after(&frame).unwrap_or(std::mem::take(&mut self.cursor));
        frame
    }
}

/// The bytes of a body up to its end.
pub async fn bytes_of(chunks: impl futures_util::Stream<Item = reqwest::Result<Bytes>>) -> Vec<u8> {
    let chunks: Vec<Bytes> =
        within("the end of a body", chunks.try_collect()).await.expect("a body that is not cut");
    chunks.concat()
}
