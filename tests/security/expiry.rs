//! A connection or a request ends when its token expires, unless it is renewed.

use serde_json::{Value, json};

use crate::{
    ask::{get, post, text},
    people::{As, BACKEND, bearer, publish, reads, server, token, token_for},
    reader::{Events, Lines, Socket, refusal},
    signer::{Signer, seconds_from_now},
    support::client::Transport,
};

#[tokio::test]
async fn every_connection_ends_when_its_token_expires() {
    let server = server().await;
    let mine = token_for(2, "u1", json!({"subscribe": ["a"]}));
    let header = bearer(&mine);
    let headers = [("authorization", header.as_str())];
    let mut socket = Socket::open_with(&server, "/topics/a", &headers).await;
    let mut events = Events::open_with(&server, "/events?topic=a", &headers).await;
    let mut lines = Lines::open_with(&server, "/topics/a", &headers).await;
    let cursor = events.cursor.clone();
    let poll = get(&server, &format!("/topics/a?after={cursor}&wait=60")).answer_to(&mine);
    let last = async {
        let told = [socket.next().await, events.next_frame().await, lines.next().await];
        assert_eq!(socket.closed().await, (4201, "token_expired".to_owned()));
        assert!(events.try_next().await.is_none() && lines.try_line().await.is_none(), "the end");
        told
    };
    let (told, answer) = tokio::join!(last, poll);
    for closing in told {
        assert_eq!(
            (&closing["type"], &closing["code"]),
            (&json!("closing"), &json!("token_expired")),
            "{closing}"
        );
        assert_eq!(closing["cursor"], json!(cursor));
    }
    assert_eq!(answer.json(), json!({"messages": [], "cursor": cursor}), "a held poll is answered early");
    for transport in Transport::ALL {
        refusal(&server, transport, "/topics/a", &headers).await.problem(401, "token_expired");
    }
}

#[tokio::test]
async fn a_busy_connection_ends_in_time_too() {
    let server = server().await;
    let mine = token_for(2, "u1", json!({"subscribe": ["a"]}));
    let header = bearer(&mine);
    let mut lines = Lines::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let publisher = async {
        loop {
            publish(&server, "a", "x").await;
        }
    };
    let reader = async {
        loop {
            let frame = lines.next().await;
            if frame["type"] == "closing" {
                return frame;
            }
        }
    };
    tokio::select! {
        () = publisher => {}
        closing = reader => assert_eq!(closing["code"], "token_expired"),
    }
}

#[tokio::test]
async fn a_socket_continues_with_a_new_token_of_the_same_subject() {
    let server = server().await;
    let old = token_for(2, "u1", json!({"subscribe": ["a"]}));
    let header = bearer(&old);
    let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let witness = Lines::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let new = token("u1", json!({"subscribe": ["a", "b"], "publish": ["a"]}));
    let answer = socket.ask(json!({"type": "auth", "token": new, "ref": 7})).await;
    assert_eq!((&answer["type"], &answer["ref"]), (&json!("authenticated"), &json!(7)), "{answer}");
    let mut witness = witness;
    assert_eq!(witness.next().await["code"], "token_expired", "the old token is over");
    let id = publish(&server, "a", "x").await;
    assert_eq!(socket.next().await["id"], json!(id), "and the connection lives");
    assert_eq!(socket.ask(json!({"type": "subscribe", "topic": "b"})).await["type"], "subscribed");
}

#[tokio::test]
async fn a_token_that_cannot_renew_changes_nothing() {
    let server = server().await;
    let mine = reads("u1", &["a", "b"]);
    let header = bearer(&mine);
    let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    for (token, code) in [
        (reads("u2", &["a"]), "forbidden"),
        (reads("u1", &["b"]), "forbidden"),
        (token_for(-1, "u1", json!({"subscribe": ["a"]})), "token_expired"),
        (BACKEND.to_owned(), "forbidden"),
        ("nonsense".to_owned(), "unauthorized"),
        (format!("{}x", reads("u1", &["a"])), "unauthorized"),
    ] {
        let answer = socket.ask(json!({"type": "auth", "token": token, "ref": "r"})).await;
        assert_eq!(
            (&answer["type"], &answer["code"], &answer["ref"]),
            (&json!("error"), &json!(code), &json!("r")),
            "{answer}"
        );
    }
    for wrong in [json!({"type": "auth"}), json!({"type": "auth", "token": 1})] {
        assert_eq!(socket.ask(wrong).await["code"], "bad_request");
    }
    assert_eq!(socket.ask(json!({"type": "subscribe", "topic": "b"})).await["type"], "subscribed");
    // An anonymous connection cannot take an identity.
    let mut anonymous = Socket::open(&server, "/topics/public.a").await;
    let answer = anonymous.ask(json!({"type": "auth", "token": reads("u1", &["**"])})).await;
    assert_eq!(answer["code"], "forbidden", "{answer}");
}

#[tokio::test]
async fn a_token_without_a_subject_or_from_another_issuer_renews_nothing() {
    let server = server().await;
    let sign = |claims: Value| {
        let mut all = json!({"exp": seconds_from_now(60), "rejoin": {"subscribe": ["a"]}});
        all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        Signer::new("HS256").sign(&all)
    };
    for (old, new, answered) in [
        (json!({}), json!({}), "error"),
        (json!({}), json!({"sub": "u1"}), "error"),
        (json!({"sub": "u1"}), json!({}), "error"),
        (json!({"sub": "u1", "iss": "a"}), json!({"sub": "u1", "iss": "b"}), "error"),
        (json!({"sub": "u1", "iss": "a"}), json!({"sub": "u1"}), "error"),
        (json!({"sub": "u1", "iss": "a"}), json!({"sub": "u1", "iss": "a"}), "authenticated"),
    ] {
        let header = bearer(&sign(old.clone()));
        let mut socket = Socket::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
        let answer = socket.ask(json!({"type": "auth", "token": sign(new.clone())})).await;
        assert_eq!(answer["type"], answered, "{old} {new}: {answer}");
        assert!(answered != "error" || answer["code"] == "forbidden", "{answer}");
    }
}

#[tokio::test]
async fn a_running_request_stops_publishing_when_its_token_expires() {
    let server = server().await;
    let mine = token_for(2, "u1", json!({"publish": ["a"], "subscribe": ["a"]}));
    let header = bearer(&mine);
    let mut witness = Lines::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let (lines, body) = tokio::sync::mpsc::channel::<&'static str>(1);
    let body = futures_util::stream::unfold(body, |mut body| async {
        let line = body.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), body))
    });
    let request = post(&server, "/publish").header("content-type", "application/x-ndjson");
    let request = request.body(reqwest::Body::wrap_stream(body)).answer_to(&mine);
    let publisher = async {
        lines.send("{\"topic\":\"a\",\"data\":1}\n").await.expect("it is read");
        assert_eq!(witness.next().await["type"], "message");
        assert_eq!(witness.next().await["code"], "token_expired");
        lines.send("{\"topic\":\"a\",\"data\":2}\n").await.expect("it is read");
        drop(lines);
    };
    let (answer, ()) = tokio::join!(request, publisher);
    let answers = answer.json();
    assert!(answers[0]["id"].is_string(), "{answers}");
    assert_eq!(text(&answers[1]["code"]), "token_expired", "{answers}");
}

#[tokio::test]
async fn a_body_that_arrives_after_its_token_expired_is_not_published() {
    let server = server().await;
    let mine = token_for(2, "u1", json!({"publish": ["a"], "subscribe": ["a"]}));
    let header = bearer(&mine);
    let mut witness = Lines::open_with(&server, "/topics/a", &[("authorization", &header)]).await;
    let (pieces, body) = tokio::sync::mpsc::channel::<&'static str>(1);
    let body = futures_util::stream::unfold(body, |mut body| async {
        let piece = body.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), body))
    });
    let request = post(&server, "/topics/a").body(reqwest::Body::wrap_stream(body)).answer_to(&mine);
    let publisher = async {
        pieces.send("begun ").await.expect("it is read");
        assert_eq!(witness.next().await["code"], "token_expired");
        pieces.send("and ended").await.expect("it is read");
        drop(pieces);
    };
    let (answer, ()) = tokio::join!(request, publisher);
    answer.problem(401, "token_expired");
}
