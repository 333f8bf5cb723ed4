//! The page at `/`, which publishes and subscribes, its Content-Security-Policy, and the browser client.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

const PAGE: &str = include_str!("../../web/index.html");
/// Allows only the page's own script and style, by their hashes, and only connections to this server.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-N8WzHEupR2Ay1oQwwr2RGtOdFoLgXPd3vs97G51kH7w='; \
    style-src 'sha256-8WX2HovwR9S9R3XsEVeq2bDu/6FVg+N8sTy2m5oAYPU='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub fn show() -> Response {
    let mut response = Html(PAGE).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

const CLIENT: &str = include_str!("../../web/rejoin.js");
/// Changes with the text, so that a browser asks for the client again only to hear that it has the newest.
static CLIENT_ETAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = digest::digest(&digest::SHA256, CLIENT.as_bytes());
    let hash: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(format!("\"{hash}\"")).expect("quoted hexadecimal digits")
});

/// `GET /rejoin.js`: the browser client, as it stands in the repository.
pub fn client(request: &HeaderMap) -> Response {
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = known.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    // A proxy that compresses the text weakens the tag.
    let is_known = tags.any(|tag| tag == "*" || tag.as_bytes() == CLIENT_ETAG.as_bytes());
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => CLIENT.into_response(),
    };
    let headers = response.headers_mut();
    if !is_known {
        let script = HeaderValue::from_static("text/javascript; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, script);
    }
    headers.insert(header::ETAG, CLIENT_ETAG.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_policy_allows_the_script_and_the_style_of_the_page() {
        for tag in ["script", "style"] {
            let (_, rest) = PAGE.split_once(&format!("<{tag}>")).expect("it has one");
            let (text, rest) = rest.split_once(&format!("</{tag}>")).expect("it ends");
            assert!(!rest.contains(&format!("<{tag}")), "a second {tag} is not allowed for");
            let hash = BASE64_STANDARD.encode(Sha256::digest(text));
            assert!(POLICY.contains(&format!("{tag}-src 'sha256-{hash}'")), "the {tag} is sha256-{hash}");
        }
        assert!(!PAGE.contains(" style="), "a style in an attribute is not allowed for");
    }
}
