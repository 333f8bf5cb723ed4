//! The lines that the program logs on standard error.

use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    ask::{Ask, get, post, publish, publish_all, request},
    reader::{Reader, Socket},
    support::{client::Transport, program::Program},
};

fn lines(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[tokio::test]
async fn without_a_terminal_each_log_line_is_json_and_a_connection_logs_why_it_ended() {
    let program = Program::start(&["--log-level", "debug"]).await;
    let first = publish(&program.server, "a", "1").await;
    let streams = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];
    for transport in streams {
        let mut reader = Reader::open(&program.server, transport, "topic=a&last=1").await;
        assert_eq!(reader.ids(1).await, [first.as_str()]);
    }
    let log = program.terminate().await.log;
    let ended = lines(&log).into_iter().filter(|line| line["message"] == "connection ended");
    let ended: Vec<_> = ended.filter(|line| line["transport"].is_string()).collect();
    for transport in streams {
        let name = transport.to_string();
        let line = ended.iter().find(|line| line["transport"] == name.as_str());
        let fields = line.unwrap_or_else(|| panic!("{transport}: {log}"));
        assert_eq!((&fields["messages"], &fields["behind_ms"]), (&1.into(), &0.into()), "{fields}");
        // The client has left, unless the drain was quicker.
        let why = fields["why"].as_str().expect("a reason");
        assert!(why.starts_with("the client left") || why == "draining", "{fields}");
        assert!(fields["seconds"].is_u64() && fields["cursor"] == first.as_str(), "{fields}");
    }
}

#[tokio::test]
async fn a_client_that_speaks_tls_is_warned_of_once_a_minute() {
    let mut program = Program::start(&[]).await;
    for number in 0..5 {
        let mut wire = TcpStream::connect(program.server.addr).await.expect("a connection");
        wire.write_all(b"\x16\x03\x01\x02\0\x01\0\r\n\r\n").await.expect("sent");
        if number == 0 {
            program.until_logged("a client speaks TLS (https:// or wss://)").await;
        }
        wire.read_to_end(&mut Vec::new()).await.ok();
    }
    let log = program.terminate().await.log;
    let told = lines(&log)
        .iter()
        .filter(|line| line["level"] == "WARN" && line["target"] != "rejoin::limits")
        .count();
    assert_eq!(told, 1, "{log}");
}

/// A mistake of a client stood in the log at `debug` only, and many of them would fill it.
#[tokio::test]
async fn the_log_has_one_refusal_of_each_code_with_the_words_that_the_client_got() {
    let program = Program::start(&[]).await;
    for path in ["/topics/a?lsat=5", "/topics/a?last=x", "/nowhere", "/nowhere"] {
        get(&program.server, path).answer().await;
    }
    let elements = r#"[{"topic":"a","data":1},{"topic":"a","if_match":"1","data":1}]"#;
    let json = ("content-type", "application/json");
    post(&program.server, "/publish").header(json.0, json.1).body(elements).answer().await;
    let mut socket = Socket::open(&program.server, "/events").await;
    socket.send(serde_json::json!({"type": "subscribe", "topic": "a..b"})).await;
    assert_eq!(socket.next().await["type"], "error");
    let log = lines(&program.terminate().await.log);
    let refused: Vec<_> =
        log.iter().filter(|line| line["message"].as_str().is_some_and(is_refusal)).collect();
    let told: Vec<_> =
        refused.iter().map(|line| ["code", "request"].map(|name| line[name].as_str())).collect();
    assert_eq!(
        told,
        [["bad_request", "/topics/a"], ["not_found", "/nowhere"], ["precondition_failed", "/publish"]]
            .map(|expected| expected.map(Some)),
        "{refused:?}"
    );
    assert_eq!(refused[0]["detail"], "unknown parameter lsat; did you mean last?");
    assert_eq!((&refused[0]["client"], &refused[0]["level"]), (&"127.0.0.1".into(), &"INFO".into()));
}

/// A connection that the server ended stood in the log at `debug` only.
#[tokio::test]
async fn the_log_has_one_end_of_each_code_with_the_words_that_the_client_got() {
    let program = Program::start(&[]).await;
    for transport in [Transport::WebSocket, Transport::Sse, Transport::WebSocket] {
        let mut reader = Reader::open(&program.server, transport, "topic=a").await;
        let path = format!("/connections/{}", reader.opening()["connection"].as_str().expect("a name"));
        request(&program.server, Method::DELETE, &path).answer().await;
        let closing = reader.next().await;
        assert_eq!(closing["code"], "disconnected", "{closing}");
    }
    let mut socket = Socket::open(&program.server, "/topics/a").await;
    let log = lines(&program.terminate().await.log);
    let closing = socket.next().await;
    assert_eq!(closing["code"], "draining", "{closing}");
    let ends = log.iter().filter(|line| line["message"].as_str().is_some_and(is_end));
    let told: Vec<_> =
        ends.map(|line| ["level", "code", "detail", "client"].map(|name| &line[name])).collect();
    let words = "the backend has ended this connection; ask it before you connect again";
    assert_eq!(told, [["INFO", "disconnected", words, "127.0.0.1"]], "a drain has lines of its own");
}

fn is_end(message: &str) -> bool {
    message.starts_with("closed a connection; ")
}

fn is_refusal(message: &str) -> bool {
    message.starts_with("refused; ")
}

#[tokio::test]
async fn a_token_is_never_logged() {
    let program = Program::start(&["--log-level", "trace"]).await;
    for path in ["/topics/a?wait=0&after=0&token=hush", "/nothing?token=hush", "/events?token=hush&topic=%ff"]
    {
        get(&program.server, path).bearer_auth("hush").header("cookie", "rejoin_token=hush").answer().await;
    }
    let log = program.terminate().await.log;
    assert!(!log.contains("hush"), "{log}");
}

#[tokio::test]
async fn clients_cause_few_log_lines() {
    let program = Program::start(&["--log-level", "debug"]).await;
    publish_all(&program.server, "a", 1..=3).await;
    for _ in 0..10 {
        let open = (0..30).map(|_| Reader::open(&program.server, Transport::Ndjson, "topic=a"));
        drop(futures_util::future::join_all(open).await);
    }
    let began = lines(&program.terminate().await.log);
    let ended = began.iter().filter(|line| line["transport"] == "ndjson").count();
    // Three hundred connections ended; the machine decides how many seconds that took.
    assert!((1..300).contains(&ended), "{ended}");
}
