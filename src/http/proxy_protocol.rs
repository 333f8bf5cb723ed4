//! The PROXY protocol, versions 1 and 2: a trusted proxy says at the beginning of a connection who its client is.
//!
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>

use std::{io, net::IpAddr};

use bytes::BytesMut;
use ppp::{PartialResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::client_address::Peer;

/// The beginning of each header of version 1.
const TEXT_BEGINS: &[u8; 6] = b"PROXY ";
/// The longest header of version 1, with its line end.
const MAX_TEXT_BYTES: usize = 107;
/// The longest header of version 2: the addresses, and what some proxies add of TLS and of their network.
const MAX_BYTES: usize = 4 << 10;

/// Why a connection of a trusted proxy is not served.
#[derive(Debug, thiserror::Error)]
pub enum BadBeginning {
    /// The proxy has closed it, as balancers do that only look if the port is open.
    #[error("the connection ended")]
    Ended,
    #[error("it does not begin with a header of the PROXY protocol")]
    NoHeader,
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// Reads the header with which `proxy` begins a connection. Returns the client, and the bytes that were read after the
/// header.
pub async fn read(
    socket: &mut (impl AsyncRead + Unpin),
    proxy: IpAddr,
) -> Result<(Peer, BytesMut), BadBeginning> {
    let mut bytes = BytesMut::with_capacity(256);
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Err(BadBeginning::Ended);
        }
        if let Some((client, length)) = parse(&bytes)? {
            let peer = client.map_or(Peer::without_client(proxy), Peer::new);
            return Ok((peer, bytes.split_off(length)));
        }
    }
}

/// The client, if the header names one, and the length of the header. `None` if more bytes are needed.
fn parse(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, BadBeginning> {
    let length = bytes.len().min(TEXT_BEGINS.len());
    if bytes[..length] == TEXT_BEGINS[..length] { parse_text(bytes) } else { parse_binary(bytes) }
}

fn parse_text(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, BadBeginning> {
    let line = &bytes[..bytes.len().min(MAX_TEXT_BYTES)];
    // The parser takes only whole lines: it refuses some beginnings of a good one.
    let Some(end) = memchr::memmem::find(line, b"\r\n") else {
        return if bytes.len() < MAX_TEXT_BYTES { Ok(None) } else { Err(BadBeginning::NoHeader) };
    };
    // The rest of such a line is to be ignored, and the parser refuses some of it.
    if let Some([] | [b' ', ..]) = line[..end].strip_prefix(b"PROXY UNKNOWN") {
        return Ok(Some((None, end + 2)));
    }
    let header = v1::Header::try_from(&line[..end + 2]).map_err(|_| BadBeginning::NoHeader)?;
    Ok(Some((client_of_text(&header), end + 2)))
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, BadBeginning> {
    match v2::Header::try_from(&bytes[..bytes.len().min(MAX_BYTES)]) {
        Ok(header) => Ok(Some((client_of_bytes(&header), header.header.len()))),
        header if header.is_incomplete() && bytes.len() < MAX_BYTES => Ok(None),
        Err(_) => Err(BadBeginning::NoHeader),
    }
}

fn client_of_text(header: &v1::Header<'_>) -> Option<IpAddr> {
    match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    }
}

fn client_of_bytes(header: &v2::Header<'_>) -> Option<IpAddr> {
    match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => Some(addresses.source_address.into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => Some(addresses.source_address.into()),
        // A health check of the proxy itself, or a client without an address.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// The header that a proxy would send for this client.
    fn binary(source: SocketAddr, destination: SocketAddr, more: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.push(0x21);
        let mut addresses = Vec::new();
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.push(0x11);
                addresses.extend(source.octets());
                addresses.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.push(0x21);
                addresses.extend(source.octets());
                addresses.extend(destination.octets());
            }
            _ => panic!("both are of one family"),
        }
        addresses.extend(source.port().to_be_bytes());
        addresses.extend(destination.port().to_be_bytes());
        addresses.extend_from_slice(more);
        header.extend((addresses.len() as u16).to_be_bytes());
        header.extend(addresses);
        header
    }

    async fn begun(bytes: &[u8]) -> Result<(Peer, Vec<u8>), BadBeginning> {
        let (peer, rest) = read(&mut &bytes[..], PROXY).await?;
        Ok((peer, rest.to_vec()))
    }

    fn headers() -> Vec<(Vec<u8>, Peer)> {
        let four: (SocketAddr, SocketAddr) =
            ("192.0.2.1:4711".parse().expect("one"), "192.0.2.2:80".parse().expect("one"));
        let six = ("[2001:db8::1]:1".parse().expect("one"), "[2001:db8::2]:2".parse().expect("one"));
        let named = |address: SocketAddr| Peer::new(address.ip());
        let nameless = Peer::without_client(PROXY);
        let mut local = binary(four.0, four.1, b"");
        local[12] = 0x20;
        let mut unspecified = v2::PROTOCOL_PREFIX.to_vec();
        unspecified.extend([0x21, 0, 0, 0]);
        let mut unix = v2::PROTOCOL_PREFIX.to_vec();
        unix.extend([0x21, 0x31, 0, 216]);
        unix.extend([7; 216]);
        vec![
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 80\r\n".to_vec(), named(four.0)),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(), named(six.0)),
            (b"PROXY UNKNOWN\r\n".to_vec(), nameless),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), nameless),
            (b"PROXY UNKNOWN of more words than\r others, and \xff\r\n".to_vec(), nameless),
            (binary(four.0, four.1, b""), named(four.0)),
            (binary(six.0, six.1, &[7; 3000]), named(six.0)),
            (local, nameless),
            (unspecified, nameless),
            (unix, nameless),
        ]
    }

    #[tokio::test]
    async fn the_client_is_read_and_no_byte_after_the_header_is_lost() {
        for (header, peer) in headers() {
            let all = [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
            let (read, rest) = begun(&all).await.expect("a header");
            assert_eq!((read, &rest[..]), (peer, &all[header.len()..][..rest.len()]), "{header:?}");
        }
    }

    /// A header may arrive in pieces.
    #[test]
    fn every_beginning_of_a_header_needs_more_and_the_whole_does_not() {
        for (header, _) in headers() {
            for end in 1..header.len() {
                let begun = parse(&header[..end]);
                assert!(
                    matches!(begun, Ok(None)),
                    "{:?}: {begun:?}",
                    header[..end].escape_ascii().to_string()
                );
            }
            assert!(matches!(parse(&header), Ok(Some((_, length))) if length == header.len()), "{header:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_without_a_header_is_not_served_and_the_wait_has_a_bound() {
        let too_long = binary(
            "192.0.2.1:1".parse().expect("one"),
            "192.0.2.2:2".parse().expect("one"),
            &vec![7; MAX_BYTES],
        );
        for wrong in [
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROXY TCP4 localhost 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"\x16\x03\x01\x02\x00",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; MAX_TEXT_BYTES]].concat(),
            &[b"PROXY TCP4 ".as_slice(), &[b' '; MAX_TEXT_BYTES]].concat(),
            &too_long,
        ] {
            let refused = begun(wrong).await;
            assert!(refused.is_err(), "{:?}: {refused:?}", wrong.escape_ascii().to_string());
        }
        assert!(matches!(begun(b"").await, Err(BadBeginning::Ended)));
    }

    /// Changed headers never panic, and give the client of the header or none.
    #[test]
    fn a_changed_header_does_no_harm() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let headers = headers();
        for _ in 0..20_000 {
            let mut bytes = headers[random.random_range(0..headers.len())].0.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len().min(64));
                match random.random_range(0..3) {
                    0 => bytes[at] = random.random(),
                    1 => bytes.insert(at, random.random()),
                    _ => drop(bytes.remove(at)),
                }
            }
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
            if let Ok(Some((_, length))) = parse(&bytes) {
                assert!(length <= bytes.len().min(MAX_BYTES), "{bytes:?}");
            }
        }
    }
}
