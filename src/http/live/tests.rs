//! Connections that are ended while or after they begin.

use std::time::Duration;

use axum::{body::Body, extract::Request};
use http::header;
use tokio::time::timeout;

use super::{command::Done, list::Wanted, *};
use crate::{
    config::Config,
    http::{access::Access, metrics::Transport},
    log::{End, MemoryLog, Refusal, Start},
    message::Id,
    shutdown::Shutdown,
};

fn server() -> Arc<App> {
    let broker = Broker::new(MemoryLog::start(Config::default().retention()));
    App::new(broker, Arc::new(Config::default()), Shutdown::new())
}

/// A connection of `u1`, whose token was issued then.
async fn hold(app: &App, id: ConnectionId, issued: u64) -> Held {
    let request = Request::get("/events").header(header::HOST, "localhost").body(Body::empty());
    let access = Access::of(&app.rules, &request.expect("a request")).await.expect("it is open");
    let read = vec!["t".parse().expect("a topic")];
    let subscription = app.broker.subscribe(read, &Start::Now, "c").await.expect("it begins");
    let permit = app.permit(Transport::Sse, &access, 1).expect("a place");
    let about = About {
        sub: Some("u1".into()),
        info: None,
        transport: Transport::Sse,
        address: None,
        since: OffsetDateTime::now_utc(),
        is_raw: false,
    };
    app.live.hold(id, Reading::new(about, subscription, permit, Some(Some(issued)), None))
}

/// More connections than a list shows before other tasks run.
async fn hold_many(app: &App) -> Vec<Held> {
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(hold(app, app.live.new_id(), 0).await);
    }
    held
}

fn list_all() -> Command {
    Command::List(Wanted { sub: None, topic: None, limit: 100, after: None })
}

/// The code with which the connection ends.
async fn end_of(held: &Held) -> Code {
    let event = std::future::poll_fn(|cx| held.lock().poll(cx, true));
    match timeout(Duration::from_secs(5), event).await.expect("it ends") {
        Event::Ended(code) => code,
        event => panic!("{event:?}"),
    }
}

/// No replica would find it: its id leads to a replica that counts as gone.
#[tokio::test]
async fn a_connection_that_has_begun_under_an_older_name_of_its_replica_ends() {
    let app = server();
    let old = ConnectionId::of(app.live.name().wrapping_add(1), 1);
    assert_eq!(end_of(&hold(&app, old, 0).await).await, Code::Draining);
    let now = app.live.new_id();
    let held = hold(&app, now, 0).await;
    assert!(app.live.table.find(now).is_some());
    drop(held);
    assert!(app.live.table.find(now).is_none());
}

/// This replica has missed the refusal, and hears of it by a later question. The connection is younger than the end, so only
/// its token says that it must go.
#[tokio::test]
async fn a_refusal_that_comes_late_ends_the_connections_of_older_tokens() {
    let app = server();
    let [old, new] = [hold(&app, app.live.new_id(), 100).await, hold(&app, app.live.new_id(), 101).await];
    let refusal = Some(Refusal { second: 100, until_ms: u64::MAX });
    let long_ago = Some(Duration::from_secs(60));
    for refusal in [None, refusal] {
        let end = End { subject: "u1".into(), refusal, id: Id::new(7) };
        app.end_subject(end, long_ago).await;
    }
    assert_eq!(end_of(&old).await, Code::Forbidden);
    assert!(futures_util::poll!(std::future::poll_fn(|cx| new.lock().poll(cx, true))).is_pending());
}

/// Each that is shown may have to wait for a group that writes.
#[tokio::test]
async fn other_tasks_run_while_many_connections_are_listed() {
    let app = server();
    let _held = hold_many(&app).await;
    let mut listing = Box::pin(list_all().run(&app, Instant::now() + PATIENCE));
    let mut pauses = 0;
    let done = std::future::poll_fn(|cx| {
        let polled = listing.as_mut().poll(cx);
        pauses += usize::from(polled.is_pending());
        polled
    });
    let Ok(Done::Listed(page)) = done.await else { panic!("a page") };
    assert_eq!((page.connections.len(), pauses), (40, 3), "after 16, after 32, and at the end");
}

/// A list kept up to 256 of them, with their places and their sockets, for as long as other tasks ran in between.
#[tokio::test]
async fn a_list_keeps_no_connection_that_ends_while_other_tasks_run() {
    let app = server();
    let held = hold_many(&app).await;
    let mut listing = Box::pin(list_all().run(&app, Instant::now() + PATIENCE));
    assert!(futures_util::poll!(&mut listing).is_pending());
    assert_eq!(app.connections.count(), 40);
    drop(held);
    assert_eq!(app.connections.count(), 0);
    let Ok(Done::Listed(page)) = listing.await else { panic!("a page") };
    assert_eq!((page.connections.len(), page.is_cut), (16, false));
}
