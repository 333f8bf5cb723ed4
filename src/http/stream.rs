//! Server-Sent Events and NDJSON: a response body that is a subscription.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;

use super::{
    App,
    access::Lease,
    batch::{Batch, Form},
    metrics::Permit,
    problem::Code,
    pulse::{Beat, Pulse, overload_retry_ms, retry_ms},
    wire::{self, Control, Framing},
};
use crate::{
    broker::{Delivery, Subscription},
    message::Id,
};

/// How many bytes are gathered for one write. A burst leaves in few system calls, and a slow reader costs no
/// more.
const MAX_GATHERED_BYTES: usize = 32 << 10;

/// Answers with a stream that follows `subscription` until the client or the server ends it.
pub fn respond(
    app: &Arc<App>,
    framing: Framing,
    subscription: Subscription,
    permit: Permit,
    lease: Lease,
) -> Response {
    let open = Control::Open {
        connection: subscription.connection(),
        cursor: subscription.cursor(),
        heartbeat_ms: app.heartbeat_ms(),
    };
    let opening = match framing {
        Framing::Ndjson => framing.control(&open),
        Framing::SseRaw | Framing::SseEnvelope => wire::sse_retry(retry_ms(), &open),
    };
    let body = StreamBody {
        framing,
        subscription,
        pulse: Pulse::new(app.clone()),
        next: Some(opening.into()),
        leaving: false,
        ended: None,
        lease,
        app: app.clone(),
        permit,
    };
    with_headers(framing, Body::new(body))
}

/// Turns a reader away with a status of 200. An `EventSource` reconnects after that, and would not after an
/// error status.
pub fn turn_away(framing: Framing, code: Code, cursor: Option<Id>) -> Response {
    let retry_ms = overload_retry_ms();
    let closing = Control::Closing { code, cursor, retry_ms };
    let body = match framing {
        Framing::Ndjson => framing.control(&closing),
        Framing::SseRaw | Framing::SseEnvelope => wire::sse_retry(retry_ms, &closing),
    };
    let mut response = with_headers(framing, Body::from(body));
    response.extensions_mut().insert(code);
    response
}

fn with_headers(framing: Framing, body: Body) -> Response {
    let mut response = body.into_response();
    let content_type = match framing {
        Framing::Ndjson => "application/x-ndjson",
        Framing::SseRaw | Framing::SseEnvelope => "text/event-stream",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct StreamBody {
    framing: Framing,
    subscription: Subscription,
    pulse: Pulse,
    /// The frame that leaves before anything else.
    next: Option<Bytes>,
    leaving: bool,
    ended: Option<Code>,
    lease: Lease,
    app: Arc<App>,
    permit: Permit,
}

impl StreamBody {
    /// The last frame.
    fn end(&mut self, code: Code) -> Frame<Bytes> {
        self.ended = Some(code);
        let closing =
            Control::Closing { code, cursor: Some(self.subscription.cursor()), retry_ms: retry_ms() };
        Frame::data(self.framing.control(&closing).into())
    }

    /// The bytes that are ready, in one piece.
    fn gather(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        if self.next.is_some() {
            return self.next.take();
        }
        let mut batch = Batch::new(Form::Body(self.framing));
        while self.next.is_none()
            && batch.size() < MAX_GATHERED_BYTES
            && let Poll::Ready(delivery) = self.subscription.poll_delivery(cx)
        {
            self.permit.note(&delivery, false);
            match delivery {
                Delivery::Message(message) if !message.is_ephemeral() => batch.push(message),
                // The id of its event is the cursor, which is this reader's own.
                Delivery::Message(message) => {
                    self.next = Some(self.framing.message(&message, self.subscription.cursor()));
                }
                Delivery::Gap(gap) => self.next = Some(self.framing.control(&Control::Gap(&gap)).into()),
            }
        }
        let together = batch.take();
        let bytes = [&together, &self.next].into_iter().flatten().map(Bytes::len).sum();
        self.permit.add_up(bytes);
        together.or_else(|| self.next.take())
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let why = self.ended.map_or("the client left, or stopped reading", Code::as_str);
        let Self { subscription, app, .. } = self;
        let (cursor, newest) = (subscription.cursor(), app.broker.watermark());
        self.permit.log_end(format_args!("{why}"), subscription.connection(), cursor, newest);
    }
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.ended.is_some() {
            return Poll::Ready(None);
        }
        let Self { lease, subscription, next, .. } = &mut *self;
        // A frame that was taken before the end leaves before it, because the cursor is already past it.
        if next.is_none()
            && let Poll::Ready(code) = lease.poll(cx, || subscription.patterns())
        {
            return Poll::Ready(Some(Ok(self.end(code))));
        }
        if let Some(bytes) = self.gather(cx) {
            self.pulse.sent();
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        while let Poll::Ready(beat) = self.pulse.poll(cx) {
            match beat {
                Beat::Heartbeat => {}
                Beat::Leave => self.leaving = true,
                Beat::End => return Poll::Ready(Some(Ok(self.end(Code::Draining)))),
                Beat::Quiet => {
                    let cursor = Control::Cursor { cursor: self.subscription.cursor() };
                    let bytes = self.framing.control(&cursor).into();
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
            }
        }
        // Everything that had arrived was gathered above.
        if self.leaving && !self.subscription.is_reading() {
            return Poll::Ready(Some(Ok(self.end(Code::Draining))));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        broker::Broker,
        config::Config,
        log::{Append, MemoryLog},
        message::{Draft, Payload},
        shutdown::Shutdown,
    };

    async fn publish(broker: &Broker, topic: &str) {
        let topic = topic.parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        broker.publish(Append { draft, idempotency_key: None, if_match: None }).await.expect("stored");
    }

    /// The types of the frames that leave next.
    async fn types(body: &mut Body) -> Vec<String> {
        let bytes =
            body.frame().await.expect("a frame").expect("it does not fail").into_data().expect("data");
        let value = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).expect("JSON");
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| value(line)["type"].as_str().expect("a type").to_owned()).collect()
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
        assert_eq!(types(&mut body).await, ["open"]);
        let first = types(&mut body).await.len();
        broker.delete(&"gone".parse().expect("a topic")).await.expect("deleted");
        assert_eq!(first + types(&mut body).await.len(), 256);
        app.reconfigure(&Config::default()).expect("it was open before");
        assert_eq!(types(&mut body).await, ["gap"]);
        assert_eq!(types(&mut body).await, ["closing"]);
        assert!(body.frame().await.is_none());
    }
}
