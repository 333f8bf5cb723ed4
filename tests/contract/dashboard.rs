//! The dashboard uses only metrics that the server has.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    ask::{Ask, get, publish_all},
    metrics::scrape,
    reader::Reader,
    support::{Server, client::Transport},
};

/// The labels that Prometheus adds to every series, and to those of a histogram.
const LABELS_OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("expr").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[tokio::test]
async fn every_metric_and_label_of_the_dashboard_is_there() {
    let server = Server::start().await;
    publish_all(&server, "a", 1..=2).await;
    let mut reader = Reader::open(&server, Transport::Sse, "topic=a&last=2").await;
    reader.ids(2).await;
    let series = scrape(&server).await;
    let name_of = |series: &str| series.split('{').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = series.keys().map(|series| name_of(series)).collect();

    let dashboard: Value = serde_json::from_str(include_str!("../../docs/grafana-dashboard.json"))
        .expect("the dashboard is JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 10, "{asked:?}");
    let mut shown = BTreeSet::new();
    for expression in &asked {
        let metrics: Vec<_> = words(expression)
            .filter(|word| word.starts_with("rejoin_") || word.starts_with("process_"))
            .collect();
        assert!(!metrics.is_empty(), "{expression} asks for nothing");
        for metric in metrics {
            assert!(names.contains(metric), "{metric} is not at /metrics: {expression}");
            shown.insert(metric.to_owned());
            let (_, by) = expression.split_once(" by (").unwrap_or_default();
            for label in words(by.split(')').next().unwrap_or_default()) {
                let is_label =
                    |series: &&String| name_of(series) == metric && series.contains(&format!("{label}=\""));
                let is_there =
                    LABELS_OF_PROMETHEUS.contains(&label) || series.keys().any(|key| is_label(&key));
                assert!(is_there, "{metric} has no label {label}: {expression}");
            }
        }
    }
    // The dashboard shows every metric: a metric that is shown nowhere is useless.
    let base = |name: &String| {
        ["_bucket", "_sum", "_count"].iter().fold(name.clone(), |name, end| name.replace(end, ""))
    };
    let ours: BTreeSet<String> = names.iter().filter(|name| name.starts_with("rejoin_")).map(base).collect();
    let missing: Vec<_> = ours.difference(&shown.iter().map(base).collect()).cloned().collect();
    assert!(missing.is_empty(), "the dashboard does not show {missing:?}");
}

#[tokio::test]
async fn operations_explain_every_metric_and_no_other() {
    let server = Server::start().await;
    let text = get(&server, "/metrics").answer().await.text().to_owned();
    let there: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let page = include_str!("../../docs/operations.md");
    let named: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name)
        .collect();
    let named = named.into_iter().filter(|name| name.starts_with("rejoin_") || name.starts_with("process_"));
    assert_eq!(named.collect::<BTreeSet<_>>(), there);
}
