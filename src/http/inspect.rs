//! The resources for operators: health, counts, topics.

use std::sync::Arc;

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;

use super::{
    App,
    access::Access,
    answer::{json, not_stored},
    live::{self, replica_name},
    media, parameters,
    problem::Problem,
    query::{Query, number},
};
use crate::log::LogStats;

#[derive(Serialize)]
struct ServerStats {
    #[serde(flatten)]
    log: LogStats,
    /// Subscriptions and held polls of this process.
    connections: usize,
    uptime_seconds: u64,
    /// The name with which the ids of the connections of this process begin.
    replica: String,
    version: &'static str,
}

/// `GET /health/live`: the process answers.
pub fn alive() -> Response {
    not_stored(json(StatusCode::OK, &serde_json::json!({"status": "live"})))
}

/// `GET /openapi.json`: the HTTP side, for tools.
pub fn openapi() -> Response {
    let document = include_str!("../../docs/openapi.json");
    ([(header::CONTENT_TYPE, media::JSON), (header::CACHE_CONTROL, "no-cache")], document).into_response()
}

/// `GET /stats`.
pub async fn stats(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    let access = Access::of(&app.rules, &request);
    drop(request);
    access.await?.admin()?;
    let stats = ServerStats {
        log: app.broker.stats().await?,
        connections: app.connections.count(),
        uptime_seconds: app.began.elapsed().as_secs(),
        replica: replica_name(app.live.name()),
        version: env!("CARGO_PKG_VERSION"),
    };
    Ok(not_stored(json(StatusCode::OK, &stats)))
}

/// `GET /topics`: by name, a page at a time.
pub async fn topics(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    let access = Access::of(&app.rules, &request);
    let asked = Query::of(&request, &parameters::LIST).and_then(|query| {
        let limit = number("limit", query.one("limit")?, 100, 1..=1000)?;
        Ok((limit, query.one("after")?.unwrap_or_default().to_owned()))
    });
    drop(request);
    access.await?.admin()?;
    let (limit, after) = asked?;
    let mut topics = app.broker.topics(&after, limit).await?;
    let next = if topics.len() == limit { topics.last().map(|last| last.topic.clone()) } else { None };
    let missing = live::count_all(app, &mut topics).await;
    let listed = serde_json::json!({"topics": topics, "next": next, "missing": missing});
    Ok(not_stored(json(StatusCode::OK, &listed)))
}
