//! A Redis for one test, replicas over it in this process, and the settings of a test.

use std::{
    env,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rejoin::{
    Config,
    config::{LogKind, Parking},
};

use crate::support::{
    Server,
    checker::{Plan, Progress, Tally, Trouble, run_against},
    http_client,
    redis::Redis,
};

/// Replicas over one store. Each runs in this process and has its own address of the store.
pub struct Deployment {
    pub replicas: Vec<Server>,
    pub urls: Vec<String>,
}

impl Deployment {
    /// Starts a replica for each of these addresses of the store. If there must be more, they use the last
    /// address.
    pub async fn over(urls: &[String]) -> Self {
        let mut urls = urls.to_vec();
        let last = urls.last().expect("at least one").clone();
        urls.resize(urls.len().max(least_replicas()), last);
        let mut replicas = Vec::new();
        for url in &urls {
            let parking = parking(replicas.len());
            replicas.push(Server::with(|config| configure(config, url, parking)).await);
        }
        let deployment = Self { replicas, urls };
        for addr in deployment.addrs() {
            until_ready(addr).await;
        }
        deployment
    }

    pub async fn of(count: usize, redis: &Redis) -> Self {
        Self::over(&vec![redis.url(); count]).await
    }

    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.replicas.iter().map(|replica| replica.addr).collect()
    }

    pub async fn stop(self) {
        for replica in self.replicas {
            replica.stop().await;
        }
    }
}

/// Runs the checker while `trouble` happens to these replicas or their store. Prints the sums.
pub async fn play(deployment: &Deployment, seed: u64, trouble: Trouble, befall: impl AsyncFnOnce(Progress)) {
    let tally = Arc::new(Tally::default());
    run_against(deployment.addrs(), seed, Plan::short(trouble), tally.clone(), befall).await;
    println!("{}", tally.summary());
}

fn configure(config: &mut Config, url: &str, parking: Parking) {
    config.parking = parking;
    config.log = LogKind::from_str(url).expect("an address");
    // Without heartbeats, only messages wake readers.
    config.heartbeat = Duration::from_secs(60 * 60);
    config.retain_age = Duration::from_secs(24 * 60 * 60);
    config.retain_bytes = 128 << 20;
    config.retain_messages = 1_000_000;
}

/// The replicas of a deployment differ in when readers join groups, and each deployment begins with another way.
/// `REDIS_PARKING` is `always`, `never` or `random` for all of them.
fn parking(replica: usize) -> Parking {
    static DEPLOYMENTS: AtomicUsize = AtomicUsize::new(0);
    let seed = u64::from(rand::random::<u32>());
    match env::var("REDIS_PARKING").as_deref() {
        Ok("always") => return Parking::Always,
        Ok("never") => return Parking::Never,
        Ok("random") => {
            println!("parking at random: {seed}");
            return Parking::AtRandom(seed);
        }
        Ok(other) => panic!("REDIS_PARKING={other} is no way to park"),
        Err(_) => {}
    }
    let ways = [Parking::AtRandom(seed), Parking::Always, Parking::WithCompany, Parking::Never];
    ways[(replica + DEPLOYMENTS.fetch_add(1, Ordering::Relaxed)) % ways.len()]
}

/// How often a server is asked before the test gives up, and how long the test waits in between. Attempts are
/// counted, so a pause of the whole machine does not fail the test. It turns a hang into a failure.
const ATTEMPTS: usize = 1000;
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until a server says that publishing and the live feed work.
///
/// # Panics
/// If it never does.
pub async fn until_ready(addr: SocketAddr) {
    for _ in 0..ATTEMPTS {
        if is_ready(addr).await {
            return;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    panic!("{addr} is never ready");
}

pub async fn is_ready(addr: SocketAddr) -> bool {
    let client = http_client().timeout(PATIENCE).build().expect("a client");
    let answer = client.get(format!("http://{addr}/health/ready")).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

/// The seed of a test. Prints it.
pub fn seed() -> u64 {
    let seed = from_env("REDIS_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("REDIS_SEED={seed}");
    seed
}

/// How often each fault happens: once by default, more often if set by hand.
pub fn rounds() -> usize {
    from_env("REDIS_ROUNDS").unwrap_or(1)
}

/// The smallest number of replicas.
pub fn least_replicas() -> usize {
    from_env("REDIS_REPLICAS").unwrap_or(1)
}

/// # Panics
/// If the variable is set, but not to a number.
fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
