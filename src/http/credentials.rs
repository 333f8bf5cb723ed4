//! Finds the credential in a request, and removes it, so that no later code can reveal it.

use std::borrow::Cow;

use axum::extract::Request;
use http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery};

use super::headers::Headers;

/// The query parameter of a credential.
const PARAMETER: &str = "token";
/// The cookie of a credential.
const COOKIE: &str = "rejoin_token";
/// The prefix of a WebSocket subprotocol that contains a credential. A page cannot set a header there.
const SUBPROTOCOL: &str = "bearer.";

/// The headers that may have a credential.
static SECRET: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::SEC_WEBSOCKET_PROTOCOL];

/// The place that only a program fills.
const AUTHORIZATION: &str = "Authorization";

/// The credential that was sent, if any. It has no `Debug`, because it must not be written anywhere.
#[derive(Clone)]
pub struct Shown(Result<Option<Box<str>>, Unusable>);

/// A request has a credential that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// One of them may belong to another client.
    #[error("different credentials in {0}: send one")]
    Ambiguous(&'static str),
    /// A client that sends a credential must not be treated as anonymous.
    #[error("Authorization: unsupported scheme; use Bearer")]
    Scheme,
    #[error("the headers and cookies of [hook] have more than 8 KiB together; send less in them")]
    TooLong,
}

impl Shown {
    pub fn credential(&self) -> Result<Option<&str>, Unusable> {
        self.0.as_ref().map(Option::as_deref).map_err(|unusable| *unusable)
    }
}

/// Finds the credential, and hides it in the request.
///
/// A credential that was meant for this request counts before the cookie, which a browser sends with every
/// request.
pub fn take(request: &mut Request) -> Shown {
    let from_query = take_from_query(request.uri_mut());
    let headers = Headers::of(request.headers());
    let has_secret = SECRET.iter().any(|name| headers.contains(name));
    if !has_secret && from_query.is_empty() {
        return Shown(Ok(None));
    }
    let (bearers, has_others) = authorizations(headers);
    let shown = first([
        (AUTHORIZATION, bearers),
        ("Sec-WebSocket-Protocol", subprotocols(headers)),
        ("the query", from_query),
        ("the cookies", cookies(headers)),
    ]);
    let shown = match shown {
        Ok(None) if has_others => Err(Unusable::Scheme),
        shown => shown,
    };
    if has_secret {
        for (name, value) in request.headers_mut() {
            value.set_sensitive(value.is_sensitive() || SECRET.contains(name));
        }
    }
    Shown(shown)
}

/// The credentials of the first place that has any.
fn first(places: [(&'static str, Vec<String>); 4]) -> Result<Option<Box<str>>, Unusable> {
    for (place, mut found) in places {
        // An empty cookie or parameter is what a page sends once its user has logged out. An empty `Bearer` is a
        // mistake, which a refusal shows.
        if place != AUTHORIZATION {
            found.retain(|credential| !credential.is_empty());
        }
        found.sort_unstable();
        found.dedup();
        match (found.pop(), found.pop()) {
            (None, _) => {}
            (Some(only), None) => return Ok(Some(only.into())),
            (Some(_), Some(_)) => return Err(Unusable::Ambiguous(place)),
        }
    }
    Ok(None)
}

/// The credentials of the scheme `Bearer` (RFC 6750 §2.1, RFC 9110 §11.4). The boolean is true if there are
/// other schemes, which may be for a proxy in front of the server.
fn authorizations(headers: Headers<'_>) -> (Vec<String>, bool) {
    let (mut bearers, mut has_others) = (Vec::new(), false);
    for value in texts(headers, &header::AUTHORIZATION) {
        let (scheme, rest) = value.split_at(value.find([' ', '\t']).unwrap_or(value.len()));
        if scheme.eq_ignore_ascii_case("bearer") {
            bearers.push(rest.trim_matches(' ').to_owned());
        } else if !value.is_empty() {
            has_others = true;
        }
    }
    (bearers, has_others)
}

fn subprotocols(headers: Headers<'_>) -> Vec<String> {
    let values = texts(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    let offered = values.iter().flat_map(|value| value.split(','));
    offered.filter_map(|name| name.trim().strip_prefix(SUBPROTOCOL)).map(str::to_owned).collect()
}

/// True if a WebSocket handshake offers a credential as a subprotocol, even an empty one.
pub fn is_offered(headers: &HeaderMap) -> bool {
    !subprotocols(Headers::of(headers)).is_empty()
}

fn cookies(headers: Headers<'_>) -> Vec<String> {
    let values = texts(headers, &header::COOKIE);
    let pairs = values.iter().flat_map(|value| value.split(';'));
    let named = pairs.filter_map(|pair| pair.trim().split_once('=')).filter(|(name, _)| *name == COOKIE);
    named.map(|(_, value)| value.trim_matches('"').to_owned()).collect()
}

/// The values of a header. Bytes that are not UTF-8 hide nothing else in a value, because another
/// application's cookie may contain anything. A credential with such bytes is refused as invalid.
fn texts<'a>(headers: Headers<'a>, name: &HeaderName) -> Vec<Cow<'a, str>> {
    headers.get_all(name).map(|value| String::from_utf8_lossy(value.as_bytes())).collect()
}

/// Removes every `token=`, however its name is encoded, and leaves the rest of the query unchanged.
fn take_from_query(uri: &mut Uri) -> Vec<String> {
    let mut found = Vec::new();
    let Some(query) = uri.query() else { return found };
    if !query.contains(PARAMETER) && !query.contains('%') {
        return found;
    }
    let is_other = |pair: &&str| match form_urlencoded::parse(pair.as_bytes()).next() {
        Some((name, value)) if name == PARAMETER => {
            found.push(value.into_owned());
            false
        }
        _ => true,
    };
    let rest = query.split('&').filter(is_other).collect::<Vec<_>>().join("&");
    if found.is_empty() {
        return found;
    }
    let path = match rest.as_str() {
        "" => uri.path().to_owned(),
        rest => format!("{}?{rest}", uri.path()),
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    *uri = Uri::from_parts(parts).unwrap_or_default();
    found
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::HeaderValue;

    use super::*;

    fn shown(uri: &str, headers: &[(&str, &str)]) -> (Result<Option<String>, Unusable>, Request) {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).expect("a request");
        let shown = take(&mut request);
        (shown.credential().map(|found| found.map(str::to_owned)), request)
    }

    #[test]
    fn a_credential_is_found_in_each_place_and_the_first_counts() {
        let all: [(&str, &str); 3] = [
            ("authorization", "bearer in-header"),
            ("sec-websocket-protocol", "rejoin.v1, bearer.in-subprotocol"),
            ("cookie", "a=b; rejoin_token=in-cookie; c=d"),
        ];
        let found = |uri: &str, headers: &[(&str, &str)]| shown(uri, headers).0.expect("not ambiguous");
        assert_eq!(found("/?token=in-query", &all).as_deref(), Some("in-header"));
        assert_eq!(found("/?token=in-query", &all[1..]).as_deref(), Some("in-subprotocol"));
        assert_eq!(found("/?token=in-query", &all[2..]).as_deref(), Some("in-query"));
        assert_eq!(found("/", &all[2..]).as_deref(), Some("in-cookie"));
        let others =
            [("authorization", ""), ("cookie", "other_rejoin_token=x"), ("sec-websocket-protocol", "bearer")];
        assert_eq!(found("/?tokens=x&Token=y", &others), None);
        let empty = [("cookie", "rejoin_token=; a=b"), ("sec-websocket-protocol", "rejoin.v1, bearer.")];
        assert_eq!(found("/?token=", &empty), None, "an empty one is none");
        assert_eq!(found("/?token=&token=x", &empty).as_deref(), Some("x"));
        assert_eq!(
            found("/?token=", &[("cookie", "rejoin_token=\"\"; rejoin_token=y")]).as_deref(),
            Some("y")
        );
    }

    #[test]
    fn only_the_scheme_bearer_is_accepted_in_any_case() {
        let found = |value: &str, uri: &str| shown(uri, &[("authorization", value)]).0;
        for bearer in ["Bearer x", "bearer x", "BEARER  x", "bEaReR   x "] {
            assert_eq!(found(bearer, "/"), Ok(Some("x".into())), "{bearer:?}");
        }
        for (no_key, as_shown) in
            [("Bearer", ""), ("Bearer ", ""), ("Bearer\tx", "\tx"), ("Bearer x y", "x y")]
        {
            assert_eq!(found(no_key, "/"), Ok(Some(as_shown.into())), "{no_key:?} is refused");
        }
        for other in ["Basic dTpw", "Bearerx", "x", "Digest username=\"u\"", "Bearer,x"] {
            assert_eq!(found(other, "/"), Err(Unusable::Scheme), "{other:?}");
            assert_eq!(found(other, "/?token=mine"), Ok(Some("mine".into())), "{other:?} is the proxy's");
        }
        let both = [("authorization", "Basic dTpw"), ("authorization", "Bearer x")];
        assert_eq!(shown("/", &both).0, Ok(Some("x".into())));
    }

    #[test]
    fn invalid_utf_8_hides_no_credential_beside_it_and_is_no_credential() {
        let cookie = |bytes: &[u8]| {
            let value = HeaderValue::from_bytes(bytes).expect("a header's value");
            let mut request =
                Request::builder().header("cookie", value).body(Body::empty()).expect("a request");
            take(&mut request).credential().map(|found| found.map(str::to_owned))
        };
        let mine = Ok(Some("mine".to_owned()));
        assert_eq!(cookie("name=Jürgen; rejoin_token=mine".as_bytes()), mine);
        assert_eq!(cookie(b"name=\xff; rejoin_token=mine"), mine);
        assert_eq!(
            cookie(b"rejoin_token=\xff"),
            Ok(Some("\u{fffd}".to_owned())),
            "refused, and not overlooked"
        );
    }

    #[test]
    fn two_credentials_in_one_place_are_refused_and_one_given_twice_is_not() {
        let cookies = |cookie: &str| shown("/", &[("cookie", cookie)]).0;
        assert_eq!(
            cookies("rejoin_token=mine; rejoin_token=planted"),
            Err(Unusable::Ambiguous("the cookies"))
        );
        assert_eq!(cookies("rejoin_token=\"mine\"; rejoin_token=mine"), Ok(Some("mine".into())));
        assert_eq!(shown("/?token=a&token=b", &[]).0, Err(Unusable::Ambiguous("the query")));
    }

    #[test]
    fn the_credential_is_removed_from_the_request() {
        let headers = [
            ("authorization", "Bearer s3cret"),
            ("cookie", "rejoin_token=s3cret"),
            ("sec-websocket-protocol", "bearer.s3cret, rejoin.v1"),
        ];
        for (uri, left) in [
            ("/topics/a?token=s3cret", "/topics/a"),
            ("/topics/a?x=%20&token=s3cret&after=0", "/topics/a?x=%20&after=0"),
            ("/topics/a?%74oken=s3cret&%74%6f%6B%65%6e=s3cret&&y", "/topics/a?&y"),
            ("http://host:7070/events?topic=a&token=s3cret", "http://host:7070/events?topic=a"),
        ] {
            let (found, request) = shown(uri, &headers);
            assert_eq!(
                (found, request.uri().to_string().as_str()),
                (Ok(Some("s3cret".into())), left),
                "{uri}"
            );
            assert!(!format!("{request:?}").contains("s3cret"), "{request:?}");
        }
    }
}
