//! The OpenAPI document matches the server.

use std::collections::BTreeSet;

use rejoin::http::Code;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    ask::{Answer, Ask, get, post, publish, request, text, topic_path},
    reader::{Events, Reader},
    support::{Server, client::Transport},
};

const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

struct Document(Value);

impl Document {
    async fn of(server: &Server) -> Self {
        let answer = get(server, "/openapi.json").answer().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
        Self(answer.json())
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(path) = value["$ref"].as_str() else { return value };
        self.0.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("{path} leads nowhere"))
    }

    fn operation(&self, path: &str, method: &str) -> &Value {
        &self.0["paths"][path][method]
    }

    /// Asserts that the document has this answer, with this body.
    #[track_caller]
    fn check(&self, path: &str, method: &str, answer: &Answer) {
        let responses = &self.operation(path, method)["responses"];
        let response = &responses[answer.status.to_string()];
        assert!(response.is_object(), "{method} {path} does not have {}: {answer:?}", answer.status);
        let content = &self.resolve(response)["content"];
        if answer.body.is_empty() {
            assert!(content.is_null(), "{method} {path}: {answer:?}");
            return;
        }
        let content_type = answer.header("content-type").split(';').next().unwrap_or_default();
        let schema = &content[content_type]["schema"];
        assert!(schema.is_object(), "{method} {path} does not have {content_type}: {answer:?}");
        if content_type.ends_with("json") && content_type != "application/x-ndjson" {
            self.validate(schema, &answer.json());
        }
    }

    #[track_caller]
    fn validate(&self, schema: &Value, value: &Value) {
        let whole = json!({"allOf": [schema], "components": self.0["components"]});
        let validator = jsonschema::draft202012::new(&whole).expect("a schema");
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{value} is not {schema}: {errors:?}");
    }

    fn schema(name: &str) -> Value {
        json!({"$ref": format!("#/components/schemas/{name}")})
    }
}

#[tokio::test]
async fn the_document_has_the_routes_of_the_server_and_no_others() {
    let server = Server::start().await;
    let document = Document::of(&server).await;
    let source = include_str!("../../src/http/routes.rs");
    let routes = source.split("        (\"").skip(1).filter_map(|rest| rest.split('"').next());
    let routes: BTreeSet<_> = routes.filter(|route| *route != "/echo").collect();
    let paths = document.0["paths"].as_object().expect("paths");
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), routes);

    for path in routes {
        for method in METHODS {
            let url = path.replace("{topic}", "a").replace("{id}", "0");
            let name = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            // An invalid query is refused before the server waits for anything.
            let request = request(&server, name, &format!("{url}?wait=0"));
            let answer = if url.starts_with("/metrics") { request } else { request.header("accept", "*/*") };
            let answer = answer.answer().await;
            let is_there = document.operation(path, method).is_object();
            assert_eq!(answer.status != 405, is_there, "{method} {path}: {answer:?}");
            if is_there {
                document.check(path, method, &answer);
            }
        }
    }
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn answers_match_the_document() {
    let server = Server::with(|config| config.max_payload = 1000).await;
    let document = Document::of(&server).await;
    let topic = topic_path("a");
    let keyed = |payload: &'static str| post(&server, &topic).header("idempotency-key", "k").body(payload);
    let ndjson = |body: &'static str| {
        post(&server, "/publish").header("content-type", "application/x-ndjson").body(body)
    };
    let wanted =
        |body: &'static str| post(&server, "/events").header("content-type", "application/json").body(body);
    let (t, one, topic_of) = ("/topics/{topic}", "/connections/{id}", "/connections/{id}/topics/{topic}");
    let reader = Reader::open(&server, Transport::Ndjson, "").await;
    let shown = format!("/connections/{}", text(&reader.opening()["connection"]));
    let stream = Events::open(&server, "/topics/other").await;
    let raw = text(&stream.opening["connection"]);
    let cases: Vec<(&str, &str, u16, RequestBuilder)> = vec![
        (t, "post", 201, keyed("x")),
        (t, "post", 200, keyed("x")),
        (t, "post", 422, keyed("y")),
        (t, "post", 202, post(&server, &format!("{topic}?ephemeral")).body("x")),
        (t, "post", 400, post(&server, &topic_path("a.*")).body("x")),
        (t, "post", 412, post(&server, &topic).header("if-match", "\"0\"").body("x")),
        (t, "post", 413, post(&server, &topic).body("x".repeat(1001))),
        (t, "post", 403, post(&server, &topic).header("origin", "http://elsewhere.example").body("x")),
        (t, "get", 200, get(&server, &format!("{topic}?after=0&wait=0"))),
        (t, "get", 200, get(&server, &format!("{topic}?after=1&wait=0"))),
        (t, "get", 200, get(&server, &format!("{topic}?before=9007199254740991&limit=1"))),
        (t, "get", 200, get(&server, &format!("{topic}?before=5"))),
        (t, "get", 400, get(&server, &format!("{topic}?wait=61"))),
        (t, "get", 426, get(&server, &topic).header("connection", "upgrade").header("upgrade", "websocket")),
        ("/events", "get", 200, get(&server, "/events?topic=a&topic=*&last=1&wait=0")),
        ("/events", "get", 400, get(&server, "/events")),
        ("/events", "post", 200, wanted(r#"{"topics":["a","b.*"],"after":"0","wait":0}"#)),
        ("/events", "post", 400, wanted(r#"{"topics":["a"],"nothing":1}"#)),
        ("/events", "post", 415, post(&server, "/events").body("x")),
        (
            "/publish",
            "post",
            200,
            ndjson(
                "{\"topic\":\"a\",\"data\":1}\n{\"topics\":[\"a\",\"b\"],\"data\":1}\n{\"topic\":\"a\",\"data\":1,\"ephemeral\":true}\n{\"topic\":\"*\",\"data\":1}\nx\n",
            ),
        ),
        ("/publish", "post", 415, post(&server, "/publish").body("x")),
        ("/topics/{topic}/presence", "get", 200, get(&server, "/topics/a/presence")),
        ("/topics/{topic}/presence", "get", 400, get(&server, "/topics/a.*/presence")),
        ("/topics", "get", 200, get(&server, "/topics?limit=1")),
        ("/topics", "get", 400, get(&server, "/topics?limit=0")),
        ("/stats", "get", 200, get(&server, "/stats")),
        ("/metrics", "get", 200, get(&server, "/metrics")),
        ("/health/live", "get", 200, get(&server, "/health/live")),
        ("/health/ready", "get", 200, get(&server, "/health/ready")),
        ("/", "get", 200, get(&server, "/")),
        ("/", "get", 304, get(&server, "/").header("if-none-match", "*")),
        ("/console/{file}", "get", 200, get(&server, "/console/main.js")),
        ("/console/{file}", "get", 200, get(&server, "/console/console.css")),
        ("/console/{file}", "get", 304, get(&server, "/console/main.js").header("if-none-match", "*")),
        ("/console/{file}", "get", 404, get(&server, "/console/index.html")),
        ("/connections", "get", 200, get(&server, "/connections?limit=1")),
        ("/connections", "get", 400, get(&server, "/connections?limit=0")),
        (one, "get", 200, get(&server, &shown)),
        (topic_of, "put", 204, request(&server, Method::PUT, &format!("{shown}{topic}?after=0"))),
        (topic_of, "put", 400, request(&server, Method::PUT, &format!("{shown}{topic}?sub="))),
        (topic_of, "put", 412, request(&server, Method::PUT, &format!("{shown}{topic}?sub=u1"))),
        (topic_of, "put", 409, request(&server, Method::PUT, &format!("/connections/{raw}{topic}"))),
        (topic_of, "delete", 204, request(&server, Method::DELETE, &format!("{shown}{topic}"))),
        (topic_of, "delete", 404, request(&server, Method::DELETE, &format!("/connections/0{topic}"))),
        (one, "delete", 400, request(&server, Method::DELETE, &format!("{shown}?sub="))),
        (one, "delete", 412, request(&server, Method::DELETE, &format!("{shown}?sub=u1"))),
        (one, "delete", 204, request(&server, Method::DELETE, &shown)),
        (one, "delete", 404, request(&server, Method::DELETE, "/connections/0")),
        (t, "delete", 204, request(&server, Method::DELETE, &topic)),
        (t, "delete", 400, request(&server, Method::DELETE, &topic_path("$a"))),
    ];
    for (path, method, status, request) in cases {
        let answer = request.answer().await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        document.check(path, method, &answer);
    }
}

#[tokio::test]
async fn frames_of_a_stream_match_the_document() {
    let server = Server::with(|config| config.retain_messages = 1).await;
    let document = Document::of(&server).await;
    for number in ["1", "2", "3"] {
        publish(&server, "a", number).await;
    }
    let mut reader = Reader::open(&server, Transport::Ndjson, "topic=a&after=1").await;
    document.validate(&Document::schema("Open"), reader.opening());
    document.validate(&Document::schema("Gap"), &reader.next().await);
    document.validate(&Document::schema("MessageFrame"), &reader.next().await);
    let path = format!("/connections/{}/topics/b", text(&reader.opening()["connection"]));
    for method in [Method::PUT, Method::DELETE] {
        assert_eq!(request(&server, method, &path).answer().await.status, 204);
        document.validate(&Document::schema("Changed"), &reader.next().await);
    }
    server.shutdown.drain();
    document.validate(&Document::schema("Closing"), &reader.next().await);
}

#[tokio::test]
async fn every_code_with_a_status_is_in_the_document() {
    let server = Server::start().await;
    let document = Document::of(&server).await;
    let listed = document.0["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].clone();
    let known: Vec<_> =
        Code::ALL.iter().filter(|code| code.status().is_some()).map(|code| code.as_str()).collect();
    assert_eq!(listed, json!(known));
    for code in Code::ALL {
        let Some(status) = code.status() else { continue };
        let responses = document.0["components"]["responses"].as_object().expect("responses");
        let is_named = responses.values().any(|response| {
            response["description"].as_str().is_some_and(|text| text.contains(&format!("`{code}`")))
        });
        assert!(is_named, "{code} ({status}) is not described");
    }
}
