//! A server that an issuer or a backend would run: it answers as a test tells it, and remembers what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};

use crate::ask::within;

/// A request to the stub.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// An answer: status, headers, body.
pub struct Reply(pub u16, pub Vec<(&'static str, String)>, pub String);

impl Reply {
    pub fn json(value: &Value) -> Self {
        Self(200, vec![("content-type", "application/json".into())], value.to_string())
    }
}

type Answer = Box<dyn Fn(&Seen) -> Reply + Send>;

pub struct Stub {
    pub addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Mutex<Answer>>,
    is_open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Stub {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (seen, answer) =
            (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(Mutex::new(Box::new(answer) as Answer)));
        let is_open = watch::Sender::new(true);
        let (all, told, gate) = (seen.clone(), answer.clone(), is_open.subscribe());
        let router = Router::new().fallback(move |request: Request| {
            let (all, told, mut gate) = (all.clone(), told.clone(), gate.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                let body = String::from_utf8(body.to_vec()).expect("UTF-8");
                let seen = Seen { path: parts.uri.path().to_owned(), headers: parts.headers, body };
                all.lock().expect("no panic").push(seen.clone());
                gate.wait_for(|is_open| *is_open).await.expect("it runs");
                let Reply(status, headers, body) = told.lock().expect("no panic")(&seen);
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(body)).expect("an answer")
            }
        });
        let task = tokio::spawn(async { axum::serve(listener, router).await.expect("it serves") });
        Self { addr, seen, answer, is_open, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }

    /// How often it was asked for this path.
    pub fn count(&self, path: &str) -> usize {
        self.seen.lock().expect("no panic").iter().filter(|seen| seen.path == path).count()
    }

    /// Resolves once it was asked so often for this path.
    pub async fn until_asked(&self, path: &str, count: usize) {
        within(format!("{count} requests for {path}"), async {
            while self.count(path) < count {
                time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub fn answer_with(&self, answer: impl Fn(&Seen) -> Reply + Send + 'static) {
        *self.answer.lock().expect("no panic") = Box::new(answer);
    }

    /// From now on requests wait for their answers until [`open`](Self::open).
    pub fn hold(&self) {
        self.is_open.send_replace(false);
    }

    pub fn open(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets this much time pass for the timers of this test, at once.
pub async fn pass(duration: Duration) {
    time::pause();
    time::advance(duration).await;
    time::resume();
}
