//! API keys: random, shown once, and stored as hashes.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};

/// The beginning of every API key, so that a leaked one can be recognized.
const PREFIX: &str = "rejoin_";
/// Too long to be guessed, and so a fast hash is enough.
const KEY_BYTES: usize = 32;

/// A new API key. Store only its [`Digest`].
pub fn new_key() -> String {
    format!("{PREFIX}{}", new_secret())
}

/// A new secret that signs tokens: random text of letters, digits, `-` and `_`.
pub fn new_secret() -> String {
    let mut bytes = [0; KEY_BYTES];
    rand::fill(&mut bytes).expect("the system gives random numbers");
    BASE64URL.encode(bytes)
}

/// The SHA-256 of a secret.
///
/// It has no `PartialEq` on purpose. [`is`](Self::is) compares digests in constant time.
#[derive(Clone, Copy)]
pub struct Digest([u8; digest::SHA256_OUTPUT_LEN]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the SHA-256 of a key in 64 hexadecimal digits, as `rejoin key new` prints it")]
pub struct ParseDigestError;

impl Digest {
    /// The SHA-256 of a secret.
    pub fn of(secret: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, secret);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The beginning of the hash, by which an operator finds a key. Keys are random, so it helps no guess.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }

    pub fn to_bytes(self) -> [u8; digest::SHA256_OUTPUT_LEN] {
        self.0
    }

    /// Compares in constant time.
    pub fn is(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(ParseDigestError);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = str::from_utf8(digits).map_err(|_| ParseDigestError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| ParseDigestError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;

    #[test]
    fn a_key_is_recognized_by_its_digest_alone() {
        let (key, other) = (new_key(), new_key());
        assert!(key.len() == PREFIX.len() + 43 && key != other);
        assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')));
        let kept: Digest = Digest::of(key.as_bytes()).to_string().parse().expect("the printed digest");
        assert!(kept.is(&Digest::of(key.as_bytes())) && !kept.is(&Digest::of(other.as_bytes())));
        assert!(!kept.is(&Digest::of(kept.to_string().as_bytes())), "the digest is no key");
        for wrong in
            ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32), &"+0".repeat(32)]
        {
            assert_eq!(wrong.parse::<Digest>().err(), Some(ParseDigestError), "{wrong:?}");
        }
    }

    /// Says if a type can be compared by `==`, which stops at the first byte that differs.
    trait Otherwise {
        const HAS_EQ: bool = false;
    }
    struct Look<T>(PhantomData<T>);
    impl<T> Otherwise for Look<T> {}
    impl<T: PartialEq> Look<T> {
        const HAS_EQ: bool = true;
    }

    #[test]
    fn digests_are_compared_only_in_constant_time() {
        const { assert!(!Look::<Digest>::HAS_EQ && Look::<[u8; 32]>::HAS_EQ) }
    }
}
