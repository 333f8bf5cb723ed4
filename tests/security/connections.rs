//! The rights to change and to see the connections of others.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Answer, get, request, text},
    people::{As, BACKEND, bearer, publish, reads, server, servers, tables, token, usual},
    reader::{Lines, Socket},
    support::Server,
};

async fn put(server: &Server, by: &str, connection: &str, topic: &str, query: &str) -> Answer {
    let path = format!("/connections/{connection}/topics/{topic}?{query}");
    request(server, Method::PUT, &path).answer_to(by).await
}

async fn open(server: &Server, credential: &str) -> (Lines, String) {
    let header = bearer(credential);
    let lines = Lines::open_with(server, "/events", &[("authorization", &header)]).await;
    let id = text(&lines.opening["connection"]);
    (lines, id)
}

#[tokio::test]
async fn a_foreign_connection_id_grants_nothing_and_cannot_be_probed() {
    for (_redis, server) in servers(&usual()).await {
        let (mut victim, id) = open(&server, &reads("u1", &["a"])).await;
        let stranger = token("u2", json!({"subscribe": ["**"], "publish": ["**"], "manage": ["mine.**"]}));
        let unknown = "0123456789abcdef0123456789abcdef";
        let mut answers = Vec::new();
        for id in [&id, unknown, "x"] {
            for query in ["", "sub=u1", "sub=u2"] {
                answers.push(put(&server, &stranger, id, "a", query).await);
            }
            let requests = [
                request(&server, Method::DELETE, &format!("/connections/{id}/topics/a")),
                request(&server, Method::DELETE, &format!("/connections/{id}")),
                request(&server, Method::DELETE, &format!("/connections/{id}?sub=u1")),
                get(&server, &format!("/connections/{id}")),
            ];
            for request in requests {
                answers.push(request.answer_to(&stranger).await);
            }
        }
        for answer in answers {
            answer.problem(403, "forbidden");
        }
        get(&server, "/connections").answer_to(&stranger).await.problem(403, "forbidden");
        // A wider pattern than the grant is refused as a whole.
        put(&server, &stranger, &id, "**", "").await.problem(403, "forbidden");
        put(&server, &stranger, unknown, "mine.1", "").await.problem(404, "not_found");
        put(&server, &stranger, "x", "mine.1", "sub=u1").await.problem(404, "not_found");
        let done = put(&server, &stranger, &id, "mine.*", "sub=u1").await;
        assert_eq!(done.status, 204, "{done:?}");
        let told = victim.next().await;
        assert_eq!((&told["type"], &told["topic"]), (&json!("subscribed"), &json!("mine.*")));
    }
}

#[tokio::test]
async fn a_change_for_another_subject_is_refused() {
    for (_redis, server) in servers(&usual()).await {
        let (_reader, id) = open(&server, &reads("u1", &["a"])).await;
        let (_backend, of_key) = open(&server, BACKEND).await;
        for (id, sub) in [(&id, "u2"), (&id, "U1"), (&of_key, "u1"), (&of_key, "backend")] {
            let refused = put(&server, BACKEND, id, "b", &format!("sub={sub}")).await;
            refused.problem(412, "precondition_failed");
            for path in [format!("/connections/{id}/topics/a"), format!("/connections/{id}")] {
                let refused = request(&server, Method::DELETE, &format!("{path}?sub={sub}"));
                refused.answer_to(BACKEND).await.problem(412, "precondition_failed");
            }
        }
        put(&server, BACKEND, &id, "b", "sub=").await.problem(400, "bad_request");
        assert_eq!(put(&server, BACKEND, &id, "b", "sub=u1").await.status, 204);
        let page = get(&server, "/connections?sub=u1").answer_to(BACKEND).await.json();
        let shown: Vec<_> = page["connections"].as_array().expect("a list").iter().collect();
        assert_eq!(shown.len(), 1, "{page}");
        assert_eq!((&shown[0]["connection"], &shown[0]["sub"]), (&json!(id), &json!("u1")));
        let ended = request(&server, Method::DELETE, &format!("/connections/{id}?sub=u1"));
        assert_eq!(ended.answer_to(BACKEND).await.status, 204);
    }
}

#[tokio::test]
async fn neither_a_reload_nor_a_new_token_takes_away_what_the_backend_added() {
    let server = server().await;
    let header = bearer(&reads("u1", &["a"]));
    let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let id = text(&socket.opening["connection"]);
    assert_eq!(put(&server, BACKEND, &id, "b.**", "").await.status, 204);
    assert_eq!(socket.next().await["by"], "server");
    // The client may not read this itself.
    let refused = socket.ask(json!({"type": "subscribe", "topic": "b.c", "ref": 1})).await;
    assert_eq!((&refused["code"], &refused["topic"]), (&json!("forbidden"), &json!("b.c")), "{refused}");
    let renewed = socket.ask(json!({"type": "auth", "token": reads("u1", &["a", "c"])})).await;
    assert_eq!(renewed["type"], "authenticated", "{renewed}");
    let app = server.app.as_ref().expect("it is served here");
    let config = rejoin::Config { tables: tables(&usual()), ..rejoin::Config::default() };
    app.reconfigure(&config).expect("a change that is allowed");
    publish(&server, "b.c", "x").await;
    assert_eq!(socket.next().await["topic"], "b.c");
    // A token must still grant its own topics.
    let less = socket.ask(json!({"type": "auth", "token": reads("u1", &["c"])})).await;
    assert_eq!(less["code"], "forbidden", "{less}");
    let path = format!("/connections/{id}/topics/b.**");
    assert_eq!(request(&server, Method::DELETE, &path).answer_to(BACKEND).await.status, 204);
    assert_eq!(socket.next().await["type"], "unsubscribed");
    publish(&server, "b.c", "x").await;
    assert_eq!(socket.ask(json!({"type": "ping"})).await, json!({"type": "pong"}) as Value);
}
