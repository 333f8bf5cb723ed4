//! What is counted, for Prometheus.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    App,
    problem::{Code, Problem},
};
use crate::log::Reason;

/// How a subscription is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Sse,
    Ndjson,
    Poll,
}

impl Transport {
    const ALL: [Self; 4] = [Self::WebSocket, Self::Sse, Self::Ndjson, Self::Poll];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Ndjson => "ndjson",
            Self::Poll => "poll",
        }
    }
}

/// All counters of one server.
pub struct Metrics {
    registry: Registry,
    /// Of each transport, in the order of [`Transport::ALL`]; looked up once, not at each delivery.
    transports: [TransportMetrics; 4],
    publishes: IntCounterVec,
    gaps: IntCounterVec,
    refusals: IntCounterVec,
    /// Clients that took nothing for the write timeout.
    pub slow_closes: IntCounter,
    topics: IntGauge,
    retained_messages: IntGauge,
    retained_bytes: IntGauge,
}

/// The counters of one transport.
#[derive(Clone)]
pub struct TransportMetrics {
    connections: IntGauge,
    deliveries: IntCounter,
    delivered_bytes: IntCounter,
}

impl TransportMetrics {
    /// Notes messages that were handed to a connection, and their bytes on the wire.
    pub fn delivered(&self, messages: usize, bytes: usize) {
        self.deliveries.inc_by(messages as u64);
        self.delivered_bytes.inc_by(bytes as u64);
    }
}

/// The right to be served as one subscription, counted until it is dropped.
pub struct Permit {
    pub metrics: TransportMetrics,
    _permit: OwnedSemaphorePermit,
}

impl Permit {
    pub fn new(metrics: TransportMetrics, permit: OwnedSemaphorePermit) -> Self {
        metrics.connections.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let connections =
            gauges(&registry, "rejoin_connections", "Subscriptions and held polls served now.", "transport");
        let deliveries =
            counters(&registry, "rejoin_deliveries_total", "Messages handed to connections.", "transport");
        let bytes = counters(
            &registry,
            "rejoin_delivered_bytes_total",
            "Bytes of these messages on the wire.",
            "transport",
        );
        let transports = Transport::ALL.map(|transport| TransportMetrics {
            connections: connections.with_label_values(&[transport.as_str()]),
            deliveries: deliveries.with_label_values(&[transport.as_str()]),
            delivered_bytes: bytes.with_label_values(&[transport.as_str()]),
        });
        let gaps = counters(&registry, "rejoin_gaps_total", "Gaps told to clients.", "reason");
        Reason::ALL.iter().for_each(|reason| drop(gaps.with_label_values(&[reason.as_str()])));
        let build = gauges(&registry, "rejoin_build_info", "The version that runs; always 1.", "version");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&registry, Box::new(ProcessCollector::for_self()));
        Self {
            transports,
            publishes: counters(
                &registry,
                "rejoin_publishes_total",
                "Messages that publishers sent.",
                "result",
            ),
            gaps,
            refusals: counters(&registry, "rejoin_refusals_total", "Requests and commands refused.", "code"),
            slow_closes: counter(
                &registry,
                "rejoin_slow_closes_total",
                "Clients closed because they took nothing.",
            ),
            topics: gauge(&registry, "rejoin_topics", "Topics known, with or without retained messages."),
            retained_messages: gauge(&registry, "rejoin_retained_messages", "Messages retained."),
            retained_bytes: gauge(
                &registry,
                "rejoin_retained_bytes",
                "Bytes retained, as retention counts them.",
            ),
            registry,
        }
    }

    pub fn of(&self, transport: Transport) -> &TransportMetrics {
        &self.transports[transport as usize]
    }

    /// Notes what became of a message: `stored`, `replayed`, `announced`, or the code of its refusal.
    pub fn published(&self, result: &str) {
        self.publishes.with_label_values(&[result]).inc();
    }

    pub fn gap(&self, reason: Reason) {
        self.gaps.with_label_values(&[reason.as_str()]).inc();
    }

    pub fn refused(&self, code: Code) {
        self.refusals.with_label_values(&[code.as_str()]).inc();
    }
}

/// `GET /metrics`.
pub async fn show(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let metrics = &app.metrics;
    let stats = app.broker.stats().await?;
    metrics.topics.set(stats.topics as i64);
    metrics.retained_messages.set(stats.messages as i64);
    metrics.retained_bytes.set(stats.bytes as i64);
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
