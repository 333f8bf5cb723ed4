//! How a message is written to Redis, and how an entry of the feed is parsed.

use std::str::FromStr;

use redis::{FromRedisValue, ParsingError, Value};

use crate::{
    log::Refusal,
    message::{Draft, Id, Pattern, Payload, PayloadKind, Topic},
};

/// An entry of the feed: one event in the store, in the order of events.
#[derive(Debug)]
pub struct Entry {
    pub place: Place,
    /// `None` if this version cannot read the entry.
    pub event: Option<Event>,
}

/// The place of an entry in the feed: an id of the log, and a number for entries without an id of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub id: Id,
    pub number: u64,
}

/// An event that the feed tells.
#[derive(Debug)]
pub enum Event {
    /// A message was stored, and the messages of its topic up to `gone` were trimmed.
    Message { before: Before, prev: Id, gone: Id, topic: Topic, draft: Option<Draft> },
    /// A message that is not stored.
    Ephemeral { draft: Draft },
    /// The messages of a topic up to `gone` were deleted.
    Deleted { before: Before, gone: Id, topic: Topic },
    /// The messages of a topic up to `gone` were evicted to make room for others.
    Evicted { gone: Id, topic: Topic },
    /// The list of a subject was changed.
    Listed { before: Before, subject: Box<str>, topic: Pattern, is_added: bool },
    /// A subject was ended. The refusal is absent if no tokens are refused.
    Ended { before: Before, subject: Box<str>, refusal: Option<Refusal> },
    /// An id was taken, but readers are given nothing for it.
    Step { before: Before },
}

/// The entry before an entry: the last one with an id of its own.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// The generation of the store when the later entry was written.
    pub generation: Id,
    /// A replica whose last id is another one has missed an entry.
    pub id: Id,
}

/// Writes the fields of a message, except its topic and the bytes of its payload.
pub fn head(draft: &Draft) -> Vec<u8> {
    let mut head = vec![match draft.payload.kind {
        PayloadKind::Json => b'j',
        PayloadKind::Text => b't',
        PayloadKind::Binary => b'b',
    }];
    let mut write = |part: Option<&str>| {
        // A length of 0 means that the part is absent.
        let length = part.map_or(0, |part| part.len() + 1).min(usize::from(u16::MAX));
        head.extend((length as u16).to_be_bytes());
        head.extend(part.map_or(&[][..], |part| &part.as_bytes()[..length - 1]));
    };
    write(draft.event.as_deref());
    write(draft.exclude.as_deref());
    write(draft.payload.content_type.as_deref());
    // Older versions do not read what follows.
    if let Some(by) = &draft.by {
        write(Some(by));
    }
    head
}

/// Parses a draft from `head` and `bytes`. `None` if this program did not write them.
pub fn draft(topic: Topic, head: &[u8], bytes: &[u8]) -> Option<Draft> {
    let (kind, mut rest) = head.split_first()?;
    let kind = match kind {
        b'j' => PayloadKind::Json,
        b't' => PayloadKind::Text,
        b'b' => PayloadKind::Binary,
        _ => return None,
    };
    // Other programs may write to Redis, so check that a text is UTF-8.
    if kind != PayloadKind::Binary && std::str::from_utf8(bytes).is_err() {
        return None;
    }
    let (event, exclude, content_type) = (part(&mut rest)?, part(&mut rest)?, part(&mut rest)?);
    let by = if rest.is_empty() { None } else { part(&mut rest)?.map(Into::into) };
    let payload = Payload { kind, content_type, bytes: bytes.into() };
    Some(Draft { topic, event, exclude, by, payload })
}

/// The next part of a head. The outer option is none if it cannot be read.
fn part(rest: &mut &[u8]) -> Option<Option<Box<str>>> {
    let (length, after) = rest.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let (part, after) = after.split_at_checked(length.saturating_sub(1))?;
    *rest = after;
    let text: Box<str> = std::str::from_utf8(part).ok()?.into();
    Some(if length == 0 { None } else { Some(text) })
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.id, self.number)
    }
}

impl FromStr for Place {
    type Err = ParsingError;

    fn from_str(text: &str) -> Result<Self, ParsingError> {
        let parts =
            text.split_once('-').and_then(|(id, number)| Some((id.parse().ok()?, number.parse().ok()?)));
        let (id, number) = parts.ok_or("expected the id of an entry")?;
        Ok(Self { id: Id::new(id), number })
    }
}

impl FromRedisValue for Place {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        String::from_redis_value(value)?.parse()
    }
}

impl FromRedisValue for Entry {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (place, fields): (Place, Vec<Vec<u8>>) = FromRedisValue::from_redis_value(value)?;
        // A later version may add fields.
        let event = if let [kind, entry, ..] = &*fields { Event::read(kind, entry) } else { None };
        Ok(Self { place, event })
    }
}

impl Event {
    /// Parses the field that a script has written: numbers, then a topic, a head and a payload. The last two numbers are
    /// the lengths of the topic and the head. A later version may add numbers before these.
    fn read(kind: &[u8], entry: &[u8]) -> Option<Self> {
        let line_end = entry.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (std::str::from_utf8(&entry[..line_end]).ok()?, &entry[line_end + 1..]);
        let numbers: Vec<u64> =
            line.split_ascii_whitespace().map(u64::from_str).collect::<Result<_, _>>().ok()?;
        let (numbers, lengths) = numbers.split_last_chunk::<2>()?;
        let mut ids = numbers.iter().copied().map(Id::new);
        let mut id = || ids.next();
        let carried = || carried(rest, *lengths);
        Some(match kind {
            b"m" => {
                let (before, prev, gone) = (Before::read(&mut id)?, id()?, id()?);
                let (topic, head, payload) = carried()?;
                // An entry without a head stands for a message that is too large for the feed.
                let draft = if head.is_empty() { None } else { Some(draft(topic.clone(), head, payload)?) };
                Self::Message { before, prev, gone, topic, draft }
            }
            b"e" => {
                let (topic, head, payload) = carried()?;
                Self::Ephemeral { draft: draft(topic, head, payload)? }
            }
            b"x" => {
                let (before, gone) = (Before::read(&mut id)?, id()?);
                Self::Deleted { before, gone, topic: carried()?.0 }
            }
            b"l" => {
                let (before, flag) = (Before::read(&mut id)?, id()?);
                let (topic, subject, _) = parts(rest, *lengths)?;
                let topic = std::str::from_utf8(topic).ok()?.parse().ok()?;
                let subject = std::str::from_utf8(subject).ok()?.into();
                Self::Listed { before, subject, topic, is_added: flag > Id::ZERO }
            }
            b"u" => {
                let (before, second, until_ms) = (Before::read(&mut id)?, id()?.get(), id()?.get());
                let subject = std::str::from_utf8(parts(rest, *lengths)?.1).ok()?.into();
                let refusal = (until_ms > 0).then_some(Refusal { second, until_ms });
                Self::Ended { before, subject, refusal }
            }
            b"g" => Self::Evicted { gone: id()?, topic: carried()?.0 },
            b"b" => Self::Step { before: Before::read(&mut id)? },
            _ => return None,
        })
    }

    /// The entry before this one, if this one has an id of its own.
    pub fn before(&self) -> Option<Before> {
        match self {
            Self::Message { before, .. }
            | Self::Deleted { before, .. }
            | Self::Listed { before, .. }
            | Self::Ended { before, .. }
            | Self::Step { before } => Some(*before),
            Self::Ephemeral { .. } | Self::Evicted { .. } => None,
        }
    }
}

impl Before {
    fn read(id: &mut impl FnMut() -> Option<Id>) -> Option<Self> {
        Some(Self { generation: id()?, id: id()? })
    }
}

/// The topic, the head and the payload of an entry.
fn carried(rest: &[u8], lengths: [u64; 2]) -> Option<(Topic, &[u8], &[u8])> {
    let (topic, head, payload) = parts(rest, lengths)?;
    Some((std::str::from_utf8(topic).ok()?.parse().ok()?, head, payload))
}

/// The three parts behind the numbers of an entry, of which the first two have these lengths.
fn parts(rest: &[u8], [first_len, second_len]: [u64; 2]) -> Option<(&[u8], &[u8], &[u8])> {
    let (first, rest) = rest.split_at_checked(usize::try_from(first_len).ok()?)?;
    let (second, rest) = rest.split_at_checked(usize::try_from(second_len).ok()?)?;
    Some((first, second, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let topic: Topic = "a.β".parse().expect("a topic");
        for (event, exclude, by) in
            [(None, None, None), (Some("paid".into()), Some("".into()), Some("u1".into()))]
        {
            let payload = Payload::declared(b"\xff\n\0", Some("image/png")).expect("a payload");
            let one = Draft { topic: topic.clone(), event, exclude, by, payload };
            let again = draft(topic.clone(), &head(&one), &one.payload.bytes).expect("readable");
            assert_eq!(format!("{one:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn an_entry_of_another_kind_is_unreadable() {
        for (kind, entry) in [
            ("m", ""),
            ("m", "1 2 3 4 1 0"),
            ("m", "1 2 3 4\n"),
            ("m", "1 2 3 4 2 0\na*"),
            ("m", "1 2 3 4 1 1\na?x"),
            ("m", "1 2 3 4 9 9\na"),
            ("e", "1 0\na"),
            ("b", "x 1 0 0\n"),
            ("q", "1 2 3 4 1 0\na"),
        ] {
            assert!(Event::read(kind.as_bytes(), entry.as_bytes()).is_none(), "{kind} {entry}");
        }
        for head in [&b""[..], b"?", b"t", b"t\0\x09a\0\0\0\0"] {
            assert!(draft("a".parse().expect("a topic"), head, b"x").is_none(), "{head:?}");
        }
    }
}
