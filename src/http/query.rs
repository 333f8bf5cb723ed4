//! The query of a request, read strictly: an error names the parameter, and nothing is guessed.

use std::{borrow::Cow, str::FromStr, time::Duration};

use axum::extract::Request;
use percent_encoding::percent_decode_str;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{parameters::Parameters, problem::Problem};
use crate::{
    log::Start,
    message::{Id, Pattern},
};

/// The parameters of a query, decoded.
#[derive(Debug, Default)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// The query of a request for a resource with these parameters.
    ///
    /// # Errors
    /// If it is not UTF-8, or if an unknown name was probably meant for a known one.
    pub fn of(request: &'a Request, parameters: &Parameters) -> Result<Self, Problem> {
        Self::parse(request.uri().query(), parameters)
    }

    pub fn parse(query: Option<&'a str>, parameters: &Parameters) -> Result<Self, Problem> {
        let query = query.unwrap_or_default();
        if query.contains('%') && percent_decode_str(query).decode_utf8().is_err() {
            return Err(Problem::bad_request("the query is not UTF-8; percent-encode its bytes in UTF-8"));
        }
        let query = Self(match query.contains(['%', '+']) {
            true => form_urlencoded::parse(query.as_bytes()).collect(),
            false => plain_pairs(query).map(|(name, value)| (name.into(), value.into())).collect(),
        });
        parameters.check(query.0.iter().map(|(name, _)| &**name))?;
        Ok(query)
    }

    /// Every value of a parameter that may be repeated.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The value of a parameter that may be given once.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.all(name);
        let value = values.next();
        match values.next() {
            Some(_) => Err(Problem::bad_request(format!("{name} is given twice; give it once"))),
            None => Ok(value),
        }
    }

    /// On when empty, `1` or `true`; off when `0`, `false` or not given.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        self.one(name)?.map_or(Ok(false), |value| flag(name, value))
    }
}

/// The parameters of a query in which nothing is encoded, as in most: those that the decoder would give, for less
/// work.
fn plain_pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// On when empty, `1` or `true`; off when `0` or `false`.
pub fn flag(name: &str, value: &str) -> Result<bool, Problem> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(Problem::bad_request(format!("{name}: expected 1 or true, or 0 or false"))),
    }
}

/// A number within limits, or the default.
pub fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: Option<&str>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, Problem> {
    let Some(text) = value else { return Ok(default) };
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_plain && range.contains(&number) => Ok(number),
        _ => Err(Problem::bad_request(format!(
            "{name}: expected a number from {} to {}",
            range.start(),
            range.end()
        ))),
    }
}

/// A pattern, or the problem with the value of `name`.
pub fn pattern(name: &str, text: &str) -> Result<Pattern, Problem> {
    text.parse().map_err(|error| Problem::bad_request(format!("{name} {text:?}: {error}")).about(text))
}

/// The parameters that say where to start, by rank. All of them are checked, also those that do not count.
#[derive(Debug, Default)]
pub struct StartFields<'a> {
    pub after: Option<&'a str>,
    pub last: Option<&'a str>,
    pub since: Option<&'a str>,
}

impl StartFields<'_> {
    pub fn parse(&self) -> Result<Option<Start>, Problem> {
        let after = self.after.map(after).transpose()?;
        let last = match self.last {
            Some(_) => Some(Start::Last(number("last", self.last, 0, 0..=u32::MAX as usize)?)),
            None => None,
        };
        let since = self.since.map(since).transpose()?.map(Start::Since);
        Ok(after.or(last).or(since))
    }
}

fn after(text: &str) -> Result<Start, Problem> {
    match text.parse() {
        Ok(Id::ZERO) => Ok(Start::Everything),
        Ok(cursor) => Ok(Start::After(cursor)),
        Err(_) => Err(Problem::bad_request(
            "after: not a cursor; send one that the server has given, or 0 for everything",
        )),
    }
}

/// The start that a `Last-Event-ID` asks for. `EventSource` can never drop that header, so an unreadable value
/// becomes a gap instead of a refusal.
pub fn last_event_id(value: &[u8]) -> Option<Start> {
    let text = String::from_utf8_lossy(value);
    match text.trim() {
        "" => None,
        text => Some(after(text).unwrap_or_else(|_| Start::Unreadable(repeated(text)))),
    }
}

/// How many bytes of a text that is no cursor are repeated. The ids of other servers have room in it.
const MAX_REPEATED_BYTES: usize = 64;

/// The text as a gap repeats it. A request may name ten thousand topics, each has a gap, and JSON writes six bytes for a
/// control character.
fn repeated(text: &str) -> String {
    let mut kept = String::new();
    for character in text.chars() {
        if kept.len() + character.len_utf8() > MAX_REPEATED_BYTES {
            kept.push('…');
            break;
        }
        kept.push(if character.is_ascii_control() { ' ' } else { character });
    }
    kept
}

/// A duration before now, or an RFC 3339 time.
fn since(text: &str) -> Result<Id, Problem> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Id::now().minus(age));
    }
    // In a query a plus sign that was not encoded arrives as a space.
    let time = OffsetDateTime::parse(&text.trim().replace(' ', "+"), &Rfc3339);
    let micros = time.ok().and_then(|time| u64::try_from(time.unix_timestamp_nanos().max(0) / 1_000).ok());
    micros.filter(|micros| *micros <= Id::MAX.get()).map(Id::new).ok_or_else(|| {
        Problem::bad_request("since: expected a duration such as 90s, 10m or 2h, or an RFC 3339 time")
    })
}

/// How long a poll may be held.
pub fn wait(value: Option<&str>) -> Result<Duration, Problem> {
    number("wait", value, 25, 0..=60).map(Duration::from_secs)
}

/// How many messages one answer to a poll may contain.
pub fn limit(value: Option<&str>) -> Result<usize, Problem> {
    number("limit", value, 100, 1..=1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(after: Option<&str>, last: Option<&str>, since: Option<&str>) -> Result<Option<Start>, Problem> {
        StartFields { after, last, since }.parse()
    }

    #[test]
    fn the_first_start_that_is_given_counts_and_all_are_checked() {
        let given = start(Some("7"), Some("3"), Some("10m")).expect("all are well formed");
        assert_eq!(given, Some(Start::After(Id::new(7))));
        assert_eq!(start(None, Some("3"), Some("10m")).expect("well formed"), Some(Start::Last(3)));
        assert_eq!(start(Some("0"), None, None).expect("well formed"), Some(Start::Everything));
        assert_eq!(start(None, None, None).expect("well formed"), None);
        assert!(start(Some("7"), Some("-3"), None).is_err());
        assert!(start(Some("7"), None, Some("ten minutes")).is_err());
        assert!(start(Some(""), None, None).is_err());
    }

    #[test]
    fn a_plain_query_has_the_parameters_that_the_decoder_gives() {
        for query in
            ["", "&", "=", "a", "a=", "=b", "a=b", "a=b&c=d", "a=b=c", "&&a=1&&b&", "a==", "é=ü", "a=1&a=2"]
        {
            let decoded = form_urlencoded::parse(query.as_bytes());
            let decoded: Vec<_> =
                decoded.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
            let plain: Vec<_> =
                plain_pairs(query).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            assert_eq!(plain, decoded, "{query:?}");
        }
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let time = |text: &str| since(text).map(Id::get).ok();
        assert_eq!(time("1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(time("1970-01-01T01:00:00 01:00"), Some(0));
        assert_eq!(time("1970-01-01T01:00:00.5+01:00"), Some(500_000));
        assert_eq!(time("1970-01-01t00:00:01.000000999z"), Some(1_000_000));
        assert_eq!(time("1969-12-31T23:59:59Z"), Some(0), "a time before every message");
        assert!(time("90s").is_some() && time("2h").is_some());
        for wrong in
            ["", "yesterday", "-1s", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "10"]
        {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_last_event_id_is_never_refused() {
        assert_eq!(last_event_id(b""), None);
        assert_eq!(last_event_id(b"5"), Some(Start::After(Id::new(5))));
        assert_eq!(last_event_id(b"x"), Some(Start::Unreadable("x".into())));
        assert!(matches!(last_event_id(b"\xff"), Some(Start::Unreadable(_))));
        for (sent, kept) in [
            ("urn:uuid:4f2a".to_owned(), "urn:uuid:4f2a".to_owned()),
            ("x".repeat(64), "x".repeat(64)),
            ("x".repeat(65), "x".repeat(64) + "…"),
            ("é".repeat(33), "é".repeat(32) + "…"),
            ("a\u{1}b\tc".to_owned(), "a b c".to_owned()),
        ] {
            assert_eq!(last_event_id(sent.as_bytes()), Some(Start::Unreadable(kept)), "{sent:?}");
        }
    }
}
