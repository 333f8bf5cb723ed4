//! A token that has ended is asked for again, and nothing is lost by that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rejoin::{
    client::{Client, ClientError, Draft, Event, Progress, Start},
    config::Secret,
};
use serde_json::json;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::{
    PATIENCE, TRANSPORTS, client, next, publish,
    signer::{SECRET, Signer, seconds_from_now},
    support::Server,
    text,
};

async fn server() -> Server {
    Server::with(|config| config.jwt_secret = Some(Secret(SECRET.into()))).await
}

/// A token with all rights, which expires after this many seconds.
fn token(seconds: i64) -> String {
    let rejoin = json!({"subscribe": ["**"], "publish": ["**"]});
    Signer::new("HS256").sign(&json!({"sub": "u", "exp": seconds_from_now(seconds), "rejoin": rejoin}))
}

/// The client with tokens from this function, and how many were asked for.
fn counted(
    client: Client,
    tokens: impl Fn(u64) -> String + Send + Sync + 'static,
) -> (Client, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let client = client.with_tokens_from(move || {
        let token = tokens(count.fetch_add(1, Ordering::Relaxed));
        async { Ok(token) }
    });
    (client, asked)
}

#[tokio::test]
async fn a_subscription_goes_on_with_a_new_token() {
    let server = server().await;
    let backend = client(&server.http("/")).with_token(&token(600)).expect("a header carries it");
    for transport in TRANSPORTS {
        // The first token ends soon, and the second one lasts.
        let reader = client(&server.http("/")).with_transport(transport);
        let (reader, asked) = counted(reader, |number| token(if number == 0 { 2 } else { 600 }));
        let mut subscription = reader.subscribe(["t"], Start::Now);
        assert!(matches!(next(&mut subscription).await, Ok(Event::Connected)), "{transport:?}");
        publish(&backend, "t", ["first".into()]).await;
        assert_eq!(text(&mut subscription).await, "first");
        // A poll gets its new token between two requests, and tells no event.
        let renewed = async {
            while asked.load(Ordering::Relaxed) < 2 {
                if let Ok(event) = timeout(Duration::from_millis(50), subscription.next()).await {
                    let event = event.expect("it goes on").expect("no error");
                    assert!(!matches!(event, Event::Message(_) | Event::Gap(_)), "{transport:?}: {event:?}");
                }
            }
        };
        timeout(PATIENCE, renewed).await.expect("the token ends");
        publish(&backend, "t", ["second".into()]).await;
        assert_eq!(text(&mut subscription).await, "second", "{transport:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn publishing_goes_on_with_a_new_token() {
    let server = server().await;
    let (publisher, asked) =
        counted(client(&server.http("/")), |number| token(if number == 0 { -1 } else { 600 }));
    // These requests share the credential. Each of them asks for a new token at most once.
    let ids: Vec<_> = futures_util::future::join_all((0..4).map(|number| {
        let draft = Draft::new("t", number.to_string());
        async { publisher.publish(draft).await.expect("it is stored") }
    }))
    .await;
    assert_eq!(ids.len(), 4);
    assert!((2..=8).contains(&asked.load(Ordering::Relaxed)), "{asked:?}");
    let before = asked.load(Ordering::Relaxed);
    publisher.publish(Draft::new("t", "x")).await.expect("it is stored");
    assert_eq!(asked.load(Ordering::Relaxed), before, "the token is still good");
    server.stop().await;
}

#[tokio::test]
async fn a_new_token_that_is_refused_too_is_the_end() {
    let server = server().await;
    let (reader, asked) = counted(client(&server.http("/")), |_| token(-1));
    for transport in TRANSPORTS {
        asked.store(0, Ordering::Relaxed);
        let mut subscription = reader.clone().with_transport(transport).subscribe(["t"], Start::Now);
        match next(&mut subscription).await {
            Err(ClientError::Refused { code, .. }) => assert_eq!(code, "token_expired"),
            other => panic!("{transport:?}: {other:?}"),
        }
        assert!(asked.load(Ordering::Relaxed) <= 2, "{asked:?}");
    }
    let fixed = client(&server.http("/")).with_token("no token").expect("a header carries it");
    let refused = fixed.publish(Draft::new("t", "x")).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused { code, .. }) if code == "unauthorized"),
        "{refused:?}"
    );
    server.stop().await;
}

/// The place from which tokens come may be away for a while, as the server may be.
#[tokio::test]
async fn a_function_that_fails_is_asked_again() {
    let server = server().await;
    let asked = AtomicU64::new(0);
    let publisher = client(&server.http("/")).with_tokens_from(move || {
        let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { Err("the office is closed".into()) } else { Ok(token(600)) } }
    });
    let mut publishing = publisher.publish_all(tokio_stream::once(Draft::new("t", "x")));
    let mut told = Vec::new();
    while let Some(progress) = timeout(PATIENCE, publishing.next()).await.expect("it comes in time") {
        told.push(progress.expect("no error"));
    }
    match &told[..] {
        [Progress::Retrying(why @ ClientError::Unavailable { .. }), Progress::Stored { .. }, _] => {
            assert_eq!(why.to_string(), "no token: the office is closed");
        }
        other => panic!("{other:?}"),
    }
    server.stop().await;
}

#[test]
fn a_credential_is_never_printed() {
    let (secret, url) = ("a-secret-token", "http://127.0.0.1:1");
    let client = client(url).with_token(secret).expect("a header carries it");
    assert!(!format!("{client:?}").contains(secret));
    let unusable = client.with_token("line\nfeed").expect_err("a header cannot carry it");
    assert!(matches!(unusable, ClientError::Unusable(_)), "{unusable:?}");
}
