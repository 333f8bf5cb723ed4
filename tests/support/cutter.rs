//! A TCP proxy that breaks connections on purpose, with a FIN or an RST: after an exact number of bytes, or
//! on an order. It can also stop forwarding for a while, like a train in a tunnel.
//!
//! It knows nothing of the bytes that it forwards.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// A connection to the server for one client. Dropping it drops everything that goes over it.
pub struct Wire {
    pub addr: SocketAddr,
    line: Arc<Line>,
    _carrier: JoinSet<io::Result<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Flow,
    Stall,
    /// The last order: no other order counts after it.
    Cut,
}

#[derive(Debug, Clone, Copy)]
pub enum Ending {
    Fin,
    Rst,
}

#[derive(Debug, Clone, Copy)]
pub struct Breakage {
    /// How many bytes towards the client pass before the cut.
    pub cut_after_bytes: Option<u64>,
    pub ending: Ending,
    /// How many bytes pass, at least, before nothing is forwarded until the next order. Such a wire has small
    /// buffers and small segments, so that the server notices the stall, and not only this proxy.
    pub stall_after_bytes: Option<u64>,
}

/// The state that all connections over one wire share. A client that polls may open a second one.
struct Line {
    server: SocketAddr,
    breakage: Breakage,
    passed_bytes: AtomicU64,
    orders: watch::Sender<Order>,
}

/// The buffer of a narrow wire in each direction; the kernel doubles it.
const NARROW_BYTES: u32 = 8 * 1024;
/// The largest segment of a narrow wire. The sender's kernel derives the size of its buffer from it.
const NARROW_SEGMENT_BYTES: u32 = 536;
const CHUNK_BYTES: usize = 16 * 1024;

impl Wire {
    pub fn to(server: SocketAddr, breakage: Breakage) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if breakage.stall_after_bytes.is_some() {
            socket.set_send_buffer_size(NARROW_BYTES)?;
        }
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(8)?;
        let addr = listener.local_addr()?;
        let orders = watch::Sender::new(Order::Flow);
        let line = Arc::new(Line { server, breakage, passed_bytes: AtomicU64::new(0), orders });
        let mut carrier = JoinSet::new();
        carrier.spawn(line.clone().carry_all(listener));
        Ok(Self { addr, line, _carrier: carrier })
    }

    pub fn order(&self, order: Order) {
        self.line.order(order);
    }

    /// True before the client can see the end.
    pub fn was_cut(&self) -> bool {
        self.line.is_cut()
    }
}

impl Line {
    fn is_cut(&self) -> bool {
        *self.orders.borrow() == Order::Cut
    }

    fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let is_new = *current != Order::Cut && *current != order;
            if is_new {
                *current = order;
            }
            is_new
        });
    }

    /// Forwards connections until the cut. After it, the port is closed.
    async fn carry_all(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut orders = self.orders.subscribe();
        let mut connections = JoinSet::new();
        let refused = loop {
            tokio::select! {
                client = listener.accept() => {
                    let (client, _) = client?;
                    connections.spawn(self.clone().carry(client));
                }
                Some(_) = connections.join_next() => {}
                _ = orders.wait_for(|order| *order == Order::Cut) => break listener,
            }
        };
        drop(refused);
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    async fn carry(self: Arc<Self>, mut client: TcpStream) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        if self.breakage.stall_after_bytes.is_some() {
            socket.set_recv_buffer_size(NARROW_BYTES)?;
            socket2::SockRef::from(&socket).set_tcp_mss(NARROW_SEGMENT_BYTES)?;
        }
        let mut server = socket.connect(self.server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        {
            let (mut from_client, mut to_client) = client.split();
            let (from_server, mut to_server) = server.split();
            tokio::select! {
                up = copy(&mut from_client, &mut to_server) => up.map(|_| ())?,
                down = self.carry_down(from_server, &mut to_client) => down?,
            }
        }
        self.end(client).await?;
        self.end(server).await
    }

    /// Forwards bytes to the client until the server ends or the cut is due.
    async fn carry_down(&self, mut server: ReadHalf<'_>, client: &mut WriteHalf<'_>) -> io::Result<()> {
        let mut orders = self.orders.subscribe();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let order = *orders.borrow_and_update();
            if order == Order::Cut {
                return Ok(());
            }
            let read = tokio::select! {
                read = server.read(&mut chunk), if order == Order::Flow => read?,
                _ = orders.changed() => continue,
            };
            if read == 0 {
                return Ok(());
            }
            let before = self.passed_bytes.load(Ordering::Relaxed);
            let Breakage { cut_after_bytes, stall_after_bytes, .. } = self.breakage;
            let passing = cut_after_bytes.map_or(read as u64, |cut| (read as u64).min(cut - before));
            client.write_all(&chunk[..passing as usize]).await?;
            let passed = before + passing;
            self.passed_bytes.store(passed, Ordering::Relaxed);
            if cut_after_bytes == Some(passed) {
                self.order(Order::Cut);
            } else if stall_after_bytes.is_some_and(|stall| before < stall && stall <= passed) {
                self.order(Order::Stall);
            }
        }
    }

    async fn end(&self, mut stream: TcpStream) -> io::Result<()> {
        match self.breakage.ending {
            Ending::Rst if self.is_cut() => stream.set_zero_linger(),
            // If the peer is gone already, no FIN is needed.
            _ => stream.shutdown().await.or(Ok(())),
        }
    }
}
