//! The live link: one connection that reads the feed, on and on, and the proof that nothing is missing.
//!
//! It is made anew whenever it breaks or falls behind, and then reads on from the last entry that it has read. It does
//! not matter whether it leads to the primary or to a copy: a copy has the same feed, a little later.

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

/// How often it is proven that everything has arrived.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a probe may take to be answered, and then what it names to arrive. Where both connections have died without
/// a sign, the one is found after the other, and both within three seconds.
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// How long Redis keeps a read of the feed that finds nothing. A link that is silent for longer is dead.
const BLOCK: Duration = Duration::from_secs(1);
/// How many entries one read of the feed brings.
const READ_ENTRIES: usize = 512;
/// Each so many probes sweep what has expired; as long as there is more of it, each one does.
const SWEEP_EVERY: u64 = 8;

/// The link, and the probes that watch it.
pub struct Link {
    store: Arc<Store>,
    feed: Arc<Feed>,
    probes: AtomicU64,
    /// The last sweep has left something.
    is_unswept: AtomicBool,
    /// How many entries one read of the feed brings: fewer where a link was too slow for more.
    entries: AtomicUsize,
}

/// The answer to a probe.
struct Probed {
    facts: Facts,
    /// The sweep has left something.
    is_unswept: bool,
    /// The newest entry of the feed.
    end: Place,
}

/// Why a link is given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("{0}")]
    Unreachable(#[from] ConnectError),
    #[error("the store does not answer")]
    Unavailable(#[from] LogError),
    #[error("it does not bring what the store has")]
    Behind,
    #[error("it leads to another primary than the one that answers")]
    Elsewhere,
}

impl Link {
    pub fn new(store: Arc<Store>, feed: Arc<Feed>) -> Self {
        let (probes, is_unswept, entries) =
            (AtomicU64::default(), AtomicBool::default(), READ_ENTRIES.into());
        Self { store, feed, probes, is_unswept, entries }
    }

    /// Links, again and again. Never ends.
    pub async fn keep_linked(self: Arc<Self>) {
        let mut is_logged = false;
        loop {
            let began = Instant::now();
            let mut is_linked = false;
            let Err(broken) = self.live(&mut is_linked).await;
            // A large batch may take longer than a link is given to move.
            let entries = self.entries.load(Ordering::Relaxed);
            self.entries.store((entries / 2).max(1), Ordering::Relaxed);
            if is_linked || !is_logged {
                tracing::warn!(redis = %self.store.address(), why = %broken, "the live link is lost");
                is_logged = true;
            }
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    async fn live(&self, is_linked: &mut bool) -> Result<Infallible, Broken> {
        let connection = self.connect().await?;
        if self.feed.place().is_none() {
            let Probed { facts, end, .. } = self.run_probe(false).await?;
            self.feed.begin(&facts, end);
        }
        *is_linked = true;
        tracing::info!(redis = %self.store.address(), "live");
        tokio::select! {
            broken = self.read_feed(connection) => broken,
            broken = self.watch() => broken,
        }
    }

    /// Gives the feed, entry by entry, to the tails.
    async fn read_feed(&self, mut connection: MultiplexedConnection) -> Result<Infallible, Broken> {
        let key = format!("{}feed", self.store.prefix());
        loop {
            let after = self.feed.place().unwrap_or_default();
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT")
                .arg(self.entries.load(Ordering::Relaxed))
                .arg("BLOCK")
                .arg(BLOCK.as_millis() as u64);
            read.arg("STREAMS").arg(&key).arg(after.to_string());
            // Nothing comes back where there was nothing to read for so long.
            let found: Option<HashMap<String, Vec<Entry>>> = read.query_async(&mut connection).await?;
            self.entries.store(READ_ENTRIES, Ordering::Relaxed);
            found
                .into_iter()
                .flatten()
                .flat_map(|(_, entries)| entries)
                .for_each(|entry| self.feed.arrive(entry));
            // The readers that were woken go first.
            tokio::task::yield_now().await;
        }
    }

    /// Proves again and again that everything arrives; ends when it does not.
    async fn watch(&self) -> Result<Infallible, Broken> {
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let store = self.store.current();
            tokio::select! {
                // What ended the one connection may have ended the other without a sign.
                () = self.store.renewed(store) => {}
                _ = probes.tick() => {}
            }
            self.probe().await?;
            self.feed.drop_idle(Instant::now());
        }
    }

    /// What the store holds now.
    pub async fn ask(&self) -> Result<Facts, LogError> {
        Ok(self.run_probe(false).await?.facts)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(BLOCK + PROBE_TIMEOUT));
        Ok(self.store.primary().connect(config).await?.1)
    }

    /// Asks the store what it holds, and waits until all of that has arrived.
    async fn probe(&self) -> Result<(), Broken> {
        let asked = self.store.current();
        let number = self.probes.fetch_add(1, Ordering::Relaxed) + 1;
        let is_sweep = number.is_multiple_of(SWEEP_EVERY) || self.is_unswept.load(Ordering::Relaxed);
        match timeout(PROBE_TIMEOUT, self.run_probe(is_sweep)).await {
            Ok(Ok(Probed { facts, is_unswept, end })) => {
                self.is_unswept.store(is_unswept, Ordering::Relaxed);
                self.feed.keep_for(facts.keep.age);
                self.arrived(&facts, end).await?;
                let _ = timeout(PROBE_TIMEOUT, self.store.check_durability()).await;
            }
            // The link may be well all the same.
            Ok(Err(_)) => {}
            Err(_) => asked.into_iter().for_each(|number| self.store.give_up(number)),
        }
        Ok(())
    }

    /// Waits until everything has arrived that the store had when it said this, as long as something arrives.
    async fn arrived(&self, facts: &Facts, end: Place) -> Result<(), Broken> {
        loop {
            let place = self.feed.place();
            if self.feed.wait(PROBE_TIMEOUT, |feed| feed.has_reached(facts)).await {
                // Only now: what another primary brings says nothing of the store that answers.
                self.store.has_seen(self.feed.watermark());
                return Ok(());
            }
            if self.feed.generation() != Some(facts.began) {
                // What another primary still brings is of no use, nor is the place that it has led to.
                self.feed.begin(facts, end);
                return Err(Broken::Elsewhere);
            }
            if self.feed.place() == place {
                return Err(Broken::Behind);
            }
        }
    }

    async fn run_probe(&self, is_sweep: bool) -> Result<Probed, LogError> {
        let is_sweep = if is_sweep { "1" } else { "0" };
        let (facts, is_unswept, end): (Facts, u8, Place) =
            self.store.read(&self.store.scripts.probe, "", &[is_sweep.as_bytes()]).await?;
        self.store.has_seen(facts.newest);
        Ok(Probed { facts, is_unswept: is_unswept == 1, end })
    }
}
