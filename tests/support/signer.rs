//! Keys that sign tokens, for every algorithm, each made for one test.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
    },
};
use base64::{Engine, engine::general_purpose};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::Value;

/// A secret that is long enough.
pub const SECRET: &str = "a secret of more than thirty-two bytes";

/// A key that signs.
pub struct Signer {
    pub algorithm: Algorithm,
    key: EncodingKey,
    /// The key that verifies: a secret, or a PEM.
    pub public: String,
    /// The key that signs: a secret, or a PEM.
    pub private: String,
}

impl Signer {
    /// # Panics
    /// If there is no such algorithm.
    pub fn new(algorithm: &str) -> Self {
        let named: Algorithm = algorithm.parse().expect("an algorithm");
        match algorithm {
            "ES256" => Self::ecdsa(named, &ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => Self::ecdsa(named, &ECDSA_P384_SHA384_FIXED_SIGNING),
            "EdDSA" => {
                let pair = Ed25519KeyPair::generate().expect("a key");
                let private: Pkcs8V1Der<'_> = pair.as_der().expect("a private key");
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key");
                Self::pair(named, EncodingKey::from_ed_pem, private.as_ref(), public.as_ref())
            }
            shared if shared.starts_with("HS") => Self::with_secret(named, SECRET),
            _ => {
                let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key");
                let private: Pkcs8V1Der<'_> = pair.as_der().expect("a private key");
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key");
                Self::pair(named, EncodingKey::from_rsa_pem, private.as_ref(), public.as_ref())
            }
        }
    }

    pub fn with_secret(algorithm: Algorithm, secret: &str) -> Self {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Self { algorithm, key, public: secret.to_owned(), private: secret.to_owned() }
    }

    fn ecdsa(algorithm: Algorithm, curve: &'static EcdsaSigningAlgorithm) -> Self {
        let pair = EcdsaKeyPair::generate(curve).expect("a key");
        let private = pair.to_pkcs8v1().expect("a private key");
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key");
        Self::pair(algorithm, EncodingKey::from_ec_pem, private.as_ref(), public.as_ref())
    }

    fn pair(
        algorithm: Algorithm,
        read: fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>,
        private: &[u8],
        public: &[u8],
    ) -> Self {
        let (private, public) = (pem("PRIVATE KEY", private), pem("PUBLIC KEY", public));
        Self { algorithm, key: read(private.as_bytes()).expect("a private key"), public, private }
    }

    /// The same key, for another algorithm.
    pub fn of(&self, algorithm: &str) -> Self {
        let algorithm = algorithm.parse().expect("an algorithm");
        let (key, public, private) = (self.key.clone(), self.public.clone(), self.private.clone());
        Self { algorithm, key, public, private }
    }

    /// The key that verifies, as a JWK.
    pub fn jwk(&self) -> String {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a JWK");
        serde_json::to_string(&jwk).expect("it serializes")
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&Header::new(self.algorithm), claims)
    }

    pub fn sign_as(&self, header: &Header, claims: &impl serde::Serialize) -> String {
        jsonwebtoken::encode(header, claims, &self.key).expect("a token")
    }

    /// A `[[jwt]]` of the configuration for this key.
    pub fn table(&self, name: &str) -> String {
        let kind = if self.public.starts_with("-----") { "pem" } else { "secret" };
        format!(
            "[[jwt]]\nname = {name:?}\nalgorithm = \"{:?}\"\n{kind} = '''{}'''\n",
            self.algorithm, self.public
        )
    }
}

/// The time this many seconds from now, as in claims.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after it");
    i64::try_from(now.as_secs()).expect("now") + seconds
}

/// An unsigned token with a header and claims that no library would make.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(header), part(claims))
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
