//! The envelope: a message as one JSON object, the same on every transport.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;

use super::{
    frames::{TEXT, frame_header_len, write_frame_header},
    pattern_of, slot, write,
};
use crate::{
    http::{deflate, escape},
    message::{Message, Pattern, PayloadKind},
};

/// The envelope and a line feed.
pub(super) fn envelope_line(message: &Message) -> Bytes {
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
pub(super) fn framed_envelope(message: &Message) -> Bytes {
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

#[derive(Clone, Copy, Default)]
pub(super) struct Style<'a> {
    /// The message is replayed before the `subscribed` of this pattern.
    pub replay: Option<&'a Pattern>,
    /// The payload follows the envelope as raw bytes.
    pub bytes_follow: bool,
}

pub(super) fn write_envelope(out: &mut Vec<u8>, message: &Message, style: Style<'_>) {
    out.extend_from_slice(b"{\"type\":\"message\"");
    if let Some(pattern) = style.replay {
        out.extend_from_slice(b",\"replay\":true");
        if let Some(name) = pattern_of(pattern) {
            out.extend_from_slice(b",\"pattern\":");
            write_string(out, name);
        }
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

fn write_data(out: &mut Vec<u8>, message: &Message, style: Style<'_>) {
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
