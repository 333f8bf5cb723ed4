//! The end of a server: every connection is told to leave, after it got every message that was accepted
//! before.

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    ask::{Ask, client, get, now, publish, publish_all, until_served, within},
    failing::FailingServer,
    reader::{Events, Lines, Reader, Socket, frame_of},
    support::{Server, client::Transport},
};

#[track_caller]
fn assert_closing(closing: &Value, cursor: &str) {
    let retry_ms = closing["retry_ms"].as_u64().expect("a number of milliseconds");
    let detail = "this server ends, or lets its clients come again; connect again with the last cursor";
    assert_eq!(
        *closing,
        json!({"type": "closing", "code": "draining", "detail": detail, "cursor": cursor, "retry_ms": retry_ms})
    );
    assert!((1_000..=3_000).contains(&retry_ms), "{retry_ms}");
}

async fn assert_ends(server: Server) {
    within("the end of the server", server.stop()).await;
}

#[tokio::test]
async fn a_drain_ends_an_event_stream_with_closing() {
    let server = Server::start().await;
    let mut raw = Events::open(&server, "/topics/a").await;
    let mut envelopes = Events::open(&server, "/events?topic=a").await;
    let id = publish(&server, "a", "x").await;
    raw.next().await;
    envelopes.next().await;
    server.shutdown.drain();
    for events in [&mut raw, &mut envelopes] {
        let closing = events.next().await;
        assert_eq!(closing.event.as_deref(), Some("rejoin.closing"));
        assert_closing(&frame_of(&closing), &id);
        assert!(events.try_next().await.is_none(), "the end");
    }
    assert_ends(server).await;
}

#[tokio::test]
async fn a_drain_ends_ndjson_with_closing() {
    let server = Server::start().await;
    let mut lines = Lines::open(&server, "/topics/a").await;
    let id = publish(&server, "a", "x").await;
    lines.next().await;
    server.shutdown.drain();
    assert_closing(&lines.next().await, &id);
    assert_eq!(lines.try_line().await, None);
    assert_ends(server).await;
}

#[tokio::test]
async fn a_drain_closes_a_websocket_with_4200() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let id = publish(&server, "a", "x").await;
    socket.next().await;
    server.shutdown.drain();
    assert_closing(&socket.next().await, &id);
    assert_eq!(socket.closed().await, (4200, "draining".to_owned()));
    drop(socket);
    assert_ends(server).await;
}

#[tokio::test]
async fn a_held_poll_is_answered_early_with_its_cursor() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    let mut held = std::pin::pin!(get(&server, &format!("/topics/a?after={cursor}&wait=60")).answer());
    assert!(held.as_mut().now_or_never().is_none());
    tokio::select! {
        answer = &mut held => panic!("answered without cause: {answer:?}"),
        () = until_served(&server, 1) => {}
    }
    server.shutdown.drain();
    assert_eq!(held.await.json(), json!({"messages": [], "cursor": cursor}));
    assert_ends(server).await;
}

#[tokio::test]
async fn messages_accepted_before_a_drain_are_sent_first() {
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        for filter in ["a", "*"] {
            let server = Server::start().await;
            let mut live = Reader::open(&server, transport, &format!("topic={filter}")).await;
            let ids = publish_all(&server, "a", 1..=900).await;
            let mut late = Reader::open(&server, transport, &format!("topic={filter}&after=0")).await;
            server.shutdown.drain();
            for reader in [&mut live, &mut late] {
                assert_eq!(reader.ids(900).await, ids, "{transport} {filter}");
                assert_closing(&reader.next().await, &ids[899]);
            }
            // The client answers a WebSocket's close by reading up to it.
            if let (Reader::WebSocket(live), Reader::WebSocket(late)) = (&mut live, &mut late) {
                live.closed().await;
                late.closed().await;
            }
            drop((live, late));
            assert_ends(server).await;
        }
    }
}

#[tokio::test]
async fn a_drain_finishes_a_running_replay_before_the_close() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=900).await;
    let mut socket = Socket::open(&server, "/events").await;
    let first = socket.ask(json!({"type": "subscribe", "topic": "a", "after": "0"})).await;
    assert_eq!(first["id"], ids[0]);
    server.shutdown.drain();
    for id in &ids[1..] {
        assert_eq!(socket.next().await["id"], *id);
    }
    assert_eq!(socket.next().await["type"], "subscribed");
    let cursor = socket.cursor.clone();
    assert_closing(&socket.next().await, &cursor);
    assert_eq!(socket.closed().await.0, 4200);
    drop(socket);
    assert_ends(server).await;
}

#[tokio::test]
async fn a_drain_sends_what_it_must_read_from_the_log_before_the_close() {
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Ndjson] {
        let server = FailingServer::start().await;
        let ids = publish_all(&server, "a", 1..=900).await;
        server.hold_reads(true);
        let mut late = Reader::open(&server, transport, "topic=**&after=0").await;
        server.until_read(1).await;
        let mut others = Vec::new();
        for _ in 0..8 {
            others.push(Lines::open(&server, "/topics/b").await);
        }
        server.shutdown.drain();
        // When all of the others have been told to leave, this one has most likely been told too.
        for other in &mut others {
            assert_eq!(other.next().await["type"], "closing");
        }
        server.hold_reads(false);
        assert_eq!(late.ids(900).await, ids, "{transport}");
        assert_closing(&late.next().await, &ids[899]);
    }
}

#[tokio::test]
async fn a_draining_server_accepts_no_new_connection() {
    // A tunnel would accept them.
    let server = Server::direct(|_| {}).await;
    let addr = server.addr;
    server.shutdown.drain();
    within("that no connection is accepted", async { while TcpStream::connect(addr).await.is_ok() {} }).await;
    assert_ends(server).await;
}

#[tokio::test]
async fn an_idle_connection_does_not_keep_the_server_from_ending() {
    let server = Server::start().await;
    let silent = TcpStream::connect(server.addr).await.expect("a connection");
    let client = client();
    let url = server.http("/stats");
    let response = within("an answer", client.get(&url).send()).await.expect("an answer");
    assert_eq!(response.status(), 200);
    drop(response.bytes().await);
    assert_ends(server).await;
    drop((client, silent));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_delays_the_end_only_for_the_grace() {
    let server = Server::with(|config| {
        config.drain_grace = Duration::from_millis(500);
        config.retain_bytes = 64 << 20;
    })
    .await;
    let socket = Socket::open(&server, "/topics/a").await;
    let events = Events::open(&server, "/topics/a").await;
    for _ in 0..60 {
        publish(&server, "a", "x".repeat(200_000)).await;
    }
    assert_ends(server).await;
    drop((socket, events));
}
