//! Tokens for development, signed with the secret of the configuration.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{EncodingKey, Header, encode};

use super::{
    algorithm::Algorithm,
    authority::{Authority, Terms, TokenKey},
    claims::{Audience, Claims, NumericDate},
    es512,
    grants::GrantList,
    jwt::Material,
    template::Unfilled,
};

/// Why a token cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error(
        "there is nothing to sign with: give --jwt-secret, --key FILE, or --config FILE of a server that has a [[jwt]]"
    )]
    NoKey,
    #[error("[[jwt]] {0} can only verify: give the private key with --key FILE")]
    OnlyPublic(String),
    #[error("no [[jwt]] of the configuration accepts a token of this key")]
    Unknown,
    #[error("this is a public key, which cannot sign: give the private one")]
    Public,
    #[error("cannot sign with a JWK: give the private key as PEM")]
    Jwk,
    #[error("not a private key in PKCS #8; `openssl pkcs8 -topk8 -nocrypt -in FILE` converts one")]
    Unreadable,
}

/// A key that signs tokens.
pub struct SigningKey(EncodingKey);

/// The content of a token.
#[derive(Clone, Debug)]
pub struct Wish {
    pub sub: Option<String>,
    pub rejoin: GrantList,
    pub ttl: Duration,
}

impl SigningKey {
    /// Reads a private key as PEM, or a shared secret.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn parse(text: &str) -> Result<Self, MintError> {
        let pem = match Material::of(text) {
            Material::Secret(secret) => return Ok(Self(EncodingKey::from_secret(secret.as_bytes()))),
            Material::Jwk(_) => return Err(MintError::Jwk),
            Material::Pem(pem) if pem.contains("PUBLIC KEY-----") => return Err(MintError::Public),
            Material::Pem(pem) => pem.as_bytes(),
        };
        let kinds = [EncodingKey::from_rsa_pem, EncodingKey::from_ec_pem, EncodingKey::from_ed_pem];
        kinds.iter().find_map(|read| read(pem).ok()).map(Self).ok_or(MintError::Unreadable)
    }

    /// Signs a token, if the key fits this algorithm.
    fn sign(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Claims) -> Option<String> {
        let Algorithm::Known(algorithm) = algorithm else {
            return es512::sign(self.0.as_bytes(), kid, claims);
        };
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
        encode(&header, claims, &self.0).ok()
    }
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    pub token: String,
    /// The patterns that were wished for and grant nothing to this token.
    pub unfilled: Vec<Unfilled>,
}

impl Minted {
    /// A token for a server that has this key, if it is known.
    fn new(known: Option<&TokenKey>, claims: &Claims, token: String) -> Self {
        let mut unfilled = Vec::new();
        let terms = known.map(|known| &*known.terms);
        let subject = match terms {
            Some(terms) => terms.subject_of(claims),
            None => Terms::default().subject_of(claims),
        };
        let (own, values) = (&claims.rejoin, claims.values(subject.as_deref()));
        let mut note = |found| unfilled.push(found);
        match terms {
            Some(terms) => terms.grants_of(own, &values, &mut note),
            None => GrantList::grant([own], &values, &mut note),
        };
        Self { token, unfilled }
    }
}

/// A token that `authority` accepts until it expires. `key` signs it; without one, the first configured
/// secret does.
///
/// # Errors
/// If nothing can sign, or if `authority` would not accept the signature of `key`. This is not checked if it
/// has no token keys.
pub fn mint(
    authority: &Authority,
    key: Option<&SigningKey>,
    wish: &Wish,
    now: SystemTime,
) -> Result<Minted, MintError> {
    let known = &authority.token_keys;
    let claims = |of: Option<&TokenKey>| Claims {
        sub: wish.sub.clone(),
        iss: of.and_then(|key| key.terms.iss.clone()),
        aud: Audience(of.and_then(|key| key.terms.aud.clone()).into_iter().collect()),
        exp: NumericDate(now + wish.ttl),
        nbf: None,
        iat: now.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()),
        rejoin: wish.rejoin.clone(),
        info: None,
        others: BTreeMap::new(),
    };
    let Some(key) = key else {
        let signed = known.iter().find_map(|known| {
            let claims = claims(Some(known));
            Some(Minted::new(Some(known), &claims, known.verifier.sign(&claims)?))
        });
        let names: Vec<_> = known.iter().map(|known| format!("{:?}", known.terms.name)).collect();
        return signed.ok_or_else(|| match names.is_empty() {
            true => MintError::NoKey,
            false => MintError::OnlyPublic(names.join(", ")),
        });
    };
    if known.is_empty() {
        let family = key.0.family();
        let claims = claims(None);
        let mut algorithms =
            family.algorithms().iter().map(|one| Algorithm::Known(*one)).chain([Algorithm::Es512]);
        let signed = algorithms.find_map(|algorithm| key.sign(algorithm, None, &claims));
        return signed.map(|token| Minted::new(None, &claims, token)).ok_or(MintError::Unreadable);
    }
    let signed = known.iter().filter_map(|known| {
        let (verifier, claims) = (&known.verifier, claims(Some(known)));
        let token = key.sign(verifier.algorithm(), verifier.kid(), &claims)?;
        Some(Minted::new(Some(known), &claims, token))
    });
    let mut accepted = signed.filter(|minted| authority.identify(Some(&minted.token), now).is_ok());
    accepted.next().ok_or(MintError::Unknown)
}
