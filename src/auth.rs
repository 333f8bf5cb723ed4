//! Authentication and authorization: credentials, grants, and which pattern covers which. Pure values:
//! nothing here waits.
//!
//! An [`Authority`] holds the configuration. It turns a credential into an [`Identity`], which has
//! [`Grants`]. This room knows nothing of requests and connections: `http` finds the credential in a request,
//! and ends a connection whose credential has ended.

use std::sync::Arc;

mod algorithm;
mod authority;
mod check;
mod claims;
mod containment;
mod es512;
mod grants;
mod hook;
mod issuer;
mod jwks;
mod jwt;
mod key;
mod mint;
mod subject;
mod tables;
mod template;

pub use self::{
    authority::{Authority, Identity},
    check::{Check, Finding},
    claims::Claims,
    containment::covers,
    grants::{GrantList, Grants, members_of},
    hook::{HookAnswer, HookSettings, HookTerms},
    issuer::{Issuer, KeySet, Place, Source, safe_url},
    jwks::parse as parse_keys,
    jwt::{MAX_TOKEN_BYTES, MIN_SECRET_BYTES, is_blanked, is_secret},
    key::{Digest, new_key, new_secret},
    mint::{MintError, Minted, SigningKey, Wish, mint},
    subject::{MAX_SUBJECT_BYTES, is_subject},
    tables::{AnonymousTable, HookTable, InLine, JwtTable, KeyTable, Read},
    template::{ParseTemplateError, Template, Unfilled, Values, Why},
};

/// Why a credential is refused, for the operator's log. The client learns less: see
/// [`harmless`](Self::harmless).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the request has no credential, and nothing is granted without one")]
    Missing,
    #[error("unknown API key: no [[key]] has its sha256, which begins with {sha256}")]
    UnknownKey { sha256: String },
    #[error("the token cannot be read: {0}")]
    Malformed(String),
    #[error("no [[jwt]] fits the token: alg {algorithm}, kid {}", kid_in_words(kid.as_deref()))]
    NoKey { algorithm: &'static str, kid: Option<String> },
    #[error(
        "bad signature: no [[jwt]] that fits the token has signed it: alg {algorithm}, kid {}",
        kid_in_words(kid.as_deref())
    )]
    Signature { algorithm: &'static str, kid: Option<String> },
    #[error("the claims of the token cannot be read (kid {}): {why}", kid_in_words(kid.as_deref()))]
    Claims { kid: Option<String>, why: String },
    #[error("the claim {claim} of the token does not fit [[jwt]] {key:?}")]
    Claim { key: String, claim: &'static str },
    #[error("the token of [[jwt]] {key:?} has expired")]
    Expired { key: String },
    #[error(
        "the keys of {} are not known, or not the one that the token names: alg {algorithm}, kid {}",
        issuers.join(", "),
        kid_in_words(kid.as_deref())
    )]
    Unsettled { algorithm: &'static str, kid: Option<String>, issuers: Vec<String>, sources: Sources },
    #[error(
        "bad signature: no key of its issuer that fits the token has signed it: alg {algorithm}, kid {}",
        kid_in_words(kid.as_deref())
    )]
    NotOfIssuer { algorithm: &'static str, kid: Option<String>, sources: Sources },
    #[error("the key that signed the token is no longer configured")]
    KeyGone,
}

/// The issuers that may have signed a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The keys that are not known, and must be fetched before the token can be judged.
    pub unknown: Vec<Arc<Source>>,
    /// The keys that have not signed it. This counts only while they are fresh.
    pub denied: Vec<Arc<Source>>,
    /// The token names one of these issuers, and its `[[jwt]]` has this `iss`.
    pub are_named: bool,
}

fn kid_in_words(kid: Option<&str>) -> String {
    kid.map_or("none".into(), |kid| format!("{kid:?}"))
}

impl Refused {
    /// The part of the reason that the client may know, since only the holder of a signed token gets it.
    pub fn harmless(&self) -> Option<String> {
        match self {
            Self::Claims { why, .. } => Some(why.clone()),
            Self::Claim { claim: "nbf", .. } => Some("nbf is in the future".into()),
            Self::Claim { claim: "sub", .. } => Some("sub belongs to another issuer".into()),
            Self::Claim { claim, .. } => Some(format!("{claim} is not the one that this server expects")),
            _ => None,
        }
    }
}
