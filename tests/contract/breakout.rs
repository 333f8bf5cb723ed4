//! No payload, topic or event can break out of its Server-Sent Event. Three parsers of other projects read
//! the same bytes, cut into pieces of different sizes, and see exactly what was published.

use std::{convert::Infallible, io};

use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sse_stream::SseByteStream;

use crate::{
    ask::{Ask, get, post, publish, publish_as, topic_path, with_query, within},
    reader::Stream,
    support::{Server, client::Transport},
};

const TEXTS: &[&str] = &[
    "",
    " ",
    "  two spaces first",
    "\ttab",
    ":",
    ": a comment",
    "data: x",
    "data:x\ndata:y",
    "id: 1",
    "id",
    "event: rejoin.closing",
    "retry: 1",
    "a\nb",
    "a\r\nb",
    "a\rb",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\r",
    "\r\n\r\n",
    "\n\r",
    "ends\n",
    "ends\r",
    "ends\r\n",
    "\nbegins",
    "a\n\nb",
    "\n\nid: 1\nevent: x\ndata: y\n\n",
    "\r\rid: 1\revent: x\rdata: y\r\r",
    "\r\n\r\nid: 1\r\nevent: x\r\ndata: y\r\n\r\n",
    "x\n\nretry: 1\n\n",
    "\u{feff}",
    "\u{feff}data: x",
    "a\u{2028}b\u{2029}c\u{85}d",
    "\u{b}\u{c}\u{1c}\u{1e}",
    "\u{1}\u{7f}\u{9b}",
    "😀 Größe",
    "\"quoted\\\"",
    "</script><!--",
];

const END: &str = "the end";

/// An event as a parser saw it: type, id and data.
type Seen = (String, String, String);

/// The bytes of a stream, up to the event whose data is the end mark.
async fn bytes_up_to_the_end(server: &Server, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut chunks = Stream::open(server, Transport::Sse, path, headers).await.chunks;
    let mut bytes = Vec::new();
    while !(bytes.ends_with(b"\n\n") && String::from_utf8_lossy(&bytes).contains(END)) {
        let chunk = within("the last event", chunks.next()).await;
        bytes.extend_from_slice(&chunk.expect("an open stream").expect("a stream that is not cut"));
    }
    bytes
}

/// The events that each of the three parsers sees, if the bytes come in pieces of this size.
async fn parsed(bytes: &[u8], size: usize) -> [(&'static str, Vec<Seen>); 3] {
    let pieces = || stream::iter(bytes.chunks(size).map(Bytes::copy_from_slice).collect::<Vec<_>>());
    let eventsource_stream = pieces().map(Ok::<_, Infallible>).eventsource().map(|event| {
        let event = event.expect("a well-formed stream");
        (event.event, event.id, event.data)
    });
    let sse_stream = SseByteStream::new(pieces().map(Ok::<_, io::Error>)).map(|event| {
        let event = event.expect("a well-formed stream");
        let name = event.event.unwrap_or_else(|| "message".to_owned());
        (name, event.id.expect("an id"), event.data.expect("data"))
    });
    let sseer = sseer::event_stream::EventStream::new(pieces().map(Ok::<_, Infallible>)).map(|event| {
        let event = event.unwrap_or_else(|_| panic!("a well-formed stream"));
        (event.event.to_string(), event.id.to_string(), event.data.to_string())
    });
    [
        ("eventsource-stream", eventsource_stream.collect().await),
        ("sse-stream", sse_stream.collect().await),
        ("sseer", sseer.collect().await),
    ]
}

/// Asserts the events after the opening, with every parser and in pieces of several sizes.
async fn assert_seen(bytes: &[u8], expected: &[Seen]) {
    assert!(!bytes.contains(&b'\r') && !bytes.contains(&0), "LF only, and no NUL");
    for size in [1, 2, 3, 7, 64, 1_000, usize::MAX] {
        for (parser, seen) in parsed(bytes, size).await {
            assert_eq!(seen[0].0, "rejoin.open", "{parser} in pieces of {size}");
            for (seen, expected) in seen[1..].iter().zip(expected) {
                assert_eq!(seen, expected, "{parser} in pieces of {size}");
            }
            assert_eq!(seen.len() - 1, expected.len(), "{parser} in pieces of {size}: {:?}", seen.last());
        }
    }
}

/// Replaces line ends as Server-Sent Events do.
fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

#[tokio::test]
async fn a_text_cannot_break_out_of_a_raw_event() {
    let server = Server::start().await;
    let mut expected = Vec::new();
    for text in TEXTS.iter().chain(&[END]) {
        let id = publish(&server, "a", *text).await;
        expected.push(("message".to_owned(), id, with_line_feeds(text)));
    }
    let bytes = bytes_up_to_the_end(&server, "/topics/a?after=0", &[]).await;
    assert_seen(&bytes, &expected).await;
}

#[tokio::test]
async fn a_text_cannot_break_out_of_an_envelope_and_is_exact_there() {
    let server = Server::start().await;
    let mut expected = Vec::new();
    for text in TEXTS.iter().chain(&["a\0b", END]) {
        let id = publish(&server, "a", *text).await;
        expected.push((id, json!(text)));
    }
    let bytes = bytes_up_to_the_end(&server, "/events?topic=a&after=0", &[]).await;
    assert_envelopes(&bytes, &expected).await;
}

/// Asserts the data of the envelopes.
async fn assert_envelopes(bytes: &[u8], expected: &[(String, Value)]) {
    let as_seen = |(id, data): &(String, Value)| {
        let envelope = json!({"type": "message", "topic": "a", "id": id, "data": data});
        (id.clone(), envelope)
    };
    let expected: Vec<_> = expected.iter().map(as_seen).collect();
    assert!(!bytes.contains(&b'\r') && !bytes.contains(&0), "LF only, and no NUL");
    for size in [1, 7, 1_000, usize::MAX] {
        for (parser, seen) in parsed(bytes, size).await {
            assert_eq!(seen.len() - 1, expected.len(), "{parser} in pieces of {size}");
            for ((event, id, data), expected) in seen[1..].iter().zip(&expected) {
                assert_eq!(event, "message", "{parser} in pieces of {size}");
                let data = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data:?}"));
                assert_eq!((id.clone(), data), *expected, "{parser} in pieces of {size}");
            }
        }
    }
}

#[tokio::test]
async fn json_cannot_break_out_however_it_is_formatted() {
    let server = Server::start().await;
    let laid_out = [
        "{\n\n\"id\": 1\n}",
        "[\r\r1\r\r]",
        "\n\n1\n\n",
        "\r\n{ \"a\"\r\n\r\n: 2 }\r\n",
        "\n\n\"id: 1\"\n\n",
        "{\"data\n: \\n\\nid: 1\":0}",
        " 7",
    ];
    // One of them is not JSON, because a string cannot contain a line end.
    let valid = laid_out.iter().filter(|json| serde_json::from_str::<Value>(json).is_ok());
    let mut json: Vec<_> = valid.map(|json| (*json).to_owned()).collect();
    assert_eq!(json.len(), laid_out.len() - 1);
    json.extend(TEXTS.iter().chain(&["a\0b", END]).map(|text| json!(text).to_string()));

    let (mut raw, mut envelopes) = (Vec::new(), Vec::new());
    for json in json {
        let id = publish_as(&server, "a", "application/json", json.clone()).await;
        raw.push(("message".to_owned(), id.clone(), with_line_feeds(&json)));
        envelopes.push((id, serde_json::from_str(&json).expect("JSON")));
    }
    assert_seen(&bytes_up_to_the_end(&server, "/topics/a?after=0", &[]).await, &raw).await;
    assert_envelopes(&bytes_up_to_the_end(&server, "/events?topic=a&after=0", &[]).await, &envelopes).await;
}

#[tokio::test]
async fn an_event_type_cannot_break_out() {
    let server = Server::start().await;
    let events = [
        " leading",
        "trailing ",
        ":",
        ": x",
        "data: x",
        "id: 1",
        "a: b",
        "\u{2028}",
        "\u{feff}",
        "\"\\",
        "Größe",
        "rejoin",
        "opens",
        "é\u{200b}",
    ];
    let mut expected = Vec::new();
    for event in events {
        let answer = post(&server, &with_query("/topics/a", &[("event", event)])).body("x").answer().await;
        assert_eq!(answer.status, 201, "{event:?}: {answer:?}");
        expected.push((event.to_owned(), answer.id(), "x".to_owned()));
    }
    expected.push(("message".to_owned(), publish(&server, "a", END).await, END.to_owned()));
    assert_seen(&bytes_up_to_the_end(&server, "/topics/a?after=0", &[]).await, &expected).await;
    let page = get(&server, "/topics/a?after=0").answer().await.json();
    for (message, (event, ..)) in page["messages"].as_array().expect("messages").iter().zip(&expected) {
        assert!(message["event"] == *event || message["event"].is_null(), "{message}");
    }
}

#[tokio::test]
async fn a_topic_cannot_break_out() {
    let server = Server::start().await;
    let topics =
        ["data:x", ":", "id:1", "\"", "\\", "\\n\\nid:1", "a/b", "\u{feff}", "\u{200b}", "</script>"];
    for topic in topics {
        let id = publish(&server, topic, END).await;
        let path = format!("{}?after=0&format=envelope", topic_path(topic));
        let bytes = bytes_up_to_the_end(&server, &path, &[]).await;
        for (parser, seen) in parsed(&bytes, 5).await {
            assert_eq!(seen.len(), 2, "{parser} {topic:?}");
            let envelope: Value = serde_json::from_str(&seen[1].2).expect("JSON");
            let expected = json!({"type": "message", "topic": topic, "id": id, "data": END});
            assert_eq!(envelope, expected, "{parser}");
        }
    }
}

#[tokio::test]
async fn a_cursor_cannot_break_out_of_the_gap_that_repeats_it() {
    let server = Server::start().await;
    publish(&server, "a", END).await;
    for sent in ["data: x", ": x", "\"},{\"a\":\"", "a\tb", "\\n\\nid: 1"] {
        let bytes = bytes_up_to_the_end(&server, "/topics/a", &[("last-event-id", sent)]).await;
        for (parser, seen) in parsed(&bytes, 5).await {
            let names: Vec<_> = seen.iter().map(|(event, ..)| event.as_str()).collect();
            assert_eq!(names, ["rejoin.open", "rejoin.gap", "message"], "{parser} {sent:?}");
            let gap: Value = serde_json::from_str(&seen[1].2).expect("JSON");
            let repeated = sent.replace('\t', " ");
            assert_eq!(
                (&gap["after"], &gap["reason"]),
                (&json!(repeated), &json!("unknown_cursor")),
                "{parser}"
            );
        }
    }
}
