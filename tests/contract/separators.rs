//! U+0085, U+2028 and U+2029: every transport escapes them in JSON, and raw Server-Sent Events do not.

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    ask::{Ask, get, post, publish_as, within},
    reader::{Events, Lines, Socket, Stream},
    support::Server,
};
use futures_util::StreamExt;

const TEXT: &str = "a\u{85}b\u{2028}c\u{2029}“d”\u{a0}é\n";

/// The text of a body that stays open, up to and including `last`.
async fn text_up_to(last: &str, request: RequestBuilder) -> String {
    let mut stream = Stream::of(request).await;
    let mut bytes = Vec::new();
    loop {
        let chunk = within(last, stream.chunks.next()).await.expect("it stays open").expect("it is not cut");
        bytes.extend_from_slice(&chunk);
        let text = String::from_utf8_lossy(&bytes);
        if text.contains(last) {
            return text.into_owned();
        }
    }
}

#[track_caller]
fn assert_escaped(text: &str) {
    assert!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}']), "{text:?}");
    assert!(text.contains("\\u0085") && text.contains("\\u2028") && text.contains("\\u2029"), "{text:?}");
}

/// `iter_lines()` of httpx cut the envelope at these characters, and the client failed at the same cursor each
/// time it reconnected.
#[tokio::test]
async fn the_envelope_has_no_character_that_a_client_takes_for_a_line_end() {
    let server = Server::start().await;
    let data = json!({TEXT: [TEXT], "n": 1});
    publish_as(&server, "a", "text/plain", TEXT).await;
    publish_as(&server, "a", "application/json", data.to_string()).await;
    let named = "/topics/a?event=x%C2%85".replace("%C2%85", "%E2%80%A8");
    assert_eq!(post(&server, &named).body("last").answer().await.status, 201);
    let expected = [json!(TEXT), data, json!("last")];

    let poll = get(&server, "/topics/a?after=0&wait=0").answer().await;
    assert_escaped(poll.text());
    let messages = poll.json()["messages"].as_array().expect("messages").clone();
    assert_eq!(messages.iter().map(|message| message["data"].clone()).collect::<Vec<_>>(), expected);
    assert_eq!(messages[2]["event"], "x\u{2028}");

    for transport in ["ndjson", "sse"] {
        let path = format!("/events?topic=a&after=0&transport={transport}");
        assert_escaped(&text_up_to("\"last\"", get(&server, &path)).await);
    }
    let mut lines = Lines::open(&server, "/topics/a?after=0").await;
    let mut events = Events::open(&server, "/events?topic=a&after=0").await;
    let mut socket = Socket::open(&server, "/topics/a?after=0").await;
    for data in &expected {
        assert_eq!(&lines.next().await["data"], data);
        assert_eq!(&events.next_frame().await["data"], data);
        let Message::Text(text) = socket.next_data().await else { panic!("a text frame") };
        assert!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}']), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["data"], *data);
    }
}

#[tokio::test]
async fn raw_events_keep_these_characters() {
    let server = Server::start().await;
    publish_as(&server, "a", "text/plain", TEXT).await;
    let request = get(&server, "/topics/a?after=0&transport=sse");
    let text = text_up_to("“d”", request).await;
    assert!(text.contains(TEXT.trim_end_matches('\n')), "{text:?}");
}

#[tokio::test]
async fn a_gap_that_repeats_what_the_client_sent_has_none_of_them_either() {
    let server = Server::start().await;
    publish_as(&server, "a", "text/plain", "x").await;
    let path = "/events?topic=a&lastEventId=x%C2%85%E2%80%A8%E2%80%A9y&transport=ndjson";
    assert_escaped(&text_up_to("\"gap\"", get(&server, path)).await);
}
