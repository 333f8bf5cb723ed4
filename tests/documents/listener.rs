//! Runs a block, and returns what it prints: in a process, or in a tab of a browser.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{
    block::{Block, at},
    page::Page,
    proxy::Proxy,
    support::login,
};

/// A client that was cut off reconnects within some seconds. This turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(30);

pub trait Listener {
    /// Resolves once the block has printed this.
    async fn until(&self, text: &str);

    /// Everything that it has printed.
    async fn printed(&self) -> String;
}

/// A process; it ends when this is dropped.
pub struct Process {
    child: Child,
    name: String,
    printed: watch::Receiver<String>,
    reading: JoinSet<()>,
}

impl Process {
    /// Runs `text`, which is a block or a line of it, in this folder against the server at `url`.
    pub fn start(block: &Block, text: &str, url: &str, folder: &Path) -> Self {
        if let Some(example) = block.example() {
            return Self::example(&example, url);
        }
        let rejoin = Path::new(env!("CARGO_BIN_EXE_rejoin")).parent().expect("it lies in a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [rejoin.to_owned()].into_iter().chain(std::env::split_paths(&path));
        let (program, options) = block.interpreter().split_first().expect("a program");
        let mut command = Command::new(program);
        command
            .args(options)
            .arg(at(text, url))
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path).expect("a path"))
            // Without a URL the program uses this address, where the document uses the default one.
            .env("REJOIN_URL", url);
        Self::run(command, block.to_string())
    }

    /// Runs a compiled example against the server at `url`.
    pub fn example(program: &Path, url: &str) -> Self {
        let mut command = Command::new(program);
        command.arg(url);
        Self::run(command, program.display().to_string())
    }

    /// Runs Node where it finds the packages of the example.
    pub fn node(arguments: &[&str]) -> Self {
        let mut command = Command::new("node");
        command.args(arguments).current_dir(login::example());
        Self::run(command, format!("node {arguments:?}"))
    }

    fn run(mut command: Command, name: String) -> Self {
        let mut child = command
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // In its own process group, so that everything that a shell starts ends with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: cannot be started: {error}"));
        let (heard, printed) = watch::channel(String::new());
        let mut reading = JoinSet::new();
        reading.spawn(read(child.stdout.take().expect("a pipe"), heard.clone()));
        reading.spawn(read(child.stderr.take().expect("a pipe"), heard));
        Self { child, name, printed, reading }
    }

    /// Waits until the process ends.
    pub async fn end(&mut self) -> (Option<i32>, String) {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{}: it does not end", self.name)).expect("it ends");
        while self.reading.join_next().await.is_some() {}
        (status.code(), self.printed.borrow().clone())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32));
        if let Some(group) = id {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn read(mut from: impl AsyncRead + Unpin, to: watch::Sender<String>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        to.send_modify(|printed| *printed += &String::from_utf8_lossy(&bytes[..count]));
    }
}

impl Listener for Process {
    async fn until(&self, text: &str) {
        let mut printed = self.printed.clone();
        let heard = timeout(PATIENCE, printed.wait_for(|printed| printed.contains(text))).await;
        let is_heard = matches!(heard, Ok(Ok(_)));
        assert!(is_heard, "{}: {text:?} is not in {}", self.name, *self.printed.borrow());
    }

    async fn printed(&self) -> String {
        self.printed.borrow().clone()
    }
}

/// A page of the server in a browser.
pub struct Tab<'a>(&'a Page);

/// Records what the block prints, and stands in for htmx: it connects, swaps messages into the page, and
/// reports what htmx would fetch.
const SURROUNDINGS: &str = r#"
    window.printed = '';
    const text = it => typeof it === 'object' && !(it instanceof Error) ? JSON.stringify(it) : it;
    console.log = (...words) => { printed += words.map(text).join(' ') + '\n'; };
    window.run = block => {
        const AsyncFunction = (async () => {}).constructor;
        new AsyncFunction(block)().catch(error => console.log('it failed:', error));
    };
    window.connectAll = () => {
        for (const section of document.querySelectorAll('[sse-connect]')) {
            const source = new EventSource(section.getAttribute('sse-connect'), {withCredentials: true});
            for (const place of section.querySelectorAll('[sse-swap]')) {
                const where = place.getAttribute('hx-swap');
                source.addEventListener(place.getAttribute('sse-swap'), event => {
                    place.insertAdjacentHTML(where, event.data);
                    console.log(event.data);
                });
            }
            for (const place of section.querySelectorAll('[hx-trigger^="sse:"]')) {
                const target = document.querySelector(place.getAttribute('hx-target'));
                source.addEventListener(place.getAttribute('hx-trigger').slice('sse:'.length), () => {
                    console.log('gap: GET', place.getAttribute('hx-get'), 'into', target.id);
                });
            }
        }
    };
"#;

impl<'a> Tab<'a> {
    pub async fn open(page: &'a Page, block: &Block, proxy: &Proxy) -> Self {
        // A page of the same origin without a policy of its own: the console takes no text as markup.
        page.open(&proxy.http("/openapi.json")).await;
        page.run(SURROUNDINGS).await;
        let text = serde_json::to_string(&at(&block.text, &proxy.http(""))).expect("a string");
        if block.is_markup() {
            page.run(&format!("document.body.insertAdjacentHTML('beforeend', {text}); connectAll()")).await;
        } else {
            page.run(&format!("run({text})")).await;
        }
        Self(page)
    }
}

impl Listener for Tab<'_> {
    async fn until(&self, text: &str) {
        let text = serde_json::to_string(text).expect("a string");
        self.0.until(&format!("printed.includes({text})")).await;
    }

    async fn printed(&self) -> String {
        self.0.run("return printed").await.as_str().expect("text").to_owned()
    }
}
