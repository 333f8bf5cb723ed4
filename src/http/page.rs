//! The page at `/`, which publishes and subscribes, and its Content-Security-Policy.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, header};

const PAGE: &str = include_str!("../../web/index.html");
/// Allows only the page's own script and style, by their hashes, and only connections to this server.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-N8WzHEupR2Ay1oQwwr2RGtOdFoLgXPd3vs97G51kH7w='; \
    style-src 'sha256-8WX2HovwR9S9R3XsEVeq2bDu/6FVg+N8sTy2m5oAYPU='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub async fn show() -> Response {
    let mut response = Html(PAGE).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
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
