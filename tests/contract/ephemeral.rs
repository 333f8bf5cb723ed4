//! Ephemeral messages, and messages that exclude a connection.

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, now, post, publish, publish_all, retained, text, until_served, with_query, within},
    reader::{Events, Reader, Socket},
    support::{Server, client::Transport},
};

/// The transports that tell a connection its name.
const NAMED: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

async fn announce(server: &Server, topic: &str, text: &'static str) {
    let answer = post(server, &format!("/topics/{topic}?ephemeral")).body(text).answer().await;
    assert_eq!((answer.status, answer.json()), (202, json!({"topic": topic})), "{answer:?}");
}

#[tokio::test]
async fn an_ephemeral_message_reaches_caught_up_readers_without_an_id() {
    let server = Server::start().await;
    for transport in NAMED {
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        let first = publish(&server, "a", "stored").await;
        assert_eq!(reader.ids(1).await, [first.as_str()], "{transport}");

        let typing = post(&server, "/topics/a?ephemeral&event=typing").body("passing").answer().await;
        assert_eq!(typing.status, 202, "{typing:?}");
        let expected =
            json!({"type": "message", "ephemeral": true, "topic": "a", "event": "typing", "data": "passing"});
        assert_eq!(reader.next().await, expected, "{transport}");
        assert_eq!(reader.cursor(), first, "{transport}: the cursor is unmoved");
        publish(&server, "a", "stored too").await;
        assert_eq!(reader.next().await["data"], "stored too", "{transport}");
    }
}

#[tokio::test]
async fn a_raw_event_of_an_ephemeral_message_repeats_the_cursor_as_its_id() {
    let server = Server::start().await;
    let mut events = Events::open(&server, "/topics/a").await;
    let cursor = events.cursor.clone();
    announce(&server, "a", "passing").await;
    let event = events.next().await;
    assert_eq!((event.data.as_deref(), event.id.as_deref()), (Some("passing"), Some(cursor.as_str())));
}

#[tokio::test]
async fn an_ephemeral_message_answers_a_held_poll_and_leaves_its_cursor() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    let poll = get(&server, &format!("/topics/a?after={cursor}&wait=60")).answer();
    let mut poll = std::pin::pin!(poll);
    // A poll counts as held a moment before it is caught up, so one message may come too early for it.
    let answer = within("the answer of the held poll", async {
        loop {
            announce(&server, "a", "passing").await;
            if let Some(answer) = poll.as_mut().now_or_never() {
                return answer;
            }
        }
    })
    .await;
    let page = answer.json();
    assert_eq!(page["cursor"], cursor, "{page}");
    let messages = page["messages"].as_array().expect("messages");
    assert!(!messages.is_empty(), "{page}");
    for message in messages {
        let expected = json!({"type": "message", "ephemeral": true, "topic": "a", "data": "passing"});
        assert_eq!(*message, expected);
    }
}

#[tokio::test]
async fn an_ephemeral_message_is_not_retained_and_leads_to_no_gap() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    announce(&server, "a", "passing").await;
    publish(&server, "a", "stored").await;
    announce(&server, "a", "passing").await;
    assert_eq!(retained(&server, "a").await, ["stored"]);
    for transport in Transport::ALL {
        let mut reader = Reader::open(&server, transport, &format!("topic=a&after={cursor}")).await;
        assert_eq!(reader.next().await["data"], "stored", "{transport}");
        let marker = publish(&server, "b", "x").await;
        let page = get(&server, &format!("/topics/b?after={marker}&wait=0")).answer().await.json();
        assert_eq!(page["messages"], json!([]));
    }
}

#[tokio::test]
async fn an_ephemeral_message_takes_no_id_from_the_topic() {
    let server = Server::start().await;
    let newest = publish(&server, "a", "stored").await;
    announce(&server, "a", "passing").await;
    let quoted = format!("\"{newest}\"");
    let answer = post(&server, "/topics/a").header("if-match", quoted).body("next").answer().await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let answer = post(&server, "/topics/b?ephemeral").body("passing").answer().await;
    assert_eq!(answer.status, 202);
    let answer = post(&server, "/topics/b").header("if-match", "\"0\"").body("first").answer().await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[tokio::test]
async fn the_flag_is_on_when_empty_1_or_true_and_off_when_0_or_false() {
    let server = Server::start().await;
    for on in ["ephemeral", "ephemeral=", "ephemeral=1", "ephemeral=true"] {
        let answer = post(&server, &format!("/topics/a?{on}")).body("x").answer().await;
        assert_eq!(answer.status, 202, "{on}: {answer:?}");
    }
    for off in ["ephemeral=0", "ephemeral=false"] {
        let answer = post(&server, &format!("/topics/a?{off}")).body("x").answer().await;
        assert_eq!(answer.status, 201, "{off}: {answer:?}");
    }
    for wrong in ["ephemeral=yes", "ephemeral=TRUE", "ephemeral=2", "ephemeral=1&ephemeral=1"] {
        let problem = post(&server, &format!("/topics/a?{wrong}")).body("x").answer().await;
        let problem = problem.problem(400, "bad_request");
        assert!(text(&problem["detail"]).contains("ephemeral"), "{wrong}: {problem}");
    }
    assert_eq!(retained(&server, "a").await.len(), 2);
}

#[tokio::test]
async fn an_ephemeral_message_with_a_key_or_a_condition_is_refused() {
    let server = Server::start().await;
    for (topic, name, value) in [("a", "idempotency-key", "k"), ("b", "if-match", "\"0\"")] {
        let path = format!("/topics/{topic}?ephemeral");
        let request = post(&server, &path).header(name, value).body("x");
        request.answer().await.problem(400, "bad_request");
        let request = post(&server, &format!("{path}=false")).header(name, value).body("x");
        assert_eq!(request.answer().await.status, 201, "{name}");
    }
    for field in ["idempotency_key", "if_match"] {
        let item = json!([{"topic": "c", "data": 1, "ephemeral": true, field: "0"}]);
        let answer = post(&server, "/publish").json(&item).answer().await;
        assert_eq!(answer.json()[0]["code"], "bad_request", "{answer:?}");
    }
}

fn connection(opening: &Value) -> String {
    text(&opening["connection"])
}

#[tokio::test]
async fn only_the_excluded_connection_does_not_get_the_message() {
    let server = Server::start().await;
    for transport in NAMED {
        let mut excluded = Reader::open(&server, transport, "topic=a&topic=b.*").await;
        let mut other = Reader::open(&server, transport, "topic=a&topic=b.*").await;
        let name = connection(excluded.opening());
        assert_ne!(name, connection(other.opening()), "{transport}");
        for path in ["/topics/a?", "/topics/b.1?", "/topics/a?ephemeral&"] {
            let request = post(&server, &format!("{path}exclude={name}")).body("not for one");
            assert!(matches!(request.answer().await.status, 201 | 202));
        }
        publish(&server, "a", "for all").await;
        assert_eq!(excluded.next().await["data"], "for all", "{transport}");
        for _ in 0..3 {
            assert_eq!(other.next().await["data"], "not for one", "{transport}");
        }
        assert_eq!(other.next().await["data"], "for all", "{transport}");
    }
}

#[tokio::test]
async fn exclude_accepts_any_name_of_1_to_255_visible_ascii_characters() {
    let server = Server::start().await;
    let mut reader = Reader::open(&server, Transport::Ndjson, "topic=a").await;
    let longest = "x".repeat(255);
    for name in ["nobody", "00000000000000000000000000000000", "~", &longest] {
        let answer = post(&server, &with_query("/topics/a", &[("exclude", name)])).body("x").answer().await;
        assert_eq!(reader.ids(1).await, [answer.id()], "{name}");
    }
    let too_long = "x".repeat(256);
    for name in ["", "a b", "é", "a\n", &too_long] {
        let answer = post(&server, &with_query("/topics/a", &[("exclude", name)])).body("x").answer().await;
        answer.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn the_excluded_connection_does_not_get_the_message_late_either() {
    let server = Server::start().await;
    for filter in ["a", "*"] {
        let mut socket = Socket::open(&server, "/events").await;
        let name = connection(&socket.opening);
        let mut expected = Vec::new();
        // More than one read of the log brings, and more than the tail of a pattern holds.
        for round in 0..4 {
            let item = json!({"topic": "a", "data": round, "exclude": name});
            let answer = post(&server, "/publish").json(&vec![item; 100]).answer().await;
            assert_eq!(answer.status, 200);
            expected.extend(publish_all(&server, "a", 1..=5).await);
        }
        socket.send(json!({"type": "subscribe", "topic": filter, "after": socket.cursor})).await;
        for id in expected {
            let frame = socket.next().await;
            assert_eq!((&frame["type"], &frame["id"]), (&json!("message"), &json!(id)), "{filter}: {frame}");
        }
        assert_eq!(socket.next().await["type"], "subscribed", "{filter}");
    }
}

#[tokio::test]
async fn an_excluding_message_causes_no_gap_and_delays_no_reader() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let name = connection(&socket.opening);
    for _ in 0..3 {
        let answer = post(&server, &format!("/topics/a?exclude={name}")).body("x").answer().await;
        assert_eq!(answer.status, 201);
    }
    publish(&server, "a", "for all").await;
    assert_eq!(socket.next().await["data"], "for all");
    until_served(&server, 1).await;
    let mut again = Socket::open(&server, &format!("/topics/a?after={}", socket.cursor)).await;
    publish(&server, "a", "next").await;
    assert_eq!(again.next().await["data"], "next");
}
