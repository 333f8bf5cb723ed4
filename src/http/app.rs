//! The state that the handlers share.

use std::sync::Arc;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    access::InForce,
    access_log::AccessLog,
    connections::Connections,
    metrics::{Metrics, Permit, Transport},
    problem::{Code, Problem},
    ready,
};
use crate::{
    broker::Broker,
    config::Config,
    log::{Append, Appended},
    shutdown::Shutdown,
};

/// How many topics and patterns one subscription may read.
pub const MAX_TOPICS: usize = 10_000;
/// How many of these may have a wildcard. Each publish that they match goes to the tail of each of them.
pub const MAX_WILDCARDS: usize = 100;

/// The state that the handlers share.
pub struct App {
    pub(super) broker: Broker,
    pub(super) config: Arc<Config>,
    pub(super) rules: Arc<InForce>,
    pub(super) shutdown: Shutdown,
    /// Every connection that outlives its request, so that the drain can wait for it.
    pub(super) tasks: TaskTracker,
    pub(super) connections: Arc<Connections>,
    pub(super) publish_rate: Option<DefaultDirectRateLimiter>,
    pub(super) metrics: Metrics,
    pub(super) access_log: AccessLog,
    pub(super) proof: ready::Proof,
    pub(super) began: Instant,
}

impl App {
    /// The state of one server. `shutdown` ends it.
    pub fn new(broker: Broker, config: Arc<Config>, shutdown: Shutdown) -> Arc<Self> {
        let quota = std::num::NonZeroU32::new(config.publish_rate).map(Quota::per_second);
        Arc::new(Self {
            broker,
            connections: Arc::new(Connections::new(&config, shutdown.clone())),
            publish_rate: quota.map(RateLimiter::direct),
            metrics: Metrics::new(),
            access_log: AccessLog::default(),
            rules: Arc::new(InForce::new(&config)),
            proof: ready::Proof::default(),
            config,
            shutdown,
            tasks: TaskTracker::new(),
            began: Instant::now(),
        })
    }

    /// Begins the access log, if [`Config::access_log`] asks for it. `write` gets each line with its line end; it
    /// must not wait, because requests end in it.
    pub fn log_access(&self, write: impl Fn(&[u8]) + Send + Sync + 'static) {
        self.access_log.begin(self.config.access_log, Box::new(write));
    }

    /// The right to serve one more subscription. It ends when it is dropped.
    pub(super) fn permit(&self, transport: Transport) -> Option<Permit> {
        let place = self.connections.admit()?;
        Some(Permit::new(self.metrics.of(transport).clone(), self.broker.watermark(), place))
    }

    pub(super) fn new_connection(&self) -> String {
        format!("{:032x}", rand::random::<u128>())
    }

    /// The length limit of a WebSocket command: the largest payload, in the longest form that JSON may give
    /// it.
    pub(super) fn max_command_bytes(&self) -> usize {
        6 * self.config.max_payload + (64 << 10)
    }

    /// Publishes, if the publish rate allows it. An ephemeral message has no outcome.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still publish the message.
    pub(super) async fn publish(&self, append: Append, ephemeral: bool) -> Result<Option<Appended>, Problem> {
        let published = match &self.publish_rate {
            Some(rate) if rate.check().is_err() => {
                Err(Problem::new(Code::RateLimited, "publish rate limit reached (--publish-rate)"))
            }
            _ if ephemeral => self.broker.announce(append.draft).await.map(|()| None).map_err(Problem::from),
            _ => {
                let asked_at = Instant::now();
                let published = self.broker.publish(append).await;
                self.metrics.stored_within(asked_at.elapsed());
                published.map(Some).map_err(Problem::from)
            }
        };
        self.metrics.published(published.as_ref().map_err(|problem| problem.code).copied());
        published
    }
}

pub fn overloaded() -> Problem {
    Problem::new(Code::Overloaded, "connection limit reached (--max-connections)")
}
