//! Who takes nothing is closed: sockets, and streams that share one.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};
use tokio_util::task::TaskTracker;

/// A socket whose writes fail when nothing could be written for a while.
///
/// Dropped while its peer takes nothing, it throws away what the peer has not taken; the system would
/// keep that for minutes.
pub struct StallGuard {
    /// What was read already, to be read again.
    head: Bytes,
    socket: TcpStream,
    timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl StallGuard {
    /// A socket of which `head` was read already.
    pub fn new(head: Bytes, socket: TcpStream, timeout: Duration) -> Self {
        Self { head, socket, timeout, stalled: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.poll_unpin(cx));
        stalled.as_mut().reset(Instant::now() + timeout);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl Drop for StallGuard {
    fn drop(&mut self) {
        if self.stalled.is_some()
            && let Err(error) = self.socket.set_zero_linger()
        {
            tracing::debug!(%error, "cannot reset a connection");
        }
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let length = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head.split_to(length));
        // What comes after it in the same read, so that the reader need not make more room for the rest.
        if buffer.remaining() > 0
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.socket).poll_read(cx, buffer)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StallGuard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// How often a body was polled, and whether what it gave last has been taken: the lowest bit is set from
/// then until it is polled again.
type Progress = Arc<AtomicU64>;

tokio::task_local! {
    static PROGRESS: Progress;
}

/// A body that shows its progress to the [`StreamExecutor`].
///
/// HTTP/2 does not poll a body whose window is closed, so the body cannot find out by itself.
pub struct WatchedBody {
    body: Body,
    progress: Option<Progress>,
}

impl WatchedBody {
    /// Must be made in the task of the stream that will carry the body.
    pub fn new(body: Body) -> Self {
        Self { body, progress: PROGRESS.try_with(Progress::clone).ok() }
    }

    fn note(&self, change: impl FnOnce(u64) -> u64) {
        if let Some(progress) = &self.progress {
            progress.store(change(progress.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.note(|polls| (polls | 1) + 1);
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.note(|polls| polls | 1);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs the streams of HTTP/2 connections, and drops one whose reader takes nothing for a while.
#[derive(Clone, Debug)]
pub struct StreamExecutor {
    pub timeout: Duration,
    pub slow_closes: IntCounter,
    /// Who waits for the streams at the end.
    pub tasks: TaskTracker,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let progress = Progress::default();
        let watched = watch(stream, progress.clone(), self.clone());
        self.tasks.spawn(PROGRESS.scope(progress, watched));
    }
}

async fn watch(stream: impl Future<Output = ()>, progress: Progress, executor: StreamExecutor) {
    let StreamExecutor { timeout, slow_closes, .. } = executor;
    let mut stream = std::pin::pin!(stream);
    let (mut seen, mut since) = (0, Instant::now());
    // Looked at four times within the timeout, so that a stall ends within a quarter of it.
    let mut look = tokio::time::interval(timeout / 4);
    loop {
        tokio::select! {
            () = &mut stream => return,
            _ = look.tick() => {}
        }
        let polls = progress.load(Ordering::Relaxed);
        let waits = polls % 2 == 1;
        if !waits || polls != seen {
            (seen, since) = (polls, Instant::now());
        } else if since.elapsed() >= timeout {
            tracing::debug!(code = "too_slow", "stream closed");
            slow_closes.inc();
            return;
        }
    }
}
