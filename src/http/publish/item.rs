//! A message to publish as JSON: an element of `POST /publish`, or the WebSocket's `publish`.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{check_ephemeral, event, name, publishable, publisher};
use crate::{
    http::{App, access::Access, media, problem::Problem},
    log::{Append, Appended},
    message::{Draft, Id, Payload, Topic},
};

/// How many topics one element may be published to.
const MAX_TOPICS: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item<'a> {
    topic: Option<String>,
    topics: Option<Vec<String>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    event: Option<String>,
    content_type: Option<String>,
    encoding: Option<String>,
    idempotency_key: Option<String>,
    if_match: Option<String>,
    exclude: Option<String>,
    by: Option<String>,
    #[serde(default)]
    ephemeral: bool,
    /// Fields that only a WebSocket command has.
    #[serde(rename = "type")]
    _type: Option<IgnoredAny>,
    #[serde(rename = "ref")]
    _reference: Option<IgnoredAny>,
}

/// The outcome of an element.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Published {
    One {
        topic: Topic,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
    },
    Many {
        ids: BTreeMap<Topic, Option<Id>>,
    },
    /// Some topics have stored the message, then one refused it.
    Partly {
        #[serde(flatten)]
        problem: Problem,
        ids: BTreeMap<Topic, Option<Id>>,
    },
}

/// `null` is data too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Published {
    /// How many messages were published.
    pub fn count(&self) -> usize {
        match self {
            Self::One { .. } => 1,
            Self::Many { ids } | Self::Partly { ids, .. } => ids.len(),
        }
    }
}

impl Item<'_> {
    /// Publishes to the topic, or to each of the topics in turn.
    ///
    /// # Cancel safety
    /// If this is dropped before it resolves, none, some or all topics may have the message.
    pub async fn publish(self, app: &App, access: &Access) -> Result<Published, Problem> {
        let (topics, is_one) = match (&self.topic, &self.topics) {
            (Some(topic), None) => (vec![publishable(topic)?], true),
            (None, Some(topics)) if topics.len() > MAX_TOPICS => {
                return Err(Problem::bad_request(format!(
                    "topics: name up to {MAX_TOPICS}, and send the others in the next element"
                )));
            }
            (None, Some(topics)) if !topics.is_empty() => {
                let topics: Result<Vec<_>, _> = topics.iter().map(|topic| publishable(topic)).collect();
                (topics?, false)
            }
            _ => return Err(Problem::bad_request("topic: name one topic, or at least one in topics")),
        };
        topics.iter().try_for_each(|topic| access.publish(topic))?;
        let by = access.author(self.by.as_deref().map(publisher).transpose()?)?;
        let payload = self.payload(app.config.max_payload)?;
        let event = self.event.as_deref().map(event).transpose()?;
        let exclude = self.exclude.as_deref().map(|text| name("exclude", text)).transpose()?;
        let key = self.idempotency_key.as_deref().map(|text| name("idempotency_key", text)).transpose()?;
        let if_match = self.if_match.as_deref().map(if_match).transpose()?;
        check_ephemeral(self.ephemeral, key.is_some(), if_match.is_some())?;

        let mut ids = BTreeMap::new();
        for topic in topics {
            // A topic that is named twice gets the message once, because the answer has one id for it.
            if ids.contains_key(&topic) {
                continue;
            }
            let (event, payload) = (event.clone(), payload.clone());
            let draft =
                Draft { topic: topic.clone(), event, payload, exclude: exclude.clone(), by: by.clone() };
            let append = Append { draft, idempotency_key: key.clone(), if_match };
            match app.publish(access, append, self.ephemeral).await.map(|appended| appended.map(Appended::id))
            {
                Ok(id) if is_one => return Ok(Published::One { topic, id }),
                Ok(id) => {
                    ids.insert(topic, id);
                }
                Err(problem) if ids.is_empty() => return Err(problem),
                Err(problem) => return Ok(Published::Partly { problem, ids }),
            }
        }
        Ok(Published::Many { ids })
    }

    fn payload(&self, max_bytes: usize) -> Result<Payload, Problem> {
        let data = self.data.ok_or_else(|| Problem::bad_request("data: missing; give the payload"))?.get();
        let content_type = self.content_type.as_deref();
        let essence = content_type.map(|declared| declared.split(';').next().unwrap_or_default().trim());
        let is_json = essence.is_none_or(|essence| {
            essence.eq_ignore_ascii_case(media::JSON) || essence.to_ascii_lowercase().ends_with("+json")
        });
        let string = || {
            serde_json::from_str::<String>(data).map_err(|_| {
                Problem::bad_request(
                    "data: expected a JSON string for this content type; for JSON leave content_type out",
                )
            })
        };
        let payload = match self.encoding.as_deref() {
            Some("base64") => {
                let bytes = BASE64.decode(string()?).map_err(|_| {
                    Problem::bad_request("data: not valid base64 (with + and /, and = at its end)")
                })?;
                Payload::declared(&bytes, Some(content_type.unwrap_or("application/octet-stream")))
            }
            Some(_) => {
                return Err(Problem::bad_request(
                    "encoding: expected base64; for text and JSON leave it out",
                ));
            }
            None if is_json => Payload::declared(data.as_bytes(), content_type.or(Some(media::JSON))),
            None => Payload::declared(string()?.as_bytes(), content_type),
        };
        let payload = payload.map_err(|error| Problem::bad_request(error.to_string()))?;
        if payload.bytes.len() > max_bytes { Err(Problem::too_large(max_bytes)) } else { Ok(payload) }
    }
}

/// An id, with or without the quotes and the mark of weakness that an ETag has.
fn if_match(text: &str) -> Result<Id, Problem> {
    text.strip_prefix("W/")
        .unwrap_or(text)
        .trim_matches('"')
        .parse()
        .map_err(|_| Problem::bad_request("if_match: expected an id, for example \"1763640000123456\""))
}
