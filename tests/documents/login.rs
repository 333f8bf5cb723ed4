//! The tokens and the libraries of the example of a login, and what `docs/clients.md` says of Node. The page of the
//! example runs in a browser, in another suite.

use std::{fs, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{
    block::{Block, at},
    listener::{Listener, Process},
    support::{
        Server, http_client,
        login::{self, Login},
        program::Program,
    },
};

/// Runs a program to its end in the folder of the example, and returns what it prints.
async fn printed_by(program: &str, arguments: &[&str], secret: &str) -> String {
    let mut command = Command::new(program);
    let output =
        command.args(arguments).env("TOKEN_SECRET", secret).current_dir(login::example()).output().await;
    let output = output.expect("it runs");
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// The programs that print a token of each language.
fn signers() -> [(&'static str, &'static [&'static str]); 3] {
    [
        (
            "node",
            &["--input-type=module", "-e", "import {mint} from './mint.mjs'; console.log(mint('u1', 60))"],
        ),
        ("python3", &["-B", "-c", "from mint import mint; print(mint('u1', 60))"]),
        ("php", &["-r", "require 'mint.php'; echo mint('u1', 60);"]),
    ]
}

#[tokio::test]
async fn each_language_signs_a_token_that_the_server_accepts() {
    if !login::has(&["node", "python3", "php"], false) {
        return;
    }
    let begun = login::init();
    let serving = Program::start(&["--config", &begun.file]).await;
    for (program, arguments) in signers() {
        let token = printed_by(program, arguments, &begun.secret).await;
        for (topic, status) in [("users.u1.news", 200), ("users.u2.news", 403)] {
            let client = http_client().build().expect("a client");
            let request = client.get(serving.server.http(&format!("/topics/{topic}"))).bearer_auth(&token);
            assert_eq!(request.send().await.expect("an answer").status(), status, "{program}: {token}");
        }
    }
    serving.terminate().await;
}

/// PHP signed with an empty secret, and the backend in Node ended at the first request.
#[tokio::test]
async fn no_language_signs_without_a_secret() {
    if !login::has(&["node", "python3", "php"], false) {
        return;
    }
    for (program, arguments) in signers() {
        let mut command = Command::new(program);
        let command = command.args(arguments).env_remove("TOKEN_SECRET").current_dir(login::example());
        let output = command.output().await.expect("it runs");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(!output.status.success() && said.concat().contains("TOKEN_SECRET"), "{program}: {said:?}");
    }
}

/// The commands for two terminals are indented, so they are no block that a test runs.
#[tokio::test]
async fn the_commands_for_two_terminals_lead_to_a_token() {
    if !login::has(&["node"], false) {
        return;
    }
    let document = include_str!("../../docs/clients.md").lines();
    let words = ["rejoin ", "TOKEN_SECRET="];
    let is_command = |line: &&str| words.iter().any(|word| line.starts_with(word));
    let commands: Vec<_> = document.filter_map(|line| line.strip_prefix("    ")).filter(is_command).collect();
    let [init, start, backend, ..] = commands[..] else { panic!("{commands:?}") };
    assert_eq!(init, "rejoin init");
    let begun = login::init();
    let start = start.replace("rejoin.toml", &begun.file);
    let serving = Program::start(&start.split(' ').skip(1).collect::<Vec<_>>()).await;

    let mut shell = Command::new("sh");
    let backend = format!("exec env {}", backend.replace("the-secret", &begun.secret));
    let shell = shell.args(["-c", &backend]).current_dir(env!("CARGO_MANIFEST_DIR")).env("PORT", "0");
    let mut running = shell.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a shell");
    let mut lines = BufReader::new(running.stdout.take().expect("a pipe")).lines();
    let address = lines.next_line().await.expect("text").expect("the address of the backend");
    let client = http_client().build().expect("a client");
    let answer = client.post(format!("{address}token")).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    let url = serving.server.http("/topics/users.u1.news");
    let read = client.get(url).bearer_auth(answer["token"].as_str().expect("a token"));
    assert_eq!(read.send().await.expect("an answer").status(), 200);
    serving.terminate().await;
}

#[tokio::test]
async fn eventsource_misses_nothing_while_its_tokens_end() {
    outlives_its_tokens("eventsource.mjs").await;
}

#[tokio::test]
async fn partysocket_misses_nothing_while_its_tokens_end() {
    outlives_its_tokens("partysocket.mjs").await;
}

/// How many tokens a library asks for: the first, and two more because those before have ended.
const TOKENS: usize = 3;
/// How many messages are published until then, at most. This turns a hang into a failure.
const MAX_MESSAGES: usize = 300;

/// Node runs the recipe with a WebSocket that sends an `Origin`, as a browser does.
fn arguments_of(login: &Login, recipe: &str) -> [String; 3] {
    let folder = &login.begun.folder;
    ["--import".to_owned(), folder.path("node-websocket.mjs"), folder.path(recipe)]
}

async fn outlives_its_tokens(recipe: &str) {
    if !login::has(&["node"], true) {
        return;
    }
    let mut login = Login::start(2).await;
    let process = Process::node(&arguments_of(&login, recipe).each_ref().map(String::as_str));
    let (mut made, mut number) = (0, 0);
    let mut again = tokio::time::interval(Duration::from_millis(200));
    while made < TOKENS {
        assert!(number < MAX_MESSAGES, "{recipe} asks for no new token: {}", process.printed().await);
        tokio::select! {
            () = login.token_made() => {
                made += 1;
                continue;
            }
            _ = again.tick() => {}
        }
        number += 1;
        login.publish(&number.to_string()).await;
    }
    login.publish("last").await;
    process.until(" last\n").await;
    let printed = process.printed().await;
    let heard: Vec<_> = printed.lines().map(|line| line.split_once(' ').expect("an id and data").1).collect();
    let first: usize = heard[0].parse().expect("a number");
    let expected: Vec<_> = (first..=number).map(|number| number.to_string()).chain(["last".into()]).collect();
    assert_eq!(heard, expected, "{recipe}");
    login.serving.terminate().await;
}

#[tokio::test]
async fn partysocket_stops_when_it_is_refused() {
    if !login::has(&["node"], true) {
        return;
    }
    let login = Login::start(60).await;
    let recipe = login.begun.folder.path("partysocket.mjs");
    let text = fs::read_to_string(&recipe).expect("a file").replace("users.u1.news", "users.u2.news");
    fs::write(&recipe, text).expect("a file");
    let arguments = arguments_of(&login, "partysocket.mjs");
    let (code, printed) = Process::node(&arguments.each_ref().map(String::as_str)).end().await;
    assert_eq!((code, printed.as_str()), (Some(0), "refused: forbidden\n"));
    login.serving.terminate().await;
}

/// A block of the document that contains `text`.
fn block(text: &str) -> Block {
    let blocks = Block::all_of("docs/clients.md", include_str!("../../docs/clients.md"));
    blocks.into_iter().find(|block| block.text.contains(text)).expect("a block")
}

/// Node sends no `Origin`, so it gets no close code. It asked again for ever.
#[tokio::test]
async fn the_loop_of_the_websocket_stops_in_node_when_it_is_refused() {
    if !login::has(&["node"], true) {
        return;
    }
    let begun = login::init();
    let serving = Program::start(&["--config", &begun.file]).await;
    let text = at(&block("function connect()").text, &serving.server.http(""));
    // The WebSocket that is part of Node from version 24 on.
    let text = format!("import {{WebSocket}} from 'undici'\n{text}");
    let (code, printed) = Process::node(&["--input-type=module", "-e", &text]).end().await;
    assert!(code == Some(0) && printed.contains("refused: {\"code\":\"unauthorized\""), "{code:?} {printed}");
    serving.terminate().await;
}

#[tokio::test]
async fn bodies_are_stored_with_the_types_that_node_gives_them() {
    if !login::has(&["node"], false) {
        return;
    }
    let server = Server::start().await;
    let script = "
        const form = new FormData()
        form.append('file', new Blob(['content']), 'name.txt')
        for (const body of ['{\"total\":12}', form]) await fetch('URL', {method: 'POST', body})
        await fetch('URL', {method: 'POST', body: '{\"total\":12}', headers: {'Content-Type': 'application/json'}})";
    let script = script.replace("URL", &server.http("/topics/demo"));
    let (code, printed) = Process::node(&["--input-type=module", "-e", &script]).end().await;
    assert_eq!(code, Some(0), "{printed}");
    let client = http_client().build().expect("a client");
    let answer = client.get(server.http("/topics/demo?after=0")).send().await.expect("an answer");
    let page: Value = answer.json().await.expect("JSON");
    let messages = page["messages"].as_array().expect("messages");
    assert_eq!(messages[0]["data"], "{\"total\":12}");
    assert_eq!(messages[1]["encoding"], "base64", "{page}");
    assert!(
        messages[1]["content_type"].as_str().is_some_and(|it| it.starts_with("multipart/form-data")),
        "{page}"
    );
    assert_eq!(messages[2]["data"], json!({"total": 12}));
    server.stop().await;
}
