//! The access log: one line for each request that has ended.

use std::{sync::Mutex, time::Duration};

use rejoin::config::{AccessLogForm, Secret};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    ask::{Ask, get, post, publish, until_served, within},
    reader::{Reader, Socket},
    support::{Server, client::Transport, program::Program},
};

/// The lines that a server writes, in their order.
pub struct Lines(mpsc::UnboundedReceiver<String>);

impl Lines {
    pub fn of(server: &Server) -> Self {
        let (write, lines) = mpsc::unbounded_channel();
        // A sink may be called by several threads.
        let write = Mutex::new(write);
        let app = server.app.as_ref().expect("a server of this process");
        app.log_access(move |line| {
            let line = str::from_utf8(line).expect("UTF-8").to_owned();
            let _ = write.lock().expect("no panic").send(line);
        });
        Self(lines)
    }

    pub async fn text(&mut self) -> String {
        let line = within("a line of the access log", self.0.recv()).await.expect("the server runs");
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        line
    }

    pub async fn next(&mut self) -> Value {
        let line = self.text().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// True if no line has come since.
    pub fn is_quiet(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

async fn server(form: AccessLogForm) -> (Server, Lines) {
    let server = Server::with(|config| {
        config.access_log = form;
        config.drain_grace = Duration::from_secs(2);
    })
    .await;
    let lines = Lines::of(&server);
    (server, lines)
}

#[tokio::test]
async fn a_request_has_one_line_with_its_status_its_bytes_and_its_code() {
    let (server, mut lines) = server(AccessLogForm::Json).await;
    publish(&server, "a", "x").await;
    let line = lines.next().await;
    assert_eq!(
        (&line["method"], &line["path"], &line["status"]),
        (&"POST".into(), &"/topics/a".into(), &201.into())
    );
    assert!(
        line["duration_ms"].is_u64() && line["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')),
        "{line}"
    );
    assert_eq!(line["client"], "127.0.0.1");

    let answer = get(&server, "/topics/a?after=0&utm=1").header("user-agent", "a\"b").answer().await;
    let line = lines.next().await;
    assert_eq!((&line["path"], &line["transport"]), (&"/topics/a?after=0".into(), &"poll".into()), "{line}");
    assert_eq!(
        (line["bytes"].as_u64(), &line["user_agent"]),
        (Some(answer.body.len() as u64), &"a\"b".into())
    );

    get(&server, "/nothing").answer().await;
    let line = lines.next().await;
    assert_eq!((&line["status"], &line["reason"]), (&404.into(), &"not_found".into()), "{line}");
    get(&server, "/topics/a").header("origin", "https://elsewhere.example").answer().await;
    assert_eq!(lines.next().await["reason"], "forbidden_origin");
    assert!(lines.is_quiet());
    server.stop().await;
}

#[tokio::test]
async fn the_line_of_a_stream_comes_at_its_end_with_the_reason() {
    let (server, mut lines) = server(AccessLogForm::Json).await;
    let id = publish(&server, "a", "1").await;
    lines.next().await;
    for transport in [Transport::Sse, Transport::Ndjson, Transport::WebSocket] {
        let mut reader = Reader::open(&server, transport, "topic=a&last=1").await;
        assert_eq!(reader.ids(1).await, [id.as_str()]);
        assert!(lines.is_quiet(), "{transport} has not ended");
        drop(reader);
        let line = lines.next().await;
        assert_eq!(line["transport"], transport.to_string(), "{line}");
        assert!(line["reason"].as_str().is_some_and(|why| why.starts_with("the client left")), "{line}");
        assert!(line["bytes"].as_u64() > Some(100), "{line}");
        assert_eq!(line["status"], if transport == Transport::WebSocket { 101 } else { 200 }, "{line}");
    }
    let socket = Socket::open(&server, "/topics/a").await;
    let stream = Reader::open(&server, Transport::Sse, "topic=a").await;
    server.stop().await;
    let ends = [lines.next().await, lines.next().await];
    for (transport, close) in [("websocket", Value::from(4200)), ("sse", Value::Null)] {
        let end = ends.iter().find(|end| end["transport"] == transport);
        let end = end.unwrap_or_else(|| panic!("{transport}: {ends:?}"));
        assert_eq!((&end["reason"], &end["close"]), (&"draining".into(), &close), "{end}");
    }
    drop((socket, stream));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_has_a_line_too() {
    let (server, mut lines) = server(AccessLogForm::Json).await;
    let id = publish(&server, "a", "1").await;
    lines.next().await;
    let path = format!("/topics/a?after={id}&wait=60");
    let mut held = Box::pin(get(&server, &path).answer());
    tokio::select! {
        answer = &mut held => panic!("it is held: {answer:?}"),
        () = until_served(&server, 1) => {}
    }
    drop(held);
    let mut line = lines.next().await;
    while line["path"] == "/stats" {
        line = lines.next().await;
    }
    assert_eq!((&line["status"], &line["path"]), (&499.into(), &path.into()), "{line}");
    server.stop().await;
}

#[tokio::test]
async fn the_combined_form_has_the_fields_that_programs_expect() {
    let (server, mut lines) = server(AccessLogForm::Combined).await;
    get(&server, "/topics/a?wait=0").header("user-agent", "agent \"7\" \u{e9}").answer().await;
    let line = lines.text().await;
    let (before, rest) = line.split_once('[').expect("a time");
    let (time, rest) = rest.split_once("] ").expect("a time");
    assert_eq!(before, "127.0.0.1 - - ");
    assert!(time.len() == "26/Nov/2026:19:26:46 +0000".len() && time.ends_with(" +0000"), "{line}");
    let (request, rest) = rest.split_once("\" ").expect("a request");
    assert_eq!(request, "\"GET /topics/a?wait=0 HTTP/1.1");
    assert!(rest.starts_with("200 ") && rest.ends_with("\"-\" \"agent \\x227\\x22 \\xC3\\xA9\"\n"), "{line}");
    server.stop().await;
}

/// Neither a credential nor something that may be one: the query of a request may have a mistake in a name.
#[tokio::test]
async fn the_access_log_names_the_client_and_never_its_credential() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    for form in [AccessLogForm::Json, AccessLogForm::Combined] {
        let server = Server::with(|config| {
            config.access_log = form;
            config.jwt_secret = Some(Secret(SECRET.into()));
        })
        .await;
        let mut lines = Lines::of(&server);
        let claims =
            serde_json::json!({"sub": "u 1", "exp": 4_000_000_000_u64, "rejoin": {"subscribe": ["**"]}});
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token");
        let mut written = String::new();
        for path in ["token", "%74oken", "tokne", "access_token", "x"] {
            let path = format!("/topics/a?wait=0&{path}={token}");
            let request = get(&server, &path).header("referer", format!("https://a.example/?token={token}"));
            request.bearer_auth(&token).header("cookie", format!("rejoin_token={token}")).answer().await;
            written += &lines.text().await;
        }
        post(&server, "/topics/a").bearer_auth(&token).answer().await;
        written += &lines.text().await;
        let part = token.rsplit('.').next().expect("a signature");
        assert!(!written.contains(part) && !written.contains(SECRET), "{written}");
        let who = if form == AccessLogForm::Json { "\"who\":\"u 1\"" } else { " - u_1 [" };
        assert_eq!(written.matches(who).count(), 6, "{written}");
        server.stop().await;
    }
}

#[tokio::test]
async fn the_access_log_is_on_standard_output_and_the_log_on_standard_error() {
    let program = Program::start(&["--access-log", "json", "--log-format", "text"]).await;
    publish(&program.server, "a", "x").await;
    let ended = program.terminate().await;
    let lines: Vec<Value> =
        ended.out.lines().map(|line| serde_json::from_str(line).expect("JSON and nothing else")).collect();
    assert_eq!(lines.len(), 1, "{ended:?}");
    assert_eq!(lines[0]["path"], "/topics/a");
    assert!(ended.log.lines().any(|line| line.contains(" INFO rejoin::listening: listening")), "{ended:?}");
    assert!(!ended.log.contains('\u{1b}'), "colours are for a terminal: {ended:?}");
}
