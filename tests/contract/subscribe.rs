//! The topics of a subscription, and its transport.

use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, get, post, publish, publish_all, text, topic_path, with_query},
    reader::{Events, Lines, Reader, Socket, Stream, bytes_of, refusal},
    support::{Server, client::Transport},
};

const SSE: &str = "text/event-stream; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";

/// The content type of the answer to a subscription, whose body may be endless.
async fn content_type(request: reqwest::RequestBuilder) -> String {
    let stream = Stream::of(request).await;
    stream.headers["content-type"].to_str().expect("visible ASCII").to_owned()
}

#[tokio::test]
async fn accept_chooses_the_first_transport_that_the_server_speaks() {
    let server = Server::start().await;
    for (accept, expected) in [
        ("text/event-stream", SSE),
        ("Text/Event-Stream", SSE),
        ("application/x-ndjson", NDJSON),
        ("application/ndjson", NDJSON),
        ("application/jsonl;q=0.5, text/event-stream", NDJSON),
        ("application/json", JSON),
        ("*/*", JSON),
        ("text/html", JSON),
        ("", JSON),
        ("text/html, text/event-stream;q=0.5, application/x-ndjson", SSE),
        ("image/png, application/x-ndjson, text/event-stream", NDJSON),
    ] {
        for path in ["/topics/a?wait=0", "/topics/a.*?wait=0", "/events?topic=a&wait=0"] {
            let request = get(&server, path).header("accept", accept);
            assert_eq!(content_type(request).await, expected, "{accept:?} {path}");
        }
        let request =
            post(&server, "/events").header("accept", accept).json(&json!({"topics": ["a"], "wait": 0}));
        assert_eq!(content_type(request).await, expected, "{accept:?}");
    }
}

#[tokio::test]
async fn transport_in_the_query_or_the_body_overrides_accept() {
    let server = Server::start().await;
    for (name, expected) in [("sse", SSE), ("ndjson", NDJSON), ("poll", JSON)] {
        for accept in ["text/event-stream", "application/x-ndjson", "*/*"] {
            for path in ["/topics/a?wait=0", "/events?topic=a&wait=0"] {
                let request = get(&server, &format!("{path}&transport={name}")).header("accept", accept);
                assert_eq!(content_type(request).await, expected, "{name} {accept} {path}");
            }
            let body = json!({"topics": ["a"], "wait": 0, "transport": name});
            let request = post(&server, "/events").header("accept", accept).json(&body);
            assert_eq!(content_type(request).await, expected, "{name} {accept}");
        }
    }
    for wrong in ["", "websocket", "SSE", "xml"] {
        let answer = get(&server, &format!("/topics/a?transport={wrong}")).answer().await;
        assert!(text(&answer.problem(400, "bad_request")["detail"]).contains("transport"), "{wrong}");
    }
}

#[tokio::test]
async fn many_topics_and_patterns_come_in_one_stream_in_the_order_of_ids() {
    let server = Server::start().await;
    let mut expected = Vec::new();
    for round in 0..40 {
        let topic = ["a", "b.1", "not.this.one", "b.2", "b", "c.1.2"][round % 6];
        let id = publish(&server, topic, "x").await;
        if topic != "not.this.one" && topic != "b" {
            expected.push(id);
        }
    }
    for transport in Transport::ALL {
        let mut reader = Reader::open(&server, transport, "topic=a&topic=b.*&topic=c.**&after=0").await;
        assert_eq!(reader.ids(expected.len()).await, expected, "{transport}");
    }
}

#[tokio::test]
async fn a_message_comes_once_even_if_several_patterns_match() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        let filters = "topic=a.b&topic=a.b&topic=a.*&topic=a.**&topic=*.b&topic=**";
        let mut late = publish_all(&server, "a.b", 1..=3).await;
        let cursor = late.pop().expect("three");
        let mut live = Reader::open(&server, transport, &format!("{filters}&after={cursor}")).await;
        let ids = publish_all(&server, "a.b", 4..=6).await;
        assert_eq!(live.ids(3).await, ids, "{transport}: live");
        let mut replay = Reader::open(&server, transport, &format!("{filters}&after={cursor}")).await;
        assert_eq!(replay.ids(3).await, ids, "{transport}: replayed");
        let next = publish(&server, "a.b", "next").await;
        assert_eq!(live.ids(1).await, [next.as_str()], "{transport}");
        assert_eq!(replay.ids(1).await, [next.as_str()], "{transport}");
    }
}

const NAMES: [&str; 7] = ["a", "a.b", "a.b.c", "a.b.c.d", "x.b", "x", "a.$b"];

/// Patterns, each with the names that it matches.
const PATTERNS: [(&str, &[&str]); 8] = [
    ("*", &["a", "x"]),
    ("**", &NAMES),
    ("a.*", &["a.b", "a.$b"]),
    ("a.**", &["a.b", "a.b.c", "a.b.c.d", "a.$b"]),
    ("*.b", &["a.b", "x.b"]),
    ("a.*.c", &["a.b.c"]),
    ("*.*.**", &["a.b.c", "a.b.c.d"]),
    ("A.*", &[]),
];

#[tokio::test]
async fn wildcards_match_retained_messages_by_segments() {
    let server = Server::start().await;
    for name in NAMES {
        publish(&server, name, name).await;
    }
    for (pattern, expected) in PATTERNS {
        let page = get(&server, &format!("{}?after=0&wait=0", topic_path(pattern))).answer().await.json();
        let messages = page["messages"].as_array().expect("messages");
        let found: Vec<_> = messages.iter().map(|message| text(&message["data"])).collect();
        assert_eq!(found, expected, "{pattern}");
    }
}

#[tokio::test]
async fn wildcards_match_live_messages_by_segments() {
    let server = Server::start().await;
    for (pattern, expected) in PATTERNS {
        for transport in Transport::ALL {
            let mut live = Reader::open(&server, transport, &format!("topic={pattern}&topic=end")).await;
            for name in NAMES {
                publish(&server, name, name).await;
            }
            publish(&server, "end", "end").await;
            for name in expected.iter().chain(&["end"]) {
                assert_eq!(live.next().await["data"], *name, "{transport} {pattern}");
            }
        }
    }
}

#[tokio::test]
async fn wildcards_do_not_match_a_topic_that_begins_with_a_dollar() {
    let server = Server::start().await;
    let mut readers = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        readers.push(Reader::open(&server, transport, "topic=*&topic=**&topic=*.ready").await);
    }
    // The proof of readiness publishes to a reserved topic.
    assert_eq!(get(&server, "/health/ready").answer().await.status, 200);
    publish(&server, "a", "next").await;
    for mut reader in readers {
        assert_eq!(reader.next().await["data"], "next");
    }
}

#[tokio::test]
async fn an_invalid_topic_or_pattern_is_refused() {
    let server = Server::start().await;
    for filter in ["a*", "*a", "***", "**.a", "a.**.b", "a..b", "", "a,b", "a b", "{x}"] {
        for transport in Transport::ALL {
            let path = with_query("/events", &[("topic", "a"), ("topic", filter)]);
            refusal(&server, transport, &path, &[]).await.problem(400, "bad_request");
            if !filter.is_empty() {
                refusal(&server, transport, &topic_path(filter), &[]).await.problem(400, "bad_request");
            }
        }
        let body = json!({"topics": ["a", filter]});
        post(&server, "/events").json(&body).answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn a_websocket_or_a_stream_may_begin_without_a_topic_and_a_poll_may_not() {
    let server = Server::start().await;
    refusal(&server, Transport::Poll, "/events", &[]).await.problem(400, "bad_request");
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let reader = Reader::open(&server, transport, "").await;
        assert_eq!(reader.opening()["type"], "open", "{transport}");
    }
    for body in [json!({}), json!({"topics": []})] {
        post(&server, "/events").json(&body).answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn post_events_takes_more_topics_than_a_url() {
    let server = Server::start().await;
    let topics: Vec<_> = (0..5_000).map(|number| format!("a.topic.with.a.long.name.{number}")).collect();
    let ids = [publish(&server, &topics[7], "x").await, publish(&server, &topics[4_999], "y").await];
    let body = json!({"topics": topics, "after": "0"});
    for transport in ["sse", "ndjson", "poll"] {
        let mut body = body.clone();
        body["transport"] = json!(transport);
        let stream = Stream::of(post(&server, "/events").json(&body)).await;
        let mut reader = match transport {
            "sse" => Reader::Sse(Box::new(Events::of(stream))),
            "ndjson" => Reader::Ndjson(Box::new(Lines::of(stream))),
            _ => {
                let page: Value = serde_json::from_slice(&bytes_of(stream.chunks).await).expect("JSON");
                assert_eq!(page["messages"].as_array().map(Vec::len), Some(2), "{page}");
                continue;
            }
        };
        assert_eq!(reader.next().await["type"], "open", "{transport}");
        assert_eq!(reader.ids(2).await, ids, "{transport}");
    }
}

#[tokio::test]
async fn the_body_of_events_has_the_options_of_the_query() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    let body = json!({"topics": ["a"], "after": ids[0], "limit": 2, "wait": 0});
    let page = post(&server, "/events").json(&body).answer().await.json();
    assert_eq!((page["messages"].as_array().map(Vec::len), &page["cursor"]), (Some(2), &json!(ids[2])));
    let body = json!({"topics": ["a"], "last": 1, "transport": "sse", "format": "raw"});
    let mut events = Events::of(Stream::of(post(&server, "/events").json(&body)).await);
    assert_eq!(events.next().await.event.as_deref(), Some("rejoin.open"));
    assert_eq!(events.next().await.data.as_deref(), Some("5"));
    for wrong in [
        json!({"topics": ["a"], "limit": 0}),
        json!({"topics": ["a"], "wait": 61}),
        json!({"topics": ["a"], "transport": "x"}),
        json!({"topics": ["a"], "format": "x"}),
        json!({"topics": "a"}),
        json!({"topics": ["a"], "nonsense": 1}),
        json!([]),
        json!(7),
    ] {
        post(&server, "/events").json(&wrong).answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn query_and_body_are_read_together_and_an_option_in_both_is_refused() {
    let server = Server::start().await;
    for topic in ["a", "b", "c"] {
        publish(&server, topic, topic).await;
    }
    let body = json!({"topics": ["b"], "after": "0"});
    let page = post(&server, "/events?topic=a&wait=0").json(&body).answer().await.json();
    let messages = page["messages"].as_array().expect("messages");
    let found: Vec<_> = messages.iter().map(|message| text(&message["data"])).collect();
    assert_eq!(found, ["a", "b"]);
    for (query, field) in [
        ("after=0", json!({"after": "0"})),
        ("last=1", json!({"last": 1})),
        ("since=1h", json!({"since": "1h"})),
        ("wait=0", json!({"wait": 0})),
        ("limit=1", json!({"limit": 1})),
        ("transport=poll", json!({"transport": "poll"})),
        ("format=raw", json!({"format": "raw"})),
    ] {
        let mut body = field;
        body["topics"] = json!(["a"]);
        let answer = post(&server, &format!("/events?{query}")).json(&body).answer().await;
        answer.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn the_body_of_events_may_have_up_to_1_mib() {
    let server = Server::start().await;
    let padded = |bytes: usize| {
        let body = r#"{"topics":["a"]"#.to_owned();
        format!("{body}{}}}", " ".repeat(bytes - body.len() - 1))
    };
    let send = async |bytes: usize| {
        let request = post(&server, "/events?wait=0").header("content-type", JSON);
        request.body(padded(bytes)).answer().await
    };
    assert_eq!(send(1 << 20).await.status, 200);
    send((1 << 20) + 1).await.problem(413, "too_large");
}

#[tokio::test]
async fn transport_does_not_override_an_upgrade() {
    let server = Server::start().await;
    for name in ["sse", "ndjson", "poll"] {
        let socket = Socket::open(&server, &format!("/topics/a?transport={name}")).await;
        assert_eq!(socket.opening["type"], "open", "{name}");
    }
}

#[tokio::test]
async fn the_body_of_events_is_json() {
    let server = Server::start().await;
    let send = async |content_type: Option<&str>, body: &'static str| -> Answer {
        let request = post(&server, "/events?wait=0").body(body);
        match content_type {
            Some(content_type) => request.header("content-type", content_type).answer().await,
            None => request.answer().await,
        }
    };
    for content_type in [None, Some("text/plain"), Some("application/x-ndjson")] {
        send(content_type, r#"{"topics":["a"]}"#).await.problem(415, "unsupported_media_type");
    }
    for body in ["", "{", r#"{"topics":["a"]"#] {
        send(Some(JSON), body).await.problem(400, "bad_request");
    }
    let answer = send(Some("application/json; charset=utf-8"), r#"{"topics":["a"]}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_topic_in_a_path_is_percent_encoded() {
    let server = Server::start().await;
    for topic in ["a/b", "Größe.β", "a?b#c", "50%25", "a+b", "a\u{2060}b"] {
        let id = publish(&server, topic, "x").await;
        let mut events =
            Events::open(&server, &format!("{}?after=0&format=envelope", topic_path(topic))).await;
        let message = events.next_frame().await;
        assert_eq!((text(&message["topic"]), text(&message["id"])), (topic.to_owned(), id.clone()));
        let path = with_query("/events", &[("topic", topic), ("after", "0")]);
        assert_eq!(Lines::open(&server, &path).await.next().await["id"], id);
    }
}

#[tokio::test]
async fn a_request_names_up_to_10_000_topics() {
    let server = Server::start().await;
    let asked = async |count: usize| {
        let topics: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
        post(&server, "/events").json(&json!({"topics": topics, "after": "0", "wait": 0})).answer().await
    };
    assert_eq!(asked(10_000).await.status, 200);
    asked(10_001).await.problem(400, "bad_request");
}

#[tokio::test]
async fn a_request_names_up_to_100_patterns_with_a_wildcard() {
    let server = Server::start().await;
    let topics = (0..9_000).map(|number| format!("t{number}"));
    let named = |wildcards| topics.clone().chain((0..wildcards).map(|number| format!("p{number}.*")));
    let asked = async |wildcards| {
        let topics: Vec<_> = named(wildcards).collect();
        post(&server, "/events").json(&json!({"topics": topics, "after": "0", "wait": 0})).answer().await
    };
    assert_eq!(asked(100).await.status, 200);
    asked(101).await.problem(400, "bad_request");
    let query: Vec<_> = named(101).skip(9_000).map(|name| format!("topic={name}")).collect();
    get(&server, &format!("/events?{}", query.join("&"))).answer().await.problem(400, "bad_request");
}

#[tokio::test]
async fn a_query_that_is_not_utf_8_is_refused() {
    let server = Server::start().await;
    for path in ["/events?topic=%ff", "/topics/a?after=%c3", "/topics?after=%ff", "/topics/a?%ff=1&wait=0"] {
        get(&server, path).answer().await.problem(400, "bad_request");
    }
    post(&server, "/topics/a?event=%ff").body("x").answer().await.problem(400, "bad_request");
}
