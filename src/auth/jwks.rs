//! A set of keys (RFC 7517 §5), as an issuer publishes it.

use serde_json::{Map, Value, json};

use super::{
    algorithm::Algorithm,
    jwt::{Material, Verifier},
};

/// A set with more keys cannot be used: every token could need a check with each of them.
pub const MAX_KEYS: usize = 100;

/// The keys of a set that can verify tokens. `algorithm` is that of keys without one.
///
/// # Errors
/// If this is no set, or if it has too many keys.
pub fn parse(json: &[u8], algorithm: Option<Algorithm>) -> Result<Vec<Verifier>, String> {
    let mut set: Map<String, Value> =
        serde_json::from_slice(json).map_err(|error| format!("it is no set of JWKs: {error}"))?;
    let Some(Value::Array(keys)) = set.remove("keys") else {
        return Err("it is no set of JWKs: it has no list `keys`".to_owned());
    };
    if keys.len() > MAX_KEYS {
        return Err(format!("it has {} keys, and up to {MAX_KEYS} are accepted", keys.len()));
    }
    Ok(keys.iter().filter_map(|key| verifier(key.as_object()?, algorithm)).collect())
}

/// The key, if it is a public one that signs by an algorithm that this server knows.
fn verifier(key: &Map<String, Value>, algorithm: Option<Algorithm>) -> Option<Verifier> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let is_for_signatures = key.get("use").is_none_or(|named| named == "sig")
        && key.get("key_ops").and_then(Value::as_array).is_none_or(|named| named.contains(&json!("verify")));
    // Everyone who can read the set could sign with a shared secret in it.
    if !is_for_signatures || text("kty")? == "oct" || key.contains_key("d") {
        return None;
    }
    let algorithm = match key.get("alg") {
        Some(named) => named.as_str()?.parse().ok()?,
        None => match algorithm {
            Some(algorithm) => algorithm,
            None => usual(text("kty")?, text("crv"))?,
        },
    };
    // The library refuses a whole key for any other member that it does not know.
    let needed = ["kty", "crv", "x", "y", "n", "e", "kid"];
    let bare: Map<_, _> =
        needed.iter().filter_map(|name| Some(((*name).to_owned(), key.get(*name)?.clone()))).collect();
    Verifier::new(algorithm.name(), None, Material::Jwk(&Value::Object(bare).to_string())).ok()
}

/// The algorithm of a key that names none.
fn usual(kty: &str, curve: Option<&str>) -> Option<Algorithm> {
    let name = match (kty, curve) {
        ("RSA", _) => "RS256",
        ("EC", Some("P-256")) => "ES256",
        ("EC", Some("P-384")) => "ES384",
        ("EC", Some("P-521")) => "ES512",
        ("OKP", Some("Ed25519")) => "EdDSA",
        _ => return None,
    };
    name.parse().ok()
}
