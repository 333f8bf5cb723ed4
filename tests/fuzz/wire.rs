//! Servers that listen on Unix sockets, on the thread of their client, for inputs that begin with a connection.

use std::{
    cell::LazyCell,
    env, fs, process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rejoin::{
    Config, Listeners, Server, Shutdown,
    config::{AccessLogForm, ForwardedHeader},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};

use crate::harness::MAX_PAYLOAD_BYTES;

/// How long an answer may take. A server that hangs fails the claim.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a server that waits for more bytes may be silent. Then its client ends its side.
const SILENCE: Duration = Duration::from_millis(20);

pub struct Wire {
    runtime: Runtime,
    path: String,
    lines: Arc<Mutex<Vec<String>>>,
}

thread_local! {
    /// Its proxy speaks the PROXY protocol.
    pub static PROXIED: LazyCell<Wire> = LazyCell::new(|| Wire::new(|config| config.proxy_protocol = true));
    /// Its proxy names clients in `X-Forwarded-For`.
    pub static X_FORWARDED: LazyCell<Wire> = LazyCell::new(|| Wire::new(|_| {}));
    /// Its proxy names clients in `Forwarded`.
    pub static FORWARDED: LazyCell<Wire> =
        LazyCell::new(|| Wire::new(|config| config.forwarded_header = ForwardedHeader::Forwarded));
}

impl Wire {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("rejoin-fuzz-{}-{number}", process::id()));
        let path = path.to_str().expect("UTF-8").to_owned();
        let mut config = Config {
            listen: vec![format!("unix:{path}").parse().expect("an address")],
            trusted_proxies: ["127.0.0.1/32", "10.0.0.0/8"]
                .map(|text| text.parse().expect("a network"))
                .into(),
            access_log: AccessLogForm::Json,
            max_payload: MAX_PAYLOAD_BYTES,
            retain_total: 1 << 20,
            retain_bytes: 1 << 16,
            ..Config::default()
        };
        change(&mut config);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        runtime.block_on(async {
            let listeners = Listeners::bind(&config).expect("a socket");
            let server = Server::start(Arc::new(config), Shutdown::new()).await.expect("it starts");
            let all = lines.clone();
            server.app().log_access(move |line| {
                all.lock().expect("no panic").push(String::from_utf8(line.to_vec()).expect("UTF-8"));
            });
            tokio::spawn(server.serve(listeners));
        });
        Self { runtime, path, lines }
    }

    /// Sends these bytes on a new connection, and returns what comes until `is_whole` or until the end.
    pub fn send(&self, bytes: &[u8], is_whole: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        self.converse(bytes, None, is_whole)
    }

    /// Sends bytes that may be only the beginning of a request, and returns what comes until the end.
    pub fn send_part(&self, bytes: &[u8]) -> Vec<u8> {
        self.converse(bytes, Some(SILENCE), |_| false)
    }

    /// After this silence it ends the side of the client, and then the server must end its own.
    fn converse(&self, bytes: &[u8], silence: Option<Duration>, is_whole: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut reading, mut writing) =
                UnixStream::connect(&self.path).await.expect("it listens").into_split();
            let sends = async {
                // The server may close before it has read everything.
                _ = writing.write_all(bytes).await;
                if let Some(silence) = silence {
                    sleep(silence).await;
                    _ = writing.shutdown().await;
                }
                sleep(PATIENCE).await;
            };
            let hears = async {
                let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
                while !is_whole(&answer) {
                    match reading.read(&mut piece).await {
                        Ok(0) | Err(_) => break,
                        Ok(length) => answer.extend_from_slice(&piece[..length]),
                    }
                }
                answer
            };
            tokio::select! {
                () = sends => panic!("neither an answer nor the end of the connection"),
                answer = hears => answer,
            }
        })
    }

    /// The client in the line of the access log for the request that was sent last.
    pub fn logged_client(&self) -> String {
        let line = self.runtime.block_on(async {
            let logged = async {
                loop {
                    if let Some(line) = self.lines.lock().expect("no panic").pop() {
                        return line;
                    }
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, logged).await.expect("a line")
        });
        let line: Value = serde_json::from_str(&line).expect("JSON");
        line["client"].as_str().expect("an address").to_owned()
    }

    /// Forgets the lines of requests before.
    pub fn forget_lines(&self) {
        self.lines.lock().expect("no panic").clear();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}
