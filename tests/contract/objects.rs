//! JSON from clients: objects are objects, and a byte order mark is no mystery.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    ask::{Ask, get, post, retained, text},
    reader::Socket,
    support::Server,
};

/// The code that serde derives reads a struct from an array too.
#[tokio::test]
async fn an_array_is_no_object() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events").await;
    for command in [r#"["ping",1]"#, r#"["publish",1]"#, r#"["subscribe"]"#, r#"[{"type":"ping"}]"#] {
        socket.send_message(Message::text(command)).await;
        let answer = socket.next().await;
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!("bad_request")),
            "{command}: {answer}"
        );
    }
    let element = r#"["a",null,1,null,null,null,null,null,null,false,null,null]"#;
    for (content_type, body) in
        [("application/json", format!("[{element}]")), ("application/x-ndjson", element.to_owned())]
    {
        let request = post(&server, "/publish").header("content-type", content_type).body(body);
        let answers = request.answer().await.json();
        assert_eq!(answers[0]["code"], "bad_request", "{answers}");
        assert!(text(&answers[0]["detail"]).contains("an object"), "{answers}");
    }
    assert!(retained(&server, "a").await.is_empty());
    let body = r#"[["a"],"0",null,null,null,"poll",null,0,null]"#;
    let request = post(&server, "/events").header("content-type", "application/json").body(body);
    let problem = request.answer().await.problem(400, "bad_request");
    assert!(text(&problem["detail"]).contains("an object"), "{problem}");
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_ignored_unless_the_json_is_a_payload() {
    let server = Server::start().await;
    let with = |path: &str, content_type: &'static str, body: &str| {
        post(&server, path).header("content-type", content_type).body(format!("\u{feff}{body}"))
    };
    let item = r#"{"topic":"a","data":1}"#;
    for (content_type, body) in
        [("application/json", format!("[{item}]")), ("application/x-ndjson", item.to_owned())]
    {
        let answer = with("/publish", content_type, &body).answer().await;
        assert_eq!((answer.status, &answer.json()[0]["topic"]), (200, &json!("a")), "{answer:?}");
    }
    let page = with("/events", "application/json", r#"{"topics":["a"],"after":"0","wait":0}"#).answer().await;
    assert_eq!(page.json()["messages"].as_array().map(Vec::len), Some(2), "{page:?}");

    // A payload is stored as it came, and not every reader of it would ignore the mark.
    for content_type in ["application/json", "application/problem+json"] {
        let problem = with("/topics/a", content_type, "{}").answer().await.problem(400, "bad_request");
        assert!(text(&problem["detail"]).contains("byte order mark"), "{problem}");
    }
    with("/topics/b", "text/plain", "x").answer().await.id();
    assert_eq!(retained(&server, "b").await, ["\u{feff}x"]);
    assert_eq!(get(&server, "/topics/a?after=0&wait=0").answer().await.json()["messages"][1]["data"], 1);
}
