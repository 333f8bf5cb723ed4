//! A real server on a free port for each test, and the requests of every test.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub mod checker;
pub mod client;
pub mod cutter;
pub mod frame;
pub mod login;
pub mod program;
pub mod redis;
pub mod sentinel;
pub mod tls;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use rejoin::{App, Config, Drained, Shutdown, broker::Broker, log::Log};
use tokio::{net::TcpListener, task::JoinHandle};

/// An HTTP client of another project. It never speaks TLS. It needs a crate for TLS all the same, but not the
/// certificates of the system, which take a while to read.
pub fn http_client() -> reqwest::ClientBuilder {
    // This fails if a provider is installed already, and that one serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([])
}

/// The bytes of this text, which count for as long as they are held.
pub fn counted(text: impl Into<String>, count: &Arc<()>) -> Bytes {
    struct Counted {
        _count: Arc<()>,
        text: String,
    }
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            self.text.as_bytes()
        }
    }
    Bytes::from_owner(Counted { _count: count.clone(), text: text.into() })
}

pub struct Server {
    pub addr: SocketAddr,
    /// `None` if another process serves.
    pub app: Option<Arc<App>>,
    pub shutdown: Shutdown,
    task: JoinHandle<Drained>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A server with the default configuration and this change. With `REJOIN_TEST_TLS` set it speaks TLS, and its
    /// address is that of a tunnel. A test that looks at the connection itself, or at the scheme, takes [`direct`].
    ///
    /// [`direct`]: Self::direct
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let is_tls = std::env::var_os("REJOIN_TEST_TLS").is_some();
        if is_tls { Self::over_tls(change).await } else { Self::direct(change).await }
    }

    /// A server that speaks TLS, behind a tunnel for clients that do not.
    pub async fn over_tls(change: impl FnOnce(&mut Config)) -> Self {
        let mut server = Self::direct(|config| {
            config.certificate = Some(tls::PAIR.parsed());
            change(config);
        })
        .await;
        server.addr = tls::tunnel(server.addr).await;
        server
    }

    /// A server that clients reach without a tunnel, whatever it speaks.
    pub async fn direct(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let shutdown = Shutdown::new();
        let server = rejoin::Server::start(Arc::new(config), shutdown.clone()).await.expect("it starts");
        let app = Some(server.app().clone());
        let task = tokio::spawn(async { server.serve(listener).await.expect("the server runs") });
        Self { addr, app, shutdown, task }
    }

    /// A server over the test's own log.
    pub async fn over(log: Arc<dyn Log>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let shutdown = Shutdown::new();
        let app = App::new(Broker::new(log), Arc::new(config), shutdown.clone());
        let served = rejoin::http::serve(app.clone(), listener);
        let task = tokio::spawn(served);
        Self { addr, app: Some(app), shutdown, task }
    }

    /// A server that runs in another process.
    pub fn elsewhere(addr: SocketAddr) -> Self {
        Self { addr, app: None, shutdown: Shutdown::new(), task: tokio::spawn(async { Drained::Completely }) }
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn ws(&self, path: &str) -> String {
        format!("ws://{}{path}", self.addr)
    }

    /// Drains the server, and waits until it has ended.
    pub async fn stop(self) -> Drained {
        self.shutdown.drain();
        self.task.await.expect("the server does not panic")
    }
}
