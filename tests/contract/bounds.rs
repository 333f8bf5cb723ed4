//! The bounds of what one client can hold: answers that it does not take, streams, heads, connections.

use std::{convert::Infallible, future::pending, pin::pin, sync::Arc, task::Poll, time::Duration};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use futures_util::{FutureExt, poll};
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
};
use tower::ServiceExt;

use crate::{
    ask::{Ask, get, post, publish, text, until_served, within},
    failing::FailingServer,
    http2::Connection,
    listeners::{ask_over, stream_over},
    metrics::scrape,
    reader::{Lines, Socket},
    support::{
        Server, counted,
        program::{Folder, Program},
    },
};

const MESSAGES: usize = 20;
const MESSAGE_BYTES: usize = 220_000;

/// A server that closes a client which takes nothing for this time, with more messages than one answer has.
async fn full(write_timeout: Duration) -> Server {
    let server = Server::direct(|config| {
        config.write_timeout = write_timeout;
        config.retain_bytes = 64 << 20;
    })
    .await;
    for _ in 0..MESSAGES {
        publish(&server, "a", "x".repeat(MESSAGE_BYTES)).await;
    }
    server
}

async fn slow_closes(server: &Server) -> u64 {
    let metrics = get(server, "/metrics").answer().await;
    let line = metrics.text().lines().find(|line| line.starts_with("rejoin_slow_closes_total"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric")
}

/// Long enough to see that a busy machine counts the answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
const POLL: &str = "/topics/a?after=0&wait=0&limit=1000";

/// Five hundred such answers took two gigabytes, counted nowhere, and stayed for as long as the client did.
#[tokio::test]
async fn an_answer_that_is_not_taken_counts_as_a_connection_until_the_write_timeout() {
    let server = full(WRITE_TIMEOUT).await;
    let mut narrow = Connection::with_window(&server, 1).await;
    let mut held = Vec::new();
    // The last one is so short that all of it would wait for the window.
    for path in [POLL, POLL, POLL, "/topics/quiet?after=0&wait=0"] {
        let response = narrow.get(path, "application/json").await;
        assert_eq!(response.status(), StatusCode::OK);
        held.push(response);
    }
    until_served(&server, 4).await;
    for path in ["/nowhere", "/health/live", "/topics", "/metrics"] {
        held.push(narrow.get(path, "*/*").await);
    }
    assert_eq!(scrape(&server).await["rejoin_untaken_answers"], 2.0, "a probe and a scrape are not counted");
    until_served(&server, 0).await;
    within("the resets", async { while slow_closes(&server).await < held.len() as u64 {} }).await;
}

#[tokio::test]
async fn an_answer_over_http1_that_is_not_taken_counts_too() {
    let server = full(WRITE_TIMEOUT).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(8 << 10).expect("an option");
    let mut wire = socket.connect(server.addr).await.expect("a connection");
    let poll = format!("GET {POLL} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    wire.write_all(poll.as_bytes()).await.expect("it is taken");
    until_served(&server, 1).await;
    until_served(&server, 0).await;
    within("the close", async { while slow_closes(&server).await < 1 {} }).await;
}

/// Each answer would hold four megabytes, until its client has taken them.
#[tokio::test]
async fn polls_are_answered_with_less_while_many_answers_are_not_taken() {
    let server = full(Duration::from_secs(60)).await;
    let messages = async || {
        let page = get(&server, POLL).answer().await.json();
        let first = text(&page["messages"][0]["id"]);
        (page["messages"].as_array().expect("messages").len(), first, text(&page["cursor"]))
    };
    assert_eq!(messages().await.0, MESSAGES);
    let mut narrow = Connection::with_window(&server, 1).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(narrow.get(POLL, "application/json").await);
    }
    let (count, first, cursor) = messages().await;
    assert_eq!((count, first), (1, cursor), "the next poll continues there");
    narrow.driver.abort();
    drop((held, narrow));
    until_served(&server, 0).await;
    assert_eq!(messages().await.0, MESSAGES);
}

#[tokio::test]
async fn a_connection_may_open_so_many_streams_and_a_head_have_so_many_fields() {
    let server = Server::start().await;
    let mut connection = Connection::with_window(&server, 64 << 10).await;
    assert_eq!(connection.client.current_max_send_streams(), 250);
    for (fields, status) in
        [(99, StatusCode::OK), (100, StatusCode::OK), (101, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)]
    {
        let request = Request::get(server.http("/health/live"));
        let request = (0..fields).fold(request, |request, _| request.header("a", ""));
        assert_eq!(connection.send(request, true).await.0.status(), status, "{fields}");
        let head: String = (1..fields).map(|_| "a:\r\n").collect();
        let head = format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
        let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
        wire.write_all(head.as_bytes()).await.expect("it is taken");
        let mut line = [0; 12];
        within("an answer", wire.read_exact(&mut line)).await.expect("an answer");
        assert_eq!(line, format!("HTTP/1.1 {}", status.as_u16()).as_bytes(), "{fields}");
    }
}

/// A field counts its name, its value and 32 bytes (RFC 9113 §6.5.2), however short its compressed form is.
#[tokio::test]
async fn a_head_over_http2_has_so_many_bytes() {
    let server = Server::start().await;
    let mut connection = Connection::with_window(&server, 64 << 10).await;
    for (bytes, status) in
        [(60 << 10, StatusCode::OK), (70 << 10, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)]
    {
        // In one field, and in fields that are sent once and then named by two bytes each.
        let request = || Request::get(server.http("/health/live"));
        let one = request().header("a", "x".repeat(bytes));
        let many = (0..90).fold(request(), |request, _| request.header("a", "x".repeat(bytes / 90 - 33)));
        for (form, request) in [("one", one), ("many", many)] {
            assert_eq!(connection.send(request, true).await.0.status(), status, "{form} of {bytes}");
        }
    }
    assert_eq!(
        connection.get("/health/live", "*/*").await.status(),
        StatusCode::OK,
        "the connection lives on"
    );
}

/// A head of two kilobytes took 143 KB for as long as its poll was held.
#[tokio::test]
async fn a_poll_that_is_held_keeps_nothing_of_its_request() {
    let server = Server::start().await;
    let router = rejoin::router(server.app.clone().expect("in this process"));
    for (method, path, body) in [
        (Method::GET, "/topics/a?since=1s&wait=60", ""),
        (Method::GET, "/events?topic=a&since=1s&wait=60", ""),
        (Method::POST, "/events?wait=60", r#"{"topics":["a"],"since":"1s"}"#),
    ] {
        let kept = Arc::new(());
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json").extension(kept.clone());
        let request = request.body(Body::from(body)).expect("a request");
        let mut answer = pin!(router.clone().oneshot(request));
        let held = async {
            while Arc::strong_count(&kept) > 1 {
                let polled = std::future::poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx).is_pending()));
                assert!(polled.await, "{path} is held");
                tokio::task::yield_now().await;
            }
        };
        within("the end of the request", held).await;
    }
}

/// Each body that did not come held up to 64 KiB of its head, on 250 streams of each connection.
#[tokio::test]
async fn a_request_whose_body_is_awaited_keeps_nothing_of_its_head() {
    let server = Server::start().await;
    let router = rejoin::router(server.app.clone().expect("in this process"));
    for (path, content_type) in [
        ("/events?wait=60", "application/json"),
        ("/topics/a", "text/plain"),
        ("/publish", "application/json"),
        ("/publish", "application/x-ndjson"),
    ] {
        let kept = Arc::new(());
        let counted = |text: &str| HeaderValue::from_maybe_shared(counted(text, &kept)).expect("a value");
        let request = Request::post(path).header("host", "localhost").extension(kept.clone());
        let request =
            request.header("content-type", counted(content_type)).header("x-other", counted("much"));
        let request = request.header("accept", counted("text/event-stream"));
        let body = Body::from_stream(pending::<Result<Bytes, Infallible>>().into_stream());
        let mut answer = pin!(router.clone().oneshot(request.body(body).expect("a request")));
        assert!(poll!(&mut answer).is_pending(), "{path}");
        let held = async {
            while Arc::strong_count(&kept) > 1 {
                assert!(poll!(&mut answer).is_pending(), "{path}");
                tokio::task::yield_now().await;
            }
        };
        within(path, held).await;
    }
}

/// A client that answers pings could keep such a connection for ever.
#[tokio::test]
async fn an_http2_connection_that_asks_nothing_is_told_to_leave_and_ends_in_any_case() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    let polite = Connection::with_window(&server, 64 << 10).await;
    within("the end", polite.driver).await.expect("no panic").expect("an end in order");
    let mut deaf = TcpStream::connect(server.addr).await.expect("a connection");
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it is taken");
    let mut frames = Vec::new();
    within("the end", deaf.read_to_end(&mut frames)).await.ok();
    // GOAWAY is frame type 7 (RFC 9113 §6.8).
    assert!(frames.windows(5).any(|five| five == [8, 7, 0, 0, 0]), "{frames:?}");
}

/// A client that answered pings could hold part of the shared bytes for as long as it liked.
#[tokio::test]
async fn a_command_that_does_not_arrive_whole_in_time_ends_its_websocket() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(400)).await;
    let mut honest = Socket::open(&server, "/topics/a").await;
    assert_eq!(honest.ask(json!({"type": "ping"})).await["type"], "pong");
    // The payloads are masked with 0. A ping has its answer, and so shows that the bytes before it have arrived.
    for (what, bytes) in [
        ("one byte", &b"\x81"[..]),
        ("half a frame", b"\x81\x89\0\0\0\0{\"type"),
        ("half a ping", b"\x89\x85\0\0\0\0x"),
        ("a first fragment, and a ping behind it", b"\x01\x82\0\0\0\0{}\x89\x80\0\0\0\0"),
        ("a whole command, and one byte of the next", b"\x81\x8f\0\0\0\0{\"type\":\"ping\"}\x01"),
    ] {
        let mut socket = Socket::open(&server, "/topics/a").await;
        socket.wire().write_all(bytes).await.expect("an open connection");
        let closing = loop {
            let frame = socket.next().await;
            if frame["type"] != "pong" {
                break frame;
            }
        };
        assert_eq!(
            (&closing["type"], &closing["code"]),
            (&json!("closing"), &json!("timed_out")),
            "{what}: {closing}"
        );
        assert_eq!(socket.closed().await, (4100, "timed_out".to_owned()), "{what}");
    }
    let id = publish(&server, "a", "x").await;
    assert_eq!(honest.next().await["id"], id, "one that has sent whole commands stays");
}

/// While the log is slow, the server does not read the socket, and the rest of a command waits in the system.
#[tokio::test]
async fn time_in_which_the_server_does_not_read_is_not_the_clients() {
    let server = FailingServer::with(|config| {
        config.read_timeout = Duration::from_millis(200);
        config.heartbeat = Duration::from_millis(100);
    })
    .await;
    publish(&server, "a", "x").await;
    server.hold_reads(true);
    let mut socket = Socket::open(&server, "/events").await;
    let mut lines = Lines::open(&server, "/topics/b").await;
    let ping = b"\x81\x8f\0\0\0\0{\"type\":\"ping\"}";
    let subscribe = r#"{"type":"subscribe","topic":"**","after":"0"}"#;
    let head = [0x81, 0x80 | u8::try_from(subscribe.len()).expect("a short one"), 0, 0, 0, 0];
    // With the sixteenth ping the server stops reading. The last one comes in two parts.
    let bytes = [&head[..], subscribe.as_bytes(), &ping.repeat(17)].concat();
    socket.wire().write_all(&bytes[..bytes.len() - 1]).await.expect("an open connection");
    server.until_read(1).await;
    for _ in 0..6 {
        assert_eq!(lines.next().await["type"], "cursor");
    }
    socket.wire().write_all(&bytes[bytes.len() - 1..]).await.expect("an open connection");
    server.hold_reads(false);
    let mut pongs = 0;
    while pongs < 17 {
        let frame = socket.next().await;
        assert_ne!(frame["type"], "closing", "{frame}");
        pongs += u32::from(frame["type"] == "pong");
    }
}

/// Operators were refused like everyone else, and could not find out who had opened the connections.
#[tokio::test]
async fn operators_are_served_while_connections_fill_the_public_listener() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let program = Program::under("ulimit -n 256", &["--admin-listen", &format!("unix:{socket}")]).await;
    let public = &program.server;
    let mut held = Vec::new();
    // Subscriptions stay, and idle connections are ended while most places are taken.
    loop {
        let (reader, status) = begun(public, "/topics/held?transport=ndjson").await;
        if status == "503" {
            break;
        }
        assert_eq!(status, "200");
        held.push(reader);
    }
    // The spare ones too.
    for _ in 0..100 {
        held.push(TcpStream::connect(public.addr).await.expect("the system takes it"));
    }
    let mut readers = Vec::new();
    for _ in 0..10 {
        let mut reader = stream_over(&socket, "/topics/a").await;
        assert_eq!(reader.next_frame().await["type"], "open");
        readers.push(reader);
    }
    for path in ["/stats", "/metrics", "/connections", "/health/ready"] {
        assert_eq!(ask_over(&socket, Method::GET, path, "").await.0, 200, "{path}");
    }
    let (status, receipt) = ask_over(&socket, Method::POST, "/topics/a", "to operators").await;
    assert_eq!(status, 201);
    for reader in &mut readers {
        assert_eq!(reader.next_frame().await["id"], receipt["id"]);
    }
    get(public, "/topics/a?wait=0").answer().await.problem(503, "overloaded");
    // Those of their own can run out too.
    let mut idle = Vec::new();
    while ask_over(&socket, Method::GET, "/stats", "").await.0 != 503 {
        idle.push(UnixStream::connect(&socket).await.expect("the system takes it"));
    }
    let ended = program.terminate().await;
    for warning in ["too many connections, in all", "too many connections at --admin-listen"] {
        assert!(ended.log.contains(warning), "{ended:?}");
    }
    assert!(!ended.log.contains("ERROR"), "{ended:?}");
}

async fn idle_connection(server: &Server) -> TcpStream {
    begun(server, "/health/live").await.0
}

/// A connection whose answer to this request has begun, and the status.
async fn begun(server: &Server, path: &str) -> (TcpStream, String) {
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    wire.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = [0; 12];
    within("an answer", wire.read_exact(&mut answer)).await.expect("an answer");
    (wire, String::from_utf8_lossy(&answer[9..]).into_owned())
}

/// Probes hung, and the log had ten errors a second.
#[tokio::test]
async fn probes_are_answered_while_connections_fill_the_descriptors() {
    let program = Program::under("ulimit -n 128", &[]).await;
    let server = &program.server;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(idle_connection(server).await);
    }
    for _ in 0..20 {
        let live = get(server, "/health/live").answer().await;
        assert_eq!((live.status, live.header("connection")), (200, "close"), "{live:?}");
        assert_eq!(get(server, "/health/ready").answer().await.status, 200);
    }
    let refused = get(server, "/topics/a?wait=0").header("origin", server.http("")).answer().await;
    refused.problem(503, "overloaded");
    assert_eq!(refused.header("access-control-allow-origin"), server.http(""), "as every other answer");
    post(server, "/topics/a").body("x").answer().await.problem(503, "overloaded");
    let events = get(server, "/topics/a").header("accept", "text/event-stream").answer().await;
    assert_eq!(events.status, 200, "{events:?}");
    assert!(events.text().contains("rejoin.closing"), "{events:?}");
    // More than there are spare ones, and all of them stay.
    for _ in 0..5 {
        for _ in 0..20 {
            held.push(TcpStream::connect(server.addr).await.expect("the system takes it"));
        }
        assert_eq!(get(server, "/health/live").answer().await.status, 200);
    }
    drop(held);
    within("a place", async {
        loop {
            let asked = reqwest::get(server.http("/topics/a?wait=0")).await;
            if asked.is_ok_and(|answer| answer.status() == 200) {
                break;
            }
        }
    })
    .await;
    let ended = program.terminate().await;
    assert_eq!(ended.log.matches("too many connections, in all").count(), 1, "{ended:?}");
    assert!(!ended.log.contains("ERROR"), "{ended:?}");
}

/// All connections of a proxy counted for nobody, so one of its clients could have every place.
#[tokio::test]
async fn a_client_that_a_proxy_names_leaves_a_share_of_the_connections_to_others() {
    let program =
        Program::under("ulimit -n 128", &["--proxy-protocol", "--trusted-proxy", "127.0.0.1"]).await;
    // There are 64 connections. A stream holds its connection, however slow this test is.
    let is_served = async |client: &str| {
        let mut wire = TcpStream::connect(program.server.addr).await.expect("a connection");
        let request = format!(
            "PROXY TCP4 {client} 127.0.0.1 4711 80\r\n\
             GET /topics/a HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
        );
        wire.write_all(request.as_bytes()).await.expect("it is taken");
        let mut answer = String::new();
        while !answer.contains(r#"{"type":"open""#) && !answer.contains(r#"{"type":"closing""#) {
            let mut bytes = [0; 1024];
            let read = within("a frame", wire.read(&mut bytes)).await.expect("a frame");
            assert!(read > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        answer.contains(r#"{"type":"open""#).then_some(wire)
    };
    let mut modest = vec![is_served("192.0.2.1").await];
    let mut greedy = Vec::new();
    for _ in 0..60 {
        greedy.extend(is_served("192.0.2.2").await);
    }
    assert_eq!(greedy.len(), 47, "three quarters of all");
    for _ in 0..10 {
        modest.push(is_served("192.0.2.1").await);
    }
    assert!(modest.iter().all(Option::is_some));
    program.terminate().await;
}
