//! The metrics for Prometheus.

mod asks;
mod handshakes;
mod lines;
mod process;
mod tally;
mod unread;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    proto::{Metric, MetricFamily},
};

pub use self::{
    asks::{AskMetrics, Outcome},
    handshakes::{Handshake, TlsMetrics},
    lines::{DROPPED_LINES, DroppedLines},
    tally::{Permit, TransportMetrics},
    unread::UnreadRequests,
};
use super::{
    App,
    access::Access,
    problem::{Code, Problem},
};
use crate::log::{Appended, Reason};

/// The transport of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Sse,
    Ndjson,
    Poll,
}

impl Transport {
    pub const ALL: [Self; 4] = [Self::WebSocket, Self::Sse, Self::Ndjson, Self::Poll];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::Poll => "poll",
        }
    }
}

/// All metrics of one server.
pub struct Metrics {
    registry: Registry,
    /// One for each transport, in the order of [`Transport::ALL`]. They are looked up once, not at each
    /// delivery.
    transports: [Arc<TransportMetrics>; 4],
    publishes: IntCounterVec,
    /// The results in `publishes` that every publish needs.
    stored: IntCounter,
    replayed: IntCounter,
    announced: IntCounter,
    store_latency: Histogram,
    refusals: IntCounterVec,
    commands: IntCounterVec,
    /// Clients that had not read anything for the write timeout.
    pub slow_closes: IntCounter,
    log_up: IntGauge,
    state_failed: IntGauge,
    pub config_rejected: IntGauge,
    topics: IntGauge,
    retained_messages: IntGauge,
    retained_bytes: IntGauge,
    topics_read: IntGauge,
    answer_bytes: IntGauge,
    pub asks: AskMetrics,
    untaken_answers: IntGauge,
    unparsed_bytes: IntGauge,
    waiting_head_bytes: IntGauge,
    pub unread: UnreadRequests,
    pub tls: TlsMetrics,
    members: IntGauge,
    changes: IntCounterVec,
    /// The totals at the end of the last minute.
    logged: Mutex<Totals>,
}

/// From half a millisecond to half a minute: what a user may notice.
const DELIVERY_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From the ten microseconds of memory to the seconds of a Redis in trouble.
const STORE_BUCKETS: [f64; 13] =
    [0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0];

/// The results that may mean trouble for an operator if there are many of them.
const TROUBLES: [Code; 5] =
    [Code::Unavailable, Code::UnknownOutcome, Code::Full, Code::Overloaded, Code::RateLimited];

/// The results of commands that exist from the beginning.
const COMMAND_RESULTS: [&str; 4] = ["done", "not_found", "unknown_outcome", "overloaded"];

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let connections =
            gauges(&registry, "rejoin_connections", "Subscriptions and held polls served now.", "transport");
        let deliveries =
            counters(&registry, "rejoin_deliveries_total", "Messages handed to connections.", "transport");
        let by_groups = counters(
            &registry,
            "rejoin_deliveries_by_groups_total",
            "Messages handed to connections by groups of readers that stand at the same place.",
            "transport",
        );
        let bytes = counters(
            &registry,
            "rejoin_delivered_bytes_total",
            "Bytes of messages handed to connections, as they are on the wire.",
            "transport",
        );
        let replays = counters(
            &registry,
            "rejoin_replayed_messages_total",
            "Messages handed to connections that were published before the connection came, or are replayed.",
            "transport",
        );
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "rejoin_delivery_latency_seconds",
                "From the publishing of a message to its write, of the oldest live message of each write.",
            )
            .buckets(DELIVERY_BUCKETS.to_vec()),
            &["transport"],
        )
        .expect("a valid name");
        register(&registry, Box::new(latency.clone()));
        let gaps = counters(&registry, "rejoin_gaps_total", "Gaps told to clients.", "reason");
        Reason::ALL.iter().for_each(|reason| drop(gaps.with_label_values(&[reason.as_str()])));
        let transports = Transport::ALL.map(|transport| {
            let label = &[transport.as_str()];
            Arc::new(TransportMetrics {
                transport,
                connections: connections.with_label_values(label),
                deliveries: deliveries.with_label_values(label),
                delivered_bytes: bytes.with_label_values(label),
                by_groups: by_groups.with_label_values(label),
                replayed: replays.with_label_values(label),
                latency: latency.with_label_values(label),
                gaps: gaps.clone(),
            })
        });
        let publishes = counters(
            &registry,
            "rejoin_publishes_total",
            "Messages that the log stored, announced or refused, and those over --publish-rate.",
            "result",
        );
        // Each series exists from the beginning, so that its first event already raises a rate.
        TROUBLES.iter().for_each(|code| drop(publishes.with_label_values(&[code.as_str()])));
        let refusals = counters(
            &registry,
            "rejoin_refusals_total",
            "Requests, commands and elements of POST /publish refused.",
            "code",
        );
        Code::ALL.iter().for_each(|code| drop(refusals.with_label_values(&[code.as_str()])));
        let commands = counters(
            &registry,
            "rejoin_commands_total",
            "Requests to change, show or end a connection, by their result.",
            "result",
        );
        COMMAND_RESULTS.iter().for_each(|result| drop(commands.with_label_values(&[*result])));
        let store_latency = Histogram::with_opts(
            HistogramOpts::new(
                "rejoin_store_latency_seconds",
                "How long the log took to store a message, or to refuse it.",
            )
            .buckets(STORE_BUCKETS.to_vec()),
        )
        .expect("a valid name");
        register(&registry, Box::new(store_latency.clone()));
        let build = gauges(&registry, "rejoin_build_info", "The version that runs; always 1.", "version");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&registry, Box::new(process::ProcessMetrics::new()));
        register(&registry, Box::new(DROPPED_LINES.all.clone()));
        Self {
            transports,
            stored: publishes.with_label_values(&["stored"]),
            replayed: publishes.with_label_values(&["replayed"]),
            announced: publishes.with_label_values(&["announced"]),
            publishes,
            store_latency,
            refusals,
            commands,
            slow_closes: counter(
                &registry,
                "rejoin_slow_closes_total",
                "Clients closed because they had stopped reading.",
            ),
            state_failed: gauge(
                &registry,
                "rejoin_state_failed",
                "1 while the file of --state cannot be written, else 0.",
            ),
            config_rejected: gauge(
                &registry,
                "rejoin_config_rejected",
                "1 while the settings or the certificate in the files are rejected, else 0.",
            ),
            log_up: gauge(&registry, "rejoin_log_up", "1 if the log answered for this scrape, else 0."),
            topics: gauge(&registry, "rejoin_topics", "Topics known, with or without retained messages."),
            retained_messages: gauge(&registry, "rejoin_retained_messages", "Messages retained."),
            topics_read: gauge(
                &registry,
                "rejoin_topics_read",
                "Topics and patterns that subscriptions read.",
            ),
            answer_bytes: gauge(
                &registry,
                "rejoin_answer_bytes",
                "Bytes of answers to polls and to many publishes that clients have not taken.",
            ),
            untaken_answers: gauge(
                &registry,
                "rejoin_untaken_answers",
                "Answers to other requests that clients have not taken.",
            ),
            unparsed_bytes: gauge(
                &registry,
                "rejoin_unparsed_bytes",
                "Bytes of bodies and commands that have been read in part, or are not done.",
            ),
            waiting_head_bytes: gauge(
                &registry,
                "rejoin_waiting_head_bytes",
                "Bytes of heads of requests while others are asked who the client is.",
            ),
            unread: UnreadRequests::new(&registry),
            tls: TlsMetrics::new(&registry),
            members: gauge(
                &registry,
                "rejoin_members",
                "Subjects in topics that connections of this server hold present.",
            ),
            changes: counters(
                &registry,
                "rejoin_presence_changes_total",
                "Joins and leaves that this server has told.",
                "change",
            ),
            retained_bytes: gauge(
                &registry,
                "rejoin_retained_bytes",
                "Bytes retained, as retention counts them.",
            ),
            asks: AskMetrics::new(&registry),
            registry,
            logged: Mutex::default(),
        }
    }

    pub fn of(&self, transport: Transport) -> &Arc<TransportMetrics> {
        &self.transports[transport as usize]
    }

    /// Counts the outcome of a publish.
    pub fn published(&self, published: Result<Option<Appended>, Code>) {
        match published {
            Ok(Some(Appended::Stored(_))) => self.stored.inc(),
            Ok(Some(Appended::Replayed(_))) => self.replayed.inc(),
            Ok(None) => self.announced.inc(),
            Err(code) => self.publishes.with_label_values(&[code.as_str()]).inc(),
        }
    }

    /// Records how long the log took to answer.
    pub fn stored_within(&self, duration: Duration) {
        self.store_latency.observe(duration.as_secs_f64());
    }

    /// Counts the outcome of a command about a connection.
    pub fn commanded(&self, refused: Option<Code>) {
        self.commands.with_label_values(&[refused.map_or("done", Code::as_str)]).inc();
    }

    /// Sets the counts of joins and leaves. They are counted elsewhere, and never fall.
    fn count_changes(&self, (joined, left): (u64, u64)) {
        // One at a time, so that no change is counted twice.
        let _one = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for (change, told) in [("join", joined), ("leave", left)] {
            let counter = self.changes.with_label_values(&[change]);
            counter.inc_by(told.saturating_sub(counter.get()));
        }
    }

    pub fn refused(&self, code: Code) {
        self.refusals.with_label_values(&[code.as_str()]).inc();
    }

    /// The totals now and at the last call, unless they are the same.
    fn changed_totals(&self) -> Option<(Totals, Totals)> {
        let now = Totals::of(&self.registry.gather());
        let before = std::mem::replace(&mut *self.logged.lock().unwrap_or_else(PoisonError::into_inner), now);
        (now != before).then_some((now, before))
    }

    /// Logs one line with the counts since the last one, unless nothing has happened.
    pub fn log_totals(&self) {
        let Some((now, before)) = self.changed_totals() else { return };
        let since = |name: &str| now.counted(name) - before.counted(name);
        tracing::info!(
            connections = now.counted("rejoin_connections"),
            published = since("rejoin_publishes_total"),
            delivered = since("rejoin_deliveries_total"),
            delivered_bytes = since("rejoin_delivered_bytes_total"),
            replayed = since("rejoin_replayed_messages_total"),
            gaps = since("rejoin_gaps_total"),
            refusals = since("rejoin_refusals_total"),
            slow_closes = since("rejoin_slow_closes_total"),
            "totals of the last minute"
        );
    }
}

/// The metrics that are summed over all labels, for the log.
const TOTALS: [&str; 8] = [
    "rejoin_connections",
    "rejoin_publishes_total",
    "rejoin_deliveries_total",
    "rejoin_delivered_bytes_total",
    "rejoin_replayed_messages_total",
    "rejoin_gaps_total",
    "rejoin_refusals_total",
    "rejoin_slow_closes_total",
];

/// The results of a publish that stored or announced a message.
const PUBLISHED: [&str; 2] = ["stored", "announced"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals([u64; TOTALS.len()]);

impl Totals {
    fn of(families: &[MetricFamily]) -> Self {
        let sum = |name: &str| {
            let family = families.iter().find(|family| family.name() == name)?;
            // A refused message was sent, but not published.
            let is_counted = |metric: &&Metric| {
                metric
                    .get_label()
                    .iter()
                    .all(|label| label.name() != "result" || PUBLISHED.contains(&label.value()))
            };
            let values = family
                .get_metric()
                .iter()
                .filter(is_counted)
                .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value());
            Some(values.sum::<f64>() as u64)
        };
        Self(TOTALS.map(|name| sum(name).unwrap_or_default()))
    }

    fn counted(&self, name: &str) -> u64 {
        TOTALS.iter().position(|known| *known == name).map_or(0, |index| self.0[index])
    }
}

/// `GET /metrics`.
pub async fn show(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    let access = Access::of(&app.rules, &request);
    drop(request);
    access.await?.metrics()?;
    let metrics = &app.metrics;
    // If the log does not answer, the other metrics are needed all the more.
    let stats = app.broker.stats().await;
    metrics.log_up.set(i64::from(stats.is_ok()));
    if let Ok(stats) = stats {
        metrics.state_failed.set(i64::from(stats.state_failed == Some(true)));
        metrics.topics.set(stats.topics as i64);
        metrics.retained_messages.set(stats.messages as i64);
        metrics.retained_bytes.set(stats.bytes as i64);
    }
    metrics.members.set(app.presences.count() as i64);
    metrics.count_changes(app.presences.told());
    metrics.topics_read.set(app.connections.topics_read() as i64);
    metrics.answer_bytes.set(app.connections.untaken_bytes() as i64);
    metrics.untaken_answers.set(app.connections.untaken_answers() as i64);
    metrics.unparsed_bytes.set(app.connections.unparsed_bytes() as i64);
    metrics.waiting_head_bytes.set(app.connections.waiting_head_bytes() as i64);
    let mut body = Vec::new();
    TextEncoder::new().encode(&metrics.registry.gather(), &mut body).expect("metrics have names and help");
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid name");
    register(registry, Box::new(metric.clone()));
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect("a valid name");
    register(registry, Box::new(metric.clone()));
    metric
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    let metric = IntGaugeVec::new(Opts::new(name, help), &[label]).expect("a valid name");
    register(registry, Box::new(metric.clone()));
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect("a valid name");
    register(registry, Box::new(metric.clone()));
    metric
}

fn register(registry: &Registry, metric: Box<dyn prometheus::core::Collector>) {
    registry.register(metric).expect("each metric is registered once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_messages_do_not_count_as_published() {
        let metrics = Metrics::new();
        metrics.published(Ok(None));
        metrics.published(Err(Code::Unavailable));
        metrics.published(Err(Code::RateLimited));
        assert_eq!(Totals::of(&metrics.registry.gather()).counted("rejoin_publishes_total"), 1);
    }

    #[test]
    fn a_minute_in_which_nothing_happened_has_no_totals() {
        let metrics = Metrics::new();
        assert!(metrics.changed_totals().is_none(), "the first minute");
        metrics.published(Ok(None));
        let (now, before) = metrics.changed_totals().expect("a message was published");
        assert_eq!(now.counted("rejoin_publishes_total") - before.counted("rejoin_publishes_total"), 1);
        assert!(metrics.changed_totals().is_none(), "the next minute");
    }
}
