//! Settings with a few fixed values, and the networks of trusted proxies.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// The header in which trusted proxies name the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogForm {
    Off,
    Json,
    /// The combined form of Apache and nginx.
    Combined,
}

/// The form of the log on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// The messages that are compressed for clients that ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compress {
    Off,
    /// Those on WebSockets, in polls and in the history.
    Auto,
    /// Also those of event streams and NDJSON.
    All,
}

pub fn forwarded_header(text: &str) -> Result<ForwardedHeader, &'static str> {
    match text {
        "x-forwarded-for" => Ok(ForwardedHeader::XForwarded),
        "forwarded" => Ok(ForwardedHeader::Forwarded),
        _ => Err("expected x-forwarded-for or forwarded"),
    }
}

pub fn access_log(text: &str) -> Result<AccessLogForm, &'static str> {
    match text {
        "off" => Ok(AccessLogForm::Off),
        "json" => Ok(AccessLogForm::Json),
        "combined" => Ok(AccessLogForm::Combined),
        _ => Err("expected off, json or combined"),
    }
}

pub fn compress(text: &str) -> Result<Compress, &'static str> {
    match text {
        "off" => Ok(Compress::Off),
        "auto" => Ok(Compress::Auto),
        "all" => Ok(Compress::All),
        _ => Err("expected off, auto or all"),
    }
}

pub fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text, json or auto"),
    }
}

/// The addresses of proxies: one address, or a network in the notation of CIDR (RFC 4632). An IPv4 address in IPv6
/// (RFC 4291 §2.5.5.2) is that IPv4 address.
pub fn network(text: &str) -> Result<IpNet, &'static str> {
    let wrong = "expected an address or a network, for example 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32";
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| wrong)?,
    };
    if network.prefix_len() == 0 {
        return Err(
            "must be less than all addresses: otherwise every client could name any address as its own",
        );
    }
    Ok(mapped(&network).unwrap_or(network.trunc()))
}

/// The IPv4 network that is meant, if this is one in IPv6.
fn mapped(network: &IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = network else { return None };
    let address = v6.addr().to_ipv4_mapped()?;
    let prefix = v6.prefix_len().checked_sub(96).filter(|prefix| *prefix > 0)?;
    Some(IpNet::V4(Ipv4Net::new(address, prefix).ok()?.trunc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_in_every_notation_and_all_addresses_are_none() {
        for (text, meant) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ] {
            assert_eq!(network(text).map(|network| network.to_string()).as_deref(), Ok(meant), "{text}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0", "proxy", "10.0.0.1:80", "0.0.0.0/0", "::/0", "unix"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }
}
