//! The two transports that are one long HTTP answer: NDJSON, and Server-Sent Events with envelopes.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use reqwest::{StatusCode, Url, header};
use sse_stream::SseByteStream;

use super::{MAX_FRAME_BYTES, frame::Frame};
use crate::client::{Client, ClientError};

type Chunks = BoxStream<'static, reqwest::Result<Bytes>>;

pub enum Lines {
    Ndjson { chunks: Chunks, read: BytesMut },
    Events(SseByteStream<Chunks>),
}

impl Lines {
    pub async fn ndjson(client: &Client, url: Url) -> Result<Self, ClientError> {
        Ok(Self::Ndjson { chunks: chunks(client, url, "application/x-ndjson").await?, read: BytesMut::new() })
    }

    pub async fn events(client: &Client, mut url: Url) -> Result<Self, ClientError> {
        url.query_pairs_mut().append_pair("format", "envelope");
        Ok(Self::Events(SseByteStream::new(chunks(client, url, "text/event-stream").await?)))
    }

    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        loop {
            let json = match self {
                Self::Ndjson { chunks, read } => line(chunks, read).await?,
                Self::Events(events) => event(events).await?,
            };
            if let Some(frame) = Frame::parse(json)? {
                return Ok(frame);
            }
        }
    }
}

async fn chunks(client: &Client, url: Url, accept: &str) -> Result<Chunks, ClientError> {
    let request = client.http.get(url).header(header::ACCEPT, accept);
    Ok(client.ask(request, StatusCode::OK).await?.bytes_stream().boxed())
}

async fn line(chunks: &mut Chunks, read: &mut BytesMut) -> Result<Bytes, ClientError> {
    // The bytes before this have been searched, and hold no line feed.
    let mut searched = 0;
    loop {
        if let Some(end) = memchr::memchr(b'\n', &read[searched..]) {
            let line = read.split_to(searched + end + 1).freeze();
            return Ok(line.slice(..line.len() - 1));
        }
        searched = read.len();
        if searched > MAX_FRAME_BYTES {
            return Err(ClientError::not_ours("a line without an end"));
        }
        read.extend_from_slice(&chunks.next().await.ok_or_else(over)??);
    }
}

async fn event(events: &mut SseByteStream<Chunks>) -> Result<Bytes, ClientError> {
    loop {
        match events.next().await.ok_or_else(over)? {
            Ok(event) => {
                if let Some(data) = event.data {
                    return Ok(data.into());
                }
            }
            Err(sse_stream::Error::Body(error)) => {
                return Err(ClientError::lost(format!("the connection was lost: {error}")));
            }
            Err(error) => return Err(ClientError::not_ours(error)),
        }
    }
}

fn over() -> ClientError {
    ClientError::lost("the connection was closed")
}
