//! The topics that a request asks for, the start, and the transport.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};

use super::{
    App, MAX_TOPICS, MAX_WILDCARDS,
    access::Access,
    asked::Asked,
    gzip, history, media, metrics, parameters, poll, presence,
    problem::Problem,
    query::{self, Query},
    reader::Reader,
    stream, websocket,
    wire::Framing,
};
use crate::{
    broker::Subscription,
    config::Compress,
    log::Start,
    message::{Id, Pattern},
};

/// The topics to read, the start, and the transport.
struct Wanted {
    /// All of them are granted.
    patterns: Vec<Pattern>,
    access: Access,
    /// The subject whose list is read too.
    list_owner: Option<Arc<str>>,
    start: Option<Start>,
    /// A page of the history is asked for, below this id: of one topic, as a poll, and without a start.
    before: Option<Id>,
    rendering: Rendering,
    /// The client takes its answer in gzip.
    takes_gzip: bool,
    wait: Duration,
    limit: usize,
    presence: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rendering {
    Stream(Framing),
    Poll,
}

/// The connection of a poll. It has no name, so no message can exclude it.
const NO_CONNECTION: &str = "";

/// An answer, or a poll that is held. While it is held, all that it needed to begin is dropped.
pub enum Answer {
    Now(Box<Response>),
    Held(BoxFuture<'static, Response>),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::Now(Box::new(response))
    }
}

impl Answer {
    /// The answer, once there is one.
    pub async fn get(self) -> Response {
        match self {
            Self::Now(response) => *response,
            Self::Held(poll) => poll.await,
        }
    }
}

/// `GET` and `HEAD /topics/{topic}`. `is_upgrade` is true if the request asks for a WebSocket.
pub async fn topic(
    app: &Arc<App>,
    pattern: String,
    is_upgrade: bool,
    mut request: Request,
) -> Result<Answer, Problem> {
    let query = Query::of(&request, &parameters::TOPIC);
    let options = query.and_then(|query| Asked::from_query(&query));
    let access = access_of(app, &mut request).await;
    if !is_upgrade && let Err(problem) = access {
        return turn_away(problem, options, request.headers());
    }
    let wanted = access.and_then(|access| {
        let pattern = query::pattern("topic", &pattern)?;
        let sse = if pattern.has_wildcard() { Framing::SseEnvelope } else { Framing::SseRaw };
        Wanted::parse(access, vec![pattern], options?, request.headers(), sse)
    });
    if is_upgrade {
        let wanted = wanted.and_then(Wanted::on_socket);
        return Ok(websocket::upgrade(app, request, wanted).await.into());
    }
    answer(app, request, wanted?).await
}

/// `GET`, `HEAD` and `POST /events`.
pub async fn events(app: &Arc<App>, mut request: Request) -> Result<Answer, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let query = Query::of(&request, &parameters::EVENTS);
    let options = query.and_then(|query| Asked::from_query(&query));
    let access = access_of(app, &mut request).await;
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::CONNECT if is_upgrade => {}
        Method::POST => {
            let access = match access {
                Ok(access) => access,
                Err(problem) => return turn_away(problem, options, request.headers()),
            };
            let mut options = options?;
            // The body may take long to arrive, and the head can be large.
            lighten(&mut request);
            let (Parts { headers, .. }, body) = request.into_parts();
            options.merge(Asked::from_body(app, access.payer(), &headers, body).await?)?;
            let wanted = Wanted::of_events(access, options, &headers)?;
            drop(headers);
            return if wanted.lacks_topic() { Err(no_topic()) } else { serve(app, wanted).await };
        }
        _ => return Err(Problem::method_not_allowed("GET, HEAD, POST")),
    }
    if !is_upgrade && let Err(problem) = access {
        return turn_away(problem, options, request.headers());
    }
    let wanted = access.and_then(|access| Wanted::of_events(access, options?, request.headers()));
    if is_upgrade {
        let wanted = wanted.and_then(Wanted::on_socket);
        return Ok(websocket::upgrade(app, request, wanted).await.into());
    }
    let wanted = wanted?;
    if wanted.lacks_topic() { Err(no_topic()) } else { answer(app, request, wanted).await }
}

/// The rights of the client. While it waits for others, its request keeps little of its head: very many may wait.
async fn access_of(app: &App, request: &mut Request) -> Result<Access, Problem> {
    let mut access = pin!(Access::of(&app.rules, request));
    if let Some(access) = access.as_mut().now_or_never() {
        return access;
    }
    lighten(request);
    access.await
}

/// The headers that are read after the client is known.
const READ_LATER: [HeaderName; 13] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    HeaderName::from_static("last-event-id"),
    header::ORIGIN,
    header::UPGRADE,
    header::CONNECTION,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
];

/// Drops the rest of the head. Its parts share one piece of memory, so the others are copied.
fn lighten(request: &mut Request) {
    let mut kept = HeaderMap::new();
    for name in READ_LATER {
        for value in request.headers().get_all(&name) {
            kept.append(&name, HeaderValue::from_bytes(value.as_bytes()).expect("it was one before"));
        }
    }
    *request.headers_mut() = kept;
    *request.uri_mut() = Uri::default();
}

/// Refuses a reader. If the same request may be served later, a stream is only turned away: after a `503` an
/// `EventSource` would never come again.
fn turn_away(
    problem: Problem,
    options: Result<Asked, Problem>,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    if !problem.is_undecided() {
        return Err(problem);
    }
    let options = options?;
    match Rendering::of(&options, headers, Framing::SseEnvelope)? {
        Rendering::Poll => Err(problem),
        Rendering::Stream(framing) => {
            let cursor = match options.start(headers)? {
                Some(Start::After(cursor)) => Some(cursor),
                _ => None,
            };
            Ok(stream::turn_away(framing, problem.of_handshake(), cursor).into())
        }
    }
}

fn no_topic() -> Problem {
    Problem::bad_request("topic: name at least one, for example /events?topic=demo")
}

/// Serves a `GET`. For a `HEAD` nothing is read. A poll may be held for long, and its request is not.
async fn answer(app: &Arc<App>, request: Request, wanted: Wanted) -> Result<Answer, Problem> {
    let is_head = request.method() == Method::HEAD;
    drop(request);
    match wanted.rendering {
        Rendering::Stream(framing) if is_head => {
            Ok(stream::head(framing, wanted.is_gzip(app.config.compress)).into())
        }
        Rendering::Poll if is_head => Ok(poll::head().into()),
        _ => serve(app, wanted).await,
    }
}

async fn serve(app: &Arc<App>, wanted: Wanted) -> Result<Answer, Problem> {
    let is_gzip = wanted.is_gzip(app.config.compress);
    let Wanted { patterns, access, list_owner, start, before, rendering, wait, limit, presence, .. } = wanted;
    if let Some(before) = before
        && let Some(topic) = patterns.first().and_then(Pattern::topic)
    {
        return Ok(history::respond(app, &access, &topic, before, limit, is_gzip).await?.into());
    }
    let (mut present, topics) = presence::wanted(app, &access, &patterns, presence)?;
    let id = app.live.new_id();
    match rendering {
        Rendering::Poll => {
            let mut permit = app
                .permit(metrics::Transport::Poll, &access, patterns.len())
                .ok_or_else(super::overloaded)?;
            let wait = if start.is_none() { Duration::ZERO } else { wait };
            let start = match start {
                None if list_owner.is_none() => {
                    let cursor = app.broker.newest().await?;
                    presence::enter(&mut present, topics, None).await?;
                    return Ok(poll::respond_now(cursor).into());
                }
                start => start.unwrap_or(Start::Now),
            };
            let subscription = begin(app, patterns, &start, NO_CONNECTION, list_owner, &mut permit).await?;
            presence::enter(&mut present, topics, subscription.mine()).await?;
            let bytes = app.connections.answer_bytes(access.payer());
            let reading = app.hold_poll(id, subscription, permit, &access, present);
            let reader = Reader::of_poll(app.connections.clone(), reading, access);
            let quick = poll::quick(app.config.parking);
            Ok(Answer::Held(poll::respond(reader, bytes, (wait, quick), limit, is_gzip).boxed()))
        }
        Rendering::Stream(framing) => {
            let start = start.unwrap_or(Start::Now);
            let connection: Arc<str> = id.to_string().into();
            // A client without a cursor must repeat its request unchanged. A cursor of ours would skip what it asked
            // for, unless it asked for what comes from now on.
            let cursor = if let Start::After(cursor) = start { Some(cursor) } else { None };
            let Some(mut permit) = app.permit(framing.transport(), &access, patterns.len()) else {
                let now = if let Start::Now = start { app.broker.newest().await.ok() } else { None };
                return Ok(stream::turn_away(framing, super::overloaded(), cursor.or(now)).into());
            };
            let begun = async {
                let begun = begin(app, patterns, &start, &connection, list_owner, &mut permit).await?;
                presence::enter(&mut present, topics, begun.mine()).await?;
                Ok::<_, Problem>(begun)
            };
            match begun.await {
                Ok(mut subscription) => {
                    subscription.keep_cursor();
                    let is_raw = framing == Framing::SseRaw;
                    let reading =
                        app.hold(id, subscription, permit, &access, (framing.transport(), is_raw), present);
                    let reader = Reader::new(app.connections.clone(), connection, reading, access);
                    Ok(stream::respond(framing, reader, is_gzip).into())
                }
                Err(problem) => Ok(stream::turn_away(framing, problem, cursor).into()),
            }
        }
    }
}

/// Begins to read these topics, and the list of this subject.
///
/// # Errors
/// If the log cannot be read, or if all connections read as many topics as they may.
pub async fn begin(
    app: &App,
    patterns: Vec<Pattern>,
    start: &Start,
    connection: &str,
    list_owner: Option<Arc<str>>,
    permit: &mut metrics::Permit,
) -> Result<Subscription, Problem> {
    let Some(owner) = list_owner else {
        return Ok(app.broker.subscribe(patterns, start, connection).await?);
    };
    let own = patterns.len();
    let subscription = app.broker.subscribe_with_list(patterns, start, connection, &owner).await?;
    let listed = subscription.mine().map_or(0, |entries| entries.len());
    if permit.set_topics(own.max(listed).max(subscription.width())) {
        Ok(subscription)
    } else {
        Err(super::overloaded())
    }
}

impl Wanted {
    /// True for a poll of nothing. Topics can be added to a stream.
    fn lacks_topic(&self) -> bool {
        self.patterns.is_empty() && self.list_owner.is_none() && self.rendering == Rendering::Poll
    }

    fn is_gzip(&self, compress: Compress) -> bool {
        let least = if self.rendering == Rendering::Poll { Compress::Auto } else { Compress::All };
        self.takes_gzip && compress >= least
    }

    fn of_events(access: Access, options: Asked, headers: &HeaderMap) -> Result<Self, Problem> {
        let patterns: Result<Vec<_>, _> =
            options.topics.iter().map(|text| query::pattern("topic", text)).collect();
        let mut patterns = patterns?;
        patterns.sort_unstable();
        patterns.dedup();
        if patterns.len() > MAX_TOPICS {
            return Err(Problem::bad_request(format!(
                "topic: name up to {MAX_TOPICS} topics and patterns; open a second subscription for more"
            )));
        }
        if patterns.iter().filter(|pattern| pattern.has_wildcard()).count() > MAX_WILDCARDS {
            let detail = format!(
                "topic: name up to {MAX_WILDCARDS} patterns with a wildcard; name topics, or wider patterns"
            );
            return Err(Problem::bad_request(detail));
        }
        Self::parse(access, patterns, options, headers, Framing::SseEnvelope)
    }

    fn parse(
        access: Access,
        patterns: Vec<Pattern>,
        options: Asked,
        headers: &HeaderMap,
        sse: Framing,
    ) -> Result<Self, Problem> {
        access.subscribe(&patterns)?;
        let rendering = Rendering::of(&options, headers, sse)?;
        let before = options.before(headers)?;
        let is_mine = options.mine()?;
        if is_mine && options.format.as_deref() == Some("raw") {
            let detail = "mine: not with format=raw, in which no event names its topic";
            return Err(Problem::bad_request(detail));
        }
        let list_owner = if is_mine { Some(access.list_owner()?) } else { None };
        if before.is_some() && patterns.iter().any(Pattern::has_wildcard) {
            return Err(Problem::bad_request(
                "before: it reads one topic, and not a pattern; ask for each topic alone",
            ));
        }
        if before.is_some() && rendering != Rendering::Poll {
            return Err(Problem::bad_request(
                "before: it has one JSON answer, and no stream; leave transport out, and send Accept: application/json",
            ));
        }
        let start = options.start(headers).map_err(|problem| match &*patterns {
            // The start is that of this topic alone, so a client that reads others can go on with them.
            [only] if !is_mine => problem.about(only),
            _ => problem,
        })?;
        Ok(Self {
            patterns,
            access,
            list_owner,
            start,
            before,
            rendering,
            takes_gzip: gzip::is_asked(headers),
            wait: options.wait()?,
            limit: options.limit()?,
            presence: options.presence()?,
        })
    }
}

impl Wanted {
    /// The topics, the list, the start and the rights for a WebSocket.
    fn on_socket(self) -> Result<websocket::Wanted, Problem> {
        let Self { patterns, access, list_owner, start, presence, .. } = self;
        match self.before {
            None => {
                let start = start.unwrap_or(Start::Now);
                Ok(websocket::Wanted { patterns, list_owner, start, access, presence })
            }
            Some(_) => Err(Problem::bad_request(
                "before: it has one JSON answer, and no WebSocket; ask by a plain GET",
            )),
        }
    }
}

impl Rendering {
    /// The one that a request asks for. Server-Sent Events have the form `sse`, unless it asks for another.
    fn of(options: &Asked, headers: &HeaderMap, sse: Framing) -> Result<Self, Problem> {
        let sse = match options.format.as_deref() {
            None => sse,
            Some("raw") => Framing::SseRaw,
            Some("envelope") => Framing::SseEnvelope,
            Some(_) => return Err(Problem::bad_request("format: expected raw or envelope")),
        };
        Ok(match options.transport.as_deref() {
            Some(name) => Self::named(name, sse)
                .ok_or_else(|| Problem::bad_request("transport: expected sse, ndjson or poll"))?,
            None => accepted(headers, sse).map_or(Self::Poll, Self::Stream),
        })
    }

    fn named(name: &str, sse: Framing) -> Option<Self> {
        match name {
            "sse" => Some(Self::Stream(sse)),
            "ndjson" => Some(Self::Stream(Framing::Ndjson)),
            "poll" => Some(Self::Poll),
            _ => None,
        }
    }
}

/// The stream that the first type in `Accept` asks for, of those that this server speaks. Anything else is a poll.
pub fn accepted(headers: &HeaderMap, sse: Framing) -> Option<Framing> {
    let types = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for accepted in types.flat_map(|value| value.split(',')) {
        let essence = accepted.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case(media::EVENT_STREAM) {
            return Some(sse);
        }
        if media::is_ndjson(essence) {
            return Some(Framing::Ndjson);
        }
        if essence.eq_ignore_ascii_case(media::JSON) {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    /// Ten thousand clients may wait for the backend, and each held its head of up to 64 KiB meanwhile.
    #[test]
    fn a_request_that_waits_keeps_only_the_headers_that_are_read_later() {
        let request = Request::get("/topics/a?after=0&a_long_query").header("accept", "text/event-stream");
        let request = request.header("last-event-id", "7").header("cookie", "x".repeat(60 << 10));
        let mut request = request.header("accept", "*/*").body(Body::empty()).expect("a request");
        lighten(&mut request);
        let left: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            left,
            [("accept", &b"text/event-stream"[..]), ("accept", b"*/*"), ("last-event-id", b"7")]
        );
        assert_eq!(request.uri(), "/");
    }
}
