//! Topics that the backend adds to a connection and removes from it, and the end of a connection.

use reqwest::Method;
use serde_json::{Value, json};

use super::{LIVE, add, id_of, path_of, put, remove, told};
use crate::{
    ask::{Ask, now, post, publish, request, text},
    reader::{Events, Reader, Socket},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn the_backend_adds_a_topic_and_removes_it() {
    let server = Server::start().await;
    for transport in LIVE {
        for query in ["", "topic=own"] {
            let mut reader = Reader::open(&server, transport, query).await;
            let id = id_of(&reader);
            add(&server, &id, "room.*", "").await;
            let added = publish(&server, "room.1", "added").await;
            told(&mut reader, "subscribed", "room.*").await;
            assert_eq!(reader.ids(1).await, [added]);
            // A repeated request changes nothing and tells nothing.
            add(&server, &id, "room.*", "after=0").await;
            remove(&server, &id, "room.*").await;
            publish(&server, "room.1", "removed").await;
            told(&mut reader, "unsubscribed", "room.*").await;
            remove(&server, &id, "room.*").await;
            add(&server, &id, "other", "").await;
            told(&mut reader, "subscribed", "other").await;
            let other = publish(&server, "other", "x").await;
            assert_eq!(reader.ids(1).await, [other], "{transport}");
        }
    }
}

#[tokio::test]
async fn another_subscription_that_matches_keeps_coming() {
    let server = Server::start().await;
    let mut reader = Reader::open(&server, Transport::Ndjson, "topic=a.*").await;
    let id = id_of(&reader);
    add(&server, &id, "a.b", "").await;
    told(&mut reader, "subscribed", "a.b").await;
    remove(&server, &id, "a.b").await;
    told(&mut reader, "unsubscribed", "a.b").await;
    let published = publish(&server, "a.b", "once").await;
    let next = publish(&server, "a.c", "next").await;
    assert_eq!(reader.ids(2).await, [published, next]);
    // A topic of the client's own is removed too, and the client may ask for it again.
    let mut socket = Socket::open(&server, "/events?topic=own").await;
    remove(&server, &text(&socket.opening["connection"]), "own").await;
    assert_eq!(socket.next().await["type"], "unsubscribed");
    assert_eq!(socket.ask(json!({"type": "subscribe", "topic": "own"})).await["type"], "subscribed");
    let own = publish(&server, "own", "x").await;
    assert_eq!(socket.next().await["id"], own);
}

#[tokio::test]
async fn the_client_unsubscribes_from_what_the_backend_added() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    let id = text(&socket.opening["connection"]);
    add(&server, &id, "a", "").await;
    assert_eq!(socket.next().await["by"], "server");
    let answer = socket.ask(json!({"type": "subscribe", "topic": "a", "ref": 1})).await;
    assert_eq!((&answer["type"], &answer["ref"], answer.get("by")), (&json!("subscribed"), &json!(1), None));
    let answer = socket.ask(json!({"type": "unsubscribe", "topic": "a"})).await;
    assert_eq!((&answer["type"], answer.get("by")), (&json!("unsubscribed"), None));
    publish(&server, "a", "unread").await;
    add(&server, &id, "a", "").await;
    assert_eq!(socket.next().await["by"], "server");
    let read = publish(&server, "a", "read").await;
    assert_eq!(socket.next().await["id"], read);
}

#[tokio::test]
async fn a_topic_that_the_client_reads_already_is_told_once() {
    let server = Server::start().await;
    let mut reader = Reader::open(&server, Transport::Sse, "topic=a").await;
    let id = id_of(&reader);
    add(&server, &id, "a", "after=0").await;
    add(&server, &id, "a", "").await;
    told(&mut reader, "subscribed", "a").await;
    let published = publish(&server, "a", "x").await;
    assert_eq!(reader.ids(1).await, [published]);
}

#[tokio::test]
async fn nothing_is_missed_from_the_answer_on_ephemeral_messages_too() {
    let server = Server::start().await;
    for transport in LIVE {
        for number in 0..5 {
            let mut reader = Reader::open(&server, transport, "").await;
            let topic = format!("{transport}.{number}");
            let query = if number % 2 == 0 { "" } else { "after=0" };
            add(&server, &id_of(&reader), &topic, query).await;
            let answer = post(&server, &format!("/topics/{topic}?ephemeral")).body("e").answer().await;
            assert_eq!(answer.status, 202);
            let stored = publish(&server, &topic, "s").await;
            told(&mut reader, "subscribed", &topic).await;
            let first = reader.next().await;
            assert_eq!((&first["ephemeral"], &first["data"]), (&json!(true), &json!("e")), "{first}");
            assert_eq!(reader.ids(1).await, [stored]);
        }
    }
}

#[tokio::test]
async fn a_stream_without_topics_keeps_its_cursor_until_one_is_added() {
    let server = Server::with(|config| config.heartbeat = std::time::Duration::from_secs(1)).await;
    let mut readers = Vec::new();
    for transport in [Transport::Sse, Transport::Ndjson] {
        readers.push(Reader::open(&server, transport, "").await);
    }
    for _ in 0..3 {
        publish(&server, "a", "x").await;
    }
    for reader in &mut readers {
        let opened = text(&reader.opening()["cursor"]);
        let frame = match reader {
            Reader::Sse(events) => events.next_frame().await,
            Reader::Ndjson(lines) => lines.next().await,
            Reader::WebSocket(_) | Reader::Poll(_) => unreachable!("these are no streams"),
        };
        assert_eq!((&frame["type"], text(&frame["cursor"])), (&json!("cursor"), opened));
    }
    let newest = now(&server).await;
    for reader in &mut readers {
        add(&server, &id_of(reader), "a", "").await;
        assert_eq!(told(reader, "subscribed", "a").await["cursor"], newest);
    }
    let answer = crate::ask::get(&server, "/events").answer().await;
    answer.problem(400, "bad_request");
}

#[tokio::test]
async fn a_stream_of_raw_events_gets_no_other_topic() {
    let server = Server::start().await;
    for path in ["/topics/a", "/events?topic=a&format=raw"] {
        let mut events = Events::open(&server, path).await;
        let id = text(&events.opening["connection"]);
        let problem = put(&server, &id, "b", "").await.problem(409, "conflict");
        assert_eq!(problem["topic"], "b");
        put(&server, &id, "a.*", "").await.problem(409, "conflict");
        add(&server, &id, "a", "").await;
        assert_eq!(events.next().await.event.as_deref(), Some("rejoin.subscribed"));
        publish(&server, "a", "x").await;
        assert_eq!(events.next().await.data.as_deref(), Some("x"));
    }
}

#[tokio::test]
async fn a_connection_reads_no_more_topics_than_its_limit() {
    let server = Server::start().await;
    let topics: Vec<_> = (0..10_000).map(|number| format!("t{number}")).collect();
    let body = json!({"topics": topics, "transport": "ndjson"});
    let stream = crate::reader::Stream::of(post(&server, "/events").json(&body)).await;
    let mut lines = crate::reader::Lines::of(stream);
    let id = text(&lines.next().await["connection"]);
    let problem = put(&server, &id, "one.more", "").await.problem(409, "conflict");
    assert_eq!(problem["topic"], "one.more");
    add(&server, &id, "t7", "").await;
    remove(&server, &id, "t8").await;
    add(&server, &id, "one.more", "").await;
    put(&server, &id, "t8", "").await.problem(409, "conflict");
    let mut reader = Reader::open(&server, Transport::Ndjson, "").await;
    let id = id_of(&reader);
    for number in 0..100 {
        add(&server, &id, &format!("p{number}.*"), "").await;
    }
    put(&server, &id, "p.*", "").await.problem(409, "conflict");
    told(&mut reader, "subscribed", "p0.*").await;
}

#[tokio::test]
async fn an_id_that_no_connection_has_is_not_found() {
    let server = Server::start().await;
    let reader = Reader::open(&server, Transport::Sse, "topic=a").await;
    let id = id_of(&reader);
    let zeros = "0".repeat(32);
    for wrong in ["x", &id[1..], &id.to_uppercase(), &format!("{id}0"), &zeros, "%FF"] {
        for path in [format!("/connections/{wrong}"), path_of(wrong, "a")] {
            if wrong == "%FF" && path.contains("/topics/") {
                continue;
            }
            for method in [Method::GET, Method::PUT, Method::DELETE] {
                let is_topic = path.contains("/topics/");
                if is_topic == (method == Method::GET) || (!is_topic && method == Method::PUT) {
                    continue;
                }
                request(&server, method, &path).answer().await.problem(404, "not_found");
            }
        }
    }
    drop(reader);
    crate::ask::until_served(&server, 0).await;
    put(&server, &id, "a", "").await.problem(404, "not_found");
    request(&server, Method::PUT, "/connections/x").answer().await.problem(405, "method_not_allowed");
    request(&server, Method::GET, "/connections/x/topics/a")
        .answer()
        .await
        .problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_changes_nothing() {
    let server = Server::start().await;
    let reader = Reader::open(&server, Transport::WebSocket, "").await;
    let id = id_of(&reader);
    for query in
        ["sub=", "subject=u1", "Subject=u1", "after=x", "last=-1", "since=x", "afer=1", "after=1&after=2"]
    {
        put(&server, &id, "a", query).await.problem(400, "bad_request");
    }
    for topic in ["a..b", "a*", "x y"] {
        put(&server, &id, topic, "").await.problem(400, "bad_request");
    }
    put(&server, &id, "a", "sub=u1").await.problem(412, "precondition_failed");
    for path in [path_of(&id, "a"), format!("/connections/{id}")] {
        for (query, status, code) in [
            ("sub=u1", 412, "precondition_failed"),
            ("sub=", 400, "bad_request"),
            ("subject=u1", 400, "bad_request"),
            ("Subject=u1", 400, "bad_request"),
            ("topic=a", 400, "bad_request"),
        ] {
            let answer = request(&server, Method::DELETE, &format!("{path}?{query}")).answer().await;
            answer.problem(status, code);
        }
    }
    let shown: Value = crate::ask::get(&server, &format!("/connections/{id}")).answer().await.json();
    assert_eq!(shown["topic_count"], 0);
}

#[tokio::test]
async fn a_connection_that_is_ended_is_told_so_and_is_gone_at_once() {
    let server = Server::start().await;
    for transport in LIVE {
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        let path = format!("/connections/{}", id_of(&reader));
        let answer = request(&server, Method::DELETE, &path).answer().await;
        assert_eq!((answer.status, answer.text()), (204, ""));
        publish(&server, "a", "too late").await;
        request(&server, Method::DELETE, &path).answer().await.problem(404, "not_found");
        put(&server, &id_of(&reader), "b", "").await.problem(404, "not_found");
        let closing = reader.next().await;
        assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("disconnected")));
        assert!(closing["cursor"].is_string(), "{closing}");
        assert_eq!(
            closing["detail"],
            "the backend has ended this connection; ask it before you connect again"
        );
        if let Reader::WebSocket(socket) = &mut reader {
            assert_eq!(socket.closed().await, (4010, "disconnected".to_owned()));
        }
    }
}
