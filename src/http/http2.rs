//! One HTTP/2 connection, and the bounds of what its client can open and leave open.

use std::{convert::Infallible, future::pending, pin::pin, time::Duration};

use axum::{extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    App,
    accept::{Endpoint, MAX_HEAD_BYTES, drive},
    idle::KEPT_FOR,
    outgoing::Outgoing,
    patient::{PatientSleep, PatientTimer},
    problem::too_many_fields,
    stall::{StallGuard, StreamExecutor},
};

/// How many fields the head of a request may have. The HTTP library has the same limit for HTTP/1.1.
const MAX_FIELDS: usize = 100;
/// How many requests one connection may have open. A browser opens about a hundred.
const MAX_STREAMS: u32 = 250;
/// How many bytes of one stream may wait in memory until its window opens.
const MAX_STREAM_SEND_BYTES: usize = 64 << 10;
/// How many bytes of bodies a client may send before the server reads them, as it does not while the backend is asked who
/// the client is: on one stream, and on the connection, so that one stream does not stop the others.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// How long a connection that has been idle may take to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

async fn answer(endpoint: Endpoint, request: Request<Incoming>) -> Result<Response<Outgoing>, Infallible> {
    if request.headers().len() > MAX_FIELDS {
        endpoint.app.metrics.unread.heads.inc();
        return Ok(Outgoing::of(too_many_fields()));
    }
    Ok(Outgoing::of(endpoint.answer(request).await))
}

/// Serves one connection until it ends.
pub async fn serve(app: &App, endpoint: Endpoint, io: TokioIo<StallGuard>) -> hyper::Result<()> {
    let (peer, open) = (endpoint.peer, watch::Sender::new(0));
    let streams = open.subscribe();
    let kept_for = {
        let place = endpoint.place.clone();
        move || if place.is_spare() { Duration::ZERO } else { place.patience(KEPT_FOR) }
    };
    // In a box, because the stream drops it once there is a response.
    let service = service_fn(move |request| Box::pin(answer(endpoint.clone(), request)));
    let connection = pin!(builder(app, open).serve_connection(io, service));
    let end = app.shutdown.child();
    let idle = async {
        until_idle(streams, app.config.read_timeout, kept_for).await;
        tracing::debug!(client = %peer.ip(), "connection ended: no request came");
        end.drain();
        sleep(LEAVE_WITHIN).await;
        end.end();
        pending().await
    };
    tokio::select! {
        result = drive(&end, connection, http2::Connection::graceful_shutdown) => result,
        never = idle => never,
    }
}

/// Resolves once an HTTP/2 connection has had no open stream for `kept_for`, or if the first stream does not come
/// within `first`.
async fn until_idle(mut streams: watch::Receiver<usize>, first: Duration, kept_for: impl Fn() -> Duration) {
    let mut has_asked = false;
    while let Ok(has_changed) = streams.has_changed() {
        has_asked |= has_changed;
        let is_quiet = *streams.borrow_and_update() == 0;
        let limit = if has_asked { kept_for() } else { first };
        tokio::select! {
            () = PatientSleep::until(Instant::now() + limit), if is_quiet => return,
            _ = streams.changed() => has_asked = true,
        }
    }
    // The connection has ended.
    pending().await
}

/// The settings of an HTTP/2 connection whose streams are counted in `open`.
fn builder(app: &App, open: watch::Sender<usize>) -> http2::Builder<StreamExecutor> {
    let mut http2 = http2::Builder::new(StreamExecutor {
        timeout: app.config.write_timeout,
        open,
        slow_closes: app.metrics.slow_closes.clone(),
        tasks: app.tasks.clone(),
    });
    http2
        .timer(PatientTimer)
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(MAX_STREAM_SEND_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(app.config.heartbeat)
        // A ping waits behind frames that a slow client has yet to read.
        .keep_alive_timeout(app.config.heartbeat.saturating_add(app.config.write_timeout));
    http2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_without_streams_is_idle_after_some_time() {
        let first = Duration::from_secs(30);
        let open = watch::Sender::new(0);
        let began = Instant::now();
        until_idle(open.subscribe(), first, || KEPT_FOR).await;
        assert_eq!(began.elapsed().as_secs(), 30, "no request came");

        let idle = tokio::spawn(until_idle(open.subscribe(), first, || KEPT_FOR));
        open.send_replace(1);
        sleep(10 * KEPT_FOR).await;
        assert!(!idle.is_finished(), "a stream is open");
        for _ in 0..3 {
            open.send_replace(0);
            sleep(KEPT_FOR / 2).await;
            open.send_replace(1);
            tokio::task::yield_now().await;
        }
        assert!(!idle.is_finished(), "it is used again and again");
        open.send_replace(0);
        let from = Instant::now();
        idle.await.expect("it ends");
        assert_eq!(from.elapsed().as_secs(), KEPT_FOR.as_secs());
    }
}
