//! The topics that a request asks for, the start, and the transport.

use std::{sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use http::{HeaderMap, Method, header};

use super::{
    App, MAX_TOPICS, MAX_WILDCARDS,
    access::Access,
    asked::Asked,
    history, media, metrics, parameters, poll,
    problem::{Code, Problem},
    query::{self, Query},
    reader::Reader,
    stream, websocket,
    wire::Framing,
};
use crate::{
    log::Start,
    message::{Id, Pattern},
};

/// The topics to read, the start, and the transport.
struct Wanted {
    /// All of them are granted.
    patterns: Vec<Pattern>,
    access: Access,
    start: Option<Start>,
    /// A page of the history is asked for, below this id: of one topic, as a poll, and without a start.
    before: Option<Id>,
    rendering: Rendering,
    wait: Duration,
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rendering {
    Stream(Framing),
    Poll,
}

/// `GET` and `HEAD /topics/{topic}`.
pub async fn topic(app: &Arc<App>, pattern: String, request: Request) -> Result<Response, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let query = Query::of(&request, &parameters::TOPIC);
    let access = Access::of(&app.rules, &request).await;
    let options = query.and_then(|query| Asked::from_query(&query));
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
        return Ok(websocket::upgrade(app, request, wanted).await);
    }
    answer(app, request, wanted?).await
}

/// `GET`, `HEAD` and `POST /events`.
pub async fn events(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let query = Query::of(&request, &parameters::EVENTS);
    let options = query.and_then(|query| Asked::from_query(&query));
    let access = Access::of(&app.rules, &request).await;
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::CONNECT if is_upgrade => {}
        Method::POST => {
            let access = match access {
                Ok(access) => access,
                Err(problem) => return turn_away(problem, options, request.headers()),
            };
            let (parts, body) = request.into_parts();
            let mut options = options?;
            options.merge(Asked::from_body(app, access.payer(), &parts.headers, body).await?)?;
            let wanted = Wanted::of_events(access, options, &parts.headers)?;
            drop(parts);
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
        return Ok(websocket::upgrade(app, request, wanted).await);
    }
    let wanted = wanted?;
    if wanted.lacks_topic() { Err(no_topic()) } else { answer(app, request, wanted).await }
}

/// Refuses a reader. If the same request may be served later, a stream is only turned away: after a `503` an
/// `EventSource` would never come again.
fn turn_away(
    problem: Problem,
    options: Result<Asked, Problem>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
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
            Ok(stream::turn_away(framing, Code::Overloaded, cursor))
        }
    }
}

fn no_topic() -> Problem {
    Problem::bad_request("topic: name at least one, for example /events?topic=demo")
}

/// Serves a `GET`. For a `HEAD` nothing is read. A poll may be held for long, and its request is not.
async fn answer(app: &Arc<App>, request: Request, wanted: Wanted) -> Result<Response, Problem> {
    let is_head = request.method() == Method::HEAD;
    drop(request);
    match wanted.rendering {
        Rendering::Stream(framing) if is_head => Ok(stream::head(framing)),
        Rendering::Poll if is_head => Ok(poll::head()),
        _ => serve(app, wanted).await,
    }
}

async fn serve(app: &Arc<App>, wanted: Wanted) -> Result<Response, Problem> {
    let Wanted { patterns, access, start, before, rendering, wait, limit } = wanted;
    if let Some(before) = before
        && let Some(topic) = patterns.first().and_then(Pattern::topic)
    {
        return history::respond(app, &access, &topic, before, limit).await;
    }
    let id = app.live.new_id();
    let connection: Arc<str> = id.to_string().into();
    match rendering {
        Rendering::Poll => {
            let permit = app
                .permit(metrics::Transport::Poll, &access, patterns.len())
                .ok_or_else(super::overloaded)?;
            let Some(start) = start else { return Ok(poll::respond_now(app.broker.newest().await?)) };
            let subscription = app.broker.subscribe(patterns, &start, &connection).await?;
            let bytes = app.connections.answer_bytes();
            let reading = app.hold_poll(subscription, permit, &access);
            let reader = Reader::new(app.connections.clone(), connection, reading, access);
            Ok(poll::respond(reader, bytes, wait, limit).await)
        }
        Rendering::Stream(framing) => {
            let start = start.unwrap_or(Start::Now);
            // A client without a cursor must repeat its request unchanged. A cursor of ours would skip what it asked
            // for, unless it asked for what comes from now on.
            let cursor = if let Start::After(cursor) = start { Some(cursor) } else { None };
            let Some(permit) = app.permit(framing.transport(), &access, patterns.len()) else {
                let now = if let Start::Now = start { app.broker.newest().await.ok() } else { None };
                return Ok(stream::turn_away(framing, Code::Overloaded, cursor.or(now)));
            };
            match app.broker.subscribe(patterns, &start, &connection).await {
                Ok(mut subscription) => {
                    subscription.keep_cursor();
                    let is_raw = framing == Framing::SseRaw;
                    let reading = app.hold(id, subscription, permit, &access, framing.transport(), is_raw);
                    let reader = Reader::new(app.connections.clone(), connection, reading, access);
                    Ok(stream::respond(framing, reader))
                }
                Err(error) => Ok(stream::turn_away(framing, Problem::from(error).code, cursor)),
            }
        }
    }
}

impl Wanted {
    /// True for a poll of nothing. Topics can be added to a stream.
    fn lacks_topic(&self) -> bool {
        self.patterns.is_empty() && self.rendering == Rendering::Poll
    }

    fn of_events(access: Access, options: Asked, headers: &HeaderMap) -> Result<Self, Problem> {
        let patterns: Result<Vec<_>, _> =
            options.topics.iter().map(|text| query::pattern("topic", text)).collect();
        let mut patterns = patterns?;
        patterns.sort_unstable();
        patterns.dedup();
        if patterns.len() > MAX_TOPICS {
            return Err(Problem::bad_request(format!("topic: name up to {MAX_TOPICS}")));
        }
        if patterns.iter().filter(|pattern| pattern.has_wildcard()).count() > MAX_WILDCARDS {
            let detail = format!("topic: name up to {MAX_WILDCARDS} patterns with a wildcard");
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
        if before.is_some() && patterns.iter().any(Pattern::has_wildcard) {
            return Err(Problem::bad_request("before: it reads one topic, and not a pattern"));
        }
        if before.is_some() && rendering != Rendering::Poll {
            return Err(Problem::bad_request("before: it has one JSON answer, and no stream"));
        }
        Ok(Self {
            patterns,
            access,
            start: options.start(headers)?,
            before,
            rendering,
            wait: options.wait()?,
            limit: options.limit()?,
        })
    }
}

impl Wanted {
    /// The topics, the start and the rights for a WebSocket.
    fn on_socket(self) -> Result<(Vec<Pattern>, Option<Start>, Access), Problem> {
        match self.before {
            None => Ok((self.patterns, self.start, self.access)),
            Some(_) => Err(Problem::bad_request("before: it has one JSON answer, and no WebSocket")),
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
        match essence.to_ascii_lowercase().as_str() {
            media::EVENT_STREAM => return Some(sse),
            essence if media::is_ndjson(essence) => return Some(Framing::Ndjson),
            media::JSON => return None,
            _ => {}
        }
    }
    None
}
