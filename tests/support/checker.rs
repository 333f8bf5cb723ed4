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

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::timeout};

pub use self::tally::Tally;
use self::{standing::Standing, subscriber::Subscriber, truth::Truth, verdict::History};
use super::Server;

/// What the server keeps during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Everything,
    /// The newest so many messages of each topic.
    Newest(u64),
}

/// How much happens in a run, and what the clients put up with.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub retention: Retention,
    pub subscribers: usize,
    /// How often each of them is cut.
    pub sessions: usize,
    /// A run does not end before this many messages, however soon the subscribers are done.
    pub messages: u64,
    pub trouble: Trouble,
}

/// What befalls the servers, beside the clients' own connections. Where there is some, publishers repeat with
/// the same key whatever has no outcome that they know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// A request may be turned away; a connection, once open, lasts.
    Refusals,
    /// Connections end as well.
    Ends,
}

impl Plan {
    pub fn thorough(retention: Retention) -> Self {
        Self { retention, subscribers: 28, sessions: 35, messages: 1_500, trouble: Trouble::None }
    }

    /// A short one, for a server that is troubled.
    pub fn short(trouble: Trouble) -> Self {
        Self { retention: Retention::Everything, subscribers: 14, sessions: 6, messages: 400, trouble }
    }
}

const PUBLISHERS: usize = 4;
/// Nobody should ever wait for this: it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// What everyone in a run shares.
struct World {
    /// Replicas of one deployment. Clients hop between them.
    servers: Vec<SocketAddr>,
    seed: u64,
    plan: Plan,
    truth: Truth,
    tally: Arc<Tally>,
    /// What befalls the servers has come to its end. The publishers go on until then.
    is_calm: watch::Sender<bool>,
    /// How many subscribers are not yet on their last connection. The publishers go on until it is none.
    restless: watch::Sender<usize>,
    /// What each task that is not done waits for, to be read when nothing moves any more.
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

    /// Whether the publishers still have something to do.
    fn is_busy(&self) -> bool {
        *self.restless.borrow() > 0
            || self.truth.acknowledged() < self.plan.messages
            || !*self.is_calm.borrow()
    }

    /// The randomness of one task: its own, and the same for the same seed.
    fn rng(&self, who: &str) -> StdRng {
        let salt = who.bytes().fold(0_u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
        StdRng::seed_from_u64(self.seed ^ StdRng::seed_from_u64(salt).random::<u64>())
    }

    fn whereabouts(&self) -> String {
        let waits = self.waits.lock().expect("no panic while it is held");
        waits.iter().map(|(who, what)| format!("  {who}: {what}\n")).collect()
    }
}

/// A thorough run against a server in memory.
///
/// # Panics
/// As [`run_against`].
pub async fn run(seed: u64, retention: Retention, tally: Arc<Tally>) {
    let server = Server::with(|config| {
        // Quiet, so that nobody is woken by it who should have been woken by a message.
        config.heartbeat = Duration::from_secs(60 * 60);
        config.retain_age = Duration::from_secs(24 * 60 * 60);
        config.retain_bytes = 128 << 20;
        config.retain_messages = match retention {
            Retention::Everything => 1_000_000,
            Retention::Newest(count) => count.try_into().expect("a small number"),
        };
    })
    .await;
    run_against(vec![server.addr], seed, Plan::thorough(retention), tally, async |_| {}).await;
    server.stop().await;
}

/// How far a run has come: the clock by which servers are troubled.
#[derive(Clone)]
pub struct Progress(Arc<World>);

impl Progress {
    /// Resolves when so many messages more have been acknowledged.
    pub async fn by(&self, messages: u64) {
        self.0.truth.grows_by(messages).await;
    }

    pub fn acknowledged(&self) -> u64 {
        self.0.truth.acknowledged()
    }
}

/// Plays against servers that are there already, while `trouble` befalls them; it decides when there was enough.
///
/// # Panics
/// On the first thing that is not as promised, and when nothing moves any more.
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
        restless: watch::Sender::new(plan.subscribers),
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

/// Everything is known now: who was promised what, what was published, and what came.
fn judge(world: &World, standings: &[Standing]) -> Result<(), String> {
    let history = History::of(&world.truth, world.plan.retention);
    for standing in standings {
        verdict::judge(standing, &history).map_err(|wrong| format!("{}: {wrong}", standing.name))?;
        world.tally.received(standing);
    }
    world.tally.published(history.len());
    Ok(())
}
