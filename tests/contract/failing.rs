//! A log that fails on purpose, under an otherwise real server.

use std::{
    ops::Deref,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use rejoin::{
    Config,
    log::{
        Append, AppendError, Appended, Beginning, Ephemerals, Expiry, Followed, Follower, History, Holds,
        Log, LogError, LogStats, Members, MemoryLog, NotedHolds, Page, Position, Rules, Start, Tail,
        TopicStats,
    },
    message::{Draft, Id, Pattern, PatternSet, Topic},
};
use tokio::sync::watch;

use crate::{ask::within, support::Server};

/// The log in memory, until a test makes it fail.
pub struct FailingLog {
    log: Arc<MemoryLog>,
    faults: Arc<Faults>,
}

/// The faults of the log at the moment.
#[derive(Default)]
pub struct Faults {
    // A std mutex: no await happens while it is held.
    failure: Mutex<Option<LogError>>,
    are_held: watch::Sender<bool>,
    reads: watch::Sender<usize>,
}

impl FailingLog {
    /// A log without a fault.
    pub fn new() -> (Arc<Self>, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        let log = MemoryLog::start(Config::default().retention());
        (Arc::new(Self { log, faults: Arc::clone(&faults) }), faults)
    }

    fn check(&self) -> Result<(), LogError> {
        match *self.faults.failure.lock().expect("no panic while it is held") {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Faults {
    /// Holds back everything that must be read from the log, or stops to do so.
    pub fn hold_reads(&self, are_held: bool) {
        self.are_held.send_replace(are_held);
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

    fn expiry(&self) -> Expiry {
        self.log.expiry()
    }

    fn retain_by(&self, rules: Rules) {
        self.log.retain_by(rules);
    }

    async fn begin(&self, patterns: &PatternSet, start: &Start) -> Result<Beginning, LogError> {
        self.check()?;
        self.log.begin(patterns, start).await
    }

    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError> {
        self.faults.reads.send_modify(|reads| *reads += 1);
        self.faults.are_held.subscribe().wait_for(|are_held| !are_held).await.expect("a sender");
        self.check()?;
        self.log.read(patterns, position, limit).await
    }

    async fn history(&self, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError> {
        self.check()?;
        self.log.history(topic, before, limit).await
    }

    async fn hold(&self, holds: &Holds) -> Result<NotedHolds, LogError> {
        self.check()?;
        self.log.hold(holds).await
    }

    async fn holds_due(&self) {
        self.log.holds_due().await;
    }

    async fn members(&self, topic: &Topic, after: &str, limit: usize) -> Result<Members, LogError> {
        self.check()?;
        self.log.members(topic, after, limit).await
    }

    fn ephemerals(&self) -> &Ephemerals {
        self.log.ephemerals()
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        self.check()?;
        self.log.topics(after, limit).await
    }

    fn followers(&self, topic: &Topic) -> usize {
        self.log.followers(topic)
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        self.check()?;
        self.log.stats().await
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        self.log.unfollow(tail, follower);
    }
}

/// A server over a log that a test can make fail or wait.
pub struct FailingServer {
    server: Server,
    faults: Arc<Faults>,
}

impl FailingServer {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (log, faults) = FailingLog::new();
        Self { server: Server::over(log, change).await, faults }
    }

    /// Makes the log fail in this way, or work again.
    pub fn fail(&self, failure: Option<LogError>) {
        *self.faults.failure.lock().expect("no panic while it is held") = failure;
    }

    /// Holds back everything that must be read from the log, or stops to do so.
    pub fn hold_reads(&self, are_held: bool) {
        self.faults.hold_reads(are_held);
    }

    /// Resolves once this many reads of the log have begun.
    pub async fn until_read(&self, times: usize) {
        let mut reads = self.faults.reads.subscribe();
        within("that the log is read", reads.wait_for(|reads| *reads >= times)).await.expect("a sender");
    }
}

impl Deref for FailingServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
