//! Whether the server is ready: proven by a round trip through publish and the live feed.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use axum::{extract::State, response::Response};
use http::StatusCode;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    App, inspect,
    problem::{Code, Problem},
};
use crate::{
    broker::Broker,
    log::Start,
    message::{Draft, Payload, Topic},
};

/// Where readiness is proven. Clients cannot publish to it, and no pattern reaches it.
const TOPIC: &str = "$rejoin.ready";
/// How long the proof may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a proof counts, so that whoever asks often costs no more than whoever asks once.
const COUNTS_FOR: Duration = Duration::from_secs(1);

/// What the last round trip has shown. Those who ask while one is under way wait for it.
// A tokio mutex: it is held over the round trip.
#[derive(Default)]
pub struct Proof(Mutex<Option<(Instant, Result<(), Problem>)>>);

impl Proof {
    async fn of(&self, broker: &Broker) -> Result<(), Problem> {
        let mut last = self.0.lock().await;
        if let Some((at, shown)) = &*last
            && at.elapsed() < COUNTS_FOR
        {
            return shown.clone();
        }
        let shown = match timeout(TIMEOUT, round_trip(broker)).await {
            Ok(shown) => shown,
            Err(_) => Err(Problem::new(Code::Unavailable, "what is published does not arrive")),
        };
        *last = Some((Instant::now(), shown.clone()));
        shown
    }
}

/// `GET /health/ready`: publishing and the live feed work, or why they do not.
pub async fn show(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if app.shutdown.is_draining() {
        return Err(Problem::new(Code::Unavailable, "the server is draining"));
    }
    app.proof.of(&app.broker).await?;
    Ok(inspect::json(StatusCode::OK, &serde_json::json!({"status": "ready"})))
}

async fn round_trip(broker: &Broker) -> Result<(), Problem> {
    let topic: Topic = TOPIC.parse().expect("the probe's topic is one");
    let mut probe = broker.subscribe(vec![(&topic).into()], &Start::Now, "").await?;
    // Announcements are for those who are level: look once before there is one. That of another replica, which may be
    // there already, proves the feed as well.
    let _first = poll_fn(|cx| Poll::Ready(probe.poll_delivery(cx))).await;
    let payload = Payload::text("ready");
    broker.announce(Draft { topic, event: None, payload, exclude: None }).await?;
    poll_fn(|cx| probe.poll_delivery(cx)).await;
    Ok(())
}
