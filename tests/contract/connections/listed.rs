//! The list of connections, and one connection alone.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{LIVE, add, id_of};
use crate::{
    ask::{Ask, get, publish, text},
    reader::Reader,
    support::{Server, client::Transport},
};

async fn list(server: &Server, query: &str) -> Value {
    get(server, &format!("/connections?{query}")).answer().await.json()
}

fn ids(page: &Value) -> Vec<String> {
    let connections = page["connections"].as_array().expect("a list");
    connections.iter().map(|shown| text(&shown["connection"])).collect()
}

#[tokio::test]
async fn a_connection_is_shown_with_what_it_reads() {
    let server = Server::start().await;
    for transport in LIVE {
        let reader = Reader::open(&server, transport, "topic=b&topic=a.*").await;
        let id = id_of(&reader);
        add(&server, &id, "c", "").await;
        let shown = get(&server, &format!("/connections/{id}")).answer().await;
        assert_eq!((shown.status, shown.header("cache-control")), (200, "no-store"));
        let shown = shown.json();
        let expected = json!({
            "connection": id,
            "sub": null,
            "transport": transport.to_string(),
            "replica": id[..16],
            "since": shown["since"],
            "topics": ["a.*", "b", "c"],
            "topic_count": 3,
            "address": "127.0.0.1",
            "behind": 0,
        });
        assert_eq!(shown, expected);
        let since = time::OffsetDateTime::parse(
            &text(&shown["since"]),
            &time::format_description::well_known::Rfc3339,
        );
        let age = time::OffsetDateTime::now_utc() - since.expect("a time");
        assert!(age.whole_seconds() < 60, "{age}");
        assert_eq!(
            list(&server, "topic=c").await,
            json!({"connections": [shown], "next": null, "missing": []})
        );
        drop(reader);
        crate::ask::until_served(&server, 0).await;
    }
}

#[tokio::test]
async fn only_the_first_20_topics_are_shown() {
    let server = Server::start().await;
    let query: Vec<_> = (10..40).map(|number| format!("topic=t{number}")).collect();
    let reader = Reader::open(&server, Transport::Ndjson, &query.join("&")).await;
    let shown = get(&server, &format!("/connections/{}", id_of(&reader))).answer().await.json();
    let topics: Vec<_> = (10..30).map(|number| json!(format!("t{number}"))).collect();
    assert_eq!((&shown["topics"], &shown["topic_count"]), (&Value::Array(topics), &json!(30)));
}

#[tokio::test]
async fn pages_show_each_connection_once() {
    let server = Server::start().await;
    let mut readers = Vec::new();
    for number in 0..7 {
        let query = if number % 2 == 0 { "topic=even&topic=all" } else { "topic=all" };
        readers.push(Reader::open(&server, LIVE[number % 3], query).await);
    }
    let all: BTreeSet<_> = readers.iter().map(id_of).collect();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = list(&server, &format!("limit=3&after={after}")).await;
        seen.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(ids(&page).len(), 3);
        after = next.to_owned();
    }
    assert_eq!(seen, all.into_iter().collect::<Vec<_>>());
    let even = list(&server, "topic=even").await;
    assert_eq!(ids(&even).len(), 4);
    // Only exactly that name counts.
    for query in ["topic=eve", "topic=ev*n", "topic=**", "sub=u1"] {
        let page = get(&server, &format!("/connections?{query}")).answer().await;
        if query == "topic=ev*n" {
            page.problem(400, "bad_request");
        } else {
            assert_eq!(page.json(), json!({"connections": [], "next": null, "missing": []}), "{query}");
        }
    }
    for query in ["limit=0", "limit=1001", "sub=", "subject=u1", "after=x", "limt=3"] {
        get(&server, &format!("/connections?{query}")).answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn a_connection_is_behind_while_its_client_does_not_read() {
    let server = Server::start().await;
    let slow = Reader::open(&server, Transport::Sse, "topic=a").await;
    let quiet = Reader::open(&server, Transport::Sse, "topic=quiet").await;
    let behind = async |reader: &Reader| {
        let shown = get(&server, &format!("/connections/{}", id_of(reader))).answer().await.json();
        shown["behind"].as_u64().expect("milliseconds")
    };
    crate::ask::within("the reader is behind", async {
        while behind(&slow).await == 0 {
            publish(&server, "a", "x".repeat(200_000)).await;
        }
    })
    .await;
    assert_eq!(behind(&quiet).await, 0);
}
