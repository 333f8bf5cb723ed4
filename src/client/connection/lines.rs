//! The two transports that are one long HTTP answer: NDJSON, and Server-Sent Events with envelopes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use reqwest::{StatusCode, Url, header};
use sse_stream::SseByteStream;

use super::{MAX_FRAME_BYTES, frame::Frame};
use crate::client::{Client, ClientError};

type Chunks = BoxStream<'static, Result<Bytes, ClientError>>;

pub enum Lines {
    Ndjson { chunks: Chunks, read: BytesMut },
    Events(Events),
}

/// The events of a body, each of a bounded size.
pub struct Events {
    events: SseByteStream<Chunks>,
    /// How many bytes were read since the last event.
    read: Arc<AtomicUsize>,
}

impl Lines {
    pub async fn ndjson(client: &Client, url: Url) -> Result<Self, ClientError> {
        Ok(Self::Ndjson { chunks: chunks(client, url, "application/x-ndjson").await?, read: BytesMut::new() })
    }

    pub async fn events(client: &Client, mut url: Url) -> Result<Self, ClientError> {
        url.query_pairs_mut().append_pair("format", "envelope");
        Ok(Self::Events(Events::new(chunks(client, url, "text/event-stream").await?)))
    }

    /// # Cancel safety
    /// Dropping this loses nothing.
    pub async fn next(&mut self) -> Result<Frame, ClientError> {
        loop {
            let json = match self {
                Self::Ndjson { chunks, read } => line(chunks, read).await?,
                Self::Events(events) => events.next().await?,
            };
            if let Some(frame) = Frame::parse(json)? {
                return Ok(frame);
            }
        }
    }
}

async fn chunks(client: &Client, url: Url, accept: &str) -> Result<Chunks, ClientError> {
    let request = client.http.get(url).header(header::ACCEPT, accept);
    Ok(client.ask(request, StatusCode::OK).await?.bytes_stream().map_err(ClientError::from).boxed())
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

impl Events {
    fn new(chunks: Chunks) -> Self {
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        // The parser keeps an event until its end, however long it is.
        let bounded = chunks.and_then(move |chunk| {
            let before = counter.fetch_add(chunk.len(), Ordering::Relaxed);
            std::future::ready(if before > MAX_FRAME_BYTES {
                Err(ClientError::not_ours("an event without an end"))
            } else {
                Ok(chunk)
            })
        });
        Self { events: SseByteStream::new(bounded.boxed()), read }
    }

    async fn next(&mut self) -> Result<Bytes, ClientError> {
        loop {
            let event = self.events.next().await.ok_or_else(over)?;
            self.read.store(0, Ordering::Relaxed);
            match event {
                Ok(event) => {
                    if let Some(data) = event.data {
                        return Ok(data.into());
                    }
                }
                Err(sse_stream::Error::Body(error)) => {
                    return Err(error.downcast().map_or_else(ClientError::not_ours, |error| *error));
                }
                Err(error) => return Err(ClientError::not_ours(error)),
            }
        }
    }
}

fn over() -> ClientError {
    ClientError::lost("the connection was closed")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// One chunk again and again, twice as much as one frame may have.
    fn chunks(chunk: &'static [u8]) -> Chunks {
        stream::iter(0..2 * MAX_FRAME_BYTES / chunk.len()).map(move |_| Ok(chunk.into())).boxed()
    }

    #[tokio::test]
    async fn a_frame_without_an_end_is_not_read_for_ever() {
        let piece: &'static [u8] = Box::leak(vec![b'x'; 1 << 20].into_boxed_slice());
        let event = Events::new(chunks(piece)).next().await;
        assert!(matches!(event, Err(ClientError::Unusable(_))), "{event:?}");
        let line = line(&mut chunks(piece), &mut BytesMut::new()).await;
        assert!(matches!(line, Err(ClientError::Unusable(_))), "{line:?}");
    }

    #[tokio::test]
    async fn a_stream_of_events_may_be_longer_than_one_frame() {
        let mut piece = vec![b'x'; 1 << 20];
        piece[..5].copy_from_slice(b"data:");
        piece.extend_from_slice(b"\n\n");
        let mut events = Events::new(chunks(Box::leak(piece.into_boxed_slice())));
        let mut count = 0;
        let end = loop {
            match events.next().await {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(end, ClientError::Lost { .. }), "{end:?}");
        assert!(count > 100, "{count}");
    }
}
