//! WebSocket (RFC 6455, and RFC 8441 on HTTP/2): the handshake.

mod command;
mod deflate;
#[cfg(feature = "echo")]
mod echo;
mod end;
mod framing;
mod inflate;
mod session;
mod socket;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use tokio::time::Instant;
use tracing::field::display;
use tungstenite::handshake::derive_accept_key;

#[cfg(feature = "echo")]
pub use self::echo::echo;
use self::session::Session;
pub use self::socket::{Io, Socket};
use super::{
    App,
    access::Access,
    client_address::ClientAddress,
    credentials,
    headers::Headers,
    metrics::Transport,
    presence,
    problem::{Code, Problem, shorten},
    reader::Reader,
    subscribe,
};
use crate::{config::Compress, log::Start, message::Pattern};

/// The topics, the start and the rights that a handshake asks for.
pub struct Wanted {
    pub patterns: Vec<Pattern>,
    /// The subject whose list is read too.
    pub list_owner: Option<Arc<str>>,
    pub start: Start,
    pub access: Access,
    /// The subject is to be present in the topics.
    pub presence: bool,
}

/// The subprotocol that the server speaks, offered or not.
const SUBPROTOCOL: &str = "rejoin.v1";
/// How long a page that offers no subprotocol is not logged again.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// True if the request asks for a WebSocket.
///
/// # Errors
/// `upgrade_required` if it asks for one that is not RFC 6455 version 13; `bad_request` if it offers
/// subprotocols that a page could not use.
pub fn is_upgrade(request: &Request) -> Result<bool, Problem> {
    let headers = Headers::of(request.headers());
    let is_extended_connect =
        request.extensions().get::<Protocol>().is_some_and(|name| name.as_str() == "websocket");
    let asks = is_extended_connect || has_token(headers, &header::UPGRADE, "websocket");
    if !asks && headers.contains(&header::SEC_WEBSOCKET_KEY) {
        let detail = "the request has Sec-WebSocket-Key and no Upgrade: a proxy in between must speak HTTP/1.1 and \
                      forward the headers Upgrade and Connection";
        return Err(Problem::new(Code::UpgradeRequired, detail));
    }
    if !asks {
        return Ok(false);
    }
    let is_version_13 = headers.get(&header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let is_handshake = match request.version() {
        Version::HTTP_2 => is_extended_connect && *request.method() == Method::CONNECT,
        Version::HTTP_11 => {
            *request.method() == Method::GET
                && has_token(headers, &header::CONNECTION, "upgrade")
                && headers.get(&header::SEC_WEBSOCKET_KEY).is_some_and(is_key)
        }
        _ => false,
    };
    if !is_version_13 || !is_handshake {
        return Err(Problem::new(
            Code::UpgradeRequired,
            "only WebSocket version 13 (RFC 6455) is supported: send Sec-WebSocket-Version: 13, and a Sec-WebSocket-Key",
        ));
    }
    check_offer(request)?;
    Ok(true)
}

/// Refuses subprotocols that are offered without `rejoin.v1`, if a page offers them or if one of them is for a
/// credential. The server has no other subprotocol to answer with, and a browser closes a connection whose offer is not
/// answered: the page would stay empty, and no close code could tell it why. So this refusal is a status even for a
/// page, whose console shows it.
fn check_offer(request: &Request) -> Result<(), Problem> {
    static LOGGED_AT: Mutex<Option<Instant>> = Mutex::new(None);
    let headers = Headers::of(request.headers());
    let name = &header::SEC_WEBSOCKET_PROTOCOL;
    if !headers.contains(name) || has_token(headers, name, SUBPROTOCOL) {
        return Ok(());
    }
    let origin = headers.get(&header::ORIGIN);
    if origin.is_none() && !credentials::is_offered(request.headers()) && !has_token(headers, name, "bearer")
    {
        return Ok(());
    }
    let detail = "subprotocols are offered without rejoin.v1, so a browser would close the connection: offer it too, as \
                  in new WebSocket(url, [\"rejoin.v1\", \"bearer.\" + token])";
    let mut logged_at = LOGGED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    if logged_at.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
        *logged_at = Some(Instant::now());
        let client = request.extensions().get::<ClientAddress>().map(|address| display(address.ip()));
        let origin = origin.map(|origin| shorten(String::from_utf8_lossy(origin.as_bytes()).into_owned()));
        tracing::warn!(
            client,
            origin,
            why = detail,
            "refused a WebSocket; correct the page; this is logged once a minute"
        );
    }
    Err(Problem::new(Code::BadRequest, detail))
}

/// Answers the handshake, and serves the connection in its own task.
pub async fn upgrade(app: &Arc<App>, request: Request, wanted: Result<Wanted, Problem>) -> Response {
    let begun = match wanted {
        Ok(wanted) => begin(app, wanted).await,
        Err(problem) => Err(problem),
    };
    match begun {
        Ok(reader) => {
            let served = app.clone();
            accept(app, request, move |socket| Box::new(Session::new(served, socket, reader)).run())
        }
        Err(problem) => refuse(app, request, problem),
    }
}

/// Refuses a handshake so that a browser can see the reason: it sees only close codes.
pub fn refuse(app: &Arc<App>, request: Request, problem: Problem) -> Response {
    let problem = problem.of_handshake();
    if !request.headers().contains_key(header::ORIGIN) || problem.code.close().is_none() {
        return problem.into_response();
    }
    let told = problem.clone();
    let mut response = accept(app, request, move |socket| session::turn_away(socket, told));
    problem.note_in(&mut response);
    response
}

async fn begin(app: &Arc<App>, wanted: Wanted) -> Result<Reader, Problem> {
    let Wanted { patterns, list_owner, start, access, presence } = wanted;
    let (mut present, topics) = presence::wanted(app, &access, &patterns, presence)?;
    let mut permit =
        app.permit(Transport::WebSocket, &access, patterns.len()).ok_or_else(super::overloaded)?;
    // Subscribe before the answer: so no message is missed that is published once the client knows of it.
    let id = app.live.new_id();
    let connection: Arc<str> = id.to_string().into();
    let subscription = subscribe::begin(app, patterns, &start, &connection, list_owner, &mut permit).await?;
    presence::enter(&mut present, topics, subscription.mine()).await?;
    let reading = app.hold(id, subscription, permit, &access, (Transport::WebSocket, false), present);
    Ok(Reader::new(app.connections.clone(), connection, reading, access))
}

/// Sends the answer, and gives the socket to `serve` once the connection has become a WebSocket.
fn accept<F>(
    app: &Arc<App>,
    mut request: Request,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let on_upgrade: OnUpgrade = hyper::upgrade::on(&mut request);
    let (max_message, write_timeout) = (app.config.max_command_bytes(), app.config.write_timeout);
    // In a box, because the task would otherwise reserve room for it as long as it runs.
    let serve = Box::new(serve);
    let compression =
        if app.config.compress > Compress::Off { deflate::accept(request.headers()) } else { None };
    let is_deflated = compression.is_some();
    app.tasks.spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => {
                serve(Socket::new(Io::of(upgraded), max_message, write_timeout, is_deflated)).await;
            }
            Err(error) => tracing::debug!(%error, "handshake failed"),
        }
    });
    let mut response = handshake(request.version(), request.headers());
    response.extensions_mut().insert(Transport::WebSocket);
    if let Some(accepted) = compression {
        response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, accepted);
    }
    response
}

fn handshake(version: Version, asked: &HeaderMap) -> Response {
    let mut response = ().into_response();
    if version == Version::HTTP_11 {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Some(key) = asked.get(header::SEC_WEBSOCKET_KEY) {
            let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("base64 is ASCII");
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
    if has_token(Headers::of(asked), &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

/// Sixteen bytes in base64.
fn is_key(key: &HeaderValue) -> bool {
    BASE64.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16)
}

fn has_token(headers: Headers<'_>, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}
