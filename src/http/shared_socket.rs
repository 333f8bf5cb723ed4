//! A socket that two may write to: the task of its connection, and the group in which the connection reads.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Socket;

/// A socket behind a pointer. Its clones write to the same connection; whoever writes must know that the others do not.
#[derive(Clone, Debug)]
pub struct SharedSocket(pub Arc<Socket>);

impl SharedSocket {
    /// Writes as much as the socket takes now. It never waits, and wakes nobody later.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the socket takes nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(written) = scripted::write(self, bytes) {
            return written;
        }
        self.0.try_write(bytes)
    }
}

impl AsyncRead for SharedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.shared_read(cx, buffer)
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.shared_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.shared_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shared_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shared_shutdown(cx)
    }
}

/// Sockets of which a test decides how much they take.
#[cfg(test)]
pub mod scripted {
    use std::cell::RefCell;

    use super::*;

    type Script = Box<dyn FnMut(&SharedSocket, &[u8]) -> io::Result<usize>>;

    thread_local! {
        static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
    }

    /// Has `script` answer every write of a group on this thread.
    pub fn set(script: Option<Script>) {
        SCRIPT.with_borrow_mut(|current| *current = script);
    }

    pub fn write(socket: &SharedSocket, bytes: &[u8]) -> Option<io::Result<usize>> {
        SCRIPT.with_borrow_mut(|script| script.as_mut().map(|script| script(socket, bytes)))
    }
}
