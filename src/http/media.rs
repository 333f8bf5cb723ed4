//! The media types of bodies.

use http::{HeaderMap, header};

pub use crate::message::JSON;

pub const EVENT_STREAM: &str = "text/event-stream";
pub const NDJSON: &str = "application/x-ndjson";
pub const PROBLEM: &str = "application/problem+json";

/// True if the body is declared as JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    essence(headers).as_deref() == Some(JSON)
}

/// The declared media type without its parameters.
pub fn essence(headers: &HeaderMap) -> Option<String> {
    let declared = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}
