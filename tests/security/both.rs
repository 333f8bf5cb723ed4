//! A topic that is on the list of a subject and was also added to its connection: each removal takes its own.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{request, text},
    lists::{LIVE, add, open, remove, told},
    people::{As, BACKEND, publish, servers, usual},
    reader::Reader,
    support::Server,
};

/// The removal that comes first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    FromList,
    FromConnection,
}

const ORDERS: [First; 2] = [First::FromList, First::FromConnection];

fn path_of(reader: &Reader, topic: &str) -> String {
    format!("/connections/{}/topics/{topic}", text(&reader.opening()["connection"]))
}

async fn change(server: &Server, method: Method, path: &str) {
    let answer = request(server, method, path).answer_to(BACKEND).await;
    assert_eq!((answer.status, answer.text()), (204, ""), "{path}");
}

#[tokio::test]
async fn a_topic_that_is_listed_and_added_is_read_until_it_is_removed_in_both_ways() {
    for (_redis, server) in servers(&usual()).await {
        for transport in LIVE {
            for (number, first) in [ORDERS, ORDERS].concat().into_iter().enumerate() {
                let (sub, is_added_first) = (format!("u{number}-{transport}"), number < 2);
                let case = format!("{sub} {first:?}");
                let mut reader = open(&server, transport, &sub, "mine&topic=own.a").await;
                let path = path_of(&reader, "t");
                for is_by_list in [!is_added_first, is_added_first] {
                    match is_by_list {
                        true => add(&server, &sub, "t").await,
                        false => change(&server, Method::PUT, &path).await,
                    }
                    told(&mut reader, "subscribed", "t").await;
                }
                match first {
                    First::FromList => {
                        remove(&server, &sub, "t").await;
                        told(&mut reader, "unsubscribed", "t").await;
                    }
                    // The client is told nothing: its list has the topic.
                    First::FromConnection => change(&server, Method::DELETE, &path).await,
                }
                let id = publish(&server, "t", "still read").await;
                assert_eq!(reader.ids(1).await, [id], "{case}");
                match first {
                    First::FromList => change(&server, Method::DELETE, &path).await,
                    First::FromConnection => remove(&server, &sub, "t").await,
                }
                publish(&server, "t", "unread").await;
                let own = publish(&server, "own.a", "x").await;
                told(&mut reader, "unsubscribed", "t").await;
                assert_eq!(reader.ids(1).await, [own], "{case}");
            }
        }
    }
}

/// A removal from the connection takes what was added to it, so it also ends the replay. One from the list does not.
#[tokio::test]
async fn a_replay_of_a_listed_topic_ends_by_the_removal_from_the_connection_alone() {
    for (_redis, server) in servers(&usual()).await {
        let mut before = Vec::new();
        for number in 0..80 {
            before.push(publish(&server, &format!("j.{number}"), &"x".repeat(100_000)).await);
        }
        for transport in LIVE {
            for first in ORDERS {
                let (sub, case) = (format!("u-{transport}-{first:?}"), format!("{transport} {first:?}"));
                let mut reader = open(&server, transport, &sub, "mine&topic=own.a").await;
                let path = path_of(&reader, "j.*");
                // The client reads nothing until the replay is in the middle.
                change(&server, Method::PUT, &format!("{path}?after=0")).await;
                add(&server, &sub, "j.*").await;
                match first {
                    First::FromList => remove(&server, &sub, "j.*").await,
                    First::FromConnection => change(&server, Method::DELETE, &path).await,
                }
                let after = publish(&server, "j.1", "still read").await;
                let last = publish(&server, "own.a", "x").await;
                let (mut given, mut said) = (Vec::new(), Vec::new());
                let has_all = |given: &[String]| [&after, &last].iter().all(|id| given.contains(id));
                while !has_all(&given) || first == First::FromList && said.len() < 3 {
                    let frame = reader.next().await;
                    match frame["type"].as_str() {
                        Some("message") => given.push(text(&frame["id"])),
                        Some("subscribed" | "unsubscribed") if frame["topic"] == "j.*" => {
                            assert_eq!(frame["by"], "server", "{frame}");
                            said.push(text(&frame["type"]));
                        }
                        _ => panic!("{case}: {frame}"),
                    }
                }
                given.sort();
                match first {
                    First::FromList => {
                        said.sort();
                        assert_eq!(said, ["subscribed", "subscribed", "unsubscribed"], "{case}");
                        before.extend([after, last.clone()]);
                        assert_eq!(given, before, "{case}");
                        before.retain(|id| *id != last);
                        change(&server, Method::DELETE, &path).await;
                    }
                    First::FromConnection => {
                        // The removal may come before the client is told of its list.
                        let is_right = said == ["subscribed"] || said == ["unsubscribed", "subscribed"];
                        assert!(is_right, "{case}: {said:?}");
                        let replayed = given.iter().filter(|id| before.contains(*id)).count();
                        assert_eq!(given.len(), replayed + 2, "{case}: each is given once");
                        assert!(replayed < before.len(), "{case}: {replayed}");
                        before.push(after);
                        remove(&server, &sub, "j.*").await;
                    }
                }
                publish_unread(&server, &mut reader, &mut before).await;
            }
        }
    }
}

/// The client is told that the topic is removed, and is given only its own one from then on.
async fn publish_unread(server: &Server, reader: &mut Reader, published: &mut Vec<String>) {
    published.push(publish(server, "j.2", "unread").await);
    let own = publish(server, "own.a", "x").await;
    told(reader, "unsubscribed", "j.*").await;
    let frame: Value = reader.next().await;
    assert_eq!((&frame["type"], &frame["id"]), (&json!("message"), &json!(own)), "{frame}");
}
