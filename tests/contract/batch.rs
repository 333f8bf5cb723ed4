//! `POST /publish`: many messages in one request.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    ask::{
        Answer, Ask, envelope_in, get, number, post, publish, request, retained, text, topic_path, within,
    },
    reader::{Events, Reader},
    support::{Server, client::Transport},
};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

async fn send(server: &Server, content_type: &str, body: impl Into<Body>) -> Answer {
    post(server, "/publish").header("content-type", content_type).body(body).answer().await
}

/// The answers to a request whose body was read as a list.
#[track_caller]
fn answers(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, JSON), "{answer:?}");
    answer.json().as_array().expect("an array").clone()
}

/// The same items as an array and as NDJSON.
fn both(items: &[Value]) -> [(&'static str, String); 2] {
    let lines: Vec<_> = items.iter().map(|item| format!("{item}\n")).collect();
    [(JSON, json!(items).to_string()), (NDJSON, lines.concat())]
}

#[tokio::test]
async fn an_array_and_lines_are_answered_in_order_with_ids_that_grow() {
    let server = Server::start().await;
    let items: Vec<_> = (0..200).map(|n| json!({"topic": format!("t{}", n % 3), "data": n})).collect();
    let mut last = 0;
    for (content_type, body) in both(&items) {
        let answers = answers(&send(&server, content_type, body).await);
        assert_eq!(answers.len(), items.len());
        for (item, answer) in items.iter().zip(&answers) {
            let id = text(&answer["id"]);
            assert_eq!(*answer, json!({"topic": item["topic"], "id": id}));
            assert!(number(&id) > last, "{id} after {last}");
            last = number(&id);
        }
    }
    let expected: Vec<_> = (0..2).flat_map(|_| (0..200).step_by(3)).collect();
    assert_eq!(json!(retained(&server, "t0").await), json!(expected), "to one topic, order is kept");
}

#[tokio::test]
async fn an_ordered_batch_publishes_nothing_after_a_failure() {
    let server = Server::start().await;
    let items = [json!({"topic": "t", "data": 1}), json!({"topic": "*"}), json!({"topic": "t", "data": 3})];
    for (content_type, body) in both(&items) {
        for (path, expected) in [("/publish?ordered=0", vec![1, 3]), ("/publish?ordered", vec![1])] {
            let request = post(&server, path).header("content-type", content_type).body(body.clone());
            let answers = answers(&request.answer().await);
            assert_eq!(answers[1]["code"], "bad_request", "{answers:?}");
            assert_eq!(answers.len(), if expected.len() == 2 { 3 } else { 2 }, "{path}: {answers:?}");
            assert_eq!(json!(retained(&server, "t").await), json!(expected), "{path}");
            delete(&server, "t").await;
        }
    }
    post(&server, "/publish?ordered=perhaps").json(&items).answer().await.problem(400, "bad_request");
}

async fn delete(server: &Server, topic: &str) {
    let answer = request(server, Method::DELETE, &topic_path(topic)).answer().await;
    assert_eq!(answer.status, 204, "{answer:?}");
}

#[tokio::test]
async fn an_empty_list_publishes_nothing() {
    let server = Server::start().await;
    for (content_type, body) in [(JSON, "[]"), (JSON, " [ ] \n"), (NDJSON, ""), (NDJSON, "\n\r\n")] {
        assert_eq!(answers(&send(&server, content_type, body).await), [] as [Value; 0], "{body:?}");
    }
}

#[tokio::test]
async fn lines_may_end_with_crlf_and_the_last_one_not_at_all() {
    let server = Server::start().await;
    let body = "{\"topic\":\"a\",\"data\":1}\r\n{\"topic\":\"a\",\"data\":2}";
    assert_eq!(answers(&send(&server, NDJSON, body).await).len(), 2);
    assert_eq!(retained(&server, "a").await, [1, 2]);
}

#[tokio::test]
async fn a_failed_element_is_a_problem_in_its_place_and_does_not_stop_the_others() {
    let server = Server::with(|config| config.max_payload = 1_000).await;
    let wrong = [
        (json!({"topic": "a..b", "data": 1}), "bad_request"),
        (json!({"topic": "a.*", "data": 1}), "bad_request"),
        (json!({"topic": "a"}), "bad_request"),
        (json!({"data": 1}), "bad_request"),
        (json!({"topic": "a", "topics": ["b"], "data": 1}), "bad_request"),
        (json!({"topics": [], "data": 1}), "bad_request"),
        (json!({"topic": 7, "data": 1}), "bad_request"),
        (json!({"topic": "a", "data": 1, "event": "rejoin.x"}), "bad_request"),
        (json!({"topic": "a", "data": "%", "encoding": "base64"}), "bad_request"),
        (json!({"topic": "a", "data": "x", "encoding": "rot13"}), "bad_request"),
        (json!({"topic": "a", "data": {}, "content_type": "text/plain"}), "bad_request"),
        (json!({"topic": "a", "data": 1, "idempotency_key": ""}), "bad_request"),
        (json!({"topic": "a", "data": 1, "if_match": "*"}), "bad_request"),
        (json!({"topic": "a", "data": 1, "ephemeral": "perhaps"}), "bad_request"),
        (json!({"topic": "a", "data": 1, "nonsense": 1}), "bad_request"),
        (json!({"topic": "a", "data": "x".repeat(1_001)}), "too_large"),
        (json!({"topic": "a", "data": "x".repeat(1_000_000)}), "too_large"),
        (json!(7), "bad_request"),
        (json!("x"), "bad_request"),
        (json!(["a"]), "bad_request"),
        (json!(null), "bad_request"),
    ];
    let items: Vec<_> =
        wrong.iter().flat_map(|(item, _)| [item.clone(), json!({"topic": "good", "data": 1})]).collect();
    for (round, (content_type, body)) in both(&items).into_iter().enumerate() {
        let answers = answers(&send(&server, content_type, body).await);
        assert_eq!(answers.len(), 2 * wrong.len());
        for ((item, code), pair) in wrong.iter().zip(answers.chunks(2)) {
            assert_eq!(pair[0]["code"], *code, "{item} {}", pair[0]);
            assert!(pair[0]["detail"].is_string() && pair[0]["id"].is_null(), "{}", pair[0]);
            assert_eq!(pair[1]["topic"], "good", "{item} {}", pair[1]);
        }
        assert_eq!(retained(&server, "good").await.len(), (round + 1) * wrong.len());
    }
    assert_eq!(retained(&server, "a").await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_malformed_line_does_not_stop_the_others() {
    let server = Server::start().await;
    let good = r#"{"topic":"a","data":1}"#;
    for malformed in
        ["{", "nonsense", "{\"topic\":\"a\",\"data\":1}}", "]", "\u{feff}{}", "{\"topic\":\"a\",\"data\":}"]
    {
        let answers = answers(&send(&server, NDJSON, format!("{good}\n{malformed}\n{good}\n")).await);
        assert_eq!(answers.len(), 3, "{malformed}");
        assert_eq!(answers[1]["code"], "bad_request", "{malformed}: {}", answers[1]);
        assert!(answers[0]["id"].is_string() && answers[2]["id"].is_string(), "{malformed}");
    }
    let bad_utf8 = [good.as_bytes(), b"\n{\"topic\":\"a\",\"data\":\"\xff\"}\n", good.as_bytes()].concat();
    let answers = answers(&send(&server, NDJSON, bad_utf8).await);
    assert_eq!(answers[1]["code"], "bad_request", "{answers:?}");
    assert!(answers[0]["id"].is_string() && answers[2]["id"].is_string());
}

#[tokio::test]
async fn a_body_that_is_neither_an_array_nor_lines_is_refused() {
    let server = Server::start().await;
    for body in ["", "{}", "nonsense", "7", r#"{"topic":"a","data":1}"#] {
        send(&server, JSON, body).await.problem(400, "bad_request");
    }
    for content_type in ["application/ndjson", "application/jsonl", "Application/X-NDJSON; charset=utf-8"] {
        assert_eq!(answers(&send(&server, content_type, r#"{"topic":"a","data":1}"#).await).len(), 1);
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/xml"] {
        send(&server, content_type, "[]").await.problem(415, "unsupported_media_type");
    }
    post(&server, "/publish").body("[]").answer().await.problem(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_broken_array_is_the_last_problem_after_the_answers_before_it() {
    let server = Server::start().await;
    let good = r#"{"topic":"a","data":1}"#;
    for broken in [format!("[{good},{good}"), format!("[{good},{good},"), format!("[{good},{good}] nonsense")]
    {
        let answers = answers(&send(&server, JSON, broken.clone()).await);
        let (last, done) = answers.split_last().expect("answers");
        assert_eq!(last["code"], "bad_request", "{broken}: {last}");
        assert!(!done.is_empty() && done.iter().all(|answer| answer["id"].is_string()), "{broken}: {done:?}");
    }
}

#[tokio::test]
async fn a_message_that_does_not_arrive_in_time_is_the_last_problem_or_the_status() {
    let server = Server::with(|config| config.read_timeout = Duration::from_millis(300)).await;
    for begun in ["", "{\"topic\":"] {
        for first in ["", "{\"topic\":\"a\",\"data\":1}\n"] {
            let body = stream::iter([Ok::<_, io::Error>(format!("{first}{begun}"))]).chain(stream::pending());
            let answer = send(&server, NDJSON, Body::wrap_stream(body)).await;
            if first.is_empty() {
                answer.problem(408, "timed_out");
            } else {
                let answers = answers(&answer);
                assert_eq!(answers.len(), 2, "{answers:?}");
                assert!(answers[0]["id"].is_string(), "{answers:?}");
                assert_eq!((&answers[1]["code"], &answers[1]["status"]), (&json!("timed_out"), &json!(408)));
            }
        }
    }
}

#[tokio::test]
async fn a_request_holds_up_to_100_000_messages() {
    let server = Server::start().await;
    let good = |topic: &str| format!("{{\"topic\":\"{topic}\",\"data\":1}}\n");
    let body = good("a").repeat(99_999) + &good("last") + &good("one.more");
    let answers = answers(&send(&server, NDJSON, body).await);
    assert_eq!(answers.len(), 100_001);
    assert!(answers[99_999]["id"].is_string(), "{}", answers[99_999]);
    assert_eq!(answers[100_000]["code"], "too_large", "{}", answers[100_000]);
    assert_eq!(retained(&server, "last").await, [1]);
    assert_eq!(retained(&server, "one.more").await, [] as [Value; 0]);
    let full = self::answers(&send(&server, NDJSON, good("a").repeat(100_000)).await);
    assert_eq!(full.len(), 100_000, "a request with exactly 100 000 messages is answered completely");
}

/// The answer to a mistake is longer than the mistake, and all answers wait for the end of the request.
#[tokio::test]
async fn a_request_holds_up_to_1_000_mistakes() {
    let server = Server::start().await;
    let good = r#"{"topic":"a","data":1}"#.to_owned() + "\n";
    let answers = answers(&send(&server, NDJSON, good.clone() + &"0\n".repeat(1_001) + &good).await);
    assert_eq!(answers.len(), 1_002);
    assert_eq!(
        (answers[1_000]["code"].as_str(), answers[1_001]["code"].as_str()),
        (Some("bad_request"), Some("too_large"))
    );
    assert_eq!(retained(&server, "a").await, [1], "the message after them is not published");
}

#[tokio::test]
async fn a_topic_that_is_named_twice_is_published_to_once() {
    let server = Server::start().await;
    let items = json!([{"topics": ["a", "b", "a"], "data": 1}]);
    let answers = answers(&send(&server, JSON, items.to_string()).await);
    assert_eq!(answers[0]["ids"].as_object().map(serde_json::Map::len), Some(2), "{}", answers[0]);
    assert_eq!(retained(&server, "a").await, [1]);
}

#[tokio::test]
async fn if_one_topic_refuses_the_problem_has_the_ids_of_the_topics_before() {
    let server = Server::start().await;
    publish(&server, "b", "x").await;
    let items = json!([{"topics": ["a", "b", "c"], "data": 1, "if_match": "0"}]);
    let answers = answers(&send(&server, JSON, items.to_string()).await);
    assert_eq!(answers[0]["code"], "precondition_failed", "{}", answers[0]);
    assert_eq!(answers[0]["ids"], json!({"a": envelope_in(&server, "a").await["id"]}), "{}", answers[0]);
    assert_eq!(retained(&server, "c").await, [] as [Value; 0]);
    let items = json!([{"topics": ["a", "b..c"], "data": 2}]);
    let refused = send(&server, JSON, items.to_string()).await;
    assert_eq!(refused.json()[0]["code"], "bad_request", "{refused:?}");
    assert_eq!(retained(&server, "a").await, [1]);
}

#[tokio::test]
async fn each_topic_gets_the_message_with_its_own_id() {
    let server = Server::start().await;
    let items = json!([{"topics": ["a", "b", "c"], "data": {"n": 1}, "event": "e"}]);
    let answer = send(&server, JSON, items.to_string()).await;
    let ids = answers(&answer)[0]["ids"].as_object().expect("ids").clone();
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    for (topic, id) in &ids {
        let expected = json!({"type": "message", "topic": topic, "id": id, "event": "e", "data": {"n": 1}});
        assert_eq!(envelope_in(&server, topic).await, expected);
    }
    assert!(ids["a"] != ids["b"] && ids["b"] != ids["c"]);
}

/// Each case has the fields of an item, and the fields of the envelope besides `type`, `topic` and `id`.
#[tokio::test]
async fn data_is_json_unless_another_content_type_is_given() {
    let server = Server::start().await;
    let cases = [
        (json!({"data": {"a": [1, null]}}), json!({"data": {"a": [1, null]}})),
        (json!({"data": null}), json!({"data": null})),
        (json!({"data": "x"}), json!({"data": "x"})),
        (json!({"data": "x", "content_type": "application/json"}), json!({"data": "x"})),
        (
            json!({"data": {}, "content_type": "application/ld+json"}),
            json!({"data": {}, "content_type": "application/ld+json"}),
        ),
        (json!({"data": "é\n", "content_type": "text/plain"}), json!({"data": "é\n"})),
        (
            json!({"data": "<b>", "content_type": "text/html"}),
            json!({"data": "<b>", "content_type": "text/html"}),
        ),
        (
            json!({"data": "iVBORw==", "encoding": "base64", "content_type": "image/png"}),
            json!({"data": "iVBORw==", "encoding": "base64", "content_type": "image/png"}),
        ),
        (json!({"data": "w6k=", "encoding": "base64", "content_type": "text/plain"}), json!({"data": "é"})),
        (
            json!({"data": "eyJhIjoxfQ==", "encoding": "base64", "content_type": "application/json"}),
            json!({"data": {"a": 1}}),
        ),
    ];
    for (index, (mut item, mut expected)) in cases.into_iter().enumerate() {
        let topic = format!("t{index}");
        item["topic"] = json!(topic);
        let answer = send(&server, JSON, json!([item]).to_string()).await;
        expected["type"] = json!("message");
        expected["topic"] = json!(topic);
        expected["id"] = answers(&answer)[0]["id"].clone();
        assert_eq!(envelope_in(&server, &topic).await, expected, "{item}");
    }
}

#[tokio::test]
async fn data_is_spliced_in_byte_for_byte() {
    let server = Server::start().await;
    let data = r#"{ "n" : 1.50e+3,"n":12345678901234567890123, "\u00e9" : "\/" }"#;
    for (content_type, body) in [
        (JSON, format!(r#"[{{"topic":"a","data":{data}}}]"#)),
        (NDJSON, format!(r#"{{"data":{data},"topic":"a"}}"#)),
    ] {
        answers(&send(&server, content_type, body).await);
    }
    let page = get(&server, "/topics/a?after=0").answer().await;
    assert_eq!(page.text().matches(&format!("\"data\":{data}}}")).count(), 2, "{page:?}");
}

#[tokio::test]
async fn a_raw_reader_sees_the_quotes_of_a_json_string_and_none_of_a_text() {
    let server = Server::start().await;
    let items = json!([
        {"topic": "a", "data": "said"},
        {"topic": "a", "data": "said", "content_type": "text/plain"},
    ]);
    answers(&send(&server, JSON, items.to_string()).await);
    let mut events = Events::open(&server, "/topics/a?after=0").await;
    assert_eq!(events.next().await.data.as_deref(), Some("\"said\""));
    assert_eq!(events.next().await.data.as_deref(), Some("said"));
}

#[tokio::test]
async fn each_message_has_the_options_of_a_single_one() {
    let server = Server::start().await;
    let first = publish(&server, "a", "1").await;
    let items = [
        json!({"topic": "a", "data": 1, "if_match": "0"}),
        json!({"topic": "a", "data": 2, "if_match": first}),
        json!({"topic": "a", "data": 3, "idempotency_key": "k"}),
        json!({"topic": "a", "data": 3, "idempotency_key": "k"}),
        json!({"topic": "a", "data": 4, "idempotency_key": "k"}),
        json!({"topic": "b", "data": 4, "idempotency_key": "k"}),
        json!({"topic": "a", "data": 5, "ephemeral": true}),
        json!({"topic": "a", "data": 6, "ephemeral": false, "event": "paid"}),
    ];
    let answers = answers(&send(&server, JSON, json!(items).to_string()).await);
    assert_eq!(answers[0]["code"], "precondition_failed", "{}", answers[0]);
    assert_eq!(answers[0]["newest"], first);
    assert!(answers[1]["id"].is_string(), "{}", answers[1]);
    assert_eq!(answers[3], answers[2], "the same key stores nothing and answers with the first id");
    assert_eq!(answers[4]["code"], "key_reused", "{}", answers[4]);
    assert!(answers[5]["id"].is_string(), "{}", answers[5]);
    assert_eq!(answers[6], json!({"topic": "a"}), "an ephemeral message has no id");
    let many = json!([{"topics": ["a", "b"], "data": 1, "ephemeral": true}]);
    assert_eq!(send(&server, JSON, many.to_string()).await.json(), json!([{"ids": {"a": null, "b": null}}]));
    assert!(answers[7]["id"].is_string(), "{}", answers[7]);
    assert_eq!(retained(&server, "a").await, [json!("1"), json!(2), json!(3), json!(6)]);
}

#[tokio::test]
async fn a_topic_in_a_body_may_contain_a_slash() {
    let server = Server::start().await;
    answers(&send(&server, JSON, r#"[{"topic":"a/b","data":1}]"#).await);
    let page = get(&server, "/events?topic=a/b&after=0").answer().await.json();
    assert_eq!(page["messages"][0]["topic"], "a/b");
    assert_eq!(envelope_in(&server, "a/b").await["data"], 1, "{}", topic_path("a/b"));
}

#[tokio::test]
async fn a_message_is_published_before_the_request_has_ended() {
    let server = Server::start().await;
    let pieces = [
        (
            NDJSON,
            [
                "{\"topic\":\"a\",\"data\":1}\n{\"topic\"",
                ":\"a\",\"data\":2}\n",
                "{\"topic\":\"a\",\"data\":3}",
            ],
        ),
        (
            JSON,
            [
                "[{\"topic\":\"a\",\"data\":1},{\"topic\"",
                ":\"a\",\"data\":2},",
                "{\"topic\":\"a\",\"data\":3}]",
            ],
        ),
    ];
    for (content_type, [first, second, third]) in pieces {
        let mut reader = Reader::open(&server, Transport::Ndjson, "topic=a").await;
        let (body, pieces) = mpsc::channel::<Result<Bytes, io::Error>>(1);
        let pieces = stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
        let request = post(&server, "/publish").header("content-type", content_type);
        let answer = tokio::spawn(request.body(Body::wrap_stream(pieces)).answer());
        for (number, piece) in [(1, first), (2, second)] {
            body.send(Ok(piece.into())).await.expect("the request is still open");
            assert_eq!(reader.next().await["data"], number, "{content_type}");
        }
        assert!(!answer.is_finished(), "{content_type}: the answer comes after the body");
        body.send(Ok(third.into())).await.expect("the request is still open");
        drop(body);
        assert_eq!(answers(&within("the answer", answer).await.expect("no panic")).len(), 3);
        assert_eq!(reader.next().await["data"], 3, "{content_type}");
    }
}

#[tokio::test]
async fn a_message_is_published_to_up_to_1_000_topics() {
    let server = Server::start().await;
    let asked = async |count: usize| {
        let topics: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
        send(&server, "application/json", json!([{"topics": topics, "data": 1}]).to_string()).await.json()
    };
    assert_eq!(asked(1_000).await[0]["ids"].as_object().expect("ids").len(), 1_000);
    assert_eq!(asked(1_001).await[0]["code"], "bad_request");
}

#[tokio::test]
async fn a_problem_quotes_little_of_the_request() {
    let server = Server::start().await;
    let long = "x".repeat(50_000);
    let items =
        json!([{"topic": long, "data": 1}, {long.clone(): 1}, {"topic": "a", "data": 1, "encoding": long}]);
    let answers = send(&server, "application/json", items.to_string()).await.json();
    for answer in answers.as_array().expect("an array") {
        assert_eq!(answer["code"], "bad_request");
        assert!(text(&answer["detail"]).chars().count() <= 401, "{answer}");
    }
}
