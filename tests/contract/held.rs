//! Polls on HTTP/1.1 that are held for some time: their connection leaves the HTTP library, and comes back.

use std::time::Duration;

use rejoin::{Config, config::Parking};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    ask::{Ask, get, now, publish, text, until_served, within},
    support::Server,
};

const ORIGIN: &str = "https://app.example";

/// A server whose polls leave the library at once.
async fn server(change: impl FnOnce(&mut Config)) -> Server {
    Server::with(|config| {
        config.parking = Parking::Always;
        change(config);
    })
    .await
}

/// One connection of a client.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn open(server: &Server) -> Self {
        Self(BufReader::new(TcpStream::connect(server.addr).await.expect("a connection")))
    }

    async fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.expect("it is taken");
    }

    /// The head of the next answer without its date, and its body.
    async fn answer(&mut self) -> (String, String) {
        within("an answer", async {
            let (mut head, mut body) = (String::new(), Vec::new());
            loop {
                let mut line = String::new();
                self.0.read_line(&mut line).await.expect("a line");
                assert!(!line.is_empty(), "the connection has ended: {head}");
                if let Some(length) = line.strip_prefix("content-length: ") {
                    body = vec![0; length.trim().parse().expect("a number")];
                }
                if line == "\r\n" {
                    break;
                }
                if !line.starts_with("date: ") {
                    head.push_str(&line);
                }
            }
            self.0.read_exact(&mut body).await.expect("the body");
            (head, String::from_utf8(body).expect("UTF-8"))
        })
        .await
    }

    async fn page(&mut self) -> Value {
        let (head, body) = self.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    async fn until_ended(&mut self) {
        let mut rest = Vec::new();
        within("the end", self.0.read_to_end(&mut rest)).await.expect("an end in order");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n")
}

/// A poll of the topic `a`, from now on.
async fn poll(server: &Server, fields: &str) -> String {
    request(&format!("/topics/a?after={}&wait=60", now(server).await), fields)
}

#[tokio::test]
async fn an_answer_has_the_same_bytes_wherever_its_poll_was_held() {
    let origin = format!("origin: {ORIGIN}\r\n");
    for fields in ["", &origin, "connection: keep-alive\r\n", "connection: Close\r\n"] {
        let mut answers = Vec::new();
        for parking in [Parking::Never, Parking::Always] {
            let server = Server::with(|config| {
                config.parking = parking;
                config.allowed_origins = vec![ORIGIN.parse().expect("an origin")];
            })
            .await;
            let mut wire = Wire::open(&server).await;
            wire.send(&poll(&server, fields).await).await;
            until_served(&server, 1).await;
            let id = publish(&server, "a", "x").await;
            let (head, body) = wire.answer().await;
            assert!(head.contains(&format!("etag: \"{id}\"\r\n")), "{head}");
            if fields.contains("Close") {
                wire.until_ended().await;
            } else {
                wire.send(&request("/health/live", "connection: close\r\n")).await;
                wire.answer().await;
            }
            answers.push([head, body].concat().replace(&id, "{id}"));
        }
        assert_eq!(answers[0], answers[1], "{fields:?}");
        assert_eq!(answers[0].contains("connection: close"), fields.contains("Close"), "{}", answers[0]);
    }
}

#[tokio::test]
async fn one_poll_follows_another_on_the_same_connection() {
    let server = server(|_| {}).await;
    let mut wire = Wire::open(&server).await;
    let mut cursor = now(&server).await;
    for round in 0..3 {
        let body = json!({"topics": ["a"], "after": cursor}).to_string();
        wire.send(&match round {
            0 | 1 => request(&format!("/topics/a?after={cursor}&wait=60"), ""),
            _ => format!(
                "POST /events?wait=60 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            ),
        })
        .await;
        until_served(&server, 1).await;
        let id = publish(&server, "a", "x").await;
        let page = wire.page().await;
        cursor = text(&page["cursor"]);
        assert_eq!((cursor.clone(), page["messages"].as_array().map(Vec::len)), (id, Some(1)));
        until_served(&server, 0).await;
    }
    wire.send(&request(&format!("/topics/a?after={cursor}&wait=1"), "")).await;
    assert_eq!(wire.page().await, json!({"messages": [], "cursor": cursor}), "it waited in vain");
}

#[tokio::test]
async fn requests_behind_a_poll_are_answered_after_it_wherever_they_are_cut() {
    let server = server(|_| {}).await;
    // More than is read before the poll is answered.
    let behind = request("/health/live", "x-long: a-long-value\r\n").repeat(40);
    for cut in [0, 1, 10, 600, behind.len()] {
        let mut wire = Wire::open(&server).await;
        let poll = poll(&server, "").await;
        wire.send(&[&poll, &behind[..cut]].concat()).await;
        until_served(&server, 1).await;
        wire.send(&behind[cut..]).await;
        let id = publish(&server, "a", "x").await;
        assert_eq!(wire.page().await["cursor"], id, "{cut}");
        for _ in 0..40 {
            assert_eq!(wire.page().await["status"], "live", "{cut}");
        }
    }
}

/// The rest of its request would be taken for the next one.
#[tokio::test]
async fn a_poll_with_a_body_that_it_does_not_need_keeps_the_order_of_its_connection() {
    let server = server(|_| {}).await;
    let mut wire = Wire::open(&server).await;
    wire.send(&poll(&server, "content-length: 5\r\n").await).await;
    until_served(&server, 1).await;
    wire.send(&["hello", &request("/health/live", "")].concat()).await;
    let id = publish(&server, "a", "x").await;
    assert_eq!(wire.page().await["cursor"], id);
    assert_eq!(wire.page().await["status"], "live");
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_and_its_place_is_free() {
    let server = server(|config| config.max_connections = 1).await;
    let mut wire = Wire::open(&server).await;
    wire.send(&poll(&server, "").await).await;
    until_served(&server, 1).await;
    let refused = get(&server, "/topics/a?after=0&wait=60").answer().await;
    refused.problem(503, "overloaded");
    drop(wire);
    until_served(&server, 0).await;
}

#[tokio::test]
async fn a_drain_answers_it_and_ends_its_connection() {
    let server = server(|_| {}).await;
    let cursor = now(&server).await;
    let mut wire = Wire::open(&server).await;
    wire.send(&request(&format!("/topics/a?after={cursor}&wait=60"), "")).await;
    until_served(&server, 1).await;
    server.shutdown.drain();
    let (head, body) = wire.answer().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    let page: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(page, json!({"messages": [], "cursor": cursor}));
    wire.until_ended().await;
    within("the end of the server", server.stop()).await;
}

/// The connection that comes back has all the bounds of a new one.
#[tokio::test]
async fn a_client_that_takes_no_answer_after_its_poll_is_too_slow() {
    // A tunnel would read for the client.
    let server = Server::direct(|config| {
        config.parking = Parking::Always;
        config.write_timeout = Duration::from_secs(1);
        config.retain_bytes = 64 << 20;
    })
    .await;
    let start = now(&server).await;
    for _ in 0..20 {
        publish(&server, "a", "x".repeat(220_000)).await;
    }
    let mut wire = Wire::open(&server).await;
    wire.send(&poll(&server, "").await).await;
    until_served(&server, 1).await;
    // Far more than the buffers of two sockets hold.
    wire.send(&request(&format!("/topics/a?after={start}&wait=0&limit=1000"), "").repeat(20)).await;
    publish(&server, "a", "x").await;
    let metrics = async {
        loop {
            let metrics = get(&server, "/metrics").answer().await;
            if metrics.text().contains("\nrejoin_slow_closes_total 1\n") {
                return;
            }
        }
    };
    within("the close", metrics).await;
}

/// The bytes that the library had yet to read were dropped when the second poll left it.
#[tokio::test]
async fn requests_far_behind_two_polls_are_answered_in_their_order() {
    let server = server(|_| {}).await;
    let mut wire = Wire::open(&server).await;
    let cursor = now(&server).await;
    let large = "x".repeat(40 << 10);
    let mut all = format!(
        "POST /topics/large HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{large}",
        large.len()
    );
    for topic in ["first", "second"] {
        all += &request(&format!("/topics/{topic}?after={cursor}&wait=60"), "");
    }
    let behind = 60;
    for number in 0..behind {
        all += &request("/health/live", &format!("x-number: {number}{}\r\n", " ".repeat(500)));
    }
    wire.send(&all).await;
    let (head, body) = wire.answer().await;
    assert!(head.starts_with("HTTP/1.1 201"), "{head}{body}");
    for topic in ["first", "second"] {
        until_served(&server, 1).await;
        let id = publish(&server, topic, "x").await;
        assert_eq!(wire.page().await["cursor"], id.as_str(), "{topic}");
    }
    for number in 0..behind {
        let (head, _) = wire.answer().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{number}: {head}");
    }
}

/// A proxy that goes by the other length would take the rest for the answer to another client (RFC 9112, 6.1).
#[tokio::test]
async fn a_poll_with_two_lengths_ends_its_connection() {
    let server = server(|_| {}).await;
    let mut wire = Wire::open(&server).await;
    let body = json!({"topics": ["a"], "after": now(&server).await}).to_string();
    wire.send(&format!(
        "POST /events?wait=60 HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: 500\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n{}",
        body.len(),
        request("/health/live", "")
    ))
    .await;
    until_served(&server, 1).await;
    publish(&server, "a", "x").await;
    let (head, body) = wire.answer().await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("connection: close"), "{head}{body}");
    wire.until_ended().await;
}
