//! Answers in gzip: streams whose frames can be read at once, and polls. WebSockets with `permessage-deflate`.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    ask::{Answer, Ask, get, post, publish, request, text, within},
    reader::transport_headers,
    support::{Server, client::Transport},
};

const GZIP: (&str, &str) = ("accept-encoding", "gzip");

/// A stream in gzip, of which nothing is held back.
struct Gunzip {
    chunks: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    /// It also checks the sum at the end.
    state: Decompress,
    plain: String,
    received: usize,
    has_ended: bool,
}

impl Gunzip {
    async fn open(server: &Server, transport: Transport, path: &str) -> Self {
        let request = get(server, path).header(GZIP.0, GZIP.1);
        let request =
            transport_headers(transport).iter().fold(request, |it, (name, value)| it.header(*name, *value));
        Self::of(within("a head", request.send()).await.expect("an answer"))
    }

    fn of(response: Response) -> Self {
        assert_eq!(response.headers()["content-encoding"], "gzip");
        assert!(response.headers().get_all("vary").iter().any(|name| name == "accept-encoding"));
        let (plain, received, has_ended) = Default::default();
        let chunks = response.bytes_stream().boxed();
        Self { chunks, state: Decompress::new_gzip(15), plain, received, has_ended }
    }

    /// Reads one chunk more. False if there is none.
    async fn read(&mut self) -> bool {
        let Some(chunk) = within("a chunk", self.chunks.next()).await else { return false };
        let chunk = chunk.expect("it is not cut");
        self.received += chunk.len();
        let mut out = Vec::with_capacity(1 << 20);
        let status = self.state.decompress_vec(&chunk, &mut out, FlushDecompress::Sync).expect("gzip");
        assert!(out.len() < out.capacity(), "all of it");
        self.has_ended = status == Status::StreamEnd;
        self.plain += str::from_utf8(&out).expect("whole frames");
        true
    }

    async fn until(&mut self, needle: &str) {
        while !self.plain.contains(needle) {
            assert!(self.read().await, "{needle}: {}", self.plain);
        }
    }

    /// Reads to the end, which has the right sum.
    async fn whole(mut self) -> String {
        while self.read().await {}
        assert!(self.has_ended, "the end of gzip is missing");
        self.plain
    }
}

async fn all_compressed() -> Server {
    Server::with(|config| config.compress = rejoin::config::Compress::All).await
}

fn long(mark: &str) -> String {
    format!("{mark} {}", "these words come again and again; ".repeat(20))
}

async fn plain_stream(server: &Server, transport: Transport, path: &str) -> Response {
    let request = get(server, path);
    let request =
        transport_headers(transport).iter().fold(request, |it, (name, value)| it.header(*name, *value));
    within("a head", request.send()).await.expect("an answer")
}

#[tokio::test]
async fn each_frame_of_a_stream_in_gzip_can_be_read_before_the_next_one_comes() {
    let server = all_compressed().await;
    for (transport, path) in [
        (Transport::Sse, "/topics/a"),
        (Transport::Sse, "/events?topic=a"),
        (Transport::Ndjson, "/events?topic=a"),
    ] {
        let mut reader = Gunzip::open(&server, transport, path).await;
        reader.until("heartbeat_ms").await;
        for size in ["short", "long"] {
            let mark = format!("{size}-{transport}-{path}");
            publish(&server, "a", if size == "short" { mark.clone() } else { long(&mark) }).await;
            reader.until(&mark).await;
            assert!(reader.plain.ends_with('\n'), "the frame is whole");
        }
        assert!(reader.received < reader.plain.len(), "{}", reader.received);
    }
}

/// Members of a group are given pieces that were made once, and the sum of the whole stream is each one's own.
#[tokio::test]
async fn every_reader_ends_with_the_sum_of_what_it_alone_was_given() {
    let server = Server::with(|config| {
        config.compress = rejoin::config::Compress::All;
        config.heartbeat = Duration::from_millis(50);
        config.drain_grace = Duration::from_secs(2);
    })
    .await;
    let mut readers = Vec::new();
    for round in 0..12 {
        for transport in [Transport::Sse, Transport::Ndjson] {
            let mut reader = Gunzip::open(&server, transport, "/events?topic=a").await;
            reader.until("heartbeat_ms").await;
            readers.push((reader, round));
        }
        let name = text(&json!(format!("m{round:02}")));
        publish(&server, "a", if round % 2 == 0 { long(&name) } else { name }).await;
        // Heartbeats let the readers leave their groups and join again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let plain = plain_stream(&server, Transport::Ndjson, "/events?topic=a&after=0").await;
    let reading =
        join_all(readers.into_iter().map(|(reader, round)| async move { (reader.whole().await, round) }));
    let (all, plain, _) = tokio::join!(reading, plain.text(), server.stop());
    let plain = plain.expect("it is whole");
    for (whole, round) in all {
        for number in 0..12 {
            let mark = format!("\"m{number:02}");
            assert_eq!(whole.matches(&mark).count(), usize::from(number >= round), "{round}: {whole}");
            assert_eq!(plain.matches(&mark).count(), 1);
        }
        assert!(whole.contains("\"closing\""), "{whole}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_gzip_gets_plain_bytes_and_so_does_every_client_without_compression() {
    let server = all_compressed().await;
    for coding in [None, Some("br"), Some("gzip;q=0")] {
        let request = get(&server, "/topics/a").header("accept", "text/event-stream");
        let request = coding.into_iter().fold(request, |it, coding| it.header("accept-encoding", coding));
        let answer = within("a head", request.send()).await.expect("an answer");
        assert!(!answer.headers().contains_key("content-encoding"), "{coding:?}");
        assert!(answer.headers().get_all("vary").iter().any(|name| name == "accept-encoding"));
    }
    let auto = Server::start().await;
    let request = get(&auto, "/topics/a").header("accept", "text/event-stream").header(GZIP.0, GZIP.1);
    let answer = within("a head", request.send()).await.expect("an answer");
    assert!(!answer.headers().contains_key("content-encoding"), "a stream, and it was not asked for");
    let off = Server::with(|config| config.compress = rejoin::config::Compress::Off).await;
    publish(&off, "a", long("x")).await;
    publish(&off, "a", long("y")).await;
    for accept in ["text/event-stream", "application/json"] {
        let request = get(&off, "/topics/a?after=0").header("accept", accept).header(GZIP.0, GZIP.1);
        let answer = within("a head", request.send()).await.expect("an answer");
        assert!(!answer.headers().contains_key("content-encoding"), "{accept}");
    }
}

/// Decodes an answer that came in gzip.
fn gunzip(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-encoding"), "gzip", "{answer:?}");
    let mut plain = Vec::with_capacity(4 << 20);
    let status = Decompress::new_gzip(15).decompress_vec(&answer.body, &mut plain, FlushDecompress::Finish);
    assert_eq!(status.expect("gzip"), Status::StreamEnd, "its end and its sum");
    serde_json::from_slice(&plain).expect("JSON")
}

#[tokio::test]
async fn a_poll_in_gzip_has_the_same_answer_in_fewer_bytes() {
    let server = Server::start().await;
    let noise: String =
        (0_u64..3_000).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8)).collect();
    for number in 0..200 {
        let body = [format!("short {number}"), long(&number.to_string()), noise.clone()][number % 3].clone();
        publish(&server, "a", body).await;
    }
    let id = text(&get(&server, "/topics/a?after=0&limit=1").answer().await.json()["cursor"]);
    for path in [
        "/topics/a?after=0".to_owned(),
        "/topics/a?after=0&limit=1000".to_owned(),
        "/topics/a?last=2".to_owned(),
        format!("/topics/a?before={}&limit=50", 1 + id.parse::<u64>().expect("an id") + (1 << 40)),
    ] {
        let plain = get(&server, &path).answer().await;
        let answer = get(&server, &path).header(GZIP.0, GZIP.1).answer().await;
        assert_eq!(gunzip(&answer), plain.json(), "{path}");
        assert_eq!(answer.header("etag"), plain.header("etag"), "{path}");
        assert!(answer.body.len() < plain.body.len(), "{path}");
        assert!(plain.headers.get_all("vary").iter().any(|name| name == "accept-encoding"), "{path}");
    }
    // It has too little to save.
    publish(&server, "b", "short").await;
    let short = get(&server, "/topics/b?after=0").header(GZIP.0, GZIP.1).answer().await;
    assert_eq!((short.header("content-encoding"), short.status), ("", 200), "{short:?}");
    assert_eq!(short.json()["messages"][0]["data"], "short");
}

#[tokio::test]
async fn a_poll_that_is_held_is_answered_in_gzip_too() {
    let server = Server::start().await;
    let path = "/topics/a?after=0&wait=30";
    let held = join_all((0..4).map(|_| get(&server, path).header(GZIP.0, GZIP.1).answer()));
    let body = long("x").repeat(3);
    let publishing = async {
        crate::ask::until_served(&server, 4).await;
        post(&server, "/topics/a").body(body.clone()).answer().await
    };
    let (answers, _) = tokio::join!(within("answers", held), publishing);
    for answer in answers {
        assert_eq!(gunzip(&answer)["messages"][0]["data"], body);
    }
}

#[tokio::test]
async fn head_names_the_coding_that_a_stream_would_have() {
    let server = all_compressed().await;
    let asked = request(&server, Method::HEAD, "/topics/a").header("accept", "text/event-stream");
    let answer = asked.header(GZIP.0, GZIP.1).answer().await;
    assert_eq!(answer.header("content-encoding"), "gzip", "{answer:?}");
    assert!(answer.body.is_empty());
}

/// A WebSocket that shows its frames as they are.
struct RawSocket {
    stream: TcpStream,
    bytes: Vec<u8>,
}

const DEFLATE: &str = "permessage-deflate; client_max_window_bits";

impl RawSocket {
    /// Also returns the extension that the server has accepted.
    async fn open(server: &Server, path: &str, offer: &str) -> (Self, Option<String>) {
        let stream = TcpStream::connect(server.addr).await.expect("it listens");
        let mut socket = Self { stream, bytes: Vec::new() };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Extensions: {offer}\r\n\r\n"
        );
        socket.stream.write_all(head.as_bytes()).await.expect("it takes the head");
        let end = loop {
            if let Some(end) = socket.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            socket.read().await;
        };
        let head: Vec<u8> = socket.bytes.drain(..end).collect();
        let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        let extension = head.lines().find_map(|line| line.strip_prefix("sec-websocket-extensions: "));
        let extension = extension.map(str::to_owned);
        assert_eq!(socket.frame().await.1["type"], "open");
        (socket, extension)
    }

    async fn read(&mut self) {
        let read = within("bytes", self.stream.read_buf(&mut self.bytes)).await.expect("it is not cut");
        assert!(read > 0, "the server has ended the connection");
    }

    /// The first byte and the payload of the next frame.
    async fn raw_frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let (head, length) = match *self.bytes {
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                [_, length @ ..126, ..] => (2, length.into()),
                _ => (2, usize::MAX - 2),
            };
            if self.bytes.len() >= head + length {
                let frame: Vec<u8> = self.bytes.drain(..head + length).collect();
                return (frame[0], frame[head..].to_vec());
            }
            self.read().await;
        }
    }

    /// The next object, and whether it was compressed, from an empty window each time.
    async fn frame(&mut self) -> (bool, Value) {
        let (first, payload) = self.raw_frame().await;
        let is_compressed = first & 0x40 != 0;
        let mut plain = payload.clone();
        if is_compressed {
            plain = Vec::with_capacity(1 << 20);
            let whole = [&payload[..], &[0, 0, 0xff, 0xff]].concat();
            Decompress::new(false)
                .decompress_vec(&whole, &mut plain, FlushDecompress::Sync)
                .expect("deflate");
        }
        (is_compressed, serde_json::from_slice(&plain).expect("JSON"))
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.stream.write_all(&sent_frame(first, payload)).await.expect("it takes the frame");
    }

    /// The code with which the server closes.
    async fn close_code(&mut self) -> u16 {
        loop {
            let (first, payload) = self.raw_frame().await;
            if first == 0x88 {
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }
}

/// A frame as a client sends it.
fn sent_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 127];
    frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 << 20);
    let mut state = Compress::new(Compression::default(), false);
    state.compress_vec(plain, &mut bytes, FlushCompress::Sync).expect("it has room");
    assert_eq!(bytes.split_off(bytes.len() - 4), [0, 0, 0xff, 0xff]);
    bytes
}

#[tokio::test]
async fn a_websocket_that_offers_compression_gets_long_messages_compressed_and_others_plain() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(200)).await;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let (socket, accepted) = RawSocket::open(&server, "/topics/a", DEFLATE).await;
        let expected = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(accepted.as_deref(), Some(expected));
        sockets.push(socket);
    }
    let (mut plain, accepted) =
        RawSocket::open(&server, "/topics/a", "permessage-deflate; server_max_window_bits=10").await;
    assert_eq!(accepted, None);
    for round in 0..6 {
        for data in [format!("short {round}"), long(&round.to_string())] {
            publish(&server, "a", data.clone()).await;
            for socket in &mut sockets {
                let (is_compressed, frame) = next_message(socket).await;
                assert_eq!((is_compressed, &frame["data"]), (data.len() > 256, &json!(data)));
            }
            assert!(!next_message(&mut plain).await.0);
        }
    }
    let off = Server::with(|config| config.compress = rejoin::config::Compress::Off).await;
    assert_eq!(RawSocket::open(&off, "/topics/a", DEFLATE).await.1, None);
}

/// The next frame that is a message.
async fn next_message(socket: &mut RawSocket) -> (bool, Value) {
    loop {
        let (first, _) = match socket.bytes.first() {
            // A ping.
            Some(0x89) => socket.raw_frame().await,
            Some(_) => (0, Vec::new()),
            None => {
                socket.read().await;
                continue;
            }
        };
        if first == 0x89 {
            socket.send(0x8a, b"").await;
            continue;
        }
        let (is_compressed, frame) = socket.frame().await;
        if frame["type"] == "message" {
            return (is_compressed, frame);
        }
    }
}

#[tokio::test]
async fn a_compressed_command_is_a_command_and_a_bomb_is_closed_as_one_that_is_too_long() {
    let server = Server::with(|config| config.max_payload = 4 << 10).await;
    let command = deflate(br#"{"type":"subscribe","topic":"b","ref":"r"}"#);
    let (mut socket, _) = RawSocket::open(&server, "/topics/a", DEFLATE).await;
    let (one, other) = command.split_at(10);
    socket.send(0x41, one).await;
    socket.send(0x89, b"ping").await;
    assert_eq!(socket.raw_frame().await, (0x8a, b"ping".to_vec()));
    socket.send(0x80, other).await;
    assert_eq!(socket.frame().await.1["type"], "subscribed");
    socket.send(0x81, br#"{"type":"ping"}"#).await;
    assert_eq!(socket.frame().await.1["type"], "pong");
    // The limit is six times the payload and 64 KiB.
    let bomb = deflate(&vec![b'x'; ((6 * 4 + 64) << 10) + 1]);
    assert!(bomb.len() < 1 << 10);
    socket.send(0xc1, &bomb).await;
    assert_eq!(socket.close_code().await, 1009);
    let (mut broken, _) = RawSocket::open(&server, "/topics/a", DEFLATE).await;
    broken.send(0xc1, &[0xff; 9]).await;
    assert_eq!(broken.close_code().await, 1002);
    let (mut plain, _) = RawSocket::open(&server, "/topics/a", "x").await;
    plain.send(0xc1, &command).await;
    assert_eq!(plain.close_code().await, 1002, "compression was not agreed on");
}

/// A few bytes make a command of 60 KiB. One read of the socket had several of them, and one turn of the task a hundred
/// reads: the other connections of the thread waited meanwhile.
#[tokio::test]
async fn commands_that_become_long_do_not_keep_other_connections_waiting() {
    const COMMANDS: usize = 300;
    let server = Server::start().await;
    let (socket, _) = RawSocket::open(&server, "/topics/a", DEFLATE).await;
    let long = deflate(format!(r#"{{"type":"ping","a":"{}"}}"#, "x".repeat(60 << 10)).as_bytes());
    assert!(long.len() < 128, "{}", long.len());
    let commands = sent_frame(0xc1, &long).repeat(COMMANDS);
    let mut client = socket.stream.into_std().expect("a socket");
    // All tasks of this test share one thread: each yield is one turn of the connection.
    client.write_all(&commands).expect("the socket takes all of it at once");
    let (mut answers, mut turns, mut bytes) = (0, 0, vec![0; 64 << 10]);
    let reading = async {
        while answers < COMMANDS {
            tokio::task::yield_now().await;
            turns += 1;
            match client.read(&mut bytes) {
                Ok(length) => answers += bytes[..length].windows(4).filter(|four| four == b"pong").count(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    };
    within("all answers", reading).await;
    assert!(turns > COMMANDS / 10, "{turns} turns");
}
