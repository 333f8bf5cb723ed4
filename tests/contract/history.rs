//! `GET /topics/{topic}?before=`: the history of one topic, backwards.

use rejoin::log::LogError;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, delete_topic, get, number, publish, publish_all, request, text},
    failing::FailingServer,
    reader::Reader,
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
    },
};

/// The cursor that asks for the newest messages.
const NEWEST: &str = "9007199254740991";

async fn history(server: &Server, topic: &str, before: &str, limit: usize) -> Value {
    let answer = get(server, &format!("/topics/{topic}?before={before}&limit={limit}")).answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(answer.headers.get("etag").is_none(), "it has no cursor: {answer:?}");
    answer.json()
}

fn ids(page: &Value) -> Vec<String> {
    page["messages"].as_array().expect("messages").iter().map(|message| text(&message["id"])).collect()
}

#[tokio::test]
async fn the_history_comes_backwards_in_pages_up_to_its_beginning() {
    let server = Server::start().await;
    let published = publish_all(&server, "a", 1..=5).await;
    publish(&server, "b", "another topic").await;
    let message = |at: usize| json!({"type": "message", "topic": "a", "id": published[at], "data": (at + 1).to_string()});
    let first = history(&server, "a", NEWEST, 2).await;
    assert_eq!(first, json!({"messages": [message(3), message(4)], "before": published[3]}));
    let second = history(&server, "a", &text(&first["before"]), 2).await;
    assert_eq!(second, json!({"messages": [message(1), message(2)], "before": published[1]}));
    let last = history(&server, "a", &text(&second["before"]), 2).await;
    assert_eq!(last, json!({"messages": [message(0)], "beginning": true}));
    // A page that ends exactly at the beginning says so too.
    assert_eq!(history(&server, "a", &published[2], 2).await["beginning"], true);
    let nothing = json!({"messages": [], "beginning": true});
    assert_eq!(history(&server, "a", &published[0], 2).await, nothing);
    assert_eq!(history(&server, "never", NEWEST, 2).await, nothing);
}

#[tokio::test]
async fn a_history_that_has_lost_its_beginning_ends_in_one_gap() {
    let server = Server::with(|config| config.retain_messages = 3).await;
    let published = publish_all(&server, "a", 1..=5).await;
    let gap = |next: Value, reason: &str| json!([{"type": "gap", "topic": "a", "after": "0", "next": next, "reason": reason}]);
    let page = history(&server, "a", NEWEST, 3).await;
    assert_eq!(
        (ids(&page), &page["gaps"]),
        (published[2..].to_vec(), &gap(json!(published[2]), "retention"))
    );
    assert!(page.get("before").is_none() && page.get("beginning").is_none(), "{page}");
    let page = history(&server, "a", NEWEST, 2).await;
    assert_eq!((page.get("gaps"), &page["before"]), (None, &json!(published[3])), "the next page tells it");
    let page = history(&server, "a", &published[2], 2).await;
    assert_eq!(page, json!({"messages": [], "gaps": gap(Value::Null, "retention")}));

    delete_topic(&server, "a").await;
    let page = history(&server, "a", NEWEST, 2).await;
    assert_eq!(page, json!({"messages": [], "gaps": gap(Value::Null, "deleted")}));
    let id = publish(&server, "a", "again").await;
    assert_eq!(history(&server, "a", NEWEST, 2).await["gaps"], gap(json!(id), "deleted"));
    // An id from before this life of the store may have had messages before it.
    let old = (number(&published[0]) - 3_600_000_000).to_string();
    let page = history(&server, "b", &old, 2).await;
    let mut gap = gap(Value::Null, "restarted");
    gap[0]["topic"] = json!("b");
    assert_eq!(page, json!({"messages": [], "gaps": gap}));
}

#[tokio::test]
async fn live_continues_from_the_newest_message_of_the_first_page() {
    let server = Server::start().await;
    let published = publish_all(&server, "a", 1..=3).await;
    let page = history(&server, "a", NEWEST, 2).await;
    let next = publish(&server, "a", "live").await;
    let mut live = Reader::open(&server, Transport::Sse, &format!("topic=a&after={}", ids(&page)[1])).await;
    assert_eq!((ids(&page), live.ids(1).await), (published[1..].to_vec(), vec![next]));
}

#[tokio::test]
async fn an_answer_that_reaches_its_bound_is_cut_at_its_old_end() {
    let server = Server::start().await;
    let mut published = Vec::new();
    for _ in 0..40 {
        published.push(publish(&server, "a", "x".repeat(200_000)).await);
    }
    let first = history(&server, "a", NEWEST, 1000).await;
    // The message that reaches 4 MiB is the last one.
    assert_eq!(ids(&first), published[19..]);
    assert_eq!(first["before"], published[19]);
    let second = history(&server, "a", &published[19], 1000).await;
    assert_eq!(ids(&second), published[..19]);
    assert_eq!(second["beginning"], true);
}

#[tokio::test]
async fn anything_that_does_not_go_with_before_is_refused() {
    let server = Server::start().await;
    publish(&server, "a", "x").await;
    for path in [
        "/topics/*?before=5",
        "/topics/a?before=5&after=1",
        "/topics/a?before=5&after=0",
        "/topics/a?before=5&last=1",
        "/topics/a?before=5&since=1h",
        "/topics/a?before=5&wait=0",
        "/topics/a?before=5&lastEventId=1",
        "/topics/a?before=5&last_event_id=x",
        "/topics/a?before=5&transport=sse",
        "/topics/a?before=5&transport=ndjson",
        "/topics/a?before=5&before=6",
        "/topics/a?before=5&limit=0",
        "/topics/a?before=5&limit=1001",
        "/topics/a?before=",
        "/topics/a?before=x",
        "/topics/a?before=-1",
        "/topics/a?before=9007199254740992",
        "/topics/a?befor=5",
        "/events?topic=a&before=5",
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = request(&server, method.clone(), path).answer().await;
            assert_eq!(answer.status, 400, "{method} {path}: {answer:?}");
        }
    }
    for (name, value) in [
        ("last-event-id", "5"),
        ("last-event-id", "?"),
        ("accept", "text/event-stream"),
        ("accept", "application/x-ndjson"),
    ] {
        let answer = get(&server, "/topics/a?before=5").header(name, value).answer().await;
        let detail = text(&answer.problem(400, "bad_request")["detail"]);
        assert!(detail.starts_with("before: "), "{name}: {detail}");
    }
    let body = json!({"topics": ["a"], "before": "5"});
    let answer = request(&server, Method::POST, "/events").json(&body).answer().await;
    answer.problem(400, "bad_request");
    // An empty Last-Event-ID is none.
    let answer = get(&server, "/topics/a?before=5").header("last-event-id", " ").answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for path in ["/topics/a?before=5", "/events?topic=a&before=5"] {
        let handshake = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let asked =
            handshake.into_iter().fold(get(&server, path), |asked, (name, value)| asked.header(name, value));
        asked.answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn a_restart_in_order_hides_nothing_and_a_new_life_is_told() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let first = publish_all(&program.server, "a", 1..=2).await;
    let ended = program.terminate().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let program = Program::start(&arguments).await;
    let next = publish(&program.server, "a", "after the restart").await;
    let page = history(&program.server, "a", NEWEST, 10).await;
    let all: Vec<_> = first.iter().chain([&next]).cloned().collect();
    assert_eq!((ids(&page), &page["beginning"], page.get("gaps")), (all, &json!(true), None));
    drop(program);

    let program = Program::start(&[]).await;
    let page = history(&program.server, "a", &first[1], 10).await;
    assert_eq!((ids(&page).len(), &page["gaps"][0]["reason"]), (0, &json!("restarted")), "{page}");
}

#[tokio::test]
async fn a_history_that_cannot_be_read_is_an_error_and_not_an_empty_page() {
    let server = FailingServer::start().await;
    publish(&server, "a", "x").await;
    server.fail(Some(LogError::Unavailable));
    get(&server, "/topics/a?before=9007199254740991").answer().await.problem(503, "unavailable");
}
