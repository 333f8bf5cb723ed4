//! Requests about live connections: topics that the backend adds and removes, the list, and the end.

mod changes;
mod listed;
mod replays;

use reqwest::Method;
use serde_json::Value;

use crate::{
    ask::{Answer, Ask, request, text, topic_path},
    reader::Reader,
    support::{Server, client::Transport},
};

/// The transports whose connections have an id.
const LIVE: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

/// The id of a connection.
fn id_of(reader: &Reader) -> String {
    text(&reader.opening()["connection"])
}

/// `/connections/{id}/topics/{topic}`.
fn path_of(connection: &str, topic: &str) -> String {
    format!("/connections/{connection}{}", topic_path(topic))
}

async fn put(server: &Server, connection: &str, topic: &str, query: &str) -> Answer {
    request(server, Method::PUT, &format!("{}?{query}", path_of(connection, topic))).answer().await
}

/// Adds a topic, which must succeed.
async fn add(server: &Server, connection: &str, topic: &str, query: &str) {
    let answer = put(server, connection, topic, query).await;
    assert_eq!((answer.status, answer.text()), (204, ""), "{topic}");
}

/// Removes a topic, which must succeed.
async fn remove(server: &Server, connection: &str, topic: &str) {
    let answer = request(server, Method::DELETE, &path_of(connection, topic)).answer().await;
    assert_eq!((answer.status, answer.text()), (204, ""), "{topic}");
}

/// The next frame says that the server has changed this topic.
async fn told(reader: &mut Reader, kind: &str, topic: &str) -> Value {
    let frame = reader.next().await;
    assert_eq!(
        (&frame["type"], &frame["topic"], &frame["by"]),
        (&kind.into(), &topic.into(), &"server".into()),
        "{frame}"
    );
    assert!(frame["cursor"].is_string() && frame.get("ref").is_none(), "{frame}");
    frame
}
