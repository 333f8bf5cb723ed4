//! The lists of subjects: what a client with `mine` reads, and what it cannot escape.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, get, post, request, text, topic_path},
    people::{As, BACKEND, bearer, publish, server, servers, token, usual},
    reader::{Reader, Socket, refusal},
    support::{Server, client::Transport},
};

pub const ALL: [Transport; 4] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson, Transport::Poll];
/// Those that are told changes in frames.
pub const LIVE: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

fn list_path(sub: &str, topic: &str) -> String {
    format!("/subjects/{sub}{}", topic_path(topic))
}

pub async fn change(server: &Server, method: Method, sub: &str, topic: &str) -> Answer {
    request(server, method, &list_path(sub, topic)).answer_to(BACKEND).await
}

pub async fn add(server: &Server, sub: &str, topic: &str) {
    let answer = change(server, Method::PUT, sub, topic).await;
    assert_eq!((answer.status, answer.text()), (204, ""), "{sub} {topic}");
}

pub async fn remove(server: &Server, sub: &str, topic: &str) {
    let answer = change(server, Method::DELETE, sub, topic).await;
    assert_eq!((answer.status, answer.text()), (204, ""), "{sub} {topic}");
}

/// The list of a subject: topics and ids.
async fn list(server: &Server, sub: &str) -> Vec<(String, String)> {
    let answer = get(server, &format!("/subjects/{sub}/topics")).answer_to(BACKEND).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    let entries = json["topics"].as_array().expect("a list").iter();
    entries.map(|entry| (text(&entry["topic"]), text(&entry["id"]))).collect()
}

/// A client that may read nothing by its own grants, or these patterns.
pub fn headers(sub: &str, patterns: &[&str]) -> String {
    bearer(&token(sub, json!({"subscribe": patterns})))
}

pub async fn open(server: &Server, transport: Transport, sub: &str, query: &str) -> Reader {
    let header = headers(sub, &["own.**"]);
    Reader::open_with(server, transport, query, &[("authorization", &header)]).await
}

pub async fn told(reader: &mut Reader, kind: &str, topic: &str) {
    let frame = reader.next().await;
    let told = (&frame["type"], &frame["topic"], &frame["by"]);
    assert_eq!(told, (&kind.into(), &topic.into(), &"server".into()), "{frame}");
    assert!(frame["cursor"].is_string() && frame.get("replay").is_none(), "{frame}");
}

#[tokio::test]
async fn a_client_reads_the_list_of_its_subject_on_every_transport() {
    for (_redis, server) in servers(&usual()).await {
        for transport in ALL {
            let sub = format!("u-{transport}");
            let [before, wild] = [format!("{sub}.before"), format!("{sub}.wild.*")];
            add(&server, &sub, &before).await;
            add(&server, &sub, &wild).await;
            let mut reader = open(&server, transport, &sub, "mine&topic=own.a").await;
            if transport != Transport::Poll {
                assert_eq!(reader.opening()["mine"], json!([&before, &wild]), "{}", reader.opening());
            }
            let mut published = Vec::new();
            for topic in [&before, &format!("{sub}.wild.1"), "own.a"] {
                published.push(publish(&server, topic, "x").await);
            }
            publish(&server, &format!("{sub}.other"), "unread").await;
            assert_eq!(reader.ids(3).await, published, "{transport}");
            // A change comes in the order of the messages.
            let late = format!("{sub}.late");
            publish(&server, &late, "too early").await;
            add(&server, &sub, &late).await;
            let first = publish(&server, &late, "x").await;
            remove(&server, &sub, &late).await;
            publish(&server, &late, "too late").await;
            let last = publish(&server, &before, "x").await;
            if transport == Transport::Poll {
                continue;
            }
            told(&mut reader, "subscribed", &late).await;
            assert_eq!(reader.ids(1).await, [first], "{transport}");
            told(&mut reader, "unsubscribed", &late).await;
            assert_eq!(reader.ids(1).await, [last], "{transport}");
        }
    }
}

#[tokio::test]
async fn an_entry_is_read_after_its_id_and_after_the_cursor() {
    for (_redis, server) in servers(&usual()).await {
        let mut number = 0;
        for transport in ALL {
            for entry in ["t", "w.*"] {
                number += 1;
                let sub = format!("u{number}");
                let topic = format!("{sub}.{}", entry.replace('*', "1"));
                let cursor = publish(&server, &topic, "before the entry").await;
                add(&server, &sub, &format!("{sub}.{entry}")).await;
                let ids = [publish(&server, &topic, "1").await, publish(&server, &topic, "2").await];
                for start in [&*format!("after={cursor}"), "after=0", "last=10", "since=1h"] {
                    for own in ["", "&topic=own.a", "&topic=own.*"] {
                        let query = format!("mine&{start}{own}");
                        let mut reader = open(&server, transport, &sub, &query).await;
                        assert_eq!(reader.ids(2).await, ids, "{transport} {query} {entry}");
                    }
                }
                let mut reader = open(&server, transport, &sub, &format!("mine&after={}", ids[0])).await;
                assert_eq!(reader.ids(1).await, ids[1..], "{transport} {entry}");
            }
        }
    }
}

#[tokio::test]
async fn a_topic_that_the_client_reads_itself_stays_when_it_leaves_the_list() {
    for (_redis, server) in servers(&usual()).await {
        let header = headers("u1", &["own.**"]);
        let mut socket =
            Socket::open_with(&server, "/events?mine&topic=own.a", &[("authorization", &header)]).await;
        add(&server, "u1", "own.a").await;
        assert_eq!(socket.next().await["type"], "subscribed");
        remove(&server, "u1", "own.a").await;
        assert_eq!(socket.next().await["type"], "unsubscribed");
        let own = publish(&server, "own.a", "x").await;
        assert_eq!(socket.next().await["id"], own);
        // The client's own commands take no entry.
        add(&server, "u1", "listed").await;
        assert_eq!(socket.next().await["topic"], "listed");
        let refused = socket.ask(json!({"type": "subscribe", "topic": "listed"})).await;
        assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("forbidden")), "{refused}");
        assert_eq!(
            socket.ask(json!({"type": "unsubscribe", "topic": "listed"})).await["type"],
            "unsubscribed"
        );
        add(&server, "u1", "own.a").await;
        assert_eq!(socket.next().await["type"], "subscribed");
        assert_eq!(
            socket.ask(json!({"type": "unsubscribe", "topic": "own.a"})).await["type"],
            "unsubscribed"
        );
        // Neither does the backend take it from the connection.
        let path = format!("/connections/{}/topics/listed", text(&socket.opening["connection"]));
        assert_eq!(request(&server, Method::DELETE, &path).answer_to(BACKEND).await.status, 204);
        for topic in ["own.a", "listed"] {
            let id = publish(&server, topic, "x").await;
            assert_eq!(socket.next().await["id"], id, "{topic}");
        }
        // The grants of a token do not matter for the list, also after a new one.
        let newer = token("u1", json!({"subscribe": ["own.b"]}));
        let renewed = socket.ask(json!({"type": "auth", "token": newer})).await;
        assert_eq!(renewed["type"], "authenticated", "{renewed}");
        let id = publish(&server, "own.a", "x").await;
        assert_eq!(socket.next().await["id"], id);
        remove(&server, "u1", "own.a").await;
        assert_eq!(socket.next().await["type"], "unsubscribed");
        publish(&server, "own.a", "unread").await;
        assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
    }
}

#[tokio::test]
async fn a_topic_that_the_backend_added_to_the_connection_stays_too() {
    for (_redis, server) in servers(&usual()).await {
        let mut reader = open(&server, Transport::Sse, "u1", "mine").await;
        let path = format!("/connections/{}/topics/t", text(&reader.opening()["connection"]));
        add(&server, "u1", "t").await;
        told(&mut reader, "subscribed", "t").await;
        assert_eq!(request(&server, Method::PUT, &path).answer_to(BACKEND).await.status, 204);
        told(&mut reader, "subscribed", "t").await;
        remove(&server, "u1", "t").await;
        told(&mut reader, "unsubscribed", "t").await;
        let id = publish(&server, "t", "x").await;
        assert_eq!(reader.ids(1).await, [id]);
        assert_eq!(request(&server, Method::DELETE, &path).answer_to(BACKEND).await.status, 204);
        told(&mut reader, "unsubscribed", "t").await;
    }
}

/// The client reads nothing for so long that the replay is in the middle when the list changes.
#[tokio::test]
async fn a_topic_that_is_still_replayed_when_the_list_adds_it_is_given_once() {
    for (_redis, server) in servers(&usual()).await {
        let mut before = Vec::new();
        for number in 0..200 {
            before.push(publish(&server, &format!("j.{number}"), &"x".repeat(60_000)).await);
        }
        for transport in LIVE {
            let sub = format!("u-{transport}");
            let mut reader = open(&server, transport, &sub, "mine").await;
            let path = format!("/connections/{}/topics/j.*", text(&reader.opening()["connection"]));
            let put = request(&server, Method::PUT, &format!("{path}?after=0")).answer_to(BACKEND).await;
            assert_eq!(put.status, 204, "{put:?}");
            add(&server, &sub, "j.*").await;
            let after = [publish(&server, "j.1", "y").await, publish(&server, "j.2", "y").await];
            let mut given = Vec::new();
            let mut added = 0;
            while added < 2 || !after.iter().all(|id| given.contains(id)) {
                let frame = reader.next().await;
                match frame["type"].as_str() {
                    Some("message") => given.push(text(&frame["id"])),
                    Some("subscribed") => added += 1,
                    _ => panic!("{frame}"),
                }
            }
            given.sort();
            before.extend(after);
            assert_eq!(given, before, "{transport}");
            // It was added in both ways, so it stays until it is removed in both.
            remove(&server, &sub, "j.*").await;
            told(&mut reader, "unsubscribed", "j.*").await;
            let id = publish(&server, "j.3", "y").await;
            assert_eq!(reader.ids(1).await, [&*id]);
            before.push(id);
            assert_eq!(request(&server, Method::DELETE, &path).answer_to(BACKEND).await.status, 204);
            told(&mut reader, "unsubscribed", "j.*").await;
        }
    }
}

#[tokio::test]
async fn a_held_poll_answers_at_once_with_the_new_list() {
    for (_redis, server) in servers(&usual()).await {
        let header = headers("u1", &[]);
        let poll = async |query: String| {
            let answer = get(&server, &format!("/events?mine&{query}")).header("authorization", &header);
            let answer = answer.answer().await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()
        };
        let now = poll("".into()).await;
        assert_eq!((&now["mine"], &now["messages"]), (&json!([]), &json!([])));
        let cursor = text(&now["cursor"]);
        let held = poll(format!("after={cursor}&wait=60"));
        let change = async {
            crate::people::until_served(&server, 1).await;
            add(&server, "u1", "a").await;
        };
        let (answer, ()) = tokio::join!(held, change);
        assert_eq!((&answer["mine"], &answer["messages"]), (&json!(["a"]), &json!([])), "{answer}");
        let id = publish(&server, "a", "x").await;
        let next = poll(format!("after={}", text(&answer["cursor"]))).await;
        assert_eq!(next["messages"][0]["id"], id, "{next}");
        assert_eq!(next["mine"], json!(["a"]));
        // From the older cursor too, and the flag may stand in the body.
        let body = json!({"mine": true, "after": cursor});
        let again =
            post(&server, "/events").json(&body).header("authorization", &header).answer().await.json();
        assert_eq!(again["messages"][0]["id"], id, "{again}");
    }
}

#[tokio::test]
async fn a_list_is_told_with_the_id_of_each_entry() {
    for (_redis, server) in servers(&usual()).await {
        assert_eq!(list(&server, "u1").await, []);
        let before = publish(&server, "x", "x").await;
        add(&server, "u1", "b").await;
        add(&server, "u1", "a.*").await;
        let after = publish(&server, "x", "x").await;
        let listed = list(&server, "u1").await;
        assert_eq!(listed.iter().map(|(topic, _)| &**topic).collect::<Vec<_>>(), ["a.*", "b"]);
        assert!(before < listed[1].1 && listed[1].1 < listed[0].1 && listed[0].1 < after, "{listed:?}");
        // A repeat keeps the first id, and a topic that is not there is removed all the same.
        add(&server, "u1", "b").await;
        remove(&server, "u1", "c").await;
        assert_eq!(list(&server, "u1").await, listed);
        remove(&server, "u1", "b").await;
        add(&server, "u1", "b").await;
        assert!(list(&server, "u1").await[1].1 > after);
        // With `manage` only the entries that it covers are shown and changed.
        let manager = token("m", json!({"manage": ["a.**"]}));
        let seen = get(&server, "/subjects/u1/topics").answer_to(&manager).await.json();
        assert_eq!(seen["topics"].as_array().expect("a list").len(), 1, "{seen}");
        let put = |topic: &str| request(&server, Method::PUT, &list_path("u1", topic));
        assert_eq!(put("a.b").answer_to(&manager).await.status, 204);
        put("b").answer_to(&manager).await.problem(403, "forbidden");
    }
}

/// An operator saw an empty list while its subject read who is present.
#[tokio::test]
async fn an_admin_sees_and_removes_each_entry_of_a_list() {
    for (_redis, server) in servers(&usual()).await {
        let entry = "$presence.room";
        let change = |method: Method| request(&server, method, &list_path("u1", entry));
        // The backend has `admin`, and not `presence`.
        change(Method::PUT).answer_to(BACKEND).await.problem(403, "forbidden");
        let adder = token("a", json!({"manage": ["$presence.**"], "presence": ["**"]}));
        assert_eq!(change(Method::PUT).answer_to(&adder).await.status, 204);
        let manager = token("m", json!({"manage": ["**", "$presence.**"]}));
        let seen = get(&server, "/subjects/u1/topics").answer_to(&manager).await.json();
        assert_eq!(seen, json!({"topics": []}));
        change(Method::DELETE).answer_to(&manager).await.problem(403, "forbidden");
        let listed = list(&server, "u1").await;
        assert_eq!(listed.iter().map(|(topic, _)| &**topic).collect::<Vec<_>>(), [entry]);
        assert_eq!(change(Method::DELETE).answer_to(BACKEND).await.status, 204);
        assert_eq!(list(&server, "u1").await, []);
    }
}

#[tokio::test]
async fn a_list_has_at_most_1000_entries() {
    for (_redis, server) in servers(&usual()).await {
        for first in (0..1000).step_by(50) {
            let added = (first..first + 50).map(|number| add_numbered(&server, number));
            futures_util::future::join_all(added).await;
        }
        let problem = change(&server, Method::PUT, "u1", "one.more").await.problem(409, "conflict");
        assert_eq!(problem["topic"], "one.more");
        add(&server, "u1", "t0").await;
        let mut reader = open(&server, Transport::Ndjson, "u1", "mine&after=0").await;
        assert_eq!(reader.opening()["mine"].as_array().expect("a list").len(), 1000);
        let id = publish(&server, "t999", "x").await;
        assert_eq!(reader.ids(1).await, [id]);
    }
}

async fn add_numbered(server: &Server, number: usize) {
    add(server, "u1", &format!("t{number}")).await;
}

#[tokio::test]
async fn a_request_about_a_subject_that_cannot_be_read_changes_nothing() {
    let server = server().await;
    for query in ["after=1", "last=1", "since=1h", "after=x"] {
        let path = format!("{}?{query}", list_path("u1", "a"));
        request(&server, Method::PUT, &path).answer_to(BACKEND).await.problem(400, "bad_request");
    }
    let long = "x".repeat(256);
    for sub in ["%00", "%FF", &long] {
        change(&server, Method::PUT, sub, "a").await.problem(400, "bad_request");
        let path = format!("/subjects/{sub}");
        request(&server, Method::DELETE, &path).answer_to(BACKEND).await.problem(400, "bad_request");
    }
    change(&server, Method::PUT, "u1", "a..b").await.problem(400, "bad_request");
    for refuse in ["", "0s", "8d", "x", "500ms", "7d1s"] {
        let path = format!("/subjects/u1?refuse={refuse}");
        request(&server, Method::DELETE, &path).answer_to(BACKEND).await.problem(400, "bad_request");
    }
    assert_eq!(list(&server, "u1").await, []);
    for (method, path) in [(Method::GET, "/subjects/u1"), (Method::GET, "/subjects/u1/topics/a")] {
        request(&server, method, path).answer_to(BACKEND).await.problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn a_client_without_a_subject_has_no_list() {
    let server = server().await;
    let open = Server::start().await;
    let without = bearer(&token("", json!({"subscribe": ["a"]})));
    let backend = bearer(BACKEND);
    let user = headers("u1", &[]);
    for transport in ALL {
        let expect = async |server: &Server, path: &str, credential: Option<&str>, status: u16| {
            let headers: Vec<_> = credential.iter().map(|value| ("authorization", *value)).collect();
            let answer = refusal(server, transport, path, &headers).await;
            assert_eq!(answer.status, status, "{transport} {path}: {answer:?}");
        };
        expect(&open, "/events?mine", None, 400).await;
        expect(&server, "/events?mine", None, 401).await;
        for credential in [&without, &backend] {
            expect(&server, "/events?mine", Some(credential), 400).await;
        }
        expect(&server, "/events?mine&format=raw", Some(&user), 400).await;
        expect(&server, "/events?mine=maybe", Some(&user), 400).await;
        expect(&server, "/topics/public.a?mine", Some(&user), 400).await;
    }
    let twice = post(&server, "/events?mine").json(&json!({"mine": true})).header("authorization", &user);
    twice.answer().await.problem(400, "bad_request");
    let off = json!({"mine": false, "topics": ["public.a"], "after": "0", "wait": 0});
    let answer = post(&server, "/events").json(&off).answer().await;
    assert_eq!((answer.status, answer.json().get("mine").cloned()), (200, None::<Value>));
}

#[tokio::test]
async fn a_subject_sees_and_changes_no_list_and_reads_only_its_own() {
    for (_redis, server) in servers(&usual()).await {
        add(&server, "u1", "secret").await;
        let user = token("u2", json!({"subscribe": ["**"], "publish": ["own"]}));
        for (method, path) in [
            (Method::GET, "/subjects/u1/topics".to_owned()),
            (Method::PUT, list_path("u2", "secret")),
            (Method::PUT, list_path("u2", "own")),
            (Method::DELETE, list_path("u1", "secret")),
            (Method::DELETE, "/subjects/u1".to_owned()),
        ] {
            request(&server, method, &path).answer_to(&user).await.problem(403, "forbidden");
        }
        let mut other = open(&server, Transport::Ndjson, "u2", "mine&topic=own.a").await;
        assert_eq!(other.opening()["mine"], json!([]));
        publish(&server, "secret", "x").await;
        let own = publish(&server, "own.a", "x").await;
        assert_eq!(other.ids(1).await, [own]);
    }
}

/// A start of the memory without a state file, or an empty Redis: the list may be lost.
#[tokio::test]
async fn a_reader_from_before_the_store_began_is_told_one_gap_about_its_list() {
    for (_redis, server) in servers(&usual()).await {
        let early = "1000000000000001";
        for transport in ALL {
            let mut reader = open(&server, transport, "nobody", &format!("mine&after={early}")).await;
            let gap = reader.gap().await;
            assert_eq!(
                (&gap["topic"], &gap["after"]),
                (&json!("$mine"), &json!(early)),
                "{transport}: {gap}"
            );
            assert!(gap["next"].is_null() && gap["reason"] == "restarted", "{gap}");
            // Its cursor has moved on: it gets no gap again.
            let cursor = text(&gap["cursor"]);
            add(&server, "nobody", "t").await;
            if LIVE.contains(&transport) {
                told(&mut reader, "subscribed", "t").await;
            }
            let id = publish(&server, "t", "x").await;
            assert_eq!(reader.ids(1).await, [&*id], "{transport}");
            remove(&server, "nobody", "t").await;
            assert!(*cursor > *early, "{transport}: {gap}");
        }
        add(&server, "u1", "listed").await;
        let id = publish(&server, "listed", "x").await;
        let mut reader =
            open(&server, Transport::Sse, "u1", &format!("mine&topic=own.a&after={early}")).await;
        let gaps = [reader.gap().await, reader.gap().await];
        let mut topics = gaps.each_ref().map(|gap| text(&gap["topic"]));
        topics.sort();
        assert_eq!(topics, ["$mine", "own.a"]);
        assert_eq!(reader.ids(1).await, [id], "not a gap of its own for the entry");
    }
}
