//! Why a request failed, as far as a caller acts by it.

use std::{error::Error, fmt::Display, io, time::Duration};

use reqwest::Response;
use serde::Deserialize;

use super::{UNIX_HOST, answer};

/// Why a request failed, or why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused the request, and would refuse it again.
    #[error("{}", in_words(code, detail))]
    Refused {
        /// The server's word for the reason, such as `forbidden`. If the answer does not come from Rejoin, it is
        /// the status, such as `404 Not Found`.
        code: String,
        /// The reason for a person. It may be empty.
        detail: String,
    },
    /// A URL or a token cannot be sent, or the peer does not speak this protocol. To repeat the request is
    /// useless.
    #[error("{0}")]
    Unusable(String),
    /// The request was not done: it never reached the server, or the server cannot do it now. It can be
    /// repeated.
    #[error("{why}")]
    Unavailable {
        /// The reason for a person.
        why: String,
        /// The server's word for the reason, such as `rate_limited`, if the server answered.
        code: Option<String>,
        /// How long the server asks the client to wait.
        retry_after: Option<Duration>,
    },
    /// The connection is over, or there is no answer. The server may have done the request.
    #[error("{why}")]
    Lost {
        /// The reason for a person.
        why: String,
        /// How long the server asks the client to wait.
        retry_after: Option<Duration>,
    },
}

/// A refusal in the server's words (RFC 9457).
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub code: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub status: u16,
}

/// The codes of refusals after which nothing was done and the same request may succeed.
const NOT_DONE: [&str; 5] = ["timed_out", "rate_limited", "overloaded", "unavailable", "full"];
/// The longest problem that is read.
const MAX_PROBLEM_BYTES: usize = 1 << 20;
/// The beginning of the answer to a request without TLS where the server speaks TLS.
const SPEAKS_TLS: &[u8] = b"This port speaks TLS";

impl ClientError {
    /// True if the same request would fail again.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unusable(_))
    }

    /// True if the server refused the credential; with another one the request may succeed.
    pub(super) fn is_of_credential(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "unauthorized" || code == "token_expired")
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Lost { retry_after, .. } => *retry_after,
            Self::Refused { .. } | Self::Unusable(_) => None,
        }
    }

    pub(super) fn lost(why: impl Into<String>) -> Self {
        Self::Lost { why: why.into(), retry_after: None }
    }

    /// The request could not be sent.
    pub(super) fn unsent(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into(), code: None, retry_after: None }
    }

    /// The peer is not Rejoin, or speaks another version: to try again would not help.
    pub(super) fn not_ours(error: impl Display) -> Self {
        Self::Unusable(format!("the server does not speak Rejoin's protocol: {error}"))
    }

    /// The meaning of an answer that has not the status it should have.
    pub(super) async fn in_answer(response: Response) -> Self {
        let status = response.status();
        let pause = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = answer::body(response, MAX_PROBLEM_BYTES).await.unwrap_or_default();
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            code: status.to_string(),
            detail: match status.as_u16() {
                // A server, or a proxy before it, answers so before it reads the request.
                414 | 431 => "the URL and the headers are too long; use fewer topics, or patterns".into(),
                400 if body.starts_with(SPEAKS_TLS) => {
                    "the server speaks TLS at this port: use https://".into()
                }
                _ => "the answer does not come from Rejoin".into(),
            },
            status: status.as_u16(),
        });
        Self::of_problem(Problem { status: status.as_u16(), ..problem }, pause.map(Duration::from_secs))
    }

    pub(super) fn of_problem(problem: Problem, retry_after: Option<Duration>) -> Self {
        let Problem { code, detail, status } = problem;
        // A server that answers 501 will never support the request.
        if !matches!(status, 408 | 429 | 500 | 502..) {
            return Self::Refused { code, detail };
        }
        let why = in_words(&code, &detail);
        if NOT_DONE.contains(&&*code) {
            Self::Unavailable { why, code: Some(code), retry_after }
        } else {
            Self::Lost { why, retry_after }
        }
    }
}

fn in_words(code: &str, detail: &str) -> String {
    if detail.is_empty() { code.into() } else { format!("{code}: {detail}") }
}

impl From<reqwest::Error> for ClientError {
    fn from(error: reqwest::Error) -> Self {
        let why = match is_without_tls(&error) {
            true => "the server does not speak TLS at this port: use http://".into(),
            false => deepest(&error),
        };
        if error.is_connect() {
            let server = match error.url() {
                Some(url) if url.host_str() == Some(UNIX_HOST) => "the Unix socket".to_owned(),
                Some(url) => url.origin().ascii_serialization(),
                None => String::new(),
            };
            Self::unsent(format!("cannot reach {server}: {why}"))
        } else if error.is_builder() {
            Self::Unusable(why)
        } else {
            Self::lost(format!("the connection was lost: {why}"))
        }
    }
}

/// The innermost cause, which says most to a user.
fn deepest(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// True if the server did not answer a handshake of TLS in TLS.
fn is_without_tls(error: &reqwest::Error) -> bool {
    let error: &(dyn Error + 'static) = error;
    let causes = std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An error of the system that has another in it tells only the cause of that as its own.
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    });
    causes.filter_map(|error| error.downcast_ref()).any(|error| {
        matches!(error, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str) -> ClientError {
        ClientError::of_problem(Problem { code: code.into(), detail: "d".into(), status }, None)
    }

    #[test]
    fn only_an_answer_that_says_so_means_that_nothing_was_stored() {
        for (status, code) in [
            (408, "timed_out"),
            (429, "rate_limited"),
            (503, "overloaded"),
            (503, "unavailable"),
            (503, "full"),
        ] {
            assert!(matches!(of(status, code), ClientError::Unavailable { .. }), "{code}");
        }
        for (status, code) in [(503, "unknown_outcome"), (502, "502 Bad Gateway"), (500, "?"), (408, "?")] {
            assert!(matches!(of(status, code), ClientError::Lost { .. }), "{code}");
        }
        for (status, code) in [(400, "bad_request"), (403, "forbidden"), (501, "501 Not Implemented")] {
            assert!(of(status, code).is_final(), "{code}");
        }
        assert_eq!(of(403, "forbidden").to_string(), "forbidden: d");
    }
}
