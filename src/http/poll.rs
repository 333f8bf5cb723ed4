//! Polling and long-polling: one JSON answer, at once or when there is something to send.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::{
    answer::{not_stored, raw_json, unread},
    media,
    metrics::Transport,
    problem::Problem,
    reader::{Next, Reader},
    wire::{self, Control},
};
use crate::{
    broker::{Delivery, GapNotice},
    log::LogError,
    message::Id,
};

/// How many bytes of messages one answer may contain; the next poll continues after them. Gaps are not
/// counted, because a client that gets only some of them would be told the same ones again.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Answers with the messages and gaps after the start, and waits up to `wait` for the first. It waits longer
/// only while the log is being read, which has its own time limit.
///
/// # Cancel safety
/// Dropping this loses nothing: the client still has its cursor.
pub async fn respond(mut reader: Reader, wait: Duration, limit: usize) -> Response {
    let mut messages: Vec<Bytes> = Vec::new();
    let mut gaps: Vec<GapNotice> = Vec::new();
    let mut bytes = 0;
    let mut waited = pin!(tokio::time::sleep(wait));
    // A timer takes at least a millisecond, even for a duration of zero.
    let mut is_over = wait.is_zero();
    poll_fn(|cx| {
        while messages.len() < limit
            && bytes < MAX_ANSWER_BYTES
            && let Poll::Ready(next) = reader.poll(cx, true)
        {
            match next {
                Next::Delivery(Delivery::Message(message)) | Next::Replay(Delivery::Message(message)) => {
                    let envelope = wire::envelope(&message);
                    bytes += envelope.len();
                    messages.push(envelope);
                }
                Next::Delivery(Delivery::Gap(gap)) | Next::Replay(Delivery::Gap(gap)) => gaps.push(*gap),
                Next::AccessEnded(_) | Next::GraceOver => return Poll::Ready(()),
                Next::Quiet | Next::Heartbeat | Next::Joined(_) => {}
            }
        }
        if !messages.is_empty() || !gaps.is_empty() {
            return Poll::Ready(());
        }
        is_over = is_over || waited.as_mut().poll(cx).is_ready();
        let is_due = is_over && !reader.subscription().is_reading();
        if is_due || reader.may_leave() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    reader.add_up(bytes);
    if messages.is_empty() && gaps.is_empty() && reader.subscription().has_failed() {
        return Problem::from(LogError::Unavailable).into_response();
    }
    // If nothing came in time, the answer is only the cursor.
    answer(&messages, &gaps, reader.cursor())
}

/// The answer to a `HEAD`. The log is not read for it, so it has no cursor.
pub fn head() -> Response {
    let mut response = not_stored(unread().into_response());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::JSON));
    response
}

/// The answer to a poll without a start: the current cursor.
pub fn respond_now(cursor: Id) -> Response {
    answer(&[], &[], cursor)
}

fn answer(messages: &[Bytes], gaps: &[GapNotice], cursor: Id) -> Response {
    let mut body = b"{\"messages\":[".to_vec();
    body.reserve(messages.iter().map(|message| message.len() + 1).sum::<usize>() + 64);
    join(&mut body, messages.iter().map(AsRef::as_ref));
    body.push(b']');
    if !gaps.is_empty() {
        let to_json = |gap: &GapNotice| serde_json::to_vec(&Control::Gap(gap)).expect("a gap serializes");
        let gaps: Vec<Vec<u8>> = gaps.iter().map(to_json).collect();
        body.extend_from_slice(b",\"gaps\":[");
        join(&mut body, gaps.iter().map(AsRef::as_ref));
        body.push(b']');
    }
    body.extend_from_slice(format!(",\"cursor\":\"{cursor}\"}}").as_bytes());

    let mut response = not_stored(raw_json(StatusCode::OK, body));
    response.extensions_mut().insert(Transport::Poll);
    let etag = HeaderValue::try_from(format!("\"{cursor}\"")).expect("a cursor is visible ASCII");
    response.headers_mut().insert(header::ETAG, etag);
    response
}

fn join<'a>(body: &mut Vec<u8>, items: impl Iterator<Item = &'a [u8]>) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item);
    }
}
