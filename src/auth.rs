//! Authentication and authorization: credentials, grants, and which pattern covers which. Pure values:
//! nothing here waits.
//!
//! An [`Authority`] holds the configuration. It turns a credential into an [`Identity`], which has
//! [`Grants`]. This room knows nothing of requests and connections: `http` finds the credential in a request,
//! and ends a connection whose credential has ended.

mod algorithm;
mod authority;
mod claims;
mod containment;
mod es512;
mod grants;
mod jwt;
mod key;
mod mint;
mod tables;

pub use self::{
    authority::{Authority, Identity},
    claims::Claims,
    containment::covers,
    grants::{GrantList, Grants, Template},
    jwt::is_secret,
    key::{Digest, new_key},
    mint::{MintError, SigningKey, Wish, mint},
    tables::{AnonymousTable, InLine, JwtTable, KeyTable, Read},
};

/// Why a credential is refused, for the operator's log. The client learns only that it is not accepted, or
/// that it has expired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the request has no credential, and nothing is granted without one")]
    Missing,
    #[error("unknown API key: no [[key]] has its hash")]
    UnknownKey,
    #[error("the token cannot be read: {0}")]
    Malformed(String),
    #[error("no [[jwt]] has the algorithm {algorithm} and the kid {kid:?} of the token")]
    NoKey { algorithm: &'static str, kid: Option<String> },
    #[error(
        "bad signature: no key of a [[jwt]] with the algorithm {algorithm} and the kid {kid:?} has signed the token"
    )]
    Signature { algorithm: &'static str, kid: Option<String> },
    #[error("the claim {claim} of the token does not fit [[jwt]] {key:?}")]
    Claim { key: String, claim: &'static str },
    #[error("the token of [[jwt]] {key:?} has expired")]
    Expired { key: String },
    #[error("the key that signed the token is no longer configured")]
    KeyGone,
}
