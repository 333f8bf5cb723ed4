//! Server-Sent Events: the head, the opening, and the fields of each event.

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt;
use serde_json::json;

use crate::{
    ask::{Ask, delete_topic, get, now, post, publish, publish_as, text, within},
    reader::{Events, Stream, frame_of},
    support::{Server, client::Transport},
};

/// The blocks of a stream, each without the blank line that ends it.
struct Blocks {
    stream: Stream,
    bytes: Vec<u8>,
}

impl Blocks {
    async fn open(server: &Server, path: &str) -> Self {
        Self { stream: Stream::open(server, Transport::Sse, path, &[]).await, bytes: Vec::new() }
    }

    async fn next(&mut self) -> String {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|two| two == b"\n\n") {
                let rest = self.bytes.split_off(end + 2);
                let mut block = std::mem::replace(&mut self.bytes, rest);
                block.truncate(end);
                return String::from_utf8(block).expect("UTF-8");
            }
            let chunk = within("a block", self.stream.chunks.next()).await;
            self.bytes.extend_from_slice(&chunk.expect("no end").expect("no cut"));
        }
    }
}

/// The names of a block's fields, in order.
fn fields(block: &str) -> Vec<&str> {
    block.split('\n').map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line:?}")).0).collect()
}

#[tokio::test]
async fn the_head_keeps_caches_and_proxies_from_holding_the_stream_back() {
    let server = Server::start().await;
    for path in ["/topics/a", "/topics/*", "/events?topic=a"] {
        let stream = Stream::open(&server, Transport::Sse, path, &[]).await;
        assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8", "{path}");
        assert_eq!(stream.headers["cache-control"], "no-store, no-transform", "{path}");
        assert_eq!(stream.headers["x-accel-buffering"], "no", "{path}");
    }
}

#[tokio::test]
async fn a_stream_opens_at_once_with_one_block_that_has_a_retry_an_id_and_data() {
    let server = Server::start().await;
    let cursor = publish(&server, "b", "x").await;
    for path in ["/topics/a", "/topics/*", "/events?topic=a", "/topics/a?format=envelope"] {
        let block = Blocks::open(&server, path).await.next().await;
        assert_eq!(fields(&block), ["retry", "event", "id", "data"], "{path}: {block}");
        let values: Vec<_> = block.split('\n').filter_map(|line| line.split_once(": ")).collect();
        let retry_ms: u64 = values[0].1.parse().expect("a number");
        assert!((1_000..=3_000).contains(&retry_ms), "{path}: {retry_ms}");
        assert_eq!((values[1].1, values[2].1), ("rejoin.open", cursor.as_str()), "{path}");
        let open: serde_json::Value = serde_json::from_str(values[3].1).expect("JSON");
        assert_eq!((&open["type"], &open["cursor"]), (&json!("open"), &json!(cursor)), "{path}");
    }
}

#[tokio::test]
async fn the_retry_differs_for_each_connection() {
    let server = Server::start().await;
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let events = Events::open(&server, "/topics/a").await;
        let retry_ms = events.retry_ms.expect("a retry in the first block");
        assert!((1_000..=3_000).contains(&retry_ms), "{retry_ms}");
        seen.insert(retry_ms);
    }
    assert!(seen.len() > 5, "{seen:?}");
}

#[tokio::test]
async fn every_event_has_data_and_an_id_that_is_the_cursor() {
    let server = Server::with(|config| config.heartbeat = Duration::from_millis(100)).await;
    let cursor = now(&server).await;
    publish(&server, "a", "gone").await;
    delete_topic(&server, "a").await;
    let ids = [publish(&server, "a", "").await, publish(&server, "a", "\n\n").await];
    let mut blocks = Blocks::open(&server, &format!("/topics/a?after={cursor}")).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let block = blocks.next().await;
        let names = fields(&block);
        assert!(names.contains(&"id") && names.contains(&"data"), "{block}");
        let value = |name: &str| {
            let lines = block.split('\n').filter_map(|line| line.split_once(": "));
            lines.filter(|(field, _)| *field == name).map(|(_, value)| value.to_owned()).next()
        };
        seen.push((value("event").unwrap_or_default(), value("id").expect("an id")));
    }
    let expected = [
        ("rejoin.open", &cursor),
        ("rejoin.gap", &cursor),
        ("", &ids[0]),
        ("", &ids[1]),
        ("rejoin.cursor", &ids[1]),
    ];
    let seen: Vec<_> = seen.iter().map(|(event, id)| (event.as_str(), id)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn one_topic_comes_as_payloads_and_several_or_a_pattern_as_envelopes() {
    let server = Server::start().await;
    let answer = post(&server, "/topics/a?event=paid").body("x").answer().await;
    let envelope = json!({"type": "message", "topic": "a", "id": answer.id(), "event": "paid", "data": "x"});
    for path in ["/topics/a?", "/events?topic=a&format=raw", "/topics/*?format=raw", "/topics/a?format=raw"] {
        let mut events = Events::open(&server, &format!("{path}&after=0")).await;
        let event = events.next().await;
        assert_eq!((event.event.as_deref(), event.data.as_deref()), (Some("paid"), Some("x")), "{path}");
        assert_eq!(event.id, Some(answer.id()), "{path}");
    }
    for path in
        ["/events?topic=a", "/topics/*?", "/topics/a?format=envelope", "/events?topic=*&format=envelope"]
    {
        let mut events = Events::open(&server, &format!("{path}&after=0")).await;
        let event = events.next().await;
        assert_eq!(event.event.as_deref().unwrap_or("message"), "message", "{path}");
        assert_eq!(event.id, Some(answer.id()), "{path}");
        assert_eq!(frame_of(&event), envelope, "{path}");
    }
    for path in ["/topics/a?format=", "/topics/a?format=json", "/events?topic=a&format=RAW"] {
        let problem = get(&server, path).header("accept", "text/event-stream").answer().await;
        assert!(text(&problem.problem(400, "bad_request")["detail"]).contains("format"), "{path}");
    }
}

#[tokio::test]
async fn control_frames_are_the_same_objects_in_their_own_events() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    publish(&server, "a", "gone").await;
    delete_topic(&server, "a").await;
    let next = publish(&server, "a", "next").await;
    for path in ["/topics/a?", "/events?topic=a"] {
        let mut events = Events::open(&server, &format!("{path}&after={cursor}")).await;
        assert_eq!(events.opening["type"], "open", "{path}");
        let expected = json!({
            "type": "gap", "topic": "a", "after": cursor, "next": next, "cursor": cursor, "reason": "deleted",
        });
        assert_eq!(events.next_frame().await, expected, "{path}");
    }
}

#[tokio::test]
async fn the_event_message_is_the_default_one() {
    let server = Server::start().await;
    let answer = post(&server, "/topics/a?event=message").body("x").answer().await;
    assert_eq!(answer.status, 201);
    publish(&server, "a", "y").await;
    let mut events = Events::open(&server, "/topics/a?after=0").await;
    for expected in ["x", "y"] {
        let event = events.next().await;
        assert_eq!(event.event.as_deref().unwrap_or("message"), "message");
        assert_eq!(event.data.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn a_payload_that_a_raw_event_cannot_carry_comes_as_rejoin_binary() {
    let server = Server::start().await;
    let request =
        post(&server, "/topics/a?event=snap").header("content-type", "image/png").body(&b"\xff\n"[..]);
    let binary = request.answer().await.id();
    let nul = publish(&server, "a", "a\0b").await;
    let octets = publish_as(&server, "a", "application/octet-stream", "UTF-8").await;
    let mut raw = Events::open(&server, "/topics/a?after=0").await;
    let mut envelopes = Events::open(&server, "/topics/a?after=0&format=envelope").await;

    let event = raw.next().await;
    assert_eq!((event.event.as_deref(), event.id.as_deref()), (Some("rejoin.binary"), Some(binary.as_str())));
    let envelope: serde_json::Value = serde_json::from_str(&event.data.expect("data")).expect("JSON");
    let expected = json!({
        "type": "message", "topic": "a", "id": binary, "event": "snap", "content_type": "image/png",
        "encoding": "base64", "data": "/wo=",
    });
    assert_eq!(envelope, expected);
    assert_eq!(envelopes.next_frame().await, expected);

    let event = raw.next().await;
    assert_eq!((event.event.as_deref(), event.id.as_deref()), (Some("rejoin.binary"), Some(nul.as_str())));
    let envelope: serde_json::Value = serde_json::from_str(&event.data.expect("data")).expect("JSON");
    assert_eq!(envelope, json!({"type": "message", "topic": "a", "id": nul, "data": "a\0b"}));
    assert_eq!(envelopes.next_frame().await, envelope);

    let event = raw.next().await;
    assert_eq!(event.id, Some(octets));
    assert_eq!((event.event, event.data.as_deref()), (None, Some("UTF-8")));
}
