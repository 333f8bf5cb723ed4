//! The payload of a message, and its declared type.

use std::borrow::Cow;

/// The bytes of a message, exactly as they were published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub kind: PayloadKind,
    /// The declared type, if it says more than [`kind`](Self::kind).
    pub content_type: Option<Box<str>>,
    pub bytes: Box<[u8]>,
}

/// The kind of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// Valid JSON, and so UTF-8.
    Json,
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// Why bytes are not what their publisher declared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("the body is not valid JSON: {0}")]
    Json(String),
    /// Some readers would ignore it and others refuse it (RFC 8259 §8.1), and the server changes no payload.
    #[error("the body begins with a byte order mark (U+FEFF): remove it, JSON begins without one")]
    Mark,
    #[error("Content-Type is not a media type; expected one such as application/json")]
    ContentType,
}

/// The media type of JSON.
pub const JSON: &str = "application/json";
const OCTETS: &str = "application/octet-stream";
/// The longest declared type.
pub const MAX_TYPE_BYTES: usize = 255;
/// The type that curl sends by default, so it says nothing.
const UNSAID: &str = "application/x-www-form-urlencoded";

impl Payload {
    /// A payload of JSON. The caller has checked that it is JSON.
    pub fn json(bytes: impl Into<Box<[u8]>>) -> Self {
        Self { kind: PayloadKind::Json, content_type: None, bytes: bytes.into() }
    }

    /// A payload of text.
    pub fn text(text: impl Into<String>) -> Self {
        let bytes = text.into().into_bytes().into();
        Self { kind: PayloadKind::Text, content_type: None, bytes }
    }

    /// Determines the kind of `bytes`, by the type that the publisher declared or else by their content.
    ///
    /// # Errors
    /// [`PayloadError::Json`] or [`PayloadError::Mark`] if they are declared as JSON and are not, [`PayloadError::ContentType`] if the
    /// declared type is not a media type.
    pub fn declared(bytes: &[u8], content_type: Option<&str>) -> Result<Self, PayloadError> {
        let essence = match content_type {
            Some(declared) => essence(declared)?,
            None => UNSAID.into(),
        };
        let is_text = || std::str::from_utf8(bytes).is_ok();
        let kind = match &*essence {
            UNSAID if check_json(bytes).is_ok() => PayloadKind::Json,
            UNSAID if is_text() => PayloadKind::Text,
            essence if essence == JSON || essence.ends_with("+json") => {
                check_json(bytes)?;
                PayloadKind::Json
            }
            essence if essence.starts_with("text/") && is_text() => PayloadKind::Text,
            _ => PayloadKind::Binary,
        };
        let content_type = match (kind, &*essence) {
            (PayloadKind::Binary, UNSAID) => Some(OCTETS.into()),
            (_, UNSAID) | (_, JSON) | (PayloadKind::Text, "text/plain") => None,
            _ => content_type.map(Into::into),
        };
        Ok(Self { kind, content_type, bytes: bytes.into() })
    }
}

/// The media type without its parameters, in lower case (RFC 9110 §8.3.1).
fn essence(declared: &str) -> Result<Cow<'_, str>, PayloadError> {
    if declared == JSON {
        return Ok(declared.into());
    }
    let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let valid = declared.len() <= MAX_TYPE_BYTES
        && declared.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        && essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
    if valid { Ok(essence.into()) } else { Err(PayloadError::ContentType) }
}

fn check_json(bytes: &[u8]) -> Result<(), PayloadError> {
    if bytes.starts_with("\u{feff}".as_bytes()) {
        return Err(PayloadError::Mark);
    }
    std::str::from_utf8(bytes).map_err(|_| PayloadError::Json("not valid UTF-8".into()))?;
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
        .map(|_| ())
        .map_err(|error| PayloadError::Json(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(bytes: &[u8], content_type: Option<&str>) -> (PayloadKind, Option<String>) {
        let payload = Payload::declared(bytes, content_type).expect("a payload");
        (payload.kind, payload.content_type.map(Into::into))
    }

    #[test]
    fn a_payload_without_a_type_is_detected_by_its_content() {
        for unsaid in [None, Some(UNSAID)] {
            assert_eq!(declared(b"{\"a\":1}", unsaid), (PayloadKind::Json, None));
            assert_eq!(declared(b"a=1", unsaid), (PayloadKind::Text, None));
            assert_eq!(declared(b"\xff", unsaid), (PayloadKind::Binary, Some(OCTETS.into())));
            assert_eq!(declared(b"", unsaid), (PayloadKind::Text, None));
        }
    }

    #[test]
    fn a_declared_type_is_kept() {
        let svg = Some("image/svg+xml".to_owned());
        assert_eq!(declared(b"<svg/>", svg.as_deref()), (PayloadKind::Binary, svg));
        assert_eq!(declared(b"<b>", Some("text/html")), (PayloadKind::Text, Some("text/html".into())));
        assert_eq!(declared(b"1", Some("text/plain; charset=utf-8")), (PayloadKind::Text, None));
        assert_eq!(declared(b"1", Some("application/json")), (PayloadKind::Json, None));
        let problem = Some("application/problem+json".to_owned());
        assert_eq!(declared(b"{}", problem.as_deref()), (PayloadKind::Json, problem));
        let latin = Some("text/plain; charset=iso-8859-1".to_owned());
        assert_eq!(declared(b"\xe4", latin.as_deref()), (PayloadKind::Binary, latin));
    }

    #[test]
    fn declared_json_must_parse() {
        for wrong in [&b"{"[..], b"", b"\"a\nb\"", b"\"\xff\"", b"1 2"] {
            let error = Payload::declared(wrong, Some("application/json"));
            assert!(matches!(error, Err(PayloadError::Json(_))), "{wrong:?}");
        }
        let marked = Payload::declared(b"\xef\xbb\xbf1", Some("application/json"));
        assert_eq!(marked, Err(PayloadError::Mark));
    }

    #[test]
    fn a_type_that_is_no_media_type_is_refused() {
        for wrong in ["", "json", "a/", "/b", "a b/c", "text/plain\u{7f}", "té/xt"] {
            assert_eq!(Payload::declared(b"", Some(wrong)), Err(PayloadError::ContentType), "{wrong:?}");
        }
    }
}
