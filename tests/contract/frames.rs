//! The envelope and the control frames, the same on every transport.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    ask::{Ask, now, number, post, publish, publish_as, text},
    reader::{Events, Lines, Reader, Socket},
    support::{Server, client::Transport},
};

const STREAMS: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

#[tokio::test]
async fn the_envelope_is_the_same_on_every_transport() {
    let server = Server::start().await;
    let payload = "{\"total\":12}";
    let request = post(&server, "/topics/orders.42?event=paid").header("content-type", "application/json");
    let id = request.body(payload).answer().await.id();
    let expected = format!(
        r#"{{"type":"message","topic":"orders.42","id":"{id}","event":"paid","data":{{"total":12}}}}"#
    );
    let expected: Value = serde_json::from_str(&expected).expect("JSON");
    for transport in Transport::ALL {
        let mut late = Reader::open(&server, transport, "topic=orders.42&after=0").await;
        assert_eq!(late.next().await, expected, "{transport}");
    }
}

#[tokio::test]
async fn a_payload_that_is_neither_json_nor_text_comes_as_base64() {
    let server = Server::start().await;
    let id = publish_as(&server, "a", "image/png", &b"\x89PNG\n"[..]).await;
    let expected = json!({
        "type": "message", "topic": "a", "id": id, "content_type": "image/png", "encoding": "base64",
        "data": "iVBORwo=",
    });
    for transport in [Transport::Sse, Transport::Ndjson, Transport::Poll] {
        let mut reader = Reader::open(&server, transport, "topic=a&after=0").await;
        assert_eq!(reader.next().await, expected, "{transport}");
    }
}

#[tokio::test]
async fn a_connection_opens_with_its_name_its_cursor_and_the_heartbeat() {
    let server = Server::with(|config| config.heartbeat = Duration::from_secs(7)).await;
    let cursor = publish(&server, "a", "x").await;
    let mut names = Vec::new();
    for transport in STREAMS {
        for query in ["topic=a", "topic=*", "topic=a&topic=b"] {
            let reader = Reader::open(&server, transport, query).await;
            let opening = reader.opening();
            let name = text(&opening["connection"]);
            let expected =
                json!({"type": "open", "connection": name, "cursor": cursor, "heartbeat_ms": 7_000});
            assert_eq!(*opening, expected, "{transport}");
            assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
            assert!(!names.contains(&name), "{transport}: {name}");
            names.push(name);
        }
    }
}

/// One frame of any kind.
async fn frame(reader: &mut Reader) -> Value {
    match reader {
        Reader::WebSocket(socket) => socket.next().await,
        Reader::Sse(events) => events.next_frame().await,
        Reader::Ndjson(lines) => lines.next().await,
        Reader::Poll(poll) => poll.next().await,
    }
}

#[tokio::test]
async fn a_quiet_connection_gets_a_frame_at_every_heartbeat() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let cursor = now(&server).await;
    for transport in STREAMS {
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        for _ in 0..3 {
            let expected = json!({"type": "cursor", "cursor": cursor});
            assert_eq!(frame(&mut reader).await, expected, "{transport}: whether or not it moved");
        }
    }
}

#[tokio::test]
async fn the_cursor_of_a_quiet_topic_moves_with_the_other_topics() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    for transport in STREAMS {
        let mut reader = Reader::open(&server, transport, "topic=quiet").await;
        let id = publish(&server, "other", "x").await;
        loop {
            let shown = frame(&mut reader).await;
            assert_eq!(shown["type"], "cursor", "{transport}");
            if shown["cursor"] == id {
                break;
            }
            assert!(number(&text(&shown["cursor"])) < number(&id), "{transport}: {shown} is past {id}");
        }
    }
}

#[tokio::test]
async fn a_heartbeat_has_the_cursor_of_the_last_message() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(50)).await;
    for transport in STREAMS {
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        for _ in 0..4 {
            let id = publish(&server, "a", "x").await;
            assert_eq!(reader.ids(1).await, [id.as_str()], "{transport}");
            assert_eq!(frame(&mut reader).await, json!({"type": "cursor", "cursor": id}), "{transport}");
        }
    }
}

#[tokio::test]
async fn json_with_line_ends_stays_one_line_and_one_frame() {
    let server = Server::start().await;
    let pretty = "{\r\n  \"a\": [\n    1,\r    2\n  ]\n}";
    publish_as(&server, "a", "application/json", pretty).await;
    let flat = pretty.replace(['\r', '\n'], " ");

    let mut lines = Lines::open(&server, "/topics/a?after=0").await;
    let line = lines.try_line().await.expect("a line");
    assert!(line.ends_with(&format!("\"data\":{flat}}}")), "{line}");
    let mut socket = Socket::open(&server, "/topics/a?after=0").await;
    let message = socket.next_data().await.into_text().expect("a text frame");
    assert_eq!(message.as_str(), line);
    let mut events = Events::open(&server, "/topics/a?after=0&format=envelope").await;
    assert_eq!(events.next().await.data.as_deref(), Some(line.as_str()));
    let mut raw = Events::open(&server, "/topics/a?after=0").await;
    let data = raw.next().await.data.expect("data");
    assert_eq!(data, pretty.replace("\r\n", "\n").replace('\r', "\n"));
}

#[tokio::test]
async fn ndjson_is_one_object_a_line_over_a_chunked_200() {
    let server = Server::start().await;
    let lines = Lines::open(&server, "/topics/a").await;
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    assert_eq!(lines.headers["transfer-encoding"], "chunked");
    assert_eq!(lines.headers["cache-control"], "no-store, no-transform");
    assert_eq!(lines.headers["x-accel-buffering"], "no");
    let mut lines = Lines::open(&server, "/topics/a").await;
    for text in ["a\nb\r\nc\u{2028}d\u{0}e", "", "{}\n{}"] {
        publish(&server, "a", text).await;
        assert_eq!(lines.next().await["data"], text);
    }
}
