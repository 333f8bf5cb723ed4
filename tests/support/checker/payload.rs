//! Published payloads: ten bytes to some twenty thousand, of JSON, text with line feeds, and arbitrary bytes.

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::{RngExt, rngs::StdRng};
use serde_json::{Map, Value, json};

use crate::support::frame::{Body, Kind};

pub struct Payload {
    kind: Kind,
    bytes: Vec<u8>,
    pub event: Option<String>,
}

/// Words that confuse a careless parser: field names and separators of the transports, characters of one to
/// four bytes, and the beginning of a frame.
const WORDS: [&str; 10] =
    ["data:", "id: 7", "\n", "\n\n", "größe", "🚲", "{\"type\":\"gap\"}", "event: rejoin.gap", " ", "plain"];

impl Payload {
    pub fn draw(topic: &str, number: u64, rng: &mut StdRng) -> Self {
        let size = draw_size(rng);
        let label = format!("{topic} {number} ");
        let (kind, bytes) = match rng.random_range(0..10) {
            0..4 => (Kind::Text, text(&label, size, rng).into_bytes()),
            4..8 => (Kind::Json, json_object(topic, number, size, rng).into_bytes()),
            _ => {
                let noise = (0..size).map(|_| rng.random::<u8>());
                // No UTF-8 text contains 0xff, so this payload cannot be taken for text.
                (Kind::Binary, label.bytes().chain([0xff]).chain(noise).collect())
            }
        };
        let event = rng.random_bool(0.3).then(|| ["paid", "moved", "größer"][number as usize % 3].to_owned());
        Self { kind, bytes, event }
    }

    pub fn body(&self) -> Body {
        Body::new(self.kind, &self.bytes)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    pub fn content_type(&self) -> &'static str {
        match self.kind {
            Kind::Json => "application/json",
            Kind::Text => "text/plain",
            Kind::Binary | Kind::Raw => "application/octet-stream",
        }
    }

    /// The fields of an item of `POST /publish`, and of the command `publish`.
    pub fn item(&self) -> Map<String, Value> {
        let text = || str::from_utf8(&self.bytes).expect("JSON and text are UTF-8");
        let mut item = Map::new();
        match self.kind {
            Kind::Json => {
                item.insert("data".to_owned(), serde_json::from_str(text()).expect("JSON of our own making"));
            }
            Kind::Text => {
                item.insert("data".to_owned(), json!(text()));
                item.insert("content_type".to_owned(), json!(self.content_type()));
            }
            Kind::Binary | Kind::Raw => {
                item.insert("data".to_owned(), json!(STANDARD.encode(&self.bytes)));
                item.insert("content_type".to_owned(), json!(self.content_type()));
                item.insert("encoding".to_owned(), json!("base64"));
            }
        }
        if let Some(event) = &self.event {
            item.insert("event".to_owned(), json!(event));
        }
        item
    }

    /// The JSON without white space between its tokens, because a larger JSON document does not keep it.
    pub fn compact(mut self) -> Self {
        if self.kind == Kind::Json {
            let value: Value = serde_json::from_slice(&self.bytes).expect("JSON of our own making");
            self.bytes = value.to_string().into_bytes();
        }
        self
    }
}

/// Mostly small sizes, like real messages, and sometimes large enough for several reads.
fn draw_size(rng: &mut StdRng) -> usize {
    match rng.random_range(0..20) {
        0..12 => rng.random_range(0..100),
        12..18 => rng.random_range(100..2_000),
        _ => rng.random_range(2_000..20_000),
    }
}

fn text(label: &str, size: usize, rng: &mut StdRng) -> String {
    let mut text = label.to_owned();
    while text.len() < size.max(10) {
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text
}

fn json_object(topic: &str, number: u64, size: usize, rng: &mut StdRng) -> String {
    let value = json!({"number": number, "topic": topic, "text": text("", size, rng)});
    match rng.random_bool(0.3) {
        true => serde_json::to_string_pretty(&value).expect("a JSON value"),
        false => value.to_string(),
    }
}
