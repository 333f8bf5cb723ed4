//! The example of a login, in a folder of its own: the backend in Node, and a server with the file that `rejoin init`
//! writes.

use std::{env, fs, io::Write, path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::program::{Folder, Program};

/// The example in the repository.
pub fn example() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/login"))
}

/// True if these programs are there, and with `packages` those of the example too. Fails in CI, where every test must
/// run. Elsewhere it prints that the test is skipped.
pub fn has(programs: &[&str], needs_packages: bool) -> bool {
    let is_there = |program: &&&str| std::process::Command::new(program).arg("--version").output().is_ok();
    let missing = programs
        .iter()
        .find(|program| !is_there(program))
        .map(|program| format!("{program} is not installed"));
    let missing = missing.or_else(|| programs.contains(&"node").then(lacks_node).flatten());
    let lacks_packages = needs_packages && !example().join("node_modules").exists();
    let missing = missing.or(lacks_packages.then(|| "npm ci --prefix examples/login has not run".to_owned()));
    let Some(missing) = missing else { return true };
    assert!(env::var_os("CI").is_none(), "{missing}");
    let _ = writeln!(std::io::stderr(), "SKIPPED a test of the login: {missing}");
    false
}

/// True if these servers are there, as [`has`] says it.
pub fn has_servers(programs: &[&str]) -> bool {
    // Debian has nginx in a folder that is not in the path of every user.
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let is_there = |program: &&&str| env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let Some(missing) = programs.iter().find(|program| !is_there(program)) else { return true };
    assert!(env::var_os("CI").is_none(), "{missing} is not installed");
    let _ = writeln!(std::io::stderr(), "SKIPPED a test of an example: {missing} is not installed");
    false
}

/// How this Node is too old for the libraries of the example, if it is.
fn lacks_node() -> Option<String> {
    let script = include_str!("../run");
    let oldest = script.lines().find_map(|line| line.strip_prefix("node=")).expect("a version");
    let output = std::process::Command::new("node").arg("--version").output().expect("it runs");
    let version = String::from_utf8_lossy(&output.stdout).trim().trim_start_matches('v').to_owned();
    let is_old = numbers(&version) < numbers(oldest);
    is_old.then(|| format!("Node {version} is older than {oldest}; tests/run installs a newer one"))
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

/// The file that `rejoin init` has written, and its secrets.
pub struct Begun {
    pub folder: Folder,
    pub file: String,
    pub key: String,
    pub secret: String,
}

/// A line of the backend, and the code that makes it fail for a second after the first request to each path. A client
/// must wait and ask again.
const BEGINNING: &str = "  const name = files[path]\n";
const FAILING: &str = "  const name = files[path]
  const begun = (globalThis.begun ??= {})[path] ??= Date.now()
  if (request.method === 'POST' && Date.now() < begun + 1000) return response.writeHead(500).end('{}')
";

/// Runs `rejoin init` in a new folder.
pub fn init() -> Begun {
    let folder = Folder::new();
    let file = folder.path("rejoin.toml");
    let mut rejoin = std::process::Command::new(env!("CARGO_BIN_EXE_rejoin"));
    let made = rejoin.args(["init", &file]).output().expect("it runs");
    assert!(made.status.success(), "{made:?}");
    let between = |text: &str, before: &str, after: char| {
        let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{before}: {text}"));
        rest.split(after).next().unwrap_or_default().to_owned()
    };
    let key = between(&String::from_utf8(made.stdout).expect("UTF-8"), "Bearer ", '\'');
    let secret = between(&fs::read_to_string(&file).expect("a file"), "\nsecret = \"", '"');
    Begun { folder, file, key, secret }
}

/// The backend and the server; both end when this is dropped.
pub struct Login {
    pub begun: Begun,
    pub serving: Program,
    /// The address of the backend.
    pub address: String,
    lines: Lines<BufReader<ChildStdout>>,
    _backend: Child,
}

impl Login {
    /// Starts both. Tokens live for this many seconds.
    pub async fn start(seconds: u32) -> Self {
        let begun = init();
        copy(&begun.folder, |text| text.replace(BEGINNING, FAILING));
        let backend = fs::read_to_string(begun.folder.path("backend.mjs")).expect("a text");
        assert!(backend.contains(FAILING), "the backend has another line: {backend}");
        let mut backend = Command::new("node")
            .arg(begun.folder.path("backend.mjs"))
            .env("TOKEN_SECRET", &begun.secret)
            .env("TOKEN_SECONDS", seconds.to_string())
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(backend.stdout.take().expect("a pipe")).lines();
        let address = lines.next_line().await.expect("text").expect("the address of the backend");
        let origin = address.trim_end_matches('/');
        let settings = fs::read_to_string(&begun.file).expect("a file");
        fs::write(&begun.file, settings.replace("http://localhost:3000", origin)).expect("a file");
        let serving = Program::start(&["--config", &begun.file]).await;
        let port = serving.server.addr.port();
        let moved = |text: String| text.replace("localhost:7070", &format!("localhost:{port}"));
        copy(&begun.folder, |text| moved(text).replace("http://localhost:3000", origin));
        Self { begun, serving, address, lines, _backend: backend }
    }

    /// Waits until the backend has made one more token.
    pub async fn token_made(&mut self) {
        let line = self.lines.next_line().await.expect("text").expect("the backend runs");
        assert_eq!(line, "a token for u1");
    }

    /// Publishes to the user.
    pub async fn publish(&self, data: &str) {
        let url = self.serving.server.http("/topics/users.u1.news");
        let client = super::http_client().build().expect("a client");
        let request = client.post(url).bearer_auth(&self.begun.key).body(data.to_owned());
        assert_eq!(request.send().await.expect("an answer").status(), 201);
    }
}

/// Copies the files of the example, changed by `change`.
fn copy(folder: &Folder, change: impl Fn(String) -> String) {
    for entry in fs::read_dir(example()).expect("the example") {
        let path = entry.expect("an entry").path();
        let to = folder.0.join(path.file_name().expect("a name"));
        if path.is_file() {
            fs::write(to, change(fs::read_to_string(path).expect("a text"))).expect("a file");
        } else if !to.exists() {
            std::os::unix::fs::symlink(path, to).expect("a link");
        }
    }
}
