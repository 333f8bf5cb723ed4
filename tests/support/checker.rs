//! One run of the checker: publishers, subscribers whose connections are cut, and the verdict at the end.

mod payload;
mod publisher;
mod standing;
mod subscriber;
mod tally;
mod truth;
mod verdict;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rejoin::config::Parking;
use tokio::{sync::watch, task::JoinSet, time::timeout};

pub use self::tally::Tally;
use self::{standing::Standing, subscriber::Subscriber, truth::Truth, verdict::History};
use super::Server;

/// How much the server retains during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Everything,
    /// This many of the newest messages of each topic.
    Newest(u64),
}

/// How much happens in a run, and which trouble the clients have to endure.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub retention: Retention,
    pub subscribers: usize,
    /// How often each subscriber is cut off.
    pub sessions: usize,
    /// A run publishes at least this many messages, even if the subscribers are done earlier.
    pub messages: u64,
    pub trouble: Trouble,
}

/// The trouble of the servers, besides the clients' own connections. If there is any, publishers repeat a
/// message whose outcome they do not know, with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// A request may be refused, but an open connection stays.
    Refusals,
    /// Connections end as well.
    Ends,
}

impl Plan {
    pub fn thorough(retention: Retention) -> Self {
        Self { retention, subscribers: 28, sessions: 32, messages: 1_500, trouble: Trouble::None }
    }

    /// A short run, for a server in trouble.
    pub fn short(trouble: Trouble) -> Self {
        Self { retention: Retention::Everything, subscribers: 14, sessions: 6, messages: 400, trouble }
    }
}

const PUBLISHERS: usize = 4;
/// How long nothing may happen. This turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// The state that all tasks of a run share.
struct World {
    /// Replicas of one deployment. Clients change between them.
    servers: Vec<SocketAddr>,
    seed: u64,
    plan: Plan,
    truth: Truth,
    tally: Arc<Tally>,
    /// True once the trouble of the servers is over. The publishers continue until then.
    is_calm: watch::Sender<bool>,
    /// How many subscribers are not yet on their last connection. The publishers continue until there are
    /// none.
    unsettled: watch::Sender<usize>,
    /// The event that each running task waits for, for the report of a hang.
    waits: Mutex<BTreeMap<String, String>>,
}

impl World {
    fn note(&self, who: &str, what: String) {
        self.waits.lock().expect("no panic while it is held").insert(who.to_owned(), what);
    }

    fn is_done(&self, who: &str) {
        self.waits.lock().expect("no panic while it is held").remove(who);
    }

    fn server(&self, rng: &mut StdRng) -> SocketAddr {
        match self.servers[..] {
            [only] => only,
            _ => self.servers[rng.random_range(0..self.servers.len())],
        }
    }

    /// True while the publishers have to continue.
    fn is_busy(&self) -> bool {
        *self.unsettled.borrow() > 0
            || self.truth.acknowledged() < self.plan.messages
            || !*self.is_calm.borrow()
    }

    /// The random numbers of one task: its own, and the same for the same seed.
    fn rng(&self, who: &str) -> StdRng {
        let salt = who.bytes().fold(0_u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
        StdRng::seed_from_u64(self.seed ^ StdRng::seed_from_u64(salt).random::<u64>())
    }

    fn whereabouts(&self) -> String {
        let waits = self.waits.lock().expect("no panic while it is held");
        waits.iter().map(|(who, what)| format!("  {who}: {what}\n")).collect()
    }
}

/// A run against a server in memory.
///
/// # Panics
/// Like [`run_against`].
pub async fn run(seed: u64, plan: Plan, parking: Parking, tally: Arc<Tally>) {
    let server = Server::with(|config| {
        // Without heartbeats, so that a subscriber is woken only by messages.
        config.heartbeat = Duration::from_secs(60 * 60);
        config.parking = parking;
        config.retain_age = Duration::from_secs(24 * 60 * 60);
        config.retain_bytes = 128 << 20;
        config.retain_messages = match plan.retention {
            Retention::Everything => 1_000_000,
            Retention::Newest(count) => count.try_into().expect("a small number"),
        };
    })
    .await;
    run_against(vec![server.addr], seed, plan, tally, async |_| {}).await;
    server.stop().await;
}

/// The progress of a run. Trouble begins and ends at points of it, as if it were a clock.
#[derive(Clone)]
pub struct Progress(Arc<World>);

impl Progress {
    /// Resolves when this many more messages have been acknowledged.
    pub async fn by(&self, messages: u64) {
        self.0.truth.grows_by(messages).await;
    }

    pub fn acknowledged(&self) -> u64 {
        self.0.truth.acknowledged()
    }
}

/// Runs against servers that exist already, during `trouble`, which decides when the run ends.
///
/// # Panics
/// If a promise is broken, or if nothing happens any more.
pub async fn run_against<Outcome>(
    servers: Vec<SocketAddr>,
    seed: u64,
    plan: Plan,
    tally: Arc<Tally>,
    trouble: impl AsyncFnOnce(Progress) -> Outcome,
) -> Outcome {
    let world = Arc::new(World {
        servers,
        seed,
        plan,
        truth: Truth::new(),
        tally,
        is_calm: watch::Sender::new(false),
        unsettled: watch::Sender::new(plan.subscribers),
        waits: Mutex::default(),
    });
    let trouble = async {
        let outcome = trouble(Progress(world.clone())).await;
        world.is_calm.send_replace(true);
        Ok(outcome)
    };
    match timeout(PATIENCE, async { tokio::try_join!(play(&world), trouble) }).await {
        Ok(Ok(((), outcome))) => outcome,
        Ok(Err(failure)) => panic!("seed {seed}, {plan:?}: {failure}"),
        Err(_) => panic!("seed {seed}, {plan:?}: nothing moves any more:\n{}", world.whereabouts()),
    }
}

async fn play(world: &Arc<World>) -> Result<(), String> {
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        publishers.spawn(publisher::publish(world.clone(), number));
    }
    let mut subscribers = JoinSet::new();
    for number in 0..world.plan.subscribers {
        subscribers.spawn(Subscriber::new(world, number).live());
    }
    let mut standings = Vec::new();
    loop {
        tokio::select! {
            Some(done) = publishers.join_next() => {
                done.expect("a publisher does not panic")?;
                if publishers.is_empty() {
                    world.truth.close();
                }
            }
            Some(done) = subscribers.join_next() => {
                standings.push(done.expect("a subscriber does not panic")?);
            }
            else => break,
        }
    }
    judge(world, &standings)
}

/// Compares everything that was promised, published and received.
fn judge(world: &World, standings: &[Standing]) -> Result<(), String> {
    let history = History::of(&world.truth, world.plan.retention);
    for standing in standings {
        verdict::judge(standing, &history).map_err(|wrong| format!("{}: {wrong}", standing.name))?;
        world.tally.received(standing);
    }
    world.tally.published(history.len());
    Ok(())
}
