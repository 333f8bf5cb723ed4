//! Readers that stand at the same place, and for which the server writes as one.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
};

use crate::{
    ask::{Ask, get, post, publish, publish_all, request, text, within},
    listeners::Many,
    reader::{Lines, Reader},
    support::{Server, client::Transport, program::Folder},
};

const STREAMS: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

#[tokio::test]
async fn many_readers_of_one_topic_get_every_message_once_also_around_their_heartbeats() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(50)).await;
    let mut readers = Vec::new();
    // A WebSocket that is slow to answer a ping would be closed after two of these.
    for transport in [Transport::Sse, Transport::Ndjson] {
        for _ in 0..15 {
            readers.push(Reader::open(&server, transport, "topic=a").await);
        }
    }
    let publishing = async {
        for round in 0..20 {
            publish_all(&server, "a", 5 * round + 1..=5 * round + 5).await;
            // Heartbeats let the readers leave their groups and join again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let reading = join_all(readers.iter_mut().map(|reader| reader.ids(100)));
    let (all, ()) = tokio::join!(reading, publishing);
    assert!(all.iter().all(|ids| *ids == all[0]), "{all:?}");
}

/// A write to others is no sign of life for the reader that a message excludes.
#[tokio::test]
async fn a_reader_that_every_message_excludes_gets_its_heartbeats() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(500)).await;
    let mut excluded = Lines::open(&server, "/events?topic=a").await;
    let mut other = Reader::open(&server, Transport::Ndjson, "topic=a").await;
    let name = text(&excluded.opening["connection"]);
    let publishing = async {
        loop {
            post(&server, &format!("/topics/a?exclude={name}")).body("x").answer().await;
            other.next().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let frame = within("a heartbeat", async {
        tokio::select! {
            frame = excluded.next() => frame,
            () = publishing => unreachable!("it goes on for ever"),
        }
    })
    .await;
    assert_eq!(frame["type"], "cursor", "{frame}");
}

#[tokio::test]
async fn a_reader_is_given_nothing_that_is_published_after_it_was_ended() {
    let server = Server::start().await;
    for transport in STREAMS {
        let mut readers = Vec::new();
        for _ in 0..4 {
            readers.push(Reader::open(&server, transport, "topic=a").await);
        }
        publish(&server, "a", "before").await;
        for reader in &mut readers {
            reader.ids(1).await;
        }
        let ended = text(&readers[1].opening()["connection"]);
        let path = format!("/connections/{ended}");
        assert_eq!(request(&server, Method::DELETE, &path).answer().await.status, 204);
        let after = publish(&server, "a", "after").await;
        for (index, reader) in readers.iter_mut().enumerate() {
            match index {
                1 => assert_eq!(reader.next().await["code"], "disconnected", "{transport}"),
                _ => assert_eq!(reader.ids(1).await, [&*after], "{transport}"),
            }
        }
    }
}

/// An answer that waits in the HTTP library when a stream leaves it would be lost.
#[tokio::test]
async fn requests_before_a_stream_are_answered_and_the_connection_ends_with_it() {
    let server = Server::start().await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let ask =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n");
    let all = [ask("/health/live"), ask("/topics/a"), ask("/health/live")].concat();
    wire.write_all(all.as_bytes()).await.expect("written");
    let (mut came, mut piece) = (String::new(), [0; 4096]);
    within("the stream", async {
        while !came.contains("rejoin.open") || !came.contains("\n\r\n") {
            let length = wire.read(&mut piece).await.expect("bytes");
            assert!(length > 0, "{came}");
            came.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    })
    .await;
    assert_eq!(came.matches("HTTP/1.1 200 OK").count(), 2, "{came}");
    let stream = came.rsplit("HTTP/1.1 200 OK").next().expect("the second answer");
    for field in ["transfer-encoding: chunked\r\n", "date: "] {
        assert!(stream.contains(field), "{field:?} is not in {stream}");
    }
    let id = publish(&server, "a", "x").await;
    within("the message", async {
        while !came.contains(&id) {
            let length = wire.read(&mut piece).await.expect("bytes");
            came.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    })
    .await;
}

/// The rest of an answer that the client has yet to read waits in the library.
#[tokio::test]
async fn a_stream_behind_an_answer_that_is_not_read_leaves_all_of_it() {
    let folder = Folder::new();
    let socket = folder.path("s");
    let many = Many::start(&[&format!("unix:{socket}")], Some("127.0.0.1:0"), |_| {}).await;
    let payload = "x".repeat(20_000);
    for _ in 0..25 {
        publish(&many.servers[0], "a", &payload).await;
    }
    // The system takes as much of an answer as it likes, so some of these lengths end in the library.
    let ask = |path: &str, accept: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n")
    };
    let mut wires = Vec::new();
    for limit in 1..=25 {
        let mut wire = UnixStream::connect(&socket).await.expect("a connection");
        let poll = ask(&format!("/topics/a?after=0&wait=0&limit={limit}"), "application/json");
        let both = poll + &ask("/topics/b", "text/event-stream");
        wire.write_all(both.as_bytes()).await.expect("written");
        wires.push(BufReader::new(wire));
    }
    // Meanwhile the server goes as far as it can.
    for _ in 0..20 {
        get(&many.servers[0], "/stats").answer().await;
    }
    for (limit, wire) in (1..).zip(&mut wires) {
        let head = next_head(wire).await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut answer = vec![0; length.parse().expect("a number")];
        within(format!("{limit} messages"), wire.read_exact(&mut answer)).await.expect("bytes");
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["messages"].as_array().map(Vec::len), Some(limit));
        let stream = next_head(wire).await;
        assert!(
            stream.starts_with("HTTP/1.1 200 OK\r\n") && stream.contains("text/event-stream"),
            "{stream}"
        );
    }
    many.stop().await;
}

/// The bytes of the body would be taken for something that the client sends on its stream.
#[tokio::test]
async fn a_stream_whose_request_keeps_its_body_back_is_the_last_answer_of_its_connection() {
    let server = Server::start().await;
    let mut wire = BufReader::new(TcpStream::connect(server.addr).await.expect("a connection"));
    let request = "GET /topics/a HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\ncontent-length: 100000\r\n\r\n";
    wire.write_all(request.as_bytes()).await.expect("written");
    let head = next_head(&mut wire).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("connection: close\r\n"), "{head}");
}

/// The next head on this connection.
async fn next_head(wire: &mut (impl AsyncBufRead + Unpin)) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = within("a head", wire.read_line(&mut head)).await.expect("text");
        assert!(read > 0, "{head}");
    }
    head
}

/// The older protocol has no chunks.
#[tokio::test]
async fn a_stream_of_http_1_0_has_no_chunks() {
    let server = Server::start().await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let head = "GET /topics/a HTTP/1.0\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    wire.write_all(head.as_bytes()).await.expect("written");
    let (mut came, mut piece) = (String::new(), [0; 4096]);
    within("the stream", async {
        while !came.contains("rejoin.open") {
            let length = wire.read(&mut piece).await.expect("bytes");
            assert!(length > 0, "{came}");
            came.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    })
    .await;
    assert!(!came.contains("transfer-encoding"), "{came}");
    assert!(came.contains("\r\n\r\nretry: "), "{came}");
}

#[tokio::test]
async fn a_client_that_keeps_sending_on_a_stream_is_cut_off() {
    let server = Server::start().await;
    let mut wire = TcpStream::connect(server.addr).await.expect("a connection");
    let head = "GET /topics/a HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";
    wire.write_all(head.as_bytes()).await.expect("written");
    let mut piece = [0; 4096];
    assert!(wire.read(&mut piece).await.expect("bytes") > 0);
    within("the end", async { while wire.write_all(&piece).await.is_ok() {} }).await;
}
