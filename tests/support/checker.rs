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

const SUBSCRIBERS: usize = 28;
const PUBLISHERS: usize = 4;
/// A run does not end before this many messages, however soon the subscribers are done.
const MESSAGES: u64 = 1_500;
/// Nobody should ever wait for this: it turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// What everyone in a run shares.
struct World {
    server: SocketAddr,
    seed: u64,
    retention: Retention,
    truth: Truth,
    tally: Arc<Tally>,
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

/// # Panics
/// On the first thing that is not as promised, and when nothing moves any more.
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
    let world = Arc::new(World {
        server: server.addr,
        seed,
        retention,
        truth: Truth::new(),
        tally,
        restless: watch::Sender::new(SUBSCRIBERS),
        waits: Mutex::default(),
    });
    match timeout(PATIENCE, play(&world)).await {
        Ok(Ok(())) => server.stop().await,
        Ok(Err(failure)) => panic!("seed {seed}, {retention:?}: {failure}"),
        Err(_) => panic!("seed {seed}, {retention:?}: nothing moves any more:\n{}", world.whereabouts()),
    }
}

async fn play(world: &Arc<World>) -> Result<(), String> {
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        publishers.spawn(publisher::publish(world.clone(), number));
    }
    let mut subscribers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
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
    let history = History::of(&world.truth, world.retention);
    for standing in standings {
        verdict::judge(standing, &history).map_err(|wrong| format!("{}: {wrong}", standing.name))?;
        world.tally.received(standing);
    }
    world.tally.published(history.len());
    Ok(())
}
