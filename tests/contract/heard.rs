//! Refusals that come before the body was read: the client hears them, also if it sends everything first.

use std::time::Duration;

use rejoin::config::Secret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{ask::within, metrics::scrape, support::Server};

/// Sends all of this before it reads anything, as many clients and proxies do. Then it reads to the end.
async fn sent_whole(server: &Server, bytes: &[u8]) -> String {
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    within("everything is taken", wire.write_all(bytes)).await.expect("the server reads on");
    let mut answer = Vec::new();
    within("the end", wire.read_to_end(&mut answer)).await.expect("an end that is no reset");
    String::from_utf8(answer).expect("text")
}

fn request(path: &str, headers: &str, body: usize) -> Vec<u8> {
    let mut bytes = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}

/// Ten of twenty clients saw the connection reset, and not the refusal.
#[tokio::test]
async fn a_client_that_sends_a_large_body_first_hears_the_refusal() {
    const BYTES: usize = 16 << 20;
    let server = Server::start().await;
    let length = format!("Content-Length: {BYTES}");
    let endless = "Transfer-Encoding: chunked";
    // One chunk that has not ended yet.
    let chunk = format!("{endless}\r\n\r\n{BYTES:x}\r\n");
    for (path, headers, status) in
        [("/topics/a", &length, 413), ("/nowhere", &length, 404), ("/topics/a", &chunk, 413)]
    {
        let bytes = request(path, headers.trim_end(), BYTES);
        let answer = sent_whole(&server, &bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.ends_with('}'), "{answer}");
    }
    let head = request("/nowhere", &format!("X: {}", "x".repeat(BYTES)), 0);
    assert!(sent_whole(&server, &head).await.starts_with("HTTP/1.1 431 "));
    assert!(sent_whole(&server, b"NOT HTTP\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    // A head is counted once its connection has ended, which may be later than the client sees it.
    for (reason, count) in [("body", 3.0), ("head", 1.0), ("malformed", 1.0)] {
        let name = format!("rejoin_unread_requests_total{{reason=\"{reason}\"}}");
        within(name.clone(), async { while scrape(&server).await[&name] < count {} }).await;
    }
}

/// The connection was closed at once if nothing of the head was unread, and what the client sent then reset it.
#[tokio::test]
async fn a_client_that_sends_on_after_its_head_was_refused_hears_the_refusal() {
    let server = Server::direct(|_| ()).await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    wire.write_all(b"GET / HTTP/1.1\r\nno field\r\n").await.expect("it is taken");
    wire.peek(&mut [0]).await.expect("an answer");
    for _ in 0..1_000 {
        within("it is taken", wire.write_all(&[b'x'; 1_000])).await.expect("the server reads on");
    }
    let mut answer = String::new();
    within("the end", wire.read_to_string(&mut answer)).await.expect("an end that is no reset");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // A connection whose request was whole is closed without a wait.
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let request =
        b"POST /topics/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    wire.write_all(request).await.expect("it is taken");
    within("the end", wire.read_to_string(&mut answer)).await.expect("an end");
    let refused = async { while wire.write_all(b"x").await.is_ok() {} };
    within("the close", refused).await;
    drop(wire);
    server.stop().await;
}

/// With a wrong token and 100 kB, 11 of 20 clients behind nginx got a 502.
#[tokio::test]
async fn a_client_with_a_wrong_token_hears_so_whatever_the_size_of_its_body() {
    let server = Server::with(|config| config.jwt_secret = Some(Secret("secret".to_owned()))).await;
    let refused = |path, body| {
        let headers = format!("Authorization: Bearer guessed\r\nContent-Length: {body}");
        request(path, &headers, body)
    };
    for path in ["/topics/a", "/publish", "/events"] {
        let answer = sent_whole(&server, &refused(path, 16 << 20)).await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("connection: close\r\n"), "{answer}");
        let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
        for size in [100_000, 10] {
            wire.write_all(&refused(path, size)).await.expect("it is taken");
            let answer = self::answer(&mut wire).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
            if answer.contains("connection: close\r\n") {
                break;
            }
        }
    }
}

/// Reads one answer with a JSON body.
async fn answer(wire: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"}") {
        let read = within("an answer", wire.read_buf(&mut bytes)).await.expect("it stays open");
        assert!(read > 0, "the end after {}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8(bytes).expect("text")
}

/// The connection was lost each time.
#[tokio::test]
async fn a_small_body_that_comes_after_its_refused_head_leaves_the_connection_open() {
    let server = Server::start().await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let large = "y".repeat(60_000);
    for (head, body) in [
        ("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000", large.as_str()),
        ("PUT /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", "hello"),
        (
            "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("GET /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5", "hello"),
    ] {
        wire.write_all(format!("{head}\r\n\r\n").as_bytes()).await.expect("an open connection");
        tokio::time::sleep(Duration::from_millis(20)).await;
        wire.write_all(body.as_bytes()).await.expect("an open connection");
        let answer = answer(&mut wire).await;
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_waits_before_it_sends_its_body_is_refused_at_once() {
    let server = Server::start().await;
    let head = request("/nowhere", "Expect: 100-continue\r\nContent-Length: 5", 0);
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    wire.write_all(&head).await.expect("it is taken");
    let refused = answer(&mut wire).await;
    assert!(refused.starts_with("HTTP/1.1 404 ") && refused.contains("connection: close\r\n"), "{refused}");
}

#[tokio::test]
async fn a_small_body_that_does_not_come_closes_the_connection_after_the_refusal() {
    let server = Server::start().await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    wire.write_all(&request("/nowhere", "Content-Length: 5", 0)).await.expect("it is taken");
    let refused = answer(&mut wire).await;
    assert!(refused.starts_with("HTTP/1.1 404 ") && refused.contains("connection: close\r\n"), "{refused}");
}
