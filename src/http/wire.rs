//! The frames on the wire: the envelope, the control frames, and how each transport wraps them.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::Serialize;

use crate::{
    broker::GapNotice,
    http::{
        deflate, escape,
        gzip::{self, Sum},
        metrics::Transport,
        problem::Code,
    },
    message::{Id, Message, Pattern, PayloadKind},
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

/// A way to write messages and control frames into a response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Server-Sent Events whose data is the payload.
    SseRaw,
    /// Server-Sent Events whose data is the envelope.
    SseEnvelope,
    /// One JSON object on each line.
    Ndjson,
}

impl Framing {
    pub fn transport(self) -> Transport {
        match self {
            Self::SseRaw | Self::SseEnvelope => Transport::Sse,
            Self::Ndjson => Transport::Ndjson,
        }
    }

    /// The bytes of a message, shared by all readers of this form.
    pub fn message(self, message: &Message, cursor: Id) -> Bytes {
        match self {
            Self::Ndjson => envelope_line(message),
            // The id of the event is the cursor, which is this reader's own.
            Self::SseRaw | Self::SseEnvelope if message.is_ephemeral() => self.event(message, cursor).into(),
            Self::SseRaw => message.rendered(slot::SSE_RAW, |message| self.event(message, message.id).into()),
            Self::SseEnvelope => {
                message.rendered(slot::SSE_ENVELOPE, |message| self.event(message, message.id).into())
            }
        }
    }

    /// The same as a piece of a stream in gzip, with the sum of the plain bytes.
    pub fn gzipped(self, message: &Message, cursor: Id) -> (Bytes, Sum) {
        let plain = self.message(message, cursor);
        let slot = match self {
            Self::Ndjson => slot::GZIP_LINE,
            Self::SseRaw | Self::SseEnvelope if message.is_ephemeral() => {
                return (gzip::piece(&plain), Sum::of(&plain));
            }
            Self::SseEnvelope => slot::GZIP_SSE_ENVELOPE,
            Self::SseRaw => slot::GZIP_SSE_RAW,
        };
        (message.rendered(slot, |_| gzip::piece(&plain)), Sum::of(&plain))
    }

    pub fn control(self, control: &Control<'_>) -> Vec<u8> {
        self.named(control.name(), control.cursor(), &to_json(control))
    }

    /// A message that is replayed for a topic that was added. It does not move the cursor.
    pub fn replay(self, message: &Message, cursor: Id) -> Bytes {
        let mut out = Vec::with_capacity(message.bytes().len() + 192);
        if self != Self::Ndjson {
            write(&mut out, format_args!("id: {cursor}\ndata: "));
        }
        let begin = out.len();
        write_envelope(&mut out, message, Style { replay: true, ..Style::default() });
        debug_assert!(!out[begin..].contains(&b'\n'), "an envelope is one line");
        out.extend_from_slice(if self == Self::Ndjson { b"\n" } else { b"\n\n" });
        out.into()
    }

    /// A gap of a topic that was added. It does not move the cursor.
    pub fn replay_gap(self, gap: &GapNotice, cursor: Id) -> Bytes {
        let gap = GapNotice { cursor, ..gap.clone() };
        self.named("gap", Some(cursor), &to_json(&ReplayedGap::of(&gap))).into()
    }

    /// A control frame: a line, or an event of that name with the cursor as its id.
    fn named(self, name: &str, cursor: Option<Id>, json: &[u8]) -> Vec<u8> {
        match self {
            Self::Ndjson => [json, b"\n"].concat(),
            Self::SseRaw | Self::SseEnvelope => {
                let mut event = format!("event: rejoin.{name}\n").into_bytes();
                if let Some(cursor) = cursor {
                    write(&mut event, format_args!("id: {cursor}\n"));
                }
                event.extend_from_slice(b"data: ");
                event.extend_from_slice(json);
                event.extend_from_slice(b"\n\n");
                event
            }
        }
    }

    fn event(self, message: &Message, cursor: Id) -> Vec<u8> {
        let mut event = Vec::with_capacity(message.bytes().len() + 192);
        let raw = std::str::from_utf8(message.bytes()).ok().filter(|text| !text.contains('\0'));
        match (self, raw) {
            (Self::SseRaw, Some(text)) => {
                if let Some(name) = message.event() {
                    write(&mut event, format_args!("event: {name}\n"));
                }
                write(&mut event, format_args!("id: {cursor}\n"));
                for line in lines(text) {
                    write(&mut event, format_args!("data: {line}\n"));
                }
            }
            (Self::SseRaw, None) => {
                write(&mut event, format_args!("event: rejoin.binary\nid: {cursor}\ndata: "));
                write_envelope(&mut event, message, Style::default());
                event.push(b'\n');
            }
            _ => {
                write(&mut event, format_args!("id: {cursor}\ndata: "));
                write_envelope(&mut event, message, Style::default());
                event.push(b'\n');
            }
        }
        event.push(b'\n');
        event
    }
}

/// The block with which a Server-Sent Events stream opens, or is turned away.
pub fn sse_retry(retry_ms: u32, control: &Control<'_>) -> Vec<u8> {
    let mut block = format!("retry: {retry_ms}\n").into_bytes();
    block.extend(Framing::SseEnvelope.control(control));
    block
}

/// The lines of a text. CRLF, LF and CR end a line, as in Server-Sent Events.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = memchr::memchr2(b'\n', b'\r', text.as_bytes()) else { return rest.take() };
        let (line, after) = text.split_at(end);
        rest = Some(after.strip_prefix("\r\n").unwrap_or(&after[1..]));
        Some(line)
    })
}

/// A server's frame header for a payload of this length (RFC 6455 §5.2).
fn write_frame_header(out: &mut Vec<u8>, opcode: u8, len: usize) {
    out.push(0x80 | opcode);
    match len {
        0..126 => out.push(len as u8),
        126..65536 => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// A text frame.
pub fn text_frame(text: &[u8]) -> Bytes {
    frame(TEXT, text)
}

/// A binary frame.
#[cfg(feature = "echo")]
pub fn bytes_frame(bytes: &[u8]) -> Bytes {
    frame(BINARY, bytes)
}

fn frame(opcode: u8, body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(body.len() + 10);
    write_frame_header(&mut frame, opcode, body.len());
    frame.extend_from_slice(body);
    frame.into()
}

/// A WebSocket frame with a control frame or an answer.
pub fn control_frame(control: &impl Serialize) -> Bytes {
    text_frame(&to_json(control))
}

/// The WebSocket frame of a message, shared by all its readers.
pub fn message_frame(message: &Message) -> Bytes {
    if message.kind == PayloadKind::Binary {
        return message.rendered(slot::BINARY, |message| binary_frame(message, false));
    }
    let line = framed_envelope(message);
    line.slice(..line.len() - 1)
}

/// The same for those that understand compression (RFC 7692).
pub fn deflated_frame(message: &Message) -> Bytes {
    message.rendered(slot::DEFLATED, |message| deflated(message_frame(message)))
}

/// The bit of a compressed message, in the first byte of its frame.
const COMPRESSED: u8 = 0x40;

/// A frame whose payload is compressed, if it is worth it.
pub fn deflated(frame: Bytes) -> Bytes {
    let (opcode, plain) = (frame[0] & 0x0f, &frame[frame_header_len(&frame)..]);
    let compressed = deflate::compressed(plain, |bytes| {
        let bytes = &bytes[..bytes.len() - deflate::FLUSH_END.len()];
        let mut frame = Vec::with_capacity(bytes.len() + 4);
        write_frame_header(&mut frame, COMPRESSED | opcode, bytes.len());
        frame.extend_from_slice(bytes);
        Bytes::from(frame)
    });
    compressed.unwrap_or(frame)
}

/// The WebSocket frame of a message that is replayed before `subscribed`.
pub fn replay_frame(message: &Message) -> Bytes {
    if message.kind == PayloadKind::Binary {
        return binary_frame(message, true);
    }
    let mut envelope = Vec::new();
    write_envelope(&mut envelope, message, Style { replay: true, ..Style::default() });
    text_frame(&envelope)
}

/// The gap of a topic that is replayed before `subscribed`.
pub fn replay_gap_frame(gap: &GapNotice) -> Bytes {
    control_frame(&ReplayedGap::of(gap))
}

#[derive(Serialize)]
struct ReplayedGap<'a> {
    #[serde(flatten)]
    gap: Control<'a>,
    replay: bool,
}

impl<'a> ReplayedGap<'a> {
    fn of(gap: &'a GapNotice) -> Self {
        Self { gap: Control::Gap(gap), replay: true }
    }
}

/// The envelope and a line feed.
fn envelope_line(message: &Message) -> Bytes {
    let framed = framed_envelope(message);
    framed.slice(frame_header_len(&framed)..)
}

/// The envelope alone.
pub fn envelope(message: &Message) -> Bytes {
    let framed = framed_envelope(message);
    framed.slice(frame_header_len(&framed)..framed.len() - 1)
}

/// The envelope as a piece of an answer in gzip. Empty if the envelope is better left plain.
pub fn gzipped_envelope(message: &Message, plain: &[u8]) -> Bytes {
    if plain.len() < deflate::MIN_BYTES {
        return Bytes::new();
    }
    message.rendered(slot::GZIP_ENVELOPE, |_| {
        deflate::compressed(plain, Bytes::copy_from_slice).unwrap_or_default()
    })
}

/// One rendering for two forms: `[frame header] envelope LF`. A WebSocket omits the line feed, and a line
/// omits the header.
fn framed_envelope(message: &Message) -> Bytes {
    message.rendered(slot::ENVELOPE, |message| {
        let mut envelope = Vec::with_capacity(message.bytes().len() + 160);
        write_envelope(&mut envelope, message, Style::default());
        let mut framed = Vec::with_capacity(envelope.len() + 11);
        write_frame_header(&mut framed, TEXT, envelope.len());
        framed.extend_from_slice(&envelope);
        framed.push(b'\n');
        framed.into()
    })
}

fn frame_header_len(frame: &[u8]) -> usize {
    match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

fn binary_frame(message: &Message, replay: bool) -> Bytes {
    let mut body = Vec::with_capacity(message.bytes().len() + 160);
    write_envelope(&mut body, message, Style { replay, bytes_follow: true });
    body.push(b'\n');
    body.extend_from_slice(message.bytes());
    frame(BINARY, &body)
}

#[derive(Clone, Copy, Default)]
struct Style {
    /// The message is replayed before `subscribed`.
    replay: bool,
    /// The payload follows the envelope as raw bytes.
    bytes_follow: bool,
}

fn write_envelope(out: &mut Vec<u8>, message: &Message, style: Style) {
    out.extend_from_slice(b"{\"type\":\"message\"");
    if style.replay {
        out.extend_from_slice(b",\"replay\":true");
    }
    if message.is_ephemeral() {
        out.extend_from_slice(b",\"ephemeral\":true");
    }
    out.extend_from_slice(b",\"topic\":");
    write_string(out, &message.topic);
    if !message.is_ephemeral() {
        write(out, format_args!(",\"id\":\"{}\"", message.id));
    }
    if let Some(event) = message.event() {
        out.extend_from_slice(b",\"event\":");
        write_string(out, event);
    }
    if let Some(by) = message.by() {
        out.extend_from_slice(b",\"by\":");
        write_string(out, by);
    }
    if let Some(content_type) = message.content_type() {
        out.extend_from_slice(b",\"content_type\":");
        write_string(out, content_type);
    }
    write_data(out, message, style);
    out.push(b'}');
    escape::line_ends(out);
}

fn write_data(out: &mut Vec<u8>, message: &Message, style: Style) {
    if style.bytes_follow {
        out.extend_from_slice(b",\"encoding\":\"binary\"");
        return;
    }
    match (message.kind, message.as_str()) {
        (PayloadKind::Json, Some(json)) => {
            out.extend_from_slice(b",\"data\":");
            let begin = out.len();
            out.extend_from_slice(json.as_bytes());
            // JSON strings contain no line ends, so these are between tokens.
            out[begin..]
                .iter_mut()
                .filter(|byte| matches!(byte, b'\r' | b'\n'))
                .for_each(|byte| *byte = b' ');
        }
        (PayloadKind::Text, Some(text)) => {
            out.extend_from_slice(b",\"data\":");
            write_string(out, text);
        }
        _ => {
            out.extend_from_slice(b",\"encoding\":\"base64\",\"data\":\"");
            out.extend_from_slice(BASE64.encode(message.bytes()).as_bytes());
            out.push(b'"');
        }
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is written to memory");
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
    use super::*;
    use crate::message::{Draft, Payload};

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
    fn lines_end_as_server_sent_events_count_them() {
        let split = |text| lines(text).collect::<Vec<_>>();
        assert_eq!(split(""), [""]);
        assert_eq!(split("a\nb\r\nc\rd"), ["a", "b", "c", "d"]);
        assert_eq!(split("\n\r\r\n"), ["", "", "", ""]);
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
