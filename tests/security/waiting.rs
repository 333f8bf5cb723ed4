//! The bounds of requests that wait until the backend has said who their clients are.

use std::{pin::pin, sync::Arc, task::Poll};

use axum::body::Body;
use futures_util::poll;
use http::{HeaderValue, Request, Uri};
use serde_json::json;
use tower::ServiceExt;

use crate::{
    ask::within,
    hook::{grant, started, with_hook},
    people::{gauge, tables},
    stub::Stub,
    support::{Server, counted},
};

/// A request to publish that waited for the backend kept its whole head, and so did those of operators.
#[tokio::test]
async fn a_request_that_waits_for_the_backend_keeps_nothing_of_its_head() {
    let (stub, server) = started().await;
    let router = rejoin::router(server.app.clone().expect("in this process"));
    stub.hold();
    for (method, path) in [
        ("GET", "/topics/a"),
        ("GET", "/events?topic=a"),
        ("POST", "/events"),
        ("POST", "/topics/a"),
        ("DELETE", "/topics/a"),
        ("GET", "/topics/a/presence"),
        ("POST", "/publish"),
        ("GET", "/topics"),
        ("GET", "/stats"),
        ("GET", "/metrics"),
        ("GET", "/connections"),
        ("GET", "/connections/x"),
        ("PUT", "/connections/x/topics/a"),
        ("DELETE", "/subjects/x"),
        ("GET", "/subjects/x/topics"),
        ("PUT", "/subjects/x/topics/a"),
    ] {
        let count = Arc::new(());
        let head = Request::builder()
            .method(method)
            .uri(Uri::from_maybe_shared(counted(path, &count)).expect("a path"))
            .header("host", "localhost")
            .header("origin", "http://localhost")
            .header("content-type", "application/json")
            .header("cookie", format!("session={method}{path}"));
        let other = HeaderValue::from_maybe_shared(counted("much".repeat(1_000), &count)).expect("a value");
        let request = head.header("x-other", other).body(Body::empty()).expect("a request");
        let mut answer = pin!(router.clone().oneshot(request));
        assert!(poll!(&mut answer).is_pending(), "{method} {path} waits");
        assert_eq!(Arc::strong_count(&count), 1, "{method} {path}");
    }
}

/// Ten thousand requests may wait, and each may have a head of 64 KiB, of which HTTP/2 repeats most in a few bytes.
#[tokio::test]
async fn the_heads_of_requests_that_wait_are_counted() {
    let stub = Stub::start(grant(json!(60))).await;
    let tables = tables(&with_hook(&stub));
    let server = Server::with(|config| (config.tables, config.max_payload) = (tables, 1)).await;
    stub.hold();
    let waiting = async || gauge(&server, "rejoin_waiting_head_bytes").await;
    let router = rejoin::router(server.app.clone().expect("in this process"));
    let large = |number: usize| {
        let head = Request::get("/topics/a?wait=0").header("host", "localhost");
        let head = head.header("cookie", format!("session={number}")).header("x-other", "x".repeat(50_000));
        Box::pin(router.clone().oneshot(head.body(Body::empty()).expect("a request")))
    };
    // There is room for 40 of the longest commands, of 64 KiB.
    let (mut held, mut refused) = (Vec::new(), 0);
    for mut answer in (0..60).map(large) {
        match poll!(&mut answer) {
            Poll::Pending => held.push(answer),
            Poll::Ready(answer) => {
                assert_eq!(answer.expect("an answer").status(), 503);
                refused += 1;
            }
        }
    }
    assert_eq!((held.len(), refused), (52, 8));
    assert!(waiting().await > 52.0 * 50_000.0);
    stub.open();
    for answer in held {
        within("an answer", answer).await.expect("an answer");
    }
    assert_eq!(waiting().await, 0.0);
}
