//! Readers that take nothing: they get a gap or are closed, and delay no other reader.

use std::time::Duration;

use futures_util::StreamExt;
use rejoin::Config;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    ask::{Ask, delete_topic, get, number, publish, text, until_served, within},
    reader::{Reader, Socket, Stream},
    support::{Server, client::Transport},
};

/// More than the buffers of two sockets hold.
const MESSAGES: usize = 60;
const MESSAGE_BYTES: usize = 200_000;
/// Together these are far more than the buffers of two sockets hold.
const COMMANDS: usize = 15;
const COMMAND_BYTES: usize = 2_000_000;
/// After this long without progress nothing is read from a socket.
const STALL: Duration = Duration::from_secs(1);

async fn publish_much(server: &Server) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..MESSAGES {
        ids.push(publish(server, "a", "x".repeat(MESSAGE_BYTES)).await);
    }
    ids
}

/// A server that closes a client which takes nothing for a second, and retains what such a reader lacks.
fn impatient(config: &mut Config) {
    config.write_timeout = Duration::from_secs(1);
    config.retain_bytes = 64 << 20;
}

#[tokio::test]
async fn a_slow_reader_gets_a_gap() {
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let server = Server::with(|config| config.retain_messages = 2).await;
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        let ids = publish_much(&server).await;
        let mut expected = ids.iter();
        let mut gaps = 0;
        while let Some(id) = expected.next() {
            let cursor = reader.cursor().to_owned();
            let frame = reader.next().await;
            if frame["type"] == "gap" {
                gaps += 1;
                assert_eq!((text(&frame["after"]), &frame["reason"]), (cursor, &Value::from("retention")));
                let next = text(&frame["next"]);
                assert!(number(&next) > number(id), "{transport}: a gap without cause: {frame}");
                assert_eq!(reader.ids(1).await, [next.as_str()], "{transport}");
                expected.by_ref().find(|id| **id == next).expect("the next is one of those");
            } else {
                assert_eq!(text(&frame["id"]), *id, "{transport}");
            }
        }
        assert!(gaps > 0, "{transport}: too little was published to fall behind");
    }
}

#[tokio::test]
async fn a_websocket_that_takes_nothing_is_closed_as_too_slow_or_cut_off() {
    let server = Server::with(impatient).await;
    let mut slow = Socket::open(&server, "/topics/a").await;
    let mut other = Reader::open(&server, Transport::WebSocket, "topic=a").await;
    let (ids, ()) = tokio::join!(publish_much(&server), async {
        other.ids(MESSAGES).await;
    });
    until_served(&server, 1).await;

    let mut seen = 0;
    let mut closing = Value::Null;
    let close = loop {
        match within("the end of the socket", slow.stream.next()).await {
            Some(Ok(Message::Text(json))) => {
                let frame: Value = serde_json::from_str(&json).expect("whole frames");
                if frame["type"] == "closing" {
                    closing = frame;
                } else {
                    assert_eq!(frame["id"], ids[seen], "the received messages are whole and in order");
                    seen += 1;
                }
            }
            Some(Ok(Message::Close(close))) => break close,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => break None,
        }
    };
    assert!(seen < MESSAGES, "too little was published to fall behind");
    if let Some(close) = close {
        assert_eq!((u16::from(close.code), close.reason.as_str()), (4101, "too_slow"));
        assert_eq!(closing["code"], "too_slow", "{closing}");
        assert!(
            closing["detail"].as_str().is_some_and(|words| words.contains("--write-timeout")),
            "{closing}"
        );
        let retry_ms = closing["retry_ms"].as_u64().expect("milliseconds");
        assert!((5_000..=30_000).contains(&retry_ms), "{closing}");
        assert_eq!(closing["cursor"], ids[seen - 1], "{closing}: exactly the sent messages have arrived");
    }
    let id = publish(&server, "a", "the other stays").await;
    assert_eq!(other.ids(1).await, [id]);
}

/// Frames that had not begun to be written are left out before `closing`. The cursor in `closing` was once
/// past them.
#[tokio::test]
async fn a_slow_websocket_gets_no_cursor_past_what_it_was_sent() {
    const SMALL: usize = 1_000;
    // A tunnel would read for the client.
    let server = Server::direct(impatient).await;
    let slow_closes = async || {
        let metrics = get(&server, "/metrics").answer().await;
        let line = metrics.text().lines().find(|line| line.starts_with("rejoin_slow_closes_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    for nth in 1..=3 {
        let mut slow = Socket::open_narrow(&server, "/topics/a").await;
        for _ in 0..SMALL {
            publish(&server, "a", "x".repeat(3_000)).await;
        }
        within("the close of the slow one", async { while slow_closes().await < nth {} }).await;
        let (mut given, mut closing) = (slow.cursor.clone(), Value::Null);
        // A client that begins to read too late finds the connection gone.
        while let Some(Ok(message)) = within("the end of the socket", slow.stream.next()).await {
            let Message::Text(json) = message else { continue };
            let frame: Value = serde_json::from_str(&json).expect("whole frames");
            match frame["type"].as_str() {
                Some("closing") => closing = frame,
                _ => given = text(&frame["id"]),
            }
        }
        if closing["code"] == "too_slow" {
            assert!(closing.get("cursor").is_none_or(|cursor| *cursor == given), "{closing} after {given}");
        }
    }
}

/// A ping waits behind the frames that the reader still has to take. The server once took that for silence.
#[tokio::test]
async fn a_websocket_that_reads_slowly_but_steadily_stays_open() {
    // A tunnel would read in larger steps.
    let server = Server::direct(|config| config.heartbeat = Duration::from_millis(100)).await;
    let mut slow = Socket::open_narrow(&server, "/topics/a").await;
    let mut expected = publish_much(&server).await.into_iter();
    while let Some(id) = expected.next() {
        let mut frame = slow.next().await;
        while frame["type"] == "cursor" {
            frame = slow.next().await;
        }
        assert_eq!(frame["id"], id, "{} were still to come", expected.len());
        // The reader's speed: it needs many heartbeats to read everything.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_cut_off() {
    let server = Server::with(impatient).await;
    for transport in [Transport::Sse, Transport::Ndjson] {
        let mut slow = Stream::open(&server, transport, "/events?topic=a", &[]).await;
        let mut other = Reader::open(&server, transport, "topic=a").await;
        tokio::join!(publish_much(&server), async {
            other.ids(MESSAGES).await;
        });
        until_served(&server, 1).await;
        let mut bytes = 0;
        let error = loop {
            match within("the end of the stream", slow.chunks.next()).await {
                Some(Ok(chunk)) => bytes += chunk.len(),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        assert!(error.is_some(), "{transport}: a stream that was cut must not look complete");
        assert!(bytes < MESSAGES * MESSAGE_BYTES, "{transport}: too little was published to fall behind");
        let id = publish(&server, "a", "the other stays").await;
        assert_eq!(other.ids(1).await, [id], "{transport}");
    }
}

#[tokio::test]
async fn a_client_closed_as_too_slow_resumes_with_what_it_missed() {
    let server = Server::with(impatient).await;
    for (transport, other) in [
        (Transport::WebSocket, Transport::Poll),
        (Transport::Sse, Transport::Ndjson),
        (Transport::Ndjson, Transport::WebSocket),
    ] {
        let mut slow = Reader::open(&server, transport, "topic=a").await;
        let id = publish(&server, "a", "taken").await;
        assert_eq!(slow.ids(1).await, [id], "{transport}");
        let ids = publish_much(&server).await;
        until_served(&server, 0).await;
        let query = format!("topic=a&after={}", slow.cursor());
        let mut back = Reader::open(&server, other, &query).await;
        assert_eq!(back.ids(MESSAGES).await, ids, "{transport} {other}");
        drop(back);
        until_served(&server, 0).await;
        delete_topic(&server, "a").await;
    }
}

/// How many large commands a client can send while its first one waits for it to read.
async fn commands_taken(socket: &mut Socket, path_of_first: &str, commands: usize) -> usize {
    socket.send(json!({"type": "subscribe", "topic": path_of_first, "after": "0"})).await;
    let large = json!({"type": "publish", "topic": "b", "data": "x".repeat(COMMAND_BYTES)}).to_string();
    let mut taken = 0;
    while taken < commands && timeout(STALL, socket.send_message(Message::text(large.clone()))).await.is_ok()
    {
        taken += 1;
    }
    taken
}

/// The commands wait in the socket, whose buffer the system bounds.
#[tokio::test]
async fn a_few_large_commands_wait_at_most() {
    let server = Server::with(|config| config.max_payload = COMMAND_BYTES + 100).await;
    publish_much(&server).await;
    let mut socket = Socket::open_narrow(&server, "/events").await;
    let taken = commands_taken(&mut socket, "a", COMMANDS).await;
    assert!(taken < COMMANDS, "the server holds {taken} commands of {COMMAND_BYTES} bytes");
}
