//! The readiness of the server, proven by a round trip through publish and the live feed.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use axum::response::Response;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::StatusCode;
use tokio::time::{Instant, timeout};

use super::{
    App,
    answer::{json, not_stored},
    problem::{Code, Problem},
};
use crate::{
    broker::Broker,
    log::Start,
    message::{Draft, Payload, Topic},
};

/// The topic of the proof. Clients cannot publish to it, and no pattern matches it.
const TOPIC: &str = "$rejoin.ready";
/// How long the proof may take.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a proof counts, so that frequent probes cost no more than one.
const COUNTS_FOR: Duration = Duration::from_secs(1);

type Shown = (Instant, Result<(), Problem>);

/// The last round trip, or the current one. It continues even if the probe that asked for it has left. So a
/// probe that gives up early sees the first refusal just as soon.
#[derive(Default)]
pub struct Proof(Mutex<Option<Shared<BoxFuture<'static, Shown>>>>);

impl Proof {
    async fn of(&self, broker: &Broker) -> Result<(), Problem> {
        loop {
            let (at, shown) = self.last(broker).await;
            // A proof that no probe waited for may be old.
            if at.elapsed() < COUNTS_FOR {
                return shown;
            }
        }
    }

    /// The last proof, or a new one if that is too old.
    fn last(&self, broker: &Broker) -> Shared<BoxFuture<'static, Shown>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(shown) if shown.peek().is_none_or(|(at, _)| at.elapsed() < COUNTS_FOR) => shown.clone(),
            _ => last.insert(prove(broker.clone())).clone(),
        }
    }
}

fn prove(broker: Broker) -> Shared<BoxFuture<'static, Shown>> {
    let task = tokio::spawn(async move {
        let shown = timeout(TIMEOUT, round_trip(&broker)).await;
        let late = |_| {
            Err(Problem::new(
                Code::Unavailable,
                "publishing and reading did not work within 1 s; the log of the server says more",
            ))
        };
        (Instant::now(), shown.unwrap_or_else(late))
    });
    let failed = |_| {
        (
            Instant::now(),
            Err(Problem::new(
                Code::Unavailable,
                "the proof of readiness failed; the log of the server says more",
            )),
        )
    };
    task.map(move |shown| shown.unwrap_or_else(failed)).boxed().shared()
}

/// `GET /health/ready`: 200 if publishing and the live feed work, else the reason.
pub async fn show(app: &Arc<App>) -> Result<Response, Problem> {
    if app.shutdown.is_draining() {
        return Err(Problem::new(
            Code::Unavailable,
            "the server is draining: it ends soon, so send no more clients to it",
        ));
    }
    app.proof.of(&app.broker).await?;
    let mut shown = serde_json::json!({"status": "ready"});
    if app.broker.is_full() {
        // Another server of this deployment could not store anything either.
        shown["full"] = true.into();
    }
    Ok(not_stored(json(StatusCode::OK, &shown)))
}

async fn round_trip(broker: &Broker) -> Result<(), Problem> {
    let topic: Topic = TOPIC.parse().expect("the probe's topic is one");
    // First, because this says what is wrong with the store.
    broker.check().await?;
    let mut probe = broker.subscribe(vec![(&topic).into()], &Start::Now, "").await?;
    // Only subscriptions that are caught up get an ephemeral message, so read once before it is sent. An
    // announcement of another replica may already be there; it proves the feed just as well.
    let _first = poll_fn(|cx| Poll::Ready(probe.poll_delivery(cx))).await;
    let payload = Payload::text("ready");
    broker.announce(Draft { topic, event: None, payload, exclude: None, by: None }).await?;
    poll_fn(|cx| probe.poll_delivery(cx)).await;
    Ok(())
}
