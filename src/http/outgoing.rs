//! The body of every answer: it leaves in pieces, and each of them waits until the client takes what came before.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{connections::AnswerBytes, shares::Share, stall::Progress};

/// How many bytes one piece may have.
pub const PIECE_BYTES: usize = 32 << 10;

/// A body that gives out pieces.
///
/// On HTTP/2 it shows its progress to the executor of its stream, because it is not polled while its window is closed.
/// A stream ends when its last piece has been handed on, though that may still wait for the window. So the last byte is
/// a piece of its own: it is handed on once there is room for it in the window, behind everything before it.
pub struct Outgoing {
    body: Body,
    /// The bytes that the body gave and that have not left.
    rest: Bytes,
    /// `None` on HTTP/1.1.
    progress: Option<Progress>,
    /// Counted until the last piece has left.
    _held: Held,
}

/// The totals in which an answer counts until it has left.
type Held = (Option<Arc<AnswerBytes>>, Option<Arc<Share>>);

impl Outgoing {
    /// On HTTP/2 this must be called in the task of the stream that will carry the body.
    pub fn of(mut response: Response) -> http::Response<Self> {
        let extensions = response.extensions_mut();
        let held = (extensions.remove(), extensions.remove());
        response.map(|body| Self::new(body, held))
    }

    fn new(body: Body, held: Held) -> Self {
        Self { body, rest: Bytes::new(), progress: Progress::of_this_stream(), _held: held }
    }

    fn next_piece(&mut self) -> Bytes {
        let mut length = self.rest.len().min(PIECE_BYTES);
        let is_last = length == self.rest.len() && self.body.is_end_stream();
        if is_last && length > 1 && self.progress.is_some() {
            length -= 1;
        }
        self.rest.split_to(length)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(progress) = &self.progress {
            progress.asked();
        }
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        if let Some(progress) = &self.progress {
            progress.gave();
        }
        Poll::Ready(Some(Ok(Frame::data(self.next_piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::{
        config::Config,
        http::connections::{Connections, MANY_BYTES},
        shutdown::Shutdown,
    };

    async fn pieces(mut body: Outgoing) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut left = body.size_hint().exact().expect("a length");
        while let Some(frame) = body.frame().await {
            lengths.push(frame.expect("no error").into_data().expect("data").len());
            left -= *lengths.last().expect("one") as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            assert_eq!(body.is_end_stream(), left == 0);
        }
        lengths
    }

    #[tokio::test]
    async fn the_bytes_of_an_answer_are_counted_until_its_last_piece_has_left() {
        let connections = Connections::new(&Config::default(), Shutdown::new());
        let mut bytes = connections.answer_bytes(None);
        bytes.add(MANY_BYTES);
        let mut response = Response::new(Body::from(vec![b'x'; PIECE_BYTES + 1]));
        response.extensions_mut().insert(Arc::new(bytes));
        let mut answer = Outgoing::of(response).into_body();
        let mut other = connections.answer_bytes(None);
        other.add(PIECE_BYTES);
        answer.frame().await.expect("a piece").expect("no error");
        assert!(other.is_short());
        drop(answer);
        assert!(!other.is_short());
    }

    #[tokio::test]
    async fn an_answer_leaves_in_pieces_and_on_http2_its_last_byte_alone() {
        for (length, http1, http2) in [
            (0, vec![], vec![]),
            (1, vec![1], vec![1]),
            (45, vec![45], vec![44, 1]),
            (PIECE_BYTES, vec![PIECE_BYTES], vec![PIECE_BYTES - 1, 1]),
            (2 * PIECE_BYTES + 1, vec![PIECE_BYTES, PIECE_BYTES, 1], vec![PIECE_BYTES, PIECE_BYTES, 1]),
        ] {
            let body = || Outgoing::new(Body::from(vec![b'x'; length]), Held::default());
            assert_eq!(pieces(body()).await, http1);
            assert_eq!(Progress::default().scope(async { pieces(body()).await }).await, http2);
        }
    }
}
