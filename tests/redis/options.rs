//! How the program takes the address of a Redis, and that it never shows a credential.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    deployment::until_ready,
    support::{
        redis::{Redis, free_port, program},
        sentinel::MASTER,
    },
};

const PASSWORD: &str = "only-for-your-eyes";

fn spawn(url: &str, env: &[(&str, &str)], flags: &[&str]) -> (SocketAddr, Child) {
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let program = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", &addr.to_string(), "--log", url])
        .args(flags)
        .envs(env.iter().copied())
        .env("REJOIN_LOG_LEVEL", "debug")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    (addr, program.expect("the program starts"))
}

/// Ends the program once it has logged this, or has ended by itself. Returns its standard error.
fn until_said(mut program: Child, what: &str) -> String {
    let mut stderr = BufReader::new(program.stderr.take().expect("it is piped"));
    let mut said = String::new();
    while !said.contains(what) && stderr.read_line(&mut said).expect("UTF-8") > 0 {}
    program.kill().and_then(|()| program.wait()).expect("it ends");
    said
}

/// Runs the program until it is ready, and returns its output.
async fn output(url: &str, env: &[(&str, &str)], flags: &[&str]) -> String {
    let (addr, mut program) = spawn(url, env, flags);
    until_ready(addr).await;
    program.kill().expect("it can be killed");
    let output = program.wait_with_output().expect("it has ended");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    assert!(!said.contains(PASSWORD), "{said}");
    said
}

/// A Redis that accepts one user with a password, also over the socket.
fn with_user(socket: &Path) -> Option<Redis> {
    let user = format!("me on >{PASSWORD} ~* &* +@all");
    let words: Vec<_> = user.split(' ').collect();
    let socket = socket.to_str().expect("UTF-8");
    let settings =
        [&["--unixsocket", socket, "--maxmemory-policy", "allkeys-lru"][..], &["--user"], &words[..]];
    let redis = Redis::start(&settings.concat())?;
    redis.say(&["ACL", "SETUSER", "default", "off"]);
    Some(redis)
}

/// A new path each time, because a Redis that ends removes its socket.
fn socket() -> PathBuf {
    std::env::temp_dir().join(format!("rejoin-{:016x}.sock", rand::random::<u64>()))
}

#[tokio::test]
async fn a_user_a_password_a_database_a_prefix_and_a_socket_are_taken_and_no_password_is_shown() {
    let socket = socket();
    let Some(redis) = with_user(&socket) else { return };
    let port = redis.port;
    let env = [("REJOIN_REDIS_USERNAME", "me"), ("REJOIN_REDIS_PASSWORD", PASSWORD)];

    let said = output(&format!("redis://me:{PASSWORD}@127.0.0.1:{port}/3?prefix=here"), &[], &[]).await;
    assert!(said.contains("set maxmemory-policy to noeviction"), "{said}");
    let said = output(&format!("redis://127.0.0.1:{port}/3?prefix=here"), &env, &[]).await;
    assert!(!said.contains("other --retain"), "{said}");
    let url = format!("unix://{}?db=3&prefix=here", socket.display());
    let said = output(&url, &env, &["--retain-messages", "7"]).await;
    // The store keeps the limits that were set last, and a server with other limits logs a warning.
    assert!(said.contains("other --retain-") && said.contains("\"1000 messages"), "{said}");

    let keys = Command::new("redis-cli")
        .args(["-p", &port.to_string(), "--user", "me", "--pass", PASSWORD, "-n", "3", "keys", "*"])
        .output()
        .expect("redis-cli runs");
    let keys = String::from_utf8(keys.stdout).expect("UTF-8");
    assert!(keys.lines().count() > 1 && keys.lines().all(|key| key.starts_with("{here}:")), "{keys}");
}

/// A certificate for `localhost`, and its key, in a folder of their own.
struct Certificate {
    folder: PathBuf,
    cert: String,
    key: String,
}

impl Certificate {
    fn make() -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("rejoin-tls-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).expect("a folder of its own");
        let [key, cert] = ["key.pem", "cert.pem"].map(|name| folder.join(name).display().to_string());
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:false",
            ])
            .args(["-keyout", &key, "-out", &cert])
            .stderr(Stdio::null())
            .status();
        if made.is_err() {
            assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
            eprintln!("SKIPPED: openssl is not installed");
            return None;
        }
        Some(Self { folder, cert, key })
    }

    /// Starts a Redis that speaks TLS on this port too.
    fn redis(&self, tls_port: u16) -> Option<Redis> {
        let tls_port = tls_port.to_string();
        let settings = ["--tls-port", &tls_port, "--tls-auth-clients", "no"];
        Redis::start(&[&settings[..], &["--tls-cert-file", &self.cert, "--tls-key-file", &self.key]].concat())
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The server trusts a certificate if the system or `SSL_CERT_FILE` says so.
#[tokio::test]
async fn tls_works_only_with_a_server_that_the_system_trusts() {
    let Some(certificate) = Certificate::make() else { return };
    let port = free_port();
    let Some(_redis) = certificate.redis(port) else { return };
    let url = format!("rediss://localhost:{port}");
    output(&url, &[("SSL_CERT_FILE", &certificate.cert)], &[]).await;

    let (_, program) = spawn(&url, &[], &[]);
    until_said(program, "invalid peer certificate");
}

#[tokio::test]
async fn tls_works_with_sentinels_and_with_the_primary_that_they_name() {
    let Some(certificate) = Certificate::make() else { return };
    let (primary, sentinel) = (free_port(), free_port());
    let Some(_redis) = certificate.redis(primary) else { return };
    let Certificate { folder, cert, key } = &certificate;
    let lines = [
        "port 0".to_owned(),
        format!("tls-port {sentinel}"),
        "tls-replication yes".to_owned(),
        "tls-auth-clients no".to_owned(),
        format!("tls-cert-file {cert}"),
        format!("tls-key-file {key}"),
        format!("tls-ca-cert-file {cert}"),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", folder.display()),
        "sentinel resolve-hostnames yes".to_owned(),
        "sentinel announce-hostnames yes".to_owned(),
        format!("sentinel monitor {MASTER} localhost {primary} 1"),
    ];
    let file = folder.join("sentinel.conf");
    std::fs::write(&file, lines.join("\n")).expect("a configuration");
    let child = Command::new(program()).arg(file).arg("--sentinel").stdout(Stdio::null()).spawn();
    let _sentinel = Running(child.expect("it starts"));
    let url = format!("rediss+sentinel://localhost:{sentinel}/{MASTER}");
    output(&url, &[("SSL_CERT_FILE", cert)], &[]).await;
    let (_, server) = spawn(&url, &[], &[]);
    until_said(server, "no sentinel answers: invalid peer certificate");
}

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[tokio::test]
async fn a_wrong_password_is_reported_and_never_shown() {
    let Some(redis) = with_user(&socket()) else { return };
    let wrong = format!("{PASSWORD}-wrong");
    for url in [
        format!("redis://me:{wrong}@127.0.0.1:{}", redis.port),
        format!("redis://me:{wrong}@127.0.0.1:port"),
        format!("redis://me:{wrong}@127.0.0.1:{}/x", redis.port),
        format!("redis://me:{wrong}@127.0.0.1?prefix=%7B"),
    ] {
        // A text that is no address ends the program. A valid address is tried until the test ends the
        // program.
        let (_, program) = spawn(&url, &[], &[]);
        let said = until_said(program, "WRONGPASS");
        assert!(!said.is_empty() && !said.contains(PASSWORD), "{said}");
    }
}
