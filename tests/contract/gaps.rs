//! Gaps: the server tells each loss once, in time, and never without cause.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    ask::{Ask, delete_topic, get, now, number, post, publish, publish_all, retained, text, within},
    reader::Reader,
    support::{Server, client::Transport},
};

const STREAMS: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

fn gap(topic: &str, after: &str, next: Option<&str>, cursor: &str, reason: &str) -> Value {
    json!({"type": "gap", "topic": topic, "after": after, "next": next, "cursor": cursor, "reason": reason})
}

async fn resume(server: &Server, transport: Transport, filter: &str, cursor: &str) -> Reader {
    Reader::open(server, transport, &format!("topic={filter}&after={cursor}")).await
}

#[tokio::test]
async fn messages_trimmed_by_count_become_a_gap_before_the_oldest_retained() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let mut reader = resume(&server, transport, filter, &ids[1]).await;
            let told = gap("a", &ids[1], Some(&ids[3]), &ids[1], "retention");
            assert_eq!(reader.gap().await, told, "{transport} {filter}");
            assert_eq!(reader.ids(2).await, ids[3..], "{transport} {filter}");
        }
    }
}

#[tokio::test]
async fn exactly_one_message_behind_the_oldest_retained_is_no_gap() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let ids = publish_all(&server, "a", 1..=5).await;
    publish_all(&server, "b", 1..=5).await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let mut reader = resume(&server, transport, filter, &ids[2]).await;
            if filter == "a" {
                assert_eq!(reader.ids(2).await, ids[3..], "{transport}");
            } else {
                assert_eq!(reader.gap().await["topic"], "b", "{transport}: of a there is nothing to tell");
            }
        }
    }
}

#[tokio::test]
async fn messages_trimmed_by_bytes_become_a_gap() {
    let server = Server::with(|config| (config.retain_bytes, config.max_payload) = (5_000, 5_000)).await;
    let first = publish(&server, "a", "x".repeat(2_000)).await;
    publish(&server, "a", "x".repeat(2_000)).await;
    let third = publish(&server, "a", "x".repeat(4_000)).await;
    assert_eq!(retained(&server, "a").await.len(), 1, "oldest first");
    let larger_than_all = publish(&server, "b", "x".repeat(5_000)).await;
    assert_eq!(retained(&server, "b").await.len(), 1, "{larger_than_all}: the newest is kept");
    for transport in Transport::ALL {
        let mut reader = resume(&server, transport, "a", &first).await;
        assert_eq!(reader.gap().await, gap("a", &first, Some(&third), &first, "retention"), "{transport}");
        assert_eq!(reader.ids(1).await, [third.as_str()], "{transport}");
    }
}

#[tokio::test]
async fn messages_that_many_topics_push_out_become_a_gap() {
    let server = Server::with(|config| {
        (config.max_payload, config.retain_bytes, config.retain_total) = (10_000, 10_000, 10_000);
    })
    .await;
    let cursor = now(&server).await;
    let quiet = publish(&server, "quiet", "x").await;
    for number in 0..10 {
        publish(&server, &format!("loud.{number}"), "x".repeat(2_000)).await;
    }
    assert_eq!(retained(&server, "quiet").await, [] as [Value; 0]);
    for transport in Transport::ALL {
        let mut reader = resume(&server, transport, "quiet", &cursor).await;
        let told = reader.gap().await;
        let past = text(&told["cursor"]);
        assert_eq!(told, gap("quiet", &cursor, None, &past, "retention"), "{transport}");
        assert!(number(&past) >= number(&quiet), "{transport}");
    }
}

#[tokio::test]
async fn a_topic_with_more_than_its_share_loses_its_own_messages_first() {
    let server = Server::with(|config| {
        (config.max_payload, config.retain_bytes, config.retain_total) = (10_000, 10_000, 10_000);
    })
    .await;
    publish(&server, "quiet", "x").await;
    for _ in 0..10 {
        publish(&server, "loud", "x".repeat(2_000)).await;
    }
    assert_eq!(retained(&server, "quiet").await, ["x"]);
    let loud = retained(&server, "loud").await.len();
    assert!((2..5).contains(&loud), "{loud} of 10 are retained");
}

#[tokio::test]
async fn expired_messages_become_a_gap_even_when_the_topic_is_quiet() {
    let server = Server::with(|config| config.retain_age = Duration::from_millis(200)).await;
    let cursor = now(&server).await;
    let old = publish(&server, "a", "old").await;
    within("the end of its time", async { while !retained(&server, "a").await.is_empty() {} }).await;
    for transport in Transport::ALL {
        for filter in ["a", "*"] {
            let mut reader = resume(&server, transport, filter, &cursor).await;
            let told = reader.gap().await;
            let past = text(&told["cursor"]);
            assert_eq!(told, gap("a", &cursor, None, &past, "retention"), "{transport} {filter}");
            assert!(number(&past) >= number(&old), "{transport} {filter}: one past the gap");
            let mut again = resume(&server, transport, filter, &past).await;
            let next = publish(&server, "a", "next").await;
            assert_eq!(reader.ids(1).await, [next.as_str()], "{transport} {filter}");
            assert_eq!(again.ids(1).await, [next.as_str()], "{transport} {filter}: it is told once");
            within("the end of its time", async { while !retained(&server, "a").await.is_empty() {} }).await;
        }
    }
}

#[tokio::test]
async fn a_reader_that_had_everything_gets_no_gap_when_messages_expire() {
    let server = Server::with(|config| config.retain_age = Duration::from_millis(200)).await;
    for transport in Transport::ALL {
        let mut live = Reader::open(&server, transport, "topic=a").await;
        let id = publish(&server, "a", "x").await;
        assert_eq!(live.ids(1).await, [id.as_str()], "{transport}");
        within("the end of its time", async { while !retained(&server, "a").await.is_empty() {} }).await;
        let mut back = resume(&server, transport, "a", &id).await;
        let next = publish(&server, "a", "next").await;
        assert_eq!(live.ids(1).await, [next.as_str()], "{transport}");
        assert_eq!(back.ids(1).await, [next.as_str()], "{transport}");
    }
}

#[tokio::test]
async fn a_cursor_from_before_a_restart_gets_a_gap() {
    let earlier = Server::start().await;
    let cursor = publish(&earlier, "a", "lost").await;
    earlier.stop().await;
    let server = Server::start().await;
    for transport in Transport::ALL {
        // The topic retains no message, so the cursor moves past the gap, and the gap is not told again.
        let mut reader = resume(&server, transport, "quiet", &cursor).await;
        let told = reader.gap().await;
        let past = text(&told["cursor"]);
        assert_eq!(told, gap("quiet", &cursor, None, &past, "restarted"), "{transport}");
        assert!(number(&past) > number(&cursor), "{transport}");
        let mut again = resume(&server, transport, &format!("quiet&topic=new-{transport}"), &past).await;
        let id = publish(&server, &format!("new-{transport}"), "1").await;
        assert_eq!(again.ids(1).await, [id], "{transport}");
    }
    let ids = publish_all(&server, "a", 1..=2).await;
    for transport in Transport::ALL {
        let mut reader = resume(&server, transport, "a", &cursor).await;
        let told = gap("a", &cursor, Some(&ids[0]), &cursor, "restarted");
        assert_eq!(reader.gap().await, told, "{transport}");
        assert_eq!(reader.ids(2).await, ids, "{transport}");
        let mut reader = resume(&server, transport, "a.**&topic=*", &cursor).await;
        let mut told = [reader.gap().await, reader.gap().await];
        told.sort_by_key(|gap| text(&gap["topic"]));
        assert_eq!(told[0]["topic"], "*", "{transport}: the pattern, because the topics are not known");
        assert_eq!(told[1]["topic"], "a.**", "{transport}");
        assert!(told.iter().all(|gap| gap["reason"] == "restarted" && gap["after"] == cursor), "{told:?}");
        reader.ids(2).await;
    }
}

#[tokio::test]
async fn a_cursor_ahead_of_the_store_is_a_gap_and_then_everything_retained() {
    let server = Server::with(|config| config.retain_messages = 3).await;
    let ids = publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        for ahead in [(number(&now(&server).await) + 60_000_000).to_string(), "9007199254740991".to_owned()] {
            for filter in ["a", "*"] {
                let mut reader = resume(&server, transport, filter, &ahead).await;
                let before = (number(&ids[2]) - 1).to_string();
                let told = gap(filter, &ahead, Some(&ids[2]), &before, "unknown_cursor");
                assert_eq!(reader.gap().await, told, "{transport} {filter} {ahead}");
                assert_eq!(reader.ids(3).await, ids[2..], "{transport} {filter} {ahead}");
                let mut again = resume(&server, transport, filter, &before).await;
                assert_eq!(again.ids(3).await, ids[2..], "{transport} {filter}: no second gap");
            }
            let mut quiet = resume(&server, transport, "quiet", &ahead).await;
            let told = quiet.gap().await;
            let cursor = text(&told["cursor"]);
            assert_eq!(told, gap("quiet", &ahead, None, &cursor, "unknown_cursor"), "{transport}");
            assert!(number(&cursor) < number(&ahead), "{transport}");
        }
    }
}

#[tokio::test]
async fn a_gap_is_told_before_anything_newer_than_its_after_of_any_topic() {
    let server = Server::with(|config| config.retain_messages = 1).await;
    let cursor = now(&server).await;
    publish(&server, "a", "trimmed").await;
    let b = publish(&server, "b", "between").await;
    let a = publish(&server, "a", "kept").await;
    for transport in Transport::ALL {
        for filters in ["a&topic=b", "*", "a&topic=*", "a&topic=b&topic=*"] {
            let mut reader = resume(&server, transport, filters, &cursor).await;
            let told = gap("a", &cursor, Some(&a), &cursor, "retention");
            assert_eq!(reader.gap().await, told, "{transport} {filters}");
            assert_eq!(reader.ids(2).await, [b.as_str(), &a], "{transport} {filters}");
            let mut cut = resume(&server, transport, filters, &b).await;
            assert_eq!(cut.ids(1).await, [a.as_str()], "{transport} {filters}: it was told before {b}");
        }
    }
}

#[tokio::test]
async fn no_cursor_passes_a_gap_until_all_gaps_are_told() {
    let server = Server::with(|config| config.retain_messages = 1).await;
    let cursor = now(&server).await;
    for topic in ["a", "b", "c"] {
        publish_all(&server, topic, 1..=3).await;
    }
    delete_topic(&server, "c").await;
    for transport in STREAMS {
        let filters = "a&topic=b&topic=c";
        let mut reader = resume(&server, transport, filters, &cursor).await;
        let mut told = Vec::new();
        for _ in 0..3 {
            assert_eq!(reader.cursor(), cursor, "{transport} after {told:?}");
            // A client that is cut off here gets all of the gaps again.
            let mut again = resume(&server, transport, filters, reader.cursor()).await;
            for _ in 0..3 {
                again.gap().await;
            }
            told.push(reader.gap().await);
        }
        // Gaps with a next come first, and only the last gap moves the cursor.
        let past = text(&told[2]["cursor"]);
        assert_eq!(told[2], gap("c", &cursor, None, &past, "deleted"), "{transport}");
        assert!(number(&past) > number(&cursor), "{transport}");
        told[..2].sort_by_key(|gap| text(&gap["topic"]));
        for (told, topic) in told.iter().zip(["a", "b"]) {
            let next = text(&told["next"]);
            assert_eq!(*told, gap(topic, &cursor, Some(&next), &cursor, "retention"), "{transport}");
        }
        assert_eq!(reader.ids(2).await.len(), 2, "{transport}");
    }
}

#[tokio::test]
async fn a_gap_without_a_next_moves_the_cursor_past_the_gap_only() {
    let server = Server::start().await;
    // Only streams: a poll's cursor moves with each answer, so each answer may repeat a gap.
    for transport in STREAMS {
        for filters in ["a&topic=b", "*"] {
            let cursor = now(&server).await;
            let before = publish(&server, "b", "before").await;
            publish(&server, "a", "gone").await;
            let after = publish(&server, "b", "after").await;
            delete_topic(&server, "a").await;
            let mut reader = resume(&server, transport, filters, &cursor).await;
            let told = reader.gap().await;
            let past = text(&told["cursor"]);
            assert_eq!(told, gap("a", &cursor, None, &past, "deleted"), "{transport} {filters}");
            assert!(number(&past) < number(&before), "{transport} {filters}: {past} is past {before}");
            let expected = [before.as_str(), after.as_str()];
            assert_eq!(reader.ids(2).await, expected, "{transport} {filters}");
            let mut again = resume(&server, transport, filters, &after).await;
            let next = publish(&server, "a", "next").await;
            assert_eq!(again.ids(1).await, [next], "{transport} {filters}: told once");
        }
    }
}

#[tokio::test]
async fn a_gap_of_one_topic_is_no_gap_of_another() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let b = publish(&server, "b", "whole").await;
    publish_all(&server, "a", 1..=5).await;
    for transport in Transport::ALL {
        let cursor = (number(&b) - 1).to_string();
        let mut reader = resume(&server, transport, "b", &cursor).await;
        assert_eq!(reader.ids(1).await, [b.as_str()], "{transport}");
        let mut nothing = resume(&server, transport, &format!("new-{transport}"), &cursor).await;
        let id = publish(&server, &format!("new-{transport}"), "x").await;
        assert_eq!(nothing.ids(1).await, [id], "{transport}: a topic that never was has no gap");
    }
}

#[tokio::test]
async fn a_gap_alone_answers_a_poll_at_once() {
    let server = Server::start().await;
    let cursor = now(&server).await;
    publish(&server, "a", "gone").await;
    delete_topic(&server, "a").await;
    let page = get(&server, &format!("/topics/a?after={cursor}&wait=60")).answer().await.json();
    assert_eq!(page["messages"], json!([]), "{page}");
    let past = text(&page["cursor"]);
    assert_eq!(page["gaps"], json!([gap("a", &cursor, None, &past, "deleted")]));
    let body = json!({"topics": ["a"], "after": past, "wait": 0});
    let page = post(&server, "/events").json(&body).answer().await.json();
    assert_eq!(page, json!({"messages": [], "cursor": past}), "no gaps, no field");
}

#[tokio::test]
async fn an_unreadable_cursor_is_repeated_in_part() {
    let server = Server::start().await;
    publish(&server, "a", "x").await;
    let long = "x".repeat(50_000);
    let request = get(&server, "/topics/a?wait=0").header("last-event-id", &long);
    let gap = request.answer().await.json()["gaps"][0].clone();
    assert_eq!(gap["reason"], "unknown_cursor");
    assert!(text(&gap["after"]).chars().count() <= 401 && text(&gap["after"]).starts_with("xxx"), "{gap}");
}
