//! What a page in a real browser sees: Chromium, driven over WebDriver.

mod support;

use std::{
    env, fs,
    io::Write,
    net::SocketAddr,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator};
use futures_util::FutureExt;
use hyper_util::client::legacy::connect::HttpConnector;
use rejoin::Config;
use serde_json::{Value, json};
use support::Server;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// A browser starts slowly on a busy machine, and waits up to three seconds before it comes back.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a page waits for comes within this, or the page tells what it has heard instead.
const HEARD_WITHIN_MS: u64 = 20_000;

#[tokio::test]
async fn an_event_source_on_the_servers_own_page_receives_what_is_posted() {
    in_browser(async |page| {
        let server = Server::start().await;
        page.open(&server.http("/")).await;

        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let first = publish(server.addr, "demo", "from the backend").await;
        let second = page.run("return post('/topics/demo', 'from the page')").await;
        let heard = page.until("messages().length === 2").await;

        assert_eq!(second["status"], 201, "{second}");
        assert_eq!(
            messages(&heard),
            [
                (first, "from the backend".to_owned()),
                (text(&second["answer"]["id"]), "from the page".to_owned())
            ]
        );
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_source_that_was_cut_comes_back_by_itself_to_exactly_what_it_missed() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let mut expected = vec![published(server.addr, "before").await];
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        for n in 1..=5 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        page.until("messages().length >= 6").await;
        // What came twice would come before this one.
        expected.push(published(server.addr, "after").await);
        let heard = page.until("messages().some(it => it.data === 'after')").await;

        assert_eq!(messages(&heard), expected);
        assert!(!heard.to_string().contains("rejoin.gap"), "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_source_that_was_cut_before_its_first_message_misses_nothing() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        published(server.addr, "long ago").await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        let first = published(server.addr, "the first").await;
        proxy.mend();
        let heard = page.until("messages().length > 0").await;

        assert_eq!(messages(&heard), [first]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_websocket_that_returns_with_its_cursor_receives_exactly_what_it_missed() {
    in_browser(async |page| {
        let server = Server::start().await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("connect('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'open')").await;
        let mut expected = vec![published(server.addr, "before").await];
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'close')").await;
        for n in 1..=5 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        page.run("connect('/topics/demo?after=' + encodeURIComponent(cursor))").await;
        page.until("messages().length >= 6").await;
        expected.push(published(server.addr, "after").await);
        let heard = page.until("messages().some(it => it.data === 'after')").await;

        assert_eq!(messages(&heard), expected);
        assert!(heard.as_array().unwrap().iter().all(|it| it["type"] != "gap"), "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_can_neither_listen_nor_publish() {
    in_browser(async |page| {
        let server = Server::start().await;
        let secret = published(server.addr, "secret").await;
        let stream = server.http("/topics/demo?after=0");
        let topic = server.http("/topics/demo");
        let socket = server.ws("/topics/demo?after=0");
        let (_serving, other_port) = serve_empty_page().await;

        // Another site, and another origin of the same site.
        for foreign in [format!("http://localhost:{other_port}/"), format!("http://127.0.0.1:{other_port}/")]
        {
            page.open(&foreign).await;

            page.run(&format!("listen('{stream}')")).await;
            let heard = page.until("heard.some(it => it.type === 'error')").await;
            assert_eq!(heard, json!([{"type": "error", "state": "closed"}]), "{foreign}");

            page.run(&format!("heard.length = 0; connect('{socket}')")).await;
            let heard = page.until("heard.some(it => it.type === 'close')").await;
            assert_eq!(messages(&heard), [], "{foreign}");

            let read = page.run(&format!("return read('{topic}?after=0&wait=0')")).await;
            assert_eq!(read, "failed", "{foreign}");
            // A request as any form sends it, one whose answer the page gives up to see, and one that asks first.
            for options in ["{}", "{mode: 'no-cors'}", "{headers: {'Content-Type': 'application/json'}}"] {
                let posted = page.run(&format!("return post('{topic}', '\"intruder\"', {options})")).await;
                assert_ne!(posted["status"], 201, "{foreign} {options}");
            }
        }
        assert_eq!(retained(server.addr, "demo").await, [secret.clone()]);

        // The same code does all this on a page of the server's own.
        page.open(&server.http("/")).await;
        page.run(&format!("listen('{stream}')")).await;
        let heard = page.until("messages().length > 0").await;
        assert_eq!(messages(&heard), [secret]);
        page.run(&format!("heard.length = 0; connect('{socket}')")).await;
        page.until("messages().length > 0").await;
        let read = page.run(&format!("return read('{topic}?after=0&wait=0')")).await;
        assert_eq!(read, 200);
        let posted = page.run(&format!("return post('{topic}', 'welcome')")).await;
        assert_eq!(posted["status"], 201, "{posted}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn page_code_hears_of_a_gap_before_what_follows_it() {
    in_browser(async |page| {
        let server = Server::with(|config: &mut Config| config.retain_messages = 3).await;
        let proxy = Proxy::before(server.addr).await;
        page.open(&proxy.http("/")).await;
        page.run("listen('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'rejoin.open')").await;
        let before = published(server.addr, "before").await;
        page.until("messages().length === 1").await;

        proxy.cut();
        page.until("heard.some(it => it.type === 'error')").await;
        let mut expected = Vec::new();
        for n in 1..=8 {
            expected.push(published(server.addr, &format!("meanwhile {n}")).await);
        }
        proxy.mend();
        let heard = page.until("messages().length >= 4").await;

        let kept = &expected[5..];
        assert_eq!(messages(&heard)[1..], *kept);
        let told = |it: &Value| it["type"] == "rejoin.gap" || it["type"] == "message";
        let told: Vec<_> = heard.as_array().unwrap().iter().filter(|it| told(it)).skip(1).collect();
        let gap = &told[0]["frame"];
        assert_eq!(told[0]["type"], "rejoin.gap", "{heard}");
        assert_eq!(
            (&gap["type"], &gap["topic"], &gap["reason"]),
            (&json!("gap"), &json!("demo"), &json!("retention"))
        );
        assert_eq!((&gap["after"], &gap["next"]), (&json!(before.0), &json!(kept[0].0)));
        assert_eq!(told.iter().filter(|it| it["type"] == "rejoin.gap").count(), 1, "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_servers_page_shows_what_is_published_as_text_on_both_sides() {
    in_browser(async |page| {
        let server = Server::start().await;
        page.open(&server.http("/")).await;
        page.until("document.querySelectorAll('[data-state=live]').length === 2").await;

        let markup = "<img src=x onerror='document.title = \"run\"'>";
        let body = page.client.find(Locator::Css("#publish-data")).await.unwrap();
        body.clear().await.unwrap();
        body.send_keys(markup).await.unwrap();
        page.client.find(Locator::Css("#publish button")).await.unwrap().click().await.unwrap();
        let id = page
            .until("document.querySelectorAll('.message').length === 2 && document.querySelector('.message .id').textContent")
            .await;

        let shown = page.run("return [...document.querySelectorAll('.message .data')].map(it => it.textContent)").await;
        assert_eq!(shown, json!([markup, markup]));
        assert_eq!(retained(server.addr, "demo").await[0].1, markup, "{id}");
        let images = page.run("return document.querySelectorAll('.message img').length").await;
        assert_eq!(images, 0);
        server.stop().await;
    })
    .await;
}

/// Opens a browser for `test` and closes it afterwards, however the test ends.
async fn in_browser(test: impl AsyncFnOnce(&Page)) {
    let Some(programs) = Programs::find() else {
        return skipped("chromium or chromedriver is not installed");
    };
    let scratch = Scratch::new();
    let (_driver, page) =
        timeout(PATIENCE, programs.start(&scratch)).await.expect("the browser starts in time");
    let outcome = timeout(PATIENCE, AssertUnwindSafe(test(&page)).catch_unwind()).await;
    let closed = timeout(PATIENCE, page.client.close()).await;
    if let Err(panic) = outcome.expect("the test is done in time") {
        resume_unwind(panic);
    }
    closed.expect("the browser closes in time").expect("the browser closes");
}

/// A directory that is empty at first and gone afterwards. Under a short name: a browser makes sockets in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("rejoin-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory of its own");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Programs {
    browser: PathBuf,
    driver: PathBuf,
}

impl Programs {
    fn find() -> Option<Self> {
        let path = env::var_os("PATH")?;
        let find = |names: &[&str]| {
            env::split_paths(&path)
                .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
                .find(|file| file.is_file())
        };
        Some(Self {
            browser: find(&["chromium", "chromium-browser", "google-chrome"])?,
            driver: find(&["chromedriver"])?,
        })
    }

    /// The driver lives as long as the child that comes with the page.
    async fn start(&self, scratch: &Scratch) -> (Child, Page) {
        let mut driver = Command::new(&self.driver)
            .arg("--port=0")
            .env("TMPDIR", &scratch.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let mut said = BufReader::new(driver.stdout.take().expect("a piped stdout")).lines();
        let port: u16 = loop {
            let line = said.next_line().await.expect("readable").expect("chromedriver names its port");
            let named = line
                .rsplit_once("successfully on port ")
                .and_then(|(_, port)| port.trim_end_matches('.').parse().ok());
            if let Some(port) = named {
                break port;
            }
        };
        let profile = format!("--user-data-dir={}", scratch.0.join("profile").display());
        let arguments = [
            &profile,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            // With a pipe the browser ends when its driver does, also when that is killed.
            "--remote-debugging-pipe",
        ];
        let capabilities = json!({
            "goog:chromeOptions": {"binary": self.browser, "args": arguments},
            "timeouts": {"script": PATIENCE.as_millis() as u64},
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("an object, as written above") };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        (driver, Page { client })
    }
}

/// A page that notes what it hears, in the order in which it hears it.
struct Page {
    client: Client,
}

/// What page code does, as a page would do it.
const PAGE: &str = r#"
window.heard = [];
window.cursor = null;
const waiting = new Set();
const note = it => { heard.push(it); waiting.forEach(check => check()); };

window.messages = () => heard.filter(it => it.type === 'message');

window.listen = url => {
    const source = new EventSource(url);
    const state = () => ['connecting', 'open', 'closed'][source.readyState];
    source.onerror = () => note({type: 'error', state: state()});
    source.onmessage = it => note({type: 'message', id: it.lastEventId, data: it.data});
    for (const type of ['rejoin.open', 'rejoin.gap', 'rejoin.closing']) {
        source.addEventListener(type, it => note({type, id: it.lastEventId, frame: JSON.parse(it.data)}));
    }
};

window.connect = url => {
    const socket = new WebSocket(new URL(url, location.href.replace('http', 'ws')));
    socket.onclose = it => note({type: 'close', code: it.code});
    socket.onmessage = it => {
        const frame = JSON.parse(it.data);
        cursor = frame.id ?? frame.cursor;
        note(frame);
    };
};

window.post = async (url, body, options) => {
    try {
        const response = await fetch(url, {method: 'POST', body, ...options});
        return {status: response.status, answer: response.status === 201 ? await response.json() : null};
    } catch {
        return {status: 'failed'};
    }
};

window.read = url => fetch(url).then(response => response.status, () => 'failed');

window.until = (condition, within) => new Promise((resolve, reject) => {
    const late = () => reject(new Error('heard only ' + JSON.stringify(heard)));
    const timer = setTimeout(late, within);
    const check = () => {
        if (!condition()) return;
        clearTimeout(timer);
        clearInterval(looking);
        waiting.delete(check);
        resolve(heard);
    };
    // What changes in the page is not noted, so it is looked at as well.
    const looking = setInterval(check, 20);
    waiting.add(check);
    check();
});
"#;

impl Page {
    async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
        self.run(PAGE).await;
    }

    /// Runs a script in the page; a promise that it returns is awaited.
    async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// What the page has heard by the time that the condition is true.
    async fn until(&self, condition: &str) -> Value {
        self.run(&format!("return until(() => {condition}, {HEARD_WITHIN_MS})")).await
    }
}

/// The ids and the data of what a page heard.
fn messages(heard: &Value) -> Vec<(String, String)> {
    let heard = heard.as_array().expect("a list").iter();
    heard.filter(|it| it["type"] == "message").map(|it| (text(&it["id"]), text(&it["data"]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string, not {value}")).to_owned()
}

/// Publishes past every proxy, as a backend does, and returns the id.
async fn publish(server: SocketAddr, topic: &str, data: &str) -> String {
    let request =
        reqwest::Client::new().post(format!("http://{server}/topics/{topic}")).body(data.to_owned());
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let answer: Value = response.json().await.expect("JSON");
    text(&answer["id"])
}

/// Publishes to `demo` and returns what its readers have to hear of it.
async fn published(server: SocketAddr, data: &str) -> (String, String) {
    (publish(server, "demo", data).await, data.to_owned())
}

async fn retained(server: SocketAddr, topic: &str) -> Vec<(String, String)> {
    let response =
        reqwest::get(format!("http://{server}/topics/{topic}?after=0&wait=0")).await.expect("an answer");
    let answer: Value = response.json().await.expect("JSON");
    messages(&answer["messages"])
}

/// Stands between a browser and the server, so that the way between them can be cut.
struct Proxy {
    addr: SocketAddr,
    whole: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let (whole, watching) = watch::channel(true);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut passing = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                passing.spawn(pass(client, server, watching.clone()));
            }
        });
        Self { addr, whole, _accepting: accepting }
    }

    fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Ends every connection, and every new one at once.
    fn cut(&self) {
        self.whole.send_replace(false);
    }

    fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut whole: watch::Receiver<bool>) {
    let forwarded = async {
        let mut upstream = TcpStream::connect(server).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    let cut = tokio::select! {
        // The cut is looked at first: a connection that comes while it lasts sends nothing.
        biased;
        _ = whole.wait_for(|whole| !whole) => true,
        _ = forwarded => false,
    };
    if cut {
        let _ = client.set_zero_linger();
    }
}

/// A page that somebody else serves; it lives as long as the set.
async fn serve_empty_page() -> (JoinSet<()>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound address").port();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut answering = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.expect("a connection");
            answering.spawn(async move {
                let _ = client.read(&mut [0; 8192]).await;
                let page = "<!doctype html><title>elsewhere</title>";
                let head =
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: ";
                let _ = client.write_all(format!("{head}{}\r\n\r\n{page}", page.len()).as_bytes()).await;
            });
        }
    });
    (serving, port)
}

/// Fails where a test must run, and elsewhere says aloud that it did not; past the capture, which hides what
/// tests that pass print.
fn skipped(why: &str) {
    assert!(env::var_os("CI").is_none(), "{why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", module_path!());
}
