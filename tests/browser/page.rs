//! A page in Chromium, driven over WebDriver by chromedriver.

mod driver;

use std::{
    env, fs,
    io::Write,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use self::driver::Session;

/// A browser starts slowly on a busy machine, and waits up to three seconds before it reconnects.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a page waits for a condition. After that it reports what it has received instead.
const HEARD_WITHIN_MS: u64 = 20_000;

/// Opens a browser for `test` and closes it afterwards, however the test ends.
pub async fn in_browser(test: impl AsyncFnOnce(&Page)) {
    let Some(programs) = Programs::find() else {
        return skipped("chromium or chromedriver is not installed");
    };
    let scratch = Scratch::new();
    let (_driver, page) =
        timeout(PATIENCE, programs.start(&scratch)).await.expect("the browser starts in time");
    let outcome = timeout(PATIENCE, AssertUnwindSafe(test(&page)).catch_unwind()).await;
    let closed = timeout(PATIENCE, page.session.close()).await;
    if let Err(panic) = outcome.expect("the test is done in time") {
        resume_unwind(panic);
    }
    closed.expect("the browser closes in time").expect("the browser closes");
}

/// A directory that is empty at first and removed at the end. Its name is short, because a browser makes
/// sockets in it.
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

    /// The driver lives as long as the returned child.
    async fn start(&self, scratch: &Scratch) -> (Child, Page) {
        let (driver, port) = self.drive(scratch).await;
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
            // With a pipe the browser ends when its driver ends, even if that is killed.
            "--remote-debugging-pipe",
        ];
        let capabilities = json!({
            // The certificates of tests are signed by nobody.
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"binary": self.browser, "args": arguments},
            "timeouts": {"script": PATIENCE.as_millis() as u64},
        });
        let session = Session::start(port, PATIENCE, capabilities).await;
        (driver, Page { session })
    }

    /// Starts the driver and learns its port. The driver takes a free port of IPv6, and ends if the same port
    /// of IPv4 is taken, so it is started again.
    async fn drive(&self, scratch: &Scratch) -> (Child, u16) {
        for _ in 0..10 {
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
            while let Some(line) = said.next_line().await.expect("chromedriver speaks text") {
                let named = line.split_once("successfully on port ");
                if let Some(port) = named.and_then(|(_, port)| port.trim_end_matches('.').parse().ok()) {
                    return (driver, port);
                }
            }
        }
        panic!("chromedriver finds no free port");
    }
}

/// A page that records what it receives, in order.
pub struct Page {
    pub session: Session,
}

/// The code that runs in the page.
const PAGE: &str = include_str!("page.js");

impl Page {
    pub async fn open(&self, url: &str) {
        self.session.open(url).await.expect("the page opens");
        self.prepare().await;
    }

    /// Gives a page that was loaded the functions that the tests call.
    pub async fn prepare(&self) {
        self.run(PAGE).await;
    }

    /// Runs a script in the page. If it returns a promise, this awaits it.
    pub async fn run(&self, script: &str) -> Value {
        self.session.run(script).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until the condition is true, and returns what the page has received by then.
    pub async fn until(&self, condition: &str) -> Value {
        self.run(&format!("return until(() => {condition}, {HEARD_WITHIN_MS})")).await
    }
}

/// Fails in CI, where every test must run. Elsewhere it prints that the test was skipped, directly to
/// standard error, because the output of a test that passes is hidden.
fn skipped(why: &str) {
    assert!(env::var_os("CI").is_none(), "{why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", module_path!());
}
