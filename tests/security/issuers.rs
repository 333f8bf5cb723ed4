//! Tokens of issuers whose keys are fetched: JWKS and OpenID discovery.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::Header;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, within},
    contract::reader::Reader,
    people::{As, BACKEND, bearer, parse, server_with, until_served},
    reader::{Events, Lines, Socket, refusal},
    signer::{Signer, seconds_from_now},
    stub::{Reply, Stub, pass},
    support::{Server, client::Transport},
};

const KEYS: &str = "/keys";
const METADATA: &str = "/tenant/.well-known/openid-configuration";

/// A key of a set, with this kid and without `alg`.
fn key(signer: &Signer, kid: &str) -> Value {
    let mut jwk: Value = serde_json::from_str(&signer.jwk()).expect("JSON");
    jwk["kid"] = json!(kid);
    jwk.as_object_mut().expect("an object").remove("alg");
    jwk
}

fn set(keys: &[Value]) -> Reply {
    Reply::json(&json!({"keys": keys}))
}

fn token(signer: &Signer, kid: &str) -> String {
    let header = Header { kid: Some(kid.into()), ..Header::new(signer.algorithm) };
    let claims = json!({
        "sub": "u1", "iss": "id", "aud": "push", "exp": seconds_from_now(60),
        "rejoin": {"subscribe": ["a"]},
    });
    signer.sign_as(&header, &claims)
}

/// A server that fetches from this stub, and a token key of its own.
async fn server(stub: &Stub, more: &str) -> Server {
    let url = stub.url(KEYS);
    server_with(&format!("[[jwt]]\nname = \"id\"\njwks = \"{url}\"\niss = \"id\"\naud = \"push\"\n{more}"))
        .await
}

async fn status(server: &Server, token: &str) -> u16 {
    get(server, "/topics/a?wait=0").answer_to(token).await.status
}

#[tokio::test]
async fn a_token_is_verified_by_the_keys_that_its_issuer_publishes() {
    let signers = ["RS256", "ES256", "ES384", "EdDSA"].map(Signer::new);
    let keys: Vec<_> = signers.iter().map(|signer| key(signer, &format!("{:?}", signer.algorithm))).collect();
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    for signer in &signers {
        let kid = format!("{:?}", signer.algorithm);
        assert_eq!(status(&server, &token(signer, &kid)).await, 200, "{kid}");
    }
    let other = Signer::new("ES256");
    assert_eq!(
        status(&server, &token(&other, "ES256")).await,
        401,
        "the kid is known, and the key is another"
    );
    assert_eq!(stub.count(KEYS), 1);
}

#[tokio::test]
async fn shared_secrets_and_keys_for_encryption_in_a_set_verify_nothing() {
    let (secret, encrypting, right) = (Signer::new("HS256"), Signer::new("ES256"), Signer::new("ES256"));
    let mut for_encryption = key(&encrypting, "enc");
    for_encryption["use"] = json!("enc");
    let keys = [key(&secret, "secret"), for_encryption, json!(7), json!({"kty": "x"}), key(&right, "right")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    assert_eq!(status(&server, &token(&right, "right")).await, 200, "the others do not spoil it");
    for (signer, kid) in [(&secret, "secret"), (&encrypting, "enc")] {
        pass(Duration::from_secs(10)).await;
        assert_eq!(status(&server, &token(signer, kid)).await, 401, "{kid}");
    }
}

#[tokio::test]
async fn the_configured_algorithm_is_that_of_keys_without_one() {
    let signer = Signer::new("RS256");
    let keys = [key(&signer, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "algorithm = \"PS256\"\n").await;
    assert_eq!(status(&server, &token(&signer.of("PS256"), "1")).await, 200);
    assert_eq!(status(&server, &token(&signer, "1")).await, 401);
}

/// Answers as an issuer of this name.
fn discovery(name: String, uri: String, keys: Vec<Value>) -> impl Fn(&crate::stub::Seen) -> Reply {
    move |seen| match seen.path.as_str() {
        METADATA => Reply::json(&json!({"issuer": name, "jwks_uri": uri, "x": 1})),
        KEYS => set(&keys),
        _ => Reply(404, vec![], String::new()),
    }
}

#[tokio::test]
async fn an_issuer_is_found_by_discovery_if_it_is_the_configured_one_letter_by_letter() {
    let signer = Signer::new("ES256");
    let keys = vec![key(&signer, "1")];
    let stub = Stub::start(|_| Reply(500, vec![], String::new())).await;
    let name = stub.url("/tenant");
    stub.answer_with(discovery(name.clone(), stub.url(KEYS), keys.clone()));
    let tables = format!("[[jwt]]\nname = \"id\"\nissuer = \"{name}\"\naud = \"push\"\n");
    let right = server_with(&tables).await;
    let mine = |iss: &str| {
        let header = Header { kid: Some("1".into()), ..Header::new(signer.algorithm) };
        let exp = seconds_from_now(60);
        let claims = json!({"iss": iss, "aud": "push", "exp": exp, "rejoin": {"subscribe": ["a"]}});
        signer.sign_as(&header, &claims)
    };
    assert_eq!(status(&right, &mine(&name)).await, 200);
    assert_eq!(status(&right, &mine(&format!("{name}/"))).await, 401);
    stub.answer_with(discovery(format!("{name}/"), stub.url(KEYS), keys.clone()));
    let wrong = server_with(&tables).await;
    let answer = get(&wrong, "/topics/a").answer_to(&mine(&name)).await;
    answer.problem(503, "unavailable");
    stub.answer_with(discovery(name.clone(), "http://192.0.2.1/keys".into(), keys));
    let elsewhere = server_with(&tables).await;
    get(&elsewhere, "/topics/a").answer_to(&mine(&name)).await.problem(503, "unavailable");
}

#[tokio::test]
async fn all_who_wait_share_one_fetch() {
    let signer = Signer::new("ES256");
    let keys = [key(&signer, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    stub.hold();
    let server = Arc::new(server(&stub, "").await);
    let mine = token(&signer, "1");
    let asking: Vec<_> = (0..5)
        .map(|_| {
            let (server, mine) = (server.clone(), mine.clone());
            tokio::spawn(async move { status(&server, &mine).await })
        })
        .collect();
    stub.until_asked(KEYS, 1).await;
    stub.open();
    for answer in asking {
        assert_eq!(answer.await.expect("an answer"), 200);
    }
    assert_eq!(stub.count(KEYS), 1);
}

/// Asserts that each transport is told to come again later.
pub async fn is_told_to_come_again(server: &Server, path: &str, headers: &[(&str, &str)]) {
    for (transport, kind) in
        [(Transport::Sse, "text/event-stream"), (Transport::Ndjson, "application/x-ndjson")]
    {
        let answer = refusal(server, transport, path, headers).await;
        assert!(answer.status == 200 && answer.header("content-type").starts_with(kind), "{answer:?}");
        assert!(answer.text().contains(r#""code":"overloaded""#), "{answer:?}");
        let retry = answer.text().split("retry_ms\":").nth(1).and_then(|rest| rest.split('}').next());
        let retry: u32 = retry.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
        assert!((5_000..=30_000).contains(&retry), "{answer:?}");
    }
    refusal(server, Transport::Poll, path, headers).await.problem(503, "unavailable");
    assert_eq!(refusal(server, Transport::WebSocket, path, headers).await.status, 503);
    let origin = server.http("");
    let of_page = [headers, &[("origin", origin.as_str())]].concat();
    let mut socket = Socket::shake_hands(server, path, &of_page).await;
    assert_eq!(socket.next().await["code"], "overloaded");
    assert_eq!(socket.closed().await.0, 4100);
}

#[tokio::test]
async fn an_unknown_key_is_fetched_for_every_10_seconds_at_most() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let keys = [key(&old, "old")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    assert_eq!(status(&server, &token(&old, "old")).await, 200);
    let unknown = token(&new, "new");
    let header = bearer(&unknown);
    is_told_to_come_again(&server, "/topics/a", &[("authorization", &header)]).await;
    assert_eq!(stub.count(KEYS), 1);
    pass(Duration::from_secs(10)).await;
    assert_eq!(status(&server, &unknown).await, 401, "after a fetch it is certain");
    assert_eq!(stub.count(KEYS), 2);
    let keys = [key(&old, "old"), key(&new, "new")];
    stub.answer_with(move |_| set(&keys));
    assert_eq!(status(&server, &unknown).await, 503);
    pass(Duration::from_secs(10)).await;
    assert_eq!(status(&server, &unknown).await, 200, "the new key is there");
    assert_eq!(stub.count(KEYS), 3);
}

#[tokio::test]
async fn a_set_that_is_stale_refuses_no_token_of_a_new_key() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let only = |signer: &Signer| {
        let mut key = key(signer, "");
        key.as_object_mut().expect("an object").remove("kid");
        move |_: &crate::stub::Seen| set(std::slice::from_ref(&key))
    };
    let without_kid = |signer: &Signer| {
        let exp = seconds_from_now(60);
        let claims = json!({"iss": "id", "aud": "push", "exp": exp, "rejoin": {"subscribe": ["a"]}});
        signer.sign_as(&Header::new(signer.algorithm), &claims)
    };
    let stub = Stub::start(only(&old)).await;
    let server = server(&stub, "").await;
    assert_eq!(status(&server, &without_kid(&old)).await, 200);
    stub.answer_with(only(&new));
    assert_eq!(status(&server, &without_kid(&new)).await, 401, "the set is fresh");
    pass(Duration::from_secs(300)).await;
    assert_eq!(status(&server, &without_kid(&new)).await, 200);
    assert_eq!(status(&server, &without_kid(&old)).await, 401);
    assert_eq!(stub.count(KEYS), 2);
    stub.answer_with(|_| Reply(500, vec![], String::new()));
    pass(Duration::from_secs(300)).await;
    assert_eq!(status(&server, &without_kid(&old)).await, 503, "it may be right");
}

#[tokio::test]
async fn a_request_that_waits_for_keys_counts_as_a_connection() {
    let signer = Signer::new("ES256");
    let keys = [key(&signer, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    stub.hold();
    let url = stub.url(KEYS);
    let digest = rejoin::auth::Digest::of(BACKEND.as_bytes());
    let tables = crate::people::tables(&format!(
        "[[jwt]]\nname = \"id\"\njwks = \"{url}\"\niss = \"id\"\naud = \"push\"\n\
         [[key]]\nname = \"backend\"\nsha256 = \"{digest}\"\nadmin = true\n"
    ));
    let server = Server::with(|config| (config.tables, config.max_connections) = (tables, 1)).await;
    let server = Arc::new(server);
    let (asked, mine) = (server.clone(), token(&signer, "1"));
    let waits = tokio::spawn(async move { status(&asked, &mine).await });
    until_served(&server, 1).await;
    get(&server, "/topics/a?wait=0").answer_to(&token(&signer, "1")).await.problem(503, "overloaded");
    stub.open();
    assert_eq!(waits.await.expect("an answer"), 200);
}

#[tokio::test]
async fn a_socket_is_renewed_by_a_token_of_a_new_key() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let keys = [key(&old, "old")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    let header = bearer(&token(&old, "old"));
    let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let renew = json!({"type": "auth", "token": token(&new, "new")});
    let answer = socket.ask(renew.clone()).await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("unavailable")));
    let keys = [key(&new, "new")];
    stub.answer_with(move |_| set(&keys));
    pass(Duration::from_secs(10)).await;
    assert_eq!(socket.ask(renew).await["type"], "authenticated");
}

#[tokio::test]
async fn an_issuer_that_is_away_stops_no_start_and_is_asked_again_after_a_second() {
    let signer = Signer::new("ES256");
    let stub = Stub::start(|_| Reply(500, vec![], String::new())).await;
    let server = server(&stub, "[anonymous]\nsubscribe = [\"public\"]\n").await;
    stub.until_asked(KEYS, 1).await;
    let mine = token(&signer, "1");
    assert_eq!(status(&server, &mine).await, 503);
    assert_eq!(get(&server, "/topics/public?wait=0").answer().await.status, 200);
    let keys = [key(&signer, "1")];
    stub.answer_with(move |_| set(&keys));
    pass(Duration::from_secs(1)).await;
    assert_eq!(status(&server, &mine).await, 200);
    stub.answer_with(|_| Reply(500, vec![], String::new()));
    for _ in 0..3 {
        pass(Duration::from_secs(3600)).await;
        assert_eq!(status(&server, &mine).await, 200, "the last keys count");
    }
    assert!(stub.count(KEYS) >= 4, "it is asked again");
}

#[tokio::test]
async fn a_set_that_grows_or_that_is_nonsense_cannot_be_used() {
    let signer = Signer::new("ES256");
    let mine = token(&signer, "1");
    let jwk = key(&signer, "1");
    let many = |count: usize| json!({"keys": vec![jwk.clone(); count]}).to_string();
    let padded = format!("{}{}", many(1), " ".repeat(256 << 10));
    let body = move |body: String| move |_: &crate::stub::Seen| Reply(200, vec![], body.clone());
    let stub = Stub::start(body(many(100))).await;
    assert_eq!(status(&server(&stub, "").await, &mine).await, 200);
    for wrong in [many(101), padded, "nonsense".into(), "[]".into(), "{\"keys\":{}}".into()] {
        stub.answer_with(body(wrong));
        assert_eq!(status(&server(&stub, "").await, &mine).await, 503);
    }
    let right = Stub::start(body(many(1))).await;
    let place = right.url(KEYS);
    stub.answer_with(move |_| Reply(302, vec![("location", place.clone())], String::new()));
    assert_eq!(status(&server(&stub, "").await, &mine).await, 503, "no redirect is followed");
    assert_eq!(right.count(KEYS), 0);
}

#[tokio::test]
async fn an_issuer_that_is_slow_is_away() {
    let signer = Signer::new("ES256");
    let keys = [key(&signer, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    stub.hold();
    let server = Arc::new(server(&stub, "").await);
    let (asked, mine) = (server.clone(), token(&signer, "1"));
    let answer = tokio::spawn(async move { status(&asked, &mine).await });
    stub.until_asked(KEYS, 1).await;
    pass(Duration::from_secs(5)).await;
    assert_eq!(within("an answer", answer).await.expect("an answer"), 503);
}

#[tokio::test]
async fn keys_are_kept_as_the_headers_say_from_a_minute_to_a_day() {
    let signer = Signer::new("ES256");
    let mine = token(&signer, "1");
    for (cache, seconds) in
        [("max-age=120", 120), ("no-store", 60), ("max-age=1", 60), ("max-age=9999999", 86_400)]
    {
        let keys = [key(&signer, "1")];
        let answer = json!({"keys": keys}).to_string();
        let stub =
            Stub::start(move |_| Reply(200, vec![("cache-control", cache.into())], answer.clone())).await;
        let server = server(&stub, "").await;
        assert_eq!(status(&server, &mine).await, 200);
        pass(Duration::from_secs(seconds - 10)).await;
        assert_eq!((status(&server, &mine).await, stub.count(KEYS)), (200, 1), "{cache}");
        pass(Duration::from_secs(10)).await;
        assert_eq!((status(&server, &mine).await, stub.count(KEYS)), (200, 2), "{cache}");
    }
}

#[tokio::test]
async fn a_key_that_leaves_the_set_ends_no_connection_and_begins_none() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let keys = [key(&old, "old")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    let mine = token(&old, "old");
    let header = bearer(&mine);
    let mut lines = Lines::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let keys = [key(&new, "new")];
    stub.answer_with(move |_| set(&keys));
    pass(Duration::from_secs(300)).await;
    assert_eq!(status(&server, &mine).await, 401);
    assert_eq!(lines.next().await["type"], "cursor", "the heartbeat of a connection that lives");
}

#[tokio::test]
async fn keys_stay_known_while_other_settings_change() {
    let signer = Signer::new("ES256");
    let keys = [key(&signer, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let url = stub.url(KEYS);
    let tables = format!("[[jwt]]\nname = \"id\"\njwks = \"{url}\"\niss = \"id\"\naud = \"push\"\n");
    let server = server_with(&tables).await;
    let mine = token(&signer, "1");
    let header = bearer(&mine);
    let mut events = Events::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let reconfigure = |tables: &str| {
        let config = rejoin::Config { tables: crate::people::tables(tables), ..Default::default() };
        server.app.as_ref().expect("it is served here").reconfigure(&config).expect("allowed");
    };
    reconfigure(&(tables.clone() + "[anonymous]\nsubscribe = [\"public\"]\n"));
    assert_eq!((status(&server, &mine).await, stub.count(KEYS)), (200, 1));
    reconfigure(&(tables.clone() + "algorithm = \"ES256\"\n"));
    assert_eq!((status(&server, &mine).await, stub.count(KEYS)), (200, 2), "they are fetched again");
    assert_eq!(events.next_frame().await["type"], "cursor", "the connection lives on");
    reconfigure("[anonymous]\nsubscribe = [\"public\"]\n");
    let closing = events.next_frame().await;
    assert_eq!(closing["code"], "forbidden", "its issuer is gone: {closing}");
}

#[test]
fn an_issuer_needs_an_audience_and_a_safe_address() {
    let table = |more: &str| parse(&format!("[[jwt]]\nname = \"id\"\n{more}\n"));
    assert!(table("issuer = \"https://id.example\"\naud = \"push\"").is_ok());
    for (wrong, told) in [
        ("issuer = \"https://id.example\"", "aud is missing"),
        ("jwks = \"https://id.example/k\"", "aud is missing"),
        ("jwks = \"http://id.example/k\"\naud = \"push\"", "jwks: expected a URL of https"),
        ("issuer = \"http://id.example\"\naud = \"push\"", "issuer: expected a URL of https"),
        (
            "jwks = \"https://id.example/k\"\nissuer = \"https://id.example\"\naud = \"push\"",
            "exactly one of",
        ),
        ("jwks = \"https://id.example/k\"\nsecret = \"x\"\naud = \"push\"", "exactly one of"),
        ("jwks = \"https://id.example/k\"\nkid = \"1\"\naud = \"push\"", "kid: leave it out"),
        (
            "jwks = \"https://id.example/k\"\nalgorithm = \"HS256\"\naud = \"push\"",
            "algorithm HS256 signs by a secret, and jwks and issuer have public keys",
        ),
        ("jwks = \"https://id.example/k\"\nca = \"/nowhere.pem\"\naud = \"push\"", "ca /nowhere.pem"),
        ("issuer = \"https://id.example\"\niss = \"other\"\naud = \"push\"", "iss: leave it out"),
        ("algorithm = \"ES256\"\nca = \"x\"", "ca: only jwks and issuer"),
        ("secret = \"a secret of more than thirty-two bytes\"", "algorithm is missing"),
    ] {
        let mistakes = table(wrong).err().unwrap_or_else(|| panic!("{wrong} is accepted"));
        assert!(mistakes.len() == 1 && mistakes[0].contains(told), "{wrong}: {mistakes:?}");
    }
}

#[tokio::test]
async fn a_reader_of_another_issuer_is_not_let_in_by_the_name_of_one() {
    let (ours, theirs) = (Signer::new("ES256"), Signer::new("ES256"));
    let keys = [key(&ours, "1")];
    let stub = Stub::start(move |_| set(&keys)).await;
    let server = server(&stub, "").await;
    assert_eq!(status(&server, &token(&ours, "1")).await, 200);
    let header = Header { kid: Some("2".into()), ..Header::new(theirs.algorithm) };
    let stranger = json!({"iss": "stranger", "aud": "push", "exp": seconds_from_now(60)});
    pass(Duration::from_secs(10)).await;
    assert_eq!(status(&server, &theirs.sign_as(&header, &stranger)).await, 401);
    assert_eq!(stub.count(KEYS), 1, "nobody is asked about it");
    let headers = bearer(&token(&ours, "1"));
    Reader::open_with(&server, Transport::Sse, "topic=a", &[("authorization", &headers)]).await;
}
