//! From the listening socket to the routes, and the drain at the end.

use std::{
    future::{pending, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, interval_at, sleep, timeout, timeout_at},
};

use super::{
    App, beginning,
    client_address::Peer,
    feed::LAST_WRITE_TIMEOUT,
    gate::Gate,
    http1::{self, Connection, Http1},
    http2,
    idle::HeadBegun,
    linger::{Linger, StillSends},
    listener::{Listener, Listeners, Serves},
    places::{Place, Places},
    refusal::tell_left_out,
    routes,
    socket::Socket,
    stall::{StallGuard, Written},
};
use crate::{
    config::Config,
    shutdown::{Ending, Shutdown, Stage},
};

/// The largest request head.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
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

/// Serves until the drain is over.
pub async fn serve(app: Arc<App>, listeners: impl Into<Listeners>) -> Drained {
    let Listeners(listeners) = listeners.into();
    let http1 = Arc::new(Http1::new());
    let is_public = |listener: &Listener| listener.serves() == Serves::Public;
    let (places, of_operators) = if listeners.iter().any(is_public) {
        Places::with_operators(&app.config)
    } else {
        let places = Places::new(&app.config);
        (places.clone(), places)
    };
    let accepting = listeners.into_iter().map(|listener| {
        let places = if is_public(&listener) { &places } else { &of_operators };
        accept_from(&app, &http1, places, listener)
    });
    tokio::select! {
        _ = join_all(accepting) => {}
        never = log_totals(&app, [&places, &of_operators]) => never,
        never = remind(&app) => never,
    }
    app.shutdown.draining().await;
    app.presences.keep_members();
    let drained = drain(&app).await;
    app.presences.settle().await;
    app.leave_replicas().await;
    drained
}

async fn log_totals(app: &App, places: [&Arc<Places>; 2]) -> ! {
    let mut minute = interval_at(Instant::now() + TOTALS_EVERY, TOTALS_EVERY);
    loop {
        minute.tick().await;
        app.metrics.log_totals();
        tell_left_out();
        places.iter().for_each(|places| places.warn_again());
    }
}

async fn remind(app: &App) -> ! {
    match &app.tls {
        // One by ACME is renewed without anybody, and each order that fails is logged.
        Some(tls) if app.config.certificate.is_some() => tls.remind().await,
        _ => pending().await,
    }
}

/// Accepts connections until the drain begins, and then closes the listener.
async fn accept_from(app: &Arc<App>, http1: &Arc<Http1>, places: &Arc<Places>, listener: Listener) {
    let mut draining = pin!(app.shutdown.draining());
    // Only the first failure of a minute is an error in the log.
    let mut told_at = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut draining => return,
        };
        match accepted {
            Ok((socket, from)) => {
                // Without a place the socket is closed here.
                let peer = Peer::of(from).over(listener.serves(), app.tls.is_some() && !listener.is_plain());
                if let Some(place) = places.take(peer.payer(&app.config)).await {
                    let names_client = app.config.proxy_protocol && app.config.trusts(peer.ip());
                    let for_client = names_client.then(|| places.clone());
                    let endpoint = Endpoint { app: app.clone(), place, peer };
                    let is_tcp = from.is_some();
                    app.tasks.spawn(serve_connection(http1.clone(), endpoint, socket, is_tcp, for_client));
                }
            }
            Err(error) => survive(&error, &mut told_at).await,
        }
    }
}

/// Some errors mean that one client is gone. The others pass after a pause.
async fn survive(error: &io::Error, told_at: &mut Option<Instant>) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    if told_at.is_none_or(|at| at.elapsed() >= TOTALS_EVERY) {
        *told_at = Some(Instant::now());
        tracing::error!(%error, "cannot accept connections; check the limit of file descriptors");
    }
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

/// The server, as the requests of one connection reach it.
#[derive(Clone)]
pub struct Endpoint {
    pub app: Arc<App>,
    pub place: Place,
    pub peer: Peer,
}

impl Endpoint {
    pub fn answer<B>(&self, request: Request<B>) -> impl Future<Output = Response> + Send + use<'_, B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer);
        if self.place.is_spare() {
            request.extensions_mut().insert(self.place.clone());
        }
        routes::answer(&self.app, request)
    }
}

/// Serves one connection. If a proxy names its client, it has a place of this client among `for_client`.
async fn serve_connection(
    http1: Arc<Http1>,
    mut endpoint: Endpoint,
    mut socket: TcpStream,
    is_tcp: bool,
    for_client: Option<Arc<Places>>,
) {
    // A peer that is gone already shows at the first read. The options are no reason to refuse one that is there.
    if is_tcp && let Err(error) = prepare(&socket, &endpoint.app.config) {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
    let until = Instant::now() + endpoint.place.patience(endpoint.app.config.read_timeout);
    let mut head = BytesMut::new();
    if let Some(places) = for_client {
        // In a box, so that other connections need no room for it.
        let named = Box::pin(let_proxy_name_client(endpoint, &mut socket, &places, until)).await;
        let Some(named) = named else { return };
        (endpoint, head) = named;
    }
    match endpoint.place.end_of_spare() {
        None => serve_placed(http1, endpoint, socket, head, until).await,
        Some(end) => {
            // In a box, so that other connections need no room for it.
            let served = Box::pin(serve_placed(http1, endpoint, socket, head, until));
            tokio::select! {
                () = served => {}
                () = end => {}
            }
        }
    }
}

/// Reads which client a proxy names, and takes a place of this client for the connection, since that of the proxy is in
/// no share. `None` if the connection is to end.
async fn let_proxy_name_client(
    endpoint: Endpoint,
    socket: &mut TcpStream,
    places: &Arc<Places>,
    until: Instant,
) -> Option<(Endpoint, BytesMut)> {
    let Endpoint { app, place, peer } = endpoint;
    let end = async {
        match place.end_of_spare() {
            Some(end) => end.await,
            None => pending().await,
        }
    };
    let named = tokio::select! {
        named = timeout_at(until, beginning::read_client(socket, peer)) => named.ok().flatten(),
        () = end => None,
        () = app.shutdown.draining() => None,
    };
    let Some((client, head)) = named else {
        tracing::debug!(client = %peer.ip(), "connection ended: no request came");
        return None;
    };
    let place = match client.payer(&app.config) {
        None => place,
        payer => {
            drop(place);
            places.take(payer).await?
        }
    };
    Some((Endpoint { app, place, peer: client }, head))
}

async fn serve_placed(
    http1: Arc<Http1>,
    endpoint: Endpoint,
    socket: TcpStream,
    head: BytesMut,
    until: Instant,
) {
    let (app, peer) = (endpoint.app.clone(), endpoint.peer);
    let begun = tokio::select! {
        // In a box, because the connection's task has the size of its largest part.
        begun = timeout_at(until, Box::pin(beginning::begin(&app, socket, head, peer))) => begun,
        () = app.shutdown.draining() => return,
    };
    let Ok(Some((head, socket))) = begun else {
        tracing::debug!(client = %peer.ip(), "connection ended: no request came");
        return;
    };
    let is_unheard_tls = matches!(socket, Socket::Plain(_)) && beginning::is_tls(&head);
    if is_unheard_tls && app.told_of_tls.is_due() {
        tracing::warn!(
            client = %peer.ip(),
            "a client speaks TLS (https:// or wss://), and this port does not: \
             let clients use http://, or a proxy that ends TLS; the log has one of these a minute"
        );
    }
    let is_http2 = beginning::is_http2(&head);
    let (begun, still_sends, written) = (HeadBegun::default(), StillSends::default(), Written::default());
    let io = StallGuard::new(
        head,
        socket,
        app.config.write_timeout,
        begun.clone(),
        written.clone(),
        Linger::new(still_sends.clone()),
        endpoint.place.clone(),
    );
    if is_http2 {
        // Only a head of HTTP/1.1 is waited for.
        begun.note_whole();
        // In a box of its own, because the connection's task has the size of its largest branch.
        tell_end(&app, Box::pin(http2::serve(&app, endpoint, TokioIo::new(io))).await);
    } else {
        let ours = Arc::new(Connection { endpoint, http1, begun, still_sends, written });
        http1::serve(ours, io, None).await;
    }
}

/// Counts and logs the end of a connection.
pub fn tell_end(app: &App, ended: hyper::Result<()>) {
    let Err(error) = ended else { return };
    if is_too_slow(&error) {
        app.metrics.slow_closes.inc();
    }
    if error.is_parse_too_large() {
        app.metrics.unread.heads.inc();
    } else if error.is_parse() {
        app.metrics.unread.malformed.inc();
    }
    tracing::debug!(%error, "connection failed");
}

/// Runs a connection until it ends, or `end` ends it. `leave` asks it to finish what it has begun.
pub async fn drive<C>(
    end: &Shutdown,
    mut connection: Pin<&mut C>,
    leave: impl Fn(Pin<&mut C>),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut ending = Ending::new(end);
    let mut gate = Gate::new();
    poll_fn(|cx| {
        while let Poll::Ready(stage) = gate.poll(cx, |cx| ending.poll(end, cx)) {
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
    let all_left = async || {
        app.tasks.wait().await;
        app.groups.until_ended().await;
    };
    let waited = tokio::select! {
        waited = timeout(grace, all_left()) => waited,
        () = app.shutdown.ended() => timeout(Duration::ZERO, all_left()).await,
    };
    let left = app.tasks.len();
    app.shutdown.end();
    if waited.is_ok() || left == 0 {
        return Drained::Completely;
    }
    // Streams write their last frame.
    let _ = timeout(LAST_WRITE_TIMEOUT, app.tasks.wait()).await;
    Drained::Partly(left)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

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
