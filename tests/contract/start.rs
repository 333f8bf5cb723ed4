//! The start of reading, the same on every transport.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::{
    ask::{Ask, now, number, post, publish, publish_all, text},
    reader::{Lines, Reader, Stream, refusal},
    support::{Server, client::Transport},
};

#[tokio::test]
async fn after_a_cursor_reads_everything_newer_and_then_live() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        for name in ["after", "lastEventId", "lastEventID", "Last-Event-ID", "last_event_id"] {
            let mut reader = Reader::open(&server, transport, &format!("topic=a&{name}={}", ids[1])).await;
            assert_eq!(reader.ids(3).await, ids[2..5], "{transport} {name}");
        }
        let query = format!("topic={transport}&after={}", ids[1]);
        let mut reader = Reader::open(&server, transport, &query).await;
        let next = publish(&server, &transport.to_string(), "live").await;
        assert_eq!(reader.ids(1).await, [next], "{transport}");
    }
}

#[tokio::test]
async fn after_0_reads_everything_retained() {
    let server = Server::with(|config| config.retain_messages = 3).await;
    let ids = publish_all(&server, "a", 1..=10).await;
    for transport in Transport::ALL {
        let mut reader = Reader::open(&server, transport, "topic=a&after=0").await;
        assert_eq!(reader.ids(3).await, ids[7..], "{transport}: no gap, since only a cursor can have one");
    }
}

#[tokio::test]
async fn last_reads_the_newest_messages_of_each_topic() {
    let server = Server::start().await;
    let a = publish_all(&server, "a", 1..=5).await;
    let b = publish_all(&server, "b.x", 1..=2).await;
    let c = publish_all(&server, "b.y", 1..=5).await;
    let quiet = "topic=nothing";
    for transport in Transport::ALL {
        let all = format!("topic=a&topic=b.*&{quiet}");
        let mut reader = Reader::open(&server, transport, &format!("{all}&last=3&limit=100")).await;
        let expected = [&a[2..], &b[..], &c[2..]].concat();
        assert_eq!(reader.ids(8).await, expected, "{transport}");
        let mut reader = Reader::open(&server, transport, "topic=a&last=1").await;
        assert_eq!(reader.ids(1).await, a[4..], "{transport}");
        let mut reader = Reader::open(&server, transport, "topic=a&last=1000").await;
        assert_eq!(reader.ids(5).await, a, "{transport}");
        let mut reader = Reader::open(&server, transport, "topic=d&last=0").await;
        let next = publish(&server, "d", "live").await;
        assert_eq!(reader.ids(1).await, [next], "{transport}");
    }
}

#[tokio::test]
async fn last_covers_the_1_000_topics_of_a_pattern_with_the_newest_messages() {
    let server = Server::start().await;
    let items: Vec<_> =
        (0..1_100).map(|number| json!({"topic": format!("a.{number}"), "data": number})).collect();
    let ids: Vec<_> = {
        let receipts = post(&server, "/publish").json(&items).answer().await.json();
        receipts.as_array().expect("an array").iter().map(|receipt| text(&receipt["id"])).collect()
    };
    for transport in Transport::ALL {
        let mut reader = Reader::open(&server, transport, "topic=a.*&last=1&limit=1000").await;
        assert_eq!(reader.ids(1_000).await, ids[100..], "{transport}");
    }
}

#[tokio::test]
async fn since_reads_messages_published_then_or_later() {
    let server = Server::start().await;
    let mut ids = publish_all(&server, "a", 1..=2).await;
    // A time between two messages: the clock has advanced before the second.
    let between = SystemTime::now();
    while SystemTime::now() <= between + Duration::from_micros(10) {}
    ids.extend(publish_all(&server, "a", 3..=4).await);
    let micros = between.duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64 + 5;
    assert!(number(&ids[1]) < micros && micros < number(&ids[2]), "{ids:?} around {micros}");
    let utc = |micros: u64| {
        humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_micros(micros)).to_string()
    };
    let exact = utc(number(&ids[1]));
    for transport in Transport::ALL {
        for (since, first) in [
            (utc(micros), 2),
            (utc(micros).replace('Z', "%2B00:00"), 2),
            (utc(micros + 3_600_000_000).replace('Z', "%2B01:00"), 2),
            (exact.clone(), 1),
            ("1970-01-01T00:00:00Z".to_owned(), 0),
            ("90s".to_owned(), 0),
            ("10m".to_owned(), 0),
            ("2h".to_owned(), 0),
        ] {
            let mut reader = Reader::open(&server, transport, &format!("topic=a&since={since}")).await;
            assert_eq!(reader.ids(4 - first).await, ids[first..], "{transport} {since}");
        }
        let ahead = utc(number(&now(&server).await) + 3_600_000_000);
        let mut reader = Reader::open(&server, transport, &format!("topic=b&since={ahead}")).await;
        let next = publish(&server, "b", "live").await;
        assert_eq!(reader.ids(1).await, [next], "{transport}: a time in the future means now");
    }
}

#[tokio::test]
async fn without_a_start_reading_begins_now() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        publish(&server, "a", "before").await;
        let mut reader = Reader::open(&server, transport, "topic=a").await;
        let next = publish(&server, "a", "after").await;
        assert_eq!(reader.ids(1).await, [next], "{transport}");
    }
}

#[tokio::test]
async fn the_header_wins_over_the_query() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        for query in ["after=0", "last=5", "since=1h", "last_event_id=0", &format!("after={}", ids[3])] {
            let headers = [("last-event-id", ids[2].as_str())];
            let mut reader =
                Reader::open_with(&server, transport, &format!("topic=a&{query}"), &headers).await;
            assert_eq!(reader.ids(2).await, ids[3..], "{transport} {query}");
        }
        let mut all = Reader::open_with(&server, transport, "topic=a", &[("last-event-id", "0")]).await;
        assert_eq!(all.ids(5).await, ids, "{transport}");
    }
}

#[tokio::test]
async fn the_start_of_the_highest_rank_counts() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        let query = format!("topic=a&since=1h&last=4&after={}", ids[2]);
        assert_eq!(Reader::open(&server, transport, &query).await.ids(2).await, ids[3..], "{transport}");
        let query = "topic=a&since=1h&last=1";
        assert_eq!(Reader::open(&server, transport, query).await.ids(1).await, ids[4..], "{transport}");
    }
}

#[tokio::test]
async fn an_empty_header_is_none() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=3).await;
    for transport in Transport::ALL {
        let query = format!("topic=a&after={}", ids[1]);
        let mut reader = Reader::open_with(&server, transport, &query, &[("last-event-id", "")]).await;
        assert_eq!(reader.ids(1).await, ids[2..], "{transport}");
        let mut live = Reader::open_with(&server, transport, "topic=b", &[("last-event-id", "")]).await;
        let next = publish(&server, "b", "live").await;
        assert_eq!(live.ids(1).await, [next], "{transport}");
    }
}

#[tokio::test]
async fn a_header_that_cannot_be_parsed_is_a_gap_and_then_everything_retained() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=3).await;
    for transport in Transport::ALL {
        for sent in ["nonsense", "-1", "1.5", "99999999999999999999", "a\"b\\c", "{}", "W/\"5\""] {
            let query = format!("topic=a&after={}", ids[1]);
            let mut reader = Reader::open_with(&server, transport, &query, &[("last-event-id", sent)]).await;
            let gap = reader.gap().await;
            if transport != Transport::Poll {
                let opened_at = text(&reader.opening()["cursor"]);
                assert_eq!(
                    opened_at, "9007199254740991",
                    "{transport}: a client that is cut off now gets the gap again"
                );
            }
            let cursor = text(&gap["cursor"]);
            let expected = json!({
                "type": "gap", "topic": "a", "after": sent, "next": ids[0], "cursor": cursor,
                "reason": "unknown_cursor",
            });
            assert_eq!(gap, expected, "{transport} {sent}");
            assert_eq!(number(&cursor), number(&ids[0]) - 1, "{transport} {sent}");
            assert_eq!(reader.ids(3).await, ids, "{transport} {sent}");
        }
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_parsed_is_refused_even_if_another_start_counts() {
    let server = Server::start().await;
    let wrong = [
        ("after", "nonsense"),
        ("after", ""),
        ("after", "-1"),
        ("after", "+1"),
        ("after", "99999999999999999999"),
        ("last", "nonsense"),
        ("last", "-1"),
        ("last", "1.5"),
        ("last", "4294967296"),
        ("last", ""),
        ("since", "nonsense"),
        ("since", "10"),
        ("since", "-1s"),
        ("since", "2026-13-01T00:00:00Z"),
        ("since", ""),
    ];
    for transport in Transport::ALL {
        for (name, value) in wrong {
            let alone = format!("{name}={}", value.replace('+', "%2B"));
            let mut queries = vec![alone.clone()];
            if name == "last" || name == "since" {
                queries.push(format!("after=0&{alone}"));
            }
            for query in queries {
                for path in [format!("/events?topic=a&{query}"), format!("/topics/a?{query}")] {
                    for headers in [&[][..], &[("last-event-id", "0")]] {
                        let answer = refusal(&server, transport, &path, headers).await;
                        let detail = text(&answer.problem(400, "bad_request")["detail"]);
                        assert!(detail.contains(name), "{transport} {path}: {detail}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_single_valued_parameter_given_twice_is_refused() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        for query in [
            "after=0&after=0",
            "last=1&last=1",
            "since=1h&since=1h",
            "wait=1&wait=1",
            "limit=1&limit=1",
            "format=raw&format=raw",
            "transport=poll&transport=poll",
        ] {
            let path = format!("/events?topic=a&{query}");
            let detail =
                text(&refusal(&server, transport, &path, &[]).await.problem(400, "bad_request")["detail"]);
            let name = query.split('=').next().expect("a name");
            assert!(detail.contains(name), "{transport} {query}: {detail}");
        }
    }
}

#[tokio::test]
async fn an_unknown_parameter_is_ignored() {
    let server = Server::start().await;
    let id = publish(&server, "a", "x").await;
    for transport in Transport::ALL {
        let query = "topic=a&nonsense=1&nonsense=2&after=0";
        assert_eq!(Reader::open(&server, transport, query).await.ids(1).await, [id.as_str()], "{transport}");
    }
}

#[tokio::test]
async fn the_body_of_post_events_can_give_the_start() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for (start, first) in [
        (json!({"after": ids[2]}), 3),
        (json!({"after": "0"}), 0),
        (json!({"last_event_id": ids[2]}), 3),
        (json!({"last_event_id": ids[2], "after": "0"}), 3),
        (json!({"last_event_id": "", "after": ids[2]}), 3),
        (json!({"last": 2}), 3),
        (json!({"last": "2"}), 3),
        (json!({"since": "1h"}), 0),
    ] {
        let mut body = start.clone();
        body["topics"] = json!(["a"]);
        let stream = Stream::of(post(&server, "/events?transport=ndjson").json(&body)).await;
        let mut reader = Reader::Ndjson(Box::new(Lines::of(stream)));
        assert_eq!(reader.next().await["type"], "open", "{start}");
        assert_eq!(reader.ids(5 - first).await, ids[first..], "{start}");
    }
    for wrong in [
        json!({"after": "x"}),
        json!({"after": 5}),
        json!({"last": -1}),
        json!({"last": [1]}),
        json!({"since": "x"}),
    ] {
        let mut body = wrong.clone();
        body["topics"] = json!(["a"]);
        post(&server, "/events").json(&body).answer().await.problem(400, "bad_request");
    }
    let header = post(&server, "/events?wait=0").header("last-event-id", &ids[3]);
    let page = header.json(&json!({"topics": ["a"], "after": "0"})).answer().await.json();
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(1), "the header wins: {page}");
}
