//! One HTTP/1.1 connection in the HTTP library, and the answers with which it leaves the library: a stream, or a poll
//! that has been held for some time.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{extract::Request, response::Response};
use futures_util::poll;
use http::{HeaderValue, StatusCode, Version, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{
    accept::{Endpoint, MAX_HEAD_BYTES, drive, tell_end},
    feed::Feed,
    held,
    idle::{HeadBegun, HeadTimer, KEPT_FOR},
    linger::{self, Rest, StillSends},
    outgoing::Outgoing,
    stall::{StallGuard, Written},
    wakes::Wakes,
};

/// The settings of HTTP/1.1, without the timer of one connection.
pub struct Http1(http1::Builder);

impl Http1 {
    pub fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .header_read_timeout(KEPT_FOR)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(MAX_HEAD_BYTES)
            .pipeline_flush(false);
        Self(http1)
    }

    fn with(&self, timer: HeadTimer) -> http1::Builder {
        let mut http1 = self.0.clone();
        http1.timer(timer);
        http1
    }
}

/// One connection, as all its requests know it.
pub struct Connection {
    pub endpoint: Endpoint,
    pub http1: Arc<Http1>,
    pub begun: HeadBegun,
    pub still_sends: StillSends,
    pub written: Written,
}

impl Connection {
    fn timer(&self) -> HeadTimer {
        let read_timeout = self.endpoint.app.config.read_timeout;
        HeadTimer { begun: self.begun.clone(), read_timeout, place: self.endpoint.place.clone() }
    }
}

/// Serves a connection until it ends, or leaves the library. `first` is the answer to its first request, if there is one
/// already.
pub fn serve(
    ours: Arc<Connection>,
    io: StallGuard,
    first: Option<Response>,
) -> impl Future<Output = ()> + Send + use<> {
    let (exit, has_first) = (Exit::default(), first.is_some());
    let service = {
        let (ours, exit, first) = (ours.clone(), exit.clone(), Cell::new(first));
        service_fn(move |request| match first.take() {
            Some(response) => Answering::done(&ours, &exit, response),
            None => Answering::begin(&ours, &exit, request),
        })
    };
    let library = ours.http1.with(ours.timer());
    // In a box, and made before the future: a future has room for all that it was ever given.
    let mut connection = Box::pin(library.serve_connection(TokioIo::new(io), service).with_upgrades());
    async move {
        let app = &ours.endpoint.app;
        let driven = async {
            // A connection that hears of the drain before its first request ends without an answer.
            if has_first && let Poll::Ready(ended) = poll!(connection.as_mut()) {
                return ended;
            }
            drive(&app.shutdown, connection.as_mut(), http1::UpgradeableConnection::graceful_shutdown).await
        };
        let leaving = match until_leaving(driven, &exit).await {
            Ok(ended) => return tell_end(app, ended),
            Err(leaving) => leaving,
        };
        if let Some(parts) = Pin::into_inner(connection).into_parts() {
            let io = parts.io.into_inner();
            // In a task of its own, which has room for this and for nothing else.
            match leaving {
                Leaving::Stream(feed) => drop(app.tasks.spawn(feed.run(app.clone(), io.share(&[])))),
                Leaving::Poll(poll) => held::begin(ours, poll, io, &parts.read_buf),
            }
        }
    }
}

/// Runs a connection until it ends, or until an answer leaves the library.
async fn until_leaving<T>(driven: impl Future<Output = T>, exit: &Exit) -> Result<T, Leaving> {
    let mut driven = pin!(driven);
    let wakes = Wakes::new();
    poll_fn(|cx| match wakes.poll(cx, |cx| driven.as_mut().poll(cx)) {
        Poll::Ready(result) => Poll::Ready(Ok(result)),
        Poll::Pending => exit.waiting().map_or(Poll::Pending, |leaving| Poll::Ready(Err(leaving))),
    })
    .await
}

/// An answer that leaves the library. No other one may wait there to be written: it would be lost.
enum Leaving {
    Stream(Box<Feed>),
    Poll(Unanswered),
}

/// The way out of the library for the answer of one connection.
#[derive(Clone, Default)]
struct Exit(Arc<Mutex<Option<Leaving>>>);

impl Exit {
    /// Leaves the library. It must wait for an answer until its connection is taken apart.
    fn leave_with(&self, leaving: Leaving) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaving);
    }

    /// The answer that waits to leave.
    fn waiting(&self) -> Option<Leaving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A request, and the answer that it will have.
pub struct Unanswered {
    /// In a box, which can leave the library, and which the library drops once there is a response.
    pub answer: Pin<Box<dyn Future<Output = Answered> + Send>>,
    /// The connection ends with this answer.
    pub is_last: bool,
}

/// An answer, and if it may leave the library.
pub struct Answered {
    pub response: Response,
    may_leave: bool,
}

/// The answer to one request, in the library.
struct Answering {
    /// `None` once it has left.
    request: Option<Unanswered>,
    ours: Arc<Connection>,
    exit: Exit,
    rest: Option<Rest>,
    may_leave: bool,
}

impl Answering {
    fn begin(ours: &Arc<Connection>, exit: &Exit, request: Request<Incoming>) -> Self {
        // The library ends a connection whose request has two lengths, and says so nowhere. It removes one of them.
        let may_have_two_lengths = request.headers().contains_key(header::TRANSFER_ENCODING);
        let may_leave =
            request.version() == Version::HTTP_11 && !ours.endpoint.place.is_spare() && !may_have_two_lengths;
        let is_last = request.headers().get_all(header::CONNECTION).iter().any(closes);
        let (request, rest) = linger::keep(request);
        let answer = Box::pin(answer(ours.clone(), request, rest.clone()));
        let (ours, exit) = (ours.clone(), exit.clone());
        Self { request: Some(Unanswered { answer, is_last }), ours, exit, rest, may_leave }
    }

    /// An answer that is there already. In a drain the connection ends with it.
    fn done(ours: &Arc<Connection>, exit: &Exit, mut response: Response) -> Self {
        if ours.endpoint.app.shutdown.is_draining() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // No client has sent this request, so none sends the rest of it.
        ours.begun.note_whole();
        let answer = Box::pin(ready(Answered { response, may_leave: false }));
        let request = Some(Unanswered { answer, is_last: false });
        Self { request, ours: ours.clone(), exit: exit.clone(), rest: None, may_leave: false }
    }
}

/// True if a field `Connection` says that the connection ends with the answer.
fn closes(value: &HeaderValue) -> bool {
    value.to_str().unwrap_or_default().split(',').any(|word| word.trim().eq_ignore_ascii_case("close"))
}

impl Future for Answering {
    type Output = Result<http::Response<Outgoing>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { request, ours, exit, rest, may_leave } = &mut *self;
        let Some(waiting) = request else { return Poll::Pending };
        let (answered, is_held) = held::watch(|| waiting.answer.as_mut().poll(cx));
        let may_leave = *may_leave && ours.written.is_flushed();
        let Poll::Ready(Answered { mut response, may_leave: may_answer_leave }) = answered else {
            // A part of the request that is unread is in the library too.
            if is_held
                && may_leave
                && rest.as_ref().is_none_or(Rest::is_read)
                && let Some(poll) = request.take()
            {
                exit.leave_with(Leaving::Poll(poll));
            }
            return Poll::Pending;
        };
        if may_leave
            && may_answer_leave
            && let Some(feed) = Feed::of(&mut response)
        {
            *request = None;
            exit.leave_with(Leaving::Stream(Box::new(feed)));
            return Poll::Pending;
        }
        Poll::Ready(Ok(Outgoing::of(response)))
    }
}

/// Answers a request. If it is answered before all of it was read, the connection lives on only if the rest is small.
async fn answer(ours: Arc<Connection>, request: Request, rest: Option<Rest>) -> Answered {
    let Connection { endpoint, begun, still_sends, .. } = &*ours;
    begun.note_whole();
    let mut response = endpoint.answer(request).await;
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let may_still_send = match rest {
        // In a box, because all that are held would have room for it.
        Some(rest) if !is_upgrade => !Box::pin(rest.read_to_end()).await,
        _ => false,
    };
    if may_still_send {
        endpoint.app.metrics.unread.bodies.inc();
        still_sends.set();
    }
    if may_still_send || endpoint.place.is_spare() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Answered { response, may_leave: !may_still_send }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;
    use crate::{
        broker::Broker,
        config::{Config, Parking},
        http::{App, client_address::Peer, linger::Linger, places::Place, socket::Socket},
        log::MemoryLog,
        shutdown::Shutdown,
    };

    /// The buffers of the library were four fifths of what a held poll took.
    #[tokio::test]
    async fn a_poll_that_is_held_leaves_the_library_until_its_client_is_gone() {
        let polls: [&[u8]; 2] = [
            b"GET /topics/a?last=0&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"POST /events?wait=60 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 25\r\n\r\n\
              {\"topics\":[\"a\"],\"last\":0}",
        ];
        for poll in polls {
            let config = Config { parking: Parking::Always, ..Config::default() };
            let broker = Broker::new(MemoryLog::start(config.retention()));
            let app = App::new(broker, Arc::new(config), Shutdown::new());
            let tasks = app.tasks.len();
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let addr = listener.local_addr().expect("bound");
            let mut client = TcpStream::connect(addr).await.expect("a connection");
            let (socket, _) = listener.accept().await.expect("a connection");
            let place = Place::default();
            let (begun, still_sends, written) =
                (HeadBegun::default(), StillSends::default(), Written::default());
            let patience = Duration::from_secs(30);
            let io = StallGuard::new(
                Bytes::new(),
                Socket::Plain(socket),
                patience,
                begun.clone(),
                written.clone(),
                Linger::new(still_sends.clone()),
                place.clone(),
            );
            let endpoint = Endpoint { app: app.clone(), place, peer: Peer::of(None) };
            let http1 = Arc::new(Http1::new());
            let ours = Arc::new(Connection { endpoint, http1, begun, still_sends, written });
            client.write_all(poll).await.expect("it is taken");
            timeout(patience, serve(ours, io, None)).await.expect("it leaves");
            assert_eq!(
                (app.tasks.len(), app.connections.count()),
                (tasks + 1, 1),
                "the poll is held elsewhere"
            );
            drop(client);
            let gone = async {
                while app.tasks.len() > tasks {
                    tokio::task::yield_now().await;
                }
            };
            timeout(patience, gone).await.expect("the client is gone");
            assert_eq!(app.connections.count(), 0);
        }
    }
}
