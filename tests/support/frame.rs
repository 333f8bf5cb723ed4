//! The frames of a server, read from its JSON: the same on every transport.
//!
//! This reads the contract a second time and shares no code with the server, so that the same mistake would
//! have to be made twice.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash, Hasher},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::value::RawValue;

/// Today a cursor is an id, and an id is a number. Clients must not know this, but a checker may.
pub type Cursor = u64;

#[derive(Debug)]
pub enum Frame {
    Open {
        cursor: Cursor,
    },
    Message(Message),
    Gap(Gap),
    Cursor {
        cursor: Cursor,
    },
    Subscribed(Done),
    Unsubscribed(Done),
    Published(Stored),
    /// The whole answer to one poll.
    Answer(Answer),
    /// `closing` or `error`, unchanged.
    Refusal(String),
}

#[derive(Debug)]
pub struct Message {
    pub topic: String,
    pub id: Cursor,
    pub event: Option<String>,
    pub body: Body,
    pub replay: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Gap {
    pub topic: String,
    #[serde(deserialize_with = "cursor")]
    pub after: Cursor,
    #[serde(deserialize_with = "optional_cursor")]
    pub next: Option<Cursor>,
    #[serde(deserialize_with = "cursor")]
    pub cursor: Cursor,
    pub reason: String,
    #[serde(default)]
    pub replay: bool,
}

#[derive(Debug, Deserialize)]
pub struct Done {
    pub topic: String,
    #[serde(deserialize_with = "cursor")]
    pub cursor: Cursor,
    #[serde(rename = "ref")]
    pub reference: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Stored {
    #[serde(deserialize_with = "cursor")]
    pub id: Cursor,
    #[serde(rename = "ref")]
    pub reference: Option<u64>,
}

#[derive(Debug)]
pub struct Answer {
    pub gaps: Vec<Gap>,
    pub messages: Vec<Message>,
    pub cursor: Cursor,
}

/// The part of a payload that a comparison needs: thousands of payloads are kept until the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub kind: Kind,
    pub length: usize,
    pub beginning: String,
    exact: u64,
    /// A hash with every line feed as a space, as an envelope has it between the tokens of JSON.
    flat: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Json,
    Text,
    Binary,
    /// Raw Server-Sent Events have the payload, and do not say if it is JSON or text.
    Raw,
}

impl Body {
    pub fn new(kind: Kind, bytes: &[u8]) -> Self {
        let flat: Vec<u8> = bytes.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }).collect();
        let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(32)]).into_owned();
        Self { kind, length: bytes.len(), beginning, exact: digest(bytes), flat: digest(&flat) }
    }

    /// True if `received` is what a reader should receive of this published payload.
    pub fn arrived_as(&self, received: &Body) -> bool {
        match (self.kind, received.kind) {
            (Kind::Json, Kind::Json | Kind::Raw) => self.flat == received.flat,
            (Kind::Text, Kind::Text | Kind::Raw) | (Kind::Binary, Kind::Binary) => {
                self.exact == received.exact
            }
            _ => false,
        }
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Frame {
    pub fn parse(json: &str) -> Result<Self, String> {
        let wrong = |error| format!("{error} in {}", excerpt(json));
        let Typed { kind } = serde_json::from_str(json).map_err(wrong)?;
        Ok(match &*kind {
            "message" => Self::Message(Message::parse(json, None)?),
            "gap" => Self::Gap(serde_json::from_str(json).map_err(wrong)?),
            "open" => Self::Open { cursor: serde_json::from_str::<At>(json).map_err(wrong)?.cursor },
            "cursor" => Self::Cursor { cursor: serde_json::from_str::<At>(json).map_err(wrong)?.cursor },
            "subscribed" => Self::Subscribed(serde_json::from_str(json).map_err(wrong)?),
            "unsubscribed" => Self::Unsubscribed(serde_json::from_str(json).map_err(wrong)?),
            "published" => Self::Published(serde_json::from_str(json).map_err(wrong)?),
            "closing" | "error" => Self::Refusal(json.to_owned()),
            other => return Err(format!("a frame of the unknown type {other:?}: {}", excerpt(json))),
        })
    }

    /// A binary WebSocket frame: an envelope, a line feed, the bytes.
    pub fn parse_binary(frame: &[u8]) -> Result<Self, String> {
        let end = frame.iter().position(|&byte| byte == b'\n').ok_or("a binary frame without a line feed")?;
        let envelope = str::from_utf8(&frame[..end]).map_err(|error| error.to_string())?;
        Ok(Self::Message(Message::parse(envelope, Some(&frame[end + 1..]))?))
    }

    pub fn parse_answer(json: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            messages: Vec<&'a RawValue>,
            #[serde(default)]
            gaps: Vec<Gap>,
            #[serde(deserialize_with = "cursor")]
            cursor: Cursor,
        }
        let page: Page =
            serde_json::from_str(json).map_err(|error| format!("{error} in {}", excerpt(json)))?;
        let messages =
            page.messages.iter().map(|raw| Message::parse(raw.get(), None)).collect::<Result<_, _>>()?;
        Ok(Self::Answer(Answer { gaps: page.gaps, messages, cursor: page.cursor }))
    }
}

impl Message {
    fn parse(json: &str, binary: Option<&[u8]>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            topic: String,
            #[serde(deserialize_with = "cursor")]
            id: Cursor,
            event: Option<String>,
            #[serde(borrow)]
            data: Option<&'a RawValue>,
            encoding: Option<String>,
            #[serde(default)]
            replay: bool,
        }
        let wrong = |error: &dyn std::fmt::Display| format!("{error} in {}", excerpt(json));
        let envelope: Envelope = serde_json::from_str(json).map_err(|error| wrong(&error))?;
        let data = envelope.data.map(RawValue::get);
        let body = match (envelope.encoding.as_deref(), data, binary) {
            (Some("binary"), None, Some(bytes)) => Body::new(Kind::Binary, bytes),
            (Some("base64"), Some(data), None) => {
                let text: String = serde_json::from_str(data).map_err(|error| wrong(&error))?;
                Body::new(Kind::Binary, &STANDARD.decode(text).map_err(|error| wrong(&error))?)
            }
            // The checker publishes no bare string as JSON, so a string is text.
            (None, Some(data), None) if data.starts_with('"') => {
                let text: String = serde_json::from_str(data).map_err(|error| wrong(&error))?;
                Body::new(Kind::Text, text.as_bytes())
            }
            (None, Some(data), None) => Body::new(Kind::Json, data.as_bytes()),
            _ => return Err(wrong(&"encoding and data do not go together")),
        };
        let Envelope { topic, id, event, replay, .. } = envelope;
        Ok(Self { topic, id, event, body, replay })
    }
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct At {
    #[serde(deserialize_with = "cursor")]
    cursor: Cursor,
}

fn cursor<'de, D: Deserializer<'de>>(from: D) -> Result<Cursor, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn optional_cursor<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cursor>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

fn excerpt(json: &str) -> Cow<'_, str> {
    match json.char_indices().nth(300) {
        Some((end, _)) => format!("{}… ({} bytes)", &json[..end], json.len()).into(),
        None => json.into(),
    }
}
