//! One bounded request to another server: the keys of an issuer, or a question to the backend.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use reqwest::{Certificate, Client, RequestBuilder, Url, redirect};

/// How long an answer may take, with everything that it needs.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Sends requests, and follows no redirect: the operator names each place.
pub struct Fetcher(Client);

/// A whole answer.
pub struct Fetched {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Fetcher {
    /// `ca` are the certificates, as PEM, to trust in place of those of the system.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn new(url: &Url, ca: Option<&str>) -> Result<Self, String> {
        // This fails if a provider is installed already, which is just as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut client = Client::builder().redirect(redirect::Policy::none());
        if url.scheme() == "http" {
            // No TLS: the certificates of the system need not be read. Without TLS a proxy would see everything.
            client = client.no_proxy().tls_certs_only([]);
        } else if let Some(ca) = ca {
            let certificates =
                Certificate::from_pem_bundle(ca.as_bytes()).map_err(|error| in_words(&error))?;
            client = client.tls_certs_only(certificates);
        }
        client.build().map(Self).map_err(|error| in_words(&error))
    }

    pub fn get(&self, url: Url) -> RequestBuilder {
        self.0.get(url).header(header::ACCEPT, "application/json")
    }

    #[cfg(feature = "acme")]
    pub fn request(&self, request: reqwest::Request) -> RequestBuilder {
        RequestBuilder::from_parts(self.0.clone(), request)
    }

    pub fn post(&self, url: Url) -> RequestBuilder {
        self.0.post(url).header(header::ACCEPT, "application/json")
    }
}

/// Sends a request, and reads the answer of up to `max_bytes`. Bound the time with [`PATIENCE`].
///
/// # Errors
/// The reason, in words, without any header or body.
pub async fn whole(request: RequestBuilder, max_bytes: usize) -> Result<Fetched, String> {
    let mut response = request.send().await.map_err(|error| in_words(&error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| in_words(&error))? {
        if body.len() + piece.len() > max_bytes {
            return Err(format!("the answer has more than {max_bytes} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Fetched { status, headers, body })
}

/// An error with its causes: the outermost alone says little.
fn in_words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// How long an answer may be kept, by its headers (RFC 9111 §4.2.1), if they say so.
pub fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let texts = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut directives = texts(header::CACHE_CONTROL).flat_map(|value| value.split(',')).map(str::trim);
    let seconds = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, "0"));
        let is_known = ["max-age", "no-store", "no-cache"].iter().any(|it| name.eq_ignore_ascii_case(it));
        if is_known { value.trim_matches('"').parse::<u64>().ok() } else { None }
    })?;
    let age = texts(header::AGE).find_map(|value| value.trim().parse().ok()).unwrap_or(0);
    Some(Duration::from_secs(seconds.saturating_sub(age)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_headers_say_how_long_an_answer_may_be_kept() {
        let fresh = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter();
            let headers = pairs.map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            fresh_for(&headers.collect()).map(|duration| duration.as_secs())
        };
        assert_eq!(fresh(&[]), None);
        assert_eq!(fresh(&[("cache-control", "public, max-age=600")]), Some(600));
        assert_eq!(fresh(&[("cache-control", "Max-Age=\"600\", x=1"), ("age", "100")]), Some(500));
        assert_eq!(fresh(&[("cache-control", "max-age=5"), ("age", "100")]), Some(0));
        assert_eq!(fresh(&[("cache-control", "no-store")]), Some(0));
        assert_eq!(fresh(&[("cache-control", "no-cache, max-age=9")]), Some(0));
        assert_eq!(fresh(&[("cache-control", "private")]), None);
    }
}
