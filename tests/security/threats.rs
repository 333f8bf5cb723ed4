//! The threats of `docs/security.md` that need a server with credentials, and a client that abuses one.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, request, text, with_query},
    people::{As, BACKEND, bearer, publish, reads, server, server_with, servers, token, token_for, usual},
    reader::{Reader, Socket, refusal},
    signer::{Signer, seconds_from_now, unsigned},
    support::{
        client::Transport,
        program::{Folder, Program},
    },
};

/// The headers that a browser sends for a foreign page, besides its visitor's cookie. Old browsers send
/// fewer.
const ELSEWHERE: [&[(&str, &str)]; 4] = [
    &[("origin", "https://elsewhere.example"), ("sec-fetch-site", "cross-site")],
    &[("origin", "https://elsewhere.example")],
    &[("origin", "null")],
    &[],
];

fn with(request: RequestBuilder, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

#[tokio::test]
async fn a_foreign_page_opens_no_websocket_with_its_visitors_cookie() {
    let server = server().await;
    let cookie = format!("rejoin_token={}", reads("u1", &["users.{sub}.**"]));
    for headers in ELSEWHERE {
        let headers = [headers, &[("cookie", cookie.as_str())]].concat();
        for path in ["/topics/users.u1.a", "/events"] {
            let answer = refusal(&server, Transport::WebSocket, path, &headers).await;
            answer.problem(403, "forbidden_origin");
        }
    }
    let own = server.http("");
    Socket::open_with(&server, "/topics/users.u1.a", &[("cookie", &cookie), ("origin", &own)]).await;
}

#[tokio::test]
async fn a_foreign_form_publishes_nothing_with_its_visitors_cookie() {
    let server = server().await;
    let cookie = format!("rejoin_token={}", token("u1", json!({"publish": ["**"], "admin": true})));
    let kept = publish(&server, "a", "kept").await;
    for headers in ELSEWHERE {
        let headers = [headers, &[("cookie", cookie.as_str()), ("sec-fetch-mode", "navigate")]].concat();
        for content_type in ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"] {
            for path in ["/topics/a", "/publish", "/topics/a?ephemeral"] {
                let form = post(&server, path).header("content-type", content_type).body("data=x");
                with(form, &headers).answer().await.problem(403, "forbidden_origin");
            }
        }
        let delete = with(request(&server, Method::DELETE, "/topics/a"), &headers);
        delete.answer().await.problem(403, "forbidden_origin");
    }
    let all = get(&server, "/topics/**?after=0&wait=0").answer_to(BACKEND).await.json();
    assert_eq!((all["messages"].as_array().map(Vec::len), &all["cursor"]), (Some(1), &json!(kept)), "{all}");
}

/// No log line contains a query today, but a credential that was not removed from the request could be
/// logged.
#[tokio::test]
async fn a_token_in_a_url_is_in_no_line_of_the_log_and_in_no_metric() {
    let folder = Folder::new();
    std::fs::write(folder.path("rejoin.toml"), usual()).expect("a file");
    let program = Program::start(&["--config", &folder.path("rejoin.toml"), "--log-level", "trace"]).await;
    let server = &program.server;
    let good = reads("u1", &["users.{sub}.**"]);
    let wrong = format!("{good}x");
    let old = token_for(-60, "u1", json!({}));
    let shown = [good.as_str(), &wrong, &old, "rejoin_not-known"];
    for token in shown {
        for path in
            ["/topics/users.u1.a", "/topics/users.u2.a", "/events", "/nowhere", "/stats", "/topics/a..b"]
        {
            let path = with_query(path, &[("token", token), ("wait", "0"), ("after", "0")]);
            get(server, &path).answer().await;
            get(server, &path.replace("token=", "t%6Fken=")).answer().await;
            refusal(server, Transport::WebSocket, &path, &[("sec-websocket-version", "7")]).await;
        }
    }
    let mut socket = Socket::open(server, &format!("/topics/users.u1.a?token={good}")).await;
    socket.ask(json!({"type": "auth", "token": wrong})).await;
    drop(socket);
    let metrics = get(server, "/metrics").answer_to(BACKEND).await;
    let log = program.terminate().await.log;
    assert!(log.contains("DEBUG") && metrics.text().contains("rejoin_"), "there is something to look at");
    for part in shown.iter().flat_map(|token| token.split('.')).chain([BACKEND]) {
        assert!(!log.contains(part), "{part} is in {log}");
        assert!(!metrics.text().contains(part), "{part} is in {}", metrics.text());
    }
}

#[tokio::test]
async fn the_cursor_of_another_client_grants_nothing() {
    for (_redis, server) in servers(&usual()).await {
        let before = publish(&server, "users.u2.a", "secret").await;
        let own = publish(&server, "users.u1.a", "mine").await;
        let after = publish(&server, "users.u2.b", "secret").await;
        let header = bearer(&reads("u1", &["users.{sub}.**"]));
        let headers = [("authorization", header.as_str())];
        for cursor in [before.as_str(), &after, "0", "1", "9007199254740000"] {
            for transport in Transport::ALL {
                let theirs = format!("/topics/users.u2.a?wait=0&after={cursor}");
                refusal(&server, transport, &theirs, &headers).await.problem(403, "forbidden");
            }
            let path = format!("/topics/users.u1.**?wait=0&after={cursor}");
            let answer = with(get(&server, &path), &headers).answer().await;
            assert!(!answer.text().contains("u2") && !answer.text().contains("secret"), "{answer:?}");
        }
        for transport in Transport::ALL {
            let query = format!("topic=users.u1.**&after={before}");
            let mut reader = Reader::open_with(&server, transport, &query, &headers).await;
            assert_eq!(reader.ids(1).await, [own.as_str()], "{transport}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn no_subject_reaches_beyond_its_own_segment() {
    let server = server().await;
    publish(&server, "users.u2.a", "secret").await;
    for subject in ["*", "**", "u2.**", "u2.a", "u1.**", ".", "", "$rejoin", "{sub}", "u2,u1", "u2\n", " u2"]
    {
        let claims =
            json!({"subscribe": ["users.{sub}.**", "users.{sub}", "{sub}"], "publish": ["users.{sub}.a"]});
        let mine = token(subject, claims);
        for asked in ["users.u2.a", "users.u2.**", "users.*.a", "users.**", "**", "*"] {
            let path = with_query("/events", &[("topic", asked), ("wait", "0"), ("after", "0")]);
            get(&server, &path).answer_to(&mine).await.problem(403, "forbidden");
        }
        let publish = post(&server, "/topics/users.u2.a").body("x").answer_to(&mine);
        publish.await.problem(403, "forbidden");
    }
    let mine = token("u2", json!({"subscribe": ["users.{sub}.**"]}));
    assert_eq!(get(&server, "/topics/users.u2.a?after=0").answer_to(&mine).await.status, 200);
}

/// True if a server with these keys accepts the token.
async fn accepts(tables: &str, token: &str) -> bool {
    let server = server_with(tables).await;
    let answer = get(&server, "/topics/a?wait=0").answer_to(token).await;
    if answer.status != 200 {
        answer.problem(401, "unauthorized");
    }
    server.stop().await;
    answer.status == 200
}

fn claims() -> Value {
    json!({"sub": "u1", "exp": seconds_from_now(60), "rejoin": {"subscribe": ["**"]}})
}

#[tokio::test]
async fn a_public_key_is_no_secret_and_each_key_has_one_algorithm() {
    for (algorithm, others) in [("RS256", &["RS512", "PS256"][..]), ("ES256", &[]), ("EdDSA", &[])] {
        let signer = Signer::new(algorithm);
        // With a secret beside it, so that the server also tries tokens of that algorithm.
        let tables = signer.table("public") + &Signer::new("HS256").table("secret");
        assert!(accepts(&tables, &signer.sign(&claims())).await, "{algorithm}");
        let der = signer.public.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        for secret in [signer.public.as_str(), signer.public.trim(), &der, &signer.jwk()] {
            for forged in ["HS256", "HS384", "HS512"] {
                let forger = Signer::with_secret(forged.parse().expect("an algorithm"), secret);
                assert!(!accepts(&tables, &forger.sign(&claims())).await, "{algorithm} as {forged}");
            }
        }
        for other in others {
            let same_key = signer.of(other);
            assert!(!accepts(&tables, &same_key.sign(&claims())).await, "{algorithm} as {other}");
        }
    }
}

#[tokio::test]
async fn an_unsigned_token_is_refused() {
    let signer = Signer::new("HS256");
    let tables = signer.table("k");
    let signed = signer.sign(&claims());
    let (body, _) = signed.rsplit_once('.').expect("three parts");
    let mut tokens = vec![format!("{body}."), format!("{body}.AAAA"), body.to_owned()];
    for algorithm in ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "ES512"] {
        let token = unsigned(&json!({"alg": algorithm, "typ": "JWT"}), &claims());
        tokens.extend([format!("{token}AAAA"), token]);
    }
    tokens.extend(
        [json!({}), json!({"alg": null}), json!({"alg": ["HS256"]})]
            .map(|header| unsigned(&header, &claims())),
    );
    for token in tokens {
        assert!(!accepts(&tables, &token).await, "{token}");
    }
    assert!(accepts(&tables, &signed).await);
}

#[tokio::test]
async fn a_token_cannot_choose_the_key_that_verifies_it() {
    let (ours, theirs, foreign) = (Signer::new("ES256"), Signer::new("ES256"), Signer::new("ES256"));
    let tables = ours.table("ours")
        + "kid = \"ours\"\niss = \"ours\"\n"
        + &theirs.table("theirs")
        + "kid = \"theirs\"\niss = \"theirs\"\nsub-prefix = \"theirs-\"\n";
    let sign = |signer: &Signer, kid: &str, iss: &str| {
        let mut header = jsonwebtoken::Header::new(signer.algorithm);
        header.kid = Some(kid.into());
        header.jku = Some("https://elsewhere.example/keys".into());
        header.jwk = serde_json::from_str(&signer.jwk()).ok();
        let mut claims = claims();
        claims["iss"] = json!(iss);
        signer.sign_as(&header, &claims)
    };
    assert!(accepts(&tables, &sign(&theirs, "theirs", "theirs")).await);
    for (signer, kid, iss) in [
        (&theirs, "ours", "ours"),
        (&theirs, "ours", "theirs"),
        (&theirs, "theirs", "ours"),
        (&foreign, "ours", "ours"),
        (&foreign, "foreign", "ours"),
        (&theirs, "", "theirs"),
    ] {
        assert!(!accepts(&tables, &sign(signer, kid, iss)).await, "{kid:?} {iss:?}");
    }
}

#[tokio::test]
async fn no_input_becomes_a_header_or_a_line() {
    let server = server().await;
    let evil = "x\r\nset-cookie:evil=1\r\n\r\nid:1";
    let mut answers = Vec::new();
    for path in [
        with_query("/topics/a", &[("event", evil)]),
        with_query("/topics/a", &[("exclude", evil)]),
        "/topics/x%0d%0aset-cookie:evil=1".to_owned(),
        with_query("/topics/a", &[("event", "x\u{0}")]),
    ] {
        answers.push(post(&server, &path).body("x").answer_to(BACKEND).await);
    }
    let items = json!([{"topic": evil, "data": 1}, {"topic": "a", "event": evil, "data": 1}, {"topic": "a", "idempotency_key": evil, "data": 1}]);
    let answer = post(&server, "/publish").json(&items).answer_to(BACKEND).await;
    for problem in answer.json().as_array().expect("answers") {
        assert_eq!(problem["code"], "bad_request", "{problem}");
    }
    for name in ["topic", "after", "last", "since", "transport", "format", "wait", "limit"] {
        let path = with_query("/events", &[(name, evil)]);
        answers.push(get(&server, &path).answer_to(BACKEND).await);
    }
    for answer in &answers {
        answer.problem(400, "bad_request");
        assert_eq!(answer.header("set-cookie"), "", "{answer:?}");
        assert!(!answer.text().contains("\r\n"), "{answer:?}");
    }
    let all = get(&server, "/topics/**?after=0&wait=0").answer_to(BACKEND).await.json();
    assert_eq!(all["messages"], json!([]), "nothing of it was stored");
}

#[tokio::test]
async fn only_the_operator_learns_why_a_credential_is_refused() {
    let folder = Folder::new();
    let signer = Signer::new("HS256");
    let strict = signer.table("issuer") + "kid = \"2026\"\naud = \"push\"\n";
    let anonymous = "[anonymous]\nsubscribe = [\"public\"]\n";
    std::fs::write(folder.path("rejoin.toml"), strict + anonymous).expect("a file");
    let mut program =
        Program::start(&["--config", &folder.path("rejoin.toml"), "--log-level", "debug"]).await;
    let sign = |change: Value| {
        let mut claims = json!({"sub": "u1", "aud": "push", "exp": seconds_from_now(60), "rejoin": {"subscribe": ["mine.*"]}});
        claims.as_object_mut().expect("an object").append(change.clone().as_object_mut().expect("an object"));
        let header =
            jsonwebtoken::Header { kid: Some("2026".into()), ..jsonwebtoken::Header::new(signer.algorithm) };
        signer.sign_as(&header, &claims)
    };
    let other =
        jsonwebtoken::Header { kid: Some("2025".into()), ..jsonwebtoken::Header::new(signer.algorithm) };
    let unknown_kid = signer.sign_as(&other, &claims());
    let forged = format!("{}AAAA", sign(json!({})));
    for (credential, code, told) in [
        (unknown_kid, "unauthorized", vec!["2025", "HS256"]),
        (forged, "unauthorized", vec!["bad signature", "2026"]),
        (sign(json!({"aud": "shop"})), "unauthorized", vec!["claim aud", "issuer"]),
        (sign(json!({"sub": 7})), "unauthorized", vec!["sub: invalid type", "2026"]),
        (sign(json!({"exp": 1})), "token_expired", vec!["expired", "issuer"]),
        ("rejoin_unknown".into(), "unauthorized", vec!["no [[key]]"]),
        (sign(json!({})), "forbidden", vec!["u1", "subscribe", "theirs", "mine.*"]),
    ] {
        let answer = get(&program.server, "/topics/theirs").answer_to(&credential).await;
        let problem = answer.problem(if code == "forbidden" { 403 } else { 401 }, code);
        for text in &told {
            program.until_logged(text).await;
        }
        let detail = text(&problem["detail"]);
        // The holder of a signed token may know which of its claims is wrong, and not the key or the value wanted.
        let harmless = ["expired", "sub: invalid type"];
        let is_told = |text: &&str| detail.contains(text) && !harmless.contains(text);
        assert!(code == "forbidden" || !told.iter().any(is_told), "{problem}");
        assert!(["mine", "push", "issuer", "2026"].iter().all(|text| !detail.contains(text)), "{problem}");
    }
    let unsigned = get(&program.server, "/topics/theirs")
        .answer_to(&unsigned(&json!({"alg": "HS256", "kid": "2026"}), &json!({"sub": 7})))
        .await;
    let detail = unsigned.problem(401, "unauthorized")["detail"].clone();
    assert!(text(&detail).starts_with("the credential is not accepted: "), "{detail}");
    let origin = get(&program.server, "/topics/public").header("origin", "https://elsewhere.example");
    origin.answer().await.problem(403, "forbidden_origin");
    program.until_logged("https://elsewhere.example").await;
    let two = get(&program.server, "/topics/public?token=one&token=two").answer().await;
    two.problem(401, "unauthorized");
    program.until_logged("different credentials in the query").await;
}

/// The page has no credential for the server, so it is an anonymous client.
#[tokio::test]
async fn a_rebound_name_has_not_the_rights_of_anonymous() {
    let server = server().await;
    let mine = reads("u1", &["public.**"]);
    let path = "/topics/public.a?wait=0";
    let named = |host: &'static str| get(&server, path).header("host", host);
    for host in ["rebound.example", "127.0.0.1.rebound.example"] {
        named(host).answer().await.problem(403, "forbidden_host");
        let refused = refusal(&server, Transport::WebSocket, path, &[("host", host)]).await;
        refused.problem(403, "forbidden_host");
        assert_eq!(named(host).answer_to(&mine).await.status, 200, "a page has no such credential");
        assert_eq!(get(&server, "/health/live").header("host", host).answer().await.status, 200);
    }
    for host in ["localhost", "192.0.2.1", "[2001:db8::1]"] {
        assert_eq!(named(host).answer().await.status, 200, "{host}");
    }
    // A browser asks first, without the credential that the page will send.
    let preflight = request(&server, Method::OPTIONS, path).header("host", "push.example");
    let preflight =
        preflight.header("origin", "https://push.example").header("access-control-request-method", "GET");
    assert_eq!(preflight.answer().await.status, 204);
    let key = usual().replace("[anonymous]\nsubscribe = [\"public.**\"]\n", "");
    let closed = server_with(&key).await;
    let answer = get(&closed, path).header("host", "rebound.example").answer().await;
    answer.problem(401, "unauthorized");
}
