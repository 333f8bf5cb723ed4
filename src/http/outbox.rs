//! Bytes that wait to be written to a socket: shared, and many in one system call.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// How many pieces one system call takes.
const MAX_SLICES: usize = 64;
/// A piece of up to this size is copied behind the one before it: a system call costs more than that.
const MAX_COPIED_BYTES: usize = 1024;
/// The capacity that a quiet connection keeps.
const KEPT_CAPACITY: usize = 8;

/// Pieces that wait to be written, each one or more whole frames.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Small pieces that came after these, joined.
    gathered: BytesMut,
    /// How many bytes of the first piece are written, or at least 1 if a group has begun it.
    written: usize,
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() <= MAX_COPIED_BYTES && !self.pieces.is_empty() {
            self.gathered.extend_from_slice(&piece);
        } else {
            self.close_gathered();
            self.pieces.push_back(piece);
        }
    }

    /// Queues the rest of a piece that somebody else has begun to write. The outbox must be empty.
    pub fn push_begun(&mut self, rest: Bytes) {
        debug_assert!(self.is_empty(), "the rest comes first");
        self.written = 1;
        self.push(rest);
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Drops every piece of which nothing has been written. True if there were any.
    pub fn drop_unbegun(&mut self) -> bool {
        self.gathered = BytesMut::new();
        self.pieces.truncate(usize::from(self.written > 0));
        let kept = self.pieces.front().map_or(0, Bytes::len);
        std::mem::replace(&mut self.bytes, kept) > kept
    }

    /// Writes as much as the socket takes. Ready with the number of bytes; pending if it takes nothing.
    pub fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.close_gathered();
        let written = match self.pieces.len() {
            0 => return Poll::Ready(Ok(0)),
            1 => ready!(Pin::new(socket).poll_write(cx, &self.pieces[0]))?,
            _ => ready!(self.poll_write_many(socket, cx))?,
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.consume(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_many<W: AsyncWrite + Unpin>(
        &self,
        socket: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = self.pieces.len().min(MAX_SLICES);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        Pin::new(socket).poll_write_vectored(cx, &slices[..count])
    }

    fn consume(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                self.written += written;
                return;
            }
            written -= piece.len();
            self.written = 0;
            self.pieces.pop_front();
        }
        if self.pieces.capacity() > KEPT_CAPACITY {
            self.pieces = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_piece_that_has_begun_is_kept_and_dropping_others_is_reported() {
        let (mut socket, _peer) = tokio::io::duplex(4);
        let mut outbox = Outbox::default();
        outbox.push("begun".into());
        let written = std::future::poll_fn(|cx| outbox.poll_write(&mut socket, cx)).await;
        assert_eq!(written.expect("it takes some"), 4);
        assert!(!outbox.drop_unbegun());
        outbox.push("left out".into());
        assert!(outbox.drop_unbegun());
        assert_eq!(outbox.bytes(), 1);
    }
}
