//! One client that takes all that there is leaves a share to each other client.

use futures_util::future::join_all;
use serde_json::json;

use crate::{
    ask::{Ask, get, post, with_query, within},
    people::{As, BACKEND, reads, tables, token, usual},
    reader::{Lines, Socket, refusal},
    support::{Server, client::Transport},
};

const MAX_CONNECTIONS: usize = 16;
const RATE: u32 = 8;

async fn small() -> Server {
    let tables = tables(&usual());
    Server::with(|config| {
        config.tables = tables;
        config.max_connections = MAX_CONNECTIONS;
        config.publish_rate = RATE;
    })
    .await
}

#[tokio::test]
async fn a_client_that_opens_all_connections_leaves_a_share_to_others() {
    let server = small().await;
    let (greedy, modest) = (reads("greedy", &["a"]), reads("modest", &["a"]));
    let path = |token: &str| with_query("/topics/a", &[("token", token)]);
    let _first = Lines::open(&server, &path(&modest)).await;
    let mut open = Vec::new();
    for number in 0..MAX_CONNECTIONS - 5 {
        match number % 2 {
            0 => open.push(Ok(Socket::open(&server, &path(&greedy)).await)),
            _ => open.push(Err(Lines::open(&server, &path(&greedy)).await)),
        }
    }
    for transport in [Transport::WebSocket, Transport::Poll] {
        let refused = refusal(&server, transport, &path(&greedy), &[]).await;
        refused.problem(503, "overloaded");
    }
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(Socket::open(&server, &path(&modest)).await);
    }
    drop(open);
    within("places", async {
        while get(&server, &format!("{}&wait=0", path(&greedy))).answer().await.status != 200 {}
    })
    .await;
    Socket::open(&server, &path(&greedy)).await;
}

/// A stream of 10 000 topics costs as much as 10 000 streams of one.
#[tokio::test]
async fn a_client_that_reads_all_topics_leaves_a_share_to_others() {
    let server = small().await;
    let rights = json!({"subscribe": ["**"]});
    let (greedy, modest) = (token("greedy", rights.clone()), token("modest", rights));
    let body = |count: usize| {
        let topics: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
        json!({"topics": topics, "transport": "ndjson"}).to_string()
    };
    let ask =
        |count: usize| post(&server, "/events").header("content-type", "application/json").body(body(count));
    // There are 10 000 in all.
    let _large = Lines::of(crate::reader::Stream::of(ask(7_400).bearer_auth(&greedy)).await);
    let mut socket = Socket::open(&server, &with_query("/topics/x", &[("token", &modest)])).await;
    let mut own = Socket::open(&server, &with_query("/topics/x", &[("token", &greedy)])).await;
    for number in 0..200 {
        let answer = own.ask(json!({"type": "subscribe", "topic": format!("u{number}")})).await;
        if answer["type"] != "subscribed" {
            assert_eq!(
                (&answer["type"], &answer["code"]),
                (&json!("error"), &json!("overloaded")),
                "{answer}"
            );
            assert!(number > 90, "{number}");
            break;
        }
        assert!(number < 110, "it may read more than its share");
    }
    let answer = socket.ask(json!({"type": "subscribe", "topic": "b"})).await;
    assert_eq!(answer["type"], "subscribed", "{answer}");
    // It gives two back, and one of them is still free.
    for topic in ["u1", "u2"] {
        assert_eq!(own.ask(json!({"type": "unsubscribe", "topic": topic})).await["type"], "unsubscribed");
    }
    assert_eq!(own.ask(json!({"type": "subscribe", "topic": "another"})).await["type"], "subscribed");
}

#[tokio::test]
async fn a_client_that_publishes_all_the_time_leaves_a_share_of_the_rate_to_others() {
    let server = small().await;
    let rights = json!({"publish": ["a"]});
    let (greedy, modest) = (token("greedy", rights.clone()), token("modest", rights));
    let publish = || post(&server, "/topics/a").body("x");
    assert_eq!(publish().answer_to(&modest).await.status, 201);
    let many = join_all((0..10 * RATE).map(|_| publish().answer_to(&greedy))).await;
    assert!(many.iter().any(|answer| answer.status == 429), "one client used the whole rate");
    // In the same second or in the next one.
    assert_eq!(publish().answer_to(&modest).await.status, 201);
    assert_eq!(publish().answer_to(BACKEND).await.status, 201, "a backend has no share, and the whole rate");
    assert_eq!(get(&server, "/health/ready").answer().await.status, 200);
}
