//! A question to the backend: the headers and cookies of a request that say who its client is.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use axum::extract::Request;
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Serialize;

use crate::{
    auth::{Digest, HookSettings},
    http::{client_address::ClientAddress, credentials::Unusable},
};

/// The longest values together. They are kept while the question waits.
const MAX_SHOWN_BYTES: usize = 8 << 10;

/// The headers and cookies of a request that say who its client is.
#[derive(Serialize)]
struct Shown {
    headers: BTreeMap<String, String>,
    cookies: BTreeMap<String, String>,
}

/// The body of a question.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    shown: &'a Shown,
    origin: Option<String>,
    address: Option<IpAddr>,
}

/// A question. It has no `Debug`, because credentials must not be written anywhere.
pub struct Question {
    /// The SHA-256 of what the request shows.
    pub digest: [u8; 32],
    pub body: Bytes,
    /// The backend that it is for.
    pub settings: Arc<HookSettings>,
}

impl Question {
    /// The question for this request, if it has any of the headers and cookies.
    ///
    /// # Errors
    /// If one of them is there twice, with different values, or if the values have more than 8 KiB together.
    pub fn of(settings: &Arc<HookSettings>, request: &Request) -> Result<Option<Self>, Unusable> {
        let headers = request.headers();
        let mut shown = Shown { headers: BTreeMap::new(), cookies: BTreeMap::new() };
        for name in &settings.headers {
            if let Some(value) = only("a header of [hook]", texts(headers, name))? {
                shown.headers.insert(name.clone(), value);
            }
        }
        if !settings.cookies.is_empty() {
            let all = texts(headers, header::COOKIE.as_str());
            let pairs =
                || all.iter().flat_map(|value| value.split(';')).filter_map(|it| it.trim().split_once('='));
            for name in &settings.cookies {
                let values = pairs().filter(|(given, _)| given == name).map(|(_, value)| value.to_owned());
                if let Some(value) = only("the cookies", values.collect())? {
                    shown.cookies.insert(name.clone(), value);
                }
            }
        }
        if shown.headers.is_empty() && shown.cookies.is_empty() {
            return Ok(None);
        }
        let values = shown.headers.values().chain(shown.cookies.values());
        if values.map(String::len).sum::<usize>() > MAX_SHOWN_BYTES {
            return Err(Unusable::TooLong);
        }
        let digest = Digest::of(&serde_json::to_vec(&shown).expect("text serializes")).to_bytes();
        let origin = texts(headers, header::ORIGIN.as_str()).pop();
        let address = request.extensions().get::<ClientAddress>().map(|address| address.ip());
        let told = Told { shown: &shown, origin, address };
        let body = serde_json::to_vec(&told).expect("text serializes").into();
        Ok(Some(Self { digest, body, settings: settings.clone() }))
    }

    /// True if the backend with these settings may be asked the same.
    pub fn is_for(&self, settings: &HookSettings) -> bool {
        let own = &*self.settings;
        (&own.url, &own.headers, &own.cookies) == (&settings.url, &settings.headers, &settings.cookies)
    }
}

/// The one value, if there is any. An empty one is none.
fn only(place: &'static str, mut values: Vec<String>) -> Result<Option<String>, Unusable> {
    values.retain(|value| !value.is_empty());
    values.dedup();
    match values.len() {
        0 | 1 => Ok(values.pop()),
        _ => Err(Unusable::Ambiguous(place)),
    }
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::HookTerms;

    fn ask(headers: &[(&str, &str)]) -> Result<Option<(Value, [u8; 32])>, Unusable> {
        let settings = HookSettings {
            url: "http://localhost/".parse().expect("a URL"),
            secret: None,
            headers: vec!["authorization".into(), "x-app".into()],
            cookies: vec!["session".into()],
            terms: HookTerms::default(),
        };
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let question = Question::of(&Arc::new(settings), &request.body(Body::empty()).expect("a request"))?;
        Ok(question.map(|it| (serde_json::from_slice(&it.body).expect("JSON"), it.digest)))
    }

    #[test]
    fn only_the_headers_and_cookies_that_are_named_are_told() {
        let all = [
            ("authorization", "Basic x"),
            ("cookie", "a=b; session=s; c=d"),
            ("x-other", "y"),
            ("origin", "o"),
        ];
        let (told, digest) = ask(&all).expect("no mistake").expect("a question");
        assert_eq!(
            told,
            json!({"headers": {"authorization": "Basic x"}, "cookies": {"session": "s"}, "origin": "o", "address": null})
        );
        let elsewhere = [("authorization", "Basic x"), ("cookie", "session=s; z=z"), ("origin", "p")];
        assert_eq!(ask(&elsewhere).expect("no mistake").expect("a question").1, digest, "the same client");
        for other in [
            [("authorization", "Basic y"), ("cookie", "session=s")],
            [("authorization", "Basic x"), ("cookie", "session=t")],
            [("x-app", "Basic x"), ("cookie", "session=s")],
        ] {
            assert_ne!(ask(&other).expect("no mistake").expect("a question").1, digest, "{other:?}");
        }
    }

    #[test]
    fn a_request_without_them_is_not_asked_for() {
        for none in
            [&[][..], &[("cookie", "a=b; sessions=x; session=")], &[("x-other", "x")], &[("x-app", "")]]
        {
            assert!(ask(none).expect("no mistake").is_none(), "{none:?}");
        }
    }

    #[test]
    fn values_that_are_too_long_are_refused() {
        let ask = |length| ask(&[("x-app", &"x".repeat(length))]);
        assert!(ask(MAX_SHOWN_BYTES).expect("no mistake").is_some());
        assert!(matches!(ask(MAX_SHOWN_BYTES + 1), Err(Unusable::TooLong)));
    }

    #[test]
    fn two_different_values_are_refused() {
        for twice in [
            [("cookie", "session=a; session=b"), ("x", "y")],
            [("cookie", "session=a"), ("cookie", "session=b")],
            [("x-app", "a"), ("x-app", "b")],
        ] {
            assert!(matches!(ask(&twice), Err(Unusable::Ambiguous(_))), "{twice:?}");
        }
        assert!(ask(&[("cookie", "session=a; session=a")]).expect("no mistake").is_some());
    }
}
