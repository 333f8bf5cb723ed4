//! All refusals in one place: codes, statuses and close codes.

use std::{fmt, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{
    http::media,
    log::{AppendError, LogError, Unfit},
    message::Id,
};

/// The close code for a frame of the wrong type (RFC 6455 §7.4.1).
pub const UNSUPPORTED_DATA: u16 = 1003;

/// A stable word for an error, the same on every transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    BadRequest,
    Unauthorized,
    TokenExpired,
    Forbidden,
    ForbiddenOrigin,
    ForbiddenHost,
    NotFound,
    MethodNotAllowed,
    TimedOut,
    Conflict,
    PreconditionFailed,
    TooLarge,
    UnsupportedMediaType,
    KeyReused,
    UpgradeRequired,
    NotImplemented,
    RateLimited,
    Overloaded,
    Unavailable,
    UnknownOutcome,
    Full,
    TooSlow,
    Draining,
    Disconnected,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 24] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::TokenExpired,
        Self::Forbidden,
        Self::ForbiddenOrigin,
        Self::ForbiddenHost,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::TimedOut,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::KeyReused,
        Self::UpgradeRequired,
        Self::NotImplemented,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unavailable,
        Self::UnknownOutcome,
        Self::Full,
        Self::TooSlow,
        Self::Draining,
        Self::Disconnected,
    ];

    /// The word of the code, as it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::ForbiddenHost => "forbidden_host",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TimedOut => "timed_out",
            Self::Conflict => "conflict",
            Self::PreconditionFailed => "precondition_failed",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::KeyReused => "key_reused",
            Self::UpgradeRequired => "upgrade_required",
            Self::NotImplemented => "not_implemented",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::UnknownOutcome => "unknown_outcome",
            Self::Full => "full",
            Self::TooSlow => "too_slow",
            Self::Draining => "draining",
            Self::Disconnected => "disconnected",
        }
    }

    /// The HTTP status. A code that can only end an open connection has none.
    pub fn status(self) -> Option<StatusCode> {
        Some(match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized | Self::TokenExpired => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::ForbiddenOrigin | Self::ForbiddenHost => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded | Self::Unavailable | Self::UnknownOutcome | Self::Full => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TooSlow | Self::Draining | Self::Disconnected => return None,
        })
    }

    /// The close code of a WebSocket that ends for this reason.
    pub fn close_code(self) -> u16 {
        self.close().unwrap_or(4000)
    }

    /// The close code that belongs to this code (RFC 6455 §7.4), if it can end a WebSocket.
    pub fn close(self) -> Option<u16> {
        Some(match self {
            Self::BadRequest | Self::NotFound | Self::MethodNotAllowed => 4000,
            Self::Unauthorized => 4001,
            Self::Forbidden => 4003,
            Self::Disconnected => 4010,
            Self::TimedOut | Self::RateLimited | Self::Overloaded => 4100,
            Self::TooSlow => 4101,
            Self::Draining => 4200,
            Self::TokenExpired => 4201,
            Self::TooLarge => 1009,
            _ => return None,
        })
    }

    /// After how long the client may try again.
    fn retry_after(self) -> Option<Duration> {
        matches!(
            self,
            Self::RateLimited | Self::Overloaded | Self::Unavailable | Self::UnknownOutcome | Self::Full
        )
        .then_some(Duration::from_secs(1))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest quotation of a client's text in an answer. It may be repeated for each of many messages.
const MAX_QUOTED_CHARS: usize = 400;

/// The part of `text` that may be quoted.
pub fn shorten(mut text: String) -> String {
    if text.len() > MAX_QUOTED_CHARS
        && let Some((end, _)) = text.char_indices().nth(MAX_QUOTED_CHARS)
    {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The words of a refusal beside its answer, for the log. They leave the answer before it is sent.
#[derive(Clone)]
pub struct Words(pub String);

/// A refusal, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub code: Code,
    #[serde(serialize_with = "as_number", skip_serializing_if = "Option::is_none")]
    status: Option<StatusCode>,
    title: &'static str,
    pub detail: String,
    /// The topic or pattern that the refusal is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    /// The newest id of the topic, if a precondition failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<Id>,
    /// A header of the answer that says what would be accepted.
    #[serde(skip)]
    accepted: Option<Box<(HeaderName, &'static str)>>,
    /// The same request may be served later, so a reader is turned away as on overload.
    #[serde(skip)]
    is_undecided: bool,
}

impl Problem {
    /// A refusal, with the reason for a person.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = code.status();
        let title = status.and_then(|status| status.canonical_reason()).unwrap_or("Closed");
        Self {
            code,
            status,
            title,
            detail: shorten(detail.into()),
            topic: None,
            newest: None,
            accepted: None,
            is_undecided: false,
        }
    }

    /// A mistake in the request; `detail` names the parameter.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// It cannot be decided now who the client is.
    pub fn undecided(detail: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, detail).but_undecided()
    }

    /// The same problem, as one that says nothing about the client.
    pub fn but_undecided(self) -> Self {
        Self { is_undecided: true, ..self }
    }

    pub fn is_undecided(&self) -> bool {
        self.is_undecided
    }

    /// The same problem in answer to a WebSocket handshake: a browser sees close codes alone.
    pub fn of_handshake(self) -> Self {
        if self.is_undecided { Self { code: Code::Overloaded, ..self } } else { self }
    }

    /// The same refusal, which names the topic or pattern that it is about. It is whole, as the client has sent it: the
    /// client finds its subscription by it.
    pub fn about(self, topic: impl fmt::Display) -> Self {
        Self { topic: Some(topic.to_string()), ..self }
    }

    /// Notes in an answer that it is this refusal, for the metrics and the logs.
    pub fn note_in(self, response: &mut Response) {
        response.extensions_mut().insert(self.code);
        response.extensions_mut().insert(Words(self.detail));
    }

    /// The topic or pattern that the refusal is about.
    pub fn topic(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    /// The resource has other methods: those in `allow`.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this method is not allowed here; use one of {allow}");
        Self { accepted: Some(Box::new((header::ALLOW, allow))), ..Self::new(Code::MethodNotAllowed, detail) }
    }

    /// The body has a coding that the server does not decode (RFC 9110 §15.5.16).
    pub fn unsupported_coding() -> Self {
        let detail = "Content-Encoding: expected one of gzip and deflate, or none";
        Self {
            accepted: Some(Box::new((header::ACCEPT_ENCODING, "gzip, deflate"))),
            ..Self::new(Code::UnsupportedMediaType, detail)
        }
    }

    /// A payload that has more than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            Code::TooLarge,
            format!(
                "the payload has more than {limit} bytes; send less, or let the operator raise --max-payload"
            ),
        )
    }
}

fn as_number<S: serde::Serializer>(status: &Option<StatusCode>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.map_or(0, |status| status.as_u16()))
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable => {
                Self::new(Code::Unavailable, "the log cannot be reached, so nothing was stored; try again")
            }
            LogError::UnknownOutcome => Self::new(
                Code::UnknownOutcome,
                "the log did not confirm in time; send the request again with the same Idempotency-Key",
            ),
            LogError::Full => Self::new(
                Code::Full,
                "the log is full: nothing was stored, reading still works; an operator must make room",
            ),
        }
    }
}

impl From<Unfit> for Problem {
    fn from(Unfit { error, why }: Unfit) -> Self {
        let problem = Self::from(error);
        match why {
            Some(why) => Self::new(problem.code, why),
            None => problem,
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::PreconditionFailed { newest } => Self {
                newest: Some(newest),
                ..Self::new(
                    Code::PreconditionFailed,
                    "If-Match does not hold: the topic has a newer message, or the id is ahead of the log; \
                     read the topic, and send its newest id",
                )
            },
            AppendError::KeyReused => Self::new(
                Code::KeyReused,
                "this Idempotency-Key was used before with another payload; use a new one for a new message",
            ),
            AppendError::TooManyKeys => Self::new(
                Code::Overloaded,
                "idempotency key limit reached, for you, for this topic or in total; try again later",
            ),
            AppendError::TooManyTopics => Self::new(
                Code::Overloaded,
                "topic limit reached, or your share of it (--max-topics, or half of --retain-total); publish to a known topic",
            ),
            AppendError::Log(error) => error.into(),
        }
    }
}

/// The bare answer to a head with too many fields, as the HTTP library gives it on HTTP/1.1.
pub fn too_many_fields() -> Response {
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let body = serde_json::to_vec(&self).expect("a problem serializes");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media::PROBLEM));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.code.retry_after() {
            headers.insert(header::RETRY_AFTER, after.as_secs().into());
        }
        if matches!(self.code, Code::Unauthorized | Code::TokenExpired) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some((name, accepted)) = self.accepted.as_deref() {
            headers.insert(name, HeaderValue::from_static(accepted));
        }
        if self.code == Code::UpgradeRequired {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.note_in(&mut response);
        response
    }
}
