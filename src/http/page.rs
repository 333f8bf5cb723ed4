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

/// A module of the browser client.
struct Module {
    text: &'static str,
    /// Changes with the text, so that a browser asks for the module again only to hear that it has the newest.
    etag: LazyLock<HeaderValue>,
}

static CLIENT: Module =
    Module { text: include_str!("../../web/rejoin.js"), etag: LazyLock::new(|| etag_of(CLIENT.text)) };
static PRESENCE: Module = Module {
    text: include_str!("../../web/rejoin-presence.js"),
    etag: LazyLock::new(|| etag_of(PRESENCE.text)),
};
static SHARED: Module =
    Module { text: include_str!("../../web/rejoin-shared.js"), etag: LazyLock::new(|| etag_of(SHARED.text)) };

fn etag_of(text: &str) -> HeaderValue {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let hash: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(format!("\"{hash}\"")).expect("quoted hexadecimal digits")
}

/// `GET /rejoin.js` and the modules that it loads, as they stand in the repository.
pub fn client(path: &str, request: &HeaderMap) -> Response {
    let module = match path {
        "/rejoin-presence.js" => &PRESENCE,
        "/rejoin-shared.js" => &SHARED,
        _ => &CLIENT,
    };
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = known.flat_map(|value| value.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    // A proxy that compresses the text weakens the tag.
    let is_known = tags.any(|tag| tag == "*" || tag.as_bytes() == module.etag.as_bytes());
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => module.text.into_response(),
    };
    let headers = response.headers_mut();
    if !is_known {
        let script = HeaderValue::from_static("text/javascript; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, script);
    }
    headers.insert(header::ETAG, module.etag.clone());
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
