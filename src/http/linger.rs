//! Lets a client hear an answer that comes before its request has been read: the rest is read and dropped.
//!
//! If a socket is closed while bytes are unread, the system resets the connection, and the client may lose the answer
//! (RFC 9112 §9.6).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use futures_util::FutureExt;
use http::header;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, timeout},
};

use super::wakes;

/// A body with at most this much left is read before the answer leaves, and then the connection lives on.
const SMALL_BYTES: u64 = 64 << 10;
/// How long this may take.
const SMALL_TIME: Duration = Duration::from_secs(1);
/// How many bytes are dropped after an answer that closes the connection. A client that is to learn of a mistake has
/// sent fewer.
const MAX_DROPPED_BYTES: usize = 64 << 20;
/// How long this may take.
const MAX_TIME: Duration = Duration::from_secs(30);
/// How long the client may send nothing meanwhile, and not close.
const QUIET: Duration = Duration::from_secs(5);
/// How many bytes are dropped at once.
const PIECE_BYTES: usize = 8 << 10;

/// A body that no handler has read to its end.
type Unread = Arc<Mutex<Option<Incoming>>>;

/// The part of a request's body that its handler does not read.
#[derive(Clone)]
pub struct Rest {
    unread: Unread,
    /// The client waits for `100 Continue` before it sends the body.
    is_awaited: bool,
}

/// Takes care of a request's body. A request without one has no rest.
pub fn keep(request: hyper::Request<Incoming>) -> (Request, Option<Rest>) {
    if request.body().is_end_stream() {
        return (request.map(Body::new), None);
    }
    let unread = Unread::default();
    let is_awaited = request.headers().contains_key(header::EXPECT);
    let rest = Rest { unread: unread.clone(), is_awaited };
    (request.map(|body| Body::new(KeptBody { body: Some(body), unread })), Some(rest))
}

impl Rest {
    /// True if there is none. The handler must have dropped the body.
    pub fn is_read(&self) -> bool {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Reads a small rest to its end. False if the rest is large, or does not come in time: then the connection
    /// cannot serve another request.
    ///
    /// # Cancel safety
    /// Dropping this drops the body.
    pub async fn read_to_end(self) -> bool {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = unread else { return true };
        if self.is_awaited || body.size_hint().lower() > SMALL_BYTES {
            return false;
        }
        let read = async {
            let mut left = SMALL_BYTES;
            while let Some(frame) = body.frame().await {
                let bytes =
                    frame.as_ref().map_or(None, |frame| frame.data_ref()).map_or(0, Bytes::len) as u64;
                if frame.is_err() || bytes > left {
                    return false;
                }
                left -= bytes;
            }
            true
        };
        timeout(SMALL_TIME, read).await.unwrap_or(false)
    }
}

/// A body that leaves itself behind if it is dropped before its end.
struct KeptBody {
    body: Option<Incoming>,
    unread: Unread,
}

impl http_body::Body for KeptBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(wakes::read_quietly(|| {
            let frame = Pin::new(&mut *body).poll_frame(cx);
            (frame, body.is_end_stream())
        }));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take_if(|body| !body.is_end_stream()) {
            *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// If the client of one connection may still be sending a request that has been answered.
#[derive(Clone, Debug, Default)]
pub struct StillSends(Arc<AtomicBool>);

impl StillSends {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The end of one socket: first of our side, and of the client's side once it has stopped sending.
#[derive(Debug, Default)]
pub struct Linger {
    still_sends: StillSends,
    begun: Option<Box<Lingering>>,
}

#[derive(Debug)]
struct Lingering {
    dropped: usize,
    quiet: Pin<Box<Sleep>>,
    until: Instant,
}

impl Linger {
    pub fn new(still_sends: StillSends) -> Self {
        Self { still_sends, begun: None }
    }

    /// The client may still be sending.
    pub fn note_sending(&self) {
        self.still_sends.set();
    }

    /// True once nothing is left to be written, not even the last words of TLS.
    pub fn has_ended_our_side(&self) -> bool {
        self.begun.is_some()
    }

    /// Ends our side of the socket. Then, if the client is sending, drops what comes until the client closes, is quiet
    /// for some time, or has sent too much or for too long.
    pub fn poll_shutdown(
        &mut self,
        cx: &mut Context<'_>,
        mut socket: impl AsyncRead + AsyncWrite + Unpin,
    ) -> Poll<io::Result<()>> {
        if self.begun.is_none() {
            ready!(Pin::new(&mut socket).poll_shutdown(cx))?;
        }
        let begun = self.begun.get_or_insert_with(|| {
            Box::new(Lingering {
                dropped: 0,
                quiet: Box::pin(sleep(QUIET)),
                until: Instant::now() + MAX_TIME,
            })
        });
        let mut bytes = [0; PIECE_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending if !self.still_sends.0.load(Ordering::Relaxed) => return Poll::Ready(Ok(())),
                Poll::Pending => return begun.quiet.poll_unpin(cx).map(Ok),
            }
            self.still_sends.set();
            begun.dropped += buffer.filled().len();
            let now = Instant::now();
            if begun.dropped >= MAX_DROPPED_BYTES || now >= begun.until {
                return Poll::Ready(Ok(()));
            }
            begun.quiet.as_mut().reset(begun.until.min(now + QUIET));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn shut_down(linger: &mut Linger, socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        poll_fn(|cx| linger.poll_shutdown(cx, &mut *socket)).await.expect("it ends");
    }

    /// A client that never stops sending.
    struct Endless {
        sent: usize,
    }

    impl AsyncRead for Endless {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let length = buffer.remaining();
            buffer.initialize_unfilled();
            buffer.advance(length);
            self.sent += length;
            assert!(self.sent <= 2 * MAX_DROPPED_BYTES, "it is read without end");
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_client_that_never_stops_sending_is_left_after_so_many_bytes() {
        let mut socket = Endless { sent: 0 };
        shut_down(&mut Linger::default(), &mut socket).await;
        assert_eq!(socket.sent, MAX_DROPPED_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_slowly_is_left_after_the_time() {
        let (mut socket, mut client) = duplex(64);
        let began = Instant::now();
        let sending = async {
            while client.write_all(b"x").await.is_ok() {
                assert!(began.elapsed() < 3 * MAX_TIME, "it is read for ever");
                sleep(Duration::from_secs(1)).await;
            }
        };
        let mut linger = Linger::default();
        let closing = async {
            shut_down(&mut linger, &mut socket).await;
            drop(socket);
        };
        tokio::join!(sending, closing);
        assert!(began.elapsed() >= MAX_TIME, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_may_still_send_has_some_quiet_time_and_any_other_is_left_at_once() {
        for (may_send, expected) in [(false, Duration::ZERO), (true, QUIET)] {
            let (mut socket, mut client) = duplex(64);
            let still_sends = StillSends::default();
            if may_send {
                still_sends.set();
            }
            let began = Instant::now();
            shut_down(&mut Linger::new(still_sends), &mut socket).await;
            assert_eq!(began.elapsed().as_secs(), expected.as_secs());
            assert_eq!(client.read(&mut [0]).await.expect("the end"), 0, "our side has ended");
        }
    }
}
