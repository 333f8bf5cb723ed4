//! Origins of pages, as the configuration lists them and browsers send them, and the names in `Host`.

use std::{net::IpAddr, str::FromStr};

/// The origin of a page: scheme, host and port (RFC 6454). A listed one may have `*` as the first label of its
/// host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    /// `None` if the scheme has no default and the origin names none.
    port: Option<u16>,
}

/// The name and port under which a client asks for a server (RFC 9110 §7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// In lower case, an IPv6 address in brackets.
    name: String,
    port: Option<u16>,
}

/// Why a text is no origin that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseOriginError {
    #[error("expected an origin such as https://app.example, http://localhost:3000 or capacitor://localhost")]
    Form,
    #[error(
        "a * may only be the first label of an http or https host with at least two labels after it, \
         such as https://*.example.com"
    )]
    Wildcard,
}

/// Schemes that no page has as its origin. Someone who lists one means another.
const NO_PAGES: [&str; 4] = ["ws", "wss", "ftp", "file"];

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, ParseOriginError> {
        let Some((labels, rest)) = text.split_once('*') else { return Self::of_page(text) };
        let listed =
            rest.strip_prefix('.').filter(|rest| !rest.contains('*')).ok_or(ParseOriginError::Wildcard)?;
        let base = Self::of_page(&format!("{labels}{listed}")).map_err(|_| ParseOriginError::Wildcard)?;
        let is_whole_label = labels.ends_with("://") && base.default_port().is_some();
        // With fewer labels it would be everybody's, as in `*.com`.
        let is_owned = base.host.trim_end_matches('.').contains('.') || base.host == "localhost";
        if !is_whole_label || !is_owned || base.host.parse::<IpAddr>().is_ok() {
            return Err(ParseOriginError::Wildcard);
        }
        Ok(Self { host: format!("*.{}", base.host), ..base })
    }
}

impl Origin {
    /// The origin that a browser sends.
    ///
    /// # Errors
    /// If it is none, such as `null`, or has a wildcard.
    pub fn of_page(text: &str) -> Result<Self, ParseOriginError> {
        let (scheme, rest) = text.split_once("://").ok_or(ParseOriginError::Form)?;
        let scheme = scheme.to_ascii_lowercase();
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !is_scheme || NO_PAGES.contains(&&*scheme) {
            return Err(ParseOriginError::Form);
        }
        let Host { name, port } =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| ParseOriginError::Form)?;
        let origin = Self { scheme, host: name, port: None };
        Ok(Self { port: port.or(origin.default_port()), ..origin })
    }

    /// True if `page` is this origin, or one of those that its wildcard stands for.
    pub fn allows(&self, page: &Self) -> bool {
        self.scheme == page.scheme && self.port == page.port && self.has_host(&page.host)
    }

    /// True if a client may ask for the server by the name of this origin's host, with any port.
    pub fn allows_host(&self, host: &Host) -> bool {
        self.default_port().is_some() && self.has_host(&host.name)
    }

    /// True if a server that was asked under the name `host` has this origin.
    ///
    /// The scheme is compared only if a trusted proxy has named it: behind another one that ends TLS the server cannot
    /// know it. No app is served from here, so its origin is never the server's own.
    pub fn is_of(&self, host: &Host, scheme: Option<&str>) -> bool {
        let default_port = self.default_port();
        let is_scheme = scheme.is_none_or(|scheme| scheme == self.scheme);
        default_port.is_some()
            && is_scheme
            && self.host == host.name
            && self.port == host.port.or(default_port)
    }

    /// A wildcard stands for one label.
    fn has_host(&self, name: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some(end) => {
                name.strip_suffix(end).is_some_and(|label| !label.is_empty() && !label.contains('.'))
            }
            None => self.host == name,
        }
    }

    fn default_port(&self) -> Option<u16> {
        match self.scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        }
    }
}

/// The text is no host with an optional port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host name or an address, and perhaps a port")]
pub struct ParseHostError;

/// The text is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host name without scheme and port, such as push.example; an address is always allowed")]
pub struct ParseNameError;

impl FromStr for Host {
    type Err = ParseHostError;

    /// Strict: a text that another program could read as another host is none.
    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        let name_len = match text.strip_prefix('[') {
            Some(rest) => rest.find(']').map(|end| end + 2).ok_or(ParseHostError)?,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (name, rest) = text.split_at(name_len);
        let port = match rest.strip_prefix(':') {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
            None if rest.is_empty() => None,
            _ => return Err(ParseHostError),
        };
        let port =
            port.filter(|port| !port.is_empty()).map(str::parse).transpose().map_err(|_| ParseHostError)?;
        let is_name = match name.strip_prefix('[') {
            Some(address) => address.trim_end_matches(']').parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                // One dot may end a name, which then has no label after it.
                let labels = name.strip_suffix('.').unwrap_or(name);
                let is_of_label = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                labels.split('.').all(|label| !label.is_empty() && label.bytes().all(is_of_label))
            }
        };
        if is_name { Ok(Self { name: name.to_ascii_lowercase(), port }) } else { Err(ParseHostError) }
    }
}

impl Host {
    /// True for an IP address, and for a name that always is this machine. No such name can be pointed elsewhere.
    pub fn is_fixed(&self) -> bool {
        let name = self.name();
        name == "localhost"
            || name.ends_with(".localhost")
            || name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
    }

    /// True if both are the same name, with whatever port.
    pub fn is_name_of(&self, other: &Self) -> bool {
        self.name() == other.name()
    }

    /// The name without the dot that may end it.
    fn name(&self) -> &str {
        self.name.strip_suffix('.').unwrap_or(&self.name)
    }

    /// A name that can be allowed.
    ///
    /// # Errors
    /// If the text has a port, or is no name.
    pub fn parse_name(text: &str) -> Result<Self, ParseNameError> {
        match text.parse::<Self>() {
            Ok(host) if host.port.is_none() && !text.contains(':') => Ok(host),
            _ => Err(ParseNameError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn host(text: &str) -> Host {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        assert_eq!(origin("http://A.example"), origin("http://a.example:80/"));
        assert_eq!(origin("HTTPS://a.example"), origin("https://a.example:443"));
        assert_ne!(origin("http://a.example"), origin("https://a.example"));
        for wrong in [
            "null",
            "a.example",
            "ftp://a",
            "wss://a",
            "file://a",
            "file:///",
            "http://a/b",
            "http://u@a",
            "http://a?b",
            "http://",
            "://a",
            "1a://b",
            "http://a:x",
            "http://a:+80",
            "http://a:99999",
            "http://[::1].evil.example",
            "http://[::1",
            "http://a..b",
            "http://a b",
            "https://é.example",
            "",
        ] {
            assert_eq!(wrong.parse::<Origin>(), Err(ParseOriginError::Form), "{wrong:?}");
        }
    }

    #[test]
    fn the_origins_of_apps_can_be_listed() {
        for app in
            ["capacitor://localhost", "ionic://localhost", "tauri://localhost", "chrome-extension://abcdefgh"]
        {
            assert!(origin(app).allows(&Origin::of_page(app).expect("an origin")), "{app}");
            assert!(!origin(app).allows(&origin("http://localhost")), "{app}");
            let own = host(app.split("://").last().expect("a host"));
            assert!(
                !origin(app).is_of(&own, None) && !origin(app).allows_host(&own),
                "{app}: it is never the server's own"
            );
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let listed = origin("https://*.example.com");
        for page in ["https://a.example.com", "https://A-1.EXAMPLE.com:443"] {
            assert!(listed.allows(&Origin::of_page(page).expect("an origin")), "{page}");
        }
        for page in [
            "http://a.example.com",
            "https://example.com",
            "https://a.b.example.com",
            "https://a.example.com:8443",
            "https://aexample.com",
            "https://a.example.com.evil.example",
            "https://evil-example.com",
        ] {
            assert!(!listed.allows(&Origin::of_page(page).expect("an origin")), "{page}");
        }
        assert!(listed.allows_host(&host("a.example.com:7070")) && !listed.allows_host(&host("example.com")));
        assert!(origin("http://*.localhost:3000").allows(&origin("http://shop.localhost:3000")));
        assert!(Origin::of_page("https://*.example.com").is_err(), "no page has it");
        for wrong in [
            "*",
            "https://*",
            "https://*.com",
            "https://*.com.",
            "https://a*.example.com",
            "https://*a.example.com",
            "https://a.*.example.com",
            "https://*.*.example.com",
            "*://a.example.com",
            "https://a.example.com:*",
            "capacitor://*.example.com",
            "https://*.127.0.0.1",
            "https://*.",
            "https://*.example.com/path",
        ] {
            assert_eq!(wrong.parse::<Origin>(), Err(ParseOriginError::Wildcard), "{wrong:?}");
        }
    }

    #[test]
    fn a_name_is_allowed_with_every_port_and_without_one() {
        let allowed = Host::parse_name("Push.Example").expect("a name");
        for name in ["push.example", "push.example:7070", "PUSH.example.", "push.example.:80"] {
            assert!(allowed.is_name_of(&host(name)), "{name}");
        }
        for name in ["push.example.elsewhere", "a.push.example", "example"] {
            assert!(!allowed.is_name_of(&host(name)), "{name}");
        }
        for wrong in ["push.example:7070", "push.example:", "https://push.example", "*.example", "", "a b"] {
            assert_eq!(Host::parse_name(wrong), Err(ParseNameError), "{wrong:?}");
        }
    }

    #[test]
    fn the_servers_own_origin_has_its_host_and_port() {
        let own = origin("https://app.example");
        assert!(own.is_of(&host("app.example"), None) && own.is_of(&host("app.example:443"), Some("https")));
        assert!(!own.is_of(&host("app.example:80"), None) && !own.is_of(&host("app.example.evil"), None));
        assert!(!own.is_of(&host("app.example"), Some("http")), "a trusted proxy was asked without TLS");
    }

    #[test]
    fn addresses_and_loopback_names_are_fixed_and_no_other_name_is() {
        for name in [
            "localhost",
            "LocalHost:7070",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "10.0.0.1:80",
            "0.0.0.0",
            "[::]",
            "[::1]:7070",
            "[2001:db8::1]",
            "[::ffff:10.0.0.1]",
            "localhost:",
        ] {
            assert!(host(name).is_fixed(), "{name}");
        }
        for name in ["127.1", "0x7f.1", "notlocalhost", "localhost.example", "10.0.0.1.example"] {
            assert!(!host(name).is_fixed(), "{name}");
        }
        for wrong in [
            "[::1].evil.example",
            "[::1]evil.example",
            "[localhost]",
            "[127.0.0.1]",
            "user@localhost",
            "evil.example@localhost",
            "localhost@evil.example",
            "localhost:80:80",
            "localhost:x",
            "localhost..",
            ".localhost",
            "::1",
            "localhost/",
            "localhost evil.example",
            "localhost,evil.example",
            "[::1%25lo]",
            "",
        ] {
            assert_eq!(wrong.parse::<Host>(), Err(ParseHostError), "{wrong:?}");
        }
    }
}
