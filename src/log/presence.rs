//! Presence: the subjects that connections hold in topics, and the messages that tell their changes.
//!
//! The log holds the truth. Each process tells it what its own connections hold.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{LogError, PRESENCE};
use crate::message::{Draft, Id, Payload, PayloadKind, Topic};

/// How many members one topic may have.
pub const MAX_MEMBERS: usize = 100_000;
/// How many holds, or members whose time is over, one step takes.
pub const STEP: usize = 64;

/// The connections of this process that hold a subject present in a topic.
#[derive(Clone, Debug)]
pub struct Hold {
    pub topic: Topic,
    pub sub: Arc<str>,
    /// With 0 the process holds the subject no more.
    pub connections: u32,
    /// JSON that is told with the subject. It counts at the join.
    pub info: Option<Arc<str>>,
}

/// Holds that are told together.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    pub holds: Vec<Hold>,
    /// The holds are all that this process holds in this part of the order of topics and subjects.
    pub part: Option<Part>,
    /// How long a member without a connection stays one.
    pub grace: Duration,
}

/// A part of the order of topics and subjects. Its beginning is not in it, and its end is.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub after: Option<(Topic, Arc<str>)>,
    pub to: Option<(Topic, Arc<str>)>,
}

/// The outcome of holds.
#[derive(Clone, Debug, Default)]
pub struct NotedHolds {
    /// One for each hold.
    pub outcomes: Vec<Result<(), HoldError>>,
    /// The holds of this process in the part that the log knows, and that the process has not named.
    pub unnamed: Vec<(Topic, Arc<str>)>,
    /// The number of the record that the log keeps of this process, if the log may forget it. A new number says that it may
    /// have forgotten.
    pub record: Option<u64>,
    pub joined: u64,
    pub left: u64,
    /// More members may have to leave now.
    pub is_more: bool,
}

/// Why a subject is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    #[error("the topic has too many members")]
    TooManyMembers,
    #[error("too many topics are remembered")]
    TooManyTopics,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Some members of one topic, in the order of their subjects.
#[derive(Clone, Debug)]
pub struct Members {
    /// The changes after this id are not in it.
    pub cursor: Id,
    /// How many members the topic has in all.
    pub count: usize,
    pub members: Vec<Member>,
}

/// A subject that is present in a topic.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    pub sub: Box<str>,
    pub connections: u64,
    /// The id of the message that told the join.
    pub since: Id,
    #[serde(serialize_with = "spliced")]
    pub info: Option<Arc<str>>,
}

/// JSON as it was given. `null` if there is none, or if it cannot be read.
fn spliced<S: serde::Serializer>(info: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    let raw = info.as_deref().and_then(|info| serde_json::from_str::<&RawValue>(info).ok());
    raw.serialize(to)
}

/// A change of the members of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    Join,
    Leave,
}

impl MemberEvent {
    /// The event of the message that tells it.
    pub fn event(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
        }
    }

    /// The message that tells this change.
    pub fn draft(self, topic: Topic, data: String) -> Draft {
        let payload =
            Payload { kind: PayloadKind::Json, content_type: None, bytes: data.into_bytes().into() };
        Draft { topic, event: Some(self.event().into()), payload, exclude: None, by: None }
    }
}

/// The payload of a change.
pub fn data(sub: &str, info: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Data<'a> {
        sub: &'a str,
        info: Option<&'a RawValue>,
    }
    let info = info.and_then(|info| serde_json::from_str(info).ok());
    serde_json::to_string(&Data { sub, info }).expect("text and JSON serialize")
}

/// The topic of the changes in `topic`. `None` if its name would be too long, or if `topic` is reserved.
pub fn changes_of(topic: &str) -> Option<Topic> {
    let name = format!("{PRESENCE}{topic}");
    if topic.starts_with('$') { None } else { name.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_changes_if_their_topic_has_room_for_its_name() {
        assert_eq!(changes_of("a.b").as_deref(), Some("$presence.a.b"));
        assert!(changes_of(&"x".repeat(245)).is_some());
        assert!(changes_of(&"x".repeat(246)).is_none());
        assert!(changes_of("$sys").is_none());
    }

    #[test]
    fn the_payload_has_the_info_as_it_was_given() {
        assert_eq!(data("a\"b", Some(r#"{"n": 1.0}"#)), r#"{"sub":"a\"b","info":{"n": 1.0}}"#);
        assert_eq!(data("a", None), r#"{"sub":"a","info":null}"#);
    }
}
