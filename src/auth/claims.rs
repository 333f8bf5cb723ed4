//! The claims of a token (RFC 7519 §4.1), read strictly.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::grants::GrantList;

/// The claims that the server reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    #[serde(default, skip_serializing_if = "Audience::is_empty")]
    pub aud: Audience,
    pub exp: NumericDate,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<NumericDate>,
    /// The grants.
    #[serde(default)]
    pub rejoin: GrantList,
}

/// The audience of a token: one name, or several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Audience(pub Vec<String>);

impl Audience {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Several(Vec<String>),
        }
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::One(name) => vec![name],
            Written::Several(names) => names,
        }))
    }
}

/// Seconds since the Unix epoch, with or without a fraction (RFC 7519 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumericDate(pub SystemTime);

/// The year 9999. A later time counts as this one.
const LATEST_SECONDS: f64 = 253_402_300_799.0;

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        if !seconds.is_finite() || seconds < 0.0 {
            return Err(D::Error::custom("expected a time as seconds since the Unix epoch"));
        }
        Ok(Self(UNIX_EPOCH + Duration::from_secs_f64(seconds.min(LATEST_SECONDS))))
    }
}

impl Serialize for NumericDate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Rounded up, so that the token does not end too early.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_u64(since.as_secs_f64().ceil() as u64)
    }
}

/// Why the claims of a token do not count.
#[derive(Debug)]
pub enum Unverified {
    Signature,
    Malformed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Option<Claims> {
        serde_json::from_str(json).ok()
    }

    #[test]
    fn claims_of_the_wrong_type_are_refused() {
        for wrong in [
            "{}",
            r#"{"exp":null}"#,
            r#"{"exp":"2000000000"}"#,
            r#"{"exp":-1}"#,
            r#"{"exp":[2000000000]}"#,
            r#"{"exp":2000000000,"exp":2000000001}"#,
            r#"{"exp":1,"nbf":"0"}"#,
            r#"{"exp":1,"sub":7}"#,
            r#"{"exp":1,"sub":"a","sub":"b"}"#,
            r#"{"exp":1,"iss":["a"]}"#,
            r#"{"exp":1,"aud":{"a":1}}"#,
            r#"{"exp":1,"rejoin":null}"#,
            r#"{"exp":1,"rejoin":{"subscribe":"a"}}"#,
            r#"{"exp":1,"rejoin":{"subscribe":["a..b"]}}"#,
            r#"{"exp":1,"rejoin":{"admin":"true"}}"#,
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_may_have_fractions_and_lie_far_ahead() {
        let time = |json: &str| parse(json).expect(json).exp.0.duration_since(UNIX_EPOCH).expect("after it");
        assert_eq!(time(r#"{"exp":1.5}"#), Duration::from_millis(1_500));
        assert_eq!(time(r#"{"exp":1e300}"#).as_secs_f64(), LATEST_SECONDS);
        let claims = parse(r#"{"exp":1,"aud":["a","b"],"other":{}}"#).expect("claims");
        assert_eq!(claims.aud.0, ["a", "b"]);
    }
}
