//! A reader whose topics are added by commands and by the list of its subject.

use std::future::poll_fn;

use axum::{body::Body, extract::Request};
use futures_util::poll;
use http::header;

use super::*;
use crate::{
    broker::{Broker, Delivery},
    config::Config,
    http::{App, metrics::Transport},
    log::{Append, MemoryLog, Start},
    message::{Draft, Message, Payload},
    shutdown::Shutdown,
};

/// The log takes a while to begin, and a command may come meanwhile.
#[tokio::test]
async fn a_pattern_that_has_become_one_too_many_is_not_joined() {
    let broker = Broker::new(MemoryLog::start(Config::default().retention()));
    let app = App::new(broker.clone(), Arc::new(Config::default()), Shutdown::new());
    let request = Request::get("/events").header(header::HOST, "localhost").body(Body::empty());
    let access = Access::of(&app.rules, &request.expect("a request")).await.expect("it is open");
    let pattern = |name: &str| name.parse::<Pattern>().expect("a pattern");
    let subscribe = async |patterns: &[Pattern]| {
        broker.subscribe(patterns.to_vec(), &Start::Now, "c").await.expect("it begins")
    };
    let read: Vec<_> = (0..99).map(|number| pattern(&format!("p{number}.*"))).collect();
    let permit = app.permit(Transport::WebSocket, &access, read.len()).expect("a place");
    let (id, transport) = (app.live.new_id(), Transport::WebSocket);
    let held = app.hold(id, subscribe(&read).await, permit, &access, (transport, false), None);
    let mut reader = Reader::new(app.connections.clone(), "c".into(), held, access);
    let (asked, added) = (pattern("asked.*"), pattern("added.*"));
    assert_eq!(reader.ask_for(&asked).expect("there is room"), Step::MayBegin);
    let number = reader.reading.begin(&added).expect("there is room").expect("it is not read yet");
    let begun = subscribe(std::slice::from_ref(&added)).await;
    reader.reading.finish(number, added, begun).expect("the connection lives");
    assert_eq!(app.connections.topics_read(), 100);
    let begun = subscribe(std::slice::from_ref(&asked)).await;
    reader.join(asked, begun).expect_err("it is one too many");
    assert_eq!(app.connections.topics_read(), 100);
}

/// A client with a list, and what it is given.
struct Client {
    broker: Broker,
    reader: Reader,
    given: Vec<String>,
}

impl Client {
    /// It reads the topic `own`, and its list.
    async fn begin() -> Self {
        let broker = Broker::new(MemoryLog::start(Config::default().retention()));
        let app = App::new(broker.clone(), Arc::new(Config::default()), Shutdown::new());
        let request = Request::get("/events").header(header::HOST, "localhost").body(Body::empty());
        let access = Access::of(&app.rules, &request.expect("a request")).await.expect("it is open");
        let own = vec!["own".parse().expect("a topic")];
        let read = broker.subscribe_with_list(own, &Start::Now, "c", "u1").await.expect("it begins");
        let transport = Transport::WebSocket;
        let permit = app.permit(transport, &access, 1).expect("a place");
        let held = app.hold(app.live.new_id(), read, permit, &access, (transport, false), None);
        let reader = Reader::new(app.connections.clone(), "c".into(), held, access);
        Self { broker, reader, given: Vec::new() }
    }

    /// Reads some events, or all that there are.
    async fn read(&mut self, most: usize) {
        for _ in 0..most {
            let Poll::Ready(next) = poll!(poll_fn(|cx| self.reader.poll(cx, true))) else { return };
            let Next::Event(event) = next else { panic!("{next:?}") };
            self.given.push(match event {
                Event::Delivery(Delivery::Message(message)) => text(&message),
                Event::Replay(_, Delivery::Message(message)) => format!("replay {}", text(&message)),
                Event::Added(topic) => format!("added {topic}"),
                Event::Joined(topic) => format!("joined {topic}"),
                Event::Removed(topic) => format!("removed {topic}"),
                other => panic!("{other:?}"),
            });
        }
    }

    /// A command adds a topic, with all that is retained of it.
    async fn put(&self, topic: &str) {
        let pattern: Pattern = topic.parse().expect("a pattern");
        let number = self.reader.reading.begin(&pattern).expect("there is room").expect("it is not read yet");
        let start = Start::Last(99);
        let begun = self.broker.subscribe(vec![pattern.clone()], &start, "c").await.expect("it begins");
        self.reader.reading.finish(number, pattern, begun).expect("the connection lives");
    }

    async fn list(&self, topic: &str) {
        let topic = topic.parse().expect("a pattern");
        self.broker.subjects().expect("lists").add("u1", &topic).await.expect("there is room");
    }

    async fn unlist(&self, topic: &str) {
        let topic = topic.parse().expect("a pattern");
        self.broker.subjects().expect("lists").remove("u1", &topic).await.expect("it is removed");
    }

    async fn announce(&self, topic: &str, text: &str) {
        self.broker.announce(draft(topic, text)).await.expect("it is sent");
    }

    async fn publish(&self, topic: &str, text: &str) {
        let append = Append { draft: draft(topic, text), idempotency_key: None, if_match: None };
        self.broker.publish(append).await.expect("it is stored");
    }

    /// The ephemeral messages that were given: their texts begin with `e`.
    fn ephemerals(&self) -> Vec<&str> {
        self.given.iter().map(|text| text.as_str()).filter(|text| text.starts_with('e')).collect()
    }
}

fn draft(topic: &str, text: &str) -> Draft {
    let (topic, payload) = (topic.parse().expect("a topic"), Payload::text(text));
    Draft { topic, event: None, payload, exclude: None, by: None }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(message.bytes()).into_owned()
}

/// The client was not given what is published between the two, or in another order.
#[tokio::test]
async fn ephemeral_messages_of_a_topic_that_a_command_and_then_the_list_adds_are_given_once_and_in_order() {
    for is_caught_up in [true, false] {
        let mut client = Client::begin().await;
        if is_caught_up {
            client.read(1).await;
        }
        client.publish("t", "old").await;
        client.put("t").await;
        client.announce("t", "e1").await;
        client.announce("own", "e of own").await;
        client.list("t").await;
        client.announce("t", "e2").await;
        client.read(99).await;
        // A subscription that has yet to catch up gets none of the topics that were not added.
        let expected: &[_] = if is_caught_up { &["e1", "e of own", "e2"] } else { &["e1", "e2"] };
        assert_eq!(client.ephemerals(), expected, "{is_caught_up} {:?}", client.given);
    }
}

/// The list has added a pattern beside it, and what was published before that was given by neither.
#[tokio::test]
async fn ephemeral_messages_of_a_topic_that_joins_are_given_although_the_list_adds_a_pattern_too() {
    for topics in [["t.1", "t.*"], ["t.*", "t.1"]] {
        let mut client = Client::begin().await;
        client.read(1).await;
        client.publish("t.1", "old").await;
        client.put(topics[0]).await;
        client.announce("t.1", "e1").await;
        client.list(topics[0]).await;
        client.list(topics[1]).await;
        client.announce("t.1", "e2").await;
        client.read(99).await;
        assert_eq!(client.ephemerals(), ["e1", "e2"], "{topics:?} {:?}", client.given);
    }
}

#[tokio::test]
async fn ephemeral_messages_of_two_patterns_that_join_are_given_once() {
    for is_listed in [true, false] {
        let mut client = Client::begin().await;
        client.read(1).await;
        client.publish("t.1", "old").await;
        for topic in ["t.1", "t.*"] {
            client.put(topic).await;
        }
        client.announce("t.1", "e1").await;
        if is_listed {
            client.list("t.1").await;
            client.list("t.*").await;
        }
        client.announce("t.1", "e2").await;
        client.read(99).await;
        assert_eq!(client.ephemerals(), ["e1", "e2"], "{is_listed} {:?}", client.given);
    }
}

#[tokio::test]
async fn an_ephemeral_message_is_given_once_although_its_pattern_is_removed_while_its_topic_joins() {
    let mut client = Client::begin().await;
    client.list("t.*").await;
    client.read(99).await;
    for text in ["old", "older", "oldest"] {
        client.publish("t.1", text).await;
    }
    client.put("t.1").await;
    client.announce("t.1", "e1").await;
    client.list("t.1").await;
    client.read(6).await;
    client.unlist("t.*").await;
    client.announce("t.1", "e2").await;
    client.read(99).await;
    assert_eq!(client.ephemerals(), ["e1", "e2"], "{:?}", client.given);
}

/// It was taken only once the topic was removed.
#[tokio::test]
async fn an_ephemeral_message_before_a_removal_by_the_list_is_given() {
    let mut client = Client::begin().await;
    client.list("t").await;
    client.read(99).await;
    client.publish("t", "stored").await;
    client.announce("t", "e1").await;
    client.publish("own", "later").await;
    client.announce("t", "e2").await;
    client.unlist("t").await;
    client.announce("t", "e3").await;
    client.read(99).await;
    assert_eq!(client.given[1..], ["stored", "later", "e1", "e2", "removed t"]);
}

/// The client took the replay of the command for that of its own start.
#[tokio::test]
async fn a_replay_is_followed_by_the_frame_of_the_request_that_began_it() {
    for is_command_first in [true, false] {
        let mut client = Client::begin().await;
        client.publish("t", "old").await;
        client.publish("own", "newer").await;
        client.read(99).await;
        client.given.clear();
        let topic: Pattern = "t".parse().expect("a pattern");
        if is_command_first {
            client.put("t").await;
            assert_eq!(client.reader.ask_for(&topic).expect("it may be read"), Step::Joins);
        } else {
            let begun = client.broker.subscribe(vec![topic.clone()], &Start::Last(99), "c").await;
            client.reader.join(topic.clone(), begun.expect("it begins")).expect("there is room");
            assert_eq!(client.reader.reading.begin(&topic).expect("there is room"), None);
        }
        client.read(2).await;
        // Its next command waits until this one is answered.
        assert_eq!(client.reader.is_joining(), is_command_first, "{:?}", client.given);
        client.read(99).await;
        let told = if is_command_first { ["added t", "joined t"] } else { ["joined t", "added t"] };
        assert_eq!(
            (client.given[0].as_str(), &client.given[1..]),
            ("replay old", &told.map(String::from)[..])
        );
    }
}
