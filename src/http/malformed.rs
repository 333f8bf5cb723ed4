//! Requests that HTTP forbids, and that the HTTP library lets through.

use axum::extract::Request;
use http::{Version, header};

use super::{
    headers::Headers,
    problem::{Code, Problem},
};

/// # Errors
/// `bad_request` if HTTP/1.1 has no `Host`, or any version two of them (RFC 9112 §3.2), or if there are two of
/// `Origin` (RFC 6454 §7.3), since it is not known which of them a proxy has checked. `not_implemented` if the
/// body has a transfer coding other than `chunked` (RFC 9112 §6.1): its bytes would be taken for the payload.
pub fn check(version: Version, headers: Headers<'_>) -> Result<(), Problem> {
    if headers.get_all(&header::ORIGIN).count() > 1 {
        return Err(Problem::bad_request("Origin is given twice (RFC 6454 §7.3); send it once"));
    }
    match headers.get_all(&header::HOST).count() {
        0 if version == Version::HTTP_11 => {
            Err(Problem::bad_request("Host: missing (RFC 9112 §3.2); send the name of the server in it"))
        }
        0 | 1 => check_transfer(headers),
        _ => Err(Problem::bad_request("Host is given twice (RFC 9112 §3.2); send it once")),
    }
}

fn check_transfer(headers: Headers<'_>) -> Result<(), Problem> {
    let mut codings = headers.get_all(&header::TRANSFER_ENCODING);
    let is_chunked =
        |value: &http::HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match codings.all(is_chunked) {
        true => Ok(()),
        false => Err(Problem::new(
            Code::NotImplemented,
            "Transfer-Encoding: only chunked is supported; use Content-Encoding",
        )),
    }
}

/// # Errors
/// `bad_request` if a `%` in the path does not begin a byte in two hexadecimal digits (RFC 3986 §2.1). A topic
/// with that `%` in its name would be another topic.
pub fn check_path(request: &Request) -> Result<(), Problem> {
    let mut rest = request.uri().path().as_bytes();
    while let Some(at) = memchr::memchr(b'%', rest) {
        rest = &rest[at + 1..];
        if rest.len() < 2 || !rest[..2].iter().all(u8::is_ascii_hexdigit) {
            return Err(Problem::bad_request(
                "the path has a % without two hexadecimal digits; write %25 for a %",
            ));
        }
    }
    Ok(())
}
