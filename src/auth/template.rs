//! Placeholders in granted patterns, and the values of a token that fill them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::message::{ParsePatternError, Pattern, Topic};

/// The values of a token that fill the placeholders of a pattern.
#[derive(Clone, Copy, Debug, Default)]
pub struct Values<'a> {
    pub sub: Option<&'a str>,
    pub iss: Option<&'a str>,
    /// The other claims that are strings.
    pub others: Option<&'a BTreeMap<String, String>>,
}

impl Values<'_> {
    fn claim(&self, name: &str) -> Option<&str> {
        match name {
            "sub" => self.sub,
            "iss" => self.iss,
            _ => self.others?.get(name).map(String::as_str),
        }
    }
}

/// A pattern that grants nothing to a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// The pattern as it is written.
    pub pattern: Box<str>,
    pub why: Why,
}

/// Why a pattern grants nothing to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The token does not have the claim, or the claim is not a string.
    Missing,
    /// The claim is not one plain segment.
    NotPlain,
    /// The token grants itself more than the limit of its issuer allows.
    BeyondLimit,
}

impl fmt::Display for Unfilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::Missing => "the token does not have this claim as a string",
            Why::NotPlain => "the value of the claim is not one plain segment of a topic",
            Why::BeyondLimit => "the token grants itself more than the limit of its [[jwt]] allows",
        };
        write!(f, "{} grants nothing: {why}", self.pattern)
    }
}

/// A pattern in which placeholders stand for a whole segment or a part of one: `{sub}`, `{sub.encoded}` and
/// `{claim.NAME}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<str>);

/// Why a text is no pattern with placeholders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTemplateError {
    #[error("braces may only enclose sub, sub.encoded or claim.NAME, as in users.{{sub}}.**")]
    Placeholder,
    /// Two tokens with different values could have the same topic: `a` and `b-c`, or `a-b` and `c`.
    #[error("a segment may have one placeholder, as in rooms.{{claim.tenant}}.{{sub}}")]
    TwoInOneSegment,
    #[error(transparent)]
    Pattern(#[from] ParsePatternError),
}

/// A part of a template.
enum Part<'a> {
    Text(&'a str),
    Subject,
    EncodedSubject,
    Claim(&'a str),
}

impl Template {
    /// True if it depends on the subject or on another claim of a token.
    pub fn has_placeholder(&self) -> bool {
        self.0.contains('{')
    }

    /// The pattern for these values. If a value is not one plain segment, there is no pattern and nothing is
    /// granted: no token can make a pattern wider than it is written.
    pub fn fill(&self, values: &Values<'_>) -> Result<Pattern, Unfilled> {
        let unfilled = |why| Unfilled { pattern: self.0.clone(), why };
        let mut filled = String::with_capacity(self.0.len());
        for part in parts(&self.0).ok_or_else(|| unfilled(Why::NotPlain))? {
            let value = match part {
                Part::Text(text) => {
                    filled.push_str(text);
                    continue;
                }
                Part::Subject => values.sub.map(str::to_owned),
                Part::EncodedSubject => values.sub.map(encoded),
                Part::Claim(name) => values.claim(name).map(str::to_owned),
            };
            match value {
                Some(value) if is_plain_segment(&value) => filled.push_str(&value),
                Some(_) => return Err(unfilled(Why::NotPlain)),
                None => return Err(unfilled(Why::Missing)),
            }
        }
        filled.parse().map_err(|_| unfilled(Why::NotPlain))
    }
}

/// The parts of a template, or `None` if braces enclose something else than a placeholder.
fn parts(mut text: &str) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    while let Some((before, rest)) = text.split_once('{') {
        let (name, after) = rest.split_once('}')?;
        parts.push(Part::Text(before));
        parts.push(match name {
            "sub" => Part::Subject,
            "sub.encoded" => Part::EncodedSubject,
            _ => Part::Claim(name.strip_prefix("claim.").filter(|name| !name.is_empty())?),
        });
        text = after;
    }
    parts.push(Part::Text(text));
    Some(parts)
}

/// A subject as one segment: each character that a segment cannot have, and `%`, is percent-encoded. So two
/// subjects never have the same segment.
fn encoded(subject: &str) -> String {
    let mut segment = String::with_capacity(subject.len());
    for c in subject.chars() {
        if c.is_control() || c.is_whitespace() || matches!(c, '%' | '.' | '*' | ',' | '{' | '}') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                segment.push_str(&format!("%{byte:02X}"));
            }
        } else {
            segment.push(c);
        }
    }
    segment
}

/// True if a value is a topic of one segment that is not reserved.
fn is_plain_segment(value: &str) -> bool {
    !value.contains('.') && value.parse::<Topic>().is_ok_and(|topic| !topic.is_reserved())
}

impl FromStr for Template {
    type Err = ParseTemplateError;

    fn from_str(text: &str) -> Result<Self, ParseTemplateError> {
        let parts = parts(text).ok_or(ParseTemplateError::Placeholder)?;
        let mut is_filled = false;
        for part in &parts {
            match part {
                Part::Text(text) => is_filled &= !text.contains('.'),
                _ if is_filled => return Err(ParseTemplateError::TwoInOneSegment),
                _ => is_filled = true,
            }
        }
        let sample = parts.iter().map(|part| if let Part::Text(text) = part { text } else { "s" });
        sample.collect::<String>().parse::<Pattern>()?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_could_never_be_a_pattern_is_refused() {
        for wrong in [
            "",
            "a..b",
            "*{sub}",
            "{sub}*",
            "{user}",
            "**.{sub}",
            "{sub",
            "a b",
            "sub}",
            "{}",
            "{claim.}",
            "{claim}",
            "{sub.encode}",
            "{claim.x}*",
            "{claim.{sub}}",
            "a{claim.x}..b",
            "{ sub }",
        ] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong:?}");
        }
    }

    /// One user could otherwise choose a name with which his token gets the topic of another tenant.
    #[test]
    fn a_segment_has_one_placeholder() {
        for text in ["inbox.{claim.org}-{sub}", "{sub}{sub.encoded}", "a.{sub}{claim.b.c}.**"] {
            let error = text.parse::<Template>();
            assert!(matches!(error, Err(ParseTemplateError::TwoInOneSegment)), "{text}");
        }
        for text in ["inbox.{claim.org}.{sub}", "{sub}.x-{sub}", "a.x{claim.b.c}y.**", "a.{claim.a.b}.{sub}"]
        {
            text.parse::<Template>().expect(text);
        }
    }
}
