//! A plain axum application with the same requests: the lower bound for long-polling and publishing.

use std::{
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
    serve::ListenerExt,
};

use crate::Outcome;

/// The child's side. `PUT /plain` sets the answer to `GET /plain`. `POST /plain` reads the body and answers
/// as for an accepted publish. It serves until it is killed.
pub fn serve(addr: SocketAddr) -> Outcome<()> {
    let body = Arc::new(RwLock::new(Bytes::from_static(b"{}")));
    let app = Router::new()
        .route("/plain", get(read).put(set))
        .route("/plain/{topic}", post(write))
        .with_state(body);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(addr).await?.tap_io(|socket| {
            socket.set_nodelay(true).expect("a fresh socket takes the option");
        });
        Ok(axum::serve(listener, app).await?)
    })
}

async fn read(State(body): State<Arc<RwLock<Bytes>>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], body.read().expect("nothing panics while it is held").clone())
}

async fn set(State(body): State<Arc<RwLock<Bytes>>>, bytes: Bytes) -> impl IntoResponse {
    *body.write().expect("nothing panics while it is held") = bytes;
    ([(CONTENT_TYPE, "application/json")], "{}")
}

async fn write(bytes: Bytes) -> impl IntoResponse {
    // The length is used, so that the compiler does not remove the reading of the body.
    std::hint::black_box(bytes.len());
    (
        StatusCode::CREATED,
        [(CONTENT_TYPE, "application/json")],
        r#"{"id":"1763640000123456","topic":"bench"}"#,
    )
}
