//! The media types of bodies.

use http::{HeaderMap, header};

pub use crate::message::JSON;

pub const EVENT_STREAM: &str = "text/event-stream";
/// As an answer names it. Without the charset some clients read `text/*` as Latin-1 (RFC 2616 §3.7.1).
pub const EVENT_STREAM_UTF_8: &str = "text/event-stream; charset=utf-8";
pub const NDJSON: &str = "application/x-ndjson";
pub const PROBLEM: &str = "application/problem+json";

/// True for the names under which NDJSON is known; none of them is registered.
pub fn is_ndjson(essence: &str) -> bool {
    [NDJSON, "application/ndjson", "application/jsonl"].iter().any(|name| essence.eq_ignore_ascii_case(name))
}

/// True if the body is declared as JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    essence(headers).as_deref() == Some(JSON)
}

/// The declared media type without its parameters.
pub fn essence(headers: &HeaderMap) -> Option<String> {
    let declared = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}
