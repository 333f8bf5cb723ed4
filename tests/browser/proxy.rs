//! The connection between a browser and the server, which can be cut and restored while both keep running.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// A proxy between a browser and the server, whose connections can be cut.
pub struct Proxy {
    addr: SocketAddr,
    whole: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
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

    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Ends every connection, and until `mend` also every new one at once.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut whole: watch::Receiver<bool>) {
    let forwarded = async {
        let mut upstream = TcpStream::connect(server).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    let cut = tokio::select! {
        // Check the cut first: a connection that comes while it lasts sends nothing.
        biased;
        _ = whole.wait_for(|whole| !whole) => true,
        _ = forwarded => false,
    };
    if cut {
        let _ = client.set_zero_linger();
    }
}
