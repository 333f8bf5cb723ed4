//! The commands of a client on a WebSocket, and their answers.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    ask::{Ask, envelope_in, get, number, publish, retained, text, within},
    reader::{Reader, Socket},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn the_answer_repeats_the_ref_which_is_a_string_or_a_number() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for reference in [json!("x"), json!(""), json!("\"\n"), json!(7), json!(-1.5), json!(0), json!(u64::MAX)]
    {
        let pong = socket.ask(json!({"type": "ping", "ref": reference})).await;
        assert_eq!(pong, json!({"type": "pong", "ref": reference}));
        let answer = socket.ask(json!({"type": "subscribe", "topic": "a", "ref": reference})).await;
        assert_eq!((&answer["type"], &answer["ref"]), (&json!("subscribed"), &reference));
        let answer = socket.ask(json!({"type": "unsubscribe", "topic": "a", "ref": reference})).await;
        assert_eq!((&answer["type"], &answer["ref"]), (&json!("unsubscribed"), &reference));
        let answer = socket.ask(json!({"type": "publish", "topic": "b", "data": 1, "ref": reference})).await;
        assert_eq!((&answer["type"], &answer["ref"]), (&json!("published"), &reference));
        let answer = socket.ask(json!({"type": "subscribe", "topic": "a..b", "ref": reference})).await;
        assert_eq!((&answer["type"], &answer["ref"]), (&json!("error"), &reference));
    }
    assert_eq!(
        socket.ask(json!({"type": "ping"})).await,
        json!({"type": "pong"}),
        "without a ref the answer has none"
    );
    for wrong in [json!({}), json!([1]), json!(true), json!("x".repeat(1025))] {
        let error = socket.ask(json!({"type": "ping", "ref": wrong})).await;
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("bad_request")),
            "{wrong}: {error}"
        );
    }
}

#[tokio::test]
async fn a_connection_reads_up_to_100_patterns_with_a_wildcard() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for number in 0..100 {
        let answer = socket.ask(json!({"type": "subscribe", "topic": format!("p{number}.*")})).await;
        assert_eq!(answer["type"], "subscribed");
    }
    let refused = socket.ask(json!({"type": "subscribe", "topic": "one.more.*"})).await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("bad_request")));
    // A pattern that is read already does not count again, and a topic without a wildcard does not count.
    for topic in ["p7.*", "one.more"] {
        let answer = socket.ask(json!({"type": "subscribe", "topic": topic})).await;
        assert_eq!(answer["type"], "subscribed", "{topic}");
    }
    assert_eq!(socket.ask(json!({"type": "unsubscribe", "topic": "p7.*"})).await["type"], "unsubscribed");
    let answer = socket.ask(json!({"type": "subscribe", "topic": "one.more.*"})).await;
    assert_eq!(answer["type"], "subscribed");
}

#[tokio::test]
async fn a_wrong_command_is_an_error_and_the_connection_stays() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let wrong = [
        "",
        "nonsense",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"nonsense"}"#,
        r#"{"type":"open"}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","topic":7}"#,
        r#"{"type":"subscribe","topic":""}"#,
        r#"{"type":"subscribe","topic":"b","after":"x"}"#,
        r#"{"type":"subscribe","topic":"b","after":""}"#,
        r#"{"type":"subscribe","topic":"b","after":"0","last":-1}"#,
        r#"{"type":"subscribe","topic":"b","last":"x"}"#,
        r#"{"type":"subscribe","topic":"b","since":"x"}"#,
        r#"{"type":"unsubscribe"}"#,
        r#"{"type":"unsubscribe","topic":"a*"}"#,
        r#"{"type":"publish","topic":"b"}"#,
        r#"{"type":"publish","data":1}"#,
        r#"{"type":"publish","topic":"b.*","data":1}"#,
        r#"{"type":"publish","topic":"$b","data":1}"#,
        r#"{"type":"publish","topic":"b","data":1,"event":"open"}"#,
        r#"{"type":"auth"}"#,
    ];
    for command in wrong {
        socket.send_message(Message::text(command)).await;
        let error = socket.next().await;
        assert_eq!(error["type"], "error", "{command}: {error}");
        assert_eq!(error["code"], "bad_request", "{command}: {error}");
        assert!(!text(&error["detail"]).is_empty(), "{command}: {error}");
    }
    let id = publish(&server, "a", "still here").await;
    assert_eq!(socket.next().await["id"], id);
    assert_eq!(retained(&server, "b").await, [] as [Value; 0]);
}

#[tokio::test]
async fn publish_has_the_fields_of_post_publish() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    let published = socket
        .ask(json!({"type": "publish", "ref": 1, "topic": "a", "data": {"n": 1.5}, "event": "paid"}))
        .await;
    let id = text(&published["id"]);
    assert_eq!(published, json!({"type": "published", "topic": "a", "id": id, "ref": 1}));
    let expected = json!({"type": "message", "topic": "a", "id": id, "event": "paid", "data": {"n": 1.5}});
    assert_eq!(envelope_in(&server, "a").await, expected);

    let mut ask = async |fields: Value| {
        let mut command = fields;
        command["type"] = json!("publish");
        socket.ask(command).await
    };
    let base64 = json!({"topic": "b", "data": "/w==", "encoding": "base64", "content_type": "image/png"});
    assert_eq!(ask(base64).await["type"], "published");
    assert_eq!(envelope_in(&server, "b").await["content_type"], "image/png");
    let text_plain = json!({"topic": "c", "data": "x", "content_type": "text/plain"});
    assert_eq!(ask(text_plain).await["type"], "published");
    assert_eq!(envelope_in(&server, "c").await["data"], "x");

    let keyed = json!({"topic": "d", "data": 1, "idempotency_key": "k"});
    let first = ask(keyed.clone()).await;
    assert_eq!(ask(keyed).await["id"], first["id"]);
    let reused = ask(json!({"topic": "d", "data": 2, "idempotency_key": "k"})).await;
    assert_eq!((&reused["type"], &reused["code"]), (&json!("error"), &json!("key_reused")));
    let stale = ask(json!({"topic": "d", "data": 2, "if_match": "0"})).await;
    assert_eq!((&stale["type"], &stale["code"]), (&json!("error"), &json!("precondition_failed")));
    assert_eq!(stale["newest"], first["id"]);
    let next = ask(json!({"topic": "d", "data": 2, "if_match": first["id"]})).await;
    assert_eq!(next["type"], "published", "{next}");

    let many = ask(json!({"topics": ["e", "f"], "data": 1})).await;
    let ids = &many["ids"];
    assert_eq!(many, json!({"type": "published", "ids": {"e": ids["e"], "f": ids["f"]}}));
    assert_eq!(envelope_in(&server, "e").await["id"], ids["e"]);
    assert_eq!(envelope_in(&server, "f").await["id"], ids["f"]);
    let ephemeral = ask(json!({"topic": "g", "data": 1, "ephemeral": true})).await;
    assert_eq!(ephemeral, json!({"type": "published", "topic": "g"}));
    assert_eq!(retained(&server, "g").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_socket_gets_its_own_message_unless_it_excludes_itself() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let name = text(&socket.opening["connection"]);
    let mut frames = vec![socket.ask(json!({"type": "publish", "topic": "a", "data": 1})).await];
    frames.push(socket.next().await);
    frames.sort_by_key(|frame| text(&frame["type"]));
    assert_eq!((&frames[0]["type"], &frames[1]["type"]), (&json!("message"), &json!("published")));
    assert_eq!(frames[0]["id"], frames[1]["id"]);
    let excluded = socket.ask(json!({"type": "publish", "topic": "a", "data": 2, "exclude": name})).await;
    assert_eq!(excluded["type"], "published");
    publish(&server, "a", "next").await;
    assert_eq!(socket.next().await["data"], "next");
}

#[tokio::test]
async fn a_payload_published_on_a_socket_is_spliced_in_byte_for_byte() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    let data = r#"{ "n" : 1.50e+3,"n":12345678901234567890123, "\u00e9" : "\/" }"#;
    socket.send_message(Message::text(format!(r#"{{"data":{data},"topic":"a","type":"publish"}}"#))).await;
    assert_eq!(socket.next().await["type"], "published");
    let page = get(&server, "/topics/a?after=0").answer().await;
    assert!(page.text().contains(&format!("\"data\":{data}}}")), "{page:?}");
}

#[tokio::test]
async fn a_payload_over_the_limit_is_an_error_and_the_connection_stays() {
    let server = Server::with(|config| config.max_payload = 1_000).await;
    let mut socket = Socket::open(&server, "/events").await;
    let fits = socket.ask(json!({"type": "publish", "topic": "a", "data": "x".repeat(998)})).await;
    assert_eq!(fits["type"], "published", "{fits}");
    let error = socket.ask(json!({"type": "publish", "topic": "a", "data": "x".repeat(999)})).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("too_large")), "{error}");
    assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn commands_are_answered_in_their_order() {
    let server = Server::start().await;
    for index in 0..50 {
        publish(&server, "old", index.to_string()).await;
    }
    let mut socket = Socket::open(&server, "/events").await;
    for command in [
        json!({"type": "subscribe", "topic": "old", "after": "0", "ref": 1}),
        json!({"type": "ping", "ref": 2}),
        json!({"type": "publish", "topic": "other", "data": 1, "ref": 3}),
        json!({"type": "nonsense", "ref": 3.5}),
        json!({"type": "subscribe", "topic": "other", "ref": 4}),
        json!({"type": "unsubscribe", "topic": "old", "ref": 5}),
        json!({"type": "ping", "ref": 6}),
    ] {
        socket.send(command).await;
    }
    let mut answered = Vec::new();
    while answered.last() != Some(&json!(6)) {
        let frame = socket.next().await;
        if frame["type"] != "message" {
            answered.push(frame["ref"].clone());
        }
    }
    assert_eq!(json!(answered), json!([1, 2, 3, 3.5, 4, 5, 6]));
}

#[tokio::test]
async fn a_publish_that_one_topic_refuses_is_an_error_with_the_ids_of_the_topics_before() {
    let server = Server::start().await;
    publish(&server, "b", "x").await;
    let mut socket = Socket::open(&server, "/events").await;
    let command = json!({"type": "publish", "topics": ["a", "b"], "data": 1, "if_match": "0", "ref": 7});
    let error = socket.ask(command).await;
    let (kind, code) = (&error["type"], &error["code"]);
    assert_eq!((kind, code, &error["ref"]), (&json!("error"), &json!("precondition_failed"), &json!(7)));
    assert_eq!(error["ids"], json!({"a": envelope_in(&server, "a").await["id"]}), "{error}");
}

#[tokio::test]
async fn many_commands_at_once_are_all_done() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for number in 0..500 {
        socket.send(json!({"type": "publish", "topic": "a", "data": number, "ref": number})).await;
    }
    let mut last = 0;
    for expected in 0..500 {
        let published = socket.next().await;
        assert_eq!(published["ref"], expected, "{published}");
        assert!(number(&text(&published["id"])) > last);
        last = number(&text(&published["id"]));
    }
    let mut reader = Reader::open(&server, Transport::Ndjson, "topic=a&after=0").await;
    for expected in 0..500 {
        assert_eq!(reader.next().await["data"], expected, "to one topic, order is kept");
    }
}

#[tokio::test]
async fn an_invalid_command_is_answered_with_its_ref() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for command in [json!({"ref": 7}), json!({"type": null, "ref": 7}), json!({"type": "nonsense", "ref": 7})]
    {
        let error = socket.ask(command).await;
        assert_eq!(
            (&error["type"], &error["code"], &error["ref"]),
            (&json!("error"), &json!("bad_request"), &json!(7))
        );
    }
}

#[tokio::test]
async fn a_socket_that_publishes_without_reading_stays_open() {
    let server = Server::start().await;
    let mut socket = Socket::open_narrow(&server, "/topics/a").await;
    let text = "x".repeat(250_000);
    let publish_all = async {
        for _ in 0..40 {
            socket.send(json!({"type": "publish", "topic": "a", "data": text})).await;
        }
    };
    within("that all is taken", publish_all).await;
    let stored = async || get(&server, "/stats").answer().await.json()["messages"].clone();
    within("that all is stored", async { while stored().await != 40 {} }).await;
}
