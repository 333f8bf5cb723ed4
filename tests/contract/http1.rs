//! Broken requests, and requests that take too long, as bytes of HTTP/1.1.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    ask::{Ask, get, post, within},
    support::Server,
};

/// Sends these bytes, and returns everything that the server answers until it ends the connection.
async fn answer_to(server: &Server, bytes: &[u8]) -> String {
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    // The refusal may come before the server has read everything.
    wire.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    within("the end of the connection", wire.read_to_end(&mut answer)).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_that_is_not_http_is_a_bare_400() {
    let server = Server::start().await;
    for bytes in
        [&b"nonsense\r\n\r\n"[..], b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\r\n\r\n"]
    {
        let answer = answer_to(&server, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{bytes:?}: {answer}");
    }
    assert_eq!(get(&server, "/health/live").answer().await.status, 200);
}

#[tokio::test]
async fn a_head_of_more_than_64_kib_is_a_bare_431() {
    let server = Server::start().await;
    let head = |bytes: usize| {
        format!("GET /topics/a?wait=0 HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(bytes))
    };
    assert!(answer_to(&server, head(100_000).as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let long = get(&server, "/topics/a?wait=0").header("x", "x".repeat(60_000)).answer().await;
    assert_eq!(long.status, 200, "{long:?}");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_ends_the_connection() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    for begun in ["", "G", "GET / HTTP/1.1\r\nHost: local", "PRI * HTTP/2.0\r\n\r\nS"] {
        answer_to(&server, begun.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    for (path, content_type) in [("/topics/a", "text/plain"), ("/events", "application/json")] {
        let body =
            reqwest::Body::wrap_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let request = post(&server, path).header("content-type", content_type).body(body);
        request.answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn connect_over_http1_is_refused() {
    let server = Server::start().await;
    for target in ["/topics/a?wait=0", "localhost:80"] {
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = answer_to(&server, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{target}: {answer}");
    }
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let server = Server::start().await;
    let head = "GET /topics/a?wait=0 HTTP/1.1\r\nHost: localhost\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    let answer = answer_to(&server, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
