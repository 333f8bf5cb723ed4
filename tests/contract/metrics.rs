//! `/metrics`, as Prometheus reads it.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    ask::{Ask, get, now, post, publish, publish_all, topic_path, until_served},
    failing::FailingServer,
    reader::{Reader, Socket},
    support::{Server, client::Transport},
};

/// Each series with its value.
pub type Series = BTreeMap<String, f64>;

fn parse(text: &str) -> Series {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    lines.map(|line| value(line).unwrap_or_else(|| panic!("no series: {line}"))).collect()
}

pub async fn scrape(server: &Server) -> Series {
    let answer = get(server, "/metrics").answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    parse(answer.text())
}

#[tokio::test]
async fn live_and_replayed_messages_are_counted_by_transport() {
    let server = Server::start().await;
    for transport in Transport::ALL {
        let cursor = now(&server).await;
        let topic = transport.to_string();
        let ids = publish_all(&server, &topic, 1..=3).await;
        let of = |metric: &str| format!("rejoin_{metric}{{transport=\"{transport}\"}}");
        let mut reader = Reader::open(&server, transport, &format!("topic={topic}&after={cursor}")).await;
        assert_eq!(reader.ids(3).await, ids);
        let before = scrape(&server).await;
        assert_eq!(before[&of("deliveries_total")], 3.0, "{before:?}");
        assert_eq!(before[&of("replayed_messages_total")], 3.0, "{before:?}");
        assert_eq!(before[&of("delivery_latency_seconds_count")], 0.0, "{before:?}");
        if transport == Transport::Poll {
            // Messages that come between two polls were published before the next poll came, so it counts
            // them as replayed.
            continue;
        }
        assert_eq!(before[&of("connections")], 1.0, "{before:?}");
        let id = publish(&server, &topic, "live").await;
        assert_eq!(reader.ids(1).await, [id]);
        let after = scrape(&server).await;
        assert_eq!(after[&of("deliveries_total")], 4.0, "{after:?}");
        assert_eq!(after[&of("replayed_messages_total")], 3.0, "{after:?}");
        assert_eq!(after[&of("deliveries_by_groups_total")], 0.0, "it reads alone: {after:?}");
        assert_eq!(after[&of("delivery_latency_seconds_count")], 1.0, "{after:?}");
        assert!(after[&of("delivered_bytes_total")] > before[&of("delivered_bytes_total")], "{after:?}");
    }
}

#[tokio::test]
async fn a_gap_is_counted_by_its_reason_and_not_as_a_delivery() {
    let server = Server::with(|config| config.retain_messages = 1).await;
    let cursor = now(&server).await;
    publish_all(&server, "a", 1..=3).await;
    for (nth, transport) in Transport::ALL.into_iter().enumerate() {
        let mut reader = Reader::open(&server, transport, &format!("topic=a&after={cursor}")).await;
        reader.gap().await;
        reader.ids(1).await;
        let series = scrape(&server).await;
        assert_eq!(series["rejoin_gaps_total{reason=\"retention\"}"], (nth + 1) as f64, "{series:?}");
        let all = series.iter().filter(|(name, _)| name.starts_with("rejoin_deliveries_total"));
        assert_eq!(all.map(|(_, value)| value).sum::<f64>(), (nth + 1) as f64, "{series:?}");
    }
}

#[tokio::test]
async fn publishes_are_counted_by_result() {
    let server = Server::start().await;
    let path = topic_path("a");
    for (path, key) in [(path.clone(), "k"), (path.clone(), "k"), (format!("{path}?ephemeral"), "")] {
        let mut request = post(&server, &path).body("x");
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        request.answer().await;
    }
    post(&server, &path)
        .header("if-match", "\"1\"")
        .body("x")
        .answer()
        .await
        .problem(412, "precondition_failed");
    get(&server, "/nothing").answer().await.problem(404, "not_found");
    let series = scrape(&server).await;
    for result in ["stored", "replayed", "announced", "precondition_failed"] {
        let name = format!("rejoin_publishes_total{{result=\"{result}\"}}");
        assert_eq!(series.get(&name), Some(&1.0), "{name}: {series:?}");
    }
    assert_eq!(series["rejoin_refusals_total{code=\"not_found\"}"], 1.0, "{series:?}");
    assert_eq!(series["rejoin_refusals_total{code=\"precondition_failed\"}"], 1.0, "{series:?}");
    assert_eq!(series["rejoin_store_latency_seconds_count"], 3.0, "{series:?}");
    assert_eq!((series["rejoin_topics"], series["rejoin_retained_messages"]), (1.0, 1.0), "{series:?}");
}

#[tokio::test]
async fn metrics_are_served_while_the_log_does_not_answer() {
    let server = FailingServer::start().await;
    let up = async || {
        let answer = get(&server, "/metrics").answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        parse(answer.text())["rejoin_log_up"]
    };
    assert_eq!(up().await, 1.0);
    server.fail(Some(rejoin::log::LogError::Unavailable));
    assert_eq!(up().await, 0.0);
}

#[tokio::test]
async fn series_are_named_for_prometheus_and_include_the_process() {
    let server = Server::start().await;
    let text = get(&server, "/metrics").answer().await.text().to_owned();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert!(["rejoin_", "process_"].iter().any(|prefix| name.starts_with(prefix)), "{name}");
        assert!(!["_ms", "_us", "_milliseconds"].iter().any(|unit| name.contains(unit)), "{name}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ] {
        assert!(parse(&text).contains_key(name), "{text}");
    }
}

#[tokio::test]
async fn the_topics_that_are_read_are_counted_until_their_readers_leave() {
    let server = Server::start().await;
    let mut socket = Socket::open(&server, "/events?topic=a&topic=b.*").await;
    assert_eq!(socket.ask(json!({"type": "subscribe", "topic": "c"})).await["type"], "subscribed");
    assert_eq!(scrape(&server).await["rejoin_topics_read"], 3.0);
    assert_eq!(socket.ask(json!({"type": "unsubscribe", "topic": "c"})).await["type"], "unsubscribed");
    assert_eq!(scrape(&server).await["rejoin_topics_read"], 2.0);
    drop(socket);
    until_served(&server, 0).await;
    let series = scrape(&server).await;
    assert_eq!((series["rejoin_topics_read"], series["rejoin_answer_bytes"]), (0.0, 0.0), "{series:?}");
}
