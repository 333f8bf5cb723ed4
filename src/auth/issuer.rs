//! Issuers whose keys are fetched. This module holds the keys, and says which issuer a token may be of; `http` fetches.

use std::{fmt, net::IpAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use url::{Host, Url};

use super::{
    algorithm::Algorithm,
    authority::Terms,
    jwt::{Parts, Verifier},
};

/// An issuer whose keys are fetched, and the terms for its tokens.
#[derive(Clone)]
pub struct Issuer {
    pub terms: Arc<Terms>,
    pub source: Arc<Source>,
    pub keys: Arc<KeySet>,
}

impl Issuer {
    /// True if a token that names `iss` may be of this issuer.
    pub fn may_be(&self, iss: Option<&str>) -> bool {
        self.terms.iss.is_none() || self.terms.iss.as_deref() == iss
    }
}

/// The place of the keys. Keys from an equal source stay known while the configuration changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub place: Place,
    /// The certificates, as PEM, that the server of this place must have one of. If absent, those of the system.
    pub ca: Option<String>,
    /// The algorithm of keys that name none.
    pub algorithm: Option<Algorithm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The keys themselves.
    Jwks(Url),
    /// An issuer whose metadata name the place of the keys (OpenID Connect Discovery 1.0 §4).
    Issuer { name: String, metadata: Url },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jwks(url) | Self::Issuer { metadata: url, .. } => url.fmt(f),
        }
    }
}

impl Place {
    /// # Errors
    /// If the text is no address that is safe to fetch keys from.
    pub fn jwks(text: &str) -> Result<Self, String> {
        safe_url(text).map(Self::Jwks).map_err(|why| format!("jwks: {why}"))
    }

    /// # Errors
    /// As [`jwks`](Self::jwks).
    pub fn issuer(name: &str) -> Result<Self, String> {
        let metadata = format!("{}/.well-known/openid-configuration", name.trim_end_matches('/'));
        let metadata = safe_url(&metadata).map_err(|why| format!("issuer: {why}"))?;
        Ok(Self::Issuer { name: name.to_owned(), metadata })
    }
}

/// A URL of `https`, or of `http` on this machine: whoever can change the answer could sign.
///
/// # Errors
/// The mistake, without the text.
pub fn safe_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user and password".into());
    }
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback => Ok(url),
        _ => Err("expected a URL of https, or of http on a loopback address".into()),
    }
}

/// The keys of an issuer, as they were last fetched.
#[derive(Default)]
pub struct KeySet(ArcSwapOption<Vec<Verifier>>);

/// The verdict of a set about a token.
pub enum Known {
    Signed,
    /// A key of this set should have signed it, and has not.
    NotSigned,
    /// The set does not have the key that the token names, or was never fetched.
    Unknown,
}

impl KeySet {
    /// True if the keys are others than before.
    pub fn put(&self, keys: Vec<Verifier>) -> bool {
        let names =
            |keys: &Vec<Verifier>| keys.iter().map(|key| key.fingerprint().to_string()).collect::<Vec<_>>();
        let now = names(&keys);
        let before = self.0.swap(Some(Arc::new(keys)));
        before.is_none_or(|before| names(&before) != now)
    }

    pub fn is_fetched(&self) -> bool {
        self.0.load().is_some()
    }

    /// # Errors
    /// If the signature cannot be read.
    pub fn verify(&self, token: &Parts<'_>) -> Result<Known, String> {
        let keys = self.0.load();
        let Some(keys) = &*keys else { return Ok(Known::Unknown) };
        for key in keys.iter().filter(|key| key.is_for(token)) {
            if key.has_signed(token)? {
                return Ok(Known::Signed);
            }
        }
        let is_known = |kid: &String| keys.iter().any(|key| key.kid() == Some(kid));
        Ok(if token.kid.as_ref().is_none_or(is_known) { Known::NotSigned } else { Known::Unknown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_by_https_or_from_this_machine() {
        for right in
            ["https://id.example/keys", "http://127.0.0.1:1/", "http://[::1]/k", "http://localhost:9/x"]
        {
            assert!(safe_url(right).is_ok(), "{right}");
        }
        for wrong in [
            "http://id.example/",
            "https://u:p@id.example/",
            "http://10.0.0.1/",
            "ftp://localhost/",
            "id.example",
            "file:///k",
            "",
        ] {
            assert!(safe_url(wrong).is_err(), "{wrong}");
        }
    }
}
