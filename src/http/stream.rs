//! Server-Sent Events and NDJSON: a response body that is a subscription.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;

use super::{
    answer::unread,
    batch::{Batch, Form},
    group::Groups,
    gzip::{self, Gzip},
    live::Event,
    media,
    problem::{Code, Problem},
    pulse::{overload_retry_ms, retry_ms},
    reader::{Next, Reader},
    refusal::of_end,
    shared_socket::SharedSocket,
    wire::{self, By, Control, Framing},
};
use crate::{broker::Delivery, message::Id};

/// How many bytes are gathered for one write. A burst leaves in few system calls, and a slow reader costs no
/// more.
const MAX_GATHERED_BYTES: usize = 32 << 10;

/// Answers with a stream that gives out what `reader` reads, until the client or the server ends it.
pub fn respond(framing: Framing, reader: Reader, is_gzip: bool) -> Response {
    let open = reader.open();
    let opening = match framing {
        Framing::Ndjson => framing.control(&open),
        Framing::SseRaw | Framing::SseEnvelope => wire::sse_retry(retry_ms(), &open),
    };
    let gzip = is_gzip.then(Gzip::default);
    let mut stream = Streaming { framing, gzip, reader, next: None, ended: None };
    stream.next = Some(stream.code(opening.into()));
    let offered = Offered(Arc::new(Mutex::new(Some(stream))));
    let mut response = with_headers(framing, Body::new(offered.clone()), is_gzip);
    response.extensions_mut().insert(offered);
    response
}

/// The headers of a stream that is not opened.
pub fn head(framing: Framing, is_gzip: bool) -> Response {
    with_headers(framing, unread(), is_gzip)
}

/// Turns a reader away with a status of 200. An `EventSource` reconnects after that, and would not after an
/// error status.
pub fn turn_away(framing: Framing, problem: Problem, cursor: Option<Id>) -> Response {
    let retry_ms = overload_retry_ms();
    let closing = Control::Closing { code: problem.code, detail: &problem.detail, cursor, retry_ms };
    let body = match framing {
        Framing::Ndjson => framing.control(&closing),
        Framing::SseRaw | Framing::SseEnvelope => wire::sse_retry(retry_ms, &closing),
    };
    let mut response = with_headers(framing, Body::from(body), false);
    problem.note_in(&mut response);
    response
}

fn with_headers(framing: Framing, body: Body, is_gzip: bool) -> Response {
    let mut response = body.into_response();
    response.extensions_mut().insert(framing.transport());
    let content_type = match framing {
        Framing::Ndjson => media::NDJSON,
        Framing::SseRaw | Framing::SseEnvelope => media::EVENT_STREAM_UTF_8,
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    gzip::note(headers, is_gzip);
    response
}

/// The frames of a stream, without the one who writes them.
pub struct Streaming {
    framing: Framing,
    /// The stream in gzip, if the client asked for one.
    gzip: Option<Gzip>,
    reader: Reader,
    /// The frame that leaves before anything else.
    next: Option<Bytes>,
    ended: Option<Code>,
}

impl Streaming {
    /// The next bytes, now or once there are some. `None` after the last frame.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // A frame that was taken before the end leaves before it, because the cursor is already past it.
        let bytes = match self.next.take() {
            Some(next) => Some(next),
            None if self.ended.is_some() => return Poll::Ready(None),
            None => self.gather(cx),
        };
        // Everything that had arrived was gathered.
        let bytes = bytes.or_else(|| {
            self.reader.may_leave().then(|| {
                let closing = self.end(&of_end(Code::Draining));
                self.code(closing)
            })
        });
        bytes.map_or(Poll::Pending, |bytes| Poll::Ready(Some(bytes)))
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// See [`Reader::park`].
    pub fn park(&mut self, cx: &Context<'_>, groups: &Arc<Groups>, socket: &SharedSocket) {
        self.reader.park(cx, groups, self.form(), socket);
    }

    /// See [`Reader::take_over`].
    pub fn take_over(&mut self) -> Option<Bytes> {
        let (rest, plain) = self.reader.take_over()?;
        if let Some(gzip) = &mut self.gzip {
            gzip.gave(plain);
        }
        (!rest.is_empty()).then_some(rest)
    }

    fn form(&self) -> Form {
        if self.gzip.is_some() { Form::Gzip(self.framing) } else { Form::Body(self.framing) }
    }

    /// A frame that belongs to this reader alone, as it is written. It leaves behind all that was coded before.
    fn code(&mut self, frame: Bytes) -> Bytes {
        let Some(gzip) = &mut self.gzip else { return frame };
        let mut out = BytesMut::new();
        gzip.write(&mut out, &frame);
        if self.ended.is_some() {
            gzip.end(&mut out);
        }
        out.freeze()
    }

    /// The bytes that are ready, in one piece.
    fn gather(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        let mut batch = Batch::new(self.form());
        while self.next.is_none()
            && batch.size() < MAX_GATHERED_BYTES
            && let Poll::Ready(next) = self.reader.poll(cx, true)
        {
            match next {
                Next::Event(Event::Delivery(Delivery::Message(message))) if !message.is_ephemeral() => {
                    batch.push(message);
                }
                next => self.next = self.render(next),
            }
        }
        let together = batch.take();
        if let (Some(gzip), Some(together)) = (&mut self.gzip, &together) {
            gzip.gave(together.plain);
        }
        self.next = self.next.take().map(|frame| self.code(frame));
        let together = together.map(|together| together.bytes);
        let bytes = [&together, &self.next].into_iter().flatten().map(Bytes::len).sum();
        self.reader.add_up(bytes);
        together.or_else(|| self.next.take())
    }

    /// The frame for something that no other reader is sent in the same form.
    fn render(&mut self, next: Next) -> Option<Bytes> {
        let cursor = self.reader.cursor();
        let control = |control: Control<'_>| Some(self.framing.control(&control).into());
        match next {
            Next::Event(event) => self.render_event(event, cursor),
            Next::Quiet => control(Control::Cursor { cursor }),
            Next::Ended(problem) => Some(self.end(&problem)),
            Next::GraceOver => Some(self.end(&of_end(Code::Draining))),
            Next::Heartbeat => None,
        }
    }

    fn render_event(&self, event: Event, cursor: Id) -> Option<Bytes> {
        let by = By::Server;
        let control = |control: Control<'_>| Some(self.framing.control(&control).into());
        match event {
            // The id of its event is the cursor, which is this reader's own.
            Event::Delivery(Delivery::Message(message)) => Some(self.framing.message(&message, cursor)),
            Event::Delivery(Delivery::Gap(gap)) => control(Control::Gap(&gap)),
            Event::Replay(pattern, Delivery::Message(message)) => {
                Some(self.framing.replay(&message, &pattern, cursor))
            }
            Event::Replay(pattern, Delivery::Gap(gap)) => {
                Some(self.framing.replay_gap(&gap, &pattern, cursor))
            }
            Event::Added(topic) => control(Control::Subscribed { topic: &topic, cursor, by }),
            Event::Removed(topic) => control(Control::Unsubscribed { topic: &topic, cursor, by }),
            // A stream has no commands.
            Event::Joined(_) | Event::Overtaken(_) | Event::Ended(_) => None,
        }
    }

    /// The last frame.
    fn end(&mut self, problem: &Problem) -> Bytes {
        let Problem { code, detail, .. } = problem;
        self.ended = Some(*code);
        self.reader.tell_end(problem);
        // The client may take long to read the last frame.
        self.reader.leave();
        let (cursor, retry_ms) = (Some(self.reader.cursor()), retry_ms());
        let closing = Control::Closing { code: *code, detail, cursor, retry_ms };
        self.framing.control(&closing).into()
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let why = self.ended.map_or("the client left, or stopped reading", Code::as_str);
        self.reader.log_end(format_args!("{why}"), None);
    }
}

/// The body of an answer that is a stream. A feed, which writes to the socket without the HTTP library, takes the stream out.
#[derive(Clone)]
pub struct Offered(Arc<Mutex<Option<Streaming>>>);

impl Offered {
    /// Takes the stream out, unless it was taken before.
    pub fn take(&self) -> Option<Streaming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl http_body::Body for Offered {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = &mut *stream else { return Poll::Ready(None) };
        stream.poll_bytes(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::extract::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::{super::App, *};
    use crate::{
        broker::Broker,
        config::Config,
        log::{Append, MemoryLog},
        message::{Draft, Payload},
        shutdown::Shutdown,
    };

    async fn publish(broker: &Broker, topic: &str) {
        let topic = topic.parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        broker.publish(Append { draft, idempotency_key: None, if_match: None }).await.expect("stored");
    }

    /// The frames that leave next.
    async fn frames(body: &mut Body) -> Vec<serde_json::Value> {
        let bytes =
            body.frame().await.expect("a frame").expect("it does not fail").into_data().expect("data");
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
    }

    async fn types(body: &mut Body) -> Vec<String> {
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        frames(body).await.iter().map(|frame| text(&frame["type"])).collect()
    }

    #[tokio::test]
    async fn a_gap_that_was_taken_is_sent_before_the_closing_frame() {
        let page = "https://app.example";
        let config = Config { allowed_origins: vec![page.parse().expect("an origin")], ..Config::default() };
        let broker = Broker::new(MemoryLog::start(config.retention()));
        let app = App::new(broker.clone(), Arc::new(config), Shutdown::new());
        // More than one page of the log, which is more than one write.
        for _ in 0..300 {
            publish(&broker, "a").await;
        }
        publish(&broker, "gone").await;
        let request = Request::get("/events?topic=*&after=0&transport=ndjson")
            .header(header::HOST, "localhost")
            .header(header::ORIGIN, page)
            .body(Body::empty())
            .expect("a request");
        let response = super::super::router(app.clone()).oneshot(request).await.expect("an answer");
        let mut body = response.into_body();
        let open = frames(&mut body).await.remove(0);
        assert_eq!(open["type"], "open");
        let first = types(&mut body).await.len();
        broker.delete(&"gone".parse().expect("a topic")).await.expect("deleted");
        assert_eq!(first + types(&mut body).await.len(), 256);
        app.reconfigure(&Config::default()).expect("it was open before");
        assert_eq!(types(&mut body).await, ["gap"]);
        assert_eq!(types(&mut body).await, ["closing"]);
        // The client may yet have to read the last frame.
        let id = open["connection"].as_str().expect("a name");
        let request = Request::put(format!("/connections/{id}/topics/b")).header(header::HOST, "localhost");
        let request = request.body(Body::empty()).expect("a request");
        let answer = super::super::router(app.clone()).oneshot(request).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 404);
        assert!(body.frame().await.is_none());
    }
}
