//! `subscribe` and `unsubscribe` on a WebSocket: one cursor counts for all topics, before and after.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    ask::{delete_topic, now, number, publish, publish_all, text},
    reader::{Reader, Socket},
    support::{Server, client::Transport},
};

fn subscribe(topic: &str, after: &str) -> Value {
    json!({"type": "subscribe", "topic": topic, "after": after, "ref": topic})
}

/// The ids of the next frames, which must be replayed messages.
async fn replayed(socket: &mut Socket, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let frame = socket.next().await;
        assert_eq!((&frame["type"], &frame["replay"]), (&json!("message"), &json!(true)), "{frame}");
        ids.push(text(&frame["id"]));
    }
    ids
}

async fn assert_subscribed(socket: &mut Socket, topic: &str) {
    let frame = socket.next().await;
    assert_eq!((&frame["type"], &frame["topic"]), (&json!("subscribed"), &json!(topic)), "{frame}");
}

/// Asserts that the next frame is this message, not replayed.
async fn assert_live(socket: &mut Socket, id: &str) {
    let frame = socket.next().await;
    assert_eq!((&frame["type"], &frame["id"]), (&json!("message"), &json!(id)), "{frame}");
    assert!(frame.get("replay").is_none(), "{frame}");
}

#[tokio::test]
async fn subscribe_without_a_start_reads_from_now_on() {
    let server = Server::start().await;
    publish(&server, "a", "before").await;
    let newest = publish(&server, "b", "elsewhere").await;
    let mut socket = Socket::open(&server, "/events").await;
    let subscribed = socket.ask(json!({"type": "subscribe", "topic": "a"})).await;
    assert_eq!(subscribed, json!({"type": "subscribed", "topic": "a", "cursor": newest}));
    let id = publish(&server, "a", "after").await;
    assert_live(&mut socket, &id).await;
}

#[tokio::test]
async fn a_topic_is_replayed_up_to_the_connections_cursor_and_then_live() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=600).await;
    for (start, first) in [
        (json!({"after": "0"}), 0),
        (json!({"after": ids[597]}), 598),
        (json!({"last": 3}), 597),
        (json!({"last": "3"}), 597),
        (json!({"since": "1h"}), 0),
    ] {
        let mut socket = Socket::open(&server, "/events").await;
        let opened_at = socket.cursor.clone();
        let mut command = start.clone();
        command["type"] = json!("subscribe");
        command["topic"] = json!("a");
        socket.send(command).await;
        assert_eq!(replayed(&mut socket, 600 - first).await, ids[first..], "{start}");
        assert_eq!(socket.cursor, opened_at, "{start}: a replay does not move the cursor");
        assert_subscribed(&mut socket, "a").await;
        assert_eq!(socket.cursor, opened_at, "{start}");
    }
    let mut socket = Socket::open(&server, "/events").await;
    socket.send(subscribe("a", &ids[598])).await;
    assert_eq!(replayed(&mut socket, 1).await, ids[599..]);
    assert_subscribed(&mut socket, "a").await;
    let next = publish(&server, "a", "next").await;
    assert_live(&mut socket, &next).await;
}

#[tokio::test]
async fn a_pattern_is_replayed_in_the_order_of_ids() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for round in 0..30 {
        ids.push(publish(&server, ["a.x", "a.y", "a.z"][round % 3], "x").await);
    }
    let mut socket = Socket::open(&server, "/events").await;
    socket.send(subscribe("a.*", "0")).await;
    assert_eq!(replayed(&mut socket, 30).await, ids);
    assert_subscribed(&mut socket, "a.*").await;
    let id = publish(&server, "a.new", "x").await;
    assert_live(&mut socket, &id).await;
}

#[tokio::test]
async fn during_a_replay_the_other_topics_wait_and_lose_nothing() {
    let server = Server::start().await;
    let old = publish_all(&server, "old", 1..=900).await;
    let mut socket = Socket::open(&server, "/topics/live").await;
    socket.send(subscribe("old", "0")).await;
    let (frames, published) = tokio::join!(
        async {
            let mut frames = Vec::new();
            while frames.iter().filter(|frame: &&Value| frame["topic"] == "live").count() < 100 {
                frames.push(socket.next().await);
            }
            frames
        },
        async {
            let mut ids = Vec::new();
            for _ in 0..100 {
                ids.push(publish(&server, "live", "x").await);
            }
            ids
        }
    );
    let replay: Vec<_> = frames.iter().filter(|frame| frame["replay"] == true).collect();
    assert_eq!(replay.iter().map(|frame| text(&frame["id"])).collect::<Vec<_>>(), old);
    let is = |kind: &'static str| move |frame: &Value| frame["type"] == kind;
    let first = frames.iter().position(|frame| frame["replay"] == true).expect("replayed frames");
    let subscribed = frames.iter().position(is("subscribed")).expect("subscribed");
    assert!(
        frames[first..subscribed].iter().all(|frame| frame["replay"] == true),
        "the other topics wait during the replay"
    );
    assert!(frames[..first].iter().chain(&frames[subscribed + 1..]).all(is("message")));
    let live: Vec<_> =
        frames.iter().filter(|frame| frame["topic"] == "live").map(|it| text(&it["id"])).collect();
    assert_eq!(live, published);
    let before = frames[..first].last().map_or(socket.opening["cursor"].clone(), |frame| frame["id"].clone());
    assert!(number(&text(&frames[subscribed]["cursor"])) >= number(&text(&before)));
}

#[tokio::test]
async fn after_subscribed_one_cursor_counts_for_all_topics() {
    let server = Server::start().await;
    publish_all(&server, "b", 1..=20).await;
    for transport in Transport::ALL {
        let mut socket = Socket::open(&server, "/topics/a").await;
        socket.send(subscribe("b", "0")).await;
        while socket.next().await["type"] != "subscribed" {}
        let cursor = socket.cursor.clone();
        drop(socket);
        let ids = [publish(&server, "a", "x").await, publish(&server, "b", "x").await];
        let query = format!("topic=a&topic=b&after={cursor}");
        let mut reader = Reader::open(&server, transport, &query).await;
        assert_eq!(reader.ids(2).await, ids, "{transport}");
    }
}

#[tokio::test]
async fn a_client_cut_off_before_subscribed_asks_again_after_the_last_replayed_id() {
    let server = Server::start().await;
    let old = publish_all(&server, "old", 1..=20).await;
    let mut socket = Socket::open(&server, "/topics/live").await;
    let live = publish(&server, "live", "1").await;
    assert_live(&mut socket, &live).await;
    socket.send(subscribe("old", "0")).await;
    let seen = replayed(&mut socket, 7).await;
    let cursor = socket.cursor.clone();
    assert_eq!(cursor, live);
    drop(socket);

    let missed = publish(&server, "live", "2").await;
    let mut again = Socket::open(&server, &format!("/topics/live?after={cursor}")).await;
    assert_live(&mut again, &missed).await;
    again.send(subscribe("old", seen.last().expect("seven"))).await;
    assert_eq!(replayed(&mut again, 13).await, old[7..]);
    assert_subscribed(&mut again, "old").await;
}

#[tokio::test]
async fn a_replayed_gap_is_marked_and_does_not_move_the_cursor() {
    let server = Server::with(|config| config.retain_messages = 2).await;
    let ids = publish_all(&server, "a", 1..=5).await;
    let cursor = ids[0].clone();
    let mut socket = Socket::open(&server, "/events").await;
    let opened_at = socket.cursor.clone();
    let gap = socket.ask(subscribe("a", &cursor)).await;
    let expected = json!({
        "type": "gap", "replay": true, "topic": "a", "after": cursor, "next": ids[3], "cursor": cursor,
        "reason": "retention",
    });
    assert_eq!(gap, expected);
    assert_eq!(replayed(&mut socket, 2).await, ids[3..]);
    assert_subscribed(&mut socket, "a").await;
    assert_eq!(socket.cursor, opened_at);

    publish_all(&server, "b", 1..=2).await;
    delete_topic(&server, "b").await;
    let gap = socket.ask(subscribe("b", &cursor)).await;
    assert_eq!((&gap["type"], &gap["replay"], &gap["next"]), (&json!("gap"), &json!(true), &Value::Null));
    assert_subscribed(&mut socket, "b").await;

    let ahead = (number(&now(&server).await) + 60_000_000).to_string();
    let gap = socket.ask(subscribe("c", &ahead)).await;
    assert_eq!((&gap["reason"], &gap["after"]), (&json!("unknown_cursor"), &json!(ahead)), "{gap}");
    assert_eq!(gap["replay"], true, "{gap}");
    assert_subscribed(&mut socket, "c").await;
}

#[tokio::test]
async fn a_command_during_a_replay_waits_for_subscribed() {
    let server = Server::start().await;
    publish_all(&server, "a", 1..=300).await;
    publish_all(&server, "b", 1..=300).await;
    let mut socket = Socket::open(&server, "/events").await;
    socket.send(subscribe("a", "0")).await;
    socket.send(json!({"type": "ping"})).await;
    socket.send(subscribe("b", "0")).await;
    socket.send(json!({"type": "unsubscribe", "topic": "a"})).await;
    replayed(&mut socket, 300).await;
    assert_subscribed(&mut socket, "a").await;
    assert_eq!(socket.next().await["type"], "pong");
    replayed(&mut socket, 300).await;
    assert_subscribed(&mut socket, "b").await;
    assert_eq!(socket.next().await["type"], "unsubscribed");
    publish(&server, "a", "not any more").await;
    let id = publish(&server, "b", "next").await;
    assert_live(&mut socket, &id).await;
}

#[tokio::test]
async fn commands_that_wait_for_subscribed_are_done_then() {
    let server = Server::with(|config| config.heartbeat = Duration::from_secs(600)).await;
    // More than the buffers of two sockets hold, so the replay is still running.
    for _ in 0..600 {
        publish(&server, "old", "x".repeat(4_000)).await;
    }
    for _ in 0..3 {
        let mut socket = Socket::open_narrow(&server, "/topics/live").await;
        socket.send(subscribe("old", "0")).await;
        socket.send(json!({"type": "unsubscribe", "topic": "old"})).await;
        replayed(&mut socket, 1).await;
        publish(&server, "live", "meanwhile").await;
        replayed(&mut socket, 599).await;
        assert_subscribed(&mut socket, "old").await;
        // The buffer size decides which of them is first.
        let mut both = [socket.next().await, socket.next().await];
        both.sort_by_key(|frame| frame["topic"] != "live");
        assert_eq!((&both[0]["data"], &both[1]["type"]), (&json!("meanwhile"), &json!("unsubscribed")));
    }
}

#[tokio::test]
async fn subscribing_twice_is_answered_as_done() {
    let server = Server::start().await;
    publish_all(&server, "a", 1..=3).await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    for topic in ["a", "b", "b", "c.*", "c.*"] {
        socket.send(json!({"type": "subscribe", "topic": topic})).await;
        assert_subscribed(&mut socket, topic).await;
    }
    socket.send(subscribe("a", "0")).await;
    assert_subscribed(&mut socket, "a").await;
    for topic in ["a", "b", "c.x"] {
        let id = publish(&server, topic, "once").await;
        assert_live(&mut socket, &id).await;
    }
}

#[tokio::test]
async fn unsubscribing_is_answered_even_if_nothing_was_subscribed() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let cursor = publish(&server, "a", "x").await;
    assert_live(&mut socket, &cursor).await;
    for topic in ["a", "a", "never", "never.*"] {
        let answer = socket.ask(json!({"type": "unsubscribe", "topic": topic})).await;
        assert_eq!(answer, json!({"type": "unsubscribed", "topic": topic, "cursor": cursor}));
    }
    publish(&server, "a", "not any more").await;
    socket.send(json!({"type": "subscribe", "topic": "a"})).await;
    assert_subscribed(&mut socket, "a").await;
    let id = publish(&server, "a", "again").await;
    assert_live(&mut socket, &id).await;
}

#[tokio::test]
async fn unsubscribe_ends_one_pattern_and_other_matching_patterns_stay() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events?topic=a.b&topic=a.*&topic=a.**").await;
    for topic in ["a.*", "a.b"] {
        let answer = socket.ask(json!({"type": "unsubscribe", "topic": topic})).await;
        assert_eq!((&answer["type"], &answer["topic"]), (&json!("unsubscribed"), &json!(topic)));
        let id = publish(&server, "a.b", "once").await;
        assert_live(&mut socket, &id).await;
    }
    // `unsubscribe` from a topic that only a pattern matches changes nothing.
    socket.ask(json!({"type": "unsubscribe", "topic": "a.c"})).await;
    let id = publish(&server, "a.c", "once").await;
    assert_live(&mut socket, &id).await;
    socket.ask(json!({"type": "unsubscribe", "topic": "a.**"})).await;
    publish(&server, "a.b", "not any more").await;
    assert_eq!(socket.ask(json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn overlapping_topic_and_pattern_give_a_message_once() {
    let server = Server::start().await;
    let first = publish_all(&server, "a.b", 1..=3).await;
    let mut socket = Socket::open(&server, "/topics/a.*").await;
    let id = publish(&server, "a.b", "live").await;
    assert_live(&mut socket, &id).await;
    socket.send(subscribe("a.b", "0")).await;
    let ids = replayed(&mut socket, 4).await;
    assert_eq!(ids, [&first[..], &[id]].concat(), "a second replay");
    assert_subscribed(&mut socket, "a.b").await;
    for _ in 0..3 {
        let id = publish(&server, "a.b", "once").await;
        assert_live(&mut socket, &id).await;
    }
}

#[tokio::test]
async fn a_start_at_the_connections_cursor_replays_nothing() {
    let server = Server::start().await;
    publish_all(&server, "a", 1..=3).await;
    publish_all(&server, "b", 1..=3).await;
    let mut socket = Socket::open(&server, "/topics/a").await;
    let cursor = socket.cursor.clone();
    socket.send(subscribe("b", &cursor)).await;
    let subscribed = socket.next().await;
    assert_eq!(subscribed, json!({"type": "subscribed", "topic": "b", "cursor": cursor, "ref": "b"}));
    for topic in ["b", "a"] {
        let id = publish(&server, topic, "next").await;
        assert_live(&mut socket, &id).await;
    }
}

#[tokio::test]
async fn a_connection_behind_the_new_start_first_reads_its_own_topics_up_to_it() {
    let server = Server::start().await;
    let ids = publish_all(&server, "a", 1..=900).await;
    let mut socket = Socket::open(&server, "/topics/a?after=0").await;
    socket.send(json!({"type": "subscribe", "topic": "b"})).await;
    for id in &ids {
        assert_live(&mut socket, id).await;
    }
    let subscribed = socket.next().await;
    assert_eq!(subscribed, json!({"type": "subscribed", "topic": "b", "cursor": ids[899]}));
    for topic in ["b", "a"] {
        let id = publish(&server, topic, "next").await;
        assert_live(&mut socket, &id).await;
    }
}
