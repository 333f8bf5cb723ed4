//! A test's own Redis server, on a free port of the loopback, with ways to break it.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// How long Redis may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The Redis to start: `REDIS_SERVER` names another version, or Valkey.
pub fn program() -> String {
    env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port()
}

/// Sends one command to the server at this port, and returns its raw answer.
fn say(port: u16, words: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    // Redis answers QUIT and closes the connection, so that the answer has an end.
    command += "*1\r\n$4\r\nQUIT\r\n";
    stream.write_all(command.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Some(answer.strip_suffix("+OK\r\n").map_or(answer.clone(), str::to_owned))
}

/// A Redis server; it is killed when this is dropped.
pub struct Redis {
    pub port: u16,
    folder: PathBuf,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a server with these settings, as the command line takes them. It saves nothing by default.
    ///
    /// Returns `None` if the program is missing outside of CI; then it prints that the test was skipped.
    pub fn start(settings: &[&str]) -> Option<Self> {
        if Command::new(program()).arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(env::var_os("CI").is_none(), "{} is not installed", program());
            eprintln!("SKIPPED: {} is not installed", program());
            return None;
        }
        let folder = env::temp_dir().join(format!("rejoin-redis-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).expect("a folder of its own");
        let port = free_port();
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut redis = Self { port, folder, settings, child: None };
        redis.start_again();
        Some(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The id of this run; each start has another one.
    pub fn run_id(&self) -> String {
        let info = self.say(&["INFO", "server"]);
        let id = info.split_once("run_id:").and_then(|(_, rest)| rest.lines().next());
        id.unwrap_or_else(|| panic!("no run_id: {info}")).to_owned()
    }

    /// A number of `INFO stats`.
    pub fn stat(&self, name: &str) -> usize {
        let info = self.say(&["INFO", "stats"]);
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {info}"))
    }

    /// Waits until the answer to a command contains this text.
    pub async fn until_says(&self, words: &[&str], what: &str) {
        let began = Instant::now();
        // A copy that loads the data of its primary may give no answer.
        let mut answer = self.try_say(words);
        while !answer.as_ref().is_some_and(|answer| answer.contains(what)) {
            assert!(began.elapsed() < PATIENCE, "{words:?} never says {what}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            answer = self.try_say(words);
        }
    }

    /// Starts the server again after a kill, with the files on its disk.
    pub fn start_again(&mut self) {
        let port = self.port.to_string();
        let child = Command::new(program())
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&self.folder)
            .args(&self.settings)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        self.child = Some(child);
        let began = Instant::now();
        while self.try_say(&["PING"]).is_none_or(|answer| !answer.starts_with("+PONG")) {
            assert!(began.elapsed() < PATIENCE, "{} does not answer", program());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server, like a power cut.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it has ended");
        }
    }

    /// Stops the process without ending it, until [`go_on`](Self::go_on).
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("it takes signals");
    }

    /// Sends one command, and returns the raw answer.
    ///
    /// # Panics
    /// If Redis refuses the command.
    pub fn say(&self, words: &[&str]) -> String {
        let answer = self.try_say(words).unwrap_or_else(|| panic!("{words:?}: no answer"));
        assert!(!answer.starts_with('-'), "{words:?}: {answer}");
        answer
    }

    /// Sends one command, and returns the answer, even if it is an error.
    pub fn answer(&self, words: &[&str]) -> String {
        self.try_say(words).unwrap_or_else(|| panic!("{words:?}: no answer"))
    }

    /// Closes all connections of a type, and returns how many there were.
    pub fn kill_clients(&self, kind: &str) -> usize {
        let answer = self.say(&["CLIENT", "KILL", "TYPE", kind]);
        let count = answer.trim_end().strip_prefix(':').and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("{answer:?} is no number"))
    }

    /// Closes the connections that read the feed, and returns how many there were.
    pub fn kill_links(&self) -> usize {
        let clients = self.say(&["CLIENT", "LIST"]);
        let links = clients.lines().filter(|client| client.contains(" cmd=xread "));
        let ids =
            links.filter_map(|client| client.trim_start_matches(|c: char| c != 'i').strip_prefix("id="));
        let ids: Vec<_> = ids.filter_map(|id| id.split(' ').next()).collect();
        // A connection that has ended by itself meanwhile does not count.
        ids.iter().filter(|id| self.say(&["CLIENT", "KILL", "ID", id]).starts_with(":1")).count()
    }

    fn try_say(&self, words: &[&str]) -> Option<String> {
        say(self.port, words)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
