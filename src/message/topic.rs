//! Topic names.

use std::{borrow::Borrow, fmt, ops::Deref, str::FromStr, sync::Arc};

/// The longest topic, in bytes.
pub const MAX_TOPIC_BYTES: usize = 255;

/// The name of a topic: 1 to 255 bytes of UTF-8 in segments separated by `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(pub(super) Arc<str>);

/// Why a text is no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTopicError {
    #[error("a topic is 1 to {MAX_TOPIC_BYTES} bytes long")]
    Length,
    #[error("a topic has no empty segment")]
    EmptySegment,
    #[error("a topic has no control character, no white space and none of * , {{ }}")]
    Character,
}

impl Topic {
    /// True if the name is reserved for the server itself.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

/// The rules that a topic and a pattern have in common. `wildcards` allows `*`.
pub(super) fn check(text: &str, wildcards: bool) -> Result<(), ParseTopicError> {
    if text.is_empty() || text.len() > MAX_TOPIC_BYTES {
        return Err(ParseTopicError::Length);
    }
    if text.split('.').any(str::is_empty) {
        return Err(ParseTopicError::EmptySegment);
    }
    let forbidden = |c: char| {
        c.is_control() || c.is_whitespace() || matches!(c, ',' | '{' | '}') || (c == '*' && !wildcards)
    };
    if text.contains(forbidden) { Err(ParseTopicError::Character) } else { Ok(()) }
}

impl FromStr for Topic {
    type Err = ParseTopicError;

    fn from_str(text: &str) -> Result<Self, ParseTopicError> {
        check(text, false)?;
        Ok(Self(text.into()))
    }
}

impl Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl serde::Serialize for Topic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_topics() {
        for name in ["a", "orders.42", "Größe.β", "a/b", "$sys.x", "a-b_c:d", &"x".repeat(255)] {
            assert!(name.parse::<Topic>().is_ok(), "{name:?}");
        }
    }

    #[test]
    fn names_that_are_not() {
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\u{a0}b",
            "a\tb",
            "a\0",
            "a\u{85}",
            "*",
            "a*",
            "a,b",
            "{",
            "a}",
            &"x".repeat(256),
        ] {
            assert!(name.parse::<Topic>().is_err(), "{name:?}");
        }
    }
}
