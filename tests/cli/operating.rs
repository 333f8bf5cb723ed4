//! The commands of an operator, and a token that is read from a file.

use std::{fs, sync::Arc, time::Duration};

use rejoin::{Config, Listeners, Shutdown, config::Secret};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    program::{Ended, Program, rejoin},
    support::{
        Server, http_client,
        program::Folder,
        tls::{PAIR, Pair},
    },
};

/// Publishes one message to each of these topics.
async fn fill(server: &Server, topics: impl Iterator<Item = String>) {
    let body: String = topics.map(|topic| format!("{{\"topic\":\"{topic}\",\"data\":1}}\n")).collect();
    let client = http_client().build().expect("a client");
    let request = client.post(server.http("/publish")).header("content-type", "application/x-ndjson");
    let answer = request.body(body).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}

async fn run(server: &Server, arguments: &[&str]) -> Ended {
    rejoin(server, arguments).run().await
}

#[tokio::test]
async fn topics_lists_every_topic_of_every_page() {
    let server = Server::start().await;
    // More than two pages.
    let names: Vec<String> = (0..2_001).map(|number| format!("t.{number:05}")).collect();
    fill(&server, names.iter().cloned()).await;
    let table = run(&server, &["topics"]).await;
    assert_eq!((table.code, table.stderr()), (Some(0), ""), "{table:?}");
    let lines = table.lines();
    assert_eq!(lines[0], "NEWEST             MESSAGES        BYTES SUBSCRIBERS  TOPIC");
    let column = |line: &str, number: usize| line.split_whitespace().nth(number).map(str::to_owned);
    let listed: Vec<String> = lines[1..].iter().filter_map(|line| column(line, 4)).collect();
    assert!(listed == names, "{} topics", listed.len());
    assert_eq!(column(lines[1], 1).as_deref(), Some("1"));

    let json = run(&server, &["topics", "--json"]).await;
    let listed: Vec<Value> =
        json.lines().into_iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(listed.iter().map(|state| &state["topic"]).eq(&names), "{} topics", listed.len());
    assert_eq!((&listed[0]["messages"], &listed[0]["subscribers"]), (&1.into(), &0.into()));
    server.stop().await;
}

/// The answer of a replica that another one did not answer.
#[tokio::test]
async fn topics_says_whose_subscribers_are_not_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("a bound address"));
    let topics = tokio::spawn(Program::new(&["topics", "--json", "--url", &url]).run());
    let state =
        |topic: &str| json!({"topic": topic, "newest": "7", "messages": 1, "bytes": 9, "subscribers": 2});
    for page in [
        json!({"topics": [state("a")], "next": "a", "missing": ["b2"]}),
        json!({"topics": [state("b")], "next": null, "missing": ["unknown", "b2"]}),
    ] {
        let (mut client, _) = listener.accept().await.expect("a connection");
        let _ = client.read(&mut [0; 4096]).await;
        let body = page.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.expect("it is taken");
    }
    let ended = topics.await.expect("no panic");
    assert_eq!((ended.code, ended.lines().len()), (Some(1), 2), "{ended:?}");
    assert_eq!(
        ended.stderr(),
        "rejoin: the replica b2 did not answer, so its subscribers are not counted\n\
         rejoin: other replicas may live that are not known yet, and their subscribers are not counted\n\
         rejoin: the counts of subscribers are not complete; try again\n"
    );
}

#[tokio::test]
async fn stats_prints_the_counts_of_the_server() {
    let server = Server::start().await;
    fill(&server, ["a", "b"].map(str::to_owned).into_iter()).await;
    let table = run(&server, &["stats"]).await;
    assert_eq!((table.code, table.stderr()), (Some(0), ""), "{table:?}");
    assert!(table.lines().contains(&"topics           2"), "{table:?}");
    let version = format!("version          {}", env!("CARGO_PKG_VERSION"));
    assert!(table.lines().contains(&&*version), "{table:?}");
    let json = run(&server, &["stats", "--json"]).await;
    let stats: Value = serde_json::from_str(&json.lines().concat()).expect("JSON");
    assert_eq!((&stats["topics"], &stats["messages"]), (&2.into(), &2.into()));
    server.stop().await;
}

#[tokio::test]
async fn delete_removes_exactly_that_topic() {
    let server = Server::start().await;
    let odd = "a/b%2Ec?#.\u{fc}";
    for topic in [odd, "a/b.c", "a"] {
        assert_eq!(run(&server, &["pub", topic, "x"]).await.code, Some(0));
    }
    let deleted = run(&server, &["delete", odd]).await;
    assert_eq!((deleted.code, deleted.stderr(), deleted.lines()), (Some(0), "", vec![]), "{deleted:?}");
    for (topic, expected) in [(odd, vec![]), ("a/b.c", vec!["x"]), ("a", vec!["x"])] {
        let heard = run(&server, &["sub", topic, "--after", "0", "--until-idle", "500ms"]).await;
        assert_eq!(heard.lines(), expected, "{topic}");
    }
    let refused = run(&server, &["delete", "a.*"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr().starts_with("rejoin: bad_request: "), "{}", refused.stderr());
    server.stop().await;
}

#[tokio::test]
async fn health_says_by_its_exit_code_if_the_server_is_ready() {
    let secret = Secret("x".repeat(32));
    let server = Server::with(|config| config.jwt_secret = Some(secret)).await;
    let ready = run(&server, &["health"]).await;
    assert_eq!((ready.code, ready.lines(), ready.stderr()), (Some(0), vec!["ready"], ""), "{ready:?}");
    let url = server.http("/");
    server.stop().await;
    let gone = Program::new(&["health", "--url", &url]).run().await;
    assert_eq!(gone.code, Some(4), "{gone:?}");
    assert!(gone.stderr().starts_with("rejoin: cannot reach http://"), "{}", gone.stderr());
}

/// Runs each command by `ask`, which gives it the URL of the server.
async fn every_command_is_answered(ask: impl AsyncFn(&[&str]) -> Ended) {
    assert_eq!(ask(&["health"]).await.lines(), ["ready"]);
    assert_eq!(ask(&["pub", "a", "x"]).await.code, Some(0));
    assert!(ask(&["topics"]).await.lines()[1].ends_with("  a"));
    assert_eq!(ask(&["stats"]).await.code, Some(0));
    assert_eq!(ask(&["connections", "list"]).await.code, Some(0));
    for transport in ["ws", "sse", "ndjson", "poll"] {
        let heard =
            ask(&["sub", "a", "--after", "0", "--until-idle", "300ms", "--transport", transport]).await;
        assert_eq!(heard.lines(), ["x"], "{transport}: {heard:?}");
    }
}

#[tokio::test]
async fn commands_reach_a_server_over_tls_and_trust_what_ssl_cert_file_names() {
    let server = Server::direct(|config| config.certificate = Some(PAIR.parsed())).await;
    let url = format!("https://localhost:{}", server.addr.port());
    let folder = Folder::new();
    let (trusted, other) = (folder.path("trusted"), folder.path("other"));
    fs::write(&trusted, &PAIR.certificate).expect("a file");
    fs::write(&other, &Pair::for_days(1).certificate).expect("a file");
    let ask = |arguments: &[&str], trusted: &str| {
        Program::new(&[arguments, &["--url", &url]].concat()).with("SSL_CERT_FILE", trusted).run()
    };
    every_command_is_answered(async |arguments| ask(arguments, &trusted).await).await;
    for arguments in [&["health"][..], &["sub", "a", "--until-idle", "1s", "--give-up", "1s"]] {
        let refused = ask(arguments, &other).await;
        assert!(refused.code == Some(4) && refused.stderr().contains("certificate"), "{refused:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn commands_reach_a_server_at_a_unix_socket() {
    let folder = Folder::new();
    let url = format!("unix:{}", folder.path("s"));
    let ask = async |arguments: &[&str]| {
        let program = Program::new(&[arguments, &["--url", &url]].concat());
        program.with("HTTP_PROXY", "http://192.0.2.1:1").with("http_proxy", "http://192.0.2.1:1").run().await
    };
    let gone = ask(&["health"]).await;
    assert_eq!(gone.code, Some(4), "{gone:?}");
    assert!(gone.stderr().starts_with("rejoin: cannot reach the Unix socket: No such file"), "{gone:?}");

    let config = Arc::new(Config { listen: vec![url.parse().expect("a socket")], ..Config::default() });
    let (listeners, shutdown) = (Listeners::bind(&config).expect("a socket"), Shutdown::new());
    let served = tokio::spawn(rejoin::serve(listeners, config, shutdown.clone()));
    every_command_is_answered(ask).await;
    shutdown.drain();
    assert!(served.await.expect("no panic").is_ok());

    for wrong in ["unix:", "unix:s", "unix:/s?mode=0600"] {
        let refused = Program::new(&["health", "--url", wrong]).run().await;
        assert!(refused.code == Some(2) && refused.stderr().contains("expected unix:/path"), "{refused:?}");
    }
}

/// Docker passes the proxy of its host on to containers, in which the health check then failed for ever.
#[tokio::test]
async fn a_server_on_loopback_is_asked_directly_and_any_other_through_the_proxy() {
    let server = Server::start().await;
    let port = server.addr.port();
    let proxy = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at_proxy = format!("http://{}", proxy.local_addr().expect("a bound address"));
    let health = |url: &str| {
        let health = Program::new(&["health", "--url", url]).with("NO_PROXY", "").with("no_proxy", "");
        health.with("HTTP_PROXY", &at_proxy).with("http_proxy", &at_proxy).run()
    };
    for host in ["127.0.0.1", "localhost"] {
        let ready = health(&format!("http://{host}:{port}")).await;
        assert_eq!((ready.code, ready.lines()), (Some(0), vec!["ready"]), "{host}: {ready:?}");
    }
    let elsewhere = tokio::spawn(health("http://push.example"));
    let (mut client, _) = proxy.accept().await.expect("a connection");
    let mut head = [0; 64];
    let count = client.read(&mut head).await.expect("a request");
    assert!(head[..count].starts_with(b"GET http://push.example/health/ready "), "{head:?}");
    drop((client, proxy));
    assert_eq!(elsewhere.await.expect("no panic").code, Some(4));
    server.stop().await;
}

/// The answer of a server whose log does not answer, and of one whose log is full.
#[tokio::test]
async fn health_repeats_why_the_server_is_not_ready() {
    let problem = r#"{"code":"unavailable","detail":"the log does not answer","status":503}"#;
    let full = r#"{"full":true,"status":"ready"}"#;
    for (status, body, code, out, err) in [
        (
            "503 Service Unavailable",
            problem,
            1,
            "",
            "rejoin: not ready: unavailable: the log does not answer\n",
        ),
        ("200 OK", full, 0, "ready, but the log is full: publishing is refused\n", ""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound address"));
        let health = tokio::spawn(Program::new(&["health", "--url", &url]).run());
        let (mut client, _) = listener.accept().await.expect("a connection");
        let _ = client.read(&mut [0; 4096]).await;
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        client.write_all((head + body).as_bytes()).await.expect("it is taken");
        let ended = health.await.expect("no panic");
        assert_eq!((ended.code, ended.stderr()), (Some(code), err), "{ended:?}");
        assert_eq!(ended.stdout, out.as_bytes());
    }
}

#[tokio::test]
async fn every_command_of_an_operator_says_if_it_is_refused_or_the_server_is_away() {
    let secret = Secret("x".repeat(32));
    let server = Server::with(|config| config.jwt_secret = Some(secret)).await;
    let commands = [&["topics"][..], &["stats"], &["delete", "t"]];
    for arguments in commands {
        let refused = run(&server, arguments).await;
        assert_eq!(refused.code, Some(1), "{arguments:?}: {refused:?}");
        assert!(refused.stderr().starts_with("rejoin: unauthorized: "), "{arguments:?}: {refused:?}");
    }
    let url = server.http("/");
    server.stop().await;
    for arguments in commands {
        let gone = Program::new(&[arguments, &["--url", &url]].concat()).run().await;
        assert_eq!(gone.code, Some(4), "{arguments:?}: {gone:?}");
    }
}

/// A job that outlives its token.
#[tokio::test]
async fn a_token_is_read_from_its_file_again_when_it_has_expired() {
    let secret = "x".repeat(32);
    let server = Server::with(|config| config.jwt_secret = Some(Secret(secret.clone()))).await;
    let folder = Folder::new();
    let file = folder.path("token");
    let renew = async |ttl: &str| {
        let wish = ["token", "--jwt-secret", &secret, "--publish", "t", "--subscribe", "t", "--ttl", ttl];
        fs::write(&file, Program::new(&wish).run().await.stdout).expect("a file");
    };
    renew("3s").await;
    let common = ["t", "--token-file", &file];
    let mut reader = rejoin(&server, &[&["sub"], &common[..], &["--after", "0"]].concat()).start();
    let mut publisher = rejoin(&server, &[&["pub"], &common[..]].concat()).start();
    publisher.write(b"first\n").await;
    assert_eq!(reader.line().await, "first");
    renew("1h").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    publisher.write(b"second\n").await;
    assert_eq!(reader.line().await, "second");
    let ended = publisher.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    reader.close_stdout().end().await;

    fs::write(&file, "\n").expect("a file");
    for (name, why) in [("not-there", "No such file"), (&*file, "it is empty")] {
        let wrong = run(&server, &["stats", "--token-file", name]).await;
        assert_eq!(wrong.code, Some(1), "{wrong:?}");
        assert!(wrong.stderr().contains(&format!("--token-file {name}: {why}")), "{}", wrong.stderr());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_topic_is_added_to_a_connection_from_a_start_on() {
    let server = Server::start().await;
    let client = http_client().build().expect("a client");
    for text in ["first", "second"] {
        client.post(server.http("/topics/old")).body(text).send().await.expect("an answer");
    }
    for (start, count) in [(["--last", "1"], 1), (["--since", "1h"], 2), (["--after", "0"], 2)] {
        let request = client.get(server.http("/events")).header("accept", "application/x-ndjson");
        let mut reader = request.send().await.expect("an answer");
        let mut chunk = async || reader.chunk().await.expect("it is not cut").expect("a line");
        let open: Value = serde_json::from_slice(&chunk().await).expect("JSON");
        let id = open["connection"].as_str().expect("an id");
        let added = run(&server, &[&["connections", "add", id, "old"], &start[..]].concat()).await;
        assert_eq!((added.code, added.stderr()), (Some(0), ""), "{added:?}");
        let mut told = String::new();
        while !told.contains(r#""type":"subscribed""#) {
            told += str::from_utf8(&chunk().await).expect("text");
        }
        assert_eq!(told.matches(r#""replay":true"#).count(), count, "{start:?}: {told}");
    }
    let both = run(&server, &["connections", "add", "x", "old", "--last", "1", "--after", "0"]).await;
    assert_eq!(both.code, Some(2), "{both:?}");
    server.stop().await;
}

#[tokio::test]
async fn connections_are_listed_changed_and_ended() {
    let server = Server::start().await;
    let client = http_client().build().expect("a client");
    let request = client.get(server.http("/events")).header("accept", "application/x-ndjson");
    let mut reader = request.send().await.expect("an answer");
    let mut frame = async || -> Value {
        let chunk = reader.chunk().await.expect("it is not cut").expect("a line");
        serde_json::from_slice(&chunk).expect("JSON")
    };
    let id = frame().await["connection"].as_str().expect("an id").to_owned();
    for (command, kind) in [("add", "subscribed"), ("remove", "unsubscribed"), ("add", "subscribed")] {
        let done = run(&server, &["connections", command, &id, "a/b c?.*"]).await;
        assert_eq!(done.code, Some(1), "white space is no part of a topic: {done:?}");
        let done = run(&server, &["connections", command, &id, "a/b?.*"]).await;
        assert_eq!((done.code, done.stderr()), (Some(0), ""), "{done:?}");
        let told = frame().await;
        assert_eq!((&told["type"], &told["topic"]), (&kind.into(), &"a/b?.*".into()));
    }
    let table = run(&server, &["connections", "list"]).await;
    assert_eq!((table.code, table.stderr()), (Some(0), ""), "{table:?}");
    let lines = table.lines();
    assert_eq!(
        lines[0],
        "CONNECTION                       TRANSPORT    BEHIND TOPICS  SUBJECT              FIRST TOPICS"
    );
    let words: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(words, [&id, "ndjson", "0", "1", "-", "a/b?.*"]);
    for (query, count) in [(["--topic", "a/b?.*"], 1), (["--topic", "a"], 0), (["--sub", "u1"], 0)] {
        let listed = run(&server, &[&["connections", "list", "--json"], &query[..]].concat()).await;
        assert_eq!((listed.code, listed.lines().len()), (Some(0), count), "{listed:?}");
    }
    let refused = run(&server, &["connections", "add", &id, "a", "--presence"]).await;
    assert!(refused.stderr().contains("presence: only a client with a subject"), "{refused:?}");
    let refused = run(&server, &["connections", "add", &id, "a", "--sub", "u1"]).await;
    assert!(refused.code == Some(1) && refused.stderr().contains("precondition_failed"), "{refused:?}");
    let refused = run(&server, &["connections", "end", &id, "--sub", "u1"]).await;
    assert!(refused.code == Some(1) && refused.stderr().contains("precondition_failed"), "{refused:?}");
    let ended = run(&server, &["connections", "end", &id]).await;
    assert_eq!((ended.code, ended.stderr()), (Some(0), ""), "{ended:?}");
    assert_eq!(frame().await["code"], "disconnected");
    let gone = run(&server, &["connections", "end", &id]).await;
    assert!(gone.code == Some(1) && gone.stderr().contains("not_found"), "{gone:?}");
    server.stop().await;
}

#[tokio::test]
async fn the_list_of_a_subject_is_shown_changed_and_its_connections_end() {
    let server = Server::start().await;
    // The subject goes into the path whole.
    let subject = "team/7 ü?";
    let list = async || {
        let listed = run(&server, &["subjects", "list", subject]).await;
        assert_eq!((listed.code, listed.stderr()), (Some(0), ""), "{listed:?}");
        listed.lines().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(list().await.is_empty());
    for topic in ["rooms/7", "a.*"] {
        let added = run(&server, &["subjects", "add", subject, topic]).await;
        assert_eq!((added.code, added.stderr(), added.lines().len()), (Some(0), "", 0), "{added:?}");
    }
    let lines = list().await;
    let entries: Vec<_> = lines.iter().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(entries.iter().map(|(_, topic)| *topic).collect::<Vec<_>>(), ["a.*", "rooms/7"]);
    assert!(entries[1].0 < entries[0].0, "by topic, and each with its id: {lines:?}");
    let removed = run(&server, &["subjects", "remove", subject, "a.*"]).await;
    assert_eq!((removed.code, removed.stderr()), (Some(0), ""), "{removed:?}");
    assert_eq!(list().await, lines[1..]);
    for refuse in [&[][..], &["--refuse", "10m"]] {
        let ended = run(&server, &[&["subjects", "end", subject], refuse].concat()).await;
        assert_eq!((ended.code, ended.stderr()), (Some(0), ""), "{ended:?}");
    }
    assert_eq!(list().await, lines[1..], "the list stays");
    for wrong in [&["add", subject, "a..b"][..], &["end", subject, "--refuse", "8d"], &["list", ""]] {
        let refused = run(&server, &[&["subjects"], wrong].concat()).await;
        assert!(refused.code == Some(1) && !refused.stderr().is_empty(), "{wrong:?}: {refused:?}");
    }
    server.stop().await;
}
