//! Signatures of tokens: which key made one, each key bound to its algorithm.

use aws_lc_rs::signature::{ParsedPublicKey, VerificationAlgorithm};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{
    Algorithm as Known, AlgorithmFamily, DecodingKey,
    DecodingKeyKind::{RsaModulusExponent, SecretOrDer},
    EncodingKey, Header, Validation, decode, encode,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::{Deserialize, de::IgnoredAny};

use super::{Refused, algorithm::Algorithm, claims::Claims, es512, key::Digest};

/// The longest token that is looked at: more than a header of HTTP can carry.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// The shortest shared secret: what is shorter than its hash can be found by trying (RFC 7518 §3.2).
const MIN_SECRET_BYTES: usize = 32;
/// The shortest modulus that is verified by: 2048 bits (RFC 7518 §3.3).
const MIN_RSA_BYTES: usize = 256;

/// A key that verifies tokens, of one algorithm only.
#[derive(Clone)]
pub struct Verifier {
    algorithm: Algorithm,
    /// Tokens that name another are not tried.
    kid: Option<String>,
    key: DecodingKey,
    fingerprint: Digest,
}

/// What a key is made of.
#[derive(Clone, Copy, Debug)]
pub enum Material<'a> {
    /// Shared, as it stands.
    Secret(&'a str),
    /// A public key.
    Pem(&'a str),
    /// A public key or a shared one.
    Jwk(&'a str),
}

/// Whether this can be a shared secret. What begins like a key in PEM or a JWK is none: whoever has the public one
/// could sign.
pub fn is_secret(text: &str) -> bool {
    matches!(Material::of(text), Material::Secret(_))
}

impl<'a> Material<'a> {
    /// What a file holds, by how it begins.
    pub fn of(text: &'a str) -> Self {
        match text.trim_start().as_bytes() {
            [b'-', b'-', b'-', b'-', b'-', ..] => Self::Pem(text),
            [b'{', ..] => Self::Jwk(text),
            // The line end is the editor's.
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
    #[error("{0} takes another kind of key")]
    Kind(&'static str),
    #[error("a secret has at least {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    #[error(
        "what begins like a PEM key or a JWK is no secret, since whoever has the public one could sign: \
         give it as pem, jwk or file, and the algorithm that it is for"
    )]
    KeyAsSecret,
    #[error("this is a private key; only the public one is needed to verify")]
    Private,
    #[error("the key cannot be read as the public key of {0}")]
    Unreadable(&'static str),
    #[error("the JWK cannot be read: {0}")]
    Jwk(String),
    #[error("this is a set of JWKs: give each key in a [[jwt]] of its own")]
    JwkSet,
    #[error("the JWK says that it is for another algorithm or another use")]
    OtherUse,
}

impl Verifier {
    /// # Errors
    /// If the material is not that of the algorithm, so that no token could ever be verified, or that it
    /// could be verified by what is public.
    pub fn new(algorithm: &str, kid: Option<String>, material: Material<'_>) -> Result<Self, KeyError> {
        let algorithm: Algorithm =
            algorithm.parse().map_err(|_| KeyError::Algorithm(algorithm.to_owned()))?;
        let (key, jwk_kid) = match material {
            Material::Secret(secret) => (secret_key(algorithm, secret.as_bytes())?, None),
            Material::Pem(pem) => (public_key(algorithm, pem)?, None),
            Material::Jwk(json) => jwk_key(algorithm, json)?,
        };
        let fingerprint = fingerprint(algorithm, &key);
        Ok(Self { algorithm, kid: kid.or(jwk_kid), key, fingerprint })
    }

    /// A secret for HS256 that may be short, for development.
    pub fn for_development(secret: &str) -> Self {
        let (algorithm, key) = (Algorithm::Known(Known::HS256), DecodingKey::from_secret(secret.as_bytes()));
        let fingerprint = fingerprint(algorithm, &key);
        Self { algorithm, kid: None, key, fingerprint }
    }

    /// By what the same key is known after the configuration was read again.
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

    /// Signs a token. None where the key can only verify.
    pub fn sign(&self, claims: &Claims) -> Option<String> {
        let Algorithm::Known(algorithm) = self.algorithm else { return None };
        if !self.is_shared() {
            return None;
        }
        let key = EncodingKey::from_secret(self.key.try_get_as_bytes().ok()?);
        let header = Header { kid: self.kid.clone(), ..Header::new(algorithm) };
        encode(&header, claims, &key).ok()
    }

    fn fits(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        let is_named = match (self.kid(), kid) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        self.algorithm == algorithm && is_named
    }

    /// What a token says that this key has signed.
    fn claims(&self, token: &str) -> Result<Claims, Unverified> {
        let Algorithm::Known(algorithm) = self.algorithm else {
            return es512::verify(token, self.key.try_get_as_bytes().unwrap_or_default());
        };
        // Signature and algorithm only: times, issuer and audience are the authority's to judge.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        match decode::<Claims>(token, &self.key, &validation) {
            Ok(verified) => Ok(verified.claims),
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => Err(Unverified::Signature),
            Err(error) => Err(Unverified::Malformed(error.to_string())),
        }
    }
}

/// Why the claims of a token do not count.
#[derive(Debug)]
pub enum Unverified {
    Signature,
    Malformed(String),
}

/// What of a token's header is looked at, to find keys for it.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl Head {
    fn read(token: &str) -> Result<Self, String> {
        let (head, _) = token.split_once('.').ok_or("it has no parts")?;
        let json = BASE64URL.decode(head).map_err(|error| error.to_string())?;
        serde_json::from_slice(&json).map_err(|error| error.to_string())
    }
}

/// The claims of a token, and which of the keys signed it. What the claims say is not looked at.
pub fn verify<'a, K: AsRef<Verifier>>(keys: &'a [K], token: &str) -> Result<(&'a K, Claims), Refused> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refused::Malformed("it is too long".into()));
    }
    let Head { alg, kid, crit } = Head::read(token).map_err(Refused::Malformed)?;
    // What has to be understood, and is not (RFC 7515 §4.1.11).
    if crit.is_some() {
        return Err(Refused::Malformed("its header has crit".into()));
    }
    let known: Algorithm = alg.parse().map_err(|_| Refused::Malformed("its alg is none of ours".into()))?;
    let algorithm = known.name();
    let mut refused = Refused::NoKey { algorithm, kid: kid.clone() };
    for key in keys.iter().filter(|key| key.as_ref().fits(known, kid.as_deref())) {
        match key.as_ref().claims(token) {
            Ok(claims) => return Ok((key, claims)),
            Err(Unverified::Signature) => refused = Refused::Signature { algorithm, kid: kid.clone() },
            Err(Unverified::Malformed(why)) => refused = Refused::Malformed(why),
        }
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

/// Reads the key as verifying will, so that a wrong one is found now.
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
