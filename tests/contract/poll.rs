//! Polling and long-polling.

use bytes::Bytes;
use futures_util::FutureExt;
use rejoin::{config::Parking, log::LogError};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    ask::{Answer, Ask, get, now, post, publish, publish_all, text, until_served},
    failing::FailingServer,
    support::Server,
};

/// A page that may read answers.
const ORIGIN: &str = "https://app.example";

#[track_caller]
fn page(answer: &Answer) -> Value {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{answer:?}");
    answer.json()
}

#[track_caller]
fn ids(page: &Value) -> Vec<String> {
    page["messages"].as_array().expect("messages").iter().map(|message| text(&message["id"])).collect()
}

#[tokio::test]
async fn a_poll_with_something_newer_is_answered_at_once() {
    let server = Server::start().await;
    let published = publish_all(&server, "a", 1..=3).await;
    let answer = get(&server, &format!("/topics/a?after={}&wait=60", published[0])).answer().await;
    let message = |id: &str, data: &str| json!({"type": "message", "topic": "a", "id": id, "data": data});
    let expected = json!({
        "messages": [message(&published[1], "2"), message(&published[2], "3")], "cursor": published[2],
    });
    assert_eq!(page(&answer), expected);
}

#[tokio::test]
async fn a_poll_without_a_start_gets_the_current_cursor_at_once() {
    let server = Server::start().await;
    let newest = publish(&server, "a", "x").await;
    for path in ["/topics/a?wait=60", "/topics/*?wait=60", "/topics/b", "/events?topic=a&topic=b"] {
        let answer = get(&server, path).answer().await;
        assert_eq!(page(&answer), json!({"messages": [], "cursor": newest}), "{path}");
    }
}

#[tokio::test]
async fn plain_polling_does_not_wait() {
    let server = Server::start().await;
    let newest = publish(&server, "a", "x").await;
    for start in [format!("after={newest}"), "last=0".to_owned(), format!("after={newest}&limit=1")] {
        let answer = get(&server, &format!("/topics/a?wait=0&{start}")).answer().await;
        assert_eq!(page(&answer), json!({"messages": [], "cursor": newest}), "{start}");
    }
}

#[tokio::test]
async fn a_poll_is_held_until_something_is_published() {
    let server = Server::start().await;
    for path in ["/topics/a?", "/topics/*?", "/events?topic=a&topic=b"] {
        for start in [format!("after={}", now(&server).await), "last=0".to_owned()] {
            let mut held = std::pin::pin!(get(&server, &format!("{path}&{start}&wait=60")).answer());
            // The request is sent only when its future is polled.
            assert!(held.as_mut().now_or_never().is_none());
            tokio::select! {
                answer = &mut held => panic!("{path} {start}: answered without cause: {answer:?}"),
                () = until_served(&server, 1) => {}
            }
            let id = publish(&server, "a", "x").await;
            let page = page(&held.await);
            assert_eq!((ids(&page), text(&page["cursor"])), (vec![id.clone()], id), "{path} {start}");
            until_served(&server, 0).await;
        }
    }
}

/// Everything of an answer but the time at which it was made.
fn parts(mut answer: Answer) -> (u16, HeaderMap, Bytes) {
    answer.headers.remove("date");
    (answer.status, answer.headers, answer.body)
}

/// Polls of these paths, once all of them are held.
async fn held(server: &Server, paths: &[(String, Option<&str>)]) -> Vec<JoinHandle<Answer>> {
    let ask = |(path, origin): &(String, Option<&str>)| {
        let request =
            origin.iter().fold(get(server, path), |request, origin| request.header("origin", *origin));
        tokio::spawn(async move { request.answer().await })
    };
    let polls = paths.iter().map(ask).collect();
    until_served(server, paths.len() as u64).await;
    polls
}

#[tokio::test]
async fn a_poll_that_waits_with_others_gets_what_it_would_have_got_alone() {
    // Each of them reads all messages, so that a cursor is always the last of its ids.
    let topics = ["/topics/a?", "/topics/*?", "/events?topic=a&topic=b", "/events?topic=a&topic=*"];
    // The polls of the last wait outside of the HTTP library, and of the second, if they take long enough.
    for (round, parking) in [Parking::Never, Parking::AtRandom(1), Parking::Always].into_iter().enumerate() {
        let server = Server::with(|config| {
            config.parking = parking;
            config.allowed_origins = vec![ORIGIN.parse().expect("an origin")];
        })
        .await;
        let start = now(&server).await;
        let paths: Vec<_> = topics
            .iter()
            .flat_map(|topics| [1, 2, 100].map(|limit| (format!("{topics}&after={start}"), limit)))
            .flat_map(|(path, limit)| [(path.clone(), limit, None), (path, limit, Some(ORIGIN))])
            .collect();
        let waiting: Vec<_> = paths
            .iter()
            .map(|(path, limit, origin)| (format!("{path}&limit={limit}&wait=60"), *origin))
            .collect();
        let polls = held(&server, &waiting).await;
        let items = ["x", "y", "z"].map(|name| json!({"topic": "a", "data": round, "exclude": name}));
        assert_eq!(post(&server, "/publish").json(&items).answer().await.status, 200);
        for ((path, limit, origin), poll) in paths.iter().zip(polls) {
            let answer = poll.await.expect("an answer");
            let got = ids(&page(&answer)).len();
            assert!((1..=*limit).contains(&got), "{path} {limit}: {answer:?}");
            // It may have come before the rest was published.
            let alone = get(&server, &format!("{path}&limit={got}&wait=0"));
            let alone = origin.iter().fold(alone, |request, origin| request.header("origin", *origin));
            assert_eq!(parts(answer), parts(alone.answer().await), "{path} {limit}");
        }
        until_served(&server, 0).await;
    }
}

#[tokio::test]
async fn a_poll_that_waited_in_vain_gets_no_messages_and_the_cursor() {
    let server = Server::start().await;
    let cursor = publish(&server, "a", "x").await;
    let answer = get(&server, &format!("/topics/a?after={cursor}&wait=1")).answer().await;
    assert_eq!(page(&answer), json!({"messages": [], "cursor": cursor}));
}

#[tokio::test]
async fn pages_continue_exactly_where_the_one_before_ended() {
    let server = Server::start().await;
    let mut published = Vec::new();
    for round in 0..25 {
        published.push(publish(&server, ["a", "b.x", "b.y"][round % 3], "x").await);
    }
    for filters in ["topic=a&topic=b.x&topic=b.y", "topic=**"] {
        for limit in [1, 2, 7, 24, 25, 26, 1000] {
            let mut cursor = "0".to_owned();
            let mut seen = Vec::new();
            while seen.len() < 25 {
                let path = format!("/events?{filters}&after={cursor}&wait=0&limit={limit}");
                let page = page(&get(&server, &path).answer().await);
                let ids = ids(&page);
                assert_eq!(ids.len(), limit.min(25 - seen.len()), "{filters} {limit}");
                cursor = text(&page["cursor"]);
                assert_eq!(ids.last(), Some(&cursor), "{filters} {limit}");
                seen.extend(ids);
            }
            assert_eq!(seen, published, "{filters} {limit}");
        }
    }
}

#[tokio::test]
async fn a_page_has_100_messages_unless_another_limit_up_to_1000_is_given() {
    let server = Server::with(|config| config.retain_messages = 2_000).await;
    publish_all(&server, "a", 1..=1_200).await;
    for (limit, expected) in [("", 100), ("&limit=1", 1), ("&limit=100", 100), ("&limit=1000", 1_000)] {
        let page = page(&get(&server, &format!("/topics/a?after=0{limit}")).answer().await);
        assert_eq!(ids(&page).len(), expected, "{limit:?}");
    }
    let body = json!({"topics": ["a"], "after": "0", "limit": 1_000});
    assert_eq!(ids(&page(&post(&server, "/events").json(&body).answer().await)).len(), 1_000);
}

#[tokio::test]
async fn the_size_of_an_answer_is_limited_and_the_next_poll_continues_there() {
    let server = Server::start().await;
    let mut expected = Vec::new();
    for _ in 0..40 {
        expected.push(publish(&server, "a", "x".repeat(250_000)).await);
    }
    let (mut cursor, mut seen, mut largest) = ("0".to_owned(), Vec::new(), 0);
    while seen.len() < expected.len() {
        let answer = get(&server, &format!("/topics/a?after={cursor}&wait=0&limit=1000")).answer().await;
        let page = answer.json();
        largest = largest.max(answer.body.len());
        seen.extend(
            page["messages"].as_array().expect("messages").iter().map(|message| text(&message["id"])),
        );
        cursor = text(&page["cursor"]);
    }
    assert_eq!(seen, expected);
    assert!(largest < 5_000_000, "{largest}");
}

#[tokio::test]
async fn wait_and_limit_out_of_range_are_refused() {
    let server = Server::start().await;
    for query in [
        "wait=61",
        "wait=-1",
        "wait=x",
        "wait=",
        "wait=1.5",
        "wait=%2B1",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=99999999999999999999999",
    ] {
        for path in ["/topics/a", "/events"] {
            let answer = get(&server, &format!("{path}?topic=a&after=0&{query}")).answer().await;
            let detail = text(&answer.problem(400, "bad_request")["detail"]);
            assert!(detail.contains(query.split('=').next().expect("a name")), "{query}: {detail}");
        }
    }
    for query in ["wait=0&limit=1", "wait=0&limit=1000"] {
        let answer = get(&server, &format!("/topics/a?after=0&{query}")).answer().await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
    }
}

#[tokio::test]
async fn the_etag_is_the_cursor_and_nothing_is_stored_by_caches() {
    let server = Server::start().await;
    publish(&server, "a", "x").await;
    for path in ["/topics/a?after=0", "/topics/a", "/topics/b?last=1&wait=0", "/events?topic=*&after=0"] {
        let answer = get(&server, path).answer().await;
        let cursor = text(&page(&answer)["cursor"]);
        assert_eq!(answer.header("etag"), format!("\"{cursor}\""), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
}

#[tokio::test]
async fn a_poll_with_last_or_since_continues_from_its_cursor() {
    let server = Server::start().await;
    let published = publish_all(&server, "a", 1..=9).await;
    for (start, first) in [("last=5", 4), ("since=1h", 0), ("after=0", 0)] {
        let opening = page(&get(&server, &format!("/topics/a?{start}&limit=2")).answer().await);
        assert_eq!(ids(&opening), published[first..first + 2], "{start}");
        let cursor = text(&opening["cursor"]);
        let rest = page(&get(&server, &format!("/topics/a?after={cursor}")).answer().await);
        assert_eq!(ids(&rest), published[first + 2..], "{start}");
    }
}

/// A poll with `wait=0` whose time is over while the log is still being read for it.
async fn overdue(server: &FailingServer) -> impl Future<Output = Answer> {
    let cursor = now(server).await;
    server.hold_reads(true);
    let mut poll = Box::pin(get(server, "/topics/**?after=0&wait=0").answer());
    let later = async {
        server.until_read(1).await;
        // A poll that came later, and needs nothing from the log, has been answered.
        get(server, &format!("/topics/b?after={cursor}&wait=0")).answer().await
    };
    tokio::select! {
        answer = &mut poll => panic!("answered before the log was read: {answer:?}"),
        answer = later => assert_eq!(answer.status, 200),
    }
    poll
}

#[tokio::test]
async fn a_poll_that_does_not_wait_gets_messages_that_must_be_read_first() {
    let server = FailingServer::start().await;
    let published = publish_all(&server, "a", 1..=3).await;
    let poll = overdue(&server).await;
    server.hold_reads(false);
    assert_eq!(ids(&page(&poll.await)), published);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_an_error_and_not_an_empty_answer() {
    let server = FailingServer::start().await;
    publish(&server, "a", "x").await;
    let poll = overdue(&server).await;
    server.fail(Some(LogError::Unavailable));
    server.hold_reads(false);
    poll.await.problem(503, "unavailable");
}
