//! The frames that a server sends to a reader, the same on every transport.

use std::{borrow::Cow, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::cli::remote::Trouble;

#[derive(Debug)]
pub enum Frame {
    /// The connection is open. A poll does not say where reading began.
    Open {
        cursor: Option<String>,
        heartbeat: Duration,
    },
    Message(Message),
    Gap(Gap),
    Cursor(String),
    Closing {
        why: String,
        cursor: Option<String>,
        pause: Option<Duration>,
    },
}

#[derive(Debug)]
pub struct Message {
    /// An ephemeral message has no id.
    pub id: Option<String>,
    /// The bytes that were published.
    pub payload: Vec<u8>,
    /// The message with all its fields, as one line of JSON.
    pub envelope: Bytes,
}

#[derive(Debug, Deserialize)]
pub struct Gap {
    pub topic: String,
    pub after: String,
    pub next: Option<String>,
    pub cursor: String,
    pub reason: String,
}

/// Every field that a frame of any type may have.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    encoding: Option<Cow<'a, str>>,
    cursor: Option<String>,
    heartbeat_ms: Option<u64>,
    code: Option<String>,
    detail: Option<String>,
    retry_ms: Option<u64>,
}

/// `null` is data too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Frame {
    /// Reads a frame of JSON. A frame of an unknown type is none.
    pub fn parse(json: Bytes) -> Result<Option<Self>, Trouble> {
        let fields: Fields<'_> = serde_json::from_slice(&json).map_err(not_ours)?;
        let cursor = || fields.cursor.clone().ok_or_else(|| not_ours("a frame without its cursor"));
        Ok(Some(match &*fields.kind {
            "message" => {
                let payload = payload(fields.data, fields.encoding.as_deref())?;
                Self::Message(Message { id: fields.id, payload, envelope: json })
            }
            "open" => Self::Open {
                cursor: Some(cursor()?),
                heartbeat: Duration::from_millis(fields.heartbeat_ms.unwrap_or_default()),
            },
            "gap" => Self::Gap(serde_json::from_slice(&json).map_err(not_ours)?),
            "cursor" => Self::Cursor(cursor()?),
            "closing" => Self::Closing {
                why: format!(
                    "the server closes the connection: {}",
                    fields.code.as_deref().unwrap_or("no reason given")
                ),
                cursor: fields.cursor,
                pause: fields.retry_ms.map(Duration::from_millis),
            },
            // A WebSocket that refuses the request sends this before it closes.
            "error" => {
                let word = |word: Option<String>| word.unwrap_or_default();
                return Err(Trouble::Refused(format!("{}: {}", word(fields.code), word(fields.detail))));
            }
            _ => return Ok(None),
        }))
    }

    /// Reads a binary frame: an envelope, a line feed, and the bytes of the message.
    pub fn parse_binary(frame: &[u8]) -> Result<Option<Self>, Trouble> {
        let end =
            memchr::memchr(b'\n', frame).ok_or_else(|| not_ours("a binary frame without an envelope"))?;
        let (envelope, payload) = (&frame[..end], &frame[end + 1..]);
        let fields: Fields<'_> = serde_json::from_slice(envelope).map_err(not_ours)?;
        let id = fields.id;
        // The envelope as the other transports have it.
        let mut value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(envelope).map_err(not_ours)?;
        value.insert("encoding".into(), "base64".into());
        value.insert("data".into(), BASE64.encode(payload).into());
        let envelope = serde_json::to_vec(&value).expect("a value serializes").into();
        Ok(Some(Self::Message(Message { id, payload: payload.to_vec(), envelope })))
    }
}

/// The payload: text without its quotes and escapes, bytes as they are, other JSON as it was published.
fn payload(data: Option<&RawValue>, encoding: Option<&str>) -> Result<Vec<u8>, Trouble> {
    let data = data.ok_or_else(|| not_ours("a message without data"))?.get();
    if !data.starts_with('"') {
        return Ok(data.into());
    }
    let text: Cow<'_, str> = serde_json::from_str(data).map_err(not_ours)?;
    match encoding {
        Some("base64") => BASE64.decode(&*text).map_err(not_ours),
        _ => Ok(text.into_owned().into_bytes()),
    }
}

/// The peer is not Rejoin, or speaks another version: trying again would not help.
pub fn not_ours(error: impl std::fmt::Display) -> Trouble {
    Trouble::Refused(format!("the server does not speak Rejoin's protocol: {error}"))
}
