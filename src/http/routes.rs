//! The routes: which resource a path names, and who answers for it.

use std::{
    future,
    sync::{Arc, LazyLock},
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, header};
use http_body::Body as _;
use matchit::Params;
use percent_encoding::percent_decode_str;

use super::{
    App, arrival,
    client_address::Peer,
    inspect,
    listener::Serves,
    live, metrics, page, presence,
    problem::{Code, Problem},
    publish, ready, subjects, subscribe, websocket,
};

#[derive(Clone, Copy, Debug)]
enum Resource {
    Client,
    Connection,
    ConnectionTopic,
    Connections,
    Console,
    #[cfg(feature = "echo")]
    Echo,
    Events,
    Live,
    Members,
    Metrics,
    OpenApi,
    Page,
    Publish,
    Ready,
    Stats,
    Subject,
    SubjectTopic,
    SubjectTopics,
    Topic,
    Topics,
}

impl Resource {
    /// True if only the listener of operators has it, if there is one.
    fn is_of_operators(self) -> bool {
        match self {
            Self::Connection | Self::ConnectionTopic | Self::Connections => true,
            Self::Subject | Self::SubjectTopic | Self::SubjectTopics => true,
            Self::Console | Self::Page => true,
            Self::Metrics | Self::Stats | Self::Topics => true,
            Self::Client | Self::Events | Self::Live | Self::Members | Self::OpenApi => false,
            Self::Publish | Self::Ready | Self::Topic => false,
            #[cfg(feature = "echo")]
            Self::Echo => false,
        }
    }
}

static ROUTES: LazyLock<matchit::Router<Resource>> = LazyLock::new(|| {
    let routes = [
        ("/", Resource::Page),
        ("/connections", Resource::Connections),
        ("/connections/{id}", Resource::Connection),
        ("/connections/{id}/topics/{topic}", Resource::ConnectionTopic),
        ("/console/{file}", Resource::Console),
        ("/events", Resource::Events),
        ("/health/live", Resource::Live),
        ("/health/ready", Resource::Ready),
        ("/metrics", Resource::Metrics),
        ("/openapi.json", Resource::OpenApi),
        ("/publish", Resource::Publish),
        ("/rejoin.js", Resource::Client),
        ("/rejoin-presence.js", Resource::Client),
        ("/rejoin-shared.js", Resource::Client),
        ("/stats", Resource::Stats),
        ("/subjects/{sub}", Resource::Subject),
        ("/subjects/{sub}/topics", Resource::SubjectTopics),
        ("/subjects/{sub}/topics/{topic}", Resource::SubjectTopic),
        ("/topics", Resource::Topics),
        ("/topics/{topic}", Resource::Topic),
        ("/topics/{topic}/presence", Resource::Members),
        #[cfg(feature = "echo")]
        ("/echo", Resource::Echo),
    ];
    let mut router = matchit::Router::new();
    for (path, resource) in routes {
        router.insert(path, resource).expect("the paths differ");
    }
    router
});

/// The whole HTTP side. It can be nested in another application.
pub fn router(app: Arc<App>) -> Router {
    let all = any(move |request: Request| {
        let app = app.clone();
        async move { answer(&app, request).await }
    });
    Router::new().route("/", all.clone()).route("/{*path}", all)
}

/// Answers any request. The future holds no request, because very many polls may be held.
pub fn answer(app: &Arc<App>, request: Request) -> impl Future<Output = Response> + Send {
    let is_head = request.method() == Method::HEAD;
    let answered = arrival::answer(app, request);
    answered.map(move |response| if is_head { without_body(response) } else { response })
}

/// The answer of a resource. It is in a box, so that a request needs room only for the future of its own resource.
pub type Served<'a> = BoxFuture<'a, Result<Response, Problem>>;

pub fn at_once<'a>(answer: Result<Response, Problem>) -> Served<'a> {
    future::ready(answer).boxed()
}

/// A subscription in two steps: a poll that is held has left the room of the first.
fn held<'a>(begun: BoxFuture<'a, Result<subscribe::Answer, Problem>>) -> Served<'a> {
    async { Ok(begun.await?.get().await) }.boxed()
}

/// Lets the resource answer that the path names.
pub fn served(app: &Arc<App>, request: Request) -> Served<'_> {
    let Ok(matched) = ROUTES.at(request.uri().path()) else {
        let detail = match request.uri().path().ends_with('/') {
            true => "no such resource; remove the / at the end of the path",
            false => "no such resource; GET /openapi.json lists all of them",
        };
        return without_upgrade(app, request, |_| at_once(Err(Problem::new(Code::NotFound, detail))));
    };
    let is_public = request.extensions().get::<Peer>().is_some_and(|peer| peer.serves() == Serves::Public);
    if is_public && matched.value.is_of_operators() {
        let detail = "no such resource at this address; operators have it at that of --admin-listen";
        return without_upgrade(app, request, |_| at_once(Err(Problem::new(Code::NotFound, detail))));
    }
    let named = |name| parameter(&matched.params, name);
    match *matched.value {
        Resource::Events => held(subscribe::events(app, request).boxed()),
        Resource::Topic => of_topic(app, named("topic"), is_public, request),
        #[cfg(feature = "echo")]
        Resource::Echo => at_once(Ok(websocket::echo(app, request))),
        Resource::Connections => without_upgrade(app, request, |asked| live::connections(app, asked).boxed()),
        Resource::Connection => {
            let id = named("id");
            without_upgrade(app, request, |asked| live::connection(app, id, asked).boxed())
        }
        Resource::ConnectionTopic => {
            let (id, topic) = (named("id"), named("topic"));
            without_upgrade(app, request, |asked| live::topic_of(app, id, topic, asked).boxed())
        }
        Resource::Subject => {
            let sub = named("sub");
            without_upgrade(app, request, |asked| subjects::subject(app, sub, asked).boxed())
        }
        Resource::SubjectTopics => {
            let sub = named("sub");
            without_upgrade(app, request, |asked| subjects::topics(app, sub, asked).boxed())
        }
        Resource::SubjectTopic => {
            let (sub, topic) = (named("sub"), named("topic"));
            without_upgrade(app, request, |asked| subjects::topic(app, sub, topic, asked).boxed())
        }
        Resource::Members => {
            let topic = named("topic");
            without_upgrade(app, request, |asked| presence::members(app, topic, asked).boxed())
        }
        Resource::Publish => without_upgrade(app, request, |asked| publish::publish_many(app, asked).boxed()),
        read_only => {
            let file = named("file");
            without_upgrade(app, request, |asked| of_read_only(app, read_only, file, asked))
        }
    }
}

fn of_topic(app: &Arc<App>, topic: Option<String>, is_public: bool, request: Request) -> Served<'_> {
    let is_upgrade = match websocket::is_upgrade(&request) {
        Ok(is_upgrade) => is_upgrade,
        Err(problem) => return at_once(Err(problem)),
    };
    let Some(topic) = topic else {
        let problem = Problem::bad_request("topic: not valid UTF-8; percent-encode its bytes in UTF-8");
        return at_once(if is_upgrade { Ok(websocket::refuse(app, request, problem)) } else { Err(problem) });
    };
    match *request.method() {
        Method::GET | Method::HEAD => held(subscribe::topic(app, topic, is_upgrade, request).boxed()),
        Method::CONNECT if is_upgrade => held(subscribe::topic(app, topic, true, request).boxed()),
        Method::POST => publish::publish_one(app, topic, request).boxed(),
        Method::DELETE if !is_public => publish::delete(app, topic, request).boxed(),
        _ if is_public => at_once(Err(Problem::method_not_allowed("GET, HEAD, POST"))),
        _ => at_once(Err(Problem::method_not_allowed("GET, HEAD, POST, DELETE"))),
    }
}

/// Refuses a handshake for a resource that cannot be subscribed to.
fn without_upgrade<'a>(
    app: &Arc<App>,
    request: Request,
    serve: impl FnOnce(Request) -> Served<'a>,
) -> Served<'a> {
    match websocket::is_upgrade(&request) {
        Ok(false) => serve(request),
        Ok(true) => {
            let detail = "no WebSocket at this path; subscribe at /topics/{topic} or /events";
            at_once(Ok(websocket::refuse(app, request, Problem::new(Code::NotFound, detail))))
        }
        Err(problem) => at_once(Err(problem)),
    }
}

/// `file` is the name of a file of the console.
fn of_read_only(app: &Arc<App>, resource: Resource, file: Option<String>, request: Request) -> Served<'_> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return at_once(Err(Problem::method_not_allowed("GET, HEAD")));
    }
    match resource {
        Resource::Client => at_once(Ok(page::client(request.uri().path(), request.headers()))),
        Resource::Console => at_once(page::console(file.as_deref(), request.headers())),
        Resource::Live => at_once(Ok(inspect::alive())),
        Resource::Metrics => metrics::show(app, request).boxed(),
        Resource::OpenApi => at_once(Ok(inspect::openapi())),
        Resource::Ready => ready::show(app).boxed(),
        Resource::Stats => inspect::stats(app, request).boxed(),
        Resource::Topics => inspect::topics(app, request).boxed(),
        _ => at_once(Ok(page::show(request.headers()))),
    }
}

/// A segment of the path. `None` if it is not UTF-8, or if the path has no such segment.
fn parameter(params: &Params<'_, '_>, name: &str) -> Option<String> {
    Some(percent_decode_str(params.get(name)?).decode_utf8().ok()?.into_owned())
}

/// The answer to a `HEAD`: the length is that of the body which a `GET` would get.
fn without_body(mut response: Response) -> Response {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    response.map(|_| Body::empty())
}
