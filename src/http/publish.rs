//! Publishing by HTTP: one message or many; and deleting.

mod batch;
mod item;
mod split;

use std::sync::Arc;

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;

pub use self::{
    batch::publish_many,
    item::{Item, Published},
};
use super::{
    App,
    access::Access,
    answer::json,
    body::{self, Declared},
    headers::Headers,
    parameters,
    problem::{Code, Problem},
    query::Query,
};
use crate::{
    auth::{MAX_SUBJECT_BYTES, is_subject},
    log::{Append, Appended},
    message::{Draft, Id, MAX_TYPE_BYTES, Payload, PayloadError, Topic},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_EVENT_BYTES: usize = 128;
const MAX_NAME_BYTES: usize = 255;

/// The answer to a message that was published.
#[derive(Debug, Serialize)]
struct Receipt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
    topic: &'a Topic,
}

/// `POST /topics/{topic}`: the body is the payload.
pub async fn publish_one(app: &Arc<App>, topic: String, request: Request) -> Result<Response, Problem> {
    let access = Access::of(&app.rules, &request);
    let (parts, body) = request.into_parts();
    let options = MessageOptions::parse(&parts);
    let content_type = content_type(&parts.headers).map(|text| text.map(str::to_owned));
    let declared = Declared::of(&parts.headers);
    // The head can be large, the backend may be asked who the client is, and the body may take long to arrive.
    drop(parts);
    let access = access.await?;
    let topic = publishable(&topic)?;
    access.publish(&topic)?;
    let (options, content_type, declared) = (options?, content_type?, declared?);
    // A refusal comes before the body.
    access.author(options.by.clone())?;
    let limit = app.config.max_payload;
    // Counted until the message is stored.
    let mut unparsed = app.connections.unparsed(access.payer());
    let read = body::read(declared, body, limit, app.config.read_timeout, &mut unparsed).await;
    let bytes = read.map_err(|problem| match problem.code {
        Code::TooLarge => Problem::too_large(limit),
        _ => problem,
    })?;
    // The grants may have changed while the body arrived.
    access.publish(&topic)?;
    let payload = Payload::declared(&bytes, content_type.as_deref())
        .map_err(|error| Problem::bad_request(error.to_string()))?;

    let MessageOptions { event, exclude, by, idempotency_key, if_match, ephemeral } = options;
    let by = access.author(by)?;
    let draft = Draft { topic: topic.clone(), event, payload, exclude, by };
    let appended = app.publish(&access, Append { draft, idempotency_key, if_match }, ephemeral).await?;
    let receipt = Receipt { id: appended.map(Appended::id), topic: &topic };
    Ok(match appended {
        None => json(StatusCode::ACCEPTED, &receipt),
        Some(Appended::Stored(_)) => json(StatusCode::CREATED, &receipt),
        Some(Appended::Replayed(_)) => {
            let mut response = json(StatusCode::OK, &receipt);
            response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            response
        }
    })
}

/// `DELETE /topics/{topic}`.
pub async fn delete(app: &Arc<App>, topic: String, request: Request) -> Result<Response, Problem> {
    let access = Access::of(&app.rules, &request);
    drop(request);
    access.await?.admin()?;
    app.broker.delete(&publishable(&topic)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The options of a message.
struct MessageOptions {
    event: Option<Box<str>>,
    exclude: Option<Box<str>>,
    by: Option<Arc<str>>,
    idempotency_key: Option<Box<str>>,
    if_match: Option<Id>,
    ephemeral: bool,
}

impl MessageOptions {
    fn parse(parts: &Parts) -> Result<Self, Problem> {
        let query = Query::parse(parts.uri.query(), &parameters::PUBLISH)?;
        let headers = Headers::of(&parts.headers);
        let header = |name| single_header(headers, name);
        let options = Self {
            event: query.one("event")?.map(event).transpose()?,
            exclude: query.one("exclude")?.map(|text| name("exclude", text)).transpose()?,
            by: query.one("by")?.map(publisher).transpose()?,
            idempotency_key: header(&IDEMPOTENCY_KEY)?
                .map(|text| name("Idempotency-Key", text))
                .transpose()?,
            if_match: header(&header::IF_MATCH)?.map(if_match).transpose()?,
            ephemeral: query.flag("ephemeral")?,
        };
        check_ephemeral(options.ephemeral, options.idempotency_key.is_some(), options.if_match.is_some())?;
        Ok(options)
    }
}

fn check_ephemeral(ephemeral: bool, has_key: bool, has_condition: bool) -> Result<(), Problem> {
    match (ephemeral, has_key, has_condition) {
        (true, true, _) => Err(Problem::bad_request(
            "Idempotency-Key: an ephemeral message is not stored; leave one of them out",
        )),
        (true, _, true) => {
            Err(Problem::bad_request("If-Match: an ephemeral message is not stored; leave one of them out"))
        }
        _ => Ok(()),
    }
}

/// A topic to which clients may publish.
fn publishable(text: &str) -> Result<Topic, Problem> {
    let topic: Topic =
        text.parse().map_err(|error| Problem::bad_request(format!("topic {text:?}: {error}")))?;
    if topic.is_reserved() {
        return Err(Problem::bad_request(format!(
            "topic {text:?}: names that begin with $ are reserved; choose another"
        )));
    }
    Ok(topic)
}

fn event(text: &str) -> Result<Box<str>, Problem> {
    let is_taken = text.starts_with("rejoin.") || matches!(text, "open" | "error");
    if text.is_empty() || text.len() > MAX_EVENT_BYTES || text.chars().any(char::is_control) || is_taken {
        return Err(Problem::bad_request(
            "event: expected 1 to 128 bytes without control characters, and not open, error or rejoin.*",
        ));
    }
    Ok(text.into())
}

/// The subject for which a backend publishes.
fn publisher(text: &str) -> Result<Arc<str>, Problem> {
    match is_subject(text) {
        true => Ok(text.into()),
        false => Err(Problem::bad_request(format!(
            "by: expected 1 to {MAX_SUBJECT_BYTES} bytes without control characters"
        ))),
    }
}

/// An idempotency key, or the name of a connection.
fn name(parameter: &str, text: &str) -> Result<Box<str>, Problem> {
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > MAX_NAME_BYTES || !is_visible {
        return Err(Problem::bad_request(format!("{parameter}: expected 1 to 255 visible ASCII characters")));
    }
    Ok(text.into())
}

/// One quoted id (RFC 9110 §13.1.1). Lists and `*` make no sense here. A cursor means the same whether its ETag is
/// weak or not, and proxies that compress an answer weaken it.
fn if_match(text: &str) -> Result<Id, Problem> {
    let text = text.trim();
    let quoted =
        text.strip_prefix("W/").unwrap_or(text).strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    quoted.and_then(|id| id.parse().ok()).ok_or_else(|| {
        Problem::bad_request("If-Match: expected one id in quotes, for example \"1763640000123456\"")
    })
}

fn single_header<'a>(headers: Headers<'a>, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    if headers.get_all(name).nth(1).is_some() {
        return Err(Problem::bad_request(format!("{name} is given twice; give it once")));
    }
    value
        .to_str()
        .map(Some)
        .map_err(|_| Problem::bad_request(format!("{name}: expected ASCII characters only")))
}

/// The declared type. It is kept until the body is there, so a very long one is refused before.
fn content_type(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    match single_header(Headers::of(headers), &header::CONTENT_TYPE)? {
        Some(text) if text.len() > MAX_TYPE_BYTES => {
            Err(Problem::bad_request(PayloadError::ContentType.to_string()))
        }
        text => Ok(text),
    }
}
