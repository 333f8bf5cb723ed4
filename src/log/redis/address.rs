//! The address of Redis and the credentials for it: parsed once, and never shown whole.

use std::{fmt, str::FromStr};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};

/// The prefix of all keys, if the URL has none.
const DEFAULT_PREFIX: &str = "rejoin";
/// The port of a Sentinel, if the URL has none.
const SENTINEL_PORT: u16 = 26379;
const NOT_A_URL: &str = "not a URL like redis://[user:password@]host[:port][/db]";

/// The address of a Redis or Valkey server: `redis://[user:password@]host[:port][/database][?prefix=NAME]`,
/// `rediss://` for TLS, `unix:///path[?db=N]`. Or the Sentinels that know where it is:
/// `redis+sentinel://[user:password@]host[:port][,host[:port]…]/MASTER[?db=N]`, `rediss+sentinel://` for TLS
/// to both.
#[derive(Clone)]
pub struct Address {
    /// How to connect to the primary. If Sentinels know its host, the host in here is not used.
    node: ConnectionInfo,
    sentinels: Option<Sentinels>,
    prefix: String,
}

/// The Sentinels that know where a primary is.
#[derive(Clone)]
pub struct Sentinels {
    pub infos: Vec<ConnectionInfo>,
    /// The name of the primary in the configuration of the Sentinels.
    pub master: String,
}

/// A name and a password; each may be absent.
#[derive(Clone, Default)]
pub struct Credentials {
    pub username: Option<String>,
    pub password: Option<String>,
}

/// Why a text is no address of a Redis.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    #[error(
        "a log is `memory`, or a URL that begins with redis://, rediss://, redis+sentinel://, rediss+sentinel:// or \
         unix://"
    )]
    Scheme,
    #[error("prefix: 1 to 64 letters, digits and any of - _ . :")]
    Prefix,
    #[error("the URL lacks the name of the master: redis+sentinel://HOST[:PORT][,HOST[:PORT]…]/MASTER")]
    Master,
    #[error("db: a number")]
    Database,
    #[error("the URL lacks the host: redis://HOST[:PORT]")]
    Host,
    #[error("{0}")]
    Url(String),
}

impl Address {
    /// The prefix of all keys. Its one hash tag puts all keys on one node of a cluster.
    pub fn prefix(&self) -> String {
        format!("{{{}}}:", self.prefix)
    }

    /// The same address. It uses these credentials if the URL has none.
    #[must_use]
    pub fn or_credentials(mut self, of_redis: Credentials, of_sentinels: Credentials) -> Self {
        self.node = with_credentials(self.node, of_redis);
        if let Some(Sentinels { infos, .. }) = &mut self.sentinels {
            let with = |info| with_credentials(info, of_sentinels.clone());
            *infos = std::mem::take(infos).into_iter().map(with).collect();
        }
        self
    }

    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        self.sentinels.as_ref()
    }

    /// How to connect to the primary if its address is fixed.
    pub(super) fn node(&self) -> ConnectionInfo {
        // Push messages need RESP3. With TCP_NODELAY, small commands do not wait for each other.
        let settings = self.node.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let tcp = TcpSettings::default().set_nodelay(true);
        self.node.clone().set_redis_settings(settings).set_tcp_settings(tcp)
    }

    /// How to connect to the primary at `host`.
    pub(super) fn node_at(&self, host: String, port: u16) -> ConnectionInfo {
        let addr = match self.node.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.node().set_addr(addr)
    }
}

fn with_credentials(info: ConnectionInfo, Credentials { username, password }: Credentials) -> ConnectionInfo {
    let mut settings = info.redis_settings().clone();
    if settings.password().is_none() {
        if let (None, Some(username)) = (settings.username(), username) {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
    }
    info.set_redis_settings(settings)
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(ParseAddressError::Scheme)?;
        match scheme {
            "redis" | "rediss" | "unix" => {
                let (node, query) = parse_url(text)?;
                Ok(Self { node, sentinels: None, prefix: prefix(&query)? })
            }
            "redis+sentinel" => parse_sentinels("redis", rest),
            "rediss+sentinel" => parse_sentinels("rediss", rest),
            _ => Err(ParseAddressError::Scheme),
        }
    }
}

type Query = Vec<(String, String)>;

/// The connection settings and the query of a URL.
fn parse_url(text: &str) -> Result<(ConnectionInfo, Query), ParseAddressError> {
    let url = redis::parse_redis_url(text).ok_or_else(|| ParseAddressError::Url(NOT_A_URL.into()))?;
    if url.scheme() != "unix" && url.host_str().is_none_or(str::is_empty) {
        return Err(ParseAddressError::Host);
    }
    let query = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    // The library's error text says what is wrong without repeating the URL.
    let info = url.into_connection_info().map_err(|error| ParseAddressError::Url(error.to_string()))?;
    Ok((info, query))
}

fn find<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
}

fn prefix(query: &Query) -> Result<String, ParseAddressError> {
    let prefix = find(query, "prefix").unwrap_or(DEFAULT_PREFIX);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(is_plain) {
        return Err(ParseAddressError::Prefix);
    }
    Ok(prefix.to_owned())
}

/// A URL has one host, so each host is parsed as a URL of its own.
fn parse_sentinels(scheme: &str, rest: &str) -> Result<Address, ParseAddressError> {
    let (authority, path) = rest.split_once('/').ok_or(ParseAddressError::Master)?;
    let (user, hosts) =
        authority.rsplit_once('@').map_or((None, authority), |(user, rest)| (Some(user), rest));
    let (master, query) = path.split_once('?').unwrap_or((path, ""));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if master.is_empty() || !master.chars().all(is_plain) {
        return Err(ParseAddressError::Master);
    }
    let first = hosts.split(',').next().unwrap_or_default();
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let (mut node, query) = parse_url(&format!("{scheme}://{user}{first}/?{query}"))?;
    if let Some(db) = find(&query, "db") {
        let db = db.parse().ok().filter(|db| *db >= 0).ok_or(ParseAddressError::Database)?;
        let settings = node.redis_settings().clone().set_db(db);
        node = node.set_redis_settings(settings);
    }
    let of_url = |name| find(&query, name).map(str::to_owned);
    let credentials =
        Credentials { username: of_url("sentinel-username"), password: of_url("sentinel-password") };
    let infos = hosts.split(',').map(|host| {
        let (info, _) = parse_url(&format!("{scheme}://{}", with_port(host)))?;
        Ok(with_credentials(info, credentials.clone()))
    });
    let sentinels = Sentinels { infos: infos.collect::<Result<_, _>>()?, master: master.to_owned() };
    Ok(Address { node, sentinels: Some(sentinels), prefix: prefix(&query)? })
}

fn with_port(host: &str) -> String {
    // The colons of an IPv6 address lie within brackets.
    let has_port = host.rsplit_once(']').map_or(host, |(_, rest)| rest).contains(':');
    if has_port { host.to_owned() } else { format!("{host}:{SENTINEL_PORT}") }
}

/// Shows no credentials.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let db = self.node.redis_settings().db();
        let Some(Sentinels { infos, master }) = &self.sentinels else {
            return write!(f, "{}/{db}", self.node.addr());
        };
        let hosts: Vec<_> = infos.iter().map(|info| info.addr().to_string()).collect();
        write!(f, "{master}/{db} of sentinels {}", hosts.join(","))
    }
}

/// Shows no credentials.
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
        for url in [
            "redis://me:secret@host:7000/3",
            "redis://host/0",
            "unix:///run/x.sock?db=2&pass=secret",
            "redis+sentinel://me:secret@one,two:7/name?sentinel-password=secret",
        ] {
            let address = url.parse::<Address>().expect("an address");
            let secret = || Credentials { username: Some("me".into()), password: Some("secret".into()) };
            let address = address.or_credentials(secret(), secret());
            assert!(!format!("{address} {address:?}").contains("secret"), "{address}");
        }
        let wrong = "redis://me:secret@host:port".parse::<Address>().expect_err("no port");
        assert!(!format!("{wrong} {wrong:?}").contains("secret"), "{wrong}");
    }

    #[test]
    fn the_environment_does_not_override_the_url() {
        let address = "redis://me:mine@host".parse::<Address>().expect("an address");
        let yours = Credentials { username: Some("you".into()), password: Some("yours".into()) };
        let address = address.or_credentials(yours, Credentials::default());
        let settings = address.node.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("me"), Some("mine")));
    }

    #[test]
    fn a_text_that_is_no_address_is_refused() {
        for wrong in [
            "",
            "memory",
            "redis",
            "http://host",
            "redis://",
            "redis://h?prefix=",
            "redis://h?prefix=a%7Bb",
            "redis+sentinel://h",
            "redis+sentinel://h/",
            "redis+sentinel:///name",
            "redis+sentinel://h,/name",
            "redis+sentinel://h/name/3",
            "redis+sentinel://h/name?db=x",
            "redis+sentinel://h/name?db=-1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sentinels_are_named_with_their_master_and_have_credentials_of_their_own() {
        let url =
            "rediss+sentinel://me:p%40ss@one,two:7,[::1]/my-master?db=3&prefix=here&sentinel-password=s";
        let address: Address = url.parse().expect("an address");
        assert_eq!(address.prefix(), "{here}:");
        let Sentinels { infos, master } = address.sentinels().expect("sentinels");
        assert_eq!(master, "my-master");
        let hosts: Vec<_> = infos.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!(hosts, ["one:26379", "two:7", "::1:26379"]);
        assert!(infos.iter().all(|info| info.redis_settings().password() == Some("s")));
        let node = address.node_at("primary".into(), 6380);
        assert!(matches!(node.addr(), ConnectionAddr::TcpTls { host, port: 6380, .. } if host == "primary"));
        let settings = node.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("me"), Some("p@ss")));
        assert_eq!(settings.db(), 3);
    }
}
