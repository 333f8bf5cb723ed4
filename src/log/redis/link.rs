//! The live link: the connection on which this replica reads the feed, and the proof that nothing is missing.
//!
//! The link is made anew whenever it breaks or falls behind. It then goes on after the last entry that was
//! read. It may lead to the primary or to a copy, because a copy has the same feed a little later.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::{
    codec::{Entry, Place},
    facts::Facts,
    feed::Feed,
    primary::ConnectError,
    store::{RETRY_AFTER, Store},
};
use crate::log::LogError;

/// How often this task proves that everything has arrived.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long the answer to a probe may take, and then how long the messages that it names may take to arrive.
/// If both connections have died silently, one is found after the other, and both within three seconds.
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// How long Redis blocks a read of the feed that finds nothing. A link that is silent for longer is dead.
const BLOCK: Duration = Duration::from_secs(1);
/// How many entries one read of the feed returns.
const READ_ENTRIES: usize = 512;
/// Every so many probes, one sweeps expired messages. While messages are left to sweep, every probe sweeps.
const SWEEP_EVERY: u64 = 8;

/// The link, and the probes that check it.
pub struct Link {
    store: Arc<Store>,
    feed: Arc<Feed>,
    probes: AtomicU64,
    /// True if the last sweep left expired messages.
    is_unswept: AtomicBool,
    /// How many entries the next read of the feed returns. A link that was too slow gets fewer.
    entries: AtomicUsize,
}

/// The answer to a probe.
struct Probed {
    facts: Facts,
    /// True if the sweep left expired messages.
    is_unswept: bool,
    /// The newest entry of the feed.
    end: Place,
}

/// Why a link is closed.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Unreachable(#[from] ConnectError),
    #[error("the store does not answer")]
    Unavailable(#[from] LogError),
    #[error("it is behind the store")]
    Behind,
    #[error("it leads to another primary than the publishing connection")]
    Elsewhere,
}

impl Link {
    pub fn new(store: Arc<Store>, feed: Arc<Feed>) -> Self {
        let (probes, is_unswept, entries) =
            (AtomicU64::default(), AtomicBool::default(), READ_ENTRIES.into());
        Self { store, feed, probes, is_unswept, entries }
    }

    /// Makes the link again and again. Never ends.
    pub async fn keep_linked(self: Arc<Self>) {
        let mut is_logged = false;
        loop {
            let began = Instant::now();
            let mut is_linked = false;
            let Err(broken) = self.live(&mut is_linked).await;
            // A large batch may take longer to arrive than the link may be silent.
            let entries = self.entries.load(Ordering::Relaxed);
            self.entries.store((entries / 2).max(1), Ordering::Relaxed);
            if is_linked || !is_logged {
                tracing::warn!(redis = %self.store.address(), why = %broken, "the live link is lost");
                is_logged = true;
            }
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    async fn live(&self, is_linked: &mut bool) -> Result<Infallible, LinkEnd> {
        let connection = self.connect().await?;
        if self.feed.place().is_none() {
            let Probed { facts, end, .. } = self.run_probe(false).await?;
            self.feed.begin(&facts, end);
        }
        *is_linked = true;
        tracing::info!(redis = %self.store.address(), "the live link is up");
        tokio::select! {
            broken = self.read_feed(connection) => broken,
            broken = self.watch() => broken,
        }
    }

    /// Reads the feed, and gives each entry to the tails.
    async fn read_feed(&self, mut connection: MultiplexedConnection) -> Result<Infallible, LinkEnd> {
        let key = format!("{}feed", self.store.prefix());
        loop {
            let after = self.feed.place().unwrap_or_default();
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT")
                .arg(self.entries.load(Ordering::Relaxed))
                .arg("BLOCK")
                .arg(BLOCK.as_millis() as u64);
            read.arg("STREAMS").arg(&key).arg(after.to_string());
            // Redis answers nothing if there was nothing to read for so long.
            let found: Option<HashMap<String, Vec<Entry>>> = read.query_async(&mut connection).await?;
            self.entries.store(READ_ENTRIES, Ordering::Relaxed);
            found
                .into_iter()
                .flatten()
                .flat_map(|(_, entries)| entries)
                .for_each(|entry| self.feed.arrive(entry));
            // Let the woken readers run first.
            tokio::task::yield_now().await;
        }
    }

    /// Probes again and again. Ends when a probe shows that something does not arrive.
    async fn watch(&self) -> Result<Infallible, LinkEnd> {
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let store = self.store.current();
            tokio::select! {
                // The cause that ended the publishing connection may have ended the link without a sign.
                () = self.store.renewed(store) => {}
                _ = probes.tick() => {}
            }
            self.probe().await?;
        }
    }

    /// Asks the store for its facts.
    pub async fn ask(&self) -> Result<Facts, LogError> {
        Ok(self.run_probe(false).await?.facts)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(BLOCK + PROBE_TIMEOUT));
        Ok(self.store.primary().connect(config).await?.1)
    }

    /// Asks the store for its newest id, and waits until everything up to there has arrived.
    async fn probe(&self) -> Result<(), LinkEnd> {
        let asked = self.store.current();
        let number = self.probes.fetch_add(1, Ordering::Relaxed) + 1;
        let is_sweep = number.is_multiple_of(SWEEP_EVERY) || self.is_unswept.load(Ordering::Relaxed);
        match timeout(PROBE_TIMEOUT, self.run_probe(is_sweep)).await {
            Ok(Ok(Probed { facts, is_unswept, end })) => {
                self.is_unswept.store(is_unswept, Ordering::Relaxed);
                self.feed.keep_for(facts.keep.age);
                self.store.look_at_rules(&facts);
                self.arrived(&facts, end).await?;
                let _ = timeout(PROBE_TIMEOUT, self.store.look_around()).await;
            }
            // The link may still be healthy.
            Ok(Err(_)) => {}
            Err(_) => asked.into_iter().for_each(|number| self.store.give_up(number)),
        }
        Ok(())
    }

    /// Waits until everything has arrived that the store had when it gave these facts, for as long as entries
    /// arrive.
    async fn arrived(&self, facts: &Facts, end: Place) -> Result<(), LinkEnd> {
        loop {
            let place = self.feed.place();
            let is_read = |feed: &Feed| feed.has_reached(facts) || feed.has_read(facts, end);
            if self.feed.wait(PROBE_TIMEOUT, is_read).await {
                if !self.feed.has_reached(facts) {
                    // Some entries could not be read, or a script failed. The messages are in their streams.
                    self.feed.begin(facts, self.next_place(facts, end));
                }
                // Only now: an entry from another primary says nothing about the store that answers.
                self.store.has_seen(self.feed.watermark());
                return Ok(());
            }
            if self.feed.generation() != Some(facts.began) {
                // Entries from another primary are useless, and so is the place that they led to.
                self.feed.begin(facts, end);
                return Err(LinkEnd::Elsewhere);
            }
            if self.feed.place() == place {
                return Err(LinkEnd::Behind);
            }
        }
    }

    /// The place at which reading goes on. No entry before it is given again. A place ahead of the store is that of an entry
    /// that is not ours, so reading goes back from there.
    fn next_place(&self, facts: &Facts, end: Place) -> Place {
        self.feed.place().filter(|place| place.id <= facts.newest).map_or(end, |place| place.max(end))
    }

    async fn run_probe(&self, is_sweep: bool) -> Result<Probed, LogError> {
        let is_sweep = if is_sweep { "1" } else { "0" };
        let (facts, is_unswept, end): (Facts, u8, Place) =
            self.store.read(&self.store.scripts.probe, "", &[is_sweep.as_bytes()]).await?;
        self.store.has_seen(facts.newest);
        Ok(Probed { facts, is_unswept: is_unswept == 1, end })
    }
}
