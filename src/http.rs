//! HTTP: the routes, and what all of them share.
//!
//! Each transport is an adapter that knows no other, and none of them knows how the log stores messages.

mod accept;
mod access;
mod batch;
mod body;
mod credentials;
mod gate;
mod inspect;
mod metrics;
mod origin;
mod page;
mod poll;
mod problem;
mod publish;
mod pulse;
mod query;
mod reader;
mod ready;
mod stall;
mod stream;
mod subscribe;
mod websocket;
mod wire;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State, rejection::PathRejection},
    middleware,
    response::Response,
    routing::{any, get},
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::Method;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

pub use self::{
    accept::{Drained, serve},
    access::Reopened,
    problem::{Code, Problem},
};
use self::{
    access::{Access, InForce},
    metrics::{Metrics, Permit, Transport},
};
use crate::{
    broker::Broker,
    config::Config,
    log::{Append, Appended},
    shutdown::Shutdown,
};

/// How many topics and patterns one subscription may read.
const MAX_TOPICS: usize = 10_000;
/// How many of these may have a wildcard. Each publish that they match goes to the tail of each of them.
const MAX_WILDCARDS: usize = 100;

/// The state that the handlers share.
pub struct App {
    broker: Broker,
    config: Arc<Config>,
    rules: InForce,
    shutdown: Shutdown,
    /// Every connection that outlives its request, so that the drain can wait for it.
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    publish_rate: Option<DefaultDirectRateLimiter>,
    metrics: Metrics,
    proof: ready::Proof,
    began: Instant,
}

impl App {
    pub fn new(broker: Broker, config: Arc<Config>, shutdown: Shutdown) -> Arc<Self> {
        let quota = std::num::NonZeroU32::new(config.publish_rate).map(Quota::per_second);
        Arc::new(Self {
            broker,
            permits: Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS))),
            publish_rate: quota.map(RateLimiter::direct),
            metrics: Metrics::new(),
            rules: InForce::new(&config),
            proof: ready::Proof::default(),
            config,
            shutdown,
            tasks: TaskTracker::new(),
            began: Instant::now(),
        })
    }

    /// How many subscriptions are served now.
    fn connections(&self) -> usize {
        self.config.max_connections - self.permits.available_permits().min(self.config.max_connections)
    }

    /// The right to serve one more subscription. It ends when it is dropped.
    fn permit(&self, transport: Transport) -> Option<Permit> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        Some(Permit::new(self.metrics.of(transport).clone(), self.broker.watermark(), permit))
    }

    fn new_connection(&self) -> String {
        format!("{:032x}", rand::random::<u128>())
    }

    fn heartbeat_ms(&self) -> u64 {
        self.config.heartbeat.as_millis() as u64
    }

    /// The length limit of a WebSocket command: the largest payload, in the longest form that JSON may give
    /// it.
    fn max_command_bytes(&self) -> usize {
        6 * self.config.max_payload + (64 << 10)
    }

    /// Publishes, if the publish rate allows it. An ephemeral message has no outcome.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still publish the message.
    async fn publish(&self, append: Append, ephemeral: bool) -> Result<Option<Appended>, Problem> {
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

fn overloaded() -> Problem {
    Problem::new(Code::Overloaded, "connection limit reached (--max-connections)")
}

/// The whole HTTP side. It can be nested in another application.
pub fn router(app: Arc<App>) -> Router {
    let subscribable =
        Router::new().route("/topics/{topic}", any(topic)).route("/events", any(subscribe::events));
    #[cfg(feature = "echo")]
    let subscribable = subscribable.route("/echo", any(websocket::echo));
    let others = Router::new()
        .route("/", get(page::show))
        .route("/topics", any(inspect::topics))
        .route("/publish", any(publish::publish_many))
        .route("/openapi.json", get(inspect::openapi))
        .route("/stats", get(inspect::stats))
        .route("/metrics", get(metrics::show))
        .route("/health/live", get(inspect::live))
        .route("/health/ready", get(ready::show))
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET"))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), websocket::refuse_upgrade));
    subscribable
        .merge(others)
        .layer(middleware::from_fn_with_state(app.clone(), origin::guard))
        .with_state(app)
}

async fn topic(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let is_upgrade = websocket::is_upgrade(&request)?;
    let Ok(Path(topic)) = path else {
        let problem = Problem::bad_request("topic: not valid UTF-8");
        return if is_upgrade { Ok(websocket::refuse(&app, request, problem)) } else { Err(problem) };
    };
    match *request.method() {
        Method::GET => subscribe::topic(&app, &topic, request).await,
        Method::CONNECT if is_upgrade => subscribe::topic(&app, &topic, request).await,
        Method::POST => publish::publish_one(&app, &topic, request).await,
        Method::DELETE => publish::delete(&app, &topic, &Access::of(&app, &request)?).await,
        _ => Err(Problem::method_not_allowed("GET, POST, DELETE")),
    }
}

async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "no such resource; GET /openapi.json lists all of them")
}
