//! Messages and control frames as frames of a WebSocket (RFC 6455 §5.2).

use bytes::Bytes;
use serde::Serialize;

use super::{
    ReplayedGap,
    envelope::{Style, framed_envelope, write_envelope},
    slot, to_json,
};
use crate::{
    broker::GapNotice,
    http::deflate,
    message::{Message, Pattern, PayloadKind},
};

/// A server's frame header for a payload of this length (RFC 6455 §5.2).
pub(super) fn write_frame_header(out: &mut Vec<u8>, opcode: u8, len: usize) {
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

pub(super) const TEXT: u8 = 1;
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
        return message.rendered(slot::BINARY, |message| binary_frame(message, None));
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

/// The WebSocket frame of a message that is replayed before the `subscribed` of this pattern.
pub fn replay_frame(message: &Message, pattern: &Pattern) -> Bytes {
    if message.kind == PayloadKind::Binary {
        return binary_frame(message, Some(pattern));
    }
    let mut envelope = Vec::new();
    write_envelope(&mut envelope, message, Style { replay: Some(pattern), ..Style::default() });
    text_frame(&envelope)
}

/// The gap that is replayed before the `subscribed` of this pattern.
pub fn replay_gap_frame(gap: &GapNotice, pattern: &Pattern) -> Bytes {
    control_frame(&ReplayedGap::of(gap, pattern))
}

fn binary_frame(message: &Message, replay: Option<&Pattern>) -> Bytes {
    let mut body = Vec::with_capacity(message.bytes().len() + 160);
    write_envelope(&mut body, message, Style { replay, bytes_follow: true });
    body.push(b'\n');
    body.extend_from_slice(message.bytes());
    frame(BINARY, &body)
}

pub(super) fn frame_header_len(frame: &[u8]) -> usize {
    match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}
