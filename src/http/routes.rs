//! The routes.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request, State, rejection::PathRejection},
    middleware,
    response::Response,
    routing::{any, get},
};
use http::Method;

use super::{
    App,
    access::Access,
    arrival, inspect, live, metrics, origin, page,
    problem::{Code, Problem},
    publish, ready, subscribe, websocket,
};

/// The whole HTTP side. It can be nested in another application.
pub fn router(app: Arc<App>) -> Router {
    let subscribable =
        Router::new().route("/topics/{topic}", any(topic)).route("/events", any(subscribe::events));
    #[cfg(feature = "echo")]
    let subscribable = subscribable.route("/echo", any(websocket::echo));
    let others = Router::new()
        .route("/", get(page::show))
        .route("/rejoin.js", get(page::client))
        .route("/topics", any(inspect::topics))
        .route("/connections", any(live::connections))
        .route("/connections/{id}", any(live::connection))
        .route("/connections/{id}/topics/{topic}", any(live::topic_of))
        .route("/publish", any(publish::publish_many))
        .route("/openapi.json", get(inspect::openapi))
        .route("/stats", get(inspect::stats))
        .route("/metrics", get(metrics::show))
        .route("/health/live", get(inspect::live))
        .route("/health/ready", get(ready::show))
        .method_not_allowed_fallback(async || Problem::method_not_allowed("GET, HEAD"))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(app.clone(), websocket::refuse_upgrade));
    subscribable
        .merge(others)
        .layer(middleware::from_fn_with_state(app.clone(), origin::guard))
        .layer(middleware::from_fn_with_state(app.clone(), arrival::note))
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
        Method::GET | Method::HEAD => subscribe::topic(&app, &topic, request).await,
        Method::CONNECT if is_upgrade => subscribe::topic(&app, &topic, request).await,
        Method::POST => publish::publish_one(&app, &topic, request).await,
        Method::DELETE => publish::delete(&app, &topic, &Access::of(&app.rules, &request).await?).await,
        _ => Err(Problem::method_not_allowed("GET, HEAD, POST, DELETE")),
    }
}

async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "no such resource; GET /openapi.json lists all of them")
}
