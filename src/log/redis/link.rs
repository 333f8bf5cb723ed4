//! The live link: one connection over which everything that is followed here arrives, in the order of ids.
//!
//! It is made anew whenever it breaks or a probe does not come back over it. What was missed meanwhile is
//! found in the index of the store, before anything newer is given out.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, PushInfo, PushKind, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, RwLock, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    codec::Announced,
    facts::{Facts, Num},
    feed::{Feed, Followed},
    store::{ANSWER_TIMEOUT, CONNECT_TIMEOUT, Part, RETRY_AFTER, Store},
};
use crate::{
    log::LogError,
    message::{Id, Pattern},
};

/// How often it is proven that what is published arrives.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long a probe may take to be answered, and then to arrive. Where both ways have died without a sign, the one
/// is found after the other, and both within three seconds.
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// Each so many probes sweep what has expired; as long as there is more of it, each one does.
const SWEEP_EVERY: u64 = 8;
/// How many channels are subscribed to at once.
const SUBSCRIBE_BATCH: usize = 500;

/// The link, and what is subscribed to over it.
pub struct Link {
    store: Arc<Store>,
    feed: Arc<Feed>,
    connection: watch::Sender<Option<(u64, MultiplexedConnection)>>,
    /// Taken for reading to subscribe, for writing to unsubscribe: the two must not overtake each other.
    order: RwLock<()>,
    /// Where probes are announced to the link that is there, or is being made. Each link has a channel of its own: one
    /// that is dead, and still open somewhere on the way, counts as a listener of no other.
    own_channel: Mutex<String>,
    probes: AtomicU64,
    /// The last sweep has left something.
    is_unswept: AtomicBool,
}

/// The answer to a probe.
struct Probed {
    facts: Facts,
    /// The sweep has left something.
    is_unswept: bool,
    /// How many connections to the server that answered listen to the link's own channel.
    listeners: u64,
}

/// Why a link is given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("what the tails lack could not be asked for")]
    Unsettled,
    #[error("a probe did not arrive")]
    Silent,
    #[error("the link leads to another server than the one that answers")]
    Elsewhere,
    #[error("it was closed")]
    Closed,
}

impl Link {
    pub fn new(store: Arc<Store>, feed: Arc<Feed>) -> Self {
        let (connection, order) = (watch::Sender::new(None), RwLock::default());
        let (own_channel, probes, is_unswept) = Default::default();
        Self { store, feed, connection, order, own_channel, probes, is_unswept }
    }

    /// Links, again and again. Never ends.
    pub async fn keep_linked(self: Arc<Self>) {
        let mut was_told = false;
        loop {
            let began = Instant::now();
            let closed = Arc::new(Notify::new());
            let is_linked = || self.connection.borrow().is_some();
            let broken = tokio::select! {
                broken = self.live(closed.clone()) => broken,
                () = closed.notified() => Broken::Closed,
            };
            if is_linked() || !was_told {
                tracing::warn!(redis = %self.store.address(), why = %broken, "the live link is lost");
                was_told = true;
            }
            self.connection.send_replace(None);
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    async fn live(&self, closed: Arc<Notify>) -> Broken {
        match self.try_live(closed).await {
            Ok(never) => match never {},
            Err(broken) => broken,
        }
    }

    async fn try_live(&self, closed: Arc<Notify>) -> Result<std::convert::Infallible, Broken> {
        let number = self.feed.begin_link();
        let mut connection = self.connect(number, closed).await?;
        // Listen first, then look back: nothing falls between.
        let own_channel = format!("{}probe:{:016x}", self.store.prefix(), rand::random::<u64>());
        self.own_channel().clone_from(&own_channel);
        connection.subscribe(own_channel).await?;
        let wanted: Vec<_> = self.feed.wanted().iter().map(|pattern| self.channel_of(pattern)).collect();
        for channels in wanted.chunks(SUBSCRIBE_BATCH) {
            connection.subscribe(channels).await?;
        }
        self.settle(number).await?;
        self.connection.send_replace(Some((number, connection)));
        tracing::info!(redis = %self.store.address(), "live");

        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut store = self.store.current();
        loop {
            tokio::select! {
                () = self.feed.is_unsettled() => self.settle(number).await?,
                // What ended the one connection may have ended the other without a sign.
                () = self.store.is_renewed(store) => {
                    store = self.store.current();
                    self.probe().await?;
                }
                _ = probes.tick() => {
                    self.probe().await?;
                    self.unsubscribe_idle().await?;
                }
            }
        }
    }

    /// Follows a topic or pattern: once this has resolved, whatever is published to it arrives.
    ///
    /// Waits for a link for as long as there is none.
    pub async fn join(&self, followed: &Followed) -> Result<(), LogError> {
        let pattern = followed.tail.name();
        let channel = self.channel_of(pattern);
        loop {
            let (number, mut connection) = self.connected().await?;
            let order = self.order.read().await;
            if connection.subscribe(&channel).await.is_err() {
                // The next link will do.
                drop(order);
                self.is_past(number).await;
                continue;
            }
            let newest = self.newest_of(pattern).await?;
            if self.feed.join(number, followed, newest) {
                return Ok(());
            }
        }
    }

    /// Asks for the newest id, and has it announced: what was published before this was asked is on its way
    /// before it.
    pub async fn ask(&self) -> Result<Facts, LogError> {
        Ok(self.run_probe(0, false).await?.facts)
    }

    async fn connect(&self, number: u64, closed: Arc<Notify>) -> Result<MultiplexedConnection, RedisError> {
        let feed = self.feed.clone();
        // Taken as it arrives, so that nothing is read from the socket that there is no room for.
        let take = move |push: PushInfo| {
            match push.kind {
                PushKind::Message => {
                    if let [_, Value::BulkString(bytes)] = &*push.data
                        && let Some(announced) = Announced::parse(bytes)
                    {
                        feed.arrive(number, announced);
                    }
                }
                PushKind::Disconnection => closed.notify_one(),
                _ => {}
            }
            Ok::<(), std::convert::Infallible>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_push_sender(take);
        let client = Client::open(self.store.address().connection_info())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn connected(&self) -> Result<(u64, MultiplexedConnection), LogError> {
        let mut connection = self.connection.subscribe();
        let made = connection.wait_for(Option::is_some).await.map_err(|_| LogError::Unavailable)?;
        made.clone().ok_or(LogError::Unavailable)
    }

    /// Resolves when this link has been given up.
    async fn is_past(&self, number: u64) {
        let mut connection = self.connection.subscribe();
        let is_other = |link: &Option<(u64, _)>| link.as_ref().is_none_or(|(current, _)| *current != number);
        // The sender is in self.
        let _ = connection.wait_for(is_other).await;
    }

    /// Compares the tails with the index.
    async fn settle(&self, number: u64) -> Result<(), Broken> {
        let from = self.feed.watermark();
        self.store.has_seen(from);
        // Over both connections: what is read over the one must be of the life that the other tells of.
        let facts = self.probe().await?.ok_or(Broken::Unsettled)?;
        if !self.feed.turn(number, &facts) {
            return Err(Broken::Unsettled);
        }
        // Where no tail was ever vouched for, there is nothing to compare.
        if from > Id::ZERO {
            let mend = |members: Vec<(String, Id)>| self.feed.mend(&members);
            self.store.index(Part::Topics(from), mend).await.map_err(|_| Broken::Unsettled)?;
            self.store.index(Part::Marks(from), mend).await.map_err(|_| Broken::Unsettled)?;
        }
        // As of before it was compared: what came later arrives over the link.
        if self.feed.settle(number, &facts) { Ok(()) } else { Err(Broken::Unsettled) }
    }

    /// The point from which on everything will arrive, asked after the subscription.
    async fn newest_of(&self, pattern: &Pattern) -> Result<Id, LogError> {
        let name = pattern.as_str();
        let (facts, newest): (Facts, Vec<Num>) =
            self.store.read(&self.store.scripts.look, "", &[name.as_bytes()]).await?;
        self.store.has_seen(facts.newest);
        if pattern.has_wildcard() {
            return Ok(facts.newest);
        }
        Ok(match newest.first() {
            Some(Num(newest)) if *newest > Id::ZERO => (*newest).max(facts.began),
            _ => facts.forgotten.max(facts.began),
        })
    }

    /// What the store says, once it has come over the link too; nothing if the store cannot be asked.
    async fn probe(&self) -> Result<Option<Facts>, Broken> {
        let asked = self.store.current();
        let token = self.probes.fetch_add(1, Ordering::Relaxed) + 1;
        let is_sweep = token.is_multiple_of(SWEEP_EVERY) || self.is_unswept.load(Ordering::Relaxed);
        match timeout(PROBE_TIMEOUT, self.run_probe(token, is_sweep)).await {
            Ok(Ok(Probed { facts, is_unswept, listeners })) => {
                self.is_unswept.store(is_unswept, Ordering::Relaxed);
                // A copy brings the probe too, but not what is announced only where somebody listens.
                if listeners == 0 {
                    return Err(Broken::Elsewhere);
                }
                self.feed.keep_for(facts.keep.age);
                if !self.feed.wait(PROBE_TIMEOUT, |feed| feed.echoed() >= token).await {
                    return Err(Broken::Silent);
                }
                let _ = timeout(PROBE_TIMEOUT, self.store.check_durability()).await;
                return Ok(Some(facts));
            }
            // The link may be well all the same.
            Ok(Err(_)) => {}
            Err(_) => asked.into_iter().for_each(|number| self.store.give_up(number)),
        }
        Ok(None)
    }

    async fn run_probe(&self, token: u64, is_sweep: bool) -> Result<Probed, LogError> {
        let own_channel = self.own_channel().clone();
        let (token, is_sweep) = (token.to_string(), if is_sweep { "1" } else { "0" });
        let args = [own_channel.as_bytes(), token.as_bytes(), is_sweep.as_bytes()];
        let (facts, is_unswept, listeners): (Facts, u8, u64) =
            self.store.read(&self.store.scripts.probe, "", &args).await?;
        self.store.has_seen(facts.newest);
        Ok(Probed { facts, is_unswept: is_unswept == 1, listeners })
    }

    fn own_channel(&self) -> MutexGuard<'_, String> {
        self.own_channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unsubscribe_idle(&self) -> Result<(), Broken> {
        // Whoever is about to follow goes first, but who comes meanwhile waits: somebody always comes.
        let Ok(_order) = timeout(PROBE_TIMEOUT, self.order.write()).await else { return Ok(()) };
        let idle = self.feed.drop_idle(Instant::now());
        if idle.is_empty() {
            return Ok(());
        }
        let Ok((_, mut connection)) = self.connected().await else { return Ok(()) };
        let kept: std::collections::HashSet<_> =
            self.feed.wanted().iter().map(|pattern| self.channel_of(pattern)).collect();
        let mut channels: Vec<_> = idle.iter().map(|pattern| self.channel_of(pattern)).collect();
        channels.retain(|channel| !kept.contains(channel));
        for channels in channels.chunks(SUBSCRIBE_BATCH) {
            connection.unsubscribe(channels).await?;
        }
        Ok(())
    }

    /// Where a topic is announced, or all topics that a pattern can match: those of its first segment, or all.
    fn channel_of(&self, pattern: &Pattern) -> String {
        let prefix = self.store.prefix();
        if !pattern.has_wildcard() {
            return format!("{prefix}t:{pattern}");
        }
        match pattern.as_str().split('.').next() {
            Some(first) if !first.contains('*') => format!("{prefix}s:{first}"),
            _ => format!("{prefix}a"),
        }
    }
}
