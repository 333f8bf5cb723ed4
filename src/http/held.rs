//! A poll that has been held for some time, outside of the HTTP library, whose buffers take four times as much as the
//! poll.
//!
//! The library reads the request, and writes the answer. Only between the two the connection is here: its socket, the
//! answer that is yet to come, and the bytes that the client has sent meanwhile. The library has forgotten the request
//! then. So it is given another one in its place, of a few words, whose answer is there already.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::response::Response;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    http1::{self, Answered, Connection, Unanswered},
    stall::StallGuard,
};

/// The request in place of that of the poll, and the same if the connection ends with the answer. An answer depends on
/// nothing else of its request: a poll that is held is no `HEAD`, and has HTTP/1.1.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
/// How many bytes are read of the next request once the poll has left the library. The others stay with the system until
/// the poll is answered.
const READ_BYTES: usize = 512;

thread_local! {
    static IS_HELD: Cell<bool> = const { Cell::new(false) };
}

/// Says that the answer which is being polled on this thread has been waited for, and may be for long.
pub fn waits() {
    IS_HELD.set(true);
}

/// Polls an answer, and tells if it [waits](waits).
pub fn watch<T>(poll: impl FnOnce() -> T) -> (T, bool) {
    IS_HELD.set(false);
    let result = poll();
    (result, IS_HELD.take())
}

/// Waits for the answer to a poll in a task of its own. `read` is what the library has read beyond the request.
pub fn begin(ours: Arc<Connection>, poll: Unanswered, io: StallGuard, read: &[u8]) {
    let app = ours.endpoint.app.clone();
    // A copy, because the library's buffer is behind it.
    let held = Held { ours, poll, io, read: read.to_vec() };
    // In a box, and made before the future: a future has room for all that it was ever given.
    app.tasks.spawn(Box::new(held).run());
}

/// One poll that is held, and its connection.
struct Held {
    ours: Arc<Connection>,
    poll: Unanswered,
    io: StallGuard,
    /// The beginning of the next request, if it has come.
    read: Vec<u8>,
}

impl Held {
    /// # Cancel safety
    /// Dropping this ends the connection.
    async fn run(mut self: Box<Self>) {
        match poll_fn(|cx| self.poll(cx)).await {
            Ok(response) => self.go_on(response),
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    self.ours.endpoint.app.metrics.slow_closes.inc();
                }
                tracing::debug!(%error, "connection failed");
            }
        }
    }

    /// Ready with the answer, or once the client is gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Response>> {
        if let Poll::Ready(Answered { response, .. }) = self.poll.answer.as_mut().poll(cx) {
            return Poll::Ready(Ok(response));
        }
        // The end of the client is not noticed behind its next request. The library would not notice it either.
        while self.read.is_empty() {
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.read = buffer.filled().to_vec();
        }
        Poll::Pending
    }

    /// Returns to the library with the answer, which it writes as any other one, and with all that was read.
    fn go_on(self, response: Response) {
        let Self { ours, poll, mut io, read } = self;
        let app = ours.endpoint.app.clone();
        io.give_back(&[if poll.is_last { LAST_REQUEST } else { REQUEST }, &read].concat());
        app.tasks.spawn(http1::serve(ours, io, Some(response)));
    }
}
