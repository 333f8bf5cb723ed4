//! Tokens for development, made where the secret is.

use std::time::{Duration, SystemTime};

use super::{
    authority::Authority,
    claims::{Audience, Claims, NumericDate},
    grants::GrantList,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error(
        "a token is signed with a shared secret: give --jwt-secret, or a [[jwt]] with a secret in the configuration file"
    )]
    NoSecret,
}

/// A token that `authority` accepts until `ttl` from now is over, signed by the first of its keys that can sign.
///
/// # Errors
/// If it only has keys that verify.
pub fn mint(
    authority: &Authority,
    sub: Option<String>,
    rejoin: GrantList,
    ttl: Duration,
    now: SystemTime,
) -> Result<String, MintError> {
    let key = authority.token_keys.iter().find(|key| key.verifier.is_shared()).ok_or(MintError::NoSecret)?;
    let claims = Claims {
        sub,
        iss: key.iss.clone(),
        aud: Audience(key.aud.clone().into_iter().collect()),
        exp: NumericDate(now + ttl),
        nbf: None,
        rejoin,
    };
    key.verifier.sign(&claims).ok_or(MintError::NoSecret)
}
