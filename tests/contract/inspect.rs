//! The requests of an operator.

use serde_json::json;

use crate::{
    ask::{Ask, get, number, publish, publish_all, text, within},
    failing::FailingServer,
    reader::Reader,
    support::{Server, client::Transport},
};

#[tokio::test]
async fn topics_are_listed_with_their_messages_and_subscribers() {
    let server = Server::with(|config| config.retain_messages = 3).await;
    publish_all(&server, "b", 1..=4).await;
    let newest = publish(&server, "b", "5").await;
    publish(&server, "a", "1").await;
    let _readers = [
        Reader::open(&server, Transport::Sse, "topic=b").await,
        Reader::open(&server, Transport::WebSocket, "topic=b&topic=a").await,
    ];
    let listed = get(&server, "/topics").answer().await.json();
    let topics = listed["topics"].as_array().expect("topics");
    assert_eq!(topics.iter().map(|topic| text(&topic["topic"])).collect::<Vec<_>>(), ["a", "b"]);
    let bytes = &topics[1]["bytes"];
    let expected = json!({"topic": "b", "newest": newest, "messages": 3, "bytes": bytes, "subscribers": 2});
    assert_eq!(topics[1], expected);
    assert!(bytes.is_u64(), "{bytes}");
    assert_eq!(topics[0]["subscribers"], 1);
}

#[tokio::test]
async fn topics_are_listed_by_name_a_page_at_a_time() {
    let server = Server::start().await;
    let names: Vec<_> = (0..120).map(|number| format!("t{number:03}")).collect();
    for name in names.iter().rev() {
        publish(&server, name, "x").await;
    }
    for (query, limit) in
        [("", 100), ("&limit=1", 1), ("&limit=50", 50), ("&limit=120", 120), ("&limit=1000", 1000)]
    {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = get(&server, &format!("/topics?after={after}{query}")).answer().await.json();
            let topics = page["topics"].as_array().expect("topics");
            assert!(topics.len() <= limit, "{query}");
            seen.extend(topics.iter().map(|topic| text(&topic["topic"])));
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, names, "{query}");
    }
    for wrong in ["limit=0", "limit=1001", "limit=x", "limit=1&limit=1"] {
        get(&server, &format!("/topics?{wrong}")).answer().await.problem(400, "bad_request");
    }
}

#[tokio::test]
async fn there_is_a_page_that_publishes_and_listens() {
    let server = Server::start().await;
    let answer = get(&server, "/").answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/html"), "{:?}", answer.headers);
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("script-src 'self'; style-src 'self'; connect-src 'self';"), "{policy}");
    assert!(answer.text().contains(env!("CARGO_PKG_VERSION")), "it says the version");
    for forbidden in [" style=", " onclick=", "<style", "<script>"] {
        assert!(!answer.text().contains(forbidden), "the policy forbids {forbidden}");
    }
}

/// The paths that a file of the console names, in the page or as modules.
fn named(text: &str) -> Vec<String> {
    let paths = text.split(['"', '\'']).filter(|part| part.starts_with("console/") || part.ends_with(".js"));
    paths.map(|part| part.trim_start_matches("./").to_owned()).collect()
}

/// All files that a browser loads for the page.
const FILES_AT_MOST: usize = 60_000;

#[tokio::test]
async fn the_files_of_the_page_are_small_and_tell_when_they_are_unchanged() {
    let server = Server::start().await;
    let (mut waiting, mut loaded, mut bytes) = (vec!["/".to_owned()], Vec::new(), 0);
    while let Some(path) = waiting.pop() {
        let answer = get(&server, &path).answer().await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("content-encoding"), "", "{path}");
        for name in named(answer.text()) {
            let is_above = path == "/" || path.starts_with("/rejoin") || name == "../rejoin.js";
            let folder = if is_above { "/" } else { "/console/" };
            let named = format!("{folder}{}", name.trim_start_matches("../"));
            if !loaded.contains(&named) && !waiting.contains(&named) {
                waiting.push(named);
            }
        }
        let zipped = get(&server, &path).header("accept-encoding", "br, gzip").answer().await;
        assert_eq!(zipped.header("content-encoding"), "gzip", "{path}");
        assert!(zipped.headers.get_all("vary").iter().any(|value| value == "accept-encoding"), "{path}");
        bytes += zipped.body.len();
        for (answer, more) in [(&answer, "identity"), (&zipped, "gzip")] {
            let known = get(&server, &path).header("accept-encoding", more);
            let known = known.header("if-none-match", answer.header("etag")).answer().await;
            assert_eq!((known.status, known.body.len()), (304, 0), "{path}");
            assert_eq!(known.header("etag"), answer.header("etag"), "{path}");
            assert_eq!(known.header("content-encoding"), "", "{path}");
        }
        // As for messages.
        for (asked, coding) in [("gzip;q=0, identity", ""), ("gzip;q=0.5, identity", ""), ("x-gzip", "gzip")]
        {
            let answer = get(&server, &path).header("accept-encoding", asked).answer().await;
            assert_eq!(answer.header("content-encoding"), coding, "{path} {asked}");
        }
        loaded.push(path);
    }
    let files = std::fs::read_dir("web/console").expect("the console").count();
    assert_eq!(loaded.len(), files + 4, "the page, the client's modules, and the console: {loaded:?}");
    assert!(bytes < FILES_AT_MOST, "{bytes} bytes");
    get(&server, "/console/index.html").answer().await.problem(404, "not_found");
}

#[tokio::test]
async fn stats_count_retained_messages_and_connections() {
    let server = Server::start().await;
    let _reader = Reader::open(&server, Transport::Ndjson, "topic=a").await;
    publish_all(&server, "a", 1..=4).await;
    let newest = publish(&server, "b", "5").await;
    let stats = get(&server, "/stats").answer().await.json();
    assert_eq!((&stats["messages"], &stats["connections"]), (&json!(5), &json!(1)), "{stats}");
    assert_eq!((&stats["topics"], &stats["newest"]), (&json!(2), &json!(newest)), "{stats}");
    assert!(stats["bytes"].is_u64() && stats["uptime_seconds"].is_u64(), "{stats}");
    assert_eq!(stats["replica"].as_str().map(str::len), Some(16), "{stats}");
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"), "{stats}");
    assert!(number(&text(&stats["began"])) < number(&newest), "{stats}");
}

#[tokio::test]
async fn metrics_are_in_the_text_format_of_prometheus() {
    let server = Server::start().await;
    let answer = get(&server, "/metrics").answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
    assert!(answer.text().lines().any(|line| line.starts_with("# TYPE ")), "{answer:?}");
}

#[tokio::test]
async fn readiness_is_proven_by_a_round_trip() {
    let server = FailingServer::start().await;
    let ready = async || get(&server, "/health/ready").answer().await.status;
    assert_eq!(ready().await, 200);
    for failure in [rejoin::log::LogError::Unavailable, rejoin::log::LogError::UnknownOutcome] {
        server.fail(Some(failure));
        // A proof counts for a second, so only the next one sees the failure.
        within("readiness to end", async { while ready().await != 503 {} }).await;
        assert_eq!(get(&server, "/health/live").answer().await.status, 200);
        server.fail(None);
        within("readiness", async { while ready().await != 200 {} }).await;
    }
}

#[tokio::test]
async fn one_proof_of_readiness_serves_all_probes_of_a_second() {
    let server = FailingServer::start().await;
    let asked = tokio::time::Instant::now();
    assert_eq!(get(&server, "/health/ready").answer().await.status, 200);
    server.fail(Some(rejoin::log::LogError::Unavailable));
    let status = get(&server, "/health/ready").answer().await.status;
    // On a very slow machine there may have been a second proof.
    assert!(status == 200 || asked.elapsed() >= std::time::Duration::from_secs(1), "{status}");
}

#[tokio::test]
async fn the_topic_of_the_proof_is_neither_listed_nor_read_by_a_pattern() {
    let server = Server::start().await;
    let mut reader = Reader::open(&server, Transport::Sse, "topic=**&topic=*.*&topic=*").await;
    assert_eq!(get(&server, "/health/ready").answer().await.status, 200);
    let id = publish(&server, "a", "x").await;
    assert_eq!(reader.ids(1).await, [id], "nothing before it");
    let listed = get(&server, "/topics").answer().await.json();
    assert_eq!(listed["topics"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test]
async fn the_proof_of_readiness_leaves_nothing_behind() {
    let server = Server::start().await;
    let newest = publish(&server, "a", "x").await;
    for _ in 0..3 {
        assert_eq!(get(&server, "/health/ready").answer().await.status, 200);
    }
    let stats = get(&server, "/stats").answer().await.json();
    assert_eq!((&stats["messages"], &stats["newest"]), (&json!(1), &json!(newest)), "{stats}");
}
