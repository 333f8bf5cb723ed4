//! Each request as it arrives, before anything else reads it, and its answer as it leaves.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body::Body as _;

use super::{
    App,
    access_log::Record,
    client_address::{self, ClientAddress, Peer},
    credentials,
    listener::Serves,
    metrics::Transport,
    origin,
    problem::{Code, Problem, Words, shorten},
};

/// Takes the credential out of the request, and notes who sent it. Counts the answer until its client has taken it.
pub fn answer(app: &Arc<App>, mut request: Request) -> impl Future<Output = Response> + Send {
    let shown = credentials::take(&mut request);
    request.extensions_mut().insert(shown);
    client_address::note(&app.config, &mut request);
    let record = app.access_log.record(&mut request);
    let arrived = Arrived::of(app, &request);
    let guarded = origin::guard(app, request);
    async move { arrived.leave(app, record, guarded.await) }
}

/// The parts of a request that decide if its answer is counted.
struct Arrived {
    client: Option<ClientAddress>,
    /// A copy: the path of the request would hold its whole head in memory, for as long as a poll is held.
    path: Box<str>,
    is_read: bool,
    is_probe: bool,
    is_scrape: bool,
    /// It came at the listener that operators alone have.
    is_of_operators: bool,
}

impl Arrived {
    fn of(app: &App, request: &Request) -> Self {
        let path = request.uri().path();
        let serves = request.extensions().get::<Peer>().map(|peer| peer.serves());
        Self {
            client: request.extensions().get().copied(),
            path: shorten(path.to_owned()).into(),
            is_read: matches!(*request.method(), Method::GET | Method::HEAD),
            is_probe: path.starts_with("/health/"),
            is_scrape: path == "/metrics",
            is_of_operators: app.config.admin_listen.is_some() && serves == Some(Serves::Everything),
        }
    }

    /// Counts the answer, and notes it where it is to be noted.
    fn leave(&self, app: &App, record: Option<Arc<Record>>, response: Response) -> Response {
        let mut response = self.counted(app, response);
        if let Some(code) = response.extensions().get::<Code>().copied() {
            let words = response.extensions_mut().remove::<Words>();
            let client = self.client.map(|address| address.ip());
            app.refused(code, words.as_ref().map_or("", |Words(words)| words), client, &self.path);
        }
        // A browser must not guess that a payload is a page or a script.
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match record {
            Some(record) => record.answer(response),
            None => response,
        }
    }

    /// True if the answer holds memory until its client takes it, and nothing else counts it. Streams, polls and
    /// WebSockets count as connections. A probe, a scrape and a publish that was done are answered in any case.
    fn is_counted(&self, response: &Response) -> bool {
        let is_whole = response.body().size_hint().exact().is_some_and(|length| length > 0);
        let is_done = response.status().is_success() && (!self.is_read || self.is_scrape);
        is_whole && !self.is_probe && !is_done && response.extensions().get::<Transport>().is_none()
    }

    /// The answer, counted until its last byte has left. If too many others have not been taken, the answer is a refusal
    /// without a body, which waits for no window.
    fn counted(&self, app: &App, mut response: Response) -> Response {
        if !self.is_counted(&response) {
            return response;
        }
        let payer = self.client.and_then(ClientAddress::payer);
        if let Some(place) = app.connections.take_answer(payer, self.is_of_operators) {
            response.extensions_mut().insert(Arc::new(place));
            return response;
        }
        let detail =
            "too many answers were not taken by their clients, or by you; read each answer to its end";
        let mut bare = Problem::new(Code::Overloaded, detail).into_response();
        *bare.body_mut() = Body::empty();
        bare.headers_mut().remove(header::CONTENT_TYPE);
        keep_cors(response.headers(), bare.headers_mut());
        bare
    }
}

/// A page must be able to see the status.
fn keep_cors(from: &HeaderMap, to: &mut HeaderMap) {
    let is_cors = |name: &str| name == "vary" || name.starts_with("access-control-");
    for (name, value) in from.iter().filter(|(name, _)| is_cors(name.as_str())) {
        to.append(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::{super::outgoing::Outgoing, *};
    use crate::{broker::Broker, config::Config, log::MemoryLog, shutdown::Shutdown};

    fn app() -> Arc<App> {
        let config = Config { max_connections: 1, ..Config::default() };
        App::new(Broker::new(MemoryLog::start(config.retention())), Arc::new(config), Shutdown::new())
    }

    async fn ask(app: &Arc<App>, method: Method, path: &str) -> http::Response<Outgoing> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.body(Body::from("x")).expect("a request");
        Outgoing::of(super::super::router(app.clone()).oneshot(request).await.expect("an answer"))
    }

    async fn length(response: http::Response<Outgoing>) -> usize {
        response.into_body().collect().await.expect("no error").to_bytes().len()
    }

    #[tokio::test]
    async fn an_answer_is_counted_until_it_has_left() {
        let app = app();
        let held = [ask(&app, Method::GET, "/nowhere").await, ask(&app, Method::GET, "/topics").await];
        for path in ["/health/live", "/metrics", "/topics/a?after=0&wait=0"] {
            assert_eq!(ask(&app, Method::GET, path).await.status().as_u16(), 200, "{path}");
        }
        assert_eq!(app.connections.untaken_answers(), 2);
        for answer in held {
            assert!(length(answer).await > 0);
        }
        assert_eq!(app.connections.untaken_answers(), 0);
    }

    /// Refusals that were not taken filled the memory, a few bytes of the client for each.
    #[tokio::test]
    async fn while_too_many_answers_are_not_taken_a_refusal_has_no_body() {
        let app = app();
        let others: Vec<_> = std::iter::from_fn(|| app.connections.take_answer(None, false)).collect();
        assert_eq!(others.len(), 1_000);
        for (method, path) in [(Method::GET, "/nowhere"), (Method::GET, "/"), (Method::PUT, "/topics/a")] {
            let bare = ask(&app, method, path).await;
            assert_eq!(bare.status().as_u16(), 503, "{path}");
            let varies = bare.headers().get_all(header::VARY).iter().any(|name| name == "origin");
            assert!(bare.headers().contains_key(header::RETRY_AFTER) && varies);
            assert_eq!(length(bare).await, 0, "{path}");
        }
        for (method, path, status) in [
            (Method::GET, "/health/live", 200),
            (Method::GET, "/metrics", 200),
            (Method::POST, "/topics/a", 201),
            (Method::GET, "/topics/a?after=0&wait=0", 200),
        ] {
            let whole = ask(&app, method, path).await;
            assert_eq!(whole.status().as_u16(), status, "{path}");
            assert!(length(whole).await > 0, "{path}");
        }
        drop(others);
        assert_eq!(ask(&app, Method::GET, "/nowhere").await.status().as_u16(), 404);
    }

    /// Clients of the public that took no answers kept operators from looking for them.
    #[tokio::test]
    async fn while_the_public_takes_no_answers_operators_are_answered() {
        let listen = "127.0.0.1:7071".parse().expect("an address");
        let config = Config { max_connections: 1, admin_listen: Some(listen), ..Config::default() };
        let log = MemoryLog::start(config.retention());
        let app = App::new(Broker::new(log), Arc::new(config), Shutdown::new());
        let _others: Vec<_> = std::iter::from_fn(|| app.connections.take_answer(None, false)).collect();
        let mut held = Vec::new();
        for (serves, status) in [(Serves::Public, 503), (Serves::Everything, 404), (Serves::Everything, 404)]
        {
            let peer = Peer::of(None).over(serves, false);
            let request = Request::get("/nowhere").header(header::HOST, "localhost").extension(peer);
            let request = request.body(Body::empty()).expect("a request");
            let answer =
                Outgoing::of(super::super::router(app.clone()).oneshot(request).await.expect("an answer"));
            assert_eq!(answer.status().as_u16(), status);
            held.push(answer);
        }
        assert_eq!(app.connections.untaken_answers(), 1_002);
        let own = std::iter::from_fn(|| app.connections.take_answer(None, true)).take(100);
        assert_eq!(own.collect::<Vec<_>>().len(), 62, "they have a bound too");
    }
}
