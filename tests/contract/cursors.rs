//! Cursors: where they begin, and that each means the same everywhere.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, now, number, post, publish, publish_all, text},
    reader::Reader,
    support::{Server, client::Transport},
};

#[tokio::test]
async fn the_opening_cursor_is_where_reading_starts() {
    let server = Server::start().await;
    let began = now(&server).await;
    let ids = publish_all(&server, "a", 1..=5).await;
    let newest = publish(&server, "b", "elsewhere").await;
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let opened = async |query: &str| {
            let reader = Reader::open(&server, transport, query).await;
            assert_eq!(reader.opening()["type"], "open", "{transport}");
            assert_eq!(reader.cursor(), text(&reader.opening()["cursor"]), "{transport}");
            number(reader.cursor())
        };
        assert_eq!(opened("topic=a").await, number(&newest), "{transport}: now, of any topic");
        assert_eq!(opened(&format!("topic=a&after={}", ids[2])).await, number(&ids[2]), "{transport}");
        assert_eq!(
            opened("topic=a&last=2").await,
            number(&ids[3]) - 1,
            "{transport}: just before the oldest"
        );
        assert_eq!(
            opened("topic=a&since=1h").await,
            number(&ids[0]) - 1,
            "{transport}: just before the oldest"
        );
        let all = opened("topic=a&after=0").await;
        assert!((number(&began)..number(&ids[0])).contains(&all), "{transport}: {all}");
    }
}

#[tokio::test]
async fn a_store_without_messages_gives_the_id_at_which_it_began() {
    let micros =
        || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64;
    let before = micros();
    let server = Server::start().await;
    let began = number(&now(&server).await);
    assert!((before..=micros()).contains(&began), "{began}");
    let mut readers = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        for start in ["", "&after=0", "&last=3", "&since=1h"] {
            let reader = Reader::open(&server, transport, &format!("topic=a{start}")).await;
            assert_eq!(number(reader.cursor()), began, "{transport} {start}");
            readers.push(reader);
        }
        readers.push(Reader::open(&server, transport, &format!("topic=a&after={began}")).await);
    }
    publish(&server, "b", "elsewhere").await;
    let id = publish(&server, "a", "x").await;
    for mut reader in readers {
        assert_eq!(reader.ids(1).await, [id.as_str()], "no gap");
    }
}

#[tokio::test]
async fn the_first_cursor_of_0_last_and_since_leads_to_no_gap_later() {
    let server = Server::with(|config| config.retain_messages = 5).await;
    let ids = publish_all(&server, "a", 1..=12).await;
    publish_all(&server, "b", 1..=12).await;
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        for start in ["after=0", "last=3", "since=1h"] {
            let count = if start == "last=3" { 3 } else { 5 };
            let mut reader = Reader::open(&server, transport, &format!("topic=a&{start}")).await;
            assert_eq!(reader.ids(count).await, ids[12 - count..], "{transport} {start}: no gap now either");
            // Cut off before the client received a message.
            let opening = Reader::open(&server, transport, &format!("topic=a&{start}")).await;
            for other in Transport::ALL {
                let query = format!("topic=a&after={}", opening.cursor());
                let mut reader = Reader::open(&server, other, &query).await;
                assert_eq!(reader.ids(count).await, ids[12 - count..], "{transport} {start} {other}");
            }
        }
    }
}

#[tokio::test]
async fn a_cursor_from_one_transport_resumes_on_every_other() {
    let server = Server::start().await;
    let mut ids = publish_all(&server, "a", 1..=4).await;
    for from in Transport::ALL {
        for to in Transport::ALL {
            let mut first = Reader::open(&server, from, &format!("topic=a&after={}", ids[0])).await;
            assert_eq!(first.ids(2).await, ids[1..3], "{from}");
            let cursor = first.cursor().to_owned();
            drop(first);
            ids.push(publish(&server, "a", "meanwhile").await);
            let mut second = Reader::open(&server, to, &format!("topic=a&after={cursor}")).await;
            assert_eq!(second.ids(ids.len() - 3).await, ids[3..], "{from} to {to}");
            // If nothing was missed, there is no gap: the next frame is the next message.
            let mut third = Reader::open(&server, from, &format!("topic=a&after={}", second.cursor())).await;
            ids.push(publish(&server, "a", "next").await);
            assert_eq!(third.ids(1).await, ids[ids.len() - 1..], "{to} to {from}");
        }
    }
}

#[tokio::test]
async fn one_cursor_stands_for_many_topics_and_for_a_pattern() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for round in 0..30 {
        ids.push(publish(&server, ["a", "b.x", "b.y"][round % 3], round.to_string()).await);
    }
    for (index, cursor) in ids.iter().enumerate().step_by(7) {
        for transport in Transport::ALL {
            for filters in ["topic=a&topic=b.x&topic=b.y", "topic=a&topic=b.*", "topic=**"] {
                let mut reader = Reader::open(&server, transport, &format!("{filters}&after={cursor}")).await;
                let rest = &ids[index + 1..];
                assert_eq!(reader.ids(rest.len()).await, *rest, "{transport} {filters}");
            }
        }
    }
    let none: [Value; 0] = [];
    let page = get(&server, &format!("/topics/**?wait=0&after={}", ids[29])).answer().await.json();
    assert_eq!(page["messages"], json!(none));
}

/// A page that reads several topics was refused as a whole for the start of one of them.
#[tokio::test]
async fn a_start_that_is_refused_names_its_topic_if_the_request_names_one_alone() {
    let server = Server::start().await;
    let long = "a".repeat(1000);
    for start in ["since=soon", "after=x", "last=-1"] {
        for (path, topic) in [
            ("/events?topic=b", json!("b")),
            ("/events?topic=b.*", json!("b.*")),
            ("/topics/b?", json!("b")),
            ("/events?topic=a&topic=b", Value::Null),
        ] {
            let path = format!("{path}&{start}&wait=0");
            assert_eq!(
                get(&server, &path).answer().await.problem(400, "bad_request")["topic"],
                topic,
                "{path}"
            );
        }
    }
    let asked = json!({"topics": ["b"], "since": "soon", "wait": 0});
    let request = post(&server, "/events").header("content-type", "application/json").body(asked.to_string());
    assert_eq!(request.answer().await.problem(400, "bad_request")["topic"], "b");
    // A name is not shortened: the client finds its subscription by it.
    let path = format!("/events?topic={long}&wait=0");
    assert_eq!(get(&server, &path).answer().await.problem(400, "bad_request")["topic"], long);
}
