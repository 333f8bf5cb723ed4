//! Request bodies: read to a limit and within a time.

use std::{error::Error, io, time::Duration};

use axum::body::{Body, Bytes};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::{
    coding::{self, Undecodable},
    problem::{Code, Problem},
};

/// Reads a body of up to `limit` bytes, which arrives within `time`. A body with a content coding is decoded, and
/// `limit` is that of the decoded bytes.
///
/// # Errors
/// `too_large` over the limit, `timed_out` if it does not arrive whole and in time, `bad_request` if it is not in
/// its coding, `unsupported_media_type` for a coding that the server does not decode.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize, time: Duration) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::TooLarge, format!("the body has more than {limit} bytes"));
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let body = match coding::of(headers)? {
        Some(coding) => coding.decode(body),
        None if declared.is_some_and(|length| length > limit as u64) => return Err(too_large()),
        None => body,
    };
    match tokio::time::timeout(time, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(broken(&*error)),
        Err(_) => Err(timed_out()),
    }
}

/// The problem with a body that could not be read to its end.
pub fn broken(error: &(dyn Error + 'static)) -> Problem {
    let mut causes = std::iter::successors(Some(error), |error| (**error).source());
    let mistake = causes.find_map(|error| match error.downcast_ref::<io::Error>() {
        Some(io) if matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            Some(format!("the body is malformed: {io}"))
        }
        _ => error.downcast_ref::<Undecodable>().map(ToString::to_string),
    });
    match mistake {
        Some(mistake) => Problem::bad_request(mistake),
        None => Problem::new(Code::TimedOut, "the body ended too early; send it again"),
    }
}

pub fn timed_out() -> Problem {
    Problem::new(Code::TimedOut, "the body did not arrive within the read timeout; send it again")
}
