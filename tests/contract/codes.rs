//! Every code of the contract: its status, its close code, and a request that is answered with it.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, future::BoxFuture};
use rejoin::{
    auth::{Wish, mint},
    config::Secret,
    http::Code,
    log::LogError,
};
use reqwest::Method;
use serde_json::{Value, json};
use sse_stream::SseByteStream;

use crate::{
    ask::{Answer, Ask, get, post, publish, request, text, until_served, within},
    failing::FailingServer,
    reader::{Events, Lines, Reader, Socket, Stream, frame_of, refusal, transport_headers},
    support::{Server, client::Transport},
};

struct Row {
    code: &'static str,
    status: Option<u16>,
    close: Option<u16>,
    /// A request with this answer. `None` if the code can only end an open connection, or if no client library
    /// sends such a request: then `http1.rs` makes it.
    made_by: Option<fn() -> BoxFuture<'static, Answer>>,
}

const fn row(
    code: &'static str,
    status: Option<u16>,
    close: Option<u16>,
    made_by: Option<fn() -> BoxFuture<'static, Answer>>,
) -> Row {
    Row { code, status, close, made_by }
}

/// The words of a server without a place for one more connection.
const FULL: &str =
    "connection limit reached, or your share of it while little is left (--max-connections); try again later";

const ROWS: &[Row] = &[
    row("bad_request", Some(400), Some(4000), Some(|| Box::pin(bad_request()))),
    row("unauthorized", Some(401), Some(4001), Some(|| Box::pin(unauthorized()))),
    row("token_expired", Some(401), Some(4201), Some(|| Box::pin(token_expired()))),
    row("forbidden", Some(403), Some(4003), Some(|| Box::pin(forbidden()))),
    row("forbidden_origin", Some(403), None, Some(|| Box::pin(forbidden_origin()))),
    row("forbidden_host", Some(403), None, Some(|| Box::pin(forbidden_host()))),
    row("not_found", Some(404), Some(4000), Some(|| Box::pin(not_found()))),
    row("method_not_allowed", Some(405), Some(4000), Some(|| Box::pin(method_not_allowed()))),
    row("timed_out", Some(408), Some(4100), Some(|| Box::pin(timed_out()))),
    row("conflict", Some(409), None, Some(|| Box::pin(conflict()))),
    row("precondition_failed", Some(412), None, Some(|| Box::pin(precondition_failed()))),
    row("too_large", Some(413), Some(1009), Some(|| Box::pin(too_large()))),
    row("unsupported_media_type", Some(415), None, Some(|| Box::pin(unsupported_media_type()))),
    row("key_reused", Some(422), None, Some(|| Box::pin(key_reused()))),
    row("upgrade_required", Some(426), None, Some(|| Box::pin(upgrade_required()))),
    row("not_implemented", Some(501), None, None),
    row("rate_limited", Some(429), Some(4100), Some(|| Box::pin(rate_limited()))),
    row("overloaded", Some(503), Some(4100), Some(|| Box::pin(overloaded()))),
    row("unavailable", Some(503), None, Some(|| Box::pin(failed(LogError::Unavailable)))),
    row("unknown_outcome", Some(503), None, Some(|| Box::pin(failed(LogError::UnknownOutcome)))),
    row("full", Some(503), None, Some(|| Box::pin(failed(LogError::Full)))),
    row("too_slow", None, Some(4101), None),
    row("draining", None, Some(4200), None),
    row("disconnected", None, Some(4010), None),
];

#[tokio::test]
async fn every_code_is_answered_with_the_status_and_close_of_the_contract() {
    let named: BTreeSet<_> = ROWS.iter().map(|row| row.code).collect();
    let known: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(named, known, "a row for each code, and a code for each row");
    let rows: BTreeSet<_> = ROWS.iter().map(|row| (row.code.to_owned(), row.status, row.close)).collect();
    assert_eq!(rows, documented(), "the table of docs/protocol.md");

    for row in ROWS {
        let code = Code::ALL.into_iter().find(|code| code.as_str() == row.code).expect("a code for each row");
        assert_eq!(code.status().map(|status| status.as_u16()), row.status, "{code}");
        assert_eq!(code.close(), row.close, "{code}");
        assert_eq!(json!(code), json!(row.code));
        let Some(made_by) = row.made_by else { continue };
        let answer = made_by().await;
        let problem = answer.problem(row.status.expect("a status"), row.code);
        assert_eq!(problem["status"], json!(row.status), "{problem}");
        assert!(problem["title"].is_string(), "{problem}");
        let retry_after = if matches!(row.status, Some(429 | 503)) { "1" } else { "" };
        assert_eq!(answer.header("retry-after"), retry_after, "{answer:?}");
    }
}

/// The rows of the table of codes in the documentation: code, status, close.
fn documented() -> BTreeSet<(String, Option<u16>, Option<u16>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md");
    let page = fs::read_to_string(path).expect("the documentation of the protocol");
    let table = page.lines().skip_while(|line| !line.starts_with("| code | status | close |"));
    table.skip(2).take_while(|line| line.starts_with('|')).flat_map(documented_row).collect()
}

/// The codes of one row. Its numbers are one for each code, or one for all.
fn documented_row(row: &str) -> Vec<(String, Option<u16>, Option<u16>)> {
    let cells: Vec<_> = row.trim_matches('|').split('|').map(without_parentheses).collect();
    let [codes, statuses, closes] = &cells[..] else { panic!("three cells: {row}") };
    let codes: Vec<_> = codes.split('`').skip(1).step_by(2).collect();
    let numbers = |cell: &str| -> Vec<Option<u16>> {
        let numbers: Vec<_> = cell.split(',').map(|number| number.trim().parse().ok()).collect();
        if numbers.len() == 1 { vec![numbers[0]; codes.len()] } else { numbers }
    };
    let (statuses, closes) = (numbers(statuses), numbers(closes));
    assert_eq!((statuses.len(), closes.len()), (codes.len(), codes.len()), "{row}");
    let row = codes.iter().zip(statuses).zip(closes);
    row.map(|((code, status), close)| ((*code).to_owned(), status, close)).collect()
}

/// Removes the explanations in parentheses.
fn without_parentheses(cell: &str) -> String {
    let mut depth = 0;
    cell.chars()
        .filter(|char| {
            depth += i32::from(*char == '(');
            let is_outside = depth == 0;
            depth -= i32::from(*char == ')');
            is_outside
        })
        .collect()
}

async fn bad_request() -> Answer {
    let server = Server::start().await;
    let answer = get(&server, "/topics/a?wait=x").answer().await;
    let detail = answer.problem(400, "bad_request")["detail"].clone();
    assert!(
        detail.as_str().is_some_and(|detail| detail.contains("wait")),
        "it names the parameter: {detail}"
    );
    answer
}

/// A server that requires tokens, and a token that may read the topic `a`. The token was made `age` ago and
/// lives for `ttl`.
async fn with_token(ttl: Duration, age: Duration) -> (Server, String) {
    let mut token = String::new();
    let server = Server::with(|config| {
        config.jwt_secret = Some(Secret("for the tests".into()));
        let rejoin = serde_json::from_value(json!({"subscribe": ["a"]})).expect("grants");
        let wish = Wish { sub: Some("u1".into()), rejoin, ttl };
        let minted = mint(&config.authority(), None, &wish, SystemTime::now() - age);
        token = minted.expect("there is a secret").token;
    })
    .await;
    (server, token)
}

async fn unauthorized() -> Answer {
    let (server, _) = with_token(Duration::from_secs(60), Duration::ZERO).await;

    get(&server, "/topics/a").answer().await
}

async fn token_expired() -> Answer {
    let (server, token) = with_token(Duration::ZERO, Duration::from_secs(1)).await;

    get(&server, &format!("/topics/a?token={token}")).answer().await
}

async fn forbidden() -> Answer {
    let (server, token) = with_token(Duration::from_secs(60), Duration::ZERO).await;
    let answer = get(&server, "/topics/a").bearer_auth(&token).answer().await;
    assert_eq!(answer.status, 200, "the grants: {answer:?}");

    get(&server, "/topics/b").bearer_auth(&token).answer().await
}

async fn conflict() -> Answer {
    let server = Server::start().await;
    let events = Events::open(&server, "/topics/a").await;
    let id = events.opening["connection"].as_str().expect("an id").to_owned();

    request(&server, Method::PUT, &format!("/connections/{id}/topics/b")).answer().await
}

async fn forbidden_origin() -> Answer {
    let server = Server::start().await;

    get(&server, "/topics/a").header("origin", "https://elsewhere.example").answer().await
}

async fn forbidden_host() -> Answer {
    let server = Server::start().await;

    get(&server, "/topics/a").header("host", "rebound.example").answer().await
}

async fn not_found() -> Answer {
    let server = Server::start().await;
    for path in ["/nowhere", "/topics/", "/topics/a/b", "/events/", "/publish/x"] {
        post(&server, path).answer().await.problem(404, "not_found");
    }

    get(&server, "/nowhere").answer().await
}

async fn method_not_allowed() -> Answer {
    let server = Server::start().await;
    for (method, path) in [
        (Method::PUT, "/topics/a"),
        (Method::PATCH, "/topics/a"),
        (Method::DELETE, "/events"),
        (Method::PUT, "/events"),
        (Method::GET, "/publish"),
        (Method::DELETE, "/publish"),
        (Method::POST, "/topics"),
        (Method::POST, "/stats"),
        (Method::POST, "/health/live"),
        (Method::POST, "/health/ready"),
        (Method::POST, "/"),
    ] {
        let answer = request(&server, method.clone(), path).answer().await;
        answer.problem(405, "method_not_allowed");
        // RFC 9110 §15.5.6.
        assert!(!answer.header("allow").is_empty(), "{method} {path}: {answer:?}");
    }

    request(&server, Method::PUT, "/topics/a").answer().await
}

async fn precondition_failed() -> Answer {
    let server = Server::start().await;
    publish(&server, "a", "x").await;

    post(&server, "/topics/a").header("if-match", "\"0\"").body("y").answer().await
}

async fn timed_out() -> Answer {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();

    post(&server, "/topics/a").body(reqwest::Body::wrap_stream(never)).answer().await
}

async fn too_large() -> Answer {
    let server = Server::with(|config| config.max_payload = 10).await;

    post(&server, "/topics/a").body("eleven char").answer().await
}

async fn unsupported_media_type() -> Answer {
    let server = Server::start().await;
    post(&server, "/events").body("{}").answer().await.problem(415, "unsupported_media_type");

    post(&server, "/publish").body("[]").answer().await
}

async fn key_reused() -> Answer {
    let server = Server::start().await;
    let publish = |body: &'static str| post(&server, "/topics/a").header("idempotency-key", "k").body(body);
    assert_eq!(publish("x").answer().await.status, 201);

    publish("y").answer().await
}

async fn upgrade_required() -> Answer {
    let server = Server::start().await;

    get(&server, "/topics/a").header("upgrade", "websocket").answer().await
}

async fn rate_limited() -> Answer {
    let server = Server::with(|config| config.publish_rate = 1).await;
    let mut socket = Socket::open(&server, "/events").await;
    let mut answer = post(&server, "/topics/a").body("x").answer().await;
    // A second may pass after one publish, but not after each of them.
    while answer.status == 201 {
        answer = post(&server, "/topics/a").body("x").answer().await;
    }
    let many = vec![json!({"topic": "a", "data": 1}); 5];
    let answers = post(&server, "/publish").json(&many).answer().await.json();
    assert_eq!(answers[4]["code"], "rate_limited", "in its place: {answers}");
    let mut said = socket.ask(json!({"type": "publish", "topic": "a", "data": 1})).await;
    while said["type"] == "published" {
        said = socket.ask(json!({"type": "publish", "topic": "a", "data": 1})).await;
    }
    assert_eq!((&said["type"], &said["code"]), (&json!("error"), &json!("rate_limited")), "{said}");
    assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong", "the connection stays");
    answer
}

async fn overloaded() -> Answer {
    let server = Server::with(|config| config.max_connections = 1).await;
    let mut first = Reader::open(&server, Transport::Ndjson, "topic=a").await;
    refusal(&server, Transport::WebSocket, "/topics/a", &[]).await.problem(503, "overloaded");
    let answer = refusal(&server, Transport::Poll, "/topics/a?after=0&wait=60", &[]).await;
    let id = publish(&server, "a", "x").await;
    assert_eq!(first.ids(1).await, [id], "the first connection is still served");
    answer
}

/// The answer to a publish while the log fails. `POST /publish` must answer with the same code.
async fn failed(error: LogError) -> Answer {
    let server = FailingServer::start().await;
    let publish = || post(&server, "/topics/a").header("idempotency-key", "k").body("x").answer();
    let first = publish().await;
    assert_eq!(first.status, 201, "{first:?}");
    server.fail(Some(error));
    let answer = publish().await;
    let code = answer.json()["code"].clone();
    let items = json!([{"topic": "a", "data": 1}, {"topic": "b", "data": 2}]);
    let answers = post(&server, "/publish").json(&items).answer().await.json();
    assert_eq!((&answers[0]["code"], &answers[1]["code"]), (&code, &code), "{answers}");
    server.fail(None);
    assert_eq!(publish().await.id(), first.id(), "and later it works again");
    answer
}

#[tokio::test]
async fn an_overloaded_server_refuses_an_event_stream_so_that_it_reconnects() {
    let server = Server::with(|config| config.max_connections = 1).await;
    let first = Reader::open(&server, Transport::Sse, "topic=a").await;
    let cursor = first.cursor().to_owned();
    let mut retries = BTreeSet::new();
    for path in ["/topics/a", "/topics/*", "/events?topic=a"].repeat(4) {
        let mut events = Events::of(Stream::open(&server, Transport::Sse, path, &[]).await);
        assert_eq!(events.headers["content-type"], "text/event-stream; charset=utf-8", "{path}");
        let event = events.next().await;
        assert_eq!(event.event.as_deref(), Some("rejoin.closing"), "{path}");
        let closing = frame_of(&event);
        let retry_ms = event.retry.expect("a retry");
        assert!((5_000..=30_000).contains(&retry_ms), "{path}: {retry_ms}");
        let expected = json!({
            "type": "closing", "code": "overloaded", "detail": FULL, "cursor": cursor, "retry_ms": retry_ms
        });
        assert_eq!(closing, expected, "{path}");
        assert!(events.try_next().await.is_none(), "{path}: the end");
        retries.insert(retry_ms);
    }
    assert!(retries.len() > 3, "{retries:?}");
    drop(first);
}

#[tokio::test]
async fn an_overloaded_server_refuses_ndjson_with_one_closing_frame() {
    let server = Server::with(|config| config.max_connections = 1).await;
    let first = Reader::open(&server, Transport::Ndjson, "topic=a").await;
    let mut lines = Lines::of(Stream::open(&server, Transport::Ndjson, "/topics/a", &[]).await);
    let closing = lines.next().await;
    let retry_ms = closing["retry_ms"].as_u64().expect("milliseconds");
    let cursor = first.cursor();
    assert_eq!(
        closing,
        json!({
            "type": "closing", "code": "overloaded", "detail": FULL, "cursor": cursor, "retry_ms": retry_ms
        })
    );
    assert!((5_000..=30_000).contains(&retry_ms), "{retry_ms}");
    assert_eq!(lines.try_line().await, None);
}

#[tokio::test]
async fn an_event_stream_that_is_refused_while_resuming_keeps_its_cursor() {
    let server = Server::with(|config| config.max_connections = 1).await;
    let cursor = publish(&server, "a", "seen").await;
    let missed = publish(&server, "a", "missed").await;
    let first = Reader::open(&server, Transport::Sse, "topic=a").await;
    let headers = [("last-event-id", cursor.as_str())];
    let mut events = Events::of(Stream::open(&server, Transport::Sse, "/events?topic=a", &headers).await);
    events.next().await;
    assert_eq!(events.cursor, cursor);
    drop(first);
    until_served(&server, 0).await;
    let mut back = Reader::open(&server, Transport::Sse, &format!("topic=a&after={}", events.cursor)).await;
    assert_eq!(back.ids(1).await, [missed]);
}

#[tokio::test]
async fn an_overloaded_server_refuses_a_page_with_a_close_code_that_means_back_off() {
    let server = Server::direct(|config| config.max_connections = 1).await;
    let first = Reader::open(&server, Transport::WebSocket, "topic=a").await;
    let origin = server.http("");
    let mut socket = Socket::shake_hands(&server, "/topics/a", &[("origin", &origin)]).await;
    let error = socket.next().await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("overloaded")), "{error}");
    assert_eq!(socket.closed().await, (4100, "overloaded".to_owned()));
    drop(first);
}

#[tokio::test]
async fn a_failing_log_is_503_except_for_event_streams() {
    let server = FailingServer::start().await;
    let cursor = post(&server, "/topics/a").body("x").answer().await.id();
    let held = Lines::open(&server, "/events").await;
    let added = format!("/connections/{}/topics/a", text(&held.opening["connection"]));
    server.fail(Some(LogError::Unavailable));
    // This request stores no message, so the words of a publish would say nothing.
    let problem = request(&server, Method::PUT, &added).answer().await.problem(503, "unavailable");
    let detail = "the log cannot be reached, so nothing was changed; send the request again";
    assert_eq!(problem["detail"], detail);
    let with_cursor = format!("after={cursor}");
    for start in ["", "after=0", "last=1", "since=1h", &with_cursor] {
        let path = format!("/topics/a?wait=0&{start}");
        get(&server, &path).answer().await.problem(503, "unavailable");
        let request = get(&server, &path).header("accept", "text/event-stream");
        let mut events = SseByteStream::new(Stream::of(request).await.chunks);
        let event = within("an event", events.next()).await.expect("an event").expect("a well-formed one");
        assert_eq!(event.event.as_deref(), Some("rejoin.closing"), "{start:?}");
        let retry_ms = event.retry.expect("a retry");
        assert!((5_000..=30_000).contains(&retry_ms), "{start:?}");
        let detail = "the log cannot be reached, so nothing was stored; try again";
        let mut expected =
            json!({"type": "closing", "code": "unavailable", "detail": detail, "retry_ms": retry_ms});
        // A client without a cursor gets none: it repeats its request unchanged.
        if event.id.is_some() {
            assert_eq!((event.id.as_deref(), start), (Some(&*cursor), &*with_cursor));
            expected["cursor"] = json!(cursor);
        }
        let closing: Value = serde_json::from_str(&event.data.expect("data")).expect("JSON");
        assert_eq!(closing, expected, "{start:?}");
        assert!(within("the end", events.next()).await.is_none(), "{start:?}");
        let mut request = get(&server, &path);
        for (name, value) in transport_headers(Transport::WebSocket) {
            request = request.header(*name, *value);
        }
        request.answer().await.problem(503, "unavailable");
    }
    for path in ["/stats", "/topics", "/health/ready"] {
        get(&server, path).answer().await.problem(503, "unavailable");
    }
    assert_eq!(get(&server, "/health/live").answer().await.status, 200);
    server.fail(None);
    // A proof of readiness counts for a second.
    let until_ready = async { while get(&server, "/health/ready").answer().await.status != 200 {} };
    within("readiness", until_ready).await;
}
