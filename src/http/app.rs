//! The state that the handlers share.

use std::{net::IpAddr, sync::Arc};

use time::OffsetDateTime;
use tokio::{task::coop, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    access::Access,
    access_log::AccessLog,
    connections::Connections,
    group::Groups,
    identify::Context,
    live::{About, ConnectionId, Held, Live, Reading},
    metrics::{Metrics, Permit, Transport},
    problem::{Code, Problem},
    ready,
    refusal::{OneAMinute, Told},
    rules::InForce,
    shares::Rate,
    subjects::Ended,
    tls::Tls,
};
use crate::{
    broker::{Broker, Presences, Present, Subscription},
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
    /// `None` if the server speaks no TLS.
    pub(super) tls: Option<Tls>,
    pub(super) shutdown: Shutdown,
    /// Every connection that outlives its request, so that the drain can wait for it.
    pub(super) tasks: TaskTracker,
    pub(super) connections: Arc<Connections>,
    pub(super) live: Live,
    pub(super) groups: Arc<Groups>,
    pub(super) presences: Arc<Presences>,
    pub(super) publish_rate: Option<Rate>,
    pub(super) metrics: Metrics,
    /// The subjects that the backend has ended.
    pub(super) ended: Arc<Ended>,
    pub(super) access_log: AccessLog,
    told: Told,
    /// Clients that speak TLS where the server does not.
    pub(super) told_of_tls: OneAMinute,
    pub(super) proof: ready::Proof,
    pub(super) began: Instant,
}

impl App {
    /// The state of one server. `shutdown` ends it.
    pub fn new(broker: Broker, config: Arc<Config>, shutdown: Shutdown) -> Arc<Self> {
        let connections = Arc::new(Connections::new(&config, shutdown.clone()));
        let (metrics, tasks) = (Metrics::new(), TaskTracker::new());
        let ended = Arc::<Ended>::default();
        let context = Context {
            connections: connections.clone(),
            metrics: metrics.asks.clone(),
            tasks: tasks.clone(),
            ended: ended.clone(),
        };
        let tls = config.speaks_tls().then(|| Tls::new(config.certificate.as_ref(), metrics.tls.clone()));
        let rules = Arc::new(InForce::new(&config, context));
        let app = Arc::new(Self {
            live: Live::new(&broker),
            groups: Groups::new(rules.clone(), config.parking),
            presences: broker.start_presence(config.presence_grace),
            broker,
            connections,
            publish_rate: (config.publish_rate > 0).then(|| Rate::per_second(config.publish_rate)),
            metrics,
            ended,
            access_log: AccessLog::default(),
            told: Told::default(),
            told_of_tls: OneAMinute::default(),
            rules,
            tls,
            proof: ready::Proof::default(),
            config,
            shutdown,
            tasks,
            began: Instant::now(),
        });
        app.answer_replicas();
        app.hear_ends();
        app
    }

    /// Begins the access log, if [`Config::access_log`] asks for it. `write` gets each line with its line end; it
    /// must not wait, because requests end in it.
    pub fn log_access(&self, write: impl Fn(&[u8]) + Send + Sync + 'static) {
        self.access_log.begin(self.config.access_log, Box::new(write));
    }

    /// Begins to fetch the keys of issuers. Otherwise the first token of each issuer begins it.
    pub fn begin_fetching(&self) {
        self.rules.begin_fetching();
    }

    /// How many messages groups have written to readers of a transport. Only tests ask.
    #[doc(hidden)]
    pub fn written_by_groups(&self, transport: &str) -> u64 {
        let all = Transport::ALL.iter().filter(|one| one.as_str() == transport);
        all.map(|one| self.metrics.of(*one).by_groups.get()).sum()
    }

    /// The right to serve one more subscription to so many topics and patterns. It ends when it is dropped.
    pub(super) fn permit(&self, transport: Transport, access: &Access, topics: usize) -> Option<Permit> {
        let costs = self.connections.admit(access.payer(), topics)?;
        Some(Permit::new(self.metrics.of(transport).clone(), self.broker.watermark(), costs))
    }

    /// Keeps a connection among those that requests can find, until the result is dropped.
    pub(super) fn hold(
        &self,
        id: ConnectionId,
        subscription: Subscription,
        permit: Permit,
        access: &Access,
        (transport, is_raw): (Transport, bool),
        present: Option<Present>,
    ) -> Held {
        let about = about(access, transport, is_raw);
        let reading = Reading::new(about, subscription, permit, access.issued(), present);
        let held = self.live.hold(id, reading);
        end_if_due(&held, access);
        held
    }

    /// Keeps a poll among those that the end of their subject finds, until the result is dropped.
    pub(super) fn hold_poll(
        &self,
        id: ConnectionId,
        subscription: Subscription,
        permit: Permit,
        access: &Access,
        present: Option<Present>,
    ) -> Held {
        let about = about(access, Transport::Poll, false);
        let reading = Reading::new(about, subscription, permit, access.issued(), present);
        let held = self.live.hold_poll(id, reading);
        end_if_due(&held, access);
        held
    }

    /// Counts a refusal, and tells the operator one of each code a minute.
    pub(super) fn refused(&self, code: Code, words: &str, client: Option<IpAddr>, request: &str) {
        self.metrics.refused(code);
        self.told.tell(code, words, client, request);
    }

    /// Publishes, if the publish rate allows it. An ephemeral message has no outcome.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still publish the message.
    pub(super) async fn publish(
        &self,
        access: &Access,
        append: Append,
        ephemeral: bool,
    ) -> Result<Option<Appended>, Problem> {
        // Publishing may wait for nothing, and one request can publish very much.
        coop::consume_budget().await;
        let published = match &self.publish_rate {
            Some(rate) if !rate.take_one(access.payer()) => {
                let detail = "publish rate limit reached, or your share of it while little is left (--publish-rate); wait as Retry-After says";
                Err(Problem::new(Code::RateLimited, detail))
            }
            _ if ephemeral => self.broker.announce(append.draft).await.map(|()| None).map_err(Problem::from),
            _ => {
                let asked_at = Instant::now();
                let published = self.broker.publish_for(append, access.payer()).await;
                self.metrics.stored_within(asked_at.elapsed());
                published.map(Some).map_err(Problem::from)
            }
        };
        self.metrics.published(published.as_ref().map_err(|problem| problem.code).copied());
        published
    }
}

/// Ends a connection whose subject was ended while it was being opened.
fn end_if_due(held: &Held, access: &Access) {
    if let Some(code) = access.ended() {
        held.end(code);
    }
}

fn about(access: &Access, transport: Transport, is_raw: bool) -> About {
    About {
        sub: access.subject().map(|subject| (&**subject).into()),
        info: access.info().cloned(),
        transport,
        address: access.client(),
        since: OffsetDateTime::now_utc(),
        is_raw,
    }
}

/// All connections together read as many topics as they may, or this client its share of them.
pub fn topic_limit_reached() -> Problem {
    let detail = "topic limit reached by all connections, or your share of it while little is left; \
                  unsubscribe from a topic first, or try again later (--max-connections)";
    Problem::new(Code::Overloaded, detail)
}

pub fn overloaded() -> Problem {
    let detail = "connection limit reached, or your share of it while little is left (--max-connections); try again later";
    Problem::new(Code::Overloaded, detail)
}
