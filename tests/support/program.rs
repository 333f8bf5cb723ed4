//! The program as a process, which a test can end or kill.

use std::{net::SocketAddr, path::PathBuf, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

use super::Server;

/// A test's own folder, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("rejoin-{:032x}", rand::random::<u128>()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server; it is killed when this is dropped.
pub struct Program {
    pub server: Server,
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: ChildStderr,
    /// The log so far, as far as a test has waited for it.
    log: String,
}

/// The address in a URL of this scheme.
pub fn address(url: &str, scheme: &str) -> SocketAddr {
    let address = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
    address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{url} has another scheme"))
}

/// The exit code, the output and the log.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// The rest of standard output.
    pub out: String,
    pub log: String,
}

impl Program {
    /// Starts the program on a free port, and waits until it logs the port.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_rejoin")), arguments).await
    }

    /// The same, under a limit that the shell sets.
    pub async fn under(limit: &str, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("{limit}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_rejoin")]);
        Self::run(shell, arguments).await
    }

    async fn run(mut command: Command, arguments: &[&str]) -> Self {
        let usual = [["--listen", "127.0.0.1:0"], ["--drain-grace", "2s"]];
        let usual = usual.into_iter().filter(|[flag, _]| !arguments.contains(flag)).flatten();
        let mut child = command
            .env_clear()
            .args(usual)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let err = child.stderr.take().expect("a pipe");
        let server = Server::elsewhere(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut program = Self { server, child, out, err, log: String::new() };
        program.server.addr = program.listening().await;
        program
    }

    /// The address that it logs once it listens.
    async fn listening(&mut self) -> SocketAddr {
        loop {
            let whole = self.log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let line = whole.lines().find(|line| line.contains("listening") && line.contains("address"));
            if let Some((_, address)) = line.and_then(|line| line.split_once("address")) {
                // In JSON or as text.
                let address = address.trim_start_matches(['"', ':', '=']).split(['"', ' ']).next();
                return address.and_then(|address| address.parse().ok()).expect("an address");
            }
            self.read_log().await;
        }
    }

    /// The URLs of this many listeners, in their order.
    pub async fn urls(&mut self, count: usize) -> Vec<String> {
        loop {
            let whole = self.log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            let told = lines.filter(|line| line["message"] == "listening");
            let urls: Vec<_> = told.map(|line| line["url"].as_str().expect("a URL").to_owned()).collect();
            if urls.len() == count {
                return urls;
            }
            self.read_log().await;
        }
    }

    pub fn pid(&self) -> rustix::process::Pid {
        let id = self.child.id().expect("it runs");
        rustix::process::Pid::from_raw(id.try_into().expect("a process id")).expect("not zero")
    }

    /// Resolves once the log contains this text.
    pub async fn until_logged(&mut self, text: &str) {
        while !self.log.contains(text) {
            self.read_log().await;
        }
    }

    /// The log as far as a test has waited for it. Its last line may not be whole.
    pub fn logged(&self) -> &str {
        &self.log
    }

    async fn read_log(&mut self) {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(std::time::Duration::from_secs(30), self.err.read(&mut bytes));
        let count = read.await.unwrap_or_else(|_| panic!("no more came after {}", self.log)).expect("text");
        assert!(count > 0, "it ended: {}", self.log);
        self.log += &String::from_utf8_lossy(&bytes[..count]);
    }

    pub fn send_sighup(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::HUP).expect("it runs");
    }

    /// The next line of standard output.
    pub async fn line(&mut self) -> String {
        self.out.next_line().await.expect("text").expect("a line")
    }

    /// Sends SIGTERM.
    pub fn send_sigterm(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).expect("it runs");
    }

    /// Ends the program in order, and waits for the end.
    pub async fn terminate(self) -> Ended {
        self.send_sigterm();
        self.ended().await
    }

    /// Kills the program, so that it cannot do anything more.
    pub async fn kill(mut self) -> Ended {
        self.child.start_kill().expect("it runs");
        self.ended().await
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let (mut log, mut out) = (self.log, String::new());
        let rest = async {
            while let Some(line) = self.out.next_line().await.expect("text") {
                out += &line;
                out.push('\n');
            }
        };
        let (_, status, ()) = tokio::join!(self.err.read_to_string(&mut log), self.child.wait(), rest);
        Ended { code: status.expect("it ends").code(), out, log }
    }
}
