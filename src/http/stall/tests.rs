//! A client that has stopped reading, and bytes that are read again.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A socket that takes every write, and holds it back until `takes` is set, as TLS does.
#[derive(Clone, Default)]
struct Holding {
    takes: Arc<AtomicBool>,
    has_discarded: Arc<AtomicBool>,
}

impl Holding {
    fn guard(&self, timeout: Duration) -> StallGuard<Self> {
        StallGuard {
            head: Bytes::new(),
            socket: Some(self.clone()),
            stalled: StallTimer::new(timeout),
            begun: HeadBegun::default(),
            written: Written::default(),
            linger: Linger::default(),
            place: Place::default(),
        }
    }

    fn poll(&self) -> Poll<io::Result<()>> {
        if self.takes.load(Ordering::Relaxed) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Discard for Holding {
    fn discard(&self) -> io::Result<()> {
        self.has_discarded.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl AsyncRead for Holding {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Holding {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll()
    }
}

/// Behind a held poll more may have come than the library reads at once.
#[tokio::test]
async fn bytes_that_were_given_back_and_not_read_again_are_kept() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let mut client = tokio::net::TcpStream::connect(addr).await.expect("a connection");
    let (socket, _) = listener.accept().await.expect("a connection");
    let (written, linger) = (Written::default(), Linger::default());
    let mut guard = StallGuard::new(
        Bytes::new(),
        Socket::Plain(socket),
        Duration::from_secs(30),
        HeadBegun::default(),
        written,
        linger,
        Place::default(),
    );
    client.write_all(b"g").await.expect("it is taken");
    client.shutdown().await.expect("the end is sent");
    guard.give_back(b"abcdef");
    let mut read = [0; 3];
    guard.read_exact(&mut read).await.expect("three bytes");
    assert_eq!(read, *b"abc");
    guard.give_back(b"bc");
    let mut all = Vec::new();
    guard.share(b"a").read_to_end(&mut all).await.expect("all of it");
    assert_eq!(all, b"abcdefg");
}

/// The guard took a connection for stalled after its flush was done, and reset it when it ended.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_held_back_and_then_left_is_not_discarded() {
    let (socket, timeout) = (Holding::default(), Duration::from_secs(4));
    let mut guard = socket.guard(timeout);
    guard.write_all(b"x").await.expect("it takes it");
    // All that follows is written by a group, and not by the guard.
    for _ in 0..=LOOKS {
        assert!(futures_util::poll!(poll_fn(|cx| Pin::new(&mut guard).poll_flush(cx))).is_pending());
        tokio::time::advance(timeout / LOOKS).await;
        socket.takes.store(true, Ordering::Relaxed);
        guard.flush().await.expect("it has left: a client that reads is not too slow");
        socket.takes.store(false, Ordering::Relaxed);
    }
    assert!(futures_util::poll!(poll_fn(|cx| Pin::new(&mut guard).poll_shutdown(cx))).is_pending());
    socket.takes.store(true, Ordering::Relaxed);
    guard.shutdown().await.expect("our side ends");
    drop(guard);
    assert!(!socket.has_discarded.load(Ordering::Relaxed), "the client may still read it");
}

/// The end of TLS waited for such a client for ever.
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_last_words_is_left_after_the_timeout() {
    let (socket, timeout, began) = (Holding::default(), Duration::from_secs(4), Instant::now());
    let mut guard = socket.guard(timeout);
    let ended = tokio::time::timeout(10 * timeout, guard.shutdown()).await.expect("it is left");
    assert_eq!(ended.expect_err("it took nothing").kind(), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed(), timeout);
    drop(guard);
    assert!(socket.has_discarded.load(Ordering::Relaxed), "the system would keep the bytes for minutes");
}

/// Readers that were behind were all closed when a stopped process went on, before it had tried to write again.
#[tokio::test(start_paused = true)]
async fn time_in_which_the_process_was_stopped_is_no_stall() {
    let (timeout, began) = (Duration::from_secs(4), Instant::now());
    let mut timer = StallTimer::new(timeout);
    assert!(futures_util::poll!(poll_fn(|cx| timer.poll(cx))).is_pending());
    tokio::time::advance(10 * timeout).await;
    assert!(futures_util::poll!(poll_fn(|cx| timer.poll(cx))).is_pending(), "a late look does not count");
    poll_fn(|cx| timer.poll(cx)).await;
    assert_eq!(began.elapsed(), 11 * timeout);

    timer.reset();
    assert!(!timer.is_running());
    let began = Instant::now();
    poll_fn(|cx| timer.poll(cx)).await;
    assert_eq!(began.elapsed(), timeout);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_dropped_after_the_timeout_but_not_because_the_process_was_stopped() {
    let timeout = Duration::from_secs(4);
    let slow_closes = IntCounter::new("slow", "slow").expect("a valid name");
    let executor = StreamExecutor {
        timeout,
        open: watch::Sender::default(),
        slow_closes: slow_closes.clone(),
        tasks: TaskTracker::new(),
    };
    let progress = Progress::default();
    progress.gave();
    let watched = tokio::spawn(watch_stream(std::future::pending(), progress, executor));
    tokio::time::sleep(timeout / LOOKS * (LOOKS - 1)).await;
    tokio::time::advance(10 * timeout).await;
    tokio::task::yield_now().await;
    assert!(!watched.is_finished(), "the server has yet to hear what the client read");
    let stopped_at = Instant::now();
    watched.await.expect("it ends");
    assert!(stopped_at.elapsed() <= timeout);
    assert_eq!(slow_closes.get(), 1);
}
