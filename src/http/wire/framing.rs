//! Messages and control frames as the body of a stream: Server-Sent Events (WHATWG HTML 9.2), or lines of JSON.

use bytes::Bytes;

use super::{
    Control, ReplayedGap,
    envelope::{Style, envelope_line, write_envelope},
    slot, to_json, write,
};
use crate::{
    broker::GapNotice,
    http::{
        gzip::{self, Sum},
        metrics::Transport,
    },
    message::{Id, Message, Pattern},
};

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
    pub fn replay(self, message: &Message, pattern: &Pattern, cursor: Id) -> Bytes {
        let mut out = Vec::with_capacity(message.bytes().len() + 192);
        if self != Self::Ndjson {
            write(&mut out, format_args!("id: {cursor}\ndata: "));
        }
        let begin = out.len();
        write_envelope(&mut out, message, Style { replay: Some(pattern), ..Style::default() });
        debug_assert!(!out[begin..].contains(&b'\n'), "an envelope is one line");
        out.extend_from_slice(if self == Self::Ndjson { b"\n" } else { b"\n\n" });
        out.into()
    }

    /// A gap of a topic that was added. It does not move the cursor.
    pub fn replay_gap(self, gap: &GapNotice, pattern: &Pattern, cursor: Id) -> Bytes {
        let gap = GapNotice { cursor, ..gap.clone() };
        self.named("gap", Some(cursor), &to_json(&ReplayedGap::of(&gap, pattern))).into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_server_sent_events_count_them() {
        let split = |text| lines(text).collect::<Vec<_>>();
        assert_eq!(split(""), [""]);
        assert_eq!(split("a\nb\r\nc\rd"), ["a", "b", "c", "d"]);
        assert_eq!(split("\n\r\r\n"), ["", "", "", ""]);
    }
}
