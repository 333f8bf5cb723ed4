//! Where Redis is, and with which credentials: parsed once, and never shown whole.

use std::{fmt, str::FromStr};

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};

/// What all keys begin with, where the URL does not say.
const DEFAULT_PREFIX: &str = "rejoin";

/// A Redis or Valkey server: `redis://[user:password@]host[:port][/database][?prefix=NAME]`,
/// `rediss://` for TLS, `unix:///path[?db=N]`.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    #[error("a log is `memory`, or a URL that begins with redis://, rediss:// or unix://")]
    Scheme,
    #[error("prefix: 1 to 64 letters, digits and any of - _ . :")]
    Prefix,
    #[error("{0}")]
    Url(String),
}

impl Address {
    /// What all keys begin with. One hash tag, so that one node of a cluster has them all.
    pub fn prefix(&self) -> String {
        format!("{{{}}}:", self.prefix)
    }

    /// With credentials where the URL has none.
    #[must_use]
    pub fn or_credentials(mut self, username: Option<String>, password: Option<String>) -> Self {
        let mut settings = self.info.redis_settings().clone();
        if settings.password().is_none() {
            if let (None, Some(username)) = (settings.username(), username) {
                settings = settings.set_username(username);
            }
            if let Some(password) = password {
                settings = settings.set_password(password);
            }
        }
        self.info = self.info.set_redis_settings(settings);
        self
    }

    pub(super) fn connection_info(&self) -> ConnectionInfo {
        // Push messages need RESP3. Small commands must not wait for each other.
        let settings = self.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        self.info
            .clone()
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let known = ["redis://", "rediss://", "unix://"];
        if !known.iter().any(|scheme| text.starts_with(scheme)) {
            return Err(ParseAddressError::Scheme);
        }
        let url = redis::parse_redis_url(text).ok_or_else(|| ParseAddressError::Url("not a URL".into()))?;
        let prefix = url.query_pairs().find(|(name, _)| name == "prefix");
        let prefix = prefix.map_or_else(|| DEFAULT_PREFIX.to_owned(), |(_, value)| value.into_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(is_plain) {
            return Err(ParseAddressError::Prefix);
        }
        // The library's own words say what is wrong without repeating the URL.
        let info = url.into_connection_info().map_err(|error| ParseAddressError::Url(error.to_string()))?;
        Ok(Self { info, prefix })
    }
}

/// Without credentials.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.info.addr(), self.info.redis_settings().db())
    }
}

/// Without credentials.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_shown() {
        for url in ["redis://me:secret@host:7000/3", "redis://host/0", "unix:///tmp/x.sock?db=2&pass=secret"]
        {
            let address = url.parse::<Address>().expect("an address");
            let address = address.or_credentials(Some("me".into()), Some("secret".into()));
            assert!(!format!("{address} {address:?}").contains("secret"), "{address}");
        }
        let wrong = "redis://me:secret@host:port".parse::<Address>().expect_err("no port");
        assert!(!format!("{wrong} {wrong:?}").contains("secret"), "{wrong}");
    }

    #[test]
    fn the_environment_does_not_override_the_url() {
        let address = "redis://me:mine@host".parse::<Address>().expect("an address");
        let address = address.or_credentials(Some("you".into()), Some("yours".into()));
        let settings = address.info.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("me"), Some("mine")));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in
            ["", "memory", "redis", "http://host", "redis://", "redis://h?prefix=", "redis://h?prefix=a%7Bb"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }
}
