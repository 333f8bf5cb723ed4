//! The headers in which proxies name the client: `X-Forwarded-For`, or `Forwarded` (RFC 7239), and never both.
//!
//! They are read from their end, because each proxy adds to the end. The cost is bounded by the trusted proxies on the
//! way, however long the client has made a header.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};

use super::headers::Headers;
use crate::config::ForwardedHeader;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The name and the scheme by which a trusted proxy was asked. It is in the extensions of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub host: Option<String>,
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
}

/// True if a proxy has named a client in some header.
pub fn is_in(headers: &HeaderMap) -> bool {
    let headers = Headers::of(headers);
    headers.contains(&X_FORWARDED_FOR) || headers.contains(&header::FORWARDED)
}

/// The client of a request that came from a trusted proxy, if the header names it, and how the proxy was asked.
pub fn read(
    form: ForwardedHeader,
    headers: &HeaderMap,
    trusts: impl Fn(IpAddr) -> bool,
) -> (Option<IpAddr>, Forwarded) {
    match form {
        ForwardedHeader::XForwarded => {
            let client = first_untrusted(newest_first(headers, &X_FORWARDED_FOR), trusts, node);
            let newest = |name| newest_first(headers, name).next().map(|text| unquoted(text.trim()));
            let scheme = newest(&X_FORWARDED_PROTO).as_deref().and_then(scheme);
            let host = newest(&X_FORWARDED_HOST).filter(|host| !host.is_empty());
            (client.map(|(ip, _)| ip), Forwarded { host, scheme })
        }
        ForwardedHeader::Forwarded => {
            let elements = newest_first(headers, &header::FORWARDED);
            let found = first_untrusted(elements, trusts, |element| node(&parameter(element, "for")?));
            let Some((ip, element)) = found else { return (None, Forwarded::default()) };
            // The same proxy has said how it was asked.
            let host = parameter(element, "host").filter(|host| !host.is_empty());
            let scheme = parameter(element, "proto").as_deref().and_then(scheme);
            (Some(ip), Forwarded { host, scheme })
        }
    }
}

/// The first address that is not of a trusted proxy, or the last one before an element that has none: that proxy did
/// not know its peer.
fn first_untrusted<'a>(
    elements: impl Iterator<Item = &'a str>,
    trusts: impl Fn(IpAddr) -> bool,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Option<(IpAddr, &'a str)> {
    let mut found = None;
    for element in elements {
        let Some(ip) = address(element) else { break };
        found = Some((ip, element));
        if !trusts(ip) {
            break;
        }
    }
    found
}

/// The elements of all headers of this name, the last one first. A value that is not ASCII ends them.
fn newest_first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).iter().rev().map_while(|value| value.to_str().ok());
    lines.flat_map(|line| {
        let mut rest = Some(line);
        std::iter::from_fn(move || {
            let (before, last) = split_last(rest?);
            rest = before;
            Some(last)
        })
    })
}

/// Splits a list at its last comma outside of quotes.
///
/// It goes backwards, so that a quote that a client has opened and not closed takes nothing from a proxy's element.
fn split_last(list: &str) -> (Option<&str>, &str) {
    let bytes = list.as_bytes();
    let (mut is_quoted, mut at) = (false, bytes.len());
    while at > 0 {
        at -= 1;
        match bytes[at] {
            b'"' => {
                // Each run of backslashes is walked once, however many there are.
                let backslashes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                is_quoted ^= backslashes % 2 == 0;
                at -= backslashes;
            }
            b',' if !is_quoted => return (Some(&list[..at]), &list[at + 1..]),
            _ => {}
        }
    }
    (None, list)
}

/// The value of a parameter in an element of `Forwarded`. Only `host` and `proto` could have a `;` in quotes, and no
/// host and no scheme has one.
fn parameter(element: &str, wanted: &str) -> Option<String> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
    values.next().map(|(_, value)| unquoted(value.trim()))
}

fn unquoted(text: &str) -> String {
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(inside) => inside.replace('\\', ""),
        None => text.to_owned(),
    }
}

/// An address with a port or without (RFC 7239 §6), and an IPv6 address in brackets or not.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Some proxies name the scheme of a WebSocket.
fn scheme(text: &str) -> Option<&'static str> {
    match text.to_ascii_lowercase().as_str() {
        "http" | "ws" => Some("http"),
        "https" | "wss" => Some("https"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(lines: &[(&str, &str)], form: ForwardedHeader) -> (Option<String>, Forwarded) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        let is_of_the_operator = |ip: IpAddr| ip.to_string().starts_with("10.");
        let (client, forwarded) = read(form, &headers, is_of_the_operator);
        (client.map(|ip| ip.to_string()), forwarded)
    }

    fn x_forwarded_for(lines: &[&str]) -> Option<String> {
        let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        read_from(&lines, ForwardedHeader::XForwarded).0
    }

    /// Each backslash walked back over all those before it: 60 000 of them took 47 seconds.
    #[test]
    fn a_quote_behind_many_backslashes_is_read_in_one_walk() {
        for (backslashes, is_escaped) in [(0, false), (1, true), (2, false), (60_000, false), (60_001, true)]
        {
            let list = format!("a,\"b,{}\",c", "\\".repeat(backslashes));
            let (before, last) = split_last(&list);
            assert_eq!(last, "c");
            // Seen from the end, an escaped quote opens nothing.
            let (_, last) = split_last(before.expect("more"));
            assert_eq!(last.starts_with('"'), !is_escaped, "{backslashes}");
        }
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        let client = |lines: &[&str]| x_forwarded_for(lines);
        assert_eq!(client(&["192.0.2.1"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(
            client(&["6.6.6.6, 192.0.2.1, 10.0.0.2"]).as_deref(),
            Some("192.0.2.1"),
            "6.6.6.6 is forged"
        );
        assert_eq!(client(&["6.6.6.6", "192.0.2.1,10.0.0.2"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(client(&["192.0.2.1", "10.0.0.3", "10.0.0.2"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(client(&["10.0.0.3, 10.0.0.2"]).as_deref(), Some("10.0.0.3"), "all of them are trusted");
        assert_eq!(client(&["192.0.2.1:4711"]).as_deref(), Some("192.0.2.1"));
        assert_eq!(client(&["[2001:db8::1]:80"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(client(&["[2001:db8::1]"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(client(&["2001:db8::1"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(client(&["::ffff:192.0.2.1"]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn an_element_without_an_address_ends_the_search() {
        for unknown in ["unknown", "", "_hidden", "1.2.3", "6.6.6.6 7.7.7.7", "\"6.6.6.6"] {
            assert_eq!(x_forwarded_for(&[unknown]), None, "{unknown}");
            let behind = format!("6.6.6.6, {unknown}, 10.0.0.2");
            assert_eq!(x_forwarded_for(&[&behind]).as_deref(), Some("10.0.0.2"), "{unknown}");
        }
    }

    #[test]
    fn one_header_counts_and_the_other_is_ignored() {
        let both = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "x.example"),
            ("forwarded", "for=192.0.2.2;proto=https;host=f.example:8443"),
        ];
        let (client, forwarded) = read_from(&both, ForwardedHeader::XForwarded);
        assert_eq!(client.as_deref(), Some("192.0.2.1"));
        assert_eq!(forwarded, Forwarded { host: Some("x.example".into()), scheme: Some("http") });
        let (client, forwarded) = read_from(&both, ForwardedHeader::Forwarded);
        assert_eq!(client.as_deref(), Some("192.0.2.2"));
        assert_eq!(forwarded, Forwarded { host: Some("f.example:8443".into()), scheme: Some("https") });
    }

    #[test]
    fn the_examples_of_rfc_7239_are_read() {
        let client = |value: &str| read_from(&[("forwarded", value)], ForwardedHeader::Forwarded);
        for (value, expected) in [
            ("for=192.0.2.60; proto=http; by=203.0.113.43", Some("192.0.2.60")),
            ("For=\"[2001:db8:cafe::17]:4711\"", Some("2001:db8:cafe::17")),
            ("for=192.0.2.43, for=198.51.100.17", Some("198.51.100.17")),
            ("for=192.0.2.43,for=10.0.0.17", Some("192.0.2.43")),
            ("for=\"192.0.2.43:47011\"", Some("192.0.2.43")),
            ("for=unknown", None),
            ("for=\"_gazonk\"", None),
            ("proto=https", None),
        ] {
            assert_eq!(client(value).0.as_deref(), expected, "{value}");
        }
        let (_, forwarded) = client(
            "for=6.6.6.6;host=evil.example, for=192.0.2.1;host=push.example;proto=wss, for=10.0.0.2;host=inner;proto=http",
        );
        assert_eq!(forwarded, Forwarded { host: Some("push.example".into()), scheme: Some("https") });
    }

    /// A client could otherwise hide the element that the proxy has added.
    #[test]
    fn an_open_quote_of_a_client_takes_nothing_from_the_element_of_a_proxy() {
        for forged in
            ["for=\"", "for=\"6.6.6.6", "for=\"\\", "\"\\\\", "for=6.6.6.6;host=\"a,b", ",,,\"", "\\"]
        {
            for own in ["for=192.0.2.1", "for=\"192.0.2.1:80\""] {
                let value = format!("{forged}, {own}");
                let (client, _) = read_from(&[("forwarded", &value)], ForwardedHeader::Forwarded);
                assert_eq!(client.as_deref(), Some("192.0.2.1"), "{value}");
            }
        }
    }
}
