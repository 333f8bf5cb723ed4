//! How a message is written to Redis, and how what is announced is read.

use std::str::FromStr;

use crate::message::{Draft, Id, Payload, PayloadKind, Topic};

/// What is announced on a channel.
#[derive(Debug)]
pub enum Announced {
    /// A message was stored; what is older than `gone` was trimmed from its topic.
    Message { began: Id, id: Id, prev: Id, gone: Id, draft: Draft },
    /// A message that is not stored, and the newest id of its time. No two have the same `stamp`.
    Ephemeral { began: Id, stamp: u64, newest: Id, draft: Draft },
    /// What a topic had up to `gone` is not retained any more. `id` is the newest id of that time.
    Gone { began: Id, id: Id, gone: Id, topic: Topic },
    /// A probe: `newest` was the newest id when it was made.
    Probe { began: Id, newest: Id, token: u64 },
}

/// Everything of a message but its topic and its payload's bytes.
pub fn head(draft: &Draft) -> Vec<u8> {
    let mut head = vec![match draft.payload.kind {
        PayloadKind::Json => b'j',
        PayloadKind::Text => b't',
        PayloadKind::Binary => b'b',
    }];
    for part in [&draft.event, &draft.exclude, &draft.payload.content_type] {
        // A length of 0 is nothing at all.
        let length = part.as_ref().map_or(0, |part| part.len() + 1).min(usize::from(u16::MAX));
        head.extend((length as u16).to_be_bytes());
        head.extend(part.as_ref().map_or(&[][..], |part| &part.as_bytes()[..length - 1]));
    }
    head
}

/// The draft that was written as `head` and `bytes`; nothing if it was not written by us.
pub fn draft(topic: Topic, head: &[u8], bytes: &[u8]) -> Option<Draft> {
    let (kind, mut rest) = head.split_first()?;
    let kind = match kind {
        b'j' => PayloadKind::Json,
        b't' => PayloadKind::Text,
        b'b' => PayloadKind::Binary,
        _ => return None,
    };
    // Others may write to Redis: what claims to be text must be.
    if kind != PayloadKind::Binary && std::str::from_utf8(bytes).is_err() {
        return None;
    }
    let mut part = || {
        let (length, after) = rest.split_at_checked(2)?;
        let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
        let (part, after) = after.split_at_checked(length.saturating_sub(1))?;
        rest = after;
        let text: Box<str> = std::str::from_utf8(part).ok()?.into();
        Some(if length == 0 { None } else { Some(text) })
    };
    let (event, exclude, content_type) = (part()?, part()?, part()?);
    Some(Draft { topic, event, exclude, payload: Payload { kind, content_type, bytes: bytes.into() } })
}

impl Announced {
    /// The generation that it belongs to, and the newest id of its time.
    pub fn life(&self) -> (Id, Id) {
        match *self {
            Self::Message { began, id, .. } | Self::Gone { began, id, .. } => (began, id),
            Self::Ephemeral { began, newest, .. } | Self::Probe { began, newest, .. } => (began, newest),
        }
    }

    /// Reads what one of the scripts put together; nothing if it was somebody else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (std::str::from_utf8(&bytes[..line_end]).ok()?, &bytes[line_end + 1..]);
        let mut words = line.split(' ');
        let kind = words.next()?;
        let mut numbers = words.map(u64::from_str);
        let mut number = || numbers.next()?.ok();
        Some(match kind {
            "m" => {
                let (began, id, prev, gone) = (number()?, number()?, number()?, number()?);
                let (topic_len, head_len) = (number()?, number()?);
                let draft = body(rest, topic_len, head_len)?;
                let [began, id, prev, gone] = [began, id, prev, gone].map(Id::new);
                Self::Message { began, id, prev, gone, draft }
            }
            "e" => {
                let (began, stamp, newest) = (Id::new(number()?), number()?, Id::new(number()?));
                let (topic_len, head_len) = (number()?, number()?);
                Self::Ephemeral { began, stamp, newest, draft: body(rest, topic_len, head_len)? }
            }
            "g" => {
                let [began, id, gone] = [number()?, number()?, number()?].map(Id::new);
                let topic = std::str::from_utf8(rest).ok()?.parse().ok()?;
                Self::Gone { began, id, gone, topic }
            }
            "p" => {
                let [began, newest] = [number()?, number()?].map(Id::new);
                Self::Probe { began, newest, token: number()? }
            }
            _ => return None,
        })
    }
}

fn body(rest: &[u8], topic_len: u64, head_len: u64) -> Option<Draft> {
    let (topic, rest) = rest.split_at_checked(usize::try_from(topic_len).ok()?)?;
    let (head, bytes) = rest.split_at_checked(usize::try_from(head_len).ok()?)?;
    draft(std::str::from_utf8(topic).ok()?.parse().ok()?, head, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let topic: Topic = "a.β".parse().expect("a topic");
        for (event, exclude) in [(None, None), (Some("paid".into()), Some("".into()))] {
            let payload = Payload::declared(b"\xff\n\0", Some("image/png")).expect("a payload");
            let one = Draft { topic: topic.clone(), event, exclude, payload };
            let again = draft(topic.clone(), &head(&one), &one.payload.bytes).expect("readable");
            assert_eq!(format!("{one:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn what_others_publish_is_ignored() {
        for bytes in [
            &b""[..],
            b"\n",
            b"m 1 2\n",
            b"m 1 2 3 4 9 9\nx",
            b"p x y z\n",
            b"q\n",
            b"e 1 2 3 1 1\na?",
            b"m\xff\n",
        ] {
            assert!(Announced::parse(bytes).is_none(), "{bytes:?}");
        }
        for head in [&b""[..], b"?", b"t", b"t\0\x09a\0\0\0\0"] {
            assert!(draft("a".parse().expect("a topic"), head, b"x").is_none(), "{head:?}");
        }
    }
}
