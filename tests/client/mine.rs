//! A subscription that also reads the list of its subject.

use std::time::Duration;

use rejoin::{
    client::{AddOptions, Client, ConnectionFilter, Event, Start, Subscription, Transport},
    config::Secret,
};
use serde_json::json;

use crate::{
    TRANSPORTS, client, next,
    proxy::Proxy,
    publish,
    signer::{SECRET, Signer, seconds_from_now},
    support::Server,
};

/// The list alone.
const NONE: [&str; 0] = [];

async fn server() -> Server {
    Server::with(|config| config.jwt_secret = Some(Secret(SECRET.into()))).await
}

fn with_token(url: &str, sub: &str, grants: &serde_json::Value) -> Client {
    let claims = json!({"sub": sub, "exp": seconds_from_now(600), "rejoin": grants});
    client(url).with_token(&Signer::new("HS256").sign(&claims)).expect("a header carries it")
}

fn backend(server: &Server) -> Client {
    with_token(&server.http("/"), "backend", &json!({"admin": true, "publish": ["**"]}))
}

/// A user who may read one topic of their own.
fn user(url: &str, sub: &str, transport: Transport) -> Client {
    with_token(url, sub, &json!({"subscribe": ["own"]})).with_transport(transport)
}

/// The next message, gap or change of the list, in short.
async fn told(subscription: &mut Subscription) -> String {
    loop {
        match next(subscription).await.expect("no error") {
            Event::Added(topic) => return format!("+{topic}"),
            Event::Removed(topic) => return format!("-{topic}"),
            Event::Message(message) => {
                return format!("{}:{}", message.topic, String::from_utf8_lossy(&message.payload));
            }
            Event::Gap(gap) => return format!("gap {}", gap.topic),
            _ => {}
        }
    }
}

async fn say(backend: &Client, topic: &str, text: &str) {
    publish(backend, topic, [text.to_owned()]).await;
}

#[tokio::test]
async fn a_subscription_follows_the_list_of_its_subject() {
    let server = server().await;
    let backend = backend(&server);
    for transport in TRANSPORTS {
        let sub = format!("u.{transport:?}");
        let add = async |topic: &str| backend.add_to_list(&sub, topic).await.expect("it is added");
        let remove = async |topic: &str| backend.remove_from_list(&sub, topic).await.expect("it is removed");
        add("first").await;
        let mut reader = user(&server.http("/"), &sub, transport).subscribe_mine(["own"], Start::Now);
        assert_eq!(told(&mut reader).await, "+first", "{transport:?}");
        // A poll learns of a change between two polls with the next message.
        let mut both = async |topic: &str, text: &str| {
            say(&backend, topic, text).await;
            let mut both = [told(&mut reader).await, told(&mut reader).await];
            both.sort_unstable();
            both
        };
        add("second.*").await;
        assert_eq!(both("second.a", "1").await, ["+second.*", "second.a:1"], "{transport:?}");
        // The client reads this one by itself, with the list and without it.
        add("own").await;
        add("third").await;
        assert_eq!(both("own", "2").await, ["+third", "own:2"], "{transport:?}");
        remove("own").await;
        remove("first").await;
        say(&backend, "first", "gone").await;
        assert_eq!(both("own", "3").await, ["-first", "own:3"], "{transport:?}");
        remove("second.*").await;
        say(&backend, "second.a", "gone").await;
        assert_eq!(both("third", "4").await, ["-second.*", "third:4"], "{transport:?}");
    }
    server.stop().await;
}

/// The list is told at the beginning of each connection, and not what has changed since the last one.
#[tokio::test]
async fn changes_while_there_was_no_connection_are_told_at_the_next_one() {
    let server = server().await;
    let backend = backend(&server);
    for transport in TRANSPORTS {
        let sub = format!("u.{transport:?}");
        let proxy = Proxy::impatient(server.addr, Duration::from_millis(300)).await;
        for topic in ["kept", "gone"] {
            backend.add_to_list(&sub, topic).await.expect("it is added");
        }
        let mut reader = user(&proxy.url(), &sub, transport).subscribe_mine(NONE, Start::Now);
        assert_eq!(told(&mut reader).await, "+gone", "{transport:?}");
        assert_eq!(told(&mut reader).await, "+kept", "{transport:?}");
        while !matches!(next(&mut reader).await.expect("no error"), Event::Disconnected(_)) {}
        backend.remove_from_list(&sub, "gone").await.expect("it is removed");
        backend.add_to_list(&sub, "new").await.expect("it is added");
        say(&backend, "kept", "while it was away").await;
        assert_eq!(told(&mut reader).await, "-gone", "{transport:?}");
        assert_eq!(told(&mut reader).await, "+new", "{transport:?}");
        assert_eq!(told(&mut reader).await, "kept:while it was away", "{transport:?}");
    }
    server.stop().await;
}

/// The id of the only connection of a subject.
async fn connection_of(backend: &Client, sub: &str) -> String {
    let filter = ConnectionFilter { sub: Some(sub.to_owned()), ..ConnectionFilter::default() };
    let page = backend.connections(&filter, None).await.expect("a page");
    let [connection] = &page.connections[..] else { panic!("{page:?}") };
    connection.connection.clone()
}

/// The subscription heard nothing, and its server did not read the topic any more.
#[tokio::test]
async fn a_named_topic_that_the_backend_adds_and_removes_is_read_on() {
    let server = server().await;
    let backend = backend(&server);
    for transport in TRANSPORTS.into_iter().filter(|transport| *transport != Transport::Poll) {
        for is_listed in [true, false] {
            let sub = format!("u.{transport:?}.{is_listed}");
            let mut reader = user(&server.http("/"), &sub, transport).subscribe_mine(["own"], Start::Now);
            while !matches!(next(&mut reader).await.expect("no error"), Event::Connected) {}
            let id = &connection_of(&backend, &sub).await;
            match is_listed {
                true => backend.add_to_list(&sub, "own").await,
                false => backend.add_topic(id, "own", &AddOptions::default()).await,
            }
            .expect("it is added");
            say(&backend, "own", "added").await;
            assert_eq!(told(&mut reader).await, "own:added", "{transport:?} {is_listed}");
            backend.remove_topic(id, "own", None).await.expect("it is removed");
            if is_listed {
                backend.remove_from_list(&sub, "own").await.expect("it is removed");
            }
            say(&backend, "own", "removed").await;
            assert_eq!(told(&mut reader).await, "own:removed", "{transport:?} {is_listed}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn the_backend_makes_the_subject_of_a_connection_present() {
    let server = server().await;
    let grants = json!({"admin": true, "presence": ["**"]});
    let backend = with_token(&server.http("/"), "backend", &grants);
    let mut reader = user(&server.http("/"), "u1", Transport::WebSocket).subscribe_mine(["own"], Start::Now);
    while !matches!(next(&mut reader).await.expect("no error"), Event::Connected) {}
    let id = &connection_of(&backend, "u1").await;
    for (topic, presence, count) in [("read", false, 0), ("room", true, 1)] {
        let options = AddOptions { presence, sub: Some("u1".into()), ..AddOptions::default() };
        backend.add_topic(id, topic, &options).await.expect("it is added");
        let page = backend.members(topic, None).await.expect("a page");
        assert_eq!(page.count, count, "{topic}: {page:?}");
    }
    backend.end_connection(id, Some("u2")).await.expect_err("it is of another subject");
    backend.end_connection(id, Some("u1")).await.expect("it is ended");
    server.stop().await;
}

/// `Removed` is told for the list, or once nothing reads the topic.
#[tokio::test]
async fn a_topic_that_is_added_in_both_ways_is_told_and_removed_once() {
    let server = server().await;
    let backend = backend(&server);
    for transport in TRANSPORTS.into_iter().filter(|transport| *transport != Transport::Poll) {
        for is_listed_longer in [true, false] {
            let sub = format!("u.{transport:?}.{is_listed_longer}");
            let mut reader = user(&server.http("/"), &sub, transport).subscribe_mine(["own"], Start::Now);
            while !matches!(next(&mut reader).await.expect("no error"), Event::Connected) {}
            let id = &connection_of(&backend, &sub).await;
            backend.add_to_list(&sub, "t").await.expect("it is added");
            backend.add_topic(id, "t", &AddOptions::default()).await.expect("it is added");
            let mut seen = Vec::new();
            for (is_of_list, text) in [(!is_listed_longer, "still read"), (is_listed_longer, "unread")] {
                match is_of_list {
                    true => backend.remove_from_list(&sub, "t").await,
                    false => backend.remove_topic(id, "t", None).await,
                }
                .expect("it is removed");
                say(&backend, "t", text).await;
                // A message that was not given yet when its topic was removed may never be.
                while !seen.contains(&"t:still read".to_owned()) {
                    seen.push(told(&mut reader).await);
                }
            }
            say(&backend, "own", "last").await;
            let expected = match is_listed_longer {
                true => ["+t", "t:still read", "-t", "own:last"],
                false => ["+t", "-t", "t:still read", "own:last"],
            };
            while seen.len() < expected.len() {
                seen.push(told(&mut reader).await);
            }
            assert_eq!(seen, expected, "{transport:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_without_a_subject_has_no_list() {
    let server = Server::start().await;
    for transport in TRANSPORTS {
        let mut reader = client(&server.http("/")).with_transport(transport).subscribe_mine(NONE, Start::Now);
        let refused = next(&mut reader).await.expect_err("it is refused");
        assert!(refused.is_final(), "{transport:?}: {refused:?}");
    }
    server.stop().await;
}
