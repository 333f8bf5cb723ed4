//! Only what is granted can be read, published or administered, on every way to ask for it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, request, text, with_query},
    people::{As, BACKEND, bearer, publish, reads, server, servers, token, token_for, usual},
    reader::{Reader, Socket, refusal},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn a_credential_is_accepted_in_each_of_its_places() {
    let server = server().await;
    let mine = reads("u1", &["users.{sub}.**"]);
    let id = publish(&server, "users.u1.a", "x").await;
    let path = "/topics/users.u1.a?after=0&wait=0";
    let by_cookie = format!("other=1; rejoin_token={mine}");
    for answer in [
        get(&server, path).answer_to(&mine).await,
        get(&server, &format!("{path}&token={mine}")).answer().await,
        get(&server, path).header("cookie", &by_cookie).answer().await,
    ] {
        assert_eq!(
            (answer.status, text(&answer.json()["messages"][0]["id"])),
            (200, id.clone()),
            "{answer:?}"
        );
    }
    let origin = server.http("");
    let protocols = format!("rejoin.v1, bearer.{mine}");
    for headers in [
        vec![("authorization", bearer(&mine))],
        vec![("sec-websocket-protocol", protocols)],
        vec![("cookie", by_cookie), ("origin", origin)],
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut socket = Socket::open_with(&server, "/topics/users.u1.a?after=0", &headers).await;
        assert_eq!(socket.next().await["id"], id);
        let echoed = socket
            .response
            .headers()
            .get("sec-websocket-protocol")
            .map(|value| value.to_str().expect("ASCII"));
        let expected = if headers[0].0 == "sec-websocket-protocol" { Some("rejoin.v1") } else { None };
        assert_eq!(echoed, expected, "the subprotocol alone is echoed, never the token");
    }
    Socket::open(&server, &format!("/topics/users.u1.a?token={mine}")).await;
}

#[tokio::test]
async fn without_a_credential_only_anonymous_grants_count() {
    let server = server().await;
    publish(&server, "public.news", "x").await;
    let answer = get(&server, "/topics/public.news?after=0&wait=0").answer().await;
    assert_eq!(answer.json()["messages"].as_array().map(Vec::len), Some(1), "{answer:?}");
    for transport in Transport::ALL {
        for path in ["/topics/users.u1.a", "/topics/**", "/events?topic=public.a&topic=b"] {
            let answer = refusal(&server, transport, path, &[]).await;
            let problem = answer.problem(401, "unauthorized");
            assert!(
                text(&problem["detail"]).contains("is not granted without a credential: send "),
                "{problem}"
            );
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    for request in [
        post(&server, "/topics/public.news").body("x"),
        request(&server, Method::DELETE, "/topics/public.news"),
        get(&server, "/topics"),
        get(&server, "/stats"),
        get(&server, "/metrics"),
    ] {
        request.answer().await.problem(401, "unauthorized");
    }
    let somebody = get(&server, "/topics/public.news").answer_to(&reads("u1", &["a"])).await;
    somebody.problem(403, "forbidden");
    for path in ["/health/live", "/health/ready", "/"] {
        assert_eq!(get(&server, path).answer().await.status, 200, "{path}");
    }
}

/// Otherwise it could send mistakes without end, each of which has an answer.
#[tokio::test]
async fn a_client_that_may_publish_nothing_is_refused_before_its_messages_arrive() {
    let server = server().await;
    let endless = || {
        let body =
            reqwest::Body::wrap_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        post(&server, "/publish").header("content-type", "application/x-ndjson").body(body)
    };
    endless().answer().await.problem(401, "unauthorized");
    endless().answer_to(&reads("u1", &["**"])).await.problem(403, "forbidden");
    let mut socket = Socket::open(&server, "/topics/public.a").await;
    let error = socket.ask(json!({"type": "publish", "topic": "b", "data": 1, "ref": 1})).await;
    assert_eq!((&error["code"], &error["ref"]), (&json!("unauthorized"), &json!(1)), "{error}");
}

/// It could keep a long message unfinished on each of its connections.
#[tokio::test]
async fn a_client_that_may_publish_nothing_sends_short_commands() {
    let server = server().await;
    let long = json!({"type": "publish", "topic": "a", "data": "x".repeat(100_000)});
    let mut socket = Socket::open(&server, "/topics/public.a").await;
    socket.send(long.clone()).await;
    assert_eq!(socket.closed().await.0, 1009);
    let mut socket = Socket::open(&server, &format!("/events?token={}", reads("u1", &["a"]))).await;
    let wider = token("u1", json!({"subscribe": ["a"], "publish": ["a"]}));
    assert_eq!(socket.ask(json!({"type": "auth", "token": wider})).await["type"], "authenticated");
    assert_eq!(socket.ask(long).await["type"], "published");
}

/// The commands are done in turn, and the rights are those of their turn.
#[tokio::test]
async fn a_publish_behind_an_auth_has_the_rights_of_the_new_token() {
    let server = server().await;
    let mut socket = Socket::open(&server, &format!("/events?token={}", reads("u1", &["a"]))).await;
    let wider = token("u1", json!({"subscribe": ["a"], "publish": ["a"]}));
    socket.send(json!({"type": "auth", "token": wider})).await;
    socket.send(json!({"type": "publish", "topic": "a", "data": 1})).await;
    assert_eq!(socket.next().await["type"], "authenticated");
    assert_eq!(socket.next().await["type"], "published");
}

#[tokio::test]
async fn a_credential_that_is_not_accepted_is_refused_everywhere() {
    let server = server().await;
    for wrong in ["rejoin_nobody", "a.b.c", "", "x", &BACKEND[1..]] {
        for request in [
            get(&server, "/topics/public.news"),
            post(&server, "/topics/public.news").body("x"),
            post(&server, "/publish").header("content-type", "application/json").body("[]"),
            post(&server, "/events")
                .header("content-type", "application/json")
                .body(r#"{"topics":["public.a"]}"#),
            get(&server, "/stats"),
        ] {
            let problem = request.answer_to(wrong).await.problem(401, "unauthorized");
            assert!(!problem.to_string().contains("rejoin_nobody"), "{problem}");
        }
        let header = bearer(wrong);
        for transport in Transport::ALL {
            let answer =
                refusal(&server, transport, "/events?topic=public.a", &[("authorization", &header)]).await;
            answer.problem(401, "unauthorized");
        }
    }
}

#[tokio::test]
async fn a_client_with_another_scheme_is_refused_and_not_anonymous() {
    let server = server().await;
    let basic = [("authorization", "Basic dTpw")];
    for transport in Transport::ALL {
        let answer = refusal(&server, transport, "/topics/public.a", &basic).await;
        let problem = answer.problem(401, "unauthorized");
        assert!(text(&problem["detail"]).contains("Bearer"), "{problem}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    // The header is for a proxy that checks it, and the credential is in another place.
    let path = format!("/topics/users.u1.a?token={}", reads("u1", &["users.{sub}.**"]));
    let answer = get(&server, &path).header("authorization", "Basic dTpw").answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let health = get(&server, "/health/ready").header("authorization", "Basic dTpw").answer().await;
    assert_eq!(health.status, 200, "{health:?}");
}

/// Two different tokens in one place must not matter if the server requires none.
#[tokio::test]
async fn an_open_server_ignores_credentials() {
    let server = Server::start().await;
    for path in ["/topics/a?wait=0&token=x", "/topics/a?wait=0&token=x&token=y", "/stats?token=x&token=y"] {
        assert_eq!(get(&server, path).answer().await.status, 200, "{path}");
        assert_eq!(get(&server, path).answer_to("a.b.c").await.status, 200, "{path}");
        let basic = get(&server, path).header("authorization", "Basic dTpw");
        assert_eq!(basic.answer().await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_topic_in_a_list_that_is_not_granted_refuses_the_request_and_is_named() {
    let server = server().await;
    let mine = reads("u1", &["users.{sub}.**", "rooms.*"]);
    for path in [
        "/events?topic=rooms.1&topic=users.u2.a&topic=rooms.2",
        "/topics/users.u2.a",
        "/topics/users.u2.a?after=0",
        "/topics/users.u2.a?last=5",
        "/events?topic=users.u2.a&since=1h",
    ] {
        let header = bearer(&mine);
        for transport in Transport::ALL {
            let answer = refusal(&server, transport, path, &[("authorization", &header)]).await;
            let problem = answer.problem(403, "forbidden");
            assert!(text(&problem["detail"]).contains("users.u2.a"), "{problem}");
        }
    }
    let body = json!({"topics": ["rooms.1", "users.u2.a"]});
    let answer = post(&server, "/events").json(&body).answer_to(&mine).await;
    assert!(text(&answer.problem(403, "forbidden")["detail"]).contains("users.u2.a"));
    let mixed = with_query(
        "/events",
        &[("topic", "rooms.1"), ("topic", "users.u1.a"), ("wait", "0"), ("after", "0")],
    );
    assert_eq!(get(&server, &mixed).answer_to(&mine).await.status, 200);
}

#[tokio::test]
async fn a_wildcard_reads_what_is_granted_and_nothing_more() {
    for (_redis, server) in servers(&usual()).await {
        let wide = reads("u1", &["a.*", "a.*.**", "flat.*"]);
        publish(&server, "flat.a.b", "not granted").await;
        publish(&server, "a", "not granted").await;
        publish(&server, "b.c", "not granted").await;
        let mut ids = vec![publish(&server, "a.b", "x").await, publish(&server, "a.b.c", "y").await];
        let header = bearer(&wide);
        let headers = [("authorization", header.as_str())];
        for transport in Transport::ALL {
            let mut reader = Reader::open_with(&server, transport, "topic=a.**&after=0", &headers).await;
            assert_eq!(reader.ids(ids.len()).await, ids, "{transport}: replayed");
            publish(&server, "a", "not granted").await;
            publish(&server, "aa.b", "not granted").await;
            let live = publish(&server, "a.live", "z").await;
            assert_eq!(reader.ids(1).await, [live.as_str()], "{transport}: live");
            ids.push(live);
        }
        for wider in ["**", "*.b", "*", "*.**", "flat.**", "flat.*.*", "$rejoin.*", "$rejoin.ready"] {
            for start in ["after=0", "last=5", "since=1h", "wait=0"] {
                let path = format!("{}&{start}", with_query("/events", &[("topic", wider)]));
                get(&server, &path).answer_to(&wide).await.problem(403, "forbidden");
            }
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn commands_on_a_socket_are_checked_one_by_one() {
    let server = server().await;
    let mine = token("u1", json!({"subscribe": ["a.*"], "publish": ["b.*"]}));
    let header = bearer(&mine);
    let mut socket = Socket::open_with(&server, "/events", &[("authorization", &header)]).await;
    publish(&server, "secret", "x").await;
    for command in [
        json!({"type": "subscribe", "topic": "secret", "ref": 1}),
        json!({"type": "subscribe", "topic": "secret", "after": "0", "ref": 1}),
        json!({"type": "subscribe", "topic": "secret", "last": 1, "ref": 1}),
        json!({"type": "subscribe", "topic": "a.**", "after": "0", "ref": 1}),
        json!({"type": "publish", "topic": "a.b", "data": 1, "ref": 1}),
        json!({"type": "publish", "topics": ["b.c", "a.b"], "data": 1, "ref": 1}),
    ] {
        let answer = socket.ask(command.clone()).await;
        assert_eq!(
            (&answer["type"], &answer["code"], &answer["ref"]),
            (&json!("error"), &json!("forbidden"), &json!(1)),
            "{command}: {answer}"
        );
    }
    assert_eq!(
        socket.ask(json!({"type": "subscribe", "topic": "a.b", "after": "0"})).await["type"],
        "subscribed"
    );
    assert_eq!(socket.ask(json!({"type": "publish", "topic": "b.c", "data": 1})).await["type"], "published");
    let stored = get(&server, "/topics/**?after=0&wait=0").answer_to(BACKEND).await.json();
    let topics: Vec<_> =
        stored["messages"].as_array().expect("messages").iter().map(|message| &message["topic"]).collect();
    assert_eq!(topics, ["secret", "b.c"], "a refused command changes nothing");
}

#[tokio::test]
async fn publishing_needs_a_grant_for_each_topic() {
    let server = server().await;
    let mine = token("u1", json!({"subscribe": ["**"], "publish": ["users.{sub}.*"]}));
    assert_eq!(post(&server, "/topics/users.u1.a").body("x").answer_to(&mine).await.status, 201);
    post(&server, "/topics/users.u2.a").body("x").answer_to(&mine).await.problem(403, "forbidden");
    post(&server, "/topics/users.u1.a.b").body("x").answer_to(&mine).await.problem(403, "forbidden");
    let items = json!([
        {"topic": "users.u1.b", "data": 1},
        {"topic": "users.u2.b", "data": 1},
        {"topics": ["users.u1.c", "users.u2.c"], "data": 1},
        {"topic": "users.u1.d", "data": 1, "ephemeral": true},
        {"topic": "users.u2.d", "data": 1, "ephemeral": true},
    ]);
    let answers = post(&server, "/publish").json(&items).answer_to(&mine).await.json();
    let codes: Vec<_> =
        answers.as_array().expect("answers").iter().map(|answer| answer["code"].clone()).collect();
    assert_eq!(codes, [Value::Null, json!("forbidden"), json!("forbidden"), Value::Null, json!("forbidden")]);
    let stored = get(&server, "/topics/**?after=0&wait=0").answer_to(BACKEND).await.json();
    assert_eq!(stored["messages"].as_array().map(Vec::len), Some(2), "{stored}");
}

#[tokio::test]
async fn administration_needs_admin_and_metrics_can_be_granted_alone() {
    let server = server().await;
    publish(&server, "a", "kept").await;
    let reader = token("u1", json!({"subscribe": ["**"], "publish": ["**"]}));
    for (method, path) in [
        (Method::DELETE, "/topics/a"),
        (Method::GET, "/topics"),
        (Method::GET, "/stats"),
        (Method::GET, "/metrics"),
    ] {
        request(&server, method.clone(), path).answer_to(&reader).await.problem(403, "forbidden");
    }
    let scraper = token("prometheus", json!({"metrics": true}));
    assert_eq!(get(&server, "/metrics").answer_to(&scraper).await.status, 200);
    get(&server, "/stats").answer_to(&scraper).await.problem(403, "forbidden");
    let admin = token("ops", json!({"admin": true}));
    for path in ["/topics", "/stats", "/metrics"] {
        assert_eq!(get(&server, path).answer_to(&admin).await.status, 200, "{path}");
    }
    for path in ["/topics/a", "/topics/a?before=5"] {
        get(&server, path).answer_to(&admin).await.problem(403, "forbidden");
    }
    assert_eq!(request(&server, Method::DELETE, "/topics/a").answer_to(&admin).await.status, 204);
}

#[tokio::test]
async fn a_page_learns_by_a_close_code_why_its_handshake_is_refused() {
    let server = server().await;
    let origin = server.http("");
    let shake = |protocols: String, path: &'static str| {
        let (server, origin) = (&server, origin.clone());
        async move {
            let headers = [("origin", origin.as_str()), ("sec-websocket-protocol", protocols.as_str())];
            let mut socket = Socket::shake_hands(server, path, &headers).await;
            let error = socket.next().await;
            assert_eq!(error["type"], "error", "{error}");
            (text(&error["code"]), socket.closed().await)
        }
    };
    let mine = reads("u1", &["a"]);
    let refused = |code: &str, close: u16| (code.to_owned(), (close, code.to_owned()));
    assert_eq!(shake("rejoin.v1".into(), "/topics/a").await, refused("unauthorized", 4001));
    assert_eq!(shake("rejoin.v1, bearer.x".into(), "/topics/a").await, refused("unauthorized", 4001));
    assert_eq!(shake(format!("rejoin.v1, bearer.{mine}"), "/topics/b").await, refused("forbidden", 4003));
    let old = token_for(-1, "u1", json!({}));
    assert_eq!(shake(format!("rejoin.v1, bearer.{old}"), "/topics/a").await, refused("token_expired", 4201));
}
