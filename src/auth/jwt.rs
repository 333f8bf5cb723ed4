//! Signatures of tokens: finds the key that made one. Each key is bound to its algorithm.

use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{
    Algorithm as Known, AlgorithmFamily, DecodingKey,
    DecodingKeyKind::{RsaModulusExponent, SecretOrDer},
    EncodingKey, Header, crypto, encode,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{Refused, algorithm::Algorithm, claims::Claims, es512, key::Digest};
use crate::message::Object;

/// The longest token that is read: more than an HTTP header can carry.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;
/// The shortest shared secret. One that is shorter than its hash can be guessed (RFC 7518 §3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// The shortest RSA modulus: 2048 bits (RFC 7518 §3.3).
const MIN_RSA_BYTES: usize = 256;

/// A key that verifies tokens of one algorithm.
#[derive(Clone)]
pub struct Verifier {
    algorithm: Algorithm,
    /// Tokens that name another `kid` are not tried.
    kid: Option<String>,
    key: DecodingKey,
    fingerprint: Digest,
}

/// The text of a key, and its form.
#[derive(Clone, Copy, Debug)]
pub enum Material<'a> {
    /// A shared secret, as it is.
    Secret(&'a str),
    /// A public key.
    Pem(&'a str),
    /// A public key or a shared one.
    Jwk(&'a str),
}

/// True if this can be a shared secret. A text that begins like a PEM key or a JWK cannot: with it, every
/// owner of the public key could sign.
pub fn is_secret(text: &str) -> bool {
    matches!(Material::of(text), Material::Secret(_))
}

/// True if only stars stand where a secret should be.
pub fn is_blanked(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'*')
}

impl<'a> Material<'a> {
    /// Detects the form of a key by the beginning of its text.
    pub fn of(text: &'a str) -> Self {
        match text.trim_start().as_bytes() {
            [b'-', b'-', b'-', b'-', b'-', ..] => Self::Pem(text),
            [b'{', ..] => Self::Jwk(text),
            // The line end comes from the editor.
            _ => Self::Secret(text.trim_end_matches(['\r', '\n'])),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "algorithm {0:?} is not one of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA"
    )]
    Algorithm(String),
    #[error("{0} needs another kind of key")]
    Kind(&'static str),
    #[error("the secret is too short: it needs at least {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    #[error(
        "the secret begins like a PEM key or a JWK, and with it every owner of the public key could sign: \
         put it into pem, jwk or file, and set the algorithm of the key"
    )]
    KeyAsSecret,
    #[error(
        "algorithm {0} signs by a secret, and jwks and issuer have public keys: leave algorithm out, or name one such \
         as RS256"
    )]
    Shared(String),
    #[error("*** is not a key: `rejoin config` prints it in place of a secret; put the secret here")]
    Blanked,
    #[error("this is a private key; give the public one, which is enough to verify")]
    Private,
    #[error("cannot read the key as a public key of {0}")]
    Unreadable(&'static str),
    #[error("cannot read the JWK: {0}")]
    Jwk(String),
    #[error("this is a set of JWKs: give its URL as jwks, or put each key into its own [[jwt]]")]
    JwkSet,
    #[error("the JWK is for another algorithm or another use")]
    OtherUse,
}

impl Verifier {
    /// # Errors
    /// If the key does not fit the algorithm, so that it could never verify a token, or if public knowledge
    /// would be enough to sign.
    pub fn new(algorithm: &str, kid: Option<String>, material: Material<'_>) -> Result<Self, KeyError> {
        let algorithm: Algorithm =
            algorithm.parse().map_err(|_| KeyError::Algorithm(algorithm.to_owned()))?;
        let (key, jwk_kid) = match material {
            Material::Secret(text) | Material::Pem(text) | Material::Jwk(text) if is_blanked(text) => {
                return Err(KeyError::Blanked);
            }
            Material::Secret(secret) => (secret_key(algorithm, secret.as_bytes())?, None),
            Material::Pem(pem) => (public_key(algorithm, pem)?, None),
            Material::Jwk(json) => jwk_key(algorithm, json)?,
        };
        let fingerprint = fingerprint(algorithm, &key);
        Ok(Self { algorithm, kid: kid.or(jwk_kid), key, fingerprint })
    }

    /// The algorithm of this name, if it has public keys.
    ///
    /// # Errors
    /// If there is none, or if its keys are secrets.
    pub fn public_algorithm(name: &str) -> Result<Algorithm, KeyError> {
        let algorithm: Algorithm = name.parse().map_err(|_| KeyError::Algorithm(name.to_owned()))?;
        match algorithm.family() {
            AlgorithmFamily::Hmac => Err(KeyError::Shared(name.to_owned())),
            _ => Ok(algorithm),
        }
    }

    /// A secret for HS256 that may be short, for development.
    pub fn for_development(secret: &str) -> Self {
        let (algorithm, key) = (Algorithm::Known(Known::HS256), DecodingKey::from_secret(secret.as_bytes()));
        let fingerprint = fingerprint(algorithm, &key);
        Self { algorithm, kid: None, key, fingerprint }
    }

    /// Identifies the same key after the configuration was read again.
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub fn is_shared(&self) -> bool {
        self.algorithm.family() == AlgorithmFamily::Hmac
    }

    /// Signs a token, unless the key can only verify.
    pub fn sign(&self, claims: &Claims) -> Option<String> {
        let Algorithm::Known(algorithm) = self.algorithm else { return None };
        if !self.is_shared() {
            return None;
        }
        let key = EncodingKey::from_secret(self.key.try_get_as_bytes().ok()?);
        let header = Header { kid: self.kid.clone(), ..Header::new(algorithm) };
        encode(&header, claims, &key).ok()
    }

    /// True if the token names this algorithm, and no other key.
    pub fn is_for(&self, token: &Parts<'_>) -> bool {
        let is_named = match (self.kid(), token.kid.as_deref()) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        self.algorithm == token.algorithm && is_named
    }

    /// True if this key has made the signature of a token that is for it.
    ///
    /// # Errors
    /// If the signature cannot be read.
    pub fn has_signed(&self, token: &Parts<'_>) -> Result<bool, String> {
        let signed = token.signed.as_bytes();
        match self.algorithm {
            Algorithm::Known(known) => crypto::verify(token.signature, signed, &self.key, known)
                .map_err(|error: jsonwebtoken::errors::Error| error.to_string()),
            Algorithm::Es512 => {
                let signature = BASE64URL.decode(token.signature).map_err(|error| error.to_string())?;
                Ok(es512::verify(signed, &signature, self.key.try_get_as_bytes().unwrap_or_default()))
            }
        }
    }
}

/// The fields of a token's header that serve to find its key.
#[derive(Deserialize)]
struct TokenHead {
    alg: String,
    kid: Option<String>,
    /// Present, even as null.
    #[serde(default, rename = "crit", deserialize_with = "is_present")]
    has_crit: bool,
}

fn is_present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl TokenHead {
    fn read(token: &str) -> Result<Self, String> {
        let (head, _) = token.split_once('.').ok_or("it has no parts")?;
        let json = BASE64URL.decode(head).map_err(|error| error.to_string())?;
        serde_json::from_slice(&json).map(|Object(head)| head).map_err(|error| error.to_string())
    }
}

/// The parts of a token. Only the header is read; no signature is checked here.
pub struct Parts<'a> {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    /// Header and claims, with the dot between them.
    signed: &'a str,
    pub claims: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// If the text is no JWT, or one with a header that the server does not know.
    pub fn split(token: &'a str) -> Result<Self, String> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err("it is too long".into());
        }
        let TokenHead { alg, kid, has_crit } = TokenHead::read(token)?;
        // A header that must be understood, and is not (RFC 7515 §4.1.11).
        if has_crit {
            return Err("its header has crit".into());
        }
        let algorithm = alg.parse().map_err(|_| "its alg is not supported")?;
        let (signed, signature) = token.rsplit_once('.').ok_or("it has no parts")?;
        let (_, claims) = signed.split_once('.').ok_or("it has less than three parts")?;
        Ok(Self { algorithm, kid, signed, claims, signature })
    }
}

/// The claims of a token, and the key that signed it. The claims are not checked here.
pub fn verify<'a, K: AsRef<Verifier>>(keys: &'a [K], token: &str) -> Result<(&'a K, Claims), Refused> {
    let token = Parts::split(token).map_err(Refused::Malformed)?;
    let (algorithm, kid) = (token.algorithm.name(), token.kid.clone());
    let mut refused = Refused::NoKey { algorithm, kid: kid.clone() };
    for key in keys.iter().filter(|key| key.as_ref().is_for(&token)) {
        // Check the signature before reading any claim.
        if key.as_ref().has_signed(&token).map_err(Refused::Malformed)? {
            let claims = Claims::read(token.claims).map_err(|why| Refused::Claims { kid, why })?;
            return Ok((key, claims));
        }
        refused = Refused::Signature { algorithm, kid: kid.clone() };
    }
    Err(refused)
}

fn secret_key(algorithm: Algorithm, secret: &[u8]) -> Result<DecodingKey, KeyError> {
    if algorithm.family() != AlgorithmFamily::Hmac {
        return Err(KeyError::Kind(algorithm.name()));
    }
    if str::from_utf8(secret).is_ok_and(|text| !is_secret(text)) {
        return Err(KeyError::KeyAsSecret);
    }
    if secret.len() < MIN_SECRET_BYTES {
        return Err(KeyError::ShortSecret);
    }
    Ok(DecodingKey::from_secret(secret))
}

fn public_key(algorithm: Algorithm, pem: &str) -> Result<DecodingKey, KeyError> {
    if pem.contains("PRIVATE KEY-----") {
        return Err(KeyError::Private);
    }
    let key = match algorithm.family() {
        AlgorithmFamily::Hmac => return Err(KeyError::KeyAsSecret),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
        AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
    };
    let key = key.map_err(|_| KeyError::Unreadable(algorithm.name()))?;
    check_public(algorithm, key.try_get_as_bytes().unwrap_or_default())?;
    Ok(key)
}

/// Parses the key as verifying will do, so that a wrong key is noticed now.
fn check_public(algorithm: Algorithm, key: &[u8]) -> Result<(), KeyError> {
    use aws_lc_rs::signature as known;
    let parsed_as: &'static dyn VerificationAlgorithm = match algorithm {
        Algorithm::Known(Known::ES256) => &known::ECDSA_P256_SHA256_FIXED,
        Algorithm::Known(Known::ES384) => &known::ECDSA_P384_SHA384_FIXED,
        Algorithm::Known(Known::EdDSA) => &known::ED25519,
        Algorithm::Es512 => &known::ECDSA_P521_SHA512_FIXED,
        _ => &known::RSA_PKCS1_2048_8192_SHA256,
    };
    ParsedPublicKey::new(parsed_as, key).map(drop).map_err(|_| KeyError::Unreadable(algorithm.name()))
}

fn jwk_key(algorithm: Algorithm, json: &str) -> Result<(DecodingKey, Option<String>), KeyError> {
    let unreadable = |error: serde_json::Error| KeyError::Jwk(error.to_string());
    let raw: serde_json::Value = serde_json::from_str(json).map_err(unreadable)?;
    if raw.get("keys").is_some() {
        return Err(KeyError::JwkSet);
    }
    let jwk = Jwk::deserialize(&raw).map_err(unreadable)?;
    let is_for_another = raw["alg"].as_str().is_some_and(|named| named != algorithm.name());
    let is_for_encryption =
        jwk.common.public_key_use.as_ref().is_some_and(|named| *named != PublicKeyUse::Signature);
    if is_for_another || is_for_encryption {
        return Err(KeyError::OtherUse);
    }
    if raw.get("d").is_some() {
        return Err(KeyError::Private);
    }
    let is_of_family = match (&jwk.algorithm, algorithm) {
        (AlgorithmParameters::OctetKey(_), _) => algorithm.family() == AlgorithmFamily::Hmac,
        (AlgorithmParameters::RSA(_), _) => algorithm.family() == AlgorithmFamily::Rsa,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::Es512) => key.curve == EllipticCurve::P521,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::Known(Known::ES256)) => {
            key.curve == EllipticCurve::P256
        }
        (AlgorithmParameters::EllipticCurve(key), Algorithm::Known(Known::ES384)) => {
            key.curve == EllipticCurve::P384
        }
        (AlgorithmParameters::OctetKeyPair(key), Algorithm::Known(Known::EdDSA)) => {
            key.curve == EllipticCurve::Ed25519
        }
        _ => false,
    };
    if !is_of_family {
        return Err(KeyError::Kind(algorithm.name()));
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| KeyError::Unreadable(algorithm.name()))?;
    match key.kind() {
        SecretOrDer(secret) if algorithm.family() == AlgorithmFamily::Hmac => {
            secret_key(algorithm, secret)?;
        }
        SecretOrDer(bytes) => check_public(algorithm, bytes)?,
        RsaModulusExponent { n, .. } if n.len() < MIN_RSA_BYTES => {
            return Err(KeyError::Unreadable(algorithm.name()));
        }
        RsaModulusExponent { .. } => {}
    }
    Ok((key, jwk.common.key_id))
}

fn fingerprint(algorithm: Algorithm, key: &DecodingKey) -> Digest {
    let bytes = match key.kind() {
        SecretOrDer(bytes) => [algorithm.name().as_bytes(), b":", bytes].concat(),
        RsaModulusExponent { n, e } => [algorithm.name().as_bytes(), b":", n, b":", e].concat(),
    };
    Digest::of(&bytes)
}
