//! An encrypted socket: a session behind a short lock, so that a group may write to it beside the task of its connection.
//!
//! Bytes that were encrypted must leave before any others. So a write first gives the socket what it did not take of
//! the write before, and takes no more if some of that is left.

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::ReadBuf, net::TcpStream};

use super::tls_session::Session;

/// A socket and the session of TLS on it.
#[derive(Debug)]
pub struct TlsSocket {
    socket: TcpStream,
    // A std mutex: no await happens while it is held, and each holder encrypts or decrypts a bounded piece.
    session: Mutex<Box<Session>>,
}

impl TlsSocket {
    /// After the handshake.
    pub fn new(socket: TcpStream, session: Box<Session>) -> Self {
        Self { socket, session: Mutex::new(session) }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    fn session(&self) -> MutexGuard<'_, Box<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Encrypts and writes as much as the socket takes now. It never waits, and wakes nobody later.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the socket takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut session = self.session();
        let mut taken = 0;
        let mut wire = Wire(&self.socket);
        while session.send(&mut wire)? && taken < bytes.len() {
            taken += session.write(&bytes[taken..], &mut wire)?;
        }
        match taken {
            0 if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    /// True if everything that was taken is with the system.
    pub fn is_flushed(&self) -> bool {
        !self.session().has_waiting()
    }

    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut session = self.session();
            let received = session.received();
            if !received.is_empty() {
                // The rest of the buffer is not written to, so the system gives no memory for it.
                let length = received.len().min(buffer.remaining());
                buffer.put_slice(&received[..length]);
                session.take(length);
                return Poll::Ready(Ok(()));
            }
            // HTTP knows by itself if a body was cut off, and many clients say no farewell.
            if session.has_ended() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_read_ready(cx))?;
            match session.read(&mut Wire(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            let processed = session.process();
            // An answer of the protocol, or the reason of the end. The next write sends what does not leave now.
            session.send(&mut Wire(&self.socket))?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_encrypt(cx, |session, wire| session.write(bytes, wire))
    }

    pub fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_encrypt(cx, |session, wire| session.write_vectored(slices, wire))
    }

    fn poll_encrypt(
        &self,
        cx: &mut Context<'_>,
        encrypt: impl FnOnce(&mut Session, &mut Wire<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            let mut session = self.session();
            let mut wire = Wire(&self.socket);
            if session.send(&mut wire)? {
                return Poll::Ready(encrypt(&mut session, &mut wire));
            }
        }
    }

    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.session().send(&mut Wire(&self.socket))? {
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_write_ready(cx))?;
        }
    }

    /// Says that nothing follows (RFC 8446 §6.1), and ends our side.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It says it only once.
        self.session().close();
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
