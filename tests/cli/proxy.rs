//! A proxy before a server that may move. It can break connections, and knows nothing of what they carry.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

/// A proxy. If it is dropped, its connections are dropped too.
pub struct Proxy {
    addr: SocketAddr,
    // A std mutex: no await happens while it is held.
    server: Arc<Mutex<SocketAddr>>,
    _carrier: JoinSet<()>,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> Self {
        Self::begin(server, |_| u64::MAX, Duration::MAX).await
    }

    /// Cuts the nth connection after this many bytes towards the client.
    pub async fn cutting(server: SocketAddr, cut_after: fn(u64) -> u64) -> Self {
        Self::begin(server, cut_after, Duration::MAX).await
    }

    /// Cuts every connection after this long.
    pub async fn impatient(server: SocketAddr, lasting: Duration) -> Self {
        Self::begin(server, |_| u64::MAX, lasting).await
    }

    async fn begin(server: SocketAddr, cut_after: fn(u64) -> u64, lasting: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let server = Arc::new(Mutex::new(server));
        let mut carrier = JoinSet::new();
        let target = server.clone();
        carrier.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { return };
                let server = *target.lock().expect("no panic while it is held");
                connections.spawn(timeout(lasting, carry(client, server, cut_after(number))));
            }
        });
        Self { addr, server, _carrier: carrier }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Changes the server to which new connections lead.
    pub fn point_at(&self, server: SocketAddr) {
        *self.server.lock().expect("no panic while it is held") = server;
    }
}

/// Carries until either side ends or the cut is due.
async fn carry(mut client: TcpStream, server: SocketAddr, cut_after: u64) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut from_server = from_server.take(cut_after);
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        _ = copy(&mut from_server, &mut to_client) => {}
    }
}
