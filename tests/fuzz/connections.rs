//! Claims about the bytes of a connection: what a proxy says before and in a request, and compressed frames of a WebSocket.
#![allow(dead_code, reason = "each target uses its own part of this module")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::HeaderValue;
use serde_json::Value;

use crate::wire::{FORWARDED, PROXIED, Wire, X_FORWARDED};

/// The peer of a Unix socket counts as one of loopback.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const REQUEST: &[u8] = b"GET /topics/a?wait=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// The first bytes of version 2 of the PROXY protocol.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest command: six times the payload, and 64 KiB.
const MAX_COMMAND_BYTES: usize = 6 * crate::harness::MAX_PAYLOAD_BYTES + (64 << 10);

/// The beginning of a connection, and then a request. If it is a whole header of the PROXY protocol, the client is the one
/// that it names. Without such a header there is no answer.
pub fn proxied(data: &[u8]) {
    PROXIED.with(|wire| {
        wire.forget_lines();
        let bytes = [data, REQUEST].concat();
        match header(data) {
            Some((client, length)) if length == data.len() => {
                let answer = wire.send(&bytes, |_| false);
                assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
                assert_eq!(wire.logged_client(), client.unwrap_or(PROXY).to_string());
            }
            // A request may begin in it.
            Some(_) => _ = wire.send_part(&bytes),
            None => {
                let answer = wire.send_part(&bytes);
                assert!(answer.is_empty() || may_end_in_request(data), "{}", answer.escape_ascii());
            }
        }
    });
}

/// The client, if the header names one, and the length of the header, as the documentation of the protocol has it.
fn header(data: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    if data.starts_with(BINARY) { binary(data) } else { line(data) }
}

fn line(data: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    let end = data.windows(2).take(106).position(|two| two == b"\r\n")?;
    if let Some([] | [b' ', ..]) = data[..end].strip_prefix(b"PROXY UNKNOWN") {
        return Some((None, end + 2));
    }
    let text = str::from_utf8(&data[..end]).ok()?.strip_prefix("PROXY ")?;
    let rest = |name: &str| text.strip_prefix(name).map(|rest| rest.split(' ').collect::<Vec<_>>());
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port.to_string() == text);
    let client: IpAddr = match (rest("TCP4 ").as_deref(), rest("TCP6 ").as_deref()) {
        (Some([from, to, one, other]), _) if is_port(one) && is_port(other) => {
            to.parse::<Ipv4Addr>().ok()?;
            from.parse::<Ipv4Addr>().ok()?.into()
        }
        (_, Some([from, to, one, other])) if is_port(one) && is_port(other) => {
            to.parse::<Ipv6Addr>().ok()?;
            from.parse::<Ipv6Addr>().ok()?.into()
        }
        _ => return None,
    };
    Some((Some(client.to_canonical()), end + 2))
}

fn binary(data: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    let [command, family, high, low, rest @ ..] = &data[BINARY.len()..] else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let least = match family >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        3 => 216,
        _ => return None,
    };
    let is_known = matches!(command, 0x20 | 0x21) && family & 15 <= 2;
    if !is_known || length < least || rest.len() < length || length + 16 > 4 << 10 {
        return None;
    }
    let client = match (command, family >> 4) {
        (0x21, 1) => Some(IpAddr::from(<[u8; 4]>::try_from(&rest[..4]).expect("four"))),
        (0x21, 2) => Some(IpAddr::from(<[u8; 16]>::try_from(&rest[..16]).expect("sixteen"))),
        _ => None,
    };
    Some((client.map(|ip| ip.to_canonical()), BINARY.len() + 4 + length))
}

/// True if the bytes of the request may be a part of the header.
fn may_end_in_request(data: &[u8]) -> bool {
    let all = [data, REQUEST].concat();
    header(&all).is_some_and(|(_, length)| length > data.len())
}

/// The values of the header in which a proxy names its client, one on each line. The first byte chooses the header.
pub fn forwarded(data: &[u8]) {
    let [choice, lines @ ..] = data else { return };
    let is_new = choice % 2 == 0;
    let (server, name): (&'static std::thread::LocalKey<_>, _) =
        if is_new { (&FORWARDED, "Forwarded") } else { (&X_FORWARDED, "X-Forwarded-For") };
    let values: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').take(20).collect();
    if values.iter().any(|value| HeaderValue::from_bytes(value).is_err()) {
        return;
    }
    let mut request = b"GET /topics/a?wait=0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".to_vec();
    for value in &values {
        request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    server.with(|wire: &std::cell::LazyCell<Wire>| {
        wire.forget_lines();
        let answer = wire.send(&request, |_| false);
        // A proxy that was asked by a name which the server does not know is told so.
        let is_answered =
            [&b"HTTP/1.1 200 "[..], b"HTTP/1.1 403 "].iter().any(|line| answer.starts_with(line));
        assert!(is_answered, "{}", answer.escape_ascii());
        let logged: IpAddr = wire.logged_client().parse().expect("an address");
        if let Some(expected) = named(&values, is_new) {
            assert_eq!(logged, expected, "{}", request.escape_ascii());
        }
    });
}

/// The client that the header names. `None` if it has quotes, or other bytes than ASCII.
fn named(values: &[&[u8]], is_new: bool) -> Option<IpAddr> {
    let lines: Option<Vec<&str>> = values
        .iter()
        .map(|value| str::from_utf8(value).ok().filter(|text| text.is_ascii() && !text.contains(['"', '\\'])))
        .collect();
    let mut client = PROXY;
    for element in lines?.join(",").rsplit(',') {
        let text = if is_new {
            let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
            found.next().map_or("", |(_, value)| value)
        } else {
            element
        };
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
        let Some(ip) = address.map(|ip: IpAddr| ip.to_canonical()) else { break };
        client = ip;
        let is_trusted = matches!(ip, IpAddr::V4(ip) if ip == Ipv4Addr::LOCALHOST || ip.octets()[0] == 10);
        if !is_trusted {
            break;
        }
    }
    Some(client)
}

/// Commands of a WebSocket that compresses. The first byte chooses if the rest are lines, of which each is compressed, or
/// the compressed bytes of one command; the second where a message is cut into frames.
pub fn inflated(data: &[u8]) {
    let [choice, cut, rest @ ..] = data else { return };
    let (messages, expected): (Vec<Vec<u8>>, Option<usize>) = if choice % 2 == 0 {
        let Ok(text) = str::from_utf8(rest) else { return };
        let lines: Vec<_> = text.split('\n').take(12).collect();
        (lines.iter().map(|line| deflated(line.as_bytes())).collect(), Some(lines.len()))
    } else {
        let is_text = plain(rest).map(|plain| str::from_utf8(&plain).is_ok());
        (vec![rest.to_vec()], is_text.map(usize::from))
    };
    let mut bytes =
        b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
        Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            .to_vec();
    for message in &messages {
        let (first, second) = message.split_at(usize::from(*cut).min(message.len()));
        bytes.extend(frame(0x41, first));
        bytes.extend(frame(0x80, second));
    }
    bytes.extend(frame(0x81, br#"{"type":"ping","ref":"the last"}"#));
    let is_over = |answer: &[u8]| {
        let (texts, is_closed) = frames(answer);
        // Messages that the commands have published may come behind it.
        is_closed || texts.iter().any(|text| text.contains("\"pong\",\"ref\":\"the last\""))
    };
    let answer = X_FORWARDED.with(|wire| wire.send(&bytes, is_over));
    let (texts, is_closed) = frames(&answer);
    assert!(is_over(&answer), "neither closed nor answered: {texts:?}");
    match expected {
        Some(count) if count > 0 => {
            assert!(!is_closed, "{texts:?}");
            let types = texts.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            let is_answer = |frame: &Value| {
                let name = frame["type"].as_str().unwrap_or_default();
                ["subscribed", "unsubscribed", "published", "authenticated", "pong", "error"].contains(&name)
            };
            assert_eq!(types.filter(is_answer).count(), count + 1, "{texts:?}");
        }
        Some(_) => assert!(is_closed, "it is no UTF-8: {texts:?}"),
        None => {}
    }
}

/// A frame as a client sends it, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_be_bytes();
    [&[first, 0xff][..], &length, &[0; 4], payload].concat()
}

/// The whole text frames of a server behind the head of its answer, and if it has closed.
fn frames(answer: &[u8]) -> (Vec<String>, bool) {
    let mut texts = Vec::new();
    let Some(begin) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return (texts, false) };
    let mut rest = &answer[begin + 4..];
    while let [first, short, more @ ..] = rest {
        let (length, more) = match (short, more) {
            (126, [a, b, more @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), more),
            (127, eight) if eight.len() >= 8 => {
                let length = u64::from_be_bytes(eight[..8].try_into().expect("eight"));
                (usize::try_from(length).expect("a length"), &eight[8..])
            }
            (126 | 127, _) => break,
            (short, more) => (usize::from(*short), more),
        };
        if more.len() < length {
            break;
        }
        let payload = &more[..length];
        match first & 15 {
            8 => return (texts, true),
            1 if first & 0x40 != 0 => {
                let plain = plain(payload).expect("the server compresses well");
                texts.push(String::from_utf8(plain).expect("UTF-8"));
            }
            1 => texts.push(String::from_utf8(payload.to_vec()).expect("UTF-8")),
            _ => {}
        }
        rest = &more[length..];
    }
    (texts, false)
}

fn deflated(text: &[u8]) -> Vec<u8> {
    let mut state = Compress::new(Compression::fast(), false);
    let mut bytes = Vec::with_capacity(text.len() + 64);
    state.compress_vec(text, &mut bytes, FlushCompress::Sync).expect("it compresses");
    assert_eq!(state.total_in(), text.len() as u64, "there is room");
    bytes.strip_suffix(&[0, 0, 0xff, 0xff]).expect("the end of a flush").to_vec()
}

/// The bytes of a whole compressed message that is not too long. `None` if it is not one, or has a last block itself.
fn plain(compressed: &[u8]) -> Option<Vec<u8>> {
    let whole = [compressed, &[0, 0, 0xff, 0xff, 3, 0]].concat();
    let (mut state, mut plain) = (Decompress::new(false), Vec::with_capacity(MAX_COMMAND_BYTES + 1));
    let status = state.decompress_vec(&whole, &mut plain, FlushDecompress::Sync).ok()?;
    let is_whole = status == Status::StreamEnd && state.total_in() == whole.len() as u64;
    (is_whole && compressed.len() <= MAX_COMMAND_BYTES && plain.len() <= MAX_COMMAND_BYTES).then_some(plain)
}
