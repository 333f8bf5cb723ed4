//! `POST /topics/{topic}`: the id, the payload and its type, the event.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    ask::{
        Ask, delete_topic, envelope_in, get, number, post, publish, publish_as, request, retained, text,
        topic_path, with_query,
    },
    support::Server,
};

#[tokio::test]
async fn a_stored_message_is_answered_with_201_its_id_and_its_topic() {
    let server = Server::start().await;
    let answer = post(&server, "/topics/orders.42").body("paid").answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (201, "application/json"));
    let id = answer.id();
    assert_eq!(answer.json(), json!({"id": id, "topic": "orders.42"}));
    assert_eq!(id.len(), 16, "{id}");
    assert!(number(&id) < 1 << 53, "{id}");
}

#[tokio::test]
async fn an_id_tells_the_time_in_microseconds() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64;
    let server = Server::start().await;
    let before = now();
    let id = number(&publish(&server, "a", "x").await);
    assert!((before..=now()).contains(&id), "{before} <= {id} <= now");
}

#[tokio::test]
async fn ids_grow_strictly_over_all_topics() {
    let server = Server::start().await;
    let mut last = 0;
    for round in 0..30 {
        let id = number(&publish(&server, ["a", "b", "c.d"][round % 3], "x").await);
        assert!(id > last, "{id} after {last}");
        last = id;
    }
}

#[tokio::test]
async fn no_id_is_given_twice_however_many_publish_at_once() {
    let server = Server::start().await;
    let topics: Vec<_> = (0..60).map(|number| format!("t{}", number % 7)).collect();
    let ids = join_all(topics.iter().map(|topic| publish(&server, topic, "x"))).await;
    assert_eq!(BTreeSet::from_iter(&ids).len(), 60, "{ids:?}");
}

/// Each case has the declared type, the payload, and the fields of the envelope besides `type`, `topic` and
/// `id`.
#[tokio::test]
async fn a_payload_has_its_declared_type_or_else_the_type_it_looks_like() {
    let curl = Some("application/x-www-form-urlencoded");
    let octets = json!({"data": "/w==", "encoding": "base64", "content_type": "application/octet-stream"});
    let cases: [(Option<&str>, &[u8], Value); 16] = [
        (None, br#"{"total":12}"#, json!({"data": {"total": 12}})),
        (None, b"total=12", json!({"data": "total=12"})),
        (None, b"", json!({"data": ""})),
        (None, b"\xff", octets.clone()),
        (curl, b"[1, 2]", json!({"data": [1, 2]})),
        (curl, b"a=1&b=2", json!({"data": "a=1&b=2"})),
        (curl, b"\xff", octets.clone()),
        (Some("application/json"), b"null", json!({"data": null})),
        (Some("application/json; charset=utf-8"), b"\"x\"", json!({"data": "x"})),
        (Some("application/ld+json"), b"{}", json!({"data": {}, "content_type": "application/ld+json"})),
        (Some("text/plain"), b"{}", json!({"data": "{}"})),
        (Some("text/plain"), "Größe\n".as_bytes(), json!({"data": "Größe\n"})),
        (Some("text/html"), b"<b>", json!({"data": "<b>", "content_type": "text/html"})),
        (
            Some("text/csv"),
            b"\xff",
            json!({"data": "/w==", "encoding": "base64", "content_type": "text/csv"}),
        ),
        (
            Some("image/png"),
            b"\x89PNG",
            json!({"data": "iVBORw==", "encoding": "base64", "content_type": "image/png"}),
        ),
        (Some("application/octet-stream"), b"\xff", octets),
    ];
    let server = Server::start().await;
    for (index, (content_type, payload, mut expected)) in cases.into_iter().enumerate() {
        let topic = format!("t{index}");
        let mut request = post(&server, &topic_path(&topic)).body(payload);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = request.answer().await;
        assert_eq!(answer.status, 201, "{content_type:?} {payload:?}: {answer:?}");
        expected["type"] = json!("message");
        expected["topic"] = json!(topic);
        expected["id"] = json!(answer.id());
        assert_eq!(envelope_in(&server, &topic).await, expected, "{content_type:?} {payload:?}");
    }
}

#[tokio::test]
async fn declared_json_that_does_not_parse_is_refused() {
    let server = Server::start().await;
    for content_type in ["application/json", "application/ld+json", "Application/JSON; charset=utf-8"] {
        for payload in [
            &b""[..],
            b"{",
            b"{\"a\":1,}",
            b"01",
            b"1 2",
            b"'x'",
            b"\"a\nb\"",
            b"\"\xff\"",
            b"\xef\xbb\xbf{}",
            b"NaN",
        ] {
            let request = post(&server, "/topics/a").header("content-type", content_type).body(payload);
            request.answer().await.problem(400, "bad_request");
        }
    }
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_content_type_that_is_no_media_type_is_refused() {
    let server = Server::start().await;
    let too_long = format!("text/{}", "x".repeat(251));
    for content_type in ["", "json", "text/", "/plain", "te xt/plain", "text/plain\t; a", &too_long] {
        let request = post(&server, "/topics/a").header("content-type", content_type).body("x");
        request.answer().await.problem(400, "bad_request");
    }
    let longest = &too_long[..255];
    publish_as(&server, "a", longest, "x").await;
    assert_eq!(envelope_in(&server, "a").await["content_type"], longest);
}

#[tokio::test]
async fn a_text_that_is_not_utf_8_keeps_its_type_and_charset() {
    let server = Server::start().await;
    publish_as(&server, "a", "text/plain; charset=iso-8859-1", &b"\xe4"[..]).await;
    let envelope = envelope_in(&server, "a").await;
    assert_eq!(envelope["content_type"], "text/plain; charset=iso-8859-1", "{envelope}");
    assert_eq!((&envelope["encoding"], &envelope["data"]), (&json!("base64"), &json!("5A==")), "{envelope}");
}

#[tokio::test]
async fn json_may_be_nested_deeply() {
    let server = Server::start().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = post(&server, "/topics/a")
        .header("content-type", "application/json")
        .body(deep.clone())
        .answer()
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let batch = format!("[{{\"topic\":\"a\",\"data\":{deep}}}]");
    let answer =
        post(&server, "/publish").header("content-type", "application/json").body(batch).answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with(r#"[{"topic":"a","id":""#), "{answer:?}");

    // It is nested deeper than a client's own parser allows, so the test looks for it as text.
    let page = get(&server, "/topics/a?after=0").answer().await;
    assert_eq!(page.text().matches(&format!("\"data\":{deep}}}")).count(), 2);
}

#[tokio::test]
async fn readers_see_the_event() {
    let server = Server::start().await;
    let long = "x".repeat(128);
    let events = ["paid", "message", "opened", "errors", "rejoin", "Größe β", "a:b, c\"", &long];
    for (index, event) in events.into_iter().enumerate() {
        let topic = format!("t{index}");
        let answer =
            post(&server, &with_query(&topic_path(&topic), &[("event", event)])).body("x").answer().await;
        assert_eq!(answer.status, 201, "{event}: {answer:?}");
        assert_eq!(envelope_in(&server, &topic).await["event"], event);
    }
}

#[tokio::test]
async fn a_reserved_event_or_one_that_breaks_a_line_is_refused() {
    let server = Server::start().await;
    let long = "x".repeat(129);
    let events = [
        "",
        "open",
        "error",
        "rejoin.open",
        "rejoin.",
        "rejoin.x",
        "a\nb",
        "a\rb",
        "\0",
        "\x7f",
        "a\u{85}b",
        &long,
    ];
    for event in events {
        let answer = post(&server, &with_query("/topics/a", &[("event", event)])).body("x").answer().await;
        let problem = answer.problem(400, "bad_request");
        assert!(text(&problem["detail"]).contains("event"), "{event:?}: {problem}");
        let items = json!([{"topic": "a", "data": 1, "event": event}]);
        let answer = post(&server, "/publish").json(&items).answer().await;
        assert_eq!(answer.json()[0]["code"], "bad_request", "{event:?}: {answer:?}");
    }
    let twice = post(&server, "/topics/a?event=x&event=y").body("x").answer().await;
    twice.problem(400, "bad_request");
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_payload_over_the_limit_is_too_large_and_one_at_the_limit_is_not() {
    let server = Server::with(|config| config.max_payload = 1_000).await;
    publish(&server, "a", "x".repeat(1_000)).await;
    let declared = post(&server, "/topics/a").body("x".repeat(1_001)).answer().await;
    declared.problem(413, "too_large");
    let pieces = futures_util::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 100])));
    let chunked = post(&server, "/topics/a").body(reqwest::Body::wrap_stream(pieces)).answer().await;
    chunked.problem(413, "too_large");
    assert_eq!(retained(&server, "a").await.len(), 1);
}

#[tokio::test]
async fn a_topic_is_segments_of_up_to_255_bytes_in_all() {
    let server = Server::start().await;
    let longest = "x".repeat(255);
    for topic in ["a", "orders.42", "Größe.β", "a/b", "a:b-c_d@e", "a.$b", "a\u{200b}", "<b>\"\\", &longest]
    {
        publish(&server, topic, "x").await;
        assert_eq!(envelope_in(&server, topic).await["topic"], topic);
    }
    let too_long = "x".repeat(256);
    let refused = [
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\tb",
        "a\nb",
        "a\0",
        "a\u{a0}b",
        "a\u{2028}b",
        "a\u{85}b",
        "a,b",
        "{a",
        "a}",
        "a*",
        &too_long,
    ];
    for topic in refused {
        for request in [
            post(&server, &topic_path(topic)).body("x"),
            request(&server, reqwest::Method::DELETE, &topic_path(topic)),
            get(&server, &topic_path(topic)),
            get(&server, &with_query("/events", &[("topic", topic)])),
        ] {
            request.answer().await.problem(400, "bad_request");
        }
    }
    post(&server, "/topics/%FF").body("x").answer().await.problem(400, "bad_request");
}

#[tokio::test]
async fn nothing_is_published_to_a_pattern_or_to_a_reserved_topic() {
    let server = Server::start().await;
    for topic in ["*", "**", "a.*", "a.**", "*.a", "$a", "$rejoin.ready"] {
        post(&server, &topic_path(topic)).body("x").answer().await.problem(400, "bad_request");
        let answer = post(&server, "/publish").json(&json!([{"topic": topic, "data": 1}])).answer().await;
        assert_eq!(answer.json()[0]["code"], "bad_request", "{topic}");
        let delete = request(&server, reqwest::Method::DELETE, &topic_path(topic));
        delete.answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn json_is_spliced_in_byte_for_byte_except_line_ends_between_tokens() {
    let server = Server::start().await;
    let json = "{ \"a\" : 1.50e+3,\"a\":12345678901234567890123,\r\n\t\"\\u00e9\": \"\\n\\/\" }";
    publish_as(&server, "a", "application/json", json).await;
    let page = get(&server, "/topics/a?after=0").answer().await;
    let flat = json.replace(['\r', '\n'], " ");
    assert!(page.text().contains(&format!("\"data\":{flat}}}")), "{page:?}");
}

#[tokio::test]
async fn beyond_max_topics_a_new_topic_is_refused_and_none_is_forgotten() {
    let server = Server::with(|config| config.max_topics = 2).await;
    for topic in ["a", "b", "a"] {
        publish(&server, topic, "x").await;
    }
    delete_topic(&server, "a").await;
    let refused = post(&server, "/topics/c").body("x").answer().await;
    refused.problem(503, "overloaded");
    assert_eq!(post(&server, "/topics/c?ephemeral").body("x").answer().await.status, 202);
    publish(&server, "a", "x").await;
    assert_eq!(get(&server, "/stats").answer().await.json()["topics"], 2);
}
