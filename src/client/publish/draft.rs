//! A message to publish, encoded as an element of `POST /publish` so that a reader gets the same bytes, or the
//! same JSON.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use serde_json::value::RawValue;

/// A message that is not published yet.
#[derive(Clone, Debug)]
pub struct Draft {
    topic: String,
    payload: Vec<u8>,
    event: Option<String>,
    content_type: Option<String>,
    key: Key,
    is_ephemeral: bool,
}

#[derive(Clone, Debug)]
enum Key {
    /// The client makes one.
    Own,
    Given(String),
    None,
}

/// The element of a request.
#[derive(Serialize)]
struct Item<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ephemeral: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

impl Draft {
    /// A message with these bytes to this topic. It is JSON if it parses, text if it is UTF-8, and else
    /// `application/octet-stream`.
    ///
    /// A reader gets exactly these bytes, with one exception: JSON in an envelope is equal as JSON, but a line feed
    /// is a space there, and U+0085, U+2028 and U+2029 are escaped. A [`Subscription`](crate::client::Subscription)
    /// reads envelopes.
    pub fn new(topic: impl Into<String>, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            event: None,
            content_type: None,
            key: Key::Own,
            is_ephemeral: false,
        }
    }

    /// Sets the event type that subscribers see.
    pub fn with_event(mut self, event: impl Into<String>) -> Self {
        self.event = Some(event.into());
        self
    }

    /// Sets the media type, such as `image/png`.
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Sets the idempotency key, for example the number of an order: 1 to 255 visible ASCII characters. Within
    /// 5 minutes the server stores one message of a topic under it, also if two programs publish it. Without
    /// this the client makes a key of its own.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Key::Given(key.into());
        self
    }

    /// Sends the message without an idempotency key. That saves the server some memory, but whenever an outcome
    /// is unknown, the message may be stored twice.
    pub fn without_key(mut self) -> Self {
        self.key = Key::None;
        self
    }

    /// Makes the message ephemeral: it goes to the subscriptions that are caught up, and the server does not
    /// retain it. It has no id and no key of the client's own, so whenever an outcome is unknown, it may be sent
    /// twice.
    pub fn ephemeral(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    pub(in crate::client) fn is_ephemeral(&self) -> bool {
        self.is_ephemeral
    }

    pub(super) fn has_key(&self) -> bool {
        match self.key {
            Key::Own => !self.is_ephemeral,
            Key::Given(_) => true,
            Key::None => false,
        }
    }

    /// The message as one line of a request. Without a key of its own it gets `key`.
    pub(super) fn line(&self, key: impl FnOnce() -> String) -> Vec<u8> {
        let made;
        let idempotency_key = match &self.key {
            Key::Own if self.is_ephemeral => None,
            Key::Own => {
                made = key();
                Some(&*made)
            }
            Key::Given(key) => Some(&**key),
            Key::None => None,
        };
        let (data, content_type) = self.data();
        let encoding = matches!(data, Data::Base64(_)).then_some("base64");
        let item = Item {
            topic: &self.topic,
            idempotency_key,
            event: self.event.as_deref(),
            data,
            content_type,
            encoding,
            ephemeral: self.is_ephemeral,
        };
        let mut line = serde_json::to_vec(&item).expect("strings serialize");
        line.push(b'\n');
        line
    }

    /// Detects in the same way as the server if the bytes are JSON, text, or neither.
    fn data(&self) -> (Data<'_>, Option<&str>) {
        let base64 = || Data::Base64(BASE64.encode(&self.payload));
        if let Some(content_type) = &self.content_type {
            return (base64(), Some(content_type));
        }
        let Ok(text) = std::str::from_utf8(&self.payload) else {
            return (base64(), Some("application/octet-stream"));
        };
        match json(text) {
            // JSON with line feeds, which an element on one line cannot contain.
            Some(_) if text.contains('\n') => (base64(), Some("application/json")),
            Some(json) => (Data::Json(json), None),
            None => (Data::Text(text), Some("text/plain")),
        }
    }
}

/// The text, if it is JSON that a reader gets back unchanged. That excludes strings, which would lose their
/// quotes, and JSON with white space around it or with a carriage return.
fn json(text: &str) -> Option<&RawValue> {
    let json: &RawValue = serde_json::from_str(text).ok()?;
    let is_exact = json.get().len() == text.len() && !text.starts_with('"') && !text.contains('\r');
    is_exact.then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> String {
        let line = String::from_utf8(Draft::new("t", bytes).line(|| "k".into())).expect("UTF-8");
        line.trim_end().replace(r#"{"topic":"t","idempotency_key":"k","data":"#, "")
    }

    #[test]
    fn json_stays_json_if_a_reader_gets_it_back_unchanged() {
        assert_eq!(written(br#"{"a": 1.50}"#), r#"{"a": 1.50}}"#);
        assert_eq!(written(b"1e999"), "1e999}");
        assert_eq!(written(b"{\n}"), r#""ewp9","content_type":"application/json","encoding":"base64"}"#);
        for text in [r#""quoted""#, " 1", "1 ", "1\r", "[1,\r2]", "", "{", "hello"] {
            let data = serde_json::to_string(text).expect("a string serializes");
            assert_eq!(written(text.as_bytes()), format!(r#"{data},"content_type":"text/plain"}}"#));
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_become_base64() {
        let expected = r#""/w==","content_type":"application/octet-stream","encoding":"base64"}"#;
        assert_eq!(written(b"\xff"), expected);
    }

    #[test]
    fn a_draft_carries_its_options() {
        let draft = Draft::new("t", "x").with_event("e").with_content_type("text/css").with_key("own");
        let line = String::from_utf8(draft.line(|| unreachable!("it has a key"))).expect("UTF-8");
        let expected = r#"{"topic":"t","idempotency_key":"own","event":"e","data":"eA==","content_type":"text/css","encoding":"base64"}"#;
        assert_eq!(line.trim_end(), expected);
        let line = Draft::new("t", "1").without_key().line(|| unreachable!("it has none"));
        assert_eq!(line, b"{\"topic\":\"t\",\"data\":1}\n");
        let line = Draft::new("t", "1").ephemeral().line(|| unreachable!("it has none"));
        assert_eq!(line, b"{\"topic\":\"t\",\"data\":1,\"ephemeral\":true}\n");
    }
}
