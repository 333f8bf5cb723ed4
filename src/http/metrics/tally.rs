//! Counts what one connection is sent: in plain numbers, added to the metrics once for each write.

use std::{fmt, net::IpAddr, sync::Arc};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use tokio::time::Instant;

use super::Transport;
use crate::{
    broker::Delivery,
    http::connections::Costs,
    log::Reason,
    message::{Id, Message},
};

/// The metrics of one transport.
pub struct TransportMetrics {
    pub transport: Transport,
    pub connections: IntGauge,
    pub deliveries: IntCounter,
    pub delivered_bytes: IntCounter,
    /// Those of the deliveries that groups have written.
    pub by_groups: IntCounter,
    pub replayed: IntCounter,
    pub latency: Histogram,
    /// The gaps of all transports, by reason.
    pub gaps: IntCounterVec,
}

/// The right to one subscription, counted until it is dropped, and the counts of what it was sent.
pub struct Permit {
    metrics: Arc<TransportMetrics>,
    began: Instant,
    /// Messages up to this id were published before the connection came.
    newest: Id,
    given: usize,
    counts: Counts,
    costs: Costs,
}

/// The counts for the next write.
#[derive(Default)]
struct Counts {
    messages: u32,
    replayed: u32,
    /// The oldest message that was published after the connection came. It has waited longest.
    oldest: Option<Id>,
}

impl Permit {
    pub fn new(metrics: Arc<TransportMetrics>, newest: Id, costs: Costs) -> Self {
        metrics.connections.inc();
        let (began, counts) = (Instant::now(), Counts::default());
        Self { metrics, began, newest, given: 0, counts, costs }
    }

    /// See [`Costs::set_topics`].
    pub fn set_topics(&mut self, topics: usize) -> bool {
        self.costs.set_topics(topics)
    }

    /// Counts a message or gap for the next write. `again` is true for the replay of a topic that was added.
    pub fn note(&mut self, delivery: &Delivery, again: bool) {
        match delivery {
            Delivery::Message(message) => self.note_message(message, again),
            Delivery::Gap(gap) => self.note_gap(gap.reason),
        }
    }

    pub fn note_gap(&self, reason: Reason) {
        self.metrics.gaps.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a message for the next write. `again` is true if it is read from the past on request.
    pub fn note_message(&mut self, message: &Message, again: bool) {
        let counts = &mut self.counts;
        counts.messages += 1;
        if again || (message.id <= self.newest && !message.is_ephemeral()) {
            counts.replayed += 1;
        } else if counts.oldest.is_none() && !message.is_ephemeral() {
            counts.oldest = Some(message.id);
        }
    }

    pub fn metrics(&self) -> &Arc<TransportMetrics> {
        &self.metrics
    }

    /// Notes messages that a group has written, and counted in the metrics.
    pub fn was_given(&mut self, messages: usize) {
        self.given += messages;
    }

    /// Adds the counts to the metrics, because the bytes are written now.
    pub fn add_up(&mut self, bytes: usize) {
        let Counts { messages, replayed, oldest } = std::mem::take(&mut self.counts);
        if messages == 0 {
            return;
        }
        self.given += messages as usize;
        self.metrics.deliveries.inc_by(messages.into());
        self.metrics.delivered_bytes.inc_by(bytes as u64);
        if replayed > 0 {
            self.metrics.replayed.inc_by(replayed.into());
        }
        if let Some(oldest) = oldest {
            // An id is the time of publishing in microseconds.
            let micros = Id::now().get().saturating_sub(oldest.get());
            self.metrics.latency.observe(micros as f64 / 1e6);
        }
    }

    /// Counts bytes of messages that leave after [`add_up`](Self::add_up).
    pub fn delivered(&self, bytes: usize) {
        self.metrics.delivered_bytes.inc_by(bytes as u64);
    }

    /// Logs one line when a connection ends: the reason, the duration, the counts, and how far it was behind.
    pub fn log_end(
        &self,
        why: fmt::Arguments<'_>,
        client: Option<IpAddr>,
        connection: &str,
        cursor: Id,
        behind_ms: u64,
    ) {
        tracing::debug!(
            client = client.map(tracing::field::display),
            transport = self.metrics.transport.as_str(),
            connection,
            why = %why,
            seconds = self.began.elapsed().as_secs(),
            messages = self.given,
            %cursor,
            behind_ms,
            "connection ended"
        );
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}
