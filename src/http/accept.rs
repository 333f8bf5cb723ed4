//! From the listening socket to the router, and back to an empty server.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request};
use http::Version;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, interval_at, sleep, timeout},
};
use tower::ServiceExt;

use super::{
    App,
    stall::{StallGuard, StreamExecutor, WatchedBody},
};

/// The largest request head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// How many requests one HTTP/2 connection may have open; the server's own limit comes first.
const MAX_STREAMS: u32 = 100_000;
/// How much of one HTTP/2 stream may wait in memory for its window.
const MAX_STREAM_SEND_BYTES: usize = 64 << 10;
/// How often an HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const HTTP2_PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How much the system may hold that it has yet to send to one peer. A slow reader is to fall behind in
/// the log, not in the system's memory.
const MAX_UNSENT_BYTES: u32 = 128 << 10;
/// How long to wait when no connection can be accepted for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often the log tells what was done.
const TOTALS_EVERY: Duration = Duration::from_secs(60);

/// How the end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection was told, and left.
    Completely,
    /// The grace was over, or somebody ended it, with so many still here.
    Partly(usize),
}

/// Serves `router` until the drain is over.
pub async fn serve(app: Arc<App>, router: Router, listener: TcpListener) -> Drained {
    let mut server = auto::Builder::new(StreamExecutor {
        timeout: app.config.write_timeout,
        slow_closes: app.metrics.slow_closes.clone(),
        tasks: app.tasks.clone(),
    });
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.read_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .pipeline_flush(false);
    server
        .http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buf_size(MAX_STREAM_SEND_BYTES)
        .keep_alive_interval(HTTP2_PING.0)
        .keep_alive_timeout(HTTP2_PING.1);
    let server = Arc::new(server);

    let mut draining = std::pin::pin!(app.shutdown.draining());
    let mut minute = interval_at(Instant::now() + TOTALS_EVERY, TOTALS_EVERY);
    loop {
        tokio::select! {
            _ = minute.tick() => app.metrics.tell_totals(),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    app.tasks.spawn(serve_connection(app.clone(), server.clone(), router.clone(), socket));
                }
                Err(error) => survive(&error).await,
            },
            () = &mut draining => break,
        }
    }
    drop(listener);
    drain(&app).await
}

/// Some errors are the client's, who is gone; the others pass, if there is a pause.
async fn survive(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::error!(%error, "cannot accept connections; is the limit of file descriptors too low?");
    sleep(ACCEPT_BACKOFF).await;
}

#[cfg(target_os = "linux")]
fn bound_unsent(socket: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(socket).set_tcp_notsent_lowat(MAX_UNSENT_BYTES)
}

#[cfg(not(target_os = "linux"))]
fn bound_unsent(_socket: &TcpStream) -> io::Result<()> {
    Ok(())
}

async fn serve_connection(
    app: Arc<App>,
    server: Arc<auto::Builder<StreamExecutor>>,
    router: Router,
    socket: TcpStream,
) {
    // A message is to leave at once; what belongs together is put together before it is written.
    if let Err(error) = socket.set_nodelay(true).and_then(|()| bound_unsent(&socket)) {
        tracing::debug!(%error, "connection was gone at once");
        return;
    }
    let has_asked = Arc::new(AtomicBool::new(false));
    let service = {
        let has_asked = has_asked.clone();
        hyper::service::service_fn(move |request: Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            let is_http2 = request.version() == Version::HTTP_2;
            let response = router.clone().oneshot(request);
            async move {
                response.await.map(|response| match is_http2 {
                    true => response.map(|body| axum::body::Body::new(WatchedBody::new(body))),
                    false => response,
                })
            }
        })
    };
    let io = TokioIo::new(StallGuard::new(socket, app.config.write_timeout));
    let mut connection = std::pin::pin!(server.serve_connection_with_upgrades(io, service));
    // Until its first request a connection has no other timeout: its protocol is not even known.
    let mut first_request = std::pin::pin!(sleep(app.config.read_timeout));
    let mut draining = std::pin::pin!(app.shutdown.draining());
    let mut is_draining = false;
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    if is_too_slow(&*error) {
                        app.metrics.slow_closes.inc();
                    }
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = &mut first_request, if !first_request.is_elapsed() => {
                if !has_asked.load(Ordering::Relaxed) {
                    tracing::debug!("connection ended: it asked for nothing");
                    return;
                }
            }
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = app.shutdown.ended() => return,
        }
    }
}

/// Whether the connection ended because its peer took nothing.
fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|io| io.kind() == io::ErrorKind::TimedOut)
}

/// Waits until everybody has left, or the grace is over.
async fn drain(app: &App) -> Drained {
    app.tasks.close();
    let count = app.tasks.len();
    let grace = app.config.drain_grace;
    tracing::info!(connections = count, ?grace, "draining");
    let waited = tokio::select! {
        waited = timeout(grace, app.tasks.wait()) => waited,
        () = app.shutdown.ended() => timeout(Duration::ZERO, app.tasks.wait()).await,
    };
    let left = app.tasks.len();
    app.shutdown.end();
    match waited {
        Ok(()) => Drained::Completely,
        Err(_) => Drained::Partly(left),
    }
}
