//! Who may do what: credentials, grants, and what covers what. Pure values: nothing here waits.
//!
//! A credential is shown to an [`Authority`], which is all that is configured, and becomes an [`Identity`],
//! which has [`Grants`]. This room knows nothing of requests and connections; where a credential comes
//! from, and what becomes of a connection whose credential ends, is not its business.

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

/// Why a credential is not accepted: for the operator's log. The client learns that it is not, and whether
/// it has expired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no credential was shown, and nothing is granted without one")]
    Missing,
    #[error("no [[key]] has the hash of this API key")]
    UnknownKey,
    #[error("the token cannot be read: {0}")]
    Malformed(String),
    #[error("no [[jwt]] is for the algorithm {algorithm} and the kid {kid:?}")]
    NoKey { algorithm: &'static str, kid: Option<String> },
    #[error(
        "the token is not signed by the key of a [[jwt]] for the algorithm {algorithm} and the kid {kid:?}"
    )]
    Signature { algorithm: &'static str, kid: Option<String> },
    #[error("the claim {claim} of the token is not what [[jwt]] {key:?} asks for")]
    Claim { key: String, claim: &'static str },
    #[error("the token of [[jwt]] {key:?} has expired")]
    Expired { key: String },
    #[error("the key that signed the token is not configured any more")]
    KeyGone,
}
