//! WebSockets with `permessage-deflate`: messages that are compressed once for all, and commands that are compressed.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    ask::{publish, within},
    compressed::long,
    support::Server,
};

/// A WebSocket that shows its frames as they are.
pub struct RawSocket {
    stream: TcpStream,
    bytes: Vec<u8>,
}

pub const DEFLATE: &str = "permessage-deflate; client_max_window_bits";

impl RawSocket {
    /// Also returns the extension that the server has accepted.
    pub async fn open(server: &Server, path: &str, offer: &str) -> (Self, Option<String>) {
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
pub async fn next_message(socket: &mut RawSocket) -> (bool, Value) {
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
