//! Publishing on conditions: `Idempotency-Key` and `If-Match`.

use futures_util::future::join_all;
use reqwest::{RequestBuilder, header::HeaderValue};
use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, delete_topic, get, now, number, post, publish, retained, text},
    support::Server,
};

fn with_key(server: &Server, topic: &str, key: &str) -> RequestBuilder {
    let key = HeaderValue::from_bytes(key.as_bytes()).expect("no line end");
    post(server, &format!("/topics/{topic}")).header("idempotency-key", key)
}

fn if_match(server: &Server, topic: &str, value: &str) -> RequestBuilder {
    post(server, &format!("/topics/{topic}")).header("if-match", value)
}

#[track_caller]
fn assert_stored(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, ""), "{answer:?}");
    answer.id()
}

#[track_caller]
fn assert_replayed(answer: &Answer, id: &str) {
    assert_eq!((answer.status, answer.header("idempotency-replayed")), (200, "true"), "{answer:?}");
    assert_eq!(answer.id(), id);
}

#[tokio::test]
async fn the_same_key_and_payload_are_stored_once_and_answered_with_the_first_id() {
    let server = Server::start().await;
    let first = assert_stored(&with_key(&server, "a", "k").body("x").answer().await);
    publish(&server, "a", "y").await;
    for _ in 0..3 {
        let again = with_key(&server, "a", "k").body("x").answer().await;
        assert_replayed(&again, &first);
        assert_eq!(again.json(), json!({"id": first, "topic": "a"}));
    }
    assert_eq!(retained(&server, "a").await, ["x", "y"]);
}

#[tokio::test]
async fn a_key_counts_for_publishes_at_the_same_time() {
    let server = Server::start().await;
    let requests = (0..20).map(|_| with_key(&server, "a", "k").body("x").answer());
    let answers = join_all(requests).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(answers.iter().all(|answer| answer.id() == answers[0].id()));
    assert_eq!(retained(&server, "a").await, ["x"]);
}

#[tokio::test]
async fn a_key_with_another_payload_is_key_reused() {
    let server = Server::start().await;
    assert_stored(&with_key(&server, "a", "k").body("x").answer().await);
    with_key(&server, "a", "k").body("y").answer().await.problem(422, "key_reused");
    assert_eq!(retained(&server, "a").await, ["x"]);
}

#[tokio::test]
async fn only_the_bytes_of_a_repeated_key_are_compared() {
    let server = Server::start().await;
    let first = assert_stored(&with_key(&server, "a", "k").body("x").answer().await);
    let request = post(&server, "/topics/a?event=other").header("content-type", "text/html");
    assert_replayed(&request.header("idempotency-key", "k").body("x").answer().await, &first);
}

#[tokio::test]
async fn a_key_counts_for_one_topic_only() {
    let server = Server::start().await;
    let first = assert_stored(&with_key(&server, "a", "k").body("x").answer().await);
    let other = assert_stored(&with_key(&server, "b", "k").body("y").answer().await);
    assert_ne!(first, other);
    assert_replayed(&with_key(&server, "a", "k").body("x").answer().await, &first);
    assert_replayed(&with_key(&server, "b", "k").body("y").answer().await, &other);
}

#[tokio::test]
async fn a_key_outlives_its_message() {
    let server = Server::with(|config| config.retain_messages = 1).await;
    let first = assert_stored(&with_key(&server, "a", "k").body("x").answer().await);
    publish(&server, "a", "y").await;
    delete_topic(&server, "a").await;
    assert_replayed(&with_key(&server, "a", "k").body("x").answer().await, &first);
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_key_is_1_to_255_visible_ascii_characters() {
    let server = Server::start().await;
    let longest = "~".repeat(255);
    for key in ["!", "a-b_c:{}\"\\", &longest] {
        assert_stored(&with_key(&server, "a", key).body("x").answer().await);
    }
    let too_long = "x".repeat(256);
    for key in ["", "a b", "a\tb", "é", &too_long] {
        with_key(&server, "a", key).body("x").answer().await.problem(400, "bad_request");
    }
    let twice = with_key(&server, "a", "k").header("idempotency-key", "l").body("x");
    twice.answer().await.problem(400, "bad_request");
}

#[tokio::test]
async fn a_key_is_looked_up_before_if_match() {
    let server = Server::start().await;
    let ask = || with_key(&server, "a", "k").header("if-match", "\"0\"").body("x").answer();
    let first = assert_stored(&ask().await);
    assert_replayed(&ask().await, &first);
    let other = with_key(&server, "a", "k").header("if-match", "\"0\"").body("y").answer().await;
    other.problem(422, "key_reused");
}

#[tokio::test]
async fn a_failed_precondition_does_not_use_the_key_up() {
    let server = Server::start().await;
    publish(&server, "a", "before").await;
    let failed = with_key(&server, "a", "k").header("if-match", "\"0\"").body("x").answer().await;
    failed.problem(412, "precondition_failed");
    assert_stored(&with_key(&server, "a", "k").body("another payload").answer().await);
}

#[tokio::test]
async fn if_match_0_publishes_only_to_a_topic_that_never_had_a_message() {
    let server = Server::start().await;
    publish(&server, "b", "elsewhere").await;
    let first = assert_stored(&if_match(&server, "a", "\"0\"").body("x").answer().await);
    let problem =
        if_match(&server, "a", "\"0\"").body("y").answer().await.problem(412, "precondition_failed");
    assert_eq!(problem["newest"], first);
    delete_topic(&server, "a").await;
    let forgotten = if_match(&server, "a", "\"0\"").body("y").answer().await;
    assert_eq!(forgotten.problem(412, "precondition_failed")["newest"], first);
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn if_match_publishes_only_if_the_topic_has_nothing_newer() {
    let server = Server::start().await;
    let first = publish(&server, "a", "x").await;
    let second = assert_stored(&if_match(&server, "a", &format!("\"{first}\"")).body("y").answer().await);
    let stale = if_match(&server, "a", &format!("\"{first}\"")).body("z").answer().await;
    assert_eq!(stale.problem(412, "precondition_failed")["newest"], second);
    // A cursor means the same as the newest id, as long as nothing newer is in this topic.
    let cursor = publish(&server, "b", "elsewhere").await;
    assert_stored(&if_match(&server, "a", &format!("\"{cursor}\"")).body("z").answer().await);
    assert_eq!(retained(&server, "a").await, ["x", "y", "z"]);
}

#[tokio::test]
async fn if_match_takes_the_etag_of_a_poll_as_it_is() {
    let server = Server::start().await;
    publish(&server, "a", "1").await;
    let page = get(&server, "/topics/a?after=0&wait=0").answer().await;
    assert_stored(&if_match(&server, "a", page.header("etag")).body("2").answer().await);
    if_match(&server, "a", page.header("etag")).body("3").answer().await.problem(412, "precondition_failed");
}

#[tokio::test]
async fn if_match_ahead_of_the_store_is_refused() {
    let server = Server::start().await;
    let newest = publish(&server, "a", "1").await;
    let ahead = number(&now(&server).await) + 1_000_000_000;
    for topic in ["a", "b"] {
        let answer = if_match(&server, topic, &format!("\"{ahead}\"")).body("x").answer().await;
        let problem = answer.problem(412, "precondition_failed");
        assert_eq!(problem["newest"], if topic == "a" { newest.as_str() } else { "0" }, "{problem}");
    }
    assert_eq!(retained(&server, "a").await, ["1"]);
}

#[tokio::test]
async fn if_match_is_one_quoted_id() {
    let server = Server::start().await;
    let id = publish(&server, "a", "1").await;
    let quoted = format!("\"{id}\"");
    let (weak, list) = (format!("w/{quoted}"), format!("{quoted}, {quoted}"));
    for value in
        [&weak, "W/", "W/W/\"1\"", &list, &id, "*", "\"*\"", "", "\"\"", "\"x\"", "\"-1\"", "\"", "\"1"]
    {
        let answer = if_match(&server, "a", value).body("x").answer().await;
        let problem = answer.problem(400, "bad_request");
        assert!(text(&problem["detail"]).contains("If-Match"), "{value:?}: {problem}");
    }
    let twice = if_match(&server, "a", &quoted).header("if-match", &quoted).body("x").answer().await;
    twice.problem(400, "bad_request");
    assert_eq!(retained(&server, "a").await, ["1"]);
}

/// A proxy that compresses the answer to a poll weakens its ETag.
#[tokio::test]
async fn a_weak_etag_counts_as_its_cursor() {
    let server = Server::start().await;
    let id = publish(&server, "a", "1").await;
    let weak = format!("W/\"{id}\"");
    let next = assert_stored(&if_match(&server, "a", &weak).body("2").answer().await);
    if_match(&server, "a", &weak).body("3").answer().await.problem(412, "precondition_failed");
    let item = json!([{"topic": "a", "data": 3, "if_match": format!("W/\"{next}\"")}]);
    let receipts = post(&server, "/publish").json(&item).answer().await.json();
    assert!(receipts[0]["id"].is_string(), "{receipts}");
}

#[tokio::test]
async fn only_one_of_many_publishes_with_the_same_condition_succeeds() {
    let server = Server::start().await;
    let id = publish(&server, "a", "1").await;
    let quoted = format!("\"{id}\"");
    let answers = join_all((0..20).map(|_| if_match(&server, "a", &quoted).body("2").answer())).await;
    let stored: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(stored.len(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!(answer.problem(412, "precondition_failed")["newest"], stored[0].id());
    }
}
