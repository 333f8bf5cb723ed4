//! The backend says who a client is, and is asked as seldom as it can be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rejoin::Config;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    ask::{Answer, Ask, get, post, request, text, within},
    issuers::is_told_to_come_again,
    people::{As, BACKEND, bearer, parse, publish, server_with, tables, token, until_served, usual},
    reader::{Events, Lines, Reader, Socket, refusal},
    signer::{Signer, seconds_from_now},
    stub::{Reply, Seen, Stub, pass},
    support::{Server, client::Transport},
};

const HOOK: &str = "/who";

/// The tables of [`usual`], and a hook that is asked at this stub.
pub fn with_hook(stub: &Stub) -> String {
    let url = stub.url(HOOK);
    usual()
        + &format!(
            "[hook]\nurl = \"{url}\"\nsecret = \"s3cret\"\nheaders = [\"X-App\"]\ncookies = [\"session\"]\n\
             sub-prefix = \"h-\"\nby = true\n"
        )
}

/// Grants `a` for this long to the user of the cookie.
pub fn grant(seconds: Value) -> impl Fn(&Seen) -> Reply {
    move |seen| {
        let sub = seen.json()["cookies"]["session"].as_str().unwrap_or("app").to_owned();
        Reply::json(
            &json!({"sub": sub, "subscribe": ["a"], "publish": ["a"], "expires_in": seconds, "info": {}}),
        )
    }
}

pub async fn started() -> (Stub, Arc<Server>) {
    let stub = Stub::start(grant(json!(60))).await;
    let server = server_with(&with_hook(&stub)).await;
    (stub, Arc::new(server))
}

/// How many answers of the backend were of this kind.
async fn answers(server: &Server, outcome: &str) -> usize {
    let metrics = get(server, "/metrics").answer_to(BACKEND).await;
    let series = format!("rejoin_hook_questions_total{{outcome=\"{outcome}\"}} ");
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(&series));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series}: {metrics:?}"))
}

async fn poll(server: &Server, cookie: &str) -> Answer {
    get(server, "/topics/a?wait=0").header("cookie", cookie).answer().await
}

#[tokio::test]
async fn the_backend_says_who_a_client_is_and_is_told_no_more_than_it_needs() {
    let (stub, server) = started().await;
    let origin = server.http("");
    let headers =
        [("cookie", "theme=dark; session=u1; x=y"), ("origin", origin.as_str()), ("x-other", "secret")];
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let reader = Reader::open_with(&server, transport, "topic=a", &headers).await;
        let open = reader.opening();
        assert_eq!(open["sub"], "h-u1", "{transport}: {open}");
        assert!((1..=60_000).contains(&open["expires_in_ms"].as_u64().expect("a number")), "{open}");
    }
    let seen = stub.seen();
    assert_eq!(seen.len(), 1, "the answer is kept: {seen:?}");
    let (told, headers) = (seen[0].json(), &seen[0].headers);
    let expected =
        json!({"headers": {}, "cookies": {"session": "u1"}, "origin": origin, "address": "127.0.0.1"});
    assert_eq!(told, expected);
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers["content-type"], "application/json");
    assert!(!headers.contains_key("cookie") && !headers.contains_key("x-other"), "{headers:?}");
    let by_header = get(&server, "/topics/a?wait=0").header("x-app", "k").answer().await;
    assert_eq!(by_header.status, 200, "{by_header:?}");
    assert_eq!(stub.seen()[0].json()["headers"], json!({"x-app": "k"}));
    poll(&server, "session=u2").await;
    get(&server, "/topics/b").header("cookie", "session=u2").answer().await.problem(403, "forbidden");
    assert_eq!(stub.count(HOOK), 1);
    let one = post(&server, "/topics/a").header("cookie", "session=u1").header("origin", &origin).body("x");
    one.answer().await.id();
    let answer = get(&server, "/topics/a?after=0&wait=0").answer_to(BACKEND).await;
    assert_eq!(answer.json()["messages"][0]["by"], "h-u1", "{answer:?}");
    let metrics = get(&server, "/metrics").answer_to(BACKEND).await;
    assert!(metrics.text().contains("rejoin_hook_questions_total{outcome=\"granted\"} 3"), "{metrics:?}");
    assert!(metrics.text().contains("rejoin_hook_waiting 0"), "{metrics:?}");
}

/// Such a request waits for the backend, and keeps only a part of its head meanwhile.
#[tokio::test]
async fn a_websocket_that_waited_for_the_backend_is_compressed_as_it_offers() {
    let (stub, server) = started().await;
    let handshake = get(&server, "/topics/a")
        .header("cookie", "session=u1")
        .header("origin", server.http(""))
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")
        .header("sec-websocket-extensions", "permessage-deflate");
    let answer = within("a head", handshake.send()).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), stub.seen().len()), (101, 1));
    let extension = answer.headers().get("sec-websocket-extensions").expect("it is accepted");
    assert!(extension.to_str().expect("ASCII").starts_with("permessage-deflate"), "{extension:?}");
}

#[tokio::test]
async fn a_request_without_the_cookie_or_with_a_key_of_ours_is_never_asked_for() {
    let (stub, server) = started().await;
    assert_eq!(get(&server, "/topics/public.a?wait=0").answer().await.status, 200);
    get(&server, "/topics/a?wait=0").answer().await.problem(401, "unauthorized");
    poll(&server, "sessions=u1; session=").await.problem(401, "unauthorized");
    get(&server, "/topics/a").answer_to("rejoin_unknown").await.problem(401, "unauthorized");
    let mine = token("u1", json!({"subscribe": ["a"]}));
    for credential in [mine.as_str(), BACKEND] {
        let both = get(&server, "/topics/a?wait=0").header("cookie", "session=u2");
        assert_eq!(both.answer_to(credential).await.status, 200);
    }
    assert_eq!(get(&server, "/health/ready").header("cookie", "session=u1").answer().await.status, 200);
    assert_eq!(stub.count(HOOK), 0);
    let unknown = get(&server, "/topics/a?wait=0").header("cookie", "session=u3");
    assert_eq!(unknown.answer_to("rejoin_unknown").await.status, 200, "the backend knows the client");
    assert_eq!(stub.count(HOOK), 1);
    let twice = poll(&server, "session=u1; session=planted").await;
    twice.problem(401, "unauthorized");
    assert_eq!(stub.count(HOOK), 1);
}

/// A server of an issuer and a backend, with these settings.
async fn with_issuer(issuer: &Stub, terms: &str, backend: &Stub, shown: &str) -> Arc<Server> {
    let (keys, url) = (issuer.url("/keys"), backend.url(HOOK));
    let tables = format!(
        "[[jwt]]\nname = \"id\"\njwks = \"{keys}\"\naud = \"push\"\n{terms}\n\
         [hook]\nurl = \"{url}\"\n{shown}\nsub-prefix = \"h-\"\n"
    );
    Arc::new(server_with(&tables).await)
}

/// An issuer with the key of this signer, and the backend.
async fn issuer_and_backend(signer: &Signer) -> (Stub, Stub) {
    let key: Value = serde_json::from_str(&signer.jwk()).expect("JSON");
    let issuer = Stub::start(move |_| Reply::json(&json!({"keys": [key]}))).await;
    (issuer, Stub::start(grant(json!(600))).await)
}

/// A token without a `kid`.
fn token_of(signer: &Signer) -> String {
    signer.sign(&json!({"sub": "u1", "iss": "id", "aud": "push", "exp": seconds_from_now(60)}))
}

#[tokio::test]
async fn a_session_is_asked_for_while_an_issuer_that_it_does_not_name_is_away() {
    for (iss, expected) in [("", 200), ("iss = \"id\"", 503)] {
        let (issuer, backend) = issuer_and_backend(&Signer::new("ES256")).await;
        let server = with_issuer(&issuer, iss, &backend, "headers = [\"authorization\"]").await;
        let session = token_of(&Signer::new("ES256"));
        let ask = async || get(&server, "/topics/a?wait=0").answer_to(&session).await.status;
        assert_eq!(ask().await, 200, "{iss}: fresh keys say that it is not of this issuer");
        issuer.answer_with(|_| Reply(500, vec![], String::new()));
        pass(Duration::from_secs(300)).await;
        assert_eq!(ask().await, expected, "{iss}");
    }
}

#[tokio::test]
async fn a_mistake_in_the_cookies_refuses_no_token_before_the_keys_of_its_issuer_are_there() {
    let signer = Signer::new("ES256");
    let (issuer, backend) = issuer_and_backend(&signer).await;
    issuer.hold();
    let server = with_issuer(&issuer, "subscribe = [\"a\"]", &backend, "cookies = [\"session\"]").await;
    let asking: Vec<_> = [signer, Signer::new("ES256")]
        .map(|signer| {
            let (mine, server) = (token_of(&signer), server.clone());
            tokio::spawn(async move {
                let twice = get(&server, "/topics/a?wait=0").header("cookie", "session=u1; session=planted");
                twice.answer_to(&mine).await.status
            })
        })
        .into();
    issuer.until_asked("/keys", 1).await;
    issuer.open();
    let mut told = Vec::new();
    for one in asking {
        told.push(one.await.expect("an answer"));
    }
    assert_eq!(told, [200, 401]);
    assert_eq!(backend.count(HOOK), 0);
}

#[tokio::test]
async fn origin_and_host_are_checked_before_the_backend_is_asked() {
    let (stub, server) = started().await;
    let cookie = ("cookie", "session=u1");
    let foreign = [cookie, ("origin", "https://elsewhere.example")];
    for transport in Transport::ALL {
        refusal(&server, transport, "/topics/a", &foreign).await.problem(403, "forbidden_origin");
    }
    let without = post(&server, "/topics/a").header("cookie", "session=u1").body("x").answer().await;
    without.problem(403, "forbidden_origin");
    refusal(&server, Transport::WebSocket, "/topics/a", &[cookie]).await.problem(403, "forbidden_origin");
    let sibling = [cookie, ("sec-fetch-site", "same-site")];
    refusal(&server, Transport::Sse, "/topics/a", &sibling).await.problem(403, "forbidden_origin");
    assert_eq!(stub.count(HOOK), 0);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_backend_and_kept_for_10_seconds() {
    let (stub, server) = started().await;
    for (status, code, close) in [(401, "unauthorized", 4001), (403, "forbidden", 4003)] {
        let body = json!({"detail": format!("{status} {}", "é".repeat(300))}).to_string();
        stub.answer_with(move |_| Reply(status, vec![], body.clone()));
        let cookie = format!("session=no{status}");
        let problem = poll(&server, &cookie).await.problem(status, code);
        let detail = text(&problem["detail"]);
        assert!(detail.starts_with(&status.to_string()) && detail.chars().count() == 200, "{problem}");
        let origin = server.http("");
        let headers = [("cookie", cookie.as_str()), ("origin", origin.as_str())];
        refusal(&server, Transport::Sse, "/topics/a", &headers).await.problem(status, code);
        let mut socket = Socket::shake_hands(&server, "/topics/a", &headers).await;
        assert_eq!(socket.next().await["code"], code);
        assert_eq!(socket.closed().await.0, close);
        assert_eq!(stub.seen().len(), 1);
        pass(Duration::from_secs(10)).await;
        poll(&server, &cookie).await.problem(status, code);
        assert_eq!(stub.seen().len(), 1);
    }
    stub.answer_with(|_| Reply(401, vec![], "no JSON".into()));
    poll(&server, "session=other").await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_hook_that_answers_nonsense_or_hugely_is_away_and_asked_again() {
    let (stub, server) = started().await;
    let with = |member: Value| Reply::json(&member);
    let wrong: [fn() -> Reply; 9] = [
        || Reply(500, vec![], "{}".into()),
        || Reply(204, vec![], String::new()),
        || Reply(404, vec![], "{\"sub\":\"u1\"}".into()),
        || Reply(302, vec![("location", "/who".into())], String::new()),
        || Reply(200, vec![], "nonsense".into()),
        || Reply(200, vec![], format!("{{\"sub\":\"u1\"}}{}", " ".repeat(64 << 10))),
        || Reply(401, vec![], " ".repeat((64 << 10) + 1)),
        || Reply::json(&json!({"sub": 1})),
        || Reply::json(&json!({"sub": "u1", "subscribe": ["a"], "expires_in": 86_401})),
    ];
    for reply in wrong {
        stub.answer_with(move |_| reply());
        poll(&server, "session=u1").await.problem(503, "unavailable");
        assert_eq!(stub.seen().len(), 1);
    }
    stub.answer_with(|_| Reply(500, vec![], String::new()));
    is_told_to_come_again(&server, "/topics/a", &[("x-app", "k")]).await;
    stub.answer_with(move |_| with(json!({"sub": "u1", "subscribe": ["a"]})));
    assert_eq!(poll(&server, "session=u1").await.status, 200, "nothing of it was kept");
    let mut later = Events::open_with(&server, "/topics/a", &[("cookie", "session=u1")]).await;
    publish(&server, "a", "x").await;
    assert_eq!(later.next().await.data.as_deref(), Some("x"));
}

#[tokio::test]
async fn a_hook_that_is_slow_is_away() {
    let (stub, server) = started().await;
    stub.hold();
    let asked = asking(&server, "session=u1");
    stub.until_asked(HOOK, 1).await;
    pass(Duration::from_secs(5)).await;
    within("an answer", asked).await.expect("an answer").problem(503, "unavailable");
}

fn asking(server: &Arc<Server>, cookie: &str) -> JoinHandle<Answer> {
    let (server, cookie) = (server.clone(), cookie.to_owned());
    tokio::spawn(async move { poll(&server, &cookie).await })
}

#[tokio::test]
async fn all_who_show_the_same_share_one_question() {
    let (stub, server) = started().await;
    stub.hold();
    let all: Vec<_> = (0..5).map(|_| asking(&server, "session=u1")).collect();
    stub.until_asked(HOOK, 1).await;
    until_served(&server, 5).await;
    stub.open();
    for one in all {
        assert_eq!(one.await.expect("an answer").status, 200);
    }
    assert_eq!(stub.count(HOOK), 1);
}

#[tokio::test]
async fn random_cookies_ask_64_questions_at_once_and_count_as_connections() {
    let stub = Stub::start(grant(json!(60))).await;
    let tables = tables(&with_hook(&stub));
    let server = Server::with(|config| (config.tables, config.max_connections) = (tables, 70)).await;
    let server = Arc::new(server);
    stub.hold();
    let all: Vec<_> = (0..70).map(|number| asking(&server, &format!("session=random{number}"))).collect();
    until_served(&server, 70).await;
    stub.until_asked(HOOK, 64).await;
    poll(&server, "session=one-more").await.problem(503, "overloaded");
    let metrics = get(&server, "/metrics").answer_to(BACKEND).await;
    assert!(metrics.text().contains("rejoin_hook_waiting 70"), "{metrics:?}");
    assert_eq!(stub.count(HOOK), 64);
    stub.open();
    for one in all {
        assert_eq!(one.await.expect("an answer").status, 200);
    }
    assert_eq!(stub.count(HOOK), 70);
}

#[tokio::test]
async fn an_answer_is_renewed_before_it_expires_while_the_backend_grants_the_same() {
    let stub = Stub::start(grant(json!(60))).await;
    let server = server_with(&with_hook(&stub)).await;
    let headers = [("cookie", "session=u9")];
    let mut lines = Lines::open_with(&server, "/topics/a", &headers).await;
    let fails = AtomicBool::new(true);
    stub.answer_with(move |seen| match fails.swap(false, Ordering::Relaxed) {
        true => Reply(500, vec![], String::new()),
        false => grant(json!(60))(seen),
    });
    // One answer opened it, and one renewed it. Only a connection that took this one asks for a third.
    loop {
        let (granted, away) = (answers(&server, "granted").await, answers(&server, "away").await);
        if granted == 3 {
            break;
        }
        // A question that is on its way must not become too old.
        if granted + away >= stub.count(HOOK) {
            pass(Duration::from_secs(57)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(answers(&server, "away").await > 0);
    let id = publish(&server, "a", "x").await;
    // Time has passed, so that there are heartbeats too.
    let mut line = lines.next().await;
    while line["type"] == "cursor" {
        line = lines.next().await;
    }
    assert_eq!(line["id"], json!(id), "it lives on");
    let endings: [fn() -> Reply; 4] = [
        || Reply(401, vec![], String::new()),
        || Reply(500, vec![], String::new()),
        || Reply::json(&json!({"sub": "other", "subscribe": ["a"]})),
        || Reply::json(&json!({"sub": "u3", "subscribe": ["b"]})),
    ];
    for (number, ending) in endings.into_iter().enumerate() {
        stub.answer_with(grant(json!(1)));
        let cookie = format!("session=u{number}");
        let headers = [("cookie", cookie.as_str())];
        let mut reader = Reader::open_with(&server, Transport::Ndjson, "topic=a", &headers).await;
        assert_eq!(reader.opening()["sub"], format!("h-u{number}"));
        stub.answer_with(move |_| ending());
        let closing = reader.next().await;
        assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("token_expired")));
    }
}

#[tokio::test]
async fn another_backend_is_not_shown_what_was_meant_for_the_one_before() {
    let (stub, other) = (Stub::start(grant(json!(1))).await, Stub::start(grant(json!(60))).await);
    let server = server_with(&with_hook(&stub)).await;
    let headers = [("cookie", "session=u1")];
    let mut reader = Reader::open_with(&server, Transport::Ndjson, "topic=a", &headers).await;
    let config = Config { tables: tables(&with_hook(&other)), ..Config::default() };
    server.app.as_ref().expect("it is served here").reconfigure(&config).expect("allowed");
    assert_eq!(reader.next().await["code"], "token_expired");
    assert_eq!(other.count(HOOK), 0);
}

#[tokio::test]
async fn what_a_hook_has_granted_ends_with_the_hook() {
    let (stub, server) = started().await;
    let headers = [("cookie", "session=u1")];
    let mut lines = Lines::open_with(&server, "/topics/a", &headers).await;
    let reconfigure = |toml: &str| {
        let config = Config { tables: tables(toml), ..Config::default() };
        server.app.as_ref().expect("it is served here").reconfigure(&config).expect("allowed");
    };
    reconfigure(&(with_hook(&stub) + "[[key]]\nname = \"k\"\nsha256 = \"" + &"0".repeat(64) + "\"\n"));
    let id = publish(&server, "a", "x").await;
    assert_eq!(lines.next().await["id"], json!(id));
    poll(&server, "session=u1").await;
    assert_eq!(stub.count(HOOK), 1, "its answers are kept");
    reconfigure(&usual());
    assert_eq!(lines.next().await["code"], "forbidden");
    poll(&server, "session=u1").await.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_token_cannot_take_over_a_connection_of_the_hook() {
    let (_stub, server) = started().await;
    let origin = server.http("");
    let headers = [("cookie", "session=u1"), ("origin", origin.as_str())];
    let mut socket = Socket::open_with(&server, "/topics/a", &headers).await;
    for sub in ["u1", "h-u1"] {
        let mine = token(sub, json!({"subscribe": ["a"]}));
        let answer = socket.ask(json!({"type": "auth", "token": mine})).await;
        assert_eq!(answer["type"], "error", "{answer}");
    }
    let forged = bearer(&token("h-u1", json!({"subscribe": ["a"]})));
    let answer = get(&server, "/topics/a").header("authorization", forged).answer().await;
    answer.problem(401, "unauthorized");
}

#[test]
fn a_hook_without_a_header_or_a_cookie_is_refused() {
    let hook = |more: &str| parse(&format!("[hook]\nurl = \"http://localhost/\"\n{more}\n"));
    assert!(hook("cookies = [\"session\"]").is_ok());
    for (wrong, told) in [
        ("", "name at least one"),
        ("cookies = [\"a b\"]", "is not the name of a header or a cookie"),
        ("headers = [\"\"]", "is not the name of a header or a cookie"),
        ("cookies = [\"s\"]\nsecret = \"***\"", "*** is not a key"),
        ("cookies = [\"s\"]\nsecret = \"a\\nb\"", "secret: expected visible ASCII"),
        ("cookies = [\"s\"]\nsub-prefix = \"a.b\"", "sub-prefix: expected text without"),
        ("cookies = [\"s\"]\nadmin = true", "unknown field"),
        (
            "cookies = [\"s\"]\n[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = \"a secret of more than thirty-two bytes\"",
            "give one of them a sub-prefix",
        ),
    ] {
        let mistakes = hook(wrong).err().unwrap_or_else(|| panic!("{wrong} is accepted"));
        assert!(mistakes.len() == 1 && mistakes[0].contains(told), "{wrong}: {mistakes:?}");
        assert!(!mistakes[0].contains("a\nb"), "{mistakes:?}");
    }
    for url in ["ftp://localhost/", "localhost", "http://u:p@localhost/"] {
        let mistakes = parse(&format!("[hook]\nurl = \"{url}\"\ncookies = [\"s\"]\n")).expect_err(url);
        assert!(mistakes[0].contains("url: "), "{mistakes:?}");
    }
}

/// The end of a subject, by the backend.
async fn end(server: &Server, sub: &str) {
    let answer = request(server, Method::DELETE, &format!("/subjects/{sub}")).answer_to(BACKEND).await;
    assert_eq!((answer.status, answer.text()), (204, ""));
}

#[tokio::test]
async fn the_end_of_a_subject_forgets_what_the_backend_has_said_about_it() {
    let (stub, server) = started().await;
    for cookie in ["session=u1", "session=u2", "session=u1"] {
        assert_eq!(poll(&server, cookie).await.status, 200);
    }
    assert_eq!(stub.seen().len(), 2);
    end(&server, "h-u1").await;
    stub.answer_with(|_| Reply(403, Vec::new(), String::new()));
    poll(&server, "session=u1").await.problem(403, "forbidden");
    assert_eq!(poll(&server, "session=u2").await.status, 200, "it is still known");
    assert_eq!(stub.count(HOOK), 1);
}

/// The backend has answered by what it knew before, so it is asked again. The connection ends in any case.
#[tokio::test]
async fn a_connection_that_waits_for_the_backend_while_its_subject_is_ended_ends_too() {
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let (stub, server) = started().await;
        stub.hold();
        let origin = server.http("");
        let headers = [("cookie", "session=u1"), ("origin", &*origin)];
        let opened = Reader::open_with(&server, transport, "topic=a", &headers);
        let ended = async {
            stub.until_asked(HOOK, 1).await;
            end(&server, "h-u1").await;
            stub.open();
        };
        let (mut reader, ()) = tokio::join!(opened, ended);
        let closing = reader.next().await;
        assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("disconnected")));
        assert_eq!(stub.count(HOOK), 2, "{transport}");
        // A connection that begins now is not meant.
        let mut reader = Reader::open_with(&server, transport, "topic=a", &headers).await;
        let id = publish(&server, "a", "x").await;
        assert_eq!(reader.ids(1).await, [id]);
        assert_eq!(stub.count(HOOK), 2, "{transport}");
    }
}
