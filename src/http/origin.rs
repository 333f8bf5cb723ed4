//! Pages of which origins may use this server: `Origin`, `Host` and CORS, checked before anything is done.

use std::sync::Arc;

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    App,
    client_address::{ClientAddress, Peer},
    credentials::Shown,
    forwarded::Forwarded,
    headers::Headers,
    malformed,
    places::Place,
    problem::{Code, Problem, shorten},
    routes,
    rules::Rules,
};
use tracing::field::display;

use crate::config::{Host, Origin};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// Those that the server reads, and those that client libraries and tracing add by themselves.
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, content-encoding, last-event-id, idempotency-key, if-match, cache-control, \
     pragma, x-requested-with, traceparent, tracestate, baggage",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("etag, retry-after, idempotency-replayed");

/// Refuses forbidden requests of other pages, answers preflights, and adds the CORS headers to other answers.
pub fn guard(app: &Arc<App>, request: Request) -> impl Future<Output = Response> + Send {
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let headers = Headers::of(request.headers());
    let checked = malformed::check(request.version(), headers);
    let guarded = match checked.and_then(|()| check(app, &request, headers, is_preflight)) {
        Ok(origin) => Ok((origin, admitted(app, request, is_preflight))),
        Err(problem) => {
            log_refused(&request, &problem);
            Err(problem.into_response())
        }
    };
    async {
        let (origin, served) = match guarded {
            Ok(guarded) => guarded,
            Err(refusal) => return refusal,
        };
        with_cors(origin, served.await.unwrap_or_else(Problem::into_response))
    }
}

/// The answer to a request whose origin may have one.
fn admitted(app: &Arc<App>, request: Request, is_preflight: bool) -> routes::Served<'_> {
    match malformed::check_path(&request) {
        Err(problem) => routes::at_once(Err(problem)),
        Ok(()) if is_preflight => routes::at_once(Ok(preflight())),
        Ok(()) => match request.extensions().get::<Place>().and_then(|place| place.refusal(&request)) {
            Some(refusal) => routes::at_once(Ok(refusal)),
            None => routes::served(app, request),
        },
    }
}

fn with_cors(origin: Option<HeaderValue>, mut response: Response) -> Response {
    // A shared cache must not give one origin an answer that was made for another.
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
    }
    response
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// The origin for the answer's CORS header, if the request has one that is allowed.
fn check(
    app: &App,
    request: &Request,
    headers: Headers<'_>,
    is_preflight: bool,
) -> Result<Option<HeaderValue>, Problem> {
    let rules = app.rules.load();
    // A probe asks by an address, and learns nothing but the health.
    let is_probe = request.uri().path().starts_with("/health/");
    // A page whose name was pointed at this address has no credential for it. A preflight never has one, and the
    // request after it may.
    let shown = request.extensions().get::<Shown>();
    let has_credential = is_preflight || shown.is_some_and(|shown| !matches!(shown.credential(), Ok(None)));
    let has_rights = match has_credential {
        true => rules.authority.is_open(),
        false => rules.authority.serves_anonymous(),
    };
    // Both names: a page in a browser beside a trusted proxy, on its address, can write the header of a proxy.
    let is_known = || {
        let is_known = |host: &str| host.parse().is_ok_and(|host| is_known_host(&rules, &host));
        sent_host(request).is_some_and(is_known) && forwarded_host(request).is_none_or(is_known)
    };
    if has_rights && !is_probe && !is_known() {
        return Err(Problem::new(
            Code::ForbiddenHost,
            "Host: without a credential use an address, or a name that the server lists by --allowed-host",
        ));
    }
    if let Some(value) = headers.get(&header::ORIGIN) {
        let origin = page_of(request);
        let is_allowed =
            origin.is_some() && listed(request).is_none_or(|page| is_listed(&rules.origins, &page));
        // A copy: the value would hold the library's buffer with the whole head, for as long as a poll is held.
        let copy = || HeaderValue::from_bytes(value.as_bytes()).expect("it was one before");
        return if is_allowed { Ok(Some(copy())) } else { Err(foreign()) };
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    let is_navigation = is_read && value_is(headers, &SEC_FETCH_MODE, "navigate");
    let is_from_elsewhere =
        value_is(headers, &SEC_FETCH_SITE, "cross-site") || value_is(headers, &SEC_FETCH_SITE, "same-site");
    // A browser sends the cookie with the requests of any page. Only an origin says which page asks.
    let is_upgrade = headers.contains(&header::UPGRADE) || request.method() == Method::CONNECT;
    let acts_by_cookie = (is_upgrade || !is_read) && headers.contains(&header::COOKIE);
    if is_from_elsewhere && !is_navigation {
        return Err(foreign());
    }
    match acts_by_cookie {
        true => Err(Problem::new(
            Code::ForbiddenOrigin,
            "a request with a cookie needs an Origin that is allowed: send the credential as Authorization: Bearer, \
             without the cookie",
        )),
        false => Ok(None),
    }
}

/// The origin of the client's page, unless it is the server's own. Such a page is served as long as its
/// origin is listed.
pub fn listed(request: &Request) -> Option<Origin> {
    let origin = page_of(request)?;
    let extensions = request.extensions();
    let forwarded = extensions.get::<Forwarded>().and_then(|forwarded| forwarded.scheme);
    let scheme = forwarded.or_else(|| extensions.get::<Peer>().and_then(|peer| peer.scheme()));
    let is_own = host_of(request).is_some_and(|host| origin.is_of(&host, scheme));
    (!is_own).then_some(origin)
}

pub fn is_listed(origins: &[Origin], page: &Origin) -> bool {
    origins.iter().any(|origin| origin.allows(page))
}

fn page_of(request: &Request) -> Option<Origin> {
    Origin::of_page(request.headers().get(header::ORIGIN)?.to_str().ok()?).ok()
}

pub fn foreign() -> Problem {
    Problem::new(
        Code::ForbiddenOrigin,
        "pages of this origin are not allowed: the operator lists it with --allowed-origin; a client that is no page sends \
         no Origin",
    )
}

fn value_is(headers: Headers<'_>, name: &HeaderName, expected: &str) -> bool {
    headers.get(name).is_some_and(|value| value == expected)
}

/// The name under which the server was asked.
fn host_of(request: &Request) -> Option<Host> {
    host_text(request)?.parse().ok()
}

/// The name by which a trusted proxy was asked, else the one that was sent.
fn host_text(request: &Request) -> Option<&str> {
    forwarded_host(request).or_else(|| sent_host(request))
}

fn forwarded_host(request: &Request) -> Option<&str> {
    request.extensions().get::<Forwarded>()?.host.as_deref()
}

/// `:authority` on HTTP/2, `Host` on HTTP/1.1.
fn sent_host(request: &Request) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST)?.to_str().ok(),
    }
}

fn is_known_host(rules: &Rules, host: &Host) -> bool {
    host.is_fixed()
        || rules.hosts.iter().any(|allowed| allowed.is_name_of(host))
        || rules.origins.iter().any(|origin| origin.allows_host(host))
}

/// Tells the operator which page or name was refused, and the setting that would allow it.
fn log_refused(request: &Request, problem: &Problem) {
    // A URL may have a password before its host.
    let quote = |text: &str| shorten(text.rsplit('@').next().unwrap_or_default().to_owned());
    let (host, forwarded_host) = (sent_host(request).map(quote), forwarded_host(request).map(quote));
    let (host, forwarded_host) = (host.as_deref(), forwarded_host.as_deref());
    let origin =
        request.headers().get(header::ORIGIN).map(|value| quote(&String::from_utf8_lossy(value.as_bytes())));
    let origin = origin.as_deref();
    let client = request.extensions().get::<ClientAddress>().map(|address| display(address.ip()));
    match problem.code {
        Code::ForbiddenHost => tracing::warn!(
            client,
            host,
            forwarded_host,
            "refused a request without a credential by its Host; if clients use this name, list it with --allowed-host"
        ),
        Code::ForbiddenOrigin if origin.is_some() => {
            tracing::warn!(
                client,
                origin,
                host,
                forwarded_host,
                "refused a page of another origin; list it with --allowed-origin"
            );
        }
        Code::ForbiddenOrigin => tracing::warn!(
            client,
            host,
            forwarded_host,
            "refused a request with a cookie, or of another site, that names no Origin; if a proxy removes that \
             header, let it pass"
        ),
        _ => tracing::debug!(client, host, origin, why = problem.detail, "refused a malformed request"),
    }
}
