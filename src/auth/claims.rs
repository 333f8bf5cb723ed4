//! The claims of a token (RFC 7519 §4.1), read strictly.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{grants::GrantList, template::Values};
use crate::message::Object;

/// The claims that the server reads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    #[serde(skip_serializing_if = "Audience::is_empty")]
    pub aud: Audience,
    pub exp: NumericDate,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<NumericDate>,
    /// When the token was issued, in whole seconds since the Unix epoch, if it says so in a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// The grants.
    pub rejoin: GrantList,
    /// JSON that is told with the subject where it is present.
    #[serde(skip)]
    pub info: Option<Arc<str>>,
    /// The other claims that are strings, for grants that name them.
    #[serde(flatten)]
    pub others: BTreeMap<String, String>,
}

impl Claims {
    /// Reads the middle part of a token, which a key has signed.
    ///
    /// # Errors
    /// The claim and its mistake.
    pub fn read(part: &str) -> Result<Self, String> {
        Written::read(part)?.try_into()
    }

    /// The values for the grants of this token, which speaks for `subject`.
    pub fn values<'a>(&'a self, subject: Option<&'a str>) -> Values<'a> {
        Values { sub: subject, iss: self.iss.as_deref(), others: Some(&self.others) }
    }
}

/// Claims as a token has them: an object in which no name comes twice.
pub struct Written(BTreeMap<String, Box<RawValue>>);

impl Written {
    /// Reads the middle part of a token.
    ///
    /// # Errors
    /// The mistake, in words.
    pub fn read(part: &str) -> Result<Self, String> {
        let json =
            BASE64URL.decode(part).map_err(|error| format!("the claims are not base64url: {error}"))?;
        Self::parse(&json)
    }

    fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("the claims: {}", without_place(&error)))
    }

    /// Takes out the claim of this name.
    ///
    /// # Errors
    /// The claim and its mistake.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, String> {
        let Some(raw) = self.0.remove(name) else { return Ok(None) };
        serde_json::from_str(raw.get())
            .map(Some)
            .map_err(|error| format!("{name}: {}", without_place(&error)))
    }

    /// True if the token has a claim of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names in the claim of this name, if it is an object.
    pub fn names_in(&self, name: &str) -> Vec<String> {
        let object = self.0.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok());
        object.map(|object: BTreeMap<String, IgnoredAny>| object.into_keys().collect()).unwrap_or_default()
    }

    /// Takes out the second in which the token was issued. A mistake in it counts as none, as if it were missing: it
    /// matters only while tokens of the subject are refused.
    fn take_iat(&mut self) -> Option<u64> {
        let seconds = self.take::<Option<f64>>("iat").ok().flatten().flatten()?;
        (0.0..=LATEST_SECONDS).contains(&seconds).then_some(seconds as u64)
    }

    /// Takes out the grants of the token.
    ///
    /// # Errors
    /// The mistake in them.
    pub fn take_grants(&mut self) -> Result<GrantList, String> {
        Ok(self.take("rejoin")?.map(|Object(list)| list).unwrap_or_default())
    }

    /// The claims that are left, as far as they are strings.
    pub fn texts(self) -> BTreeMap<String, String> {
        let text = |raw: &RawValue| serde_json::from_str(raw.get()).ok();
        self.0.into_iter().filter_map(|(name, raw)| Some((name, text(&raw)?))).collect()
    }
}

/// JSON that is told with a subject. `null` is none.
pub fn info(raw: &RawValue) -> Option<Arc<str>> {
    Some(raw.get()).filter(|json| *json != "null").map(Into::into)
}

/// The mistake without its line and column, since nobody has the claims before them.
fn without_place(error: &serde_json::Error) -> String {
    let error = error.to_string();
    error.rsplit_once(" at line ").map_or(error.as_str(), |(what, _)| what).to_owned()
}

impl TryFrom<Written> for Claims {
    /// The claim and its mistake.
    type Error = String;

    fn try_from(mut claims: Written) -> Result<Self, String> {
        Ok(Self {
            sub: claims.take("sub")?.flatten(),
            iss: claims.take("iss")?.flatten(),
            aud: claims.take("aud")?.flatten().unwrap_or_default(),
            exp: claims.take("exp")?.ok_or("exp is missing")?,
            nbf: claims.take("nbf")?.flatten(),
            iat: claims.take_iat(),
            rejoin: claims.take_grants()?,
            info: claims.take::<Box<RawValue>>("rejoin_info")?.as_deref().and_then(info),
            others: claims.texts(),
        })
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;

        impl<'de> Visitor<'de> for Unique {
            type Value = BTreeMap<String, Box<RawValue>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut claims = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if claims.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("{name:?} is given twice")));
                    }
                    claims.insert(name, value);
                }
                Ok(claims)
            }
        }

        deserializer.deserialize_map(Unique).map(Self)
    }
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
        let wrong = |_| D::Error::custom("expected a string or a list of strings");
        Ok(Self(match Written::deserialize(deserializer).map_err(wrong)? {
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

impl NumericDate {
    /// True for a time in the year 9999 or later. An issuer that counts milliseconds makes such times.
    pub fn is_far(self) -> bool {
        self.0 >= UNIX_EPOCH + Duration::from_secs_f64(LATEST_SECONDS)
    }
}

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer).ok().filter(|it| it.is_finite() && *it >= 0.0);
        let wrong = || D::Error::custom("expected a time as a number of seconds since 1970");
        let seconds = seconds.ok_or_else(wrong)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Claims, String> {
        Written::parse(json.as_bytes())?.try_into()
    }

    fn parse(json: &str) -> Option<Claims> {
        read(json).ok()
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
            r#"{"exp":1,"rejoin":{"admin":true,"admin":false}}"#,
            r#"{"exp":1,"rejoin":[["a"],[],true,true]}"#,
            r#"[null,null,[],1,null,{}]"#,
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_mistake_names_its_claim() {
        for (wrong, mistake) in [
            ("{}", "exp is missing"),
            (r#"{"exp":"2000000000"}"#, "exp: expected a time as a number of seconds since 1970"),
            (r#"{"exp":-1}"#, "exp: expected a time as a number of seconds since 1970"),
            (r#"{"exp":1,"aud":7}"#, "aud: expected a string or a list of strings"),
            (r#"{"exp":1,"sub":7}"#, "sub: invalid type: integer `7`, expected a string"),
            (
                r#"{"exp":1,"rejoin":{"subscribe":["a..b"]}}"#,
                "rejoin: \"a..b\": a topic has no empty segment",
            ),
            (r#"{"exp":1,"sub":"a","sub":"b"}"#, "the claims: \"sub\" is given twice"),
            ("[1]", "the claims: invalid type: sequence, expected an object"),
            (r#"{"exp":1"#, "the claims: EOF while parsing an object"),
        ] {
            assert_eq!(read(wrong), Err(mistake.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn a_claim_that_is_null_is_none() {
        let claims = parse(r#"{"exp":1,"sub":null,"iss":null,"aud":null,"nbf":null}"#).expect("claims");
        let Claims { sub, iss, aud, nbf, .. } = claims;
        assert_eq!((sub, iss, aud, nbf), (None, None, Audience::default(), None));
    }

    #[test]
    fn other_claims_are_kept_if_they_are_strings() {
        let claims = parse(r#"{"exp":1,"tenant":"t","n":1,"list":["t"],"none":null}"#).expect("claims");
        assert_eq!(claims.others.into_iter().collect::<Vec<_>>(), [("tenant".to_owned(), "t".to_owned())]);
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
