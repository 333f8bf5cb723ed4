//! Patterns: topics in which a segment may be a wildcard.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use super::topic::{self, ParseTopicError, Topic};

/// A topic, or a name with wildcards: `*` stands for exactly one segment, and `**` at the end for one or
/// more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePatternError {
    #[error(transparent)]
    Topic(#[from] ParseTopicError),
    #[error("in a pattern * must be a whole segment, and ** the last one")]
    Wildcard,
}

impl Pattern {
    /// True if it is not a plain topic.
    pub fn has_wildcard(&self) -> bool {
        self.0.contains('*')
    }

    /// The topic, if there is no wildcard.
    pub fn topic(&self) -> Option<Topic> {
        if self.has_wildcard() { None } else { Some(Topic(self.0.clone())) }
    }

    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text before the first wildcard: the name of every matching topic begins with it. `None` if it is empty.
    pub fn literal_start(&self) -> Option<&str> {
        let start = self.0.find('*').unwrap_or(self.0.len());
        Some(&self.0[..start]).filter(|text| !text.is_empty())
    }

    /// The parts between the dots.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// True if the pattern matches `topic`.
    ///
    /// A wildcard does not match a first segment that begins with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with('*') {
            return false;
        }
        let mut names = topic.split('.');
        for segment in self.segments() {
            match (segment, names.next()) {
                ("**", Some(_)) => return true,
                ("*", Some(_)) => {}
                (segment, Some(name)) if segment == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, ParsePatternError> {
        topic::check(text, true)?;
        let mut segments = text.split('.').peekable();
        while let Some(segment) = segments.next() {
            let wrong = match segment {
                "*" => false,
                "**" => segments.peek().is_some(),
                segment => segment.contains('*'),
            };
            if wrong {
                return Err(ParsePatternError::Wildcard);
            }
        }
        Ok(Self(text.into()))
    }
}

impl From<&Topic> for Pattern {
    fn from(topic: &Topic) -> Self {
        Self(topic.0.clone())
    }
}

impl Borrow<str> for Pattern {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, topic: &str) -> bool {
        pattern.parse::<Pattern>().expect("a pattern").matches(topic)
    }

    #[test]
    fn a_star_is_exactly_one_segment_and_two_are_one_or_more() {
        assert!(matches("a.b", "a.b") && !matches("a.b", "a.c"));
        assert!(matches("a.*", "a.b") && !matches("a.*", "a") && !matches("a.*", "a.b.c"));
        assert!(matches("a.**", "a.b") && matches("a.**", "a.b.c") && !matches("a.**", "a"));
        assert!(matches("*.b", "a.b") && matches("**", "a.b.c") && matches("*", "a"));
        assert!(matches("*.**", "a.b") && !matches("*.**", "a"));
    }

    #[test]
    fn wildcards_do_not_reach_the_reserved_topics() {
        assert!(!matches("*", "$sys") && !matches("**", "$sys.a") && !matches("*.a", "$sys.a"));
        assert!(matches("$sys.*", "$sys.a") && matches("a.*", "a.$b"));
    }

    #[test]
    fn a_wildcard_is_a_whole_segment_and_two_stars_are_the_last() {
        for wrong in ["a*", "**.a", "a.**.b", "***", "*a.b", "a..*", "", "a,*"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong:?}");
        }
    }
}
