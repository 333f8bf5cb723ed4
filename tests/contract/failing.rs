//! A log that fails on purpose, under a server that is otherwise the real one.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use rejoin::{
    App, Config, Shutdown,
    broker::Broker,
    log::{
        Append, AppendError, Appended, Beginning, Ephemerals, Followed, Follower, Log, LogError, LogStats,
        MemoryLog, Page, Position, Start, Tail, TopicStats,
    },
    message::{Draft, Id, Pattern, Topic},
};
use reqwest::RequestBuilder;
use tokio::net::TcpListener;

use crate::ask::client;

/// The log in memory, until it is told to fail.
struct FailingLog {
    log: Arc<MemoryLog>,
    // A std mutex: no await happens while it is held.
    failure: Arc<Mutex<Option<LogError>>>,
}

impl FailingLog {
    fn check(&self) -> Result<(), LogError> {
        match *self.failure.lock().expect("no panic while it is held") {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Log for FailingLog {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.check()?;
        self.log.append(append).await
    }

    async fn announce(&self, draft: Draft) -> Result<(), LogError> {
        self.check()?;
        self.log.announce(draft).await
    }

    async fn delete(&self, topic: &Topic) -> Result<(), LogError> {
        self.check()?;
        self.log.delete(topic).await
    }

    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError> {
        self.check()?;
        self.log.clone().follow(pattern, follower).await
    }

    async fn newest(&self) -> Result<Id, LogError> {
        self.check()?;
        self.log.newest().await
    }

    fn watermark(&self) -> Id {
        self.log.watermark()
    }

    fn expired(&self) -> Id {
        self.log.expired()
    }

    async fn begin(&self, patterns: &[Pattern], start: &Start) -> Result<Beginning, LogError> {
        self.check()?;
        self.log.begin(patterns, start).await
    }

    async fn read(&self, patterns: &[Pattern], position: &Position, limit: usize) -> Result<Page, LogError> {
        self.check()?;
        self.log.read(patterns, position, limit).await
    }

    fn ephemerals(&self) -> &Ephemerals {
        self.log.ephemerals()
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        self.check()?;
        self.log.topics(after, limit).await
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        self.check()?;
        self.log.stats().await
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        self.log.unfollow(tail, follower);
    }
}

/// A server over a log that fails when it is told to.
pub struct FailingServer {
    addr: SocketAddr,
    failure: Arc<Mutex<Option<LogError>>>,
}

impl FailingServer {
    pub async fn start() -> Self {
        let config = Arc::new(Config::default());
        let failure = Arc::default();
        let log = FailingLog { log: MemoryLog::start(config.retention()), failure: Arc::clone(&failure) };
        let app = App::new(Broker::new(Arc::new(log)), config, Shutdown::new());
        let router = rejoin::router(app.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        tokio::spawn(rejoin::http::serve(app, router, listener));
        Self { addr, failure }
    }

    /// From now on the log fails in this way, or no more.
    pub fn fail(&self, failure: Option<LogError>) {
        *self.failure.lock().expect("no panic while it is held") = failure;
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        client().get(format!("http://{}{path}", self.addr))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        client().post(format!("http://{}{path}", self.addr))
    }
}
