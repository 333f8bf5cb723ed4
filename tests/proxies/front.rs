//! A proxy with its recipe, and the server behind it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::process::Child;

use crate::support::{
    program::{Folder, Program},
    redis::free_port,
};

const DOCUMENT: &str = include_str!("../../docs/operations.md");
/// An allowed page, on a port of its own.
pub const APP: &str = "https://app.example:8443";

/// A way from the proxy to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    Unix,
    Tls,
}

const RIGHTS: &str = "[[jwt]]\nname = \"a\"\nalgorithm = \"HS256\"\nsecret = \"a secret of more than thirty-two bytes\"\n\
                      [anonymous]\nsubscribe = [\"**\"]\npublish = [\"**\"]\n";

pub struct Front {
    pub addr: SocketAddr,
    pub server: Program,
    pub folder: Folder,
    /// The proxy says in the requests, and not before them, how it was asked.
    pub names_scheme: bool,
    /// The server behind it speaks plain HTTP.
    pub ends_tls: bool,
    _proxy: Child,
}

impl Front {
    /// nginx, which reaches the server this way. The server has these flags.
    pub async fn nginx(by: Way, flags: &[&str]) -> Option<Self> {
        let version = is_installed("nginx", "-v")?;
        let folder = certified();
        let (certificate, key, socket) = (folder.path("push.pem"), folder.path("push.key"), folder.path("s"));
        let more = match by {
            Way::Plain => vec![],
            Way::Unix => on_a_socket(&folder),
            Way::Tls => ["--tls-cert", &certificate, "--tls-key", &key].map(str::to_owned).to_vec(),
        };
        let (server, folder, port) = scene_in(folder, &[strs(&more), flags.to_vec()].concat()).await;
        let mut recipe = recipe("nginx");
        replace(&mut recipe, "listen 443 ssl", &format!("listen 127.0.0.1:{port} ssl"));
        if by == Way::Tls {
            replace(&mut recipe, "proxy_pass http://rejoin;\n", &self::recipe("nginx-tls"));
            replace(&mut recipe, "/etc/nginx/rejoin.pem", &certificate);
        }
        match by {
            Way::Unix => {
                let line = documented("server unix:/run/rejoin/http.sock;", &socket);
                replace(&mut recipe, "server 127.0.0.1:7070;", &line);
            }
            _ => replace(&mut recipe, "127.0.0.1:7070", &server.server.addr.to_string()),
        }
        replace(&mut recipe, "/etc/nginx/push.pem", &folder.path("push.pem"));
        replace(&mut recipe, "/etc/nginx/push.key", &folder.path("push.key"));
        if is_before_1_25(&version) {
            // As the document says.
            assert!(DOCUMENT.contains("Before nginx 1.25.1 write `listen 443 ssl http2;`"));
            replace(&mut recipe, " ssl;", " ssl http2;");
            replace(&mut recipe, "    http2 on;\n", "");
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", folder.path(name)))
            .concat();
        let whole = format!(
            "daemon off;\nmaster_process off;\npid {};\nerror_log stderr warn;\n\
             events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{temporary}{recipe}\n}}\n",
            folder.path("pid")
        );
        fs::write(folder.path("conf"), whole).expect("a file");
        let arguments = ["-p", &folder.path(""), "-e", "stderr", "-c", &folder.path("conf")];
        let mut front = Self::start("nginx", &arguments, server, &folder.path(""), port, folder).await;
        front.ends_tls = by != Way::Tls;
        Some(front)
    }

    /// HAProxy, with `more` at the end of the line of the server: the PROXY protocol. The server has these flags.
    pub async fn haproxy(by: Way, more: &str, flags: &[&str]) -> Option<Self> {
        is_installed("haproxy", "-v")?;
        let folder = certified();
        let socket = if by == Way::Unix { on_a_socket(&folder) } else { vec![] };
        let (server, folder, port) = scene_in(folder, &[strs(&socket), flags.to_vec()].concat()).await;
        let mut recipe = recipe("haproxy");
        if by == Way::Unix {
            let line = documented("server one /run/rejoin/http.sock", &folder.path("s"));
            replace(&mut recipe, "server one 127.0.0.1:7070", &line);
        } else {
            replace(&mut recipe, "127.0.0.1:7070", &server.server.addr.to_string());
        }
        replace(&mut recipe, "bind :443", &format!("bind 127.0.0.1:{port}"));
        replace(&mut recipe, "/etc/haproxy/push.pem", &folder.path("both.pem"));
        replace(&mut recipe, "check inter 2s", &format!("check inter 2s{more}"));
        fs::write(folder.path("conf"), recipe + "\n").expect("a file");
        let arguments = ["-db", "-f", &folder.path("conf")];
        let mut front = Self::start("haproxy", &arguments, server, &folder.path(""), port, folder).await;
        front.names_scheme = more.is_empty();
        Some(front)
    }

    /// HAProxy that passes TLS through, to a server that ends it.
    pub async fn haproxy_tcp() -> Option<Self> {
        is_installed("haproxy", "-v")?;
        let folder = certified();
        let (certificate, key) = (folder.path("push.pem"), folder.path("push.key"));
        let (server, folder, port) =
            scene_in(folder, &["--proxy-protocol", "--tls-cert", &certificate, "--tls-key", &key]).await;
        let mut recipe = recipe("haproxy-tcp");
        replace(&mut recipe, "bind :443", &format!("bind 127.0.0.1:{port}"));
        replace(&mut recipe, "127.0.0.1:7070", &server.server.addr.to_string());
        fs::write(folder.path("conf"), recipe + "\n").expect("a file");
        let arguments = ["-db", "-f", &folder.path("conf")];
        let mut front = Self::start("haproxy", &arguments, server, &folder.path(""), port, folder).await;
        front.ends_tls = false;
        Some(front)
    }

    /// nginx that passes TLS through by its module `stream`, to a server that ends it.
    pub async fn nginx_stream() -> Option<Self> {
        let load = stream_module(&is_installed("nginx", "-V")?)?;
        let folder = certified();
        let (certificate, key) = (folder.path("push.pem"), folder.path("push.key"));
        let (server, folder, port) =
            scene_in(folder, &["--proxy-protocol", "--tls-cert", &certificate, "--tls-key", &key]).await;
        let mut recipe = recipe("nginx-stream");
        replace(&mut recipe, "listen 443;", &format!("listen 127.0.0.1:{port};"));
        replace(&mut recipe, "127.0.0.1:7070", &server.server.addr.to_string());
        let whole = format!(
            "{load}daemon off;\nmaster_process off;\npid {};\nerror_log stderr warn;\n\
             events {{ worker_connections 256; }}\n{recipe}\n",
            folder.path("pid")
        );
        fs::write(folder.path("conf"), whole).expect("a file");
        let arguments = ["-p", &folder.path(""), "-e", "stderr", "-c", &folder.path("conf")];
        let mut front = Self::start("nginx", &arguments, server, &folder.path(""), port, folder).await;
        front.ends_tls = false;
        Some(front)
    }

    /// Caddy, which reaches the server this way. The server has these flags.
    pub async fn caddy(by: Way, flags: &[&str]) -> Option<Self> {
        is_installed("caddy", "version")?;
        let folder = certified();
        let socket = if by == Way::Unix { on_a_socket(&folder) } else { vec![] };
        let (server, folder, port) = scene_in(folder, &[strs(&socket), flags.to_vec()].concat()).await;
        let mut recipe = recipe("caddy");
        let certificate = format!("tls {} {}", folder.path("push.pem"), folder.path("push.key"));
        let site = format!("https://push.example:{port} {{\n    bind 127.0.0.1\n    {certificate}\n");
        replace(&mut recipe, "push.example {\n", &site);
        if by == Way::Unix {
            let line = documented("reverse_proxy unix//run/rejoin/http.sock", &folder.path("s"));
            replace(&mut recipe, "reverse_proxy 127.0.0.1:7070", &line);
        } else {
            replace(&mut recipe, "127.0.0.1:7070", &server.server.addr.to_string());
        }
        let whole = format!("{{\n    admin off\n    auto_https off\n}}\n{recipe}\n");
        fs::write(folder.path("conf"), whole).expect("a file");
        let arguments = ["run", "--adapter", "caddyfile", "--config", &folder.path("conf")];
        Some(Self::start("caddy", &arguments, server, &folder.path(""), port, folder).await)
    }

    async fn start(
        program: &str,
        arguments: &[&str],
        server: Program,
        home: &str,
        port: u16,
        folder: Folder,
    ) -> Self {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("XDG_DATA_HOME", home).env("XDG_CONFIG_HOME", home);
        let said = fs::File::create(folder.path("said")).expect("a file");
        let copy = said.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(said).stderr(copy).kill_on_drop(true);
        let mut proxy = command.spawn().expect("it starts");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let listening = async {
            while tokio::net::TcpStream::connect(addr).await.is_err() {
                let said = fs::read_to_string(folder.path("said")).expect("a file");
                assert_eq!(proxy.try_wait().expect("a child"), None, "{program} has ended: {said}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        crate::within(program, listening).await;
        Self { addr, server, folder, names_scheme: true, ends_tls: true, _proxy: proxy }
    }

    /// The origin of the server's own page.
    pub fn origin(&self) -> String {
        format!("https://push.example:{}", self.addr.port())
    }

    /// The client in the line of the access log for this path.
    pub async fn client_of(&mut self, path: &str) -> String {
        loop {
            let line = crate::within(path, self.server.line()).await;
            let line: Value = serde_json::from_str(&line).expect("JSON");
            if line["path"] == path {
                return line["client"].as_str().expect("an address").to_owned();
            }
        }
    }
}

/// The flags of a server that listens on the socket `s` of this folder too.
fn on_a_socket(folder: &Folder) -> Vec<String> {
    ["--listen", "127.0.0.1:0", "--listen", &format!("unix:{}", folder.path("s"))].map(str::to_owned).to_vec()
}

fn strs(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// A line of the document, with another path of the socket.
fn documented(line: &str, socket: &str) -> String {
    assert!(DOCUMENT.contains(line), "{line}");
    line.replace("/run/rejoin/http.sock", socket)
}

/// The server with these flags, and the folder, which has the certificate of `push.example`.
async fn scene_in(folder: Folder, more: &[&str]) -> (Program, Folder, u16) {
    let arguments =
        ["--access-log", "json", "--trusted-proxy", "127.0.0.1", "--allowed-origin", "https://push.example"];
    // Everyone may do everything, but a credential that is not accepted is refused.
    let tables = folder.path("tables.toml");
    fs::write(&tables, RIGHTS).expect("a file");
    let arguments = [&arguments[..], &["--allowed-origin", APP, "--config", &tables], more].concat();
    (Program::start(&arguments).await, folder, free_port())
}

/// A folder with the certificate of `push.example`.
fn certified() -> Folder {
    let folder = Folder::new();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=push.example", "-addext", "subjectAltName=DNS:push.example"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &folder.path("push.key"), "-out", &folder.path("push.pem")])
        .output();
    let made = made.expect("openssl is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name| fs::read_to_string(folder.path(name)).expect("a file");
    fs::write(folder.path("both.pem"), read("push.pem") + &read("push.key")).expect("a file");
    folder
}

/// The one block of this language.
pub fn recipe(language: &str) -> String {
    let fence = format!("\n```{language}\n");
    let mut blocks = DOCUMENT.split(&fence).skip(1);
    let block = blocks.next().unwrap_or_else(|| panic!("no recipe for {language}"));
    assert!(blocks.next().is_none(), "two recipes for {language}");
    block.split("\n```").next().expect("it ends").to_owned() + "\n"
}

fn replace(recipe: &mut String, old: &str, new: &str) {
    assert_eq!(recipe.matches(old).count(), 1, "{old:?} in {recipe}");
    *recipe = recipe.replace(old, new);
}

/// The text that the program prints about its version. `None` if it is missing outside of CI; then it prints that.
fn is_installed(program: &str, flag: &str) -> Option<String> {
    match Command::new(program).arg(flag).output() {
        Ok(output) => Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()),
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
            let _ = writeln!(std::io::stderr(), "SKIPPED: {program} is not installed");
            None
        }
    }
}

/// The line that loads the module `stream` of this nginx, if it is a file of its own. `None` if it is missing outside of
/// CI; then it prints that.
fn stream_module(built: &str) -> Option<String> {
    let built: Vec<_> = built.split_whitespace().collect();
    if built.contains(&"--with-stream") {
        return Some(String::new());
    }
    let folder = built.iter().find_map(|flag| flag.strip_prefix("--modules-path=")).unwrap_or_default();
    let module = format!("{folder}/ngx_stream_module.so");
    if Path::new(&module).exists() {
        return Some(format!("load_module {module};\n"));
    }
    assert!(std::env::var_os("CI").is_none(), "{module} is not installed");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {module} is not installed");
    None
}

fn is_before_1_25(version: &str) -> bool {
    let numbers = version.split_once("nginx/").map_or("", |(_, numbers)| numbers.trim());
    let mut parts = numbers.split(['.', ' ']).map(|part| part.parse::<u32>().unwrap_or_default());
    let parts = [(); 3].map(|()| parts.next().unwrap_or_default());
    assert!(parts[0] > 0, "{version}");
    parts < [1, 25, 1]
}

impl Drop for Front {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.folder.path("said")).unwrap_or_default());
        }
    }
}
