//! The names in a query: the cursor under the names of libraries, and names with typing errors.

use serde_json::json;

use crate::{
    ask::{Answer, Ask, get, now, post, publish, publish_all, text},
    reader::{Lines, Reader, Stream, refusal},
    support::{Server, client::Transport},
};

/// The names under which libraries add their cursor, by rank.
const ADDED: [&str; 4] = ["lastEventId", "lastEventID", "Last-Event-ID", "last_event_id"];

/// event-source-polyfill appends its cursor to the URL of the page. If that URL had an `after`, the library
/// was refused at its first reconnect, and otherwise it lost messages and got no gap.
#[tokio::test]
async fn a_cursor_that_a_library_adds_wins_over_the_one_that_the_page_wrote() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        for name in ADDED {
            for written in ["after=0", "last=5", "since=1h", ""] {
                let query = format!("topic=a&{written}&{name}={}", ids[2]);
                let mut reader = Reader::open(&server, transport, &query).await;
                assert_eq!(reader.ids(2).await, ids[3..], "{transport} {query}");
            }
        }
    }
}

#[tokio::test]
async fn cursors_rank_and_the_header_is_the_first() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=6).await;
    let mut query = "topic=a".to_owned();
    // Each one that is added outranks those before it.
    for (name, id) in ["after"].iter().chain(ADDED.iter().rev()).zip(&ids) {
        query = format!("{query}&{name}={id}");
        let position = ids.iter().position(|known| known == id).expect("one of them");
        for transport in Transport::ALL {
            let mut reader = Reader::open(&server, transport, &query).await;
            assert_eq!(reader.ids(5 - position).await, ids[position + 1..], "{transport} {query}");
        }
    }
    for transport in Transport::ALL {
        let headers = [("last-event-id", ids[4].as_str())];
        let mut reader =
            Reader::open_with(&server, transport, &query.replace(&ids[4], &ids[0]), &headers).await;
        assert_eq!(reader.ids(1).await, ids[5..], "{transport}");
    }
}

#[tokio::test]
async fn a_cursor_that_a_library_adds_counts_as_the_header_does() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=3).await;
    for transport in Transport::ALL {
        for name in ADDED {
            let query = format!("topic=a&after={}&{name}=nonsense", ids[1]);
            let mut reader = Reader::open(&server, transport, &query).await;
            let gap = reader.gap().await;
            assert_eq!(
                (&gap["reason"], &gap["after"]),
                (&json!("unknown_cursor"), &json!("nonsense")),
                "{gap}"
            );
            assert_eq!(reader.ids(3).await, ids, "{transport} {name}");
            let query = format!("topic=a&after={}&{name}=", ids[1]);
            let mut reader = Reader::open(&server, transport, &query).await;
            assert_eq!(reader.ids(1).await, ids[2..], "{transport} {name}: an empty one is none");
            let query = format!("topic=a&{name}=0&{name}={}", ids[1]);
            let mut reader = Reader::open(&server, transport, &query).await;
            assert_eq!(reader.ids(1).await, ids[2..], "{transport} {name}: the last one is the newest");
        }
    }
}

#[tokio::test]
async fn the_cursor_that_a_library_adds_wins_over_those_of_the_body() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=4).await;
    let body = json!({"topics": ["a"], "after": "0", "last_event_id": ids[0], "transport": "ndjson"});
    for (query, first) in [("", 1), (&format!("?lastEventId={}", ids[2]), 3), ("?lastEventId=", 1)] {
        let stream = Stream::of(post(&server, &format!("/events{query}")).json(&body)).await;
        let mut reader = Reader::Ndjson(Box::new(Lines::of(stream)));
        assert_eq!(reader.next().await["type"], "open");
        assert_eq!(reader.ids(4 - first).await, ids[first..], "{query}");
    }
    let unreadable = json!({"topics": ["a"], "after": "0", "last_event_id": "x", "wait": 0});
    let page = post(&server, "/events").json(&unreadable).answer().await.json();
    assert_eq!(page["gaps"][0]["reason"], "unknown_cursor", "{page}");
}

fn assert_named(answer: &Answer, name: &str, meant: &str) {
    let detail = text(&answer.problem(400, "bad_request")["detail"]);
    assert!(detail.contains(name) && detail.contains(meant), "{name} {meant}: {detail}");
}

/// A subscription with `lsat=5` began at now, and the page missed what it had asked for.
#[tokio::test]
async fn a_typing_error_in_the_query_is_refused_with_the_name_that_was_meant() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for (query, meant) in [
            ("lsat=5", "last"),
            ("Last=5", "last"),
            ("afte=0", "after"),
            ("lastEvntId=0", "lastEventId"),
            ("transprot=sse", "transport"),
            ("topic[]=b", "topic"),
            ("topics=b", "topic"),
            ("tokn=x", "token"),
            ("event=paid", "to publish (no option reads the messages of one event alone)"),
            ("data=x", "to publish"),
            ("content_type=text/plain", "to publish"),
        ] {
            let name = query.split('=').next().expect("a name");
            let answer = refusal(&server, transport, &format!("/events?topic=a&wait=0&{query}"), &[]).await;
            assert_named(&answer, name, meant);
            if !name.starts_with("topic") {
                let answer = refusal(&server, transport, &format!("/topics/a?wait=0&{query}"), &[]).await;
                assert_named(&answer, name, meant);
            }
        }
    }
    let answer = post(&server, "/topics/a?ephemerl").body("x").answer().await;
    assert_named(&answer, "ephemerl", "ephemeral");
    let answer = post(&server, "/topics/a?data=x").body("x").answer().await;
    assert_named(&answer, "data", "body");
    let answer = post(&server, "/topics/a?idempotency_key=x").body("x").answer().await;
    assert_named(&answer, "idempotency_key", "Idempotency-Key");
    let json = [("content-type", "application/json")];
    for (query, meant) in [("orderd", "ordered"), ("event=x", "element")] {
        let request = post(&server, &format!("/publish?{query}")).header(json[0].0, json[0].1).body("[]");
        assert_named(&request.answer().await, query.split('=').next().expect("a name"), meant);
    }
    assert_named(&get(&server, "/topics?limt=5").answer().await, "limt", "limit");
    assert_eq!(now(&server).await, now(&server).await, "nothing was published");
}

#[tokio::test]
async fn any_other_unknown_name_in_the_query_is_ignored() {
    let server = Server::start().await;
    let id = publish(&server, "a", "x").await;
    let noise = "_=1&t=2&v=3&utm_source=a&fbclid=b&nonce=c&lang=de&nonsense=1&nonsense=2";
    for transport in Transport::ALL {
        let query = format!("topic=a&{noise}&after=0");
        assert_eq!(Reader::open(&server, transport, &query).await.ids(1).await, [id.as_str()], "{transport}");
    }
    assert_eq!(post(&server, &format!("/topics/a?{noise}")).body("x").answer().await.status, 201);
    assert_eq!(get(&server, &format!("/topics?{noise}")).answer().await.status, 200);
}
