//! Closes sockets and HTTP/2 streams whose client has stopped reading.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, MissedTickBehavior, Sleep, sleep},
};
use tokio_util::task::TaskTracker;

use super::{idle::HeadBegun, linger::Linger, places::Place, shared_socket::SharedSocket, socket::Socket};

/// How many looks at a connection fit into the timeout: a stall ends at most a quarter of it late.
const LOOKS: u32 = 4;

/// Finds that nothing has moved for a timeout.
///
/// It looks several times in that time, and a look that comes late does not count: then this process was stopped, and
/// has yet to hear what its client did meanwhile.
pub struct StallTimer {
    timeout: Duration,
    /// How many looks have counted.
    looks: u32,
    next: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, looks: 0, next: None }
    }

    /// Something has moved.
    pub fn reset(&mut self) {
        self.looks = 0;
        self.next = None;
    }

    /// True if something waits to move.
    pub fn is_running(&self) -> bool {
        self.next.is_some()
    }

    /// Ready once nothing has moved for the timeout since the first poll. Then it begins again.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let every = self.timeout / LOOKS;
        let next = self.next.get_or_insert_with(|| Box::pin(sleep(every)));
        loop {
            ready!(next.poll_unpin(cx));
            let is_late = next.deadline().elapsed() > every;
            next.as_mut().reset(Instant::now() + every);
            self.looks += u32::from(!is_late);
            if self.looks >= LOOKS {
                self.looks = 0;
                return Poll::Ready(());
            }
        }
    }
}

/// A socket whose writes fail after nothing could be written for the timeout.
///
/// If it is dropped during a stall, it discards the bytes that the client has not read. The system would keep
/// them for minutes.
pub struct StallGuard<S: Discard = Socket> {
    /// Bytes that were read already, to be read again.
    head: Bytes,
    /// `None` once it was taken out.
    socket: Option<S>,
    stalled: StallTimer,
    begun: HeadBegun,
    written: Written,
    linger: Linger,
    place: Place,
}

/// A socket that can drop what the client has not read.
pub trait Discard: AsyncRead + AsyncWrite + Unpin {
    /// # Errors
    /// If the system does not know the socket any more.
    fn discard(&self) -> io::Result<()>;
}

impl Discard for Socket {
    fn discard(&self) -> io::Result<()> {
        self.tcp().set_zero_linger()
    }
}

impl Discard for SharedSocket {
    fn discard(&self) -> io::Result<()> {
        self.0.discard()
    }
}

/// True while bytes may have been given to a socket and not been flushed.
#[derive(Clone, Debug, Default)]
pub struct Written(Arc<AtomicBool>);

impl Written {
    /// True if everything that was written has left.
    pub fn is_flushed(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

impl StallGuard {
    /// A socket from which `head` was read already. Each read is noted in `begun`, and each write in `written`.
    pub fn new(
        head: Bytes,
        socket: Socket,
        timeout: Duration,
        begun: HeadBegun,
        written: Written,
        linger: Linger,
        place: Place,
    ) -> Self {
        let stalled = StallTimer::new(timeout);
        Self { head, socket: Some(socket), stalled, begun, written, linger, place }
    }

    /// Bytes that were read too early, to be read again before all others.
    pub fn give_back(&mut self, bytes: &[u8]) {
        self.head = [bytes, &self.head].concat().into();
    }

    /// The same connection with a socket that can be shared. `head` is read before all others.
    pub fn share(mut self, head: &[u8]) -> StallGuard<SharedSocket> {
        StallGuard {
            // A copy: the library's buffer is behind `head`, and would stay as long as the connection.
            head: [head, &self.head].concat().into(),
            socket: self.socket.take().map(|socket| SharedSocket(Arc::new(socket))),
            stalled: StallTimer::new(self.stalled.timeout),
            begun: self.begun.clone(),
            written: self.written.clone(),
            linger: std::mem::take(&mut self.linger),
            place: self.place.clone(),
        }
    }
}

impl StallGuard<SharedSocket> {
    /// The socket, for somebody else who writes to it.
    pub fn socket(&self) -> &SharedSocket {
        self.socket.as_ref().expect("a shared socket stays")
    }
}

impl<S: Discard> StallGuard<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled.reset();
            return result;
        }
        ready!(self.stalled.poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client has stopped reading")))
    }

    fn wire(&mut self) -> Pin<&mut S> {
        Pin::new(self.socket.as_mut().expect("nobody uses a guard whose socket was taken out"))
    }
}

impl<S: Discard> Drop for StallGuard<S> {
    fn drop(&mut self) {
        if self.stalled.is_running()
            && let Some(socket) = &self.socket
            && let Err(error) = socket.discard()
        {
            tracing::debug!(%error, "cannot reset a connection");
        }
    }
}

impl<S: Discard> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            let read = self.wire().poll_read(cx, buffer);
            if read.is_ready() {
                self.begun.set();
            }
            return read;
        }
        self.begun.set();
        let length = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head.split_to(length));
        // The bytes after it join the same read, so that the reader need not grow its buffer for them.
        if buffer.remaining() > 0
            && let Poll::Ready(Err(error)) = self.wire().poll_read(cx, buffer)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Discard> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.0.store(true, Ordering::Relaxed);
        self.begun.note_written();
        let result = self.wire().poll_write(cx, bytes);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written.0.store(true, Ordering::Relaxed);
        self.begun.note_written();
        let result = self.wire().poll_write_vectored(cx, slices);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.wire().poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.written.0.store(false, Ordering::Relaxed);
        }
        // TLS holds back what the socket has not taken.
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket: Some(socket), linger, begun, written, stalled, .. } = &mut *self else {
            return Poll::Ready(Ok(()));
        };
        if begun.is_refused() {
            linger.note_sending();
        }
        let ended = linger.poll_shutdown(cx, socket);
        if ended.is_pending() && !linger.has_ended_our_side() {
            // TLS has yet to write its last words.
            return self.watch(cx, ended);
        }
        // Bytes that were written and never flushed are a stall also after our side has ended.
        if written.is_flushed() {
            stalled.reset();
        }
        ended
    }
}

/// How often the body of an HTTP/2 stream was polled. The lowest bit is set while the last frame has not been taken, that
/// is until the body is polled again.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

tokio::task_local! {
    static PROGRESS: Progress;
}

impl Progress {
    /// That of the stream whose task this is. `None` on HTTP/1.1.
    pub fn of_this_stream() -> Option<Self> {
        PROGRESS.try_with(Self::clone).ok()
    }

    /// Runs the task of a stream.
    pub async fn scope<T>(self, stream: impl Future<Output = T>) -> T {
        PROGRESS.scope(self, stream).await
    }

    /// The body was polled, so the frame before was taken.
    pub fn asked(&self) {
        self.change(|polls| (polls | 1) + 1);
    }

    /// The body gave a frame.
    pub fn gave(&self) {
        self.change(|polls| polls | 1);
    }

    fn change(&self, change: impl FnOnce(u64) -> u64) {
        self.0.store(change(self.0.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

/// Runs the streams of one HTTP/2 connection, and drops a stream whose client has stopped reading.
#[derive(Clone, Debug)]
pub struct StreamExecutor {
    pub timeout: Duration,
    /// How many streams are open.
    pub open: watch::Sender<usize>,
    pub slow_closes: IntCounter,
    /// The end of the server waits for these streams.
    pub tasks: TaskTracker,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let progress = Progress::default();
        // In a box, because it would take its room again in each future around it.
        let watched = watch_stream(Box::pin(stream), progress.clone(), self.clone());
        let open = Open::new(&self.open);
        self.tasks.spawn(async move {
            let _open = open;
            progress.scope(watched).await;
        });
    }
}

/// One open stream.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|open| *open += 1);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

async fn watch_stream(
    mut stream: impl Future<Output = ()> + Unpin,
    progress: Progress,
    executor: StreamExecutor,
) {
    let StreamExecutor { timeout, slow_closes, .. } = executor;
    let (mut seen, mut unmoved) = (0, 0);
    let mut is_late;
    let mut look = tokio::time::interval(timeout / LOOKS);
    // A look that comes late does not count: this process was stopped, and has yet to hear what its clients did.
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut stream => return,
            due = look.tick() => is_late = due.elapsed() > timeout / LOOKS,
        }
        let polls = progress.0.load(Ordering::Relaxed);
        let waits = polls % 2 == 1;
        if !waits || polls != seen || is_late {
            (seen, unmoved) = (polls, 0);
            continue;
        }
        unmoved += 1;
        if unmoved >= LOOKS {
            tracing::debug!(code = "too_slow", "stream closed");
            slow_closes.inc();
            return;
        }
    }
}

#[cfg(test)]
mod tests;
