//! A path to Redis with faults: it stops forwarding while it still accepts connections, delays data, or leads
//! to another server. It tells a live link from a publishing connection by the commands on it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Dropping it ends all its connections.
pub struct Proxy {
    pub addr: SocketAddr,
    line: Arc<Line>,
    _carrier: JoinSet<io::Result<()>>,
}

/// The connections on which nothing gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    Nothing,
    Links,
    Publishing,
    /// Only the answers on publishing connections.
    Answers,
    Both,
}

struct Line {
    target: watch::Sender<SocketAddr>,
    stall: watch::Sender<Stall>,
    /// By how much the links are delayed.
    lag: Duration,
    /// How many pieces had to wait because of a stall.
    held: AtomicUsize,
    /// How many pieces were delayed.
    late: AtomicUsize,
    links: AtomicUsize,
    /// How many connections there were. They are numbered.
    connections: AtomicUsize,
    forgotten: watch::Sender<usize>,
    /// A word, and how many answers on publishing connections had it.
    counted: Mutex<(String, usize)>,
    /// By how many seconds the time is back that Redis tells.
    back_by: AtomicU64,
    /// How many such times were told.
    wrong_times: AtomicUsize,
}

/// One connection.
#[derive(Clone, Copy)]
struct About<'a> {
    number: usize,
    kind: &'a AtomicU8,
}

const UNKNOWN: u8 = 0;
const LINK: u8 = 1;
const PUBLISHING: u8 = 2;
const CHUNK_BYTES: usize = 16 * 1024;
/// How many pieces wait until they are due.
const MAX_LATE: usize = 1024;

impl Proxy {
    pub async fn to(target: SocketAddr, lag: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let line = Arc::new(Line {
            target: watch::Sender::new(target),
            stall: watch::Sender::new(Stall::Nothing),
            lag,
            held: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            links: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            forgotten: watch::Sender::new(0),
            counted: Mutex::default(),
            back_by: AtomicU64::new(0),
            wrong_times: AtomicUsize::new(0),
        });
        let mut carrier = JoinSet::new();
        carrier.spawn(line.clone().carry_all(listener));
        Self { addr, line, _carrier: carrier }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    pub fn stall(&self, stall: Stall) {
        self.line.stall.send_replace(stall);
    }

    /// Lets nothing through on the present connections ever again, without closing them.
    pub fn forget_connections(&self) {
        self.line.forgotten.send_replace(self.line.connections.load(Ordering::Relaxed));
    }

    /// Leads new connections to `target`, and ends the present ones.
    pub fn lead_to(&self, target: SocketAddr) {
        self.line.target.send_replace(target);
    }

    /// Leads new connections to `target`, and keeps the present ones as they are.
    pub fn lead_new_to(&self, target: SocketAddr) {
        self.line.target.send_if_modified(|leads_to| {
            *leads_to = target;
            false
        });
    }

    /// Counts the answers on publishing connections that have this word, before a stall holds them.
    pub fn count_answers(&self, word: &str) {
        *self.line.counted.lock().unwrap_or_else(PoisonError::into_inner) = (word.to_owned(), 0);
    }

    /// How many such answers there were.
    pub fn counted(&self) -> usize {
        self.line.counted.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Sets back the time that Redis tells on publishing connections from now on. The scripts still see its real time.
    pub fn set_back_time(&self, seconds: u64) {
        self.line.back_by.store(seconds, Ordering::Relaxed);
    }

    /// How many times were told that were set back.
    pub fn wrong_times(&self) -> usize {
        self.line.wrong_times.load(Ordering::Relaxed)
    }

    /// How many pieces a stall has delayed.
    pub fn held(&self) -> usize {
        self.line.held.load(Ordering::Relaxed)
    }

    /// How many pieces of links were delayed.
    pub fn late(&self) -> usize {
        self.line.late.load(Ordering::Relaxed)
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.line.connections.load(Ordering::Relaxed)
    }

    /// How many links were made.
    pub fn links(&self) -> usize {
        self.line.links.load(Ordering::Relaxed)
    }
}

impl Line {
    async fn carry_all(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                client = listener.accept() => {
                    let (client, _) = client?;
                    connections.spawn(self.clone().carry(client));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }

    async fn carry(self: Arc<Self>, client: TcpStream) -> io::Result<()> {
        let mut target = self.target.subscribe();
        let addr = *target.borrow_and_update();
        let server = TcpStream::connect(addr).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = AtomicU8::new(UNKNOWN);
        let about = About { number, kind: &kind };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            up = self.carry_up(from_client, to_server, about) => up,
            down = self.carry_down(from_server, to_client, about) => down,
            _ = target.changed() => Ok(()),
        }
    }

    async fn carry_up(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        about: About<'_>,
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            if about.kind.load(Ordering::Relaxed) == UNKNOWN {
                self.learn(&chunk[..read], about.kind);
            }
            self.pass(about, false).await;
            to.write_all(&chunk[..read]).await?;
        }
    }

    async fn carry_down(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        about: About<'_>,
    ) -> io::Result<()> {
        let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(MAX_LATE);
        let read = async {
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                let read = from.read(&mut chunk).await?;
                if read == 0 {
                    return io::Result::Ok(());
                }
                if about.kind.load(Ordering::Relaxed) == PUBLISHING {
                    self.set_back(&mut chunk[..read]);
                    let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
                    let has_it = memchr::memmem::find(&chunk[..read], counted.0.as_bytes()).is_some();
                    counted.1 += usize::from(has_it);
                }
                let is_late = about.kind.load(Ordering::Relaxed) == LINK && !self.lag.is_zero();
                self.late.fetch_add(is_late.into(), Ordering::Relaxed);
                let due = Instant::now() + if is_late { self.lag } else { Duration::ZERO };
                if sender.send((due, chunk[..read].to_vec())).await.is_err() {
                    return Ok(());
                }
            }
        };
        let write = async {
            while let Some((due, piece)) = pieces.recv().await {
                sleep_until(due).await;
                self.pass(about, true).await;
                to.write_all(&piece).await?;
            }
            io::Result::Ok(())
        };
        tokio::select! {
            read = read => read,
            write = write => write,
        }
    }

    /// Changes the answers of `TIME`: an array of two texts, of which the first has ten digits.
    fn set_back(&self, answers: &mut [u8]) {
        const HEAD: &[u8] = b"*2\r\n$10\r\n";
        let by = self.back_by.load(Ordering::Relaxed);
        let heads: Vec<_> = memchr::memmem::find_iter(answers, HEAD).filter(|_| by > 0).collect();
        for at in heads {
            let Some(digits) = answers.get_mut(at + HEAD.len()..at + HEAD.len() + 10) else { return };
            let seconds: Option<u64> =
                std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            if let Some(seconds) = seconds {
                digits.copy_from_slice((seconds - by).to_string().as_bytes());
                self.wrong_times.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Scripts run on a publishing connection, and a link reads the feed.
    fn learn(&self, said: &[u8], kind: &AtomicU8) {
        let says = |word: &[u8]| said.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        if says(b"EVALSHA") || says(b"CONFIG") {
            kind.store(PUBLISHING, Ordering::Relaxed);
        } else if says(b"XREAD") {
            self.links.fetch_add(1, Ordering::Relaxed);
            kind.store(LINK, Ordering::Relaxed);
        }
    }

    /// Waits while nothing gets through.
    async fn pass(&self, About { number, kind }: About<'_>, is_answer: bool) {
        let is_held = |stall: &Stall| match (*stall, kind.load(Ordering::Relaxed)) {
            (Stall::Nothing, _) => false,
            (Stall::Both, _) => true,
            (Stall::Links, kind) => kind == LINK,
            (Stall::Publishing, kind) => kind == PUBLISHING,
            (Stall::Answers, kind) => is_answer && kind == PUBLISHING,
        };
        let mut stall = self.stall.subscribe();
        if is_held(&stall.borrow_and_update()) {
            self.held.fetch_add(1, Ordering::Relaxed);
            let _ = stall.wait_for(|stall| !is_held(stall)).await;
        }
        if *self.forgotten.borrow() >= number {
            self.held.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    }
}
