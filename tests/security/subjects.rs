//! Subjects, their prefixes, and messages that name their publisher.

use rejoin::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, request, text, within},
    people::{As, BACKEND, bearer, parse, publish, server, server_with, servers, tables, token, usual},
    reader::{Reader, Socket},
    signer::{Signer, seconds_from_now},
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
    },
};

/// The tables of [`usual`], whose tokens name the publisher.
fn naming() -> String {
    usual().replacen("[[jwt]]\n", "[[jwt]]\nby = true\n", 1)
}

/// The milliseconds in `expires_in_ms` of a frame.
fn left(frame: &Value) -> u64 {
    frame["expires_in_ms"].as_u64().unwrap_or_else(|| panic!("{frame}"))
}

#[tokio::test]
async fn a_connection_is_told_its_subject_and_how_long_its_token_lasts() {
    let server = server().await;
    let header = bearer(&token("u1", json!({"subscribe": ["a"]})));
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let headers = [("authorization", header.as_str())];
        let reader = Reader::open_with(&server, transport, "topic=a", &headers).await;
        let open = reader.opening();
        assert_eq!(open["sub"], "u1", "{transport}: {open}");
        assert!((1..=60_000).contains(&left(open)), "{transport}: {open}");
        let backend = bearer(BACKEND);
        for headers in [vec![], vec![("authorization", backend.as_str())]] {
            let reader = Reader::open_with(&server, transport, "topic=public.a", &headers).await;
            let open = reader.opening();
            assert!(open.get("sub").is_none() && open.get("expires_in_ms").is_none(), "{transport}: {open}");
        }
    }
    let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let longer = Signer::new("HS256")
        .sign(&json!({"sub": "u1", "exp": seconds_from_now(600), "rejoin": {"subscribe": ["a"]}}));
    let renewed = socket.ask(json!({"type": "auth", "token": longer})).await;
    assert_eq!(renewed["sub"], "u1", "{renewed}");
    assert!(left(&renewed) > 60_000, "{renewed}");
}

#[tokio::test]
async fn a_sub_that_cannot_name_a_user_is_no_subject() {
    let server = server_with(&naming()).await;
    for sub in ["", "a\nb", &"x".repeat(256)] {
        let rejoin = json!({"subscribe": ["a", "users.{sub}", "users.{sub.encoded}"], "publish": ["a"]});
        let header = bearer(&token(sub, rejoin));
        let headers = [("authorization", header.as_str())];
        let reader = Reader::open_with(&server, Transport::Ndjson, "topic=a", &headers).await;
        assert!(reader.opening().get("sub").is_none(), "{:?}", reader.opening());
        let refused = get(&server, "/topics/users.x").header("authorization", &header).answer().await;
        refused.problem(403, "forbidden");
        let id = post(&server, "/topics/a").header("authorization", &header).body("x").answer().await.id();
        let after = id.parse::<u64>().expect("an id") - 1;
        let answer = get(&server, &format!("/topics/a?after={after}&wait=0")).answer_to(BACKEND).await;
        assert!(answer.json()["messages"][0].get("by").is_none(), "{answer:?}");
    }
}

fn two_issuers(ours: &str, theirs: &str) -> String {
    Signer::new("HS256").table("ours")
        + &format!("iss = \"ours\"\n{ours}\n")
        + &Signer::with_secret(jsonwebtoken::Algorithm::HS256, &"theirs ".repeat(5)).table("theirs")
        + &format!("iss = \"theirs\"\n{theirs}\n")
}

#[test]
fn two_issuers_without_a_prefix_are_refused() {
    assert!(parse(&two_issuers("", "sub-prefix = \"t-\"")).is_ok());
    for (ours, theirs, told) in [
        ("", "", "give one of them a sub-prefix"),
        ("sub-prefix = \"t\"", "sub-prefix = \"t-\"", "begin alike"),
        ("", "sub-prefix = \"t.\"", "expected text without"),
        ("", "sub-prefix = \"\"", "expected text without"),
    ] {
        let mistakes = parse(&two_issuers(ours, theirs)).expect_err("two users with one subject");
        assert!(mistakes.len() == 1 && mistakes[0].contains(told), "{mistakes:?}");
        assert!(mistakes[0].contains("rejoin.toml:") && mistakes[0].contains("jwt"), "{mistakes:?}");
    }
    let one = Signer::new("HS256").table("one") + "iss = \"one\"\n";
    let secret = "another secret of more than 32 bytes".parse::<String>().expect("text");
    let with_secret = |toml: &str| {
        let jwt_secret = rejoin::config::Secret::parse(&secret).ok();
        Config { tables: tables(toml), jwt_secret, ..Config::default() }.contradictions()
    };
    assert!(with_secret(&one)[0].what.contains("sub-prefix"), "{:?}", with_secret(&one));
    assert!(with_secret(&(one + "sub-prefix = \"one-\"\n")).is_empty());
    assert!(with_secret(&Signer::new("HS256").table("no iss")).is_empty(), "one issuer with it");
}

#[tokio::test]
async fn the_prefix_is_a_part_of_the_subject_and_no_other_issuer_can_use_it() {
    let server = server_with(&two_issuers("by = true", "sub-prefix = \"t-\"\nby = true")).await;
    let theirs = Signer::with_secret(jsonwebtoken::Algorithm::HS256, &"theirs ".repeat(5));
    let sign = |signer: &Signer, iss: &str, sub: &str| {
        let rejoin = json!({"subscribe": ["users.{sub}"], "publish": ["users.{sub}"]});
        signer.sign(&json!({"sub": sub, "iss": iss, "exp": seconds_from_now(60), "rejoin": rejoin}))
    };
    let of_theirs = bearer(&sign(&theirs, "theirs", "u1"));
    let headers = [("authorization", of_theirs.as_str())];
    let mut reader = Reader::open_with(&server, Transport::Ndjson, "topic=users.t-u1", &headers).await;
    assert_eq!(reader.opening()["sub"], "t-u1");
    post(&server, "/topics/users.t-u1").header("authorization", &of_theirs).body("x").answer().await.id();
    assert_eq!(reader.next().await["by"], "t-u1");
    let refused = get(&server, "/topics/users.u1").header("authorization", &of_theirs).answer().await;
    refused.problem(403, "forbidden");
    let ours = Signer::new("HS256");
    let forged = get(&server, "/topics/users.t-u1").answer_to(&sign(&ours, "ours", "t-u1")).await;
    let problem = forged.problem(401, "unauthorized");
    assert!(text(&problem["detail"]).contains("sub"), "{problem}");
    let own = get(&server, "/topics/users.u1").answer_to(&sign(&ours, "ours", "u1")).await;
    assert_eq!(own.status, 200, "{own:?}");
}

/// Publishes in each way, and returns how many messages that makes.
async fn publish_in_each_way(server: &Server, header: &str) -> usize {
    let headers = [("authorization", header)];
    post(server, "/topics/a").header("authorization", header).body("1").answer().await.id();
    let many = post(server, "/publish").header("authorization", header);
    let answer = many.json(&json!([{"topic": "a", "data": 2}])).answer().await;
    assert_eq!(answer.json()[0]["topic"], "a", "{answer:?}");
    let mut socket = Socket::open_with(server, "/events", &headers).await;
    let published = socket.ask(json!({"type": "publish", "topic": "a", "data": 3})).await;
    assert_eq!(published["type"], "published", "{published}");
    3
}

#[tokio::test]
async fn a_message_names_its_publisher_on_every_transport_in_both_logs() {
    for (_redis, server) in servers(&naming()).await {
        let header = bearer(&token("u1", json!({"subscribe": ["a"], "publish": ["a"]})));
        let backend = bearer(BACKEND);
        let reading = [("authorization", backend.as_str())];
        let mut live = Vec::new();
        for transport in Transport::ALL {
            live.push((transport, Reader::open_with(&server, transport, "topic=a&after=0", &reading).await));
        }
        let count = publish_in_each_way(&server, &header).await;
        for (transport, reader) in &mut live {
            for number in 0..count {
                let message = reader.next().await;
                assert_eq!(message["by"], "u1", "{transport}, {number}: {message}");
            }
        }
        let ephemeral = post(&server, "/topics/a?ephemeral").header("authorization", &header).body("x");
        assert_eq!(ephemeral.answer().await.status, 202);
        // A poll that is not held now misses it.
        for (transport, reader) in live.iter_mut().filter(|(transport, _)| *transport != Transport::Poll) {
            let message = reader.next().await;
            assert_eq!((&message["by"], &message["ephemeral"]), (&json!("u1"), &json!(true)), "{transport}");
        }
        let replayed = get(&server, "/topics/a?after=0&wait=0").answer_to(BACKEND).await.json();
        let all = replayed["messages"].as_array().expect("messages");
        assert!(all.len() == count && all.iter().all(|message| message["by"] == "u1"), "{replayed}");
    }
}

#[tokio::test]
async fn only_an_admin_key_publishes_for_a_user() {
    let tables = naming() + &key_without_admin();
    let server = server_with(&tables).await;
    let admin = token("u1", json!({"publish": ["**"], "admin": true}));
    let anonymous = "[anonymous]\npublish = [\"a\"]\n";
    assert!(!tables.contains(anonymous));
    for credential in [admin.as_str(), WRITER] {
        let one = post(&server, "/topics/a?by=u2").body("x").answer_to(credential).await;
        one.problem(403, "forbidden");
        let many = post(&server, "/publish").json(&json!([{"topic": "a", "data": 1, "by": "u1"}]));
        assert_eq!(many.answer_to(credential).await.json()[0]["code"], "forbidden");
        let header = bearer(credential);
        let mut socket = Socket::open_with(&server, "/events", &[("authorization", &header)]).await;
        let command = json!({"type": "publish", "topic": "a", "data": 1, "by": "u2"});
        assert_eq!(socket.ask(command).await["code"], "forbidden");
    }
    let one = post(&server, "/topics/a?by=u%202").body("x").answer_to(BACKEND).await;
    assert_eq!(one.status, 201, "{one:?}");
    let many = json!([{"topic": "a", "data": 1, "by": "u3"}, {"topics": ["a"], "data": 1}]);
    assert_eq!(post(&server, "/publish").json(&many).answer_to(BACKEND).await.status, 200);
    let replayed = get(&server, "/topics/a?after=0&wait=0").answer_to(BACKEND).await.json();
    let by: Vec<_> = replayed["messages"].as_array().expect("messages").iter().map(|it| &it["by"]).collect();
    assert_eq!(by, [&json!("u 2"), &json!("u3"), &Value::Null], "{replayed}");
    for wrong in ["", "a%0Ab", &"x".repeat(256)] {
        let answer = post(&server, &format!("/topics/a?by={wrong}")).body("x").answer_to(BACKEND).await;
        answer.problem(400, "bad_request");
    }
    let open = Server::start().await;
    let answer = request(&open, Method::POST, "/topics/a?by=u9").body("x").answer().await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(get(&open, "/topics/a?after=0&wait=0").answer().await.json()["messages"][0]["by"], "u9");
}

/// An API key that may publish, and no more.
const WRITER: &str = "rejoin_a-key-that-may-only-publish";

fn key_without_admin() -> String {
    let digest = rejoin::auth::Digest::of(WRITER.as_bytes());
    format!("[[key]]\nname = \"writer\"\nsha256 = \"{digest}\"\npublish = [\"**\"]\n")
}

#[tokio::test]
async fn without_the_setting_no_message_names_its_publisher() {
    let server = server().await;
    let mine = token("u1", json!({"publish": ["a"]}));
    post(&server, "/topics/a").body("x").answer_to(&mine).await.id();
    let answer = get(&server, "/topics/a?after=0&wait=0").answer_to(BACKEND).await;
    assert!(answer.json()["messages"][0].get("by").is_none(), "{answer:?}");
    publish(&server, "a", "x").await;
}

#[tokio::test]
async fn the_publisher_is_kept_over_a_restart() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    post(&program.server, "/topics/a?by=u1").body("x").answer().await.id();
    post(&program.server, "/topics/a").body("x").answer().await.id();
    within("the end", program.terminate()).await;
    let program = Program::start(&arguments).await;
    let answer = get(&program.server, "/topics/a?after=0&wait=0").answer().await.json();
    assert_eq!(answer["messages"][0]["by"], "u1", "{answer}");
    assert!(answer["messages"][1].get("by").is_none() && answer.get("gaps").is_none(), "{answer}");
}
