//! ES512 (RFC 7518 §3.4), which the library for tokens lacks. This module joins the three parts of
//! a token in the same way as the library; the crypto library makes and checks the signature.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::json;

use super::claims::Claims;

/// True if the holder of the private key has made the signature. `point` is the public key (SEC 1 §2.3.3).
pub fn verify(signed: &[u8], signature: &[u8], point: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point).verify(signed, signature).is_ok()
}

/// Signs the claims, if `private`, in PKCS #8, is a key for ES512.
pub fn sign(private: &[u8], kid: Option<&str>, claims: &Claims) -> Option<String> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P521_SHA512_FIXED_SIGNING, private).ok()?;
    let mut header = json!({"typ": "JWT", "alg": "ES512"});
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    let claims = serde_json::to_vec(claims).ok()?;
    let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", BASE64URL.encode(signature)))
}
