//! Answers in JSON.

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::media;

/// An answer with `value` as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    raw_json(status, serde_json::to_vec(value).expect("an answer serializes"))
}

/// An answer whose body is JSON already.
pub fn raw_json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::JSON));
    response
}

/// The body of an answer to `HEAD` whose length is not known.
pub fn unread() -> Body {
    Body::from_stream(futures_util::stream::empty::<Result<Bytes, std::convert::Infallible>>())
}

/// The same answer, which no cache may store.
pub fn not_stored(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
