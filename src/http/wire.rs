//! The frames on the wire: the control frames, and how each transport wraps them and the envelope.

mod envelope;
mod frames;
mod framing;

use std::io::Write;

use serde::Serialize;

#[cfg(feature = "echo")]
pub use self::frames::{bytes_frame, deflated, text_frame};
pub use self::{
    envelope::{envelope, gzipped_envelope},
    frames::{control_frame, deflated_frame, message_frame, replay_frame, replay_gap_frame},
    framing::{Framing, sse_retry},
};
use crate::{
    broker::GapNotice,
    http::{escape, problem::Code},
    message::{Id, Pattern},
};

/// The slots in which a message remembers its renderings.
mod slot {
    pub const ENVELOPE: usize = 0;
    pub const BINARY: usize = 1;
    pub const SSE_ENVELOPE: usize = 2;
    pub const SSE_RAW: usize = 3;
    pub const GZIP_ENVELOPE: usize = 4;
    pub const GZIP_LINE: usize = 5;
    pub const GZIP_SSE_ENVELOPE: usize = 6;
    pub const GZIP_SSE_RAW: usize = 7;
    pub const DEFLATED: usize = 8;
}

/// The frames that are no messages, the same on every transport.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control<'a> {
    Open {
        connection: &'a str,
        cursor: Id,
        heartbeat_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        mine: Option<Vec<Pattern>>,
    },
    Gap(&'a GapNotice),
    Cursor {
        cursor: Id,
    },
    /// The server has added a topic, and from here on the cursor counts for it too.
    Subscribed {
        topic: &'a Pattern,
        cursor: Id,
        by: By,
    },
    Unsubscribed {
        topic: &'a Pattern,
        cursor: Id,
        by: By,
    },
    Closing {
        code: Code,
        /// The reason, for a person.
        detail: &'a str,
        /// Absent if reading had not begun, or if frames were left out for a slow client: then the client's own
        /// cursor counts.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Id>,
        retry_ms: u32,
    },
}

/// The author of a change of what a connection reads, if it was not the client.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Server,
}

impl Control<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Gap(_) => "gap",
            Self::Cursor { .. } => "cursor",
            Self::Subscribed { .. } => "subscribed",
            Self::Unsubscribed { .. } => "unsubscribed",
            Self::Closing { .. } => "closing",
        }
    }

    fn cursor(&self) -> Option<Id> {
        match self {
            Self::Gap(gap) => Some(gap.cursor),
            Self::Open { cursor, .. }
            | Self::Cursor { cursor }
            | Self::Subscribed { cursor, .. }
            | Self::Unsubscribed { cursor, .. } => Some(*cursor),
            Self::Closing { cursor, .. } => *cursor,
        }
    }
}

#[derive(Serialize)]
struct ReplayedGap<'a> {
    #[serde(flatten)]
    gap: Control<'a>,
    replay: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<&'a str>,
}

impl<'a> ReplayedGap<'a> {
    fn of(gap: &'a GapNotice, pattern: &'a Pattern) -> Self {
        Self { gap: Control::Gap(gap), replay: true, pattern: pattern_of(pattern) }
    }
}

/// A replay names the pattern that it belongs to, if that is not the topic of each message.
fn pattern_of(pattern: &Pattern) -> Option<&str> {
    Some(pattern.as_str()).filter(|_| pattern.has_wildcard())
}

/// The frame of a gap.
pub fn gap_json(gap: &GapNotice) -> Vec<u8> {
    to_json(&Control::Gap(gap))
}

fn write(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to memory cannot fail");
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec(value).expect("a frame serializes");
    escape::line_ends(&mut json);
    json
}

#[cfg(test)]
mod tests {
    use super::{envelope::envelope_line, frames::frame_header_len, *};
    use crate::message::{Draft, Message, Payload};

    fn message(payload: Payload, event: Option<&str>) -> Message {
        let topic = "orders.42".parse().expect("a topic");
        let event = event.map(Into::into);
        Message::new(Draft { topic, event, payload, exclude: None, by: None }, Id::new(7), Id::ZERO)
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn json_is_spliced_in_and_its_line_ends_become_spaces() {
        let message = message(Payload::json(*b"{\r\n\"total\":12,\"s\":\"\\n\"}"), Some("paid"));
        assert_eq!(
            text(&envelope(&message)),
            r#"{"type":"message","topic":"orders.42","id":"7","event":"paid","data":{  "total":12,"s":"\n"}}"#
        );
    }

    #[test]
    fn one_rendering_serves_the_frame_and_the_line() {
        for len in [1, 200, 70_000] {
            let message = message(Payload::text("x".repeat(len)), None);
            let (frame, line) = (message_frame(&message), envelope_line(&message));
            assert_eq!(frame[frame_header_len(&frame)..], line[..line.len() - 1]);
            assert_eq!(line.last(), Some(&b'\n'));
        }
    }

    #[test]
    fn a_message_is_compressed_once_for_all() {
        let message = message(Payload::text("x".repeat(300)), None);
        let plain = envelope(&message);
        let forms: [&dyn Fn() -> bytes::Bytes; 5] = [
            &|| deflated_frame(&message),
            &|| Framing::SseRaw.gzipped(&message, Id::ZERO).0,
            &|| Framing::SseEnvelope.gzipped(&message, Id::ZERO).0,
            &|| Framing::Ndjson.gzipped(&message, Id::ZERO).0,
            &|| gzipped_envelope(&message, &plain),
        ];
        for (number, form) in forms.iter().enumerate() {
            let (one, other) = (form(), form());
            assert!(one.len() < 200, "form {number} is not compressed");
            assert_eq!(one.as_ptr(), other.as_ptr(), "form {number} is compressed for each reader");
        }
    }

    #[test]
    fn bytes_that_server_sent_events_cannot_carry_become_an_envelope() {
        let binary = Payload::declared(b"\xff", None).expect("a payload");
        let event = Framing::SseRaw.message(&message(binary, Some("e")), Id::ZERO);
        assert!(text(&event).starts_with("event: rejoin.binary\nid: 7\ndata: {"), "{event:?}");
        assert!(text(&event).contains(r#""event":"e""#) && text(&event).contains(r#""data":"/w==""#));
        let nul = Framing::SseRaw.message(&message(Payload::text("a\0b"), None), Id::ZERO);
        assert!(text(&nul).starts_with("event: rejoin.binary\n") && !nul.contains(&0), "{nul:?}");
    }
}
