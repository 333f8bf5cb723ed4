//! An encrypted socket: rustls behind a short lock, so that a group may write to it beside the task of its connection.
//!
//! Bytes that were encrypted must leave before any others. So a write first gives the socket what it did not take of
//! the write before, and takes no more if some of that is left.

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::{io::ReadBuf, net::TcpStream};

/// How many bytes may wait that the socket has not taken. A write of a group encrypts up to a batch, while the socket takes
/// it; any other write no more than this.
const MAX_WAITING_BYTES: usize = 32 << 10;

/// A socket and the session of TLS on it.
#[derive(Debug)]
pub struct TlsSocket {
    socket: TcpStream,
    // A std mutex: no await happens while it is held, and each holder encrypts or decrypts a bounded piece.
    session: Mutex<Box<ServerConnection>>,
}

impl TlsSocket {
    /// After the handshake.
    pub fn new(socket: TcpStream, mut session: Box<ServerConnection>) -> Self {
        session.set_buffer_limit(Some(MAX_WAITING_BYTES));
        Self { socket, session: Mutex::new(session) }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    fn session(&self) -> MutexGuard<'_, Box<ServerConnection>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the socket what waits. True if nothing waits any more.
    fn send(&self, session: &mut ServerConnection) -> io::Result<bool> {
        while session.wants_write() {
            match session.write_tls(&mut Wire(&self.socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Encrypts and writes as much as the socket takes now. It never waits, and wakes nobody later.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the socket takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session();
        let mut taken = 0;
        while self.send(&mut session)? && taken < bytes.len() {
            taken += session.writer().write(&bytes[taken..])?;
        }
        match taken {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    /// True if everything that was taken is with the system.
    pub fn is_flushed(&self) -> bool {
        !self.session().wants_write()
    }

    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut session = self.session();
            match session.reader().read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // HTTP knows by itself if a body was cut off, and many clients say no farewell.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.socket.poll_read_ready(cx))?;
            match session.read_tls(&mut Wire(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            let processed = session.process_new_packets();
            // An answer of the protocol, or the reason of the end. The next write sends what does not leave now.
            self.send(&mut session)?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_encrypt(cx, |session| session.writer().write(bytes))
    }

    pub fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_encrypt(cx, |session| session.writer().write_vectored(slices))
    }

    fn poll_encrypt(
        &self,
        cx: &mut Context<'_>,
        encrypt: impl FnOnce(&mut ServerConnection) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            let mut session = self.session();
            if self.send(&mut session)? {
                let taken = encrypt(&mut session)?;
                self.send(&mut session)?;
                return Poll::Ready(Ok(taken));
            }
        }
    }

    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.send(&mut self.session())? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_write_ready(cx))?;
        }
    }

    /// Says that nothing follows (RFC 8446 §6.1), and ends our side.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It says it only once.
        self.session().send_close_notify();
        ready!(self.poll_flush(cx))?;
        Poll::Ready(SockRef::from(&self.socket).shutdown(Shutdown::Write))
    }
}

/// The socket, as rustls reads it and writes to it.
pub struct Wire<'a>(pub &'a TcpStream);

impl Read for Wire<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
