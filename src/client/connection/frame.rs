//! The frames that a server sends to a reader, the same on every transport.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::client::ClientError;

#[derive(Debug)]
pub enum Frame {
    /// The connection is open. A poll does not say where reading began.
    Open {
        cursor: Option<String>,
        heartbeat: Duration,
        /// The list of the subject, if it is read.
        mine: Vec<String>,
    },
    Message(Message),
    /// The cursor does not move if messages before it are still to come.
    Gap {
        gap: Gap,
        cursor: Option<String>,
    },
    Cursor(String),
    /// The backend has added this topic or pattern to the connection, or to the list of its subject.
    Added(String),
    /// The backend has removed this topic or pattern from one of them.
    Removed(String),
    /// The server is about to end the connection.
    Closing {
        error: ClientError,
        cursor: Option<String>,
    },
}

/// A message that was published.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Message {
    /// The topic to which it was published.
    pub topic: String,
    /// The id, which is also the cursor. An ephemeral message has none.
    pub id: Option<String>,
    /// The event type, if the publisher gave one.
    pub event: Option<String>,
    /// The user who published it, if the server names it.
    pub by: Option<String>,
    /// The media type, if it is neither `application/json` nor `text/plain`.
    pub content_type: Option<String>,
    /// The bytes that were published, if they were text or neither text nor JSON. JSON that is a string is here
    /// without its quotes and escapes; other JSON is equal as JSON, but line breaks are spaces here, and U+0085,
    /// U+2028 and U+2029 are escaped.
    pub payload: Vec<u8>,
    /// The envelope: the message with all its fields, as one line of JSON.
    pub envelope: Bytes,
    /// True for a message of a topic that the backend has added with a start: it does not move the cursor.
    pub is_replay: bool,
}

/// The notice that messages are gone, or may be gone: load the state again from its source.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// The topic, or the pattern if the topics are not known or too many. `$mine` stands for all topics of the list that
    /// [`subscribe_mine`](crate::client::Client::subscribe_mine) reads.
    pub topic: String,
    /// The cursor after which messages are gone.
    pub after: String,
    /// The id of the next message that is retained, if there is any.
    pub next: Option<String>,
    /// The server's cursor at the gap. To resume, take that of the subscription: a poll tells its gaps first.
    pub cursor: String,
    /// The reason in the server's word: `retention`, `deleted`, `restarted`, `failover`, `unknown_cursor`.
    pub reason: String,
}

/// In words, such as `messages of orders.1 after 1763640000123456 are gone (restarted)`.
impl Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, after, next, reason, .. } = self;
        write!(f, "messages of {topic} after {after} ")?;
        match next {
            Some(next) => write!(f, "and before {next} are gone ({reason})"),
            None => write!(f, "are gone ({reason})"),
        }
    }
}

/// Every field that a frame of any type may have.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    topic: Option<String>,
    id: Option<String>,
    event: Option<String>,
    by: Option<String>,
    content_type: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    encoding: Option<Cow<'a, str>>,
    cursor: Option<String>,
    heartbeat_ms: Option<u64>,
    code: Option<String>,
    detail: Option<String>,
    retry_ms: Option<u64>,
    #[serde(default)]
    replay: bool,
    #[serde(default)]
    mine: Vec<String>,
}

/// `null` is data too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Frame {
    /// Reads a frame of JSON. A frame of an unknown type is none.
    pub fn parse(json: Bytes) -> Result<Option<Self>, ClientError> {
        let fields: Fields<'_> = serde_json::from_slice(&json).map_err(ClientError::not_ours)?;
        let cursor =
            || fields.cursor.clone().ok_or_else(|| ClientError::not_ours("a frame without its cursor"));
        let topic = || fields.topic.clone().ok_or_else(|| ClientError::not_ours("a frame without its topic"));
        Ok(Some(match &*fields.kind {
            "message" => {
                let payload = payload(fields.data, fields.encoding.as_deref())?;
                Self::Message(fields.message(payload, json.clone())?)
            }
            "open" => Self::Open {
                cursor: Some(cursor()?),
                heartbeat: Duration::from_millis(fields.heartbeat_ms.unwrap_or_default()),
                mine: fields.mine,
            },
            "gap" => {
                let gap: Gap = serde_json::from_slice(&json).map_err(ClientError::not_ours)?;
                Self::Gap { cursor: Some(gap.cursor.clone()).filter(|_| !fields.replay), gap }
            }
            "cursor" => Self::Cursor(cursor()?),
            "subscribed" => Self::Added(topic()?),
            "unsubscribed" => Self::Removed(topic()?),
            "closing" => Self::Closing {
                error: closed(fields.code, fields.detail, fields.retry_ms),
                cursor: fields.cursor,
            },
            // A WebSocket that refuses the request sends this before it closes.
            "error" => {
                let [code, detail] = [fields.code, fields.detail].map(Option::unwrap_or_default);
                return Err(ClientError::Refused { code, detail });
            }
            _ => return Ok(None),
        }))
    }

    /// Reads a binary frame: an envelope, a line feed, and the bytes of the message.
    pub fn parse_binary(frame: &[u8]) -> Result<Option<Self>, ClientError> {
        let end = memchr::memchr(b'\n', frame)
            .ok_or_else(|| ClientError::not_ours("a binary frame without an envelope"))?;
        let (envelope, payload) = (&frame[..end], &frame[end + 1..]);
        let fields: Fields<'_> = serde_json::from_slice(envelope).map_err(ClientError::not_ours)?;
        // The envelope as the other transports have it.
        let mut value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(envelope).map_err(ClientError::not_ours)?;
        value.insert("encoding".into(), "base64".into());
        value.insert("data".into(), BASE64.encode(payload).into());
        let envelope = serde_json::to_vec(&value).expect("a value serializes").into();
        Ok(Some(Self::Message(fields.message(payload.to_vec(), envelope)?)))
    }
}

impl Fields<'_> {
    fn message(self, payload: Vec<u8>, envelope: Bytes) -> Result<Message, ClientError> {
        let Self { topic, id, event, by, content_type, replay: is_replay, .. } = self;
        let topic = topic.ok_or_else(|| ClientError::not_ours("a message without its topic"))?;
        Ok(Message { topic, id, event, by, content_type, payload, envelope, is_replay })
    }
}

/// The end of a connection. One that the backend has ended does not come back by itself.
fn closed(code: Option<String>, detail: Option<String>, retry_ms: Option<u64>) -> ClientError {
    let detail = detail.or_else(|| code.clone()).unwrap_or_else(|| "no reason given".to_owned());
    match code {
        Some(code) if code == "disconnected" => ClientError::Refused { code, detail },
        _ => ClientError::Lost {
            why: format!("the server closes the connection: {detail}"),
            retry_after: retry_ms.map(Duration::from_millis),
        },
    }
}

/// The payload: text without its quotes and escapes, bytes as they are, other JSON as it was published.
fn payload(data: Option<&RawValue>, encoding: Option<&str>) -> Result<Vec<u8>, ClientError> {
    let data = data.ok_or_else(|| ClientError::not_ours("a message without data"))?.get();
    if !data.starts_with('"') {
        return Ok(data.into());
    }
    let text: Cow<'_, str> = serde_json::from_str(data).map_err(ClientError::not_ours)?;
    match encoding {
        Some("base64") => BASE64.decode(&*text).map_err(ClientError::not_ours),
        _ => Ok(text.into_owned().into_bytes()),
    }
}
