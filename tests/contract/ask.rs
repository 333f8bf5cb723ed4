//! One request and its answer, through `reqwest`, and the requests that nearly every test makes.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;

use crate::support::{Server, http_client};

/// Every awaited event comes at once, or a little later on a busy machine. This turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits the future.
///
/// # Panics
/// If it does not resolve in time.
pub async fn within<T>(what: impl Debug, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("it did not come within {PATIENCE:?}: {what:?}"),
    }
}

/// A client with its own pool, because a pool must not outlive its runtime.
pub fn client() -> Client {
    http_client().http1_only().build().expect("a client without options that can fail")
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a body of UTF-8")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header, or an empty string.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of visible ASCII"))
    }

    /// Asserts that this is a problem with this status and code, and returns it.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert!(problem["detail"].is_string(), "{problem}");
        problem
    }

    /// Asserts success, and returns the id of the message.
    #[track_caller]
    pub fn id(&self) -> String {
        assert!(matches!(self.status, 200 | 201), "{self:?}");
        text(&self.json()["id"])
    }
}

/// Sends a [`RequestBuilder`].
pub trait Ask {
    /// Sends the request and reads the whole answer.
    async fn answer(self) -> Answer;
}

impl Ask for RequestBuilder {
    async fn answer(self) -> Answer {
        let request = self.build().expect("a request that can be sent");
        let what = format!("{} {}", request.method(), request.url());
        let answer = async {
            let response = client().execute(request).await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok(Answer { status, headers, body: response.bytes().await? })
        };
        within(&what, answer).await.unwrap_or_else(|error: reqwest::Error| panic!("{what}: {error:?}"))
    }
}

pub fn request(server: &Server, method: Method, path: &str) -> RequestBuilder {
    client().request(method, server.http(path))
}

pub fn get(server: &Server, path: &str) -> RequestBuilder {
    request(server, Method::GET, path)
}

pub fn post(server: &Server, path: &str) -> RequestBuilder {
    request(server, Method::POST, path)
}

/// `/topics/{topic}`, percent-encoded.
pub fn topic_path(topic: &str) -> String {
    format!("/topics/{}", utf8_percent_encode(topic, NON_ALPHANUMERIC))
}

/// A path with a query, percent-encoded.
pub fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    format!("{path}?{}", form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish())
}

/// Publishes a text, and returns its id.
pub async fn publish(server: &Server, topic: &str, text: impl Into<String>) -> String {
    publish_as(server, topic, "text/plain", text.into()).await
}

pub async fn publish_as(
    server: &Server,
    topic: &str,
    content_type: &str,
    payload: impl Into<reqwest::Body>,
) -> String {
    let request = post(server, &topic_path(topic)).header("content-type", content_type).body(payload);
    let answer = request.answer().await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.id()
}

/// Publishes the numbers of a range as texts, and returns their ids.
pub async fn publish_all(
    server: &Server,
    topic: &str,
    numbers: std::ops::RangeInclusive<u32>,
) -> Vec<String> {
    let items: Vec<_> = numbers
        .map(|number| serde_json::json!({"topic": topic, "data": number.to_string(), "content_type": "text/plain"}))
        .collect();
    let answer = post(server, "/publish").json(&items).answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json().as_array().expect("an array").iter().map(|receipt| text(&receipt["id"])).collect()
}

/// Deletes the retained messages of a topic.
pub async fn delete_topic(server: &Server, topic: &str) {
    let answer = request(server, Method::DELETE, &topic_path(topic)).answer().await;
    assert_eq!((answer.status, answer.text()), (204, ""));
}

/// The current cursor: that of a poll without a start.
pub async fn now(server: &Server) -> String {
    text(&get(server, "/topics/nobody?wait=0").answer().await.json()["cursor"])
}

/// The data of the retained messages of a topic.
pub async fn retained(server: &Server, topic: &str) -> Vec<Value> {
    let path = format!("{}?after=0&wait=0&limit=1000", topic_path(topic));
    let answer = get(server, &path).answer().await;
    let page = answer.json();
    let messages = page["messages"].as_array().unwrap_or_else(|| panic!("{answer:?}"));
    messages.iter().map(|message| message["data"].clone()).collect()
}

/// The envelope of the only retained message of a topic.
pub async fn envelope_in(server: &Server, topic: &str) -> Value {
    let path = format!("{}?after=0&wait=0", topic_path(topic));
    let page = get(server, &path).answer().await.json();
    let messages = page["messages"].as_array().expect("messages");
    assert_eq!(messages.len(), 1, "{page}");
    messages[0].clone()
}

/// Resolves once this many subscriptions and held polls are served.
pub async fn until_served(server: &Server, connections: u64) {
    within(format!("{connections} connections"), async {
        while get(server, "/stats").answer().await.json()["connections"] != connections {}
    })
    .await;
}

/// The string in a JSON value.
#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

/// The number in an id or a cursor. Clients must not look into one; a test of the contract may.
#[track_caller]
pub fn number(id: &str) -> u64 {
    id.parse().unwrap_or_else(|_| panic!("not an id: {id:?}"))
}
