//! The key of an account that an authority has made elsewhere, from its file (RFC 8555 §7.3.4).

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

/// The key binds the account of this server to the one that the operator has at the authority.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountKey {
    pub(crate) id: String,
    pub(crate) key: Vec<u8>,
}

/// Without the key.
impl fmt::Debug for AccountKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccountKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for AccountKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_ascii_whitespace();
        let (Some(id), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return Err(
                "expected the id of a key and the key, as the authority gives them, with a space between",
            );
        };
        let key = BASE64_URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).ok().filter(|key| !key.is_empty());
        let key = key.ok_or("the key, after its id, is not in base64url")?;
        Ok(Self { id: id.to_owned(), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_and_a_key_are_read_and_the_key_is_never_shown() {
        for text in ["kid-1 c2VjcmV0LQ\n", "kid-1\nc2VjcmV0LQ==\n"] {
            let read = text.parse::<AccountKey>().expect("both");
            assert_eq!((read.id.as_str(), read.key.as_slice()), ("kid-1", &b"secret-"[..]));
            assert_eq!(format!("{read:?}"), r#"AccountKey { id: "kid-1", .. }"#);
        }
        for wrong in ["", "kid-1", "kid-1 =", "kid-1 a+/b", "kid-1 c2VjcmV0LQ more"] {
            let error = wrong.parse::<AccountKey>().expect_err(wrong);
            assert!(!error.contains("c2Vj"), "{error}");
        }
    }
}
