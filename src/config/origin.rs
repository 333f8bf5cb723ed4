//! Origins of pages, as the configuration lists them and browsers send them.

use std::str::FromStr;

use http::Uri;

/// The origin of a page: scheme, host and port (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

#[derive(Debug, thiserror::Error)]
#[error("expected an origin such as https://app.example or http://localhost:3000")]
pub struct ParseOriginError;

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, ParseOriginError> {
        let uri: Uri = text.parse().map_err(|_| ParseOriginError)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(ParseOriginError);
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(ParseOriginError);
        }
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(ParseOriginError),
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(default_port),
        })
    }
}

impl Origin {
    /// The host in lower case, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// True if a server that was asked under the name `host` has this origin.
    ///
    /// The scheme is not compared: behind a proxy that ends TLS the server cannot know it.
    pub fn is_of(&self, host: &str) -> bool {
        format!("{}://{host}", self.scheme).parse::<Self>().is_ok_and(|own| own == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        let origin = |text: &str| text.parse::<Origin>().expect(text);
        assert_eq!(origin("http://A.example"), origin("http://a.example:80/"));
        assert_ne!(origin("http://a.example"), origin("https://a.example"));
        for wrong in ["null", "a.example", "ftp://a", "http://a/b", "http://u@a", "http://a?b", ""] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_servers_own_origin_has_its_host_and_port() {
        let origin: Origin = "https://app.example".parse().expect("an origin");
        assert!(origin.is_of("app.example") && origin.is_of("app.example:443"));
        assert!(!origin.is_of("app.example:80") && !origin.is_of("app.example.evil"));
    }
}
