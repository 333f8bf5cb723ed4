//! Polling and long-polling: one JSON answer, at once or when there is something to send.

use std::{
    convert::Infallible,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use http_body::{Frame, SizeHint};
use tokio::task::coop::poll_proceed;

use super::{
    answer::{not_stored, unread},
    connections::{AnswerBytes, too_many_untaken},
    deflate,
    gzip::{self, Gzip, Sum},
    held,
    live::Event,
    media,
    metrics::{Permit, Transport},
    outgoing::PIECE_BYTES,
    problem::Problem,
    reader::{Next, Reader},
    wire,
};
use crate::{
    broker::{Delivery, GapNotice},
    config::Parking,
    log::LogError,
    message::{Id, Message, Pattern},
};

/// How long a poll waits in the HTTP library. One that is answered sooner is not worth the way out and back.
const QUICK: Duration = Duration::from_secs(2);

/// The same, as tests set it.
pub fn quick(parking: Parking) -> Duration {
    match parking {
        Parking::WithCompany => QUICK,
        Parking::Always => Duration::ZERO,
        Parking::Never => Duration::MAX,
        // Many polls of a test are answered before, and many later.
        Parking::AtRandom(_) => Duration::from_millis(20),
    }
}

/// Answers with the messages and gaps after the start, and waits up to `wait` for the first. It waits longer
/// only while the log is being read, which has its own time limit. After `quick` it says that it [waits](held::waits).
///
/// # Cancel safety
/// Dropping this loses nothing: the client still has its cursor.
pub fn respond(
    mut reader: Reader,
    mut bytes: AnswerBytes,
    (wait, quick): (Duration, Duration),
    limit: usize,
    is_gzip: bool,
) -> impl Future<Output = Response> + Send {
    let mut messages: Vec<Message> = Vec::new();
    let mut gaps: Vec<GapNotice> = Vec::new();
    // Not an `async fn`: its future would have room for the reader twice.
    async move {
        // Without a time in the library it leaves at once.
        let mut is_held = quick.is_zero();
        let mut waited = pin!(tokio::time::sleep(if is_held { wait } else { wait.min(quick) }));
        let mut has_changed = false;
        // A timer takes at least a millisecond, even for a duration of zero.
        let mut is_over = wait.is_zero();
        poll_fn(|cx| {
            while messages.len() < limit
                && !bytes.is_full()
                && let Poll::Ready(next) = reader.poll(cx, true)
            {
                match next {
                    Next::Event(
                        Event::Delivery(Delivery::Message(message))
                        | Event::Replay(_, Delivery::Message(message)),
                    ) => {
                        bytes.add(wire::envelope(&message).len());
                        messages.push(message);
                    }
                    Next::Event(
                        Event::Delivery(Delivery::Gap(gap)) | Event::Replay(_, Delivery::Gap(gap)),
                    ) => {
                        bytes.add_beside(wire::gap_json(&gap).len());
                        gaps.push(*gap);
                        // There may be tens of thousands.
                        ready!(poll_proceed(cx)).made_progress();
                    }
                    Next::Ended(_) | Next::GraceOver => return Poll::Ready(()),
                    Next::Event(Event::Added(_) | Event::Removed(_)) => has_changed = true,
                    // No other command finds a poll.
                    Next::Quiet | Next::Heartbeat | Next::Event(_) => {}
                }
            }
            if has_changed || !messages.is_empty() || !gaps.is_empty() {
                return Poll::Ready(());
            }
            while !is_over && waited.as_mut().poll(cx).is_ready() {
                is_over = is_held || wait <= quick;
                if !std::mem::replace(&mut is_held, true) && !is_over {
                    let end = waited.deadline() + (wait - quick);
                    waited.as_mut().reset(end);
                }
            }
            let is_due = is_over && !reader.is_reading();
            if is_due || reader.may_leave() {
                return Poll::Ready(());
            }
            if is_held {
                held::waits();
            }
            Poll::Pending
        })
        .await;
        // A part of the gaps alone would bring the client nowhere.
        if messages.is_empty() && bytes.is_short() {
            return too_many_untaken().into_response();
        }
        // The bytes are counted as they leave.
        reader.add_up(0);
        if messages.is_empty() && gaps.is_empty() && reader.has_failed() {
            return Problem::from(LogError::Unavailable).into_response();
        }
        // If nothing came in time, the answer is only the cursor.
        let cursor = reader.cursor();
        let tail = tail(cursor, reader.mine().as_deref());
        let body = AnswerBody::new(messages, gaps, bytes, tail, reader.into_permit(), is_gzip);
        answer(body.is_gzip(), Body::new(body), cursor)
    }
}

/// The answer to another kind of poll, which has these messages and ends in this text. It has no cursor.
pub fn answer_without_cursor(
    messages: Vec<Message>,
    bytes: AnswerBytes,
    tail: Vec<u8>,
    permit: Permit,
    is_gzip: bool,
) -> Response {
    let body = AnswerBody::new(messages, Vec::new(), bytes, tail, Some(permit), is_gzip);
    uncached(body.is_gzip(), Body::new(body))
}

/// The answer to a `HEAD`. The log is not read for it, so it has no cursor.
pub fn head() -> Response {
    let mut response = not_stored(unread().into_response());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::JSON));
    gzip::note(response.headers_mut(), false);
    response
}

/// The answer to a poll without a start: the current cursor.
pub fn respond_now(cursor: Id) -> Response {
    answer(false, Body::from([HEAD, &tail(cursor, None)].concat()), cursor)
}

fn answer(is_gzip: bool, body: Body, cursor: Id) -> Response {
    let mut response = uncached(is_gzip, body);
    let etag = ["\"", &digits(cursor), "\""].concat();
    let etag = HeaderValue::try_from(etag).expect("a cursor is visible ASCII");
    response.headers_mut().insert(header::ETAG, etag);
    response
}

fn uncached(is_gzip: bool, body: Body) -> Response {
    let mut response = not_stored(body.into_response());
    response.extensions_mut().insert(Transport::Poll);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::JSON));
    gzip::note(response.headers_mut(), is_gzip);
    response
}

/// A shorter answer stays plain: the frame of gzip would take most of what it saves.
const MIN_GZIP_BYTES: usize = 512;
/// Messages of so many bytes fill a piece in gzip, however short it is: they take a millisecond.
const MAX_GZIPPED_BYTES: usize = 128 << 10;

/// The text before the messages.
const HEAD: &[u8] = b"{\"messages\":[";
/// The text between the messages and the gaps.
const GAPS: &[u8] = b"],\"gaps\":[";

/// The text of a cursor. A number makes its own text faster than a formatter does.
fn digits(cursor: Id) -> String {
    cursor.get().to_string()
}

/// Room for this text, if it is only a cursor.
const TAIL_BYTES: usize = 32;

/// The text after the messages and the gaps.
fn tail(cursor: Id, mine: Option<&[Pattern]>) -> Vec<u8> {
    let mut tail = Vec::with_capacity(TAIL_BYTES);
    tail.extend_from_slice(b"],\"cursor\":\"");
    tail.extend_from_slice(digits(cursor).as_bytes());
    tail.push(b'"');
    if let Some(mine) = mine {
        tail.extend_from_slice(b",\"mine\":");
        serde_json::to_writer(&mut tail, mine).expect("names serialize");
    }
    tail.push(b'}');
    tail
}

/// The body of an answer. Each message and each gap is rendered when it leaves, so an answer that waits for its client
/// holds the messages, which it shares with the log, and not their bytes.
struct AnswerBody {
    /// Parts that leave before the next message, the first of them last.
    begun: Vec<Part>,
    messages: vec::IntoIter<Message>,
    gaps: vec::IntoIter<GapNotice>,
    /// The text before the next gap.
    before_gap: &'static [u8],
    tail: Bytes,
    /// How many bytes have not left, before they are coded.
    left: usize,
    gzip: Option<Gzip>,
    _bytes: AnswerBytes,
    has_messages: bool,
    /// The place of the poll among the connections.
    permit: Option<Permit>,
}

/// A part of an answer, which is a message or the text around messages.
struct Part {
    plain: Bytes,
    message: Option<Message>,
}

impl Part {
    fn text(plain: Bytes) -> Self {
        Self { plain, message: None }
    }

    /// Blocks with this message, if it is worth it. They are shared by all answers.
    fn gzipped(&self) -> Option<Bytes> {
        let blocks = wire::gzipped_envelope(self.message.as_ref()?, &self.plain);
        Some(blocks).filter(|blocks| !blocks.is_empty())
    }
}

impl AnswerBody {
    /// In gzip only if this makes it shorter, as far as its messages tell.
    fn new(
        messages: Vec<Message>,
        gaps: Vec<GapNotice>,
        mut bytes: AnswerBytes,
        tail: Vec<u8>,
        permit: Option<Permit>,
        takes_gzip: bool,
    ) -> Self {
        let tail = Bytes::from(tail);
        let commas = messages.len().saturating_sub(1) + gaps.len().saturating_sub(1);
        let before_gaps = if gaps.is_empty() { 0 } else { GAPS.len() };
        let left = HEAD.len() + bytes.count() + commas + before_gaps + tail.len();
        bytes.add_beside(tail.len());
        let is_worth = |message: &Message| message.bytes().len() >= deflate::MIN_BYTES;
        let is_gzip = takes_gzip && left >= MIN_GZIP_BYTES && messages.iter().any(is_worth);
        let (begun, has_messages) = (vec![Part::text(Bytes::from_static(HEAD))], !messages.is_empty());
        let (messages, gaps) = (messages.into_iter(), gaps.into_iter());
        let (before_gap, gzip) = (GAPS, is_gzip.then(Gzip::default));
        Self { begun, messages, gaps, before_gap, tail, left, gzip, _bytes: bytes, has_messages, permit }
    }

    fn is_gzip(&self) -> bool {
        self.gzip.is_some()
    }

    /// The next part of the answer.
    fn part(&mut self) -> Option<Part> {
        if let Some(part) = self.begun.pop() {
            return Some(part);
        }
        let Some(message) = self.messages.next() else {
            if let Some(gap) = self.gaps.next() {
                let before = mem::replace(&mut self.before_gap, b",");
                return Some(Part::text([before, &wire::gap_json(&gap)].concat().into()));
            }
            return Some(mem::take(&mut self.tail)).filter(|tail| !tail.is_empty()).map(Part::text);
        };
        if !self.messages.as_slice().is_empty() {
            self.begun.push(Part::text(Bytes::from_static(b",")));
        }
        Some(Part { plain: wire::envelope(&message), message: Some(message) })
    }

    /// The next piece of an answer in gzip. Text and messages that stay plain are joined in one block.
    fn gzip_piece(&mut self, gzip: &mut Gzip) -> Bytes {
        let (mut piece, mut text) = (BytesMut::new(), BytesMut::new());
        let before = self.left;
        while piece.len() + text.len() < PIECE_BYTES
            && before - self.left < MAX_GZIPPED_BYTES
            && let Some(part) = self.part()
        {
            self.left -= part.plain.len();
            let Some(blocks) = part.gzipped() else {
                text.extend_from_slice(&part.plain);
                continue;
            };
            gzip.write_stored(&mut piece, &text);
            text.clear();
            gzip.gave(Sum::of(&part.plain));
            piece.extend_from_slice(&blocks);
        }
        gzip.write_stored(&mut piece, &text);
        if self.left == 0 {
            gzip.end(&mut piece);
        }
        piece.freeze()
    }

    /// The next piece.
    fn piece(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        if let Some(mut gzip) = self.gzip.take() {
            let piece = self.gzip_piece(&mut gzip);
            self.gzip = Some(gzip);
            return Some(piece);
        }
        let piece = self.plain_piece();
        self.left -= piece.len();
        Some(piece)
    }

    /// The next piece of a plain answer. A part that fills one alone is not copied.
    fn plain_piece(&mut self) -> Bytes {
        let mut piece = BytesMut::new();
        while let Some(Part { plain: part, .. }) = self.part() {
            if piece.is_empty() {
                if part.len() >= PIECE_BYTES {
                    return part;
                }
                piece.reserve(self.left.min(PIECE_BYTES));
            } else if piece.len() + part.len() > PIECE_BYTES {
                self.begun.push(Part::text(part));
                break;
            }
            piece.extend_from_slice(&part);
        }
        piece.freeze()
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.piece();
        if let (Some(piece), Some(permit)) = (&piece, &self.permit)
            && self.has_messages
        {
            permit.delivered(piece.len());
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        match self.gzip {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.left as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::extract::Request;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::{
        broker::Broker,
        config::Config,
        http::{App, connections::MANY_BYTES},
        log::MemoryLog,
        shutdown::Shutdown,
    };

    #[tokio::test(start_paused = true)]
    async fn a_poll_says_that_it_waits_once_it_was_not_answered_quickly() {
        let wait = Duration::from_secs(10);
        for (parking, expected) in [
            (Parking::WithCompany, Some(QUICK)),
            (Parking::Always, Some(Duration::ZERO)),
            (Parking::Never, None),
        ] {
            let config = Config { parking, ..Config::default() };
            let broker = Broker::new(MemoryLog::start(config.retention()));
            let app = App::new(broker, Arc::new(config), Shutdown::new());
            let request = Request::get("/topics/a?last=0&wait=10").header(header::HOST, "localhost");
            let request = request.body(Body::empty()).expect("a request");
            let mut answer = pin!(crate::http::router(app).oneshot(request));
            let began = tokio::time::Instant::now();
            let mut waits_after = None;
            let answer = poll_fn(|cx| {
                let (answer, waits) = held::watch(|| answer.as_mut().poll(cx));
                if waits && answer.is_pending() {
                    waits_after.get_or_insert(began.elapsed().as_secs());
                }
                answer
            });
            assert_eq!(answer.await.expect("an answer").status(), 200);
            assert_eq!(waits_after, expected.map(|time| time.as_secs()), "{parking:?}");
            assert_eq!(began.elapsed().as_secs(), wait.as_secs(), "{parking:?}");
        }
    }

    /// Each of ten thousand gaps repeated the text, in six bytes for each of its characters: 25 MB for a short request. They
    /// were counted once all of them were written.
    #[tokio::test]
    async fn a_poll_with_many_gaps_takes_little_and_is_overloaded_while_many_answers_are_not_taken() {
        const TOPICS: usize = 10_000;
        let broker = Broker::new(MemoryLog::start(Config::default().retention()));
        let app = App::new(broker, Arc::new(Config::default()), Shutdown::new());
        let ask = async || {
            let topics: Vec<_> = (0..TOPICS).map(|number| number.to_string()).collect();
            let body = json!({"topics": topics, "last_event_id": "\u{1}x".repeat(200)});
            let request = Request::post("/events").header(header::HOST, "localhost");
            let request = request.header(header::CONTENT_TYPE, media::JSON);
            let request = request.body(Body::from(body.to_string())).expect("a request");
            crate::http::router(app.clone()).oneshot(request).await.expect("an answer")
        };
        let answer = ask().await;
        assert_eq!(answer.status(), 200);
        let length: usize =
            answer.headers()[header::CONTENT_LENGTH].to_str().expect("text").parse().expect("a number");
        let untaken = app.connections.untaken_bytes();
        assert!(length / 2 < untaken && untaken < length + 1_024, "{untaken} of {length}");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body.len(), length);
        assert!(length < 250 * TOPICS, "{length}");
        let answer: Value = serde_json::from_slice(&body).expect("an answer");
        let gaps = answer["gaps"].as_array().expect("gaps");
        assert_eq!((gaps.len(), &gaps[9]["after"]), (TOPICS, &json!(" x".repeat(32) + "…")));

        let mut others = app.connections.answer_bytes(None);
        others.add(MANY_BYTES);
        assert_eq!(ask().await.status(), 503);
        assert_eq!(app.connections.untaken_bytes(), MANY_BYTES);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_keeps_its_place_and_follows_no_topic() {
        let broker = Broker::new(MemoryLog::start(Config::default().retention()));
        let app = App::new(broker.clone(), Arc::new(Config::default()), Shutdown::new());
        let request = Request::get("/events?topic=a&topic=b&after=0")
            .header(header::HOST, "localhost")
            .body(Body::empty())
            .expect("a request");
        let publish = Request::post("/topics/a").header(header::HOST, "localhost").body(Body::from("x"));
        let router = crate::http::router(app.clone());
        let published = router.clone().oneshot(publish.expect("a request")).await.expect("an answer");
        assert_eq!(published.status(), 201);
        let answer = router.oneshot(request).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let topics = broker.topics("", 10).await.expect("the topics");
        assert_eq!(topics.iter().map(|stats| stats.subscribers).collect::<Vec<_>>(), [0]);
        assert_eq!(app.connections.count(), 1);
        drop(answer);
        assert_eq!(app.connections.count(), 0);
    }
}
