//! A stream on HTTP/1.1 that has left the HTTP library: its head and its chunks (RFC 9112 §7.1) are written here.
//!
//! An answer leaves the library before its head is written. So a connection that only streams holds no parser and no
//! buffers, and a message costs it one write.

use std::{
    io::{self, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::{
    App,
    gate::Gate,
    group::Groups,
    outbox::Outbox,
    outgoing::PIECE_BYTES,
    shared_socket::SharedSocket,
    stall::StallGuard,
    stream::{Offered, Streaming},
};

/// The chunk that ends a body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// How many bytes are read at once from a client that sends something on a stream. They are dropped.
const DROPPED_BYTES: usize = 512;
/// A client that sends more than this on a stream is no reader: its connection ends.
const MAX_DROPPED_BYTES: usize = 64 << 10;
/// How long a client may take to read the last frame once the server does not wait any longer.
pub const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream, and the head of its answer.
pub struct Feed {
    head: Vec<u8>,
    stream: Streaming,
}

impl Feed {
    /// Takes the stream out of an answer, if it has one.
    pub fn of(response: &mut Response) -> Option<Self> {
        let stream = response.extensions_mut().remove::<Offered>()?.take()?;
        // Without `Connection: close`, though the connection ends with the stream: with it, a client such as undici takes
        // a connection that breaks for a stream that has ended, and then asks no more.
        Some(Self { head: head(response.headers()), stream })
    }

    /// Writes the answer until it ends, or the client leaves.
    ///
    /// # Cancel safety
    /// Dropping this ends the connection, and a client that reads on misses the last chunk.
    pub fn run(self, app: Arc<App>, io: StallGuard<SharedSocket>) -> impl Future<Output = ()> + Send {
        let Self { head, stream } = self;
        let mut outbox = Outbox::default();
        outbox.push(head.into());
        let groups = app.groups.clone();
        let writing =
            Writing { groups, io, incoming: Gate::new(), dropped: 0, outbox, stream, is_done: false };
        // In a box, and made before the future: a future has room for all that it was ever given.
        Box::new(writing).run(app)
    }
}

impl Writing {
    /// See [`Feed::run`].
    async fn run(mut self: Box<Self>, app: Arc<App>) {
        // The stream ends by itself once the server does, but perhaps it has yet to hear of this.
        let written = until_end(&app, std::future::poll_fn(|cx| self.poll(cx))).await;
        let ended = match written {
            // In a box too.
            Some(Ok(())) => Box::pin(self.shut_down(&app)).await,
            failed => failed,
        };
        if let Some(Err(error)) = ended {
            if error.kind() == io::ErrorKind::TimedOut {
                app.metrics.slow_closes.inc();
            }
            tracing::debug!(%error, "connection failed");
        }
    }

    async fn shut_down(self: Box<Self>, app: &App) -> Option<io::Result<()>> {
        let Self { mut io, stream, .. } = *self;
        drop(stream);
        until_end(app, std::future::poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx))).await
    }
}

/// Waits for a write, and only a little once the server does not wait any longer. `None` if that was too short.
async fn until_end<T>(app: &App, mut writing: impl Future<Output = T> + Unpin) -> Option<T> {
    tokio::select! {
        biased;
        written = &mut writing => Some(written),
        // In a box, so that open streams need no memory for it.
        () = app.shutdown.ended() => Box::pin(timeout(LAST_WRITE_TIMEOUT, writing)).await.ok(),
    }
}

/// The status and the fields of an answer whose body comes in chunks.
fn head(headers: &HeaderMap) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    let mut field = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    headers.iter().for_each(|(name, value)| field(name.as_str(), value.as_bytes()));
    field("transfer-encoding", b"chunked");
    field("date", httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    head.extend_from_slice(b"\r\n");
    head
}

/// Chunks with these bytes, of the same size as the pieces in which other answers leave.
pub fn chunk(bytes: &[u8]) -> Bytes {
    let mut chunks = Vec::with_capacity(bytes.len() + 16);
    for piece in bytes.chunks(PIECE_BYTES) {
        write!(chunks, "{:x}\r\n", piece.len()).expect("writing to memory cannot fail");
        chunks.extend_from_slice(piece);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.into()
}

/// One stream that is being written.
struct Writing {
    groups: Arc<Groups>,
    io: StallGuard<SharedSocket>,
    /// Opens when the client has sent something, or has left.
    incoming: Gate,
    /// How many bytes the client has sent.
    dropped: usize,
    outbox: Outbox,
    stream: Streaming,
    /// The last chunk is in the outbox.
    is_done: bool,
}

impl Writing {
    /// Ready once everything is written, or the client is gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = self.stream.take_over() {
            self.outbox.push_begun(rest);
        }
        loop {
            while !self.outbox.is_empty() {
                ready!(self.outbox.poll_write(&mut self.io, cx))?;
            }
            // TLS holds back what the socket has not taken, and perhaps a group has left that behind.
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            if self.is_done {
                return Poll::Ready(Ok(()));
            }
            match self.stream.poll_bytes(cx) {
                Poll::Ready(Some(bytes)) => self.push(&bytes),
                Poll::Ready(None) => {
                    self.outbox.push(Bytes::from_static(LAST_CHUNK));
                    self.is_done = true;
                }
                Poll::Pending => {
                    let gone = self.poll_gone(cx);
                    if gone.is_pending() {
                        self.stream.park(cx, &self.groups, self.io.socket());
                    }
                    return gone;
                }
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(record) = self.stream.reader().access().record() {
            record.count(bytes.len());
        }
        self.outbox.push(chunk(bytes));
    }

    /// Ready once the client has closed its side. Bytes that it sends are dropped, and end the connection if they are many.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, incoming, dropped, .. } = self;
        incoming.poll(cx, |cx| {
            let mut bytes = [0; DROPPED_BYTES];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
                *dropped += buffer.filled().len();
                if buffer.filled().is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                if *dropped > MAX_DROPPED_BYTES {
                    return Poll::Ready(Err(io::Error::other(
                        "the client sent more than 64 KiB on a stream",
                    )));
                }
            }
        })
    }
}
