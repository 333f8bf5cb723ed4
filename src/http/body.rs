//! Request bodies: read to a limit and within a time.

use axum::body::{Body, Bytes};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::{
    App,
    problem::{Code, Problem},
};

/// Reads a body of up to `limit` bytes.
///
/// # Errors
/// `too_large` over the limit, `bad_request` if it does not arrive within the read timeout.
pub async fn read(app: &App, headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::TooLarge, format!("the body has more than {limit} bytes"));
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(app.config.read_timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::bad_request("the body ended too early")),
        Err(_) => Err(timed_out()),
    }
}

pub fn timed_out() -> Problem {
    Problem::bad_request("the body did not arrive within the read timeout")
}

/// True if the body is declared as JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    essence(headers).as_deref() == Some("application/json")
}

/// The declared media type without its parameters.
pub fn essence(headers: &HeaderMap) -> Option<String> {
    let declared = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}
