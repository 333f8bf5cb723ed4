//! Claims that hold for every input from a stranger. Each function panics if its claim does not hold. The
//! fuzz targets call them, and so does an ordinary test with the seeds.
#![allow(dead_code, reason = "each target uses its own part of this module")]

use std::{
    io::Read,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::Request};
use flate2::{
    Compression,
    read::{GzEncoder, ZlibEncoder},
};
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rejoin::{
    auth::{Authority, covers},
    message::{Id, Pattern, Topic},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::harness::{CLOSED, MAX_PAYLOAD_BYTES, OPEN, SECRET};

/// Lines of text: a pattern to ask for, and the patterns that may cover it. Then bytes that choose patterns.
pub fn patterns(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        for line in text.split('\n').take(8) {
            assert_eq!(line.parse::<Topic>().is_ok(), is_topic(line), "{line:?}");
            assert_eq!(line.parse::<Pattern>().is_ok(), is_pattern(line), "{line:?}");
        }
        let (patterns, topics): (Vec<Pattern>, Vec<Topic>) = (
            text.split('\n').take(4).filter_map(|line| line.parse().ok()).collect(),
            text.split('\n').take(8).filter_map(|line| line.parse().ok()).collect(),
        );
        for pattern in &patterns {
            for topic in &topics {
                assert_eq!(pattern.matches(topic), is_matched(pattern.as_str(), topic), "{pattern} {topic}");
            }
            assert!(covers(std::slice::from_ref(pattern), pattern), "{pattern} covers itself");
        }
        if let [asked, granted @ ..] = &*patterns
            && covers(granted, asked)
        {
            for topic in topics.iter().filter(|topic| asked.matches(topic)) {
                assert!(granted.iter().any(|pattern| pattern.matches(topic)), "{asked} {granted:?} {topic}");
            }
        }
    }
    containment(data);
}

/// Compares the check of containment with a slow one. Each byte is a segment, or ends a pattern.
fn containment(data: &[u8]) {
    const SEGMENTS: [&str; 5] = ["a", "b", "$a", "*", "**"];
    let patterns: Vec<Pattern> = data
        .split(|byte| byte % 8 > 5)
        .take(5)
        .filter_map(|bytes| {
            let segments: Vec<_> =
                bytes.iter().take(4).map(|byte| SEGMENTS[usize::from(byte % 8) % 5]).collect();
            segments.join(".").parse().ok()
        })
        .collect();
    let [asked, granted @ ..] = &*patterns else { return };
    let mut is_covered = true;
    each_topic(&mut String::new(), 0, &mut |topic| {
        if is_covered && asked.matches(topic) {
            is_covered = granted.iter().any(|pattern| pattern.matches(topic));
        }
    });
    assert_eq!(covers(granted, asked), is_covered, "{asked} by {granted:?}");
}

/// Visits every topic over a few names, up to one segment longer than all patterns here.
fn each_topic(topic: &mut String, depth: usize, visit: &mut impl FnMut(&str)) {
    if depth > 0 {
        visit(topic);
    }
    if depth == 5 {
        return;
    }
    let length = topic.len();
    for name in ["a", "b", "$a", "else"] {
        if depth > 0 {
            topic.push('.');
        }
        topic.push_str(name);
        each_topic(topic, depth + 1, visit);
        topic.truncate(length);
    }
}

/// The rules as the documentation lists them, one after the other.
fn is_topic(text: &str) -> bool {
    is_name(text) && !text.contains('*')
}

fn is_pattern(text: &str) -> bool {
    let count = text.split('.').count();
    is_name(text)
        && text.split('.').enumerate().all(|(index, segment)| match segment {
            "*" => true,
            "**" => index + 1 == count,
            other => !other.contains('*'),
        })
}

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.split('.').all(|segment| !segment.is_empty())
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !",{}".contains(c))
}

fn is_matched(pattern: &str, topic: &str) -> bool {
    fn rest(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => rest(pattern, topic),
            ([one, pattern @ ..], [other, topic @ ..]) => one == other && rest(pattern, topic),
            _ => false,
        }
    }
    let (pattern, topic): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), topic.split('.').collect());
    !(topic[0].starts_with('$') && pattern[0].starts_with('*')) && rest(&pattern, &topic)
}

pub fn cursors(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let parsed = text.parse::<Id>();
    let is_one = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.trim_start_matches('0');
    let value: Option<u64> = if number.is_empty() { Some(0) } else { number.parse().ok() };
    let expected = value.filter(|value| is_one && *value < 1 << 53);
    assert_eq!(parsed.as_ref().ok().map(|id| id.get()), expected, "{text:?}");
    if let Ok(id) = parsed {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    // As a header it is never refused; as a parameter it is a valid cursor or `400`.
    let (status, _) = read("/topics/a?wait=0", data);
    assert!(status == 200 || HeaderValue::from_bytes(data).is_err(), "{status} {text:?}");
    let (status, body) = read(&format!("/topics/a?wait=0&after={}", encoded(text)), b"");
    assert_eq!(
        status,
        if expected.is_some() { 200 } else { 400 },
        "{text:?} {}",
        String::from_utf8_lossy(&body)
    );
}

/// A query. The first byte chooses the transport, and whether the request has a header.
pub fn starts(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let Ok(text) = str::from_utf8(rest) else { return };
    let (query, header) = text.split_once('\n').unwrap_or((text, ""));
    let query: String = query.chars().filter(|c| c.is_ascii_graphic() && *c != '#').collect();
    let path = if choice % 2 == 0 { "/topics/a" } else { "/events" };
    // A held poll or a stream would not end by itself.
    let (status, body) = read(&format!("{path}?wait=0&transport=poll&topic=a&{query}"), header.as_bytes());
    assert!(matches!(status, 200 | 400), "{status} {query:?}");
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    match status {
        200 => {
            let cursor: Id = answer["cursor"].as_str().and_then(|text| text.parse().ok()).expect("a cursor");
            assert!(cursor > Id::ZERO, "the server never gives out 0: {query:?}");
        }
        _ => assert!(answer["code"] == "bad_request" && answer["detail"].is_string(), "{answer}"),
    }
}

fn read(path: &str, last_event_id: &[u8]) -> (u16, Vec<u8>) {
    let mut request = Request::builder().uri(path).header("host", "localhost");
    if let Ok(value) = HeaderValue::from_bytes(last_event_id) {
        request = request.header("last-event-id", value);
    }
    match request.body(Body::empty()) {
        Ok(request) => OPEN.with(|server| server.ask(request)),
        Err(_) => (400, br#"{"code":"bad_request","detail":"it is no request"}"#.to_vec()),
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Each line is a command. Each is answered, and the connection stays open.
pub fn commands(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let lines: Vec<_> = text.split('\n').take(12).collect();
    let answers = OPEN.with(|server| server.converse(&lines, r#"{"type":"ping","ref":"the last"}"#));
    assert!(
        answers.last().is_some_and(|last| last.contains("the last")),
        "the connection ended: {answers:?}"
    );
    let types: Vec<_> = answers.iter().map(|answer| type_of(answer)).collect();
    assert_eq!(types[0], "open");
    const ANSWERS: [&str; 6] = ["subscribed", "unsubscribed", "published", "authenticated", "pong", "error"];
    let answered = types.iter().filter(|name| ANSWERS.contains(&name.as_str())).count();
    assert_eq!(answered, lines.len() + 1, "each is answered once: {lines:?} {answers:?}");
}

/// The type of a frame. Its data may contain a number that is larger than any Rust type.
fn type_of(frame: &str) -> String {
    #[derive(Deserialize)]
    struct Frame {
        r#type: String,
    }
    serde_json::from_str::<Frame>(frame).unwrap_or_else(|error| panic!("{error}: {frame}")).r#type
}

/// The ways to send a body.
const BODIES: [(&str, &str); 6] = [
    ("/publish", "application/json"),
    ("/publish", "application/x-ndjson"),
    ("/topics/a", "application/json"),
    ("/topics/a", "text/plain"),
    ("/topics/a", "application/x-www-form-urlencoded"),
    ("/events?wait=0&transport=poll", "application/json"),
];

fn in_pieces(body: &[u8], piece: u8) -> Body {
    let pieces: Vec<_> = body.chunks(1 + usize::from(piece)).map(<[u8]>::to_vec).collect();
    Body::from_stream(futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>)))
}

/// The first byte chooses how the body is published, the second the size of the pieces in which it arrives.
pub fn bodies(data: &[u8]) {
    let [choice, piece, body @ ..] = data else { return };
    let (path, content_type) = BODIES[usize::from(*choice) % BODIES.len()];
    let request = Request::post(path).header("host", "localhost").header("content-type", content_type);
    let request = request.body(in_pieces(body, *piece)).expect("a request");
    let (status, bytes) = OPEN.with(|server| server.ask(request));
    let told = || {
        format!(
            "{status} {:?} to {path} {:?}",
            String::from_utf8_lossy(&bytes),
            String::from_utf8_lossy(body)
        )
    };
    assert!(is_json(&bytes), "{}", told());
    match path {
        "/publish" => {
            assert!(matches!(status, 200 | 400), "{}", told());
            let whole = serde_json::from_slice::<Vec<Value>>(body)
                .ok()
                .filter(|_| content_type == "application/json");
            if let Some(values) = whole {
                assert_eq!(status, 200, "{}", told());
                let answers: Vec<Value> = serde_json::from_slice(&bytes).expect("a list");
                assert_eq!(answers.len(), values.len(), "{}", told());
            }
        }
        "/topics/a" => {
            assert!(matches!(status, 201 | 400 | 413), "{}", told());
            assert_eq!(status == 413, body.len() > MAX_PAYLOAD_BYTES, "{}", told());
            if content_type == "application/json" && status == 201 {
                assert!(is_json(body), "{}", told());
            }
        }
        _ => assert!(matches!(status, 200 | 400), "{}", told()),
    }
}

/// The first byte chooses the coding, and if the rest is such a body or is to become one; the others are those of
/// [`bodies`]. A body in a coding has the status of the plain one.
pub fn coded(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let [target, piece, body @ ..] = rest else { return };
    let (path, content_type) = BODIES[usize::from(*target) % BODIES.len()];
    let coding = if choice % 2 == 0 { "gzip" } else { "deflate" };
    let ask = |coding: Option<&str>, body: &[u8]| {
        let mut request =
            Request::post(path).header("host", "localhost").header("content-type", content_type);
        if let Some(coding) = coding {
            request = request.header("content-encoding", coding);
        }
        let request = request.body(in_pieces(body, *piece)).expect("a request");
        let (status, bytes) = OPEN.with(|server| server.ask(request));
        assert!(is_json(&bytes), "{status} {:?}", String::from_utf8_lossy(&bytes));
        status
    };
    if choice / 2 % 2 == 0 {
        let mut made = Vec::new();
        match coding {
            "gzip" => _ = GzEncoder::new(body, Compression::fast()).read_to_end(&mut made),
            _ => _ = ZlibEncoder::new(body, Compression::fast()).read_to_end(&mut made),
        }
        assert_eq!(ask(Some(coding), &made), ask(None, body), "{path} {:?}", String::from_utf8_lossy(body));
    } else {
        let status = ask(Some(coding), body);
        assert!(matches!(status, 200 | 201 | 400 | 413), "{status}");
    }
}

/// A set of keys, as an issuer publishes it: it gives no more keys than it has public ones.
pub fn keys(data: &[u8]) {
    let Ok(keys) = rejoin::auth::parse_keys(data, None) else { return };
    let set: Value = serde_json::from_slice(data).expect("it was JSON before");
    let listed = set["keys"].as_array().expect("a list");
    assert!(listed.len() <= 100, "{} keys", listed.len());
    let is_public = |key: &&Value| key["kty"].is_string() && key["kty"] != "oct" && key.get("d").is_none();
    assert!(keys.len() <= listed.iter().filter(is_public).count(), "{set}");
}

/// True for JSON, even with a number that is larger than any Rust type.
fn is_json(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// The text as a credential, and as the claims of a correctly signed token.
pub fn tokens(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut authority = Authority::default();
    authority.add_development_secret(SECRET);
    let now = SystemTime::now();
    assert!(authority.identify(Some(text), now).is_err(), "accepted: {text:?}");
    for (name, value) in [
        ("authorization", format!("Bearer {text}")),
        ("cookie", text.to_owned()),
        ("cookie", format!("rejoin_token={text}")),
        ("sec-websocket-protocol", format!("rejoin.v1, bearer.{text}")),
        ("x-nothing", String::new()),
    ] {
        let uri = if name.starts_with('x') {
            format!("/topics/a?wait=0&token={}", encoded(text))
        } else {
            "/topics/a?wait=0".into()
        };
        let Ok(value) = HeaderValue::from_str(&value) else { continue };
        let request = Request::builder().uri(uri).header("host", "localhost").header(name, value);
        let Ok(request) = request.body(Body::empty()) else { continue };
        let (status, _) = CLOSED.with(|server| server.ask(request));
        assert_eq!(status, 401, "{name}: {text:?}");
    }
    let Ok(claims) = serde_json::from_str::<Value>(text) else { return };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let Ok(token) = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key) else { return };
    let Ok(identity) = authority.identify(Some(&token), now) else { return };
    let exp = claims["exp"].as_f64().expect("a number");
    assert!(UNIX_EPOCH + Duration::from_secs_f64(exp.min(1e11)) > now, "accepted after its end: {claims}");
    assert!(!identity.grants.is_admin() || claims["rejoin"]["admin"] == true, "{claims}");
    let granted = claims["rejoin"]["subscribe"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let (sub, granted) = (claims["sub"].as_str().unwrap_or_default(), granted.collect::<Vec<_>>());
    let is_segment = |text: &str| is_topic(text) && !text.contains('.') && !text.starts_with('$');
    for asked in ["a", "a.b", "users.u1", "users.u2", "*", "**", "users.*", "users.**", "$a", sub] {
        let Ok(asked) = asked.parse::<Pattern>() else { continue };
        let filled: Vec<Pattern> = granted
            .iter()
            .filter(|pattern| !pattern.contains("{sub}") || is_segment(sub))
            .filter_map(|pattern| pattern.replace("{sub}", sub).parse().ok())
            .collect();
        assert_eq!(identity.grants.may_subscribe(&asked), covers(&filled, &asked), "{asked} of {claims}");
    }
}
