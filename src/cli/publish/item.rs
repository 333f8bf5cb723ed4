//! A message as an element of `POST /publish`, encoded so that a reader gets exactly the same bytes.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use serde_json::value::RawValue;

#[derive(Serialize)]
pub struct Item<'a> {
    topic: &'a str,
    idempotency_key: &'a str,
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

impl<'a> Item<'a> {
    /// Detects in the same way as the server if the bytes are JSON, text, or neither.
    pub fn new(topic: &'a str, idempotency_key: &'a str, bytes: &'a [u8]) -> Self {
        let item =
            |data, content_type, encoding| Self { topic, idempotency_key, data, content_type, encoding };
        let base64 =
            |content_type| item(Data::Base64(BASE64.encode(bytes)), Some(content_type), Some("base64"));
        let Ok(text) = std::str::from_utf8(bytes) else { return base64("application/octet-stream") };
        match json(text) {
            // JSON with line feeds, which an element on one line cannot contain.
            Some(_) if text.contains('\n') => base64("application/json"),
            Some(json) => item(Data::Json(json), None, None),
            None => item(Data::Text(text), Some("text/plain"), None),
        }
    }

    pub fn write_line(&self, body: &mut Vec<u8>) {
        serde_json::to_writer(&mut *body, self).expect("writing to memory cannot fail");
        body.push(b'\n');
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
        let mut body = Vec::new();
        Item::new("t", "k", bytes).write_line(&mut body);
        let line = String::from_utf8(body).expect("UTF-8");
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
}
