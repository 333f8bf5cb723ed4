//! The commands and examples of the README and of `docs/clients.md` do what the text says.
//!
//! Every block runs as it is written, except for the address of the server. A block that cannot run is marked
//! `no_run`, and the test prints which ones are.

#[path = "documents/block.rs"]
mod block;
#[allow(dead_code, reason = "another suite uses the rest of this module")]
#[path = "cli/proxy.rs"]
mod breaking;
#[path = "documents/listener.rs"]
mod listener;
#[path = "documents/login.rs"]
mod login;
#[path = "browser/page.rs"]
mod page;
#[path = "browser/proxy.rs"]
mod proxy;
mod support;

use std::{fs, io::Write, path::Path, time::Duration};

use block::{Block, Promise};
use listener::{Listener, Process, Tab};
use page::in_browser;
use proxy::Proxy;
use support::{Server, program::Folder};

#[tokio::test]
async fn every_block_of_the_readme_runs_as_written() {
    run("README.md", 2).await;
}

#[tokio::test]
async fn every_block_for_clients_runs_as_written() {
    run("docs/clients.md", 0).await;
}

/// `tests/browser.rs` runs the example, by the commands of the document.
#[test]
fn the_document_of_the_backend_shows_the_files_of_its_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backend");
    let files = fs::read_dir(folder).expect("the example").map(|entry| entry.expect("an entry").path());
    let files = files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).expect("a text"));
    let files: Vec<_> = files.collect();
    let blocks = Block::all_of("docs/backend.md", include_str!("../docs/backend.md"));
    let shown: Vec<_> = blocks.iter().filter(|block| block.promise() != Promise::Commands).collect();
    for block in &shown {
        assert!(files.iter().any(|text| text.trim_end() == block.text), "{block} is no file of the example");
    }
    assert_eq!(shown.len(), 6);
}

/// Runs the blocks of a document. `marked` of them are marked `no_run`.
async fn run(name: &'static str, marked: usize) {
    for program in ["curl", "python3", "node"] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {program} is not installed");
            return;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let blocks = Block::all_of(name, &fs::read_to_string(path).expect("the document is there"));
    let server = Server::start().await;
    let mut not_run = 0;
    for block in &blocks {
        // The output is shown if the test fails.
        println!("{block}");
        match block.promise() {
            Promise::Nothing => {
                // Directly to standard error, because the output of a test that passes is hidden.
                let _ = writeln!(std::io::stderr(), "NOT RUN {block}: it is marked no_run");
                not_run += 1;
            }
            Promise::Commands => {
                let folder = Folder::new();
                for command in block.text.lines() {
                    run_command(block, command, &server, &folder).await;
                }
            }
            Promise::IsFile => {}
            Promise::Publishes => publish_by(block).await,
            _ if block.example().is_some_and(|program| is_missing(&program)) => {}
            promise => {
                // The server retains few messages, so a reader easily misses some for good.
                let server = Server::with(|config| config.retain_messages = KEPT).await;
                let proxy = Proxy::before(server.addr).await;
                let trial = Trial {
                    block,
                    server: &server,
                    proxy: &proxy,
                    reconnects: promise == Promise::Reconnects,
                };
                if block.is_of_a_page() {
                    in_browser(async |page| trial.run(Tab::open(page, block, &proxy).await).await).await;
                } else {
                    let folder = Folder::new();
                    trial.run(Process::start(block, &block.text, &proxy.http(""), &folder.0)).await;
                }
                server.stop().await;
            }
        }
    }
    assert_eq!(not_run, marked, "{name}: another number of blocks is marked no_run");
    assert!(blocks.len() > not_run, "{name} has no blocks");
    server.stop().await;
}

#[tokio::test]
async fn the_example_of_publishing_prints_the_ids_of_its_messages() {
    let program = block::compiled("publish");
    if is_missing(&program) {
        return;
    }
    let server = Server::start().await;
    let (code, printed) = Process::example(&program, &server.http("")).end().await;
    assert_eq!(code, Some(0), "{printed}");
    let url = server.http("/topics/demo?after=0");
    let answer = support::http_client().build().expect("a client").get(url).send().await.expect("an answer");
    let page = answer.text().await.expect("a text");
    let ids: Vec<_> = printed.lines().collect();
    assert!(
        ids.len() == 3 && ids.iter().all(|id| page.contains(&format!("\"id\":\"{id}\""))),
        "{printed}: {page}"
    );
    server.stop().await;
}

/// Runs a block that publishes, behind a proxy that loses the first answer.
async fn publish_by(block: &Block) {
    let server = Server::start().await;
    let proxy = breaking::Proxy::cutting(server.addr, |number| if number == 0 { 20 } else { u64::MAX }).await;
    let folder = Folder::new();
    let (code, printed) = Process::start(block, &block.text, &proxy.url(), &folder.0).end().await;
    assert_eq!(code, Some(0), "{block}: {printed}");
    let url = server.http("/topics/demo?after=0");
    let answer = support::http_client().build().expect("a client").get(url).send().await.expect("an answer");
    let page: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(1), "{block}: {page}");
    let message = &page["messages"][0];
    assert_eq!(message["data"], serde_json::json!({"total": 12}), "{block}");
    assert_eq!(message["id"].as_str(), Some(printed.trim()), "{block}");
    server.stop().await;
}

/// `cargo test` compiles the examples. A run of single tests does not.
fn is_missing(program: &Path) -> bool {
    let is_missing = !program.exists();
    if is_missing {
        assert!(std::env::var_os("CI").is_none(), "{}: cargo build --examples makes it", program.display());
        let _ = writeln!(std::io::stderr(), "SKIPPED {}: cargo build --examples makes it", program.display());
    }
    is_missing
}

/// How many messages of a topic the server retains, so that a reader can miss some.
const KEPT: usize = 3;

/// Runs one command to its end, or until it has printed the published message.
async fn run_command(block: &Block, command: &str, server: &Server, folder: &Folder) {
    let mut process = Process::start(block, command, &server.http(""), &folder.0);
    if command.contains("curl -N") || command.contains("rejoin sub") {
        publish_until_heard(&process, server).await;
        return;
    }
    let (code, printed) = process.end().await;
    assert_eq!(code, Some(0), "{block}: {command}: {printed}");
    assert!(!printed.contains("\"code\""), "{block}: {command} was refused: {printed}");
    let shows =
        !command.contains("curl") || ["\"id\":", "\"messages\":"].iter().any(|it| printed.contains(it));
    assert!(shows, "{block}: {command}: {printed}");
}

/// One block, the server that it reads, and the proxy between them.
struct Trial<'a> {
    block: &'a Block,
    server: &'a Server,
    proxy: &'a Proxy,
    /// True if the document says that this block reconnects by itself.
    reconnects: bool,
}

impl Trial<'_> {
    /// Lets the block receive a message, miss one, and miss more than is retained.
    async fn run(&self, listener: impl Listener) {
        publish_until_heard(&listener, self.server).await;
        if !self.reconnects {
            return;
        }
        self.publish("<li>first").await;
        listener.until("<li>first").await;
        let before = listener.printed().await;

        self.proxy.cut();
        self.publish("<li>meanwhile").await;
        self.proxy.mend();
        listener.until("<li>meanwhile").await;
        let after = listener.printed().await;
        assert!(!after[before.len()..].contains("gap"), "{}: a gap without cause: {after}", self.block);

        self.proxy.cut();
        let missed = (1..=2 * KEPT).map(|number| format!("<li>missed {number}."));
        let missed: Vec<_> = missed.collect();
        for payload in &missed {
            self.publish(payload).await;
        }
        self.proxy.mend();
        listener.until(&missed[2 * KEPT - 1]).await;
        let printed = listener.printed().await;
        let (gone, kept) = missed.split_at(KEPT);
        let since = &printed[after.len()..];
        let gap = since.find("gap").unwrap_or_else(|| panic!("{}: no gap: {printed}", self.block));
        let is_told_before = since.find(&kept[0]).is_some_and(|at| gap < at);
        assert!(is_told_before || self.block.prints_whole_answers(), "{}: {printed}", self.block);
        for payload in kept.iter().map(String::as_str).chain(["<li>first", "<li>meanwhile"]) {
            assert_eq!(printed.matches(payload).count(), 1, "{}: {payload}: {printed}", self.block);
        }
        assert!(!gone.iter().any(|payload| printed.contains(payload)), "{}: {printed}", self.block);
    }

    async fn publish(&self, payload: &str) {
        publish(self.server, payload).await;
    }
}

/// Publishes until the listener has received a message, because it is unknown when it begins to listen.
async fn publish_until_heard(listener: &impl Listener, server: &Server) {
    let publishing = async {
        let mut again = tokio::time::interval(Duration::from_millis(200));
        loop {
            again.tick().await;
            publish(server, "<li>is it there?").await;
        }
    };
    tokio::select! {
        () = listener.until("<li>is it there?") => {}
        never = publishing => never,
    }
}

/// Publishes to the topics of all blocks.
async fn publish(server: &Server, payload: &str) {
    for topic in ["demo", "news"] {
        let url = server.http(&format!("/topics/{topic}"));
        let request = support::http_client().build().expect("a client").post(url).body(payload.to_owned());
        assert_eq!(request.send().await.expect("an answer").status(), 201);
    }
}
