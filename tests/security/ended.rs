//! The end of a subject: of its connections, its polls and its older tokens.

use reqwest::Method;
use serde_json::json;

use crate::{
    ask::{Ask, get, post, request, text, within},
    lists::{ALL, LIVE, add, headers, open},
    people::{As, BACKEND, bearer, publish, servers, tables, usual},
    reader::{Reader, Socket, refusal},
    stub::{Reply, Stub},
    support::{Server, client::Transport, redis::Redis},
};

#[tokio::test]
async fn a_subject_that_is_ended_loses_its_connections_and_polls_and_keeps_its_list() {
    for (_redis, server) in servers(&usual()).await {
        add(&server, "u1", "t").await;
        let mut ended = Vec::new();
        for transport in LIVE {
            ended.push(open(&server, transport, "u1", "mine").await);
        }
        let mut other = open(&server, Transport::Sse, "u2", "topic=own.a").await;
        let cursor = text(&ended[0].opening()["cursor"]);
        let header = headers("u1", &["own.**"]);
        let poll =
            get(&server, &format!("/events?mine&after={cursor}&wait=60")).header("authorization", &header);
        let end = async {
            crate::people::until_served(&server, 5).await;
            let done = request(&server, Method::DELETE, "/subjects/u1").answer_to(BACKEND).await;
            assert_eq!((done.status, done.text()), (204, ""));
        };
        let (answer, ()) = tokio::join!(poll.answer(), end);
        assert_eq!((answer.status, &answer.json()["messages"]), (200, &json!([])), "{answer:?}");
        for reader in &mut ended {
            let closing = reader.next().await;
            assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("disconnected")));
            if let Reader::WebSocket(socket) = reader {
                assert_eq!(socket.closed().await, (4010, "disconnected".to_owned()));
            }
        }
        let mut again = open(&server, Transport::Ndjson, "u1", "mine").await;
        assert_eq!(again.opening()["mine"], json!(["t"]));
        let id = publish(&server, "t", "x").await;
        assert_eq!(again.ids(1).await, [id]);
        let own = publish(&server, "own.a", "x").await;
        assert_eq!(other.ids(1).await, [own]);
    }
}

/// A token of this subject that was issued so many seconds from now.
fn issued(sub: &str, seconds: Option<i64>) -> String {
    let now = crate::signer::seconds_from_now(0);
    let mut claims = json!({"sub": sub, "exp": now + 60, "rejoin": {"subscribe": ["own.**"]}});
    if let Some(seconds) = seconds {
        claims["iat"] = json!(now + seconds);
    }
    crate::signer::Signer::new("HS256").sign(&claims)
}

#[tokio::test]
async fn refused_tokens_are_forbidden_until_a_newer_one_comes() {
    for (_redis, server) in servers(&usual()).await {
        let before = bearer(&issued("u1", Some(-5)));
        let mut socket = Socket::open_with(
            &server,
            "/events?topic=own.a",
            &[("authorization", &bearer(&issued("u2", Some(-5))))],
        )
        .await;
        let done = request(&server, Method::DELETE, "/subjects/u1?refuse=10m").answer_to(BACKEND).await;
        assert_eq!(done.status, 204, "{done:?}");
        let missing = bearer(&issued("u1", None));
        for header in [&before, &missing] {
            for transport in ALL {
                let headers = [("authorization", header.as_str())];
                let answer = refusal(&server, transport, "/events?topic=own.a&after=0", &headers).await;
                answer.problem(403, "forbidden");
            }
            let page = [("authorization", header.as_str()), ("origin", &server.http(""))];
            let mut refused = Socket::shake_hands(&server, "/events?topic=own.a", &page).await;
            assert_eq!(refused.closed().await, (4003, "forbidden".to_owned()));
            let publish = post(&server, "/topics/own.a").header("authorization", header).body("x");
            publish.answer().await.problem(403, "forbidden");
        }
        // Other subjects, API keys and newer tokens are served.
        assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
        publish(&server, "own.a", "x").await;
        let newer = bearer(&issued("u1", Some(5)));
        let headers = [("authorization", newer.as_str())];
        let mut again = Socket::open_with(&server, "/events?topic=own.a", &headers).await;
        let auth = again.ask(json!({"type": "auth", "token": issued("u1", Some(-5))})).await;
        assert_eq!((&auth["type"], &auth["code"]), (&json!("error"), &json!("forbidden")), "{auth}");
        assert_eq!(again.ask(json!({"type": "ping"})).await["type"], "pong");
        let ended = request(&server, Method::DELETE, "/subjects/u2?refuse=1s").answer_to(BACKEND).await;
        assert_eq!(ended.status, 204);
        let old = bearer(&issued("u2", Some(-5)));
        within("the end of a refusal", async {
            while get(&server, "/events?topic=own.a").header("authorization", &old).answer().await.status
                == 403
            {}
        })
        .await;
    }
}

/// An end may have been among what was lost, and then the backend no longer knows the client.
#[tokio::test]
async fn a_backend_is_asked_again_after_a_part_of_the_store_was_missed() {
    let Some(redis) = Redis::start(&[]) else { return };
    let stub = Stub::start(|_| Reply::json(&json!({"sub": "u1", "subscribe": ["a"]}))).await;
    let hook =
        format!("[hook]\nurl = \"{}\"\ncookies = [\"session\"]\nsub-prefix = \"h-\"\n", stub.url("/who"));
    let (tables, log) = (tables(&(usual() + &hook)), redis.url().parse().expect("a log"));
    let server = Server::with(|config| (config.tables, config.log) = (tables, log)).await;
    let poll = async || {
        let asked = get(&server, "/topics/a?wait=0").header("cookie", "session=x");
        asked.answer().await.status
    };
    let mut asked = 0;
    within("an answer that is kept", async {
        while poll().await != 200 || stub.count("/who") > asked {
            asked = stub.count("/who");
        }
    })
    .await;
    stub.answer_with(|_| Reply(403, Vec::new(), String::new()));
    redis.say(&["FLUSHALL"]);
    within("the answer of now", async { while poll().await != 403 {} }).await;
    assert_eq!(stub.count("/who"), asked + 1);
}
