//! A server without a network, for many short requests on one thread.

use std::{cell::LazyCell, net::Ipv4Addr, sync::Arc};

use axum::{Router, body::Body, http::Request};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rejoin::{App, Config, Shutdown, config::Secret};
use tokio::runtime::{Builder, Runtime};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tower::ServiceExt;

/// The secret of the server that requires tokens.
pub const SECRET: &str = "a secret of more than thirty-two bytes";

/// The largest payload, so small that inputs exceed it.
pub const MAX_PAYLOAD_BYTES: usize = 256;

pub struct Harness {
    runtime: Runtime,
    router: Router,
    _app: Arc<App>,
}

thread_local! {
    pub static OPEN: LazyCell<Harness> = LazyCell::new(|| Harness::new(None));
    pub static CLOSED: LazyCell<Harness> = LazyCell::new(|| Harness::new(Some(Secret(SECRET.into()))));
}

impl Harness {
    fn new(jwt_secret: Option<Secret>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let config = Config {
            jwt_secret,
            max_payload: MAX_PAYLOAD_BYTES,
            retain_messages: 10,
            retain_total: 1 << 20,
            retain_bytes: 1 << 16,
            ..Config::default()
        };
        let server = runtime.block_on(rejoin::Server::start(Arc::new(config), Shutdown::new()));
        let app = server.expect("it starts").app().clone();
        Self { runtime, router: rejoin::router(app.clone()), _app: app }
    }

    /// Returns the whole answer.
    pub fn ask(&self, request: Request<Body>) -> (u16, Vec<u8>) {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("the router answers");
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a body in memory");
            (status, body.to_bytes().to_vec())
        })
    }

    /// Sends `lines` on a new WebSocket, one after the other, and then `last`. Returns all answers up to the
    /// answer to `last`, or to the end of the connection.
    pub fn converse(&self, lines: &[&str], last: &str) -> Vec<String> {
        self.runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let router = self.router.clone();
            let service = hyper::service::service_fn(move |request| router.clone().oneshot(request));
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(theirs), service)
                .with_upgrades();
            let served = tokio::spawn(async { drop(served.await) });
            let request =
                format!("ws://{}/events", Ipv4Addr::LOCALHOST).into_client_request().expect("a URL");
            let (socket, _) = tokio_tungstenite::client_async(request, ours).await.expect("a handshake");
            let mut said: Vec<_> = lines.iter().map(|line| Message::text(*line)).collect();
            said.push(Message::text(last));
            let mut answers = Vec::new();
            let (mut sink, mut stream) = socket.split();
            let says = async {
                for message in said {
                    if sink.send(message).await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            };
            let hears = async {
                while let Some(Ok(message)) = stream.next().await {
                    if let Message::Text(text) = message {
                        let is_last = text.contains("\"type\":\"pong\",\"ref\":\"the last\"");
                        answers.push(text.to_string());
                        if is_last {
                            break;
                        }
                    }
                }
            };
            tokio::select! {
                () = says => {}
                () = hears => {}
            }
            drop((sink, stream));
            _ = served.await;
            answers
        })
    }
}
