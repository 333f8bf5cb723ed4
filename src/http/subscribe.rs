//! The topics that a request asks for, the start, and the transport.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use http::{HeaderMap, HeaderName, Method, header};
use serde::Deserialize;

use super::{
    App, MAX_TOPICS, MAX_WILDCARDS,
    access::Access,
    body, media, metrics, poll,
    problem::{Code, Problem},
    query::{self, Query, StartFields},
    reader::Reader,
    stream, websocket,
    wire::Framing,
};
use crate::{log::Start, message::Pattern};

/// The largest body of `POST /events`: some ten thousand topics.
const MAX_EVENTS_BODY_BYTES: usize = 1 << 20;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The topics to read, the start, and the transport.
struct Wanted {
    /// All of them are granted.
    patterns: Vec<Pattern>,
    access: Access,
    start: Option<Start>,
    rendering: Rendering,
    wait: Duration,
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rendering {
    Stream(Framing),
    Poll,
}

/// The options of a subscription, from the query or from the body of `POST /events`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    topics: Vec<String>,
    after: Option<String>,
    last_event_id: Option<String>,
    last: Option<Scalar>,
    since: Option<String>,
    transport: Option<String>,
    format: Option<String>,
    wait: Option<Scalar>,
    limit: Option<Scalar>,
}

/// A number, or the same as text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(serde_json::Number),
    Text(String),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// `GET /topics/{topic}`.
pub async fn topic(app: &Arc<App>, pattern: &str, request: Request) -> Result<Response, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let query = Query::parse(request.uri().query());
    let wanted = Access::of(&app.rules, &request).and_then(|access| {
        let pattern = query::pattern("topic", pattern)?;
        let sse = if pattern.has_wildcard() { Framing::SseEnvelope } else { Framing::SseRaw };
        Wanted::parse(access, vec![pattern], Asked::from_query(&query?)?, request.headers(), sse)
    });
    if is_upgrade {
        let wanted = wanted.map(|wanted| (wanted.patterns, wanted.start, wanted.access));
        return Ok(websocket::upgrade(app, request, wanted).await);
    }
    serve(app, wanted?).await
}

/// `GET /events` and `POST /events`.
pub async fn events(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let query = Query::parse(request.uri().query());
    let access = Access::of(&app.rules, &request);
    let options = query.and_then(|query| Asked::from_query(&query));
    match *request.method() {
        Method::GET => {}
        Method::CONNECT if is_upgrade => {}
        Method::POST => {
            let access = access?;
            let (parts, body) = request.into_parts();
            let mut options = options?;
            options.merge(Asked::from_body(&app, &parts.headers, body).await?)?;
            let wanted = Wanted::of_events(access, options, &parts.headers)?;
            return if wanted.patterns.is_empty() { Err(no_topic()) } else { serve(&app, wanted).await };
        }
        _ => return Err(Problem::method_not_allowed("GET, POST")),
    }
    let wanted = access.and_then(|access| Wanted::of_events(access, options?, request.headers()));
    if is_upgrade {
        let wanted = wanted.map(|wanted| (wanted.patterns, wanted.start, wanted.access));
        return Ok(websocket::upgrade(&app, request, wanted).await);
    }
    let wanted = wanted?;
    if wanted.patterns.is_empty() { Err(no_topic()) } else { serve(&app, wanted).await }
}

fn no_topic() -> Problem {
    Problem::bad_request("topic: name at least one, for example /events?topic=demo")
}

async fn serve(app: &Arc<App>, wanted: Wanted) -> Result<Response, Problem> {
    let Wanted { patterns, access, start, rendering, wait, limit } = wanted;
    let connection = app.new_connection();
    match rendering {
        Rendering::Poll => {
            let permit = app.permit(metrics::Transport::Poll).ok_or_else(super::overloaded)?;
            let Some(start) = start else { return Ok(poll::respond_now(app.broker.newest().await?)) };
            let subscription = app.broker.subscribe(patterns, &start, &connection).await?;
            Ok(poll::respond(Reader::new(app.connections.clone(), subscription, permit, access), wait, limit)
                .await)
        }
        Rendering::Stream(framing) => {
            let start = start.unwrap_or(Start::Now);
            let permit = app.permit(framing.transport());
            match (app.broker.subscribe(patterns, &start, &connection).await, permit) {
                (Ok(subscription), Some(permit)) => Ok(stream::respond(
                    framing,
                    Reader::new(app.connections.clone(), subscription, permit, access),
                )),
                (Ok(subscription), None) => {
                    Ok(stream::turn_away(framing, Code::Overloaded, Some(subscription.cursor())))
                }
                (Err(error), _) => {
                    // A client without a cursor must repeat its request unchanged. A cursor of ours would
                    // skip what it asked for.
                    let cursor = if let Start::After(cursor) = start { Some(cursor) } else { None };
                    Ok(stream::turn_away(framing, Problem::from(error).code, cursor))
                }
            }
        }
    }
}

impl Wanted {
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
        let sse = match options.format.as_deref() {
            None => sse,
            Some("raw") => Framing::SseRaw,
            Some("envelope") => Framing::SseEnvelope,
            Some(_) => return Err(Problem::bad_request("format: expected raw or envelope")),
        };
        let rendering = match options.transport.as_deref() {
            Some(name) => Rendering::named(name, sse)
                .ok_or_else(|| Problem::bad_request("transport: expected sse, ndjson or poll"))?,
            None => Rendering::accepted(headers, sse),
        };
        Ok(Self {
            patterns,
            access,
            start: options.start(headers)?,
            rendering,
            wait: query::wait(options.wait.map(Scalar::into_text).as_deref())?,
            limit: query::limit(options.limit.map(Scalar::into_text).as_deref())?,
        })
    }
}

impl Rendering {
    fn named(name: &str, sse: Framing) -> Option<Self> {
        match name {
            "sse" => Some(Self::Stream(sse)),
            "ndjson" => Some(Self::Stream(Framing::Ndjson)),
            "poll" => Some(Self::Poll),
            _ => None,
        }
    }

    /// The first type in `Accept` that this server speaks; anything else is a poll.
    fn accepted(headers: &HeaderMap, sse: Framing) -> Self {
        let types = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for accepted in types.flat_map(|value| value.split(',')) {
            let essence = accepted.split(';').next().unwrap_or_default().trim();
            match essence.to_ascii_lowercase().as_str() {
                media::EVENT_STREAM => return Self::Stream(sse),
                media::NDJSON => return Self::Stream(Framing::Ndjson),
                media::JSON => return Self::Poll,
                _ => {}
            }
        }
        Self::Poll
    }
}

impl Asked {
    fn from_query(query: &Query<'_>) -> Result<Self, Problem> {
        let text = |name| query.one(name).map(|value| value.map(str::to_owned));
        let scalar = |name| query.one(name).map(|value| value.map(|text| Scalar::Text(text.to_owned())));
        Ok(Self {
            topics: query.all("topic").map(str::to_owned).collect(),
            after: text("after")?,
            last_event_id: text("last_event_id")?,
            last: scalar("last")?,
            since: text("since")?,
            transport: text("transport")?,
            format: text("format")?,
            wait: scalar("wait")?,
            limit: scalar("limit")?,
        })
    }

    async fn from_body(app: &App, headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        if !media::is_json(headers) {
            return Err(Problem::new(Code::UnsupportedMediaType, "Content-Type: expected application/json"));
        }
        let bytes: Bytes = body::read(headers, body, MAX_EVENTS_BODY_BYTES, app.config.read_timeout).await?;
        serde_json::from_slice(&bytes).map_err(|error| Problem::bad_request(format!("the body: {error}")))
    }

    /// Adds the options of the body. An option that is given in both is refused.
    fn merge(&mut self, body: Self) -> Result<(), Problem> {
        fn once<T>(name: &str, known: &mut Option<T>, given: Option<T>) -> Result<(), Problem> {
            match (&known, &given) {
                (Some(_), Some(_)) => Err(Problem::bad_request(format!("{name} is given twice"))),
                (None, _) => {
                    *known = given;
                    Ok(())
                }
                (Some(_), None) => Ok(()),
            }
        }
        self.topics.extend(body.topics);
        once("after", &mut self.after, body.after)?;
        once("last_event_id", &mut self.last_event_id, body.last_event_id)?;
        once("last", &mut self.last, body.last)?;
        once("since", &mut self.since, body.since)?;
        once("transport", &mut self.transport, body.transport)?;
        once("format", &mut self.format, body.format)?;
        once("wait", &mut self.wait, body.wait)?;
        once("limit", &mut self.limit, body.limit)
    }

    fn start(&self, headers: &HeaderMap) -> Result<Option<Start>, Problem> {
        if self.after.is_some() && self.last_event_id.is_some() {
            return Err(Problem::bad_request("after and last_event_id mean the same: give only one of them"));
        }
        let last = self.last.as_ref().map(|last| match last {
            Scalar::Number(number) => number.to_string(),
            Scalar::Text(text) => text.clone(),
        });
        let fields = StartFields {
            after: self.after.as_deref().or(self.last_event_id.as_deref()),
            last: last.as_deref(),
            since: self.since.as_deref(),
        };
        // Checked also if the header wins: a browser reconnects to the old URL.
        let from_query = fields.parse()?;
        let from_header = headers.get(LAST_EVENT_ID).and_then(|value| query::last_event_id(value.as_bytes()));
        Ok(from_header.or(from_query))
    }
}
