//! The example of `docs/backend.md`: an application, two replicas and nginx, by the commands of the document, and both
//! pages in a browser each.

use std::{fs, path::Path, process::Stdio, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{
    page::{Page, in_browser},
    support::{http_client, login, program::Folder, redis::free_port},
};

const DOCUMENT: &str = include_str!("../../docs/backend.md");

/// The commands of the document: those that end, and those that run in a terminal of their own.
fn commands() -> [Vec<&'static str>; 2] {
    let blocks: Vec<_> = DOCUMENT.split("\n```sh\n").skip(1).collect();
    let lines = |block: &&'static str| block.split("\n```").next().expect("it ends").lines().collect();
    let [first, second] = &*blocks else { panic!("{} blocks of commands", blocks.len()) };
    [lines(first), lines(second)]
}

/// The example in a folder of its own, with its ports replaced by free ones.
struct Example {
    folder: Folder,
    ports: [(&'static str, u16); 6],
    /// One for each line of the second block.
    terminals: Vec<Terminal>,
    key: String,
}

/// A command that runs until this is dropped, with everything that it has started.
struct Terminal(Child);

impl Terminal {
    /// Kills the shell and its program.
    fn kill(&self) {
        let id = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
        if let Some(group) = id {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.kill();
    }
}

const REPLICAS: [&str; 2] = ["7071", "7072"];

impl Example {
    async fn start() -> Self {
        let folder = Folder::new();
        let ports =
            ["3000", "6379", "7070", REPLICAS[0], REPLICAS[1], "8080"].map(|port| (port, free_port()));
        let mut example = Self { folder, ports, terminals: Vec::new(), key: String::new() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backend");
        for entry in fs::read_dir(source).expect("the example") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let text = example.moved(&fs::read_to_string(&path).expect("a text"));
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
                fs::write(example.folder.path(name), text).expect("a file");
            }
        }
        let [first, second] = commands();
        let [cd, prepare @ ..] = &*first else { panic!("no commands") };
        assert_eq!(*cd, "cd examples/backend");
        for command in prepare {
            let status = example.shell(command).status().await.expect("a shell");
            assert!(status.success(), "{command}");
        }
        example.key = example.add_key();
        for command in &second {
            example.terminals.push(example.terminal(command));
            if command.starts_with("redis-server") {
                example.until_listens("6379").await;
            }
        }
        for (port, _) in example.ports {
            example.until_listens(port).await;
        }
        example
    }

    /// The text with the ports of this example. The digits of a new port may contain an old one, so each port is marked
    /// first.
    fn moved(&self, text: &str) -> String {
        let mark = |old: &str| format!("\u{1}{}\u{1}", old.chars().rev().collect::<String>());
        let marked = self.ports.iter().fold(text.to_owned(), |text, (old, _)| text.replace(old, &mark(old)));
        self.ports.iter().fold(marked, |text, (old, new)| text.replace(&mark(old), &new.to_string()))
    }

    fn port(&self, named: &str) -> u16 {
        self.ports.iter().find(|(name, _)| *name == named).expect("a port of the example").1
    }

    fn url(&self, port: &str, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port(port))
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        let programs = Path::new(env!("CARGO_BIN_EXE_rejoin")).parent().expect("a folder");
        let path = std::env::var("PATH").expect("a path");
        shell.args(["-c", &self.moved(command)]).current_dir(&self.folder.0);
        shell.env("PATH", format!("{}:{path}:/usr/sbin", programs.display())).stdin(Stdio::null());
        shell
    }

    fn terminal(&self, command: &str) -> Terminal {
        // The output is shown if the test fails.
        println!("$ {command}");
        let said = fs::File::options().create(true).append(true).open(self.folder.path("said"));
        let said = said.expect("a file");
        let copy = said.try_clone().expect("a descriptor");
        let mut shell = self.shell(command);
        shell.stdout(said).stderr(copy).process_group(0).kill_on_drop(true);
        Terminal(shell.spawn().expect("a shell"))
    }

    async fn until_listens(&self, port: &str) {
        for _ in 0..1000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port(port))).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing listens on {port}: {}", self.said());
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path("said")).unwrap_or_default()
    }

    /// Adds a key to the file of the replicas with which the test looks at them.
    fn add_key(&self) -> String {
        let mut rejoin = std::process::Command::new(env!("CARGO_BIN_EXE_rejoin"));
        let made = rejoin.args(["key", "new", "--name", "test", "--admin"]).output().expect("it runs");
        let made = String::from_utf8(made.stdout).expect("UTF-8");
        let (key, table) = made.split_once('\n').expect("two lines");
        let file = self.folder.path("run/rejoin.toml");
        fs::write(&file, fs::read_to_string(&file).expect("a file") + table).expect("a file");
        key.to_owned()
    }

    async fn ask(&self, port: &str, path: &str) -> Value {
        let request = http_client().build().expect("a client").get(self.url(port, path));
        let answer = request.bearer_auth(&self.key).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    /// The connection on this transport, as `GET /connections` shows it.
    async fn connection(&self, transport: &str) -> Value {
        let page = self.ask("7070", "/connections").await;
        let found = page["connections"].as_array().expect("a list").iter();
        let mut found = found.filter(|it| it["transport"] == transport);
        found.next().unwrap_or_else(|| panic!("no {transport}: {page}")).clone()
    }

    /// Kills the replica that holds the page, and returns the number of its terminal.
    async fn kill_holder(&mut self, transport: &str) -> usize {
        let holder = self.connection(transport).await["replica"].clone();
        let is_first = self.ask(REPLICAS[0], "/stats").await["replica"] == holder;
        let port = REPLICAS[if is_first { 0 } else { 1 }];
        assert_eq!(self.ask(port, "/stats").await["replica"], holder);
        let number = commands()[1].iter().position(|line| line.contains(port)).expect("its command");
        self.terminals[number].kill();
        self.terminals[number].0.wait().await.expect("it ends");
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port(port))).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        number
    }

    async fn start_again(&mut self, number: usize) {
        let command = commands()[1][number];
        self.terminals[number] = self.terminal(command);
        let replica = REPLICAS.iter().find(|port| command.contains(**port));
        self.until_listens(replica.unwrap_or(&"3000")).await;
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.said());
        }
    }
}

/// Logs in, opens a page, and subscribes to the topic.
async fn visit(example: &Example, page: &Page, name: &str, path: &str) {
    page.open(&example.url("8080", "/")).await;
    page.session.fill("[name=name]", name).await.expect("a field");
    page.session.click("button").await.expect("a button");
    page.open(&example.url("8080", path)).await;
    subscribe(page, "subscribe", "mytopic").await;
}

async fn subscribe(page: &Page, button: &str, topic: &str) {
    page.session.fill("[name=topic]", topic).await.expect("a field");
    page.session.click(&format!("[name={button}]")).await.expect("a button");
}

/// Publishes as the page does.
async fn publish(page: &Page, topic: &str, text: &str) {
    let body = json!(text);
    let script =
        format!("return fetch('/ws/{topic}', {{method: 'POST', body: {body}}}).then(it => it.status)");
    assert_eq!(page.run(&script).await, 201, "{text}");
}

async fn until_shown(page: &Page, text: &str) {
    page.until(&format!("document.querySelector('ul').textContent.includes({})", json!(text))).await;
}

async fn shown(page: &Page) -> Vec<String> {
    let items = page.run("return [...document.querySelectorAll('li')].map(it => it.textContent)").await;
    serde_json::from_value(items).expect("texts")
}

/// Waits until the replicas know both connections with this many topics.
async fn until_read(example: &Example, count: u64) {
    for _ in 0..500 {
        let page = example.ask("7070", "/connections").await;
        let connections = page["connections"].as_array().expect("a list");
        if connections.len() == 2 && connections.iter().all(|it| it["topic_count"] == count) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not two connections with {count} topics: {}", example.ask("7070", "/connections").await);
}

#[tokio::test]
async fn the_example_of_a_backend_loses_nothing_while_its_replicas_are_killed() {
    if !login::has(&["node"], false) || !login::has_servers(&["redis-server", "nginx"]) {
        return;
    }
    in_browser(async |ann| {
        in_browser(async |bob| {
            let mut example = Example::start().await;
            visit(&example, ann, "ann", "/websocket").await;
            visit(&example, bob, "bob", "/eventsource").await;
            until_read(&example, 1).await;
            let mut expected = Vec::new();
            for transport in ["websocket", "sse"] {
                for time in ["before", "meanwhile", "after"] {
                    let killed =
                        if time == "meanwhile" { Some(example.kill_holder(transport).await) } else { None };
                    for (page, name) in [(ann, "ann"), (bob, "bob"), (ann, "ann")] {
                        let text = format!("{transport} {time} {}", expected.len());
                        publish(page, "mytopic", &text).await;
                        expected.push(format!("{name}: {text}"));
                    }
                    until_shown(ann, expected.last().expect("a message")).await;
                    until_shown(bob, expected.last().expect("a message")).await;
                    if let Some(number) = killed {
                        example.start_again(number).await;
                    }
                }
            }
            assert_eq!(shown(ann).await, expected);
            assert_eq!(shown(bob).await, expected);

            // Another user's topic and another user's connection.
            subscribe(ann, "subscribe", "users.bob").await;
            until_shown(ann, "not possible: users.bob (403)").await;
            subscribe(ann, "subscribe", "no topic").await;
            until_shown(ann, "not possible: no topic (400)").await;
            let of_bob = example.connection("sse").await["connection"].clone();
            let body = json!(json!({"connection": of_bob}).to_string());
            let script = format!("return fetch('/ws/mytopic/subscription', {{method: 'DELETE', body: {body}}}).then(it => it.status)");
            assert_eq!(ann.run(&script).await, StatusCode::PRECONDITION_FAILED.as_u16());
            let asked = http_client().build().expect("a client").request(Method::POST, example.url("8080", "/rejoin/who"));
            assert_eq!(asked.body("{}").send().await.expect("an answer").status(), StatusCode::NOT_FOUND);

            // After the `DELETE` there are no more messages. One of another topic comes after them.
            for (page, name) in [(ann, "ann"), (bob, "bob")] {
                subscribe(page, "unsubscribe", "mytopic").await;
                subscribe(page, "subscribe", &format!("users.{name}")).await;
            }
            for (page, name) in [(ann, "ann"), (bob, "bob")] {
                until_reads(&example, &format!("users.{name}")).await;
                publish(page, "mytopic", "no more").await;
                publish(page, &format!("users.{name}"), "the last").await;
                until_shown(page, "the last").await;
                assert!(!shown(page).await.concat().contains("no more"), "{name}: {:?}", shown(page).await);
            }

            // The sessions end with the application, and both pages learn it when they connect again.
            for number in 0..example.terminals.len() {
                let is_server = |name| commands()[1][number].contains(name);
                if is_server("app.mjs") || is_server("rejoin --config") {
                    example.terminals[number].kill();
                    example.terminals[number].0.wait().await.expect("it ends");
                    example.start_again(number).await;
                }
            }
            for page in [ann, bob] {
                until_logs_in(page).await;
            }
        })
        .await;
    })
    .await;
}

/// Waits until the page has gone to the login.
async fn until_logs_in(page: &Page) {
    for _ in 0..500 {
        // A page that is just leaving has no answer.
        if page.session.run("return location.pathname").await.is_ok_and(|path| path == "/") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the page does not log in: {:?}", shown(page).await);
}

/// Waits until one connection reads this topic and no other.
async fn until_reads(example: &Example, topic: &str) {
    for _ in 0..500 {
        let page = example.ask("7070", "/connections").await;
        if page["connections"].as_array().expect("a list").iter().any(|it| it["topics"] == json!([topic])) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no connection reads {topic} alone: {}", example.ask("7070", "/connections").await);
}
