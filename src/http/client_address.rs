//! The address of a client, also behind proxies that the operator trusts.
//!
//! A proxy adds the address of its peer at the end of a header. So the header is read from its end, and only as long as
//! each address is that of a trusted proxy: everything before may be the client's invention.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Once,
};

use axum::extract::Request;
use http::HeaderMap;

use super::{
    forwarded::{self, Forwarded},
    listener::Serves,
};
use crate::{config::Config, log::Payer};

/// The peer of a connection. It is in the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the socket, or the client that a PROXY protocol header names.
    ip: IpAddr,
    /// A proxy said that it speaks for itself, or that it does not know the client.
    names_no_client: bool,
    serves: Serves,
    /// The connection is encrypted up to this server.
    is_encrypted: bool,
}

impl Peer {
    pub fn new(ip: IpAddr) -> Self {
        Self {
            ip: ip.to_canonical(),
            names_no_client: false,
            serves: Serves::Everything,
            is_encrypted: false,
        }
    }

    /// The peer of a Unix socket counts as one of loopback: it is on this machine too.
    pub fn of(ip: Option<IpAddr>) -> Self {
        Self::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()))
    }

    /// The same, over a listener that serves this, and perhaps speaks TLS.
    pub fn over(self, serves: Serves, is_encrypted: bool) -> Self {
        Self { serves, is_encrypted, ..self }
    }

    /// The same, over the listener of `other`.
    pub fn over_the_same(self, other: Self) -> Self {
        self.over(other.serves, other.is_encrypted)
    }

    /// True if the connection is encrypted up to this server.
    pub fn is_encrypted(self) -> bool {
        self.is_encrypted
    }

    pub fn serves(self) -> Serves {
        self.serves
    }

    /// A proxy that names no client in its PROXY protocol header. No other header can name one.
    pub fn without_client(ip: IpAddr) -> Self {
        Self { names_no_client: true, ..Self::new(ip) }
    }

    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// The scheme by which the server was asked. Without TLS a proxy may have ended it, and the scheme is not known.
    pub fn scheme(self) -> Option<&'static str> {
        self.is_encrypted.then_some("https")
    }

    /// The client for which the connection itself is counted. A proxy has those of many clients.
    pub fn payer(self, config: &Config) -> Option<Payer> {
        let may_be_a_proxy =
            config.trusts(self.ip) || (config.trusted_proxies.is_empty() && is_near(self.ip));
        (!may_be_a_proxy).then(|| Payer::address(self.ip))
    }
}

/// The address of a client. It is in the extensions of each request that came over a connection of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress {
    ip: IpAddr,
    may_be_a_proxy: bool,
}

impl ClientAddress {
    /// The address; an IPv4 address in IPv6 is that IPv4 address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// The address that limits count. There is none if no proxy is trusted and the peer is near: a proxy may stand
    /// there, and one limit would then hold for all its clients together.
    pub fn limited(self) -> Option<IpAddr> {
        (!self.may_be_a_proxy).then_some(self.ip)
    }

    /// The client for which costs are counted, if nothing else tells which one it is.
    pub fn payer(self) -> Option<Payer> {
        self.limited().map(Payer::address)
    }
}

/// Notes in the request the address of its client, and by which name and scheme a trusted proxy was asked.
pub fn note(config: &Config, request: &mut Request) {
    let Some(peer) = request.extensions().get::<Peer>().copied() else { return };
    let is_near = config.trusted_proxies.is_empty() && is_near(peer.ip);
    if is_near && forwarded::is_in(request.headers()) {
        warn_of_proxy(peer.ip);
    }
    let (ip, forwarded) = client_of(config, peer, request.headers());
    let extensions = request.extensions_mut();
    extensions.insert(ClientAddress { ip, may_be_a_proxy: is_near });
    forwarded.map(|forwarded| extensions.insert(forwarded));
}

fn warn_of_proxy(peer: IpAddr) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            client = %peer,
            "a proxy has forwarded a request, and no proxy is trusted: the logs have the address of the proxy, and no \
             limit by address counts for it; list the proxy with --trusted-proxy"
        );
    });
}

fn client_of(config: &Config, peer: Peer, headers: &HeaderMap) -> (IpAddr, Option<Forwarded>) {
    let trusts = |ip| config.trusts(ip);
    if peer.names_no_client || !trusts(peer.ip) {
        return (peer.ip, None);
    }
    let (client, forwarded) = forwarded::read(config.forwarded_header, headers, trusts);
    (client.unwrap_or(peer.ip), Some(forwarded))
}

/// True for an address that does not belong to the internet: of this machine, or of a private network.
fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // The shared addresses of RFC 6598, 100.64.0.0/10: clouds use them as private ones.
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || is_shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn noted(config: &Config, peer: &str, forwarded_for: Option<&str>) -> ClientAddress {
        let mut request = Request::builder();
        if let Some(value) = forwarded_for {
            request = request.header("x-forwarded-for", value);
        }
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(Peer::new(peer.parse().expect("an address")));
        note(config, &mut request);
        *request.extensions().get().expect("an address")
    }

    fn trusting(networks: &[&str]) -> Config {
        let trusted_proxies = networks.iter().map(|text| text.parse().expect("a network")).collect();
        Config { trusted_proxies, ..Config::default() }
    }

    #[test]
    fn only_a_trusted_peer_names_another_client() {
        let config = trusting(&["10.0.0.0/8", "2001:db8::/32"]);
        let ip = |peer: &str, header: &str| noted(&config, peer, Some(header)).ip().to_string();
        assert_eq!(ip("203.0.113.9", "198.51.100.1"), "203.0.113.9");
        assert_eq!(ip("10.0.0.1", "198.51.100.1"), "198.51.100.1");
        assert_eq!(ip("::ffff:10.0.0.1", "198.51.100.1"), "198.51.100.1", "the same peer on an IPv6 socket");
        assert_eq!(ip("2001:db8::1", "::ffff:198.51.100.1"), "198.51.100.1");
        assert_eq!(noted(&config, "10.0.0.1", None).ip().to_string(), "10.0.0.1");
        let silent = Peer::without_client("10.0.0.1".parse().expect("an address"));
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "198.51.100.1".parse().expect("a value"));
        assert_eq!(client_of(&config, silent, &headers).0.to_string(), "10.0.0.1");
    }

    /// One limit for all clients of a proxy would be reached by any of them.
    #[test]
    fn no_limit_counts_for_a_peer_behind_which_a_proxy_may_stand() {
        let open = Config::default();
        for near in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.0.1", "100.64.0.1"] {
            assert_eq!(noted(&open, near, None).limited(), None, "{near}");
            assert_eq!(noted(&open, &format!("::ffff:{near}"), None).limited(), None, "{near}");
            assert!(noted(&trusting(&["198.51.100.1/32"]), near, None).limited().is_some(), "{near}");
        }
        for near in ["::1", "fd00::1", "fe80::1"] {
            assert_eq!(noted(&open, near, None).limited(), None, "{near}");
        }
        for far in ["203.0.113.9", "100.128.0.1", "2001:db8::1"] {
            let address = noted(&open, far, Some("198.51.100.1"));
            assert_eq!(address.limited().map(|ip| ip.to_string()).as_deref(), Some(far));
        }
    }
}
