//! An axum application that has this server below a prefix.

use axum::{Router, routing::get as getting};
use reqwest::Method;
use tokio::net::TcpListener;

use crate::{
    ask::{Ask, get, post, request},
    reader::{Lines, Socket, Stream},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn a_router_that_is_nested_serves_below_its_prefix() {
    let inner = Server::start().await;
    let nested = rejoin::router(inner.app.clone().expect("in this process"));
    let outer =
        Router::new().route("/topics/a", getting(async || "of the application")).nest("/push", nested);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let server = Server::elsewhere(listener.local_addr().expect("a bound address"));
    tokio::spawn(async move { axum::serve(listener, outer).await });

    let published = post(&server, "/push/topics/a").body("x").answer().await;
    assert_eq!(published.status, 201);
    let id = published.id();
    let polled = get(&server, "/push/topics/a?after=0").answer().await;
    assert_eq!((polled.status, &polled.json()["messages"][0]["id"]), (200, &id.clone().into()));
    let mut lines =
        Lines::of(Stream::open(&server, Transport::Ndjson, "/push/events?topic=a&after=0", &[]).await);
    assert_eq!(lines.next().await["type"], "open");
    assert_eq!(lines.next().await["id"], id);
    let mut socket = Socket::open(&server, "/push/topics/a?after=0").await;
    assert_eq!(socket.next().await["id"], id);

    let head = request(&server, Method::HEAD, "/push/topics/a?after=0").answer().await;
    assert_eq!((head.status, head.text()), (200, ""));
    get(&server, "/push/none").answer().await.problem(404, "not_found");
    get(&server, "/push/topics/a/b").answer().await.problem(404, "not_found");
    let own = get(&server, "/topics/a").answer().await;
    assert_eq!((own.status, own.text()), (200, "of the application"));
    assert_eq!(get(&server, "/events?topic=a").answer().await.status, 404);
}
