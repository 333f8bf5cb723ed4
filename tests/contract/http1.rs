//! Broken requests, and requests that take too long, as bytes of HTTP/1.1.

use std::time::Duration;

use rejoin::config::Secret;
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

/// Asks once on this connection, and leaves it open.
async fn ask_and_keep(wire: &mut TcpStream) {
    wire.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it is taken");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = within("an answer", wire.read_buf(&mut answer)).await.expect("no error");
        assert!(read > 0, "the connection is closed: {}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

/// A balancer keeps connections for 60 s. The server closed them after `--read-timeout`, and a request that was
/// on its way then became a 502.
#[tokio::test]
async fn a_kept_connection_outlives_the_read_timeout_and_a_head_that_has_begun_on_it_does_not() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    for begun in ["G", "GET / HTTP/1.1\r\nHost: local", "\r\n"] {
        let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
        for _ in 0..2 {
            ask_and_keep(&mut wire).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        wire.write_all(begun.as_bytes()).await.expect("it is taken");
        within("the end of the connection", wire.read_to_end(&mut Vec::new())).await.ok();
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    for (path, content_type) in [("/topics/a", "text/plain"), ("/events", "application/json")] {
        let body =
            reqwest::Body::wrap_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let request = post(&server, path).header("content-type", content_type).body(body);
        request.answer().await.problem(408, "timed_out");
    }
}

/// To send it again would not help, so it is not `408`.
#[tokio::test]
async fn a_body_in_malformed_chunks_is_a_mistake_of_the_client() {
    let server = Server::start().await;
    for path in ["/topics/a", "/publish"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let answer = answer_to(&server, (head + "zz\r\n1\r\n0\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("malformed"), "{path}: {answer}");
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

/// The answer to a request with this head, on a connection that the server then ends.
async fn answer_to_head(server: &Server, request_line: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    answer_to(server, format!("{request_line}\r\n{headers}Connection: close\r\n\r\n").as_bytes()).await
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{answer}");
}

/// Without this a server with credentials served such requests.
#[tokio::test]
async fn a_request_without_a_host_or_with_two_is_malformed() {
    let open = Server::start().await;
    let closed = Server::with(|config| config.jwt_secret = Some(Secret("secret".to_owned()))).await;
    for server in [&open, &closed] {
        for path in ["/topics/a?wait=0", "/health/live", "/", "/nowhere"] {
            let line = format!("GET {path} HTTP/1.1");
            assert_status(&answer_to_head(server, &line, &[]).await, 400);
            for second in ["localhost", "other.example", ""] {
                let hosts = ["Host: localhost", &format!("Host: {second}")];
                assert_status(&answer_to_head(server, &line, &hosts).await, 400);
                let line = format!("GET {path} HTTP/1.0");
                assert_status(&answer_to_head(server, &line, &hosts).await, 400);
            }
            let absolute = format!("GET http://localhost{path} HTTP/1.1");
            assert_status(&answer_to_head(server, &absolute, &[]).await, 400);
        }
    }
    assert_status(&answer_to_head(&closed, "GET / HTTP/1.0", &[]).await, 200);
    assert_status(&answer_to_head(&open, "GET / HTTP/1.0", &[]).await, 403);
}

#[tokio::test]
async fn health_is_answered_whatever_the_host() {
    let server = Server::start().await;
    for path in ["/health/live", "/health/ready"] {
        let line = format!("GET {path} HTTP/1.1");
        for host in ["Host: rebound.example", "Host: rebound.example:7070", "Host: a b", "Host:"] {
            assert_status(&answer_to_head(&server, &line, &[host]).await, 200);
            assert_status(&answer_to_head(&server, "GET /topics/a HTTP/1.1", &[host]).await, 403);
        }
        assert_status(&answer_to_head(&server, &format!("GET {path} HTTP/1.0"), &[]).await, 200);
        let elsewhere = ["Host: localhost", "Origin: https://elsewhere.example"];
        assert_status(&answer_to_head(&server, &line, &elsewhere).await, 403);
    }
}

/// `Host: [::1].evil.example` was taken for `[::1]`.
#[tokio::test]
async fn only_a_whole_loopback_name_or_address_is_one() {
    let server = Server::with(|config| {
        config.allowed_origins = vec!["https://app.example".parse().expect("an origin")];
    })
    .await;
    let asked = async |host: &str| {
        let host = format!("Host: {host}");
        answer_to_head(&server, "GET /topics/a?wait=0 HTTP/1.1", &[&host]).await
    };
    for host in [
        "[::1].evil.example",
        "[::1]evil.example",
        "user@localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost:80:80",
        "127.1",
        "localhost..",
        "app.example.",
        "app.example@evil.example",
        "10.0.0.1.evil.example",
        "localhost evil.example",
        "localhost, evil.example",
    ] {
        assert_status(&asked(host).await, 403);
    }
    for host in
        ["[::1]:7070", "[::ffff:10.0.0.1]", "10.0.0.1:80", "LOCALHOST", "localhost.", "APP.example:8080"]
    {
        assert_status(&asked(host).await, 200);
    }
    for target in ["http://user@localhost/topics/a?wait=0", "http://[::1].evil.example/topics/a?wait=0"] {
        let line = format!("GET {target} HTTP/1.1");
        let answer = answer_to_head(&server, &line, &["Host: localhost"]).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{target}: {answer}");
    }
}

/// The compressed bytes would be stored as the payload.
#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_refused() {
    let server = Server::start().await;
    for coding in ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        let head = ["Host: localhost", &format!("Transfer-Encoding: {coding}")];
        let answer = answer_to_head(&server, "POST /topics/a HTTP/1.1", &head).await;
        assert_status(&answer, 501);
        assert!(answer.contains("not_implemented") && answer.contains("Transfer-Encoding"), "{answer}");
    }
    let chunked = "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n\
                   1\r\nx\r\n0\r\n\r\n";
    assert_status(&answer_to(&server, chunked.as_bytes()).await, 201);
}

/// The topic was `a%zz`, while every other server knows no such name.
#[tokio::test]
async fn a_percent_sign_in_the_path_without_two_digits_is_refused() {
    let server = Server::start().await;
    for path in ["/topics/a%zz", "/topics/a%", "/topics/a%4", "/topics/%4g?wait=0", "/%zz"] {
        for method in ["GET", "POST", "DELETE"] {
            let answer =
                answer_to_head(&server, &format!("{method} {path} HTTP/1.1"), &["Host: localhost"]).await;
            assert_status(&answer, 400);
        }
    }
    let answer =
        answer_to_head(&server, "GET /topics/a%25zz%2e%C3%A9?wait=0&x=%zz HTTP/1.1", &["Host: localhost"]);
    assert_status(&answer.await, 200);
}
