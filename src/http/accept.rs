//! From the listening socket to the router, and the drain at the end.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, extract::Request};
use bytes::{Bytes, BytesMut};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{Instant, interval_at, sleep, timeout},
};
use tower::ServiceExt;

use super::{
    App,
    client_address::Peer,
    gate::Gate,
    idle::{HeadBegun, HeadTimer, KEPT_FOR},
    patient::PatientTimer,
    proxy_protocol::{self, BadBeginning},
    stall::{StallGuard, StreamExecutor, WatchedBody},
};
use crate::{
    config::Config,
    shutdown::{Ending, Stage},
};

/// The beginning of a connection that speaks HTTP/2 with prior knowledge (RFC 9113 §3.4). Three bytes are
/// enough, because no method of HTTP/1.1 begins so.
const HTTP2_PREFACE: &[u8; 3] = b"PRI";
/// The beginning of a connection that speaks TLS: a record of its handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: &[u8; 2] = &[0x16, 0x03];
/// The largest request head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// How many requests one HTTP/2 connection may have open. The server's own limit comes first.
const MAX_STREAMS: u32 = 100_000;
/// How many bytes of one HTTP/2 stream may wait in memory until its window opens.
const MAX_STREAM_SEND_BYTES: usize = 64 << 10;
/// The system counts these in seconds, and takes no longer ones.
const KEEPALIVES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32_767));
/// The system counts this in milliseconds, and takes no longer one.
#[cfg(target_os = "linux")]
const LONGEST_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);
/// How many bytes the system may hold before they are sent to one peer. So a slow reader falls behind in the
/// log, and not in the system's memory.
const MAX_UNSENT_BYTES: u32 = 128 << 10;
/// The pause after the system had no descriptors or memory for a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often the totals are logged.
const TOTALS_EVERY: Duration = Duration::from_secs(60);

/// How the drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection was asked to leave, and left.
    Completely,
    /// The grace expired or a second signal came, with this many connections open.
    Partly(usize),
}

/// The settings of each protocol.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<StreamExecutor>,
}

impl Protocols {
    fn new(app: &App) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .header_read_timeout(KEPT_FOR)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(MAX_HEAD_BYTES)
            .pipeline_flush(false);
        let mut http2 = http2::Builder::new(StreamExecutor {
            timeout: app.config.write_timeout,
            slow_closes: app.metrics.slow_closes.clone(),
            tasks: app.tasks.clone(),
        });
        http2
            .timer(PatientTimer)
            .enable_connect_protocol()
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_send_buf_size(MAX_STREAM_SEND_BYTES)
            .keep_alive_interval(app.config.heartbeat)
            // A ping waits behind frames that a slow client has yet to read.
            .keep_alive_timeout(app.config.heartbeat.saturating_add(app.config.write_timeout));
        Self { http1, http2 }
    }

    /// The settings with the timer of one connection.
    fn http1(&self, timer: HeadTimer) -> http1::Builder {
        let mut http1 = self.http1.clone();
        http1.timer(timer);
        http1
    }
}

/// Serves `router` until the drain is over.
pub async fn serve(app: Arc<App>, router: Router, listener: TcpListener) -> Drained {
    let protocols = Arc::new(Protocols::new(&app));
    let mut draining = pin!(app.shutdown.draining());
    let mut minute = interval_at(Instant::now() + TOTALS_EVERY, TOTALS_EVERY);
    loop {
        tokio::select! {
            _ = minute.tick() => app.metrics.log_totals(),
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) => {
                    let peer = Peer::new(from.ip());
                    app.tasks.spawn(serve_connection(app.clone(), protocols.clone(), router.clone(), socket, peer));
                }
                Err(error) => survive(&error).await,
            },
            () = &mut draining => break,
        }
    }
    drop(listener);
    drain(&app).await
}

/// Some errors mean that one client is gone. The others pass after a pause.
async fn survive(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::error!(%error, "cannot accept connections; check the limit of file descriptors");
    sleep(ACCEPT_BACKOFF).await;
}

/// Sets the options of a new connection.
///
/// A peer that vanished acknowledges nothing. The system drops the connection once that has lasted for the
/// write timeout and a heartbeat. It asks a peer that has nothing to acknowledge, such as one that waits for a
/// poll, after a heartbeat. The heartbeat is added so that a peer which is there, and does not read, is first
/// told why it is closed.
fn prepare(socket: &TcpStream, config: &Config) -> io::Result<()> {
    // No delay for small packets: messages that leave together are joined before they are written.
    socket.set_nodelay(true)?;
    let Config { heartbeat, write_timeout, .. } = *config;
    let bounded = |time: Duration| time.clamp(KEEPALIVES.0, KEEPALIVES.1);
    let every = heartbeat.min(write_timeout) / 2;
    let keepalive = TcpKeepalive::new().with_time(bounded(heartbeat)).with_interval(bounded(every));
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        let user_timeout = write_timeout.saturating_add(heartbeat).min(LONGEST_USER_TIMEOUT);
        socket.set_tcp_user_timeout(Some(user_timeout))?;
        socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES)?;
    }
    Ok(())
}

async fn serve_connection(
    app: Arc<App>,
    protocols: Arc<Protocols>,
    router: Router,
    mut socket: TcpStream,
    peer: Peer,
) {
    // A peer that is gone already shows at the first read. The options are no reason to refuse one that is there.
    if let Err(error) = prepare(&socket, &app.config) {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
    let begun = tokio::select! {
        begun = timeout(app.config.read_timeout, begin(&app.config, &mut socket, peer)) => begun,
        () = app.shutdown.draining() => return,
    };
    let Ok(Some((peer, head))) = begun else {
        tracing::debug!(client = %peer.ip(), "connection ended: no request came");
        return;
    };
    if head.starts_with(TLS_HANDSHAKE) {
        tracing::warn!(
            client = %peer.ip(),
            "a client speaks TLS (https:// or wss://), and this port does not: \
             let clients use http://, or a proxy that ends TLS"
        );
    }
    let is_http2 = head.starts_with(HTTP2_PREFACE);
    let begun = HeadBegun::default();
    let io = TokioIo::new(StallGuard::new(head, socket, app.config.write_timeout, begun.clone()));
    let result = match is_http2 {
        false => {
            // In a box, because the connection drops it once there is a response.
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer);
                Box::pin(router.clone().oneshot(request))
            });
            let timer = HeadTimer { begun, read_timeout: app.config.read_timeout };
            let connection = pin!(protocols.http1(timer).serve_connection(io, service).with_upgrades());
            drive(&app, connection, http1::UpgradeableConnection::graceful_shutdown).await
        }
        // In a box of its own, because the connection's task has the size of its largest branch.
        true => Box::pin(serve_http2(&app, &protocols, router, io, peer)).await,
    };
    if let Err(error) = result {
        if is_too_slow(&error) {
            app.metrics.slow_closes.inc();
        }
        tracing::debug!(client = %peer.ip(), %error, "connection failed");
    }
}

/// Reads the beginning of a connection: the PROXY protocol, if this peer has to speak it, and the bytes that tell the
/// protocol of its requests. `None` if it ends before, or begins with something else.
async fn begin(config: &Config, socket: &mut TcpStream, peer: Peer) -> Option<(Peer, Bytes)> {
    let (mut client, mut head) = (peer, BytesMut::with_capacity(HTTP2_PREFACE.len()));
    if config.proxy_protocol && config.trusts(peer.ip()) {
        match proxy_protocol::read(socket, peer.ip()).await {
            Ok(begun) => (client, head) = begun,
            Err(BadBeginning::NoHeader) => {
                tracing::warn!(
                    client = %peer.ip(),
                    "closed a connection of a trusted proxy: it did not begin with the PROXY protocol; let the proxy \
                     send it, or take its address out of --trusted-proxy"
                );
                return None;
            }
            Err(BadBeginning::Ended | BadBeginning::Read(_)) => return None,
        }
    }
    while head.len() < HTTP2_PREFACE.len() {
        if !matches!(socket.read_buf(&mut head).await, Ok(1..)) {
            return None;
        }
    }
    Some((client, head.freeze()))
}

async fn serve_http2(
    app: &App,
    protocols: &Protocols,
    router: Router,
    io: TokioIo<StallGuard>,
    peer: Peer,
) -> hyper::Result<()> {
    let has_asked = Arc::new(AtomicBool::new(false));
    let service = {
        let has_asked = has_asked.clone();
        service_fn(move |mut request: Request<Incoming>| {
            has_asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(peer);
            let response = router.clone().oneshot(request);
            async move { response.await.map(|response| response.map(WatchedBody::new)) }
        })
    };
    let connection = pin!(protocols.http2.serve_connection(io, service));
    let mut connection = pin!(drive(app, connection, http2::Connection::graceful_shutdown));
    // HTTP/1.1 has its own timeout for a request that does not come.
    match timeout(app.config.read_timeout, &mut connection).await {
        Ok(result) => result,
        Err(_) if has_asked.load(Ordering::Relaxed) => connection.await,
        Err(_) => {
            tracing::debug!(client = %peer.ip(), "connection ended: no request came");
            Ok(())
        }
    }
}

/// Runs a connection until it ends, or the server does. `leave` asks it to finish what it has begun.
async fn drive<C>(app: &App, mut connection: Pin<&mut C>, leave: impl Fn(Pin<&mut C>)) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut ending = Ending::new(app.shutdown.clone());
    let mut gate = Gate::new();
    poll_fn(|cx| {
        while let Poll::Ready(stage) = gate.poll(cx, |cx| ending.poll(cx)) {
            match stage {
                Stage::Draining => leave(connection.as_mut()),
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
        connection.as_mut().poll(cx)
    })
    .await
}

/// True if the connection ended because the client had stopped reading.
fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|io| io.kind() == io::ErrorKind::TimedOut)
}

/// Waits until every connection has left, the grace expires, or a second signal comes.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux refuses longer ones, and every connection was then dropped.
    #[tokio::test]
    async fn the_longest_durations_are_options_that_the_system_takes() {
        let longest = Duration::from_secs(10 * 366 * 24 * 3600);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a connection");
        for (heartbeat, write_timeout) in
            [(longest, longest), (Duration::from_millis(1), longest), (longest, Duration::from_millis(1))]
        {
            let config = Config { heartbeat, write_timeout, ..Config::default() };
            prepare(&socket, &config).expect("the system takes them");
        }
    }
}
