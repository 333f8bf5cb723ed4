//! Topics that are added with a start: the replay before `subscribed`, and what does not wait for it.

use rejoin::Config;
use reqwest::Method;
use serde_json::{Value, json};

use super::{LIVE, add, id_of, remove, told};
use crate::{
    ask::{Ask, delete_topic, get, post, publish, publish_all, request, text},
    reader::{Lines, Reader, Socket},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn a_replay_does_not_move_the_cursor() {
    let server = Server::start().await;
    for transport in LIVE {
        let topic = format!("old.{transport}");
        let old = publish_all(&server, &topic, 1..=300).await;
        let mut reader = Reader::open(&server, transport, "topic=own").await;
        let opened = text(&reader.opening()["cursor"]);
        add(&server, &id_of(&reader), &topic, "after=0").await;
        for id in &old {
            let frame = reader.next().await;
            assert_eq!((&frame["type"], &frame["replay"]), (&json!("message"), &json!(true)), "{frame}");
            assert_eq!(frame["id"], **id, "{transport}");
            if let Reader::Sse(events) = &reader {
                assert_eq!(events.cursor, opened, "the id of the event is the cursor");
            }
        }
        let subscribed = told(&mut reader, "subscribed", &topic).await;
        assert!(text(&subscribed["cursor"]) >= opened, "{subscribed}");
        let own = publish(&server, "own", "x").await;
        let next = publish(&server, &topic, "x").await;
        assert_eq!(reader.ids(2).await, [own, next]);
    }
}

#[tokio::test]
async fn a_gap_of_a_replay_does_not_move_the_cursor() {
    let server = Server::start().await;
    for transport in LIVE {
        let topic = format!("gone.{transport}");
        let old = publish_all(&server, &topic, 1..=2).await;
        delete_topic(&server, &topic).await;
        let mut reader = Reader::open(&server, transport, "topic=own").await;
        let opened = text(&reader.opening()["cursor"]);
        add(&server, &id_of(&reader), &topic, &format!("after={}", old[0])).await;
        let gap = reader.gap().await;
        assert_eq!((&gap["replay"], &gap["topic"]), (&json!(true), &json!(topic)), "{gap}");
        if transport != Transport::WebSocket {
            assert_eq!(gap["cursor"], *opened, "{gap}");
        }
        told(&mut reader, "subscribed", &topic).await;
    }
}

/// A client that reads a topic and a pattern of it could not know whose replay a message was.
#[tokio::test]
async fn a_replay_of_a_pattern_names_it() {
    let server = Server::start().await;
    for transport in LIVE {
        let (kept, gone) = (format!("{transport}.kept"), format!("{transport}.gone"));
        let lost = publish_all(&server, &gone, 1..=2).await;
        delete_topic(&server, &gone).await;
        publish(&server, &kept, "x").await;
        let mut reader = Reader::open(&server, transport, "topic=own").await;
        let pattern = format!("{transport}.*");
        add(&server, &id_of(&reader), &pattern, &format!("after={}", lost[0])).await;
        let (gap, message) = (reader.gap().await, reader.next().await);
        for (frame, topic) in [(gap, &gone), (message, &kept)] {
            assert_eq!((&frame["topic"], &frame["replay"]), (&json!(topic), &json!(true)), "{frame}");
            assert_eq!(frame["pattern"], *pattern, "{frame}");
        }
        told(&mut reader, "subscribed", &pattern).await;
        add(&server, &id_of(&reader), &kept, "after=0").await;
        let message = reader.next().await;
        assert_eq!((&message["replay"], message.get("pattern")), (&json!(true), None), "{message}");
        told(&mut reader, "subscribed", &kept).await;
    }
}

/// A server whose topics hold more than a socket takes, and a topic with so much.
async fn long_topic() -> Server {
    filled(Server::with(large).await).await
}

fn large(config: &mut Config) {
    config.retain_bytes = 64 << 20;
}

async fn filled(server: Server) -> Server {
    for _ in 0..80 {
        publish(&server, "long", "x".repeat(250_000)).await;
    }
    server
}

#[tokio::test]
async fn a_request_waits_neither_for_a_replay_nor_for_the_reader() {
    let server = long_topic().await;
    for transport in LIVE {
        // The test does not read until the end.
        let mut reader = Reader::open(&server, transport, "").await;
        let id = id_of(&reader);
        add(&server, &id, "long", "after=0").await;
        add(&server, &id, "short", "").await;
        let published = publish(&server, "short", "after the answer").await;
        let shown = get(&server, &format!("/connections/{id}")).answer().await.json();
        assert_eq!(shown["topics"], json!(["long", "short"]), "{transport}");
        // The replay ends here, and what it has not given never comes.
        remove(&server, &id, "long").await;
        let frames =
            until(&mut reader, |frame| frame["topic"] == "short" && frame["type"] == "message").await;
        let count = |wanted: &str| frames.iter().filter(|frame| frame["type"] == wanted).count();
        let replayed =
            frames.iter().filter(|frame| frame["topic"] == "long" && frame["type"] == "message").count();
        assert!(replayed < 80, "{transport}: {replayed}");
        assert_eq!((count("subscribed"), count("unsubscribed"), count("gap")), (1, 1, 0), "{transport}");
        assert_eq!(frames.last().expect("a frame")["id"], published);
    }
}

async fn until(reader: &mut Reader, is_last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut frames = Vec::new();
    loop {
        frames.push(reader.next().await);
        if frames.last().is_some_and(&is_last) {
            return frames;
        }
    }
}

#[tokio::test]
async fn commands_of_the_client_do_not_delay_a_request() {
    let server = long_topic().await;
    let mut socket = Socket::open(&server, "/events").await;
    let id = text(&socket.opening["connection"]);
    socket.send(json!({"type": "subscribe", "topic": "long", "after": "0", "ref": 1})).await;
    socket.send(json!({"type": "ping", "ref": 2})).await;
    assert_eq!(socket.next().await["replay"], true);
    // The client waits for its own replay, and has not read it.
    add(&server, &id, "short", "").await;
    remove(&server, &id, "long").await;
    let mut frames: Vec<Value> = Vec::new();
    while frames.len() < 4 {
        let frame = socket.next().await;
        if frame["type"] != "message" {
            frames.push(frame);
        }
    }
    let shown: Vec<_> = frames.iter().map(|frame| (text(&frame["type"]), frame["ref"].clone())).collect();
    let expected =
        [("error", json!(1)), ("pong", json!(2)), ("unsubscribed", Value::Null), ("subscribed", Value::Null)];
    let expected = expected.map(|(kind, reference)| (kind.to_owned(), reference));
    let mut sorted = (shown.clone(), expected.to_vec());
    sorted.0.sort_by_key(|(kind, _)| kind.clone());
    sorted.1.sort_by_key(|(kind, _)| kind.clone());
    assert_eq!(sorted.0, sorted.1);
    let error = frames.iter().find(|frame| frame["type"] == "error").expect("an error");
    assert_eq!((&error["code"], &error["topic"]), (&json!("conflict"), &json!("long")));
}

/// A topic that the client reads already, and has yet to catch up with, may be added too.
#[tokio::test]
async fn no_ephemeral_message_is_missed_while_the_client_catches_up() {
    let server = long_topic().await;
    for transport in LIVE {
        let mut reader = Reader::open(&server, transport, "topic=long&after=0").await;
        add_and_announce(&server, &mut reader).await;
    }
    let mut socket = Socket::open(&server, "/events").await;
    socket.send(json!({"type": "subscribe", "topic": "long", "after": "0"})).await;
    assert_eq!(socket.next().await["replay"], true);
    add_and_announce(&server, &mut Reader::WebSocket(Box::new(socket))).await;
}

/// They waited until no topic was being added, so a backend that adds topic after topic kept them away for ever.
#[tokio::test]
async fn an_ephemeral_message_waits_for_no_topic_that_was_added_after_it() {
    let server = long_topic().await;
    for transport in LIVE {
        let mut reader = Reader::open(&server, transport, "topic=own").await;
        let id = id_of(&reader);
        let own = publish(&server, "own", "caught up").await;
        assert_eq!(reader.ids(1).await, [own]);
        // The test does not read until the end.
        add(&server, &id, "long", "after=0").await;
        let answer = post(&server, "/topics/own?ephemeral").body("e").answer().await;
        assert_eq!(answer.status, 202);
        add(&server, &id, "short", "").await;
        let is_last = |frame: &Value| frame["type"] == "subscribed" && frame["topic"] == "short";
        let frames = until(&mut reader, is_last).await;
        assert!(frames.iter().any(|frame| frame["ephemeral"] == true), "{transport}");
    }
}

async fn add_and_announce(server: &Server, reader: &mut Reader) {
    add(server, &id_of(reader), "long", "").await;
    let answer = post(server, "/topics/long?ephemeral").body("e").answer().await;
    assert_eq!(answer.status, 202);
    let last = publish(server, "long", "last").await;
    let frames = until(reader, |frame| frame["id"] == *last).await;
    let count = |name: &str, value: Value| frames.iter().filter(|frame| frame[name] == value).count();
    assert_eq!((count("ephemeral", json!(true)), count("by", json!("server"))), (1, 1));
}

#[tokio::test]
async fn what_waits_for_a_client_that_does_not_read_is_bounded() {
    // A tunnel would read for the client.
    let server = filled(Server::direct(large).await).await;
    let mut reader = Reader::open(&server, Transport::Sse, "topic=long&after=0").await;
    let id = id_of(&reader);
    // Each topic that was changed is told once, however often it changes.
    for _ in 0..50 {
        add(&server, &id, "a", "").await;
        remove(&server, &id, "a").await;
    }
    add(&server, &id, "a", "").await;
    let last = publish(&server, "a", "x").await;
    let frames = until(&mut reader, |frame| frame["id"] == *last).await;
    let told: Vec<_> =
        frames.iter().filter(|frame| frame["by"] == "server").map(|frame| &frame["type"]).collect();
    assert_eq!(told, ["unsubscribed", "subscribed"]);
}

#[tokio::test]
async fn a_connection_that_does_not_read_is_ended_all_the_same() {
    let server = long_topic().await;
    let stream = get(&server, "/topics/long?after=0&transport=ndjson");
    let mut lines = Lines::of(crate::reader::Stream::of(stream).await);
    let id = text(&lines.next().await["connection"]);
    let path = format!("/connections/{id}");
    assert_eq!(request(&server, Method::DELETE, &path).answer().await.status, 204);
    get(&server, &path).answer().await.problem(404, "not_found");
    let mut messages = 0;
    loop {
        let frame = lines.next().await;
        if frame["type"] == "closing" {
            assert_eq!(frame["code"], "disconnected");
            break;
        }
        messages += 1;
    }
    assert!(messages < 80, "{messages}");
}
