//! One WebSocket: tungstenite reads the protocol, and ready frames are written as they are.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop::poll_proceed,
};
use tungstenite::{
    Error, Message,
    protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext, frame::coding::CloseCode},
};

use super::{framing::Framing, inflate::Inflating};
use crate::http::{
    batch::Form,
    gate::Gate,
    outbox::Outbox,
    shared_socket::SharedSocket,
    stall::{StallGuard, StallTimer},
};

/// Commands are small and few. A larger one gets its own buffer while it is read.
const READ_BUFFER_BYTES: usize = 512;
/// The largest command that is read, and dropped, after a close.
const MAX_CLOSING_BYTES: usize = 4 << 10;
/// How long a peer may take to answer a close, and to read what was written before it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a peer that has stopped reading.
const SLOW_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A WebSocket on the server's side.
pub struct Socket {
    io: Io,
    /// Opens when there is something to read.
    incoming: Gate,
    /// Made when something is read, and dropped with its buffers when nothing of a frame is left.
    protocol: Option<Box<WebSocketContext>>,
    max_message_bytes: usize,
    framing: Framing,
    /// Both sides may compress their messages.
    inflating: Option<Box<Inflating>>,
    outbox: Outbox,
    stalled: StallTimer,
}

/// The connection below a WebSocket.
pub enum Io {
    /// A socket that has left the HTTP library.
    Socket(StallGuard<SharedSocket>),
    /// A stream of HTTP/2, or whatever an application has below the router.
    Other(TokioIo<Upgraded>),
}

impl Io {
    /// Takes the socket out of the HTTP library, if the connection is nothing else.
    pub fn of(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<StallGuard>>() {
            Ok(parts) => Self::Socket(parts.io.into_inner().share(&parts.read_buf)),
            Err(upgraded) => Self::Other(TokioIo::new(upgraded)),
        }
    }
}

macro_rules! each {
    ($io:expr, $inner:ident => $then:expr) => {
        match $io.get_mut() {
            Io::Socket(inner) => {
                let $inner = Pin::new(inner);
                $then
            }
            Io::Other(inner) => {
                let $inner = Pin::new(inner);
                $then
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, slices))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }
}

/// Why a socket can no longer be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The close handshake is done.
    Closed,
    /// The connection ended without a close handshake.
    Gone,
    /// The peer broke the protocol or a limit. This is the close code for it.
    Broken(u16),
    /// The peer has not read anything for the write timeout, or its link has vanished.
    TooSlow,
}

impl Socket {
    pub fn new(io: Io, max_message_bytes: usize, write_timeout: Duration, is_deflated: bool) -> Self {
        Self {
            io,
            incoming: Gate::new(),
            protocol: None,
            max_message_bytes,
            framing: Framing::default(),
            inflating: is_deflated.then(|| Box::new(Inflating::new(max_message_bytes))),
            outbox: Outbox::default(),
            stalled: StallTimer::new(write_timeout),
        }
    }

    /// The peer may send messages of up to this many bytes from now on.
    pub fn limit(&mut self, max_message_bytes: usize) {
        if let Some(inflating) = &mut self.inflating {
            inflating.limit(max_message_bytes);
        }
        self.max_message_bytes = max_message_bytes;
        if let Some(protocol) = &mut self.protocol {
            protocol.set_config(|config| {
                config.max_message_size = Some(max_message_bytes);
                config.max_frame_size = Some(max_message_bytes);
            });
        }
    }

    /// The next message of the peer. Pings are answered, and a close too.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Lost>> {
        let Self { io, incoming, protocol, max_message_bytes, framing, inflating, outbox, .. } = self;
        incoming.poll(cx, |cx| {
            let reading = protocol.get_or_insert_with(|| new_protocol(*max_message_bytes));
            match reading.read(&mut Wire { io, framing, inflating, outbox, cx }) {
                Ok(message) => Poll::Ready(Ok(message)),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let is_at_rest =
                        framing.is_whole() && inflating.as_ref().is_none_or(|it| it.is_at_rest());
                    // It also knows that a close was sent.
                    if is_at_rest && reading.can_write() {
                        *protocol = None;
                    }
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(lost(&error))),
            }
        })
    }

    /// The commands and frames of the peer, as far as they were read.
    pub fn framing(&self) -> &Framing {
        &self.framing
    }

    /// How many bytes of commands are here that the session has not been given.
    pub fn command_bytes(&self) -> usize {
        self.framing.command_bytes() + self.inflating.as_ref().map_or(0, |inflating| inflating.held_bytes())
    }

    /// The form of the messages that the peer is sent.
    pub fn form(&self) -> Form {
        if self.inflating.is_some() { Form::Deflated } else { Form::Frames }
    }

    /// Queues a ready frame.
    pub fn push(&mut self, frame: Bytes) {
        self.outbox.push(frame);
    }

    /// Queues the rest of frames that a group has begun to write. The outbox must be empty.
    pub fn push_begun(&mut self, rest: Bytes) {
        self.outbox.push_begun(rest);
    }

    /// The socket, if a group may write to it.
    pub fn shared(&self) -> Option<&SharedSocket> {
        match &self.io {
            Io::Socket(io) => Some(io.socket()),
            Io::Other(_) => None,
        }
    }

    /// Queues a ping.
    pub fn ping(&mut self) {
        self.outbox.push(Bytes::from_static(&[0x89, 0]));
    }

    /// How many bytes wait to be written.
    pub fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Writes everything that is queued. Pending while the peer does not read.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        while !self.outbox.is_empty() {
            match self.outbox.poll_write(&mut self.io, cx) {
                Poll::Ready(Ok(_)) => self.stalled.reset(),
                // The socket's own guard may have noticed the stall first.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    return Poll::Ready(Err(Lost::TooSlow));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Lost::Gone)),
                Poll::Pending => return self.stalled.poll(cx).map(|()| Err(Lost::TooSlow)),
            }
        }
        // HTTP/2 and TLS may hold back what was written.
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Poll::Ready(Err(Lost::TooSlow))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Lost::Gone)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Closes, and reads on until the peer has answered or a short time has passed. A socket that is dropped
    /// with unread bytes would lose the last frames.
    ///
    /// A command that has begun, or that is large, is not kept any more: nothing counts its bytes from now on.
    pub async fn close(mut self, code: u16, reason: &'static str) {
        self.send_close(code, reason);
        let closed = async {
            if self.framing.is_whole() {
                self.limit(MAX_CLOSING_BYTES);
                self.answered().await;
            }
            self.end().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }

    /// Closes a peer that broke the protocol. The rest that it sends cannot be understood.
    pub async fn fail(mut self, code: u16) {
        self.send_close(code, reason_of(code));
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.end()).await;
    }

    /// Drops every queued frame of which nothing has been written. True if there were any.
    pub fn leave_out_unbegun(&mut self) -> bool {
        self.outbox.drop_unbegun()
    }

    /// Closes a peer that has stopped reading, in less time.
    pub async fn close_slow(mut self, code: u16, reason: &'static str) {
        self.send_close(code, reason);
        let _ = tokio::time::timeout(SLOW_CLOSE_TIMEOUT, self.end()).await;
    }

    /// Ends a socket after the peer began the close handshake.
    pub async fn closed(mut self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.end()).await;
    }

    fn send_close(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let Self { io, protocol, max_message_bytes, framing, inflating, outbox, .. } = self;
        let protocol = protocol.get_or_insert_with(|| new_protocol(*max_message_bytes));
        let mut context = Context::from_waker(std::task::Waker::noop());
        // Writing only fills the outbox, so it cannot fail.
        let _ = protocol.close(&mut Wire { io, framing, inflating, outbox, cx: &mut context }, Some(frame));
    }

    /// Resolves when the peer has answered our close, or is gone.
    async fn answered(&mut self) {
        std::future::poll_fn(|cx| {
            loop {
                let _ = self.poll_flush(cx);
                match self.poll_message(cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// Writes the rest, ends our side, and waits until the peer has ended its own. The bytes of the peer are not kept.
    async fn end(&mut self) {
        (self.protocol, self.inflating) = (None, None);
        self.stalled.reset();
        let _ = std::future::poll_fn(|cx| self.poll_flush(cx)).await;
        let _ = std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
        std::future::poll_fn(|cx| self.poll_drain(cx)).await;
    }

    /// Ready once the peer has ended the connection.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

fn new_protocol(max_message_bytes: usize) -> Box<WebSocketContext> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(max_message_bytes))
        .max_frame_size(Some(max_message_bytes));
    Box::new(WebSocketContext::new(Role::Server, Some(config)))
}

fn lost(error: &Error) -> Lost {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Lost::Closed,
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => Lost::Gone,
        Error::Protocol(_) => Lost::Broken(1002),
        Error::Utf8(_) => Lost::Broken(1007),
        Error::Capacity(_) => Lost::Broken(1009),
        // The system has given up on a peer that acknowledged nothing.
        Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Lost::TooSlow,
        _ => Lost::Gone,
    }
}

/// The mistake of a peer that broke the protocol, for its developer.
fn reason_of(code: u16) -> &'static str {
    match code {
        1007 => "a text frame is not UTF-8",
        1009 => "the command is too long",
        _ => "the frames are not those of RFC 6455",
    }
}

/// The socket as tungstenite sees it. Reads take the bytes that are there. Writes join the outbox, so that
/// tungstenite's answers and our frames never mix.
struct Wire<'a, 'b> {
    io: &'a mut Io,
    framing: &'a mut Framing,
    inflating: &'a mut Option<Box<Inflating>>,
    outbox: &'a mut Outbox,
    cx: &'a mut Context<'b>,
}

impl Read for Wire<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(inflating) = self.inflating {
                // Each read counts towards the turn of this task, as one of the socket does.
                let Poll::Ready(turn) = poll_proceed(self.cx) else {
                    return Err(io::ErrorKind::WouldBlock.into());
                };
                if let Some(length) = inflating.give(bytes) {
                    turn.made_progress();
                    return Ok(length);
                }
            }
            let length = self.read_socket(bytes)?;
            match self.inflating {
                Some(inflating) if length > 0 => inflating.take(&bytes[..length]),
                _ => return Ok(length),
            }
        }
    }
}

impl Wire<'_, '_> {
    /// The bytes as they came.
    fn read_socket(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        match Pin::new(&mut *self.io).poll_read(self.cx, &mut buffer) {
            Poll::Ready(result) => {
                self.framing.read(buffer.filled());
                result.map(|()| buffer.filled().len())
            }
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Wire<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.push(Bytes::copy_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::http::{
        idle::HeadBegun,
        linger::{Linger, StillSends},
        places::Place,
        problem::Code,
        socket,
        stall::Written,
    };

    /// An idle WebSocket keeps only what it needs. One that is in the middle of a frame has begun to read it.
    #[tokio::test]
    async fn what_reads_frames_stays_while_a_part_of_one_is_there() {
        let (mut socket, mut far) = pair(1_000).await;
        // The payload is masked with 0.
        let frame = b"\x81\x85\0\0\0\0hello";
        for _ in 0..2 {
            let (half, rest) = frame.split_at(8);
            far.write_all(half).await.expect("it is open");
            // It may not have come yet.
            while socket.framing.is_whole() {
                assert!(std::future::poll_fn(|cx| Poll::Ready(socket.poll_message(cx))).await.is_pending());
                tokio::task::yield_now().await;
            }
            assert!(socket.protocol.is_some(), "half a frame");
            far.write_all(rest).await.expect("it is open");
            let read = std::future::poll_fn(|cx| socket.poll_message(cx)).await;
            assert_eq!(read, Ok(Message::text("hello")));
            assert!(std::future::poll_fn(|cx| socket.poll_message(cx)).now_or_never().is_none());
            assert!(socket.protocol.is_none(), "a whole message");
        }
    }

    /// A connection that was closed for the bytes of its commands took more of them, until its client had left.
    #[tokio::test]
    async fn a_command_that_has_begun_is_not_kept_after_the_close() {
        let begun = [&b"\x01\xfe\xff\xff\0\0\0\0"[..], &[b'x'; 10_000]].concat();
        for is_read_before in [true, false] {
            let (mut socket, mut far) = pair(1 << 20).await;
            if is_read_before {
                far.write_all(&begun).await.expect("it is open");
                while socket.command_bytes() < 10_000 {
                    let read = std::future::poll_fn(|cx| Poll::Ready(socket.poll_message(cx))).await;
                    assert!(read.is_pending());
                    tokio::task::yield_now().await;
                }
            }
            let closing = tokio::spawn(socket.close(Code::Overloaded.close_code(), "overloaded"));
            far.write_all(&begun).await.expect("it is open");
            // The server ends its side at once, since it waits for no answer behind the command.
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.expect("an end in order");
            assert_eq!(read[2..], *b"\x10\x04overloaded");
            assert!(!closing.is_finished(), "it waits for the end of the client");
        }
    }

    /// A socket that takes messages of so many bytes, and the other end of its connection.
    async fn pair(max_message_bytes: usize) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a connection");
        let (near, _) = listener.accept().await.expect("a connection");
        let patience = Duration::from_secs(60);
        let linger = Linger::new(StillSends::default());
        let (begun, written, place) = (HeadBegun::default(), Written::default(), Place::default());
        let near = socket::Socket::Plain(near);
        let guard = StallGuard::new(Bytes::new(), near, patience, begun, written, linger, place);
        (Socket::new(Io::Socket(guard.share(&[])), max_message_bytes, patience, false), far)
    }
}
