//! Replicas end, hang or drain while their clients are busy.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    deployment::{least_replicas, rounds, seed, until_ready},
    support::{
        checker::{Plan, Progress, Tally, Trouble, run_against},
        redis::Redis,
    },
};

const PAUSE: Duration = Duration::from_secs(10);

/// A replica in a process of its own, which is killed when this is dropped.
pub struct Replica {
    pub addr: SocketAddr,
    url: String,
    settings: &'static [&'static str],
    child: Child,
}

impl Replica {
    pub async fn start(url: String) -> Self {
        Self::with(url, &[]).await
    }

    /// A replica with these settings besides the usual ones.
    pub async fn with(url: String, settings: &'static [&'static str]) -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let replica = Self { addr, child: spawn(addr, &url, settings), url, settings };
        until_ready(addr).await;
        replica
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it takes signals");
    }

    /// Stops the process, and waits until none of its threads runs. The signal alone takes effect a little later.
    pub async fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = || {
            let mut tasks = std::fs::read_dir(&tasks).expect("it runs").flatten();
            tasks.all(|task| {
                std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
            })
        };
        while !is_stopped() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the process has ended, and starts it again at the same address.
    pub async fn start_again(&mut self) {
        while self.child.try_wait().expect("a child").is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = spawn(self.addr, &self.url, self.settings);
        until_ready(self.addr).await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(addr: SocketAddr, url: &str, settings: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", &addr.to_string(), "--log", url, "--heartbeat", "1h", "--retain-age", "1d"])
        .args(["--retain-messages", "1000000", "--retain-bytes", "128MiB", "--drain-grace", "2s"])
        .args(settings)
        .env("REJOIN_LOG_LEVEL", "error")
        .stdout(Stdio::null())
        .spawn()
        .expect("the server starts")
}

/// The other replicas, which have no fault.
async fn calm(redis: &Redis) -> Vec<Replica> {
    let mut calm = Vec::new();
    while calm.is_empty() || calm.len() + 1 < least_replicas() {
        calm.push(Replica::start(redis.url()).await);
    }
    calm
}

async fn check(trouble: impl AsyncFnOnce(Progress, &mut Replica)) {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let mut troubled = Replica::start(redis.url()).await;
    let calm = calm(&redis).await;
    let tally = Arc::new(Tally::default());
    let addrs = [&troubled].into_iter().chain(&calm).map(|replica| replica.addr).collect();
    run_against(addrs, seed, Plan::short(Trouble::Ends), tally.clone(), async |progress| {
        trouble(progress, &mut troubled).await;
    })
    .await;
    println!("{}", tally.summary());
    assert!(tally.ended() > 0, "no client felt it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_replica_that_is_killed_miss_nothing() {
    check(async |progress, replica| {
        for _ in 0..3 * rounds() {
            progress.by(80).await;
            replica.signal(Signal::KILL);
            replica.start_again().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_replica_that_is_drained_while_busy_miss_nothing() {
    check(async |progress, replica| {
        for _ in 0..2 * rounds() {
            progress.by(80).await;
            replica.signal(Signal::TERM);
            replica.start_again().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_for_ten_seconds_gives_out_nothing_wrong_afterwards() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = seed();
    let (paused, calm) = (Replica::start(redis.url()).await, calm(&redis).await);
    let tally = Arc::new(Tally::default());
    let addrs = [&paused].into_iter().chain(&calm).map(|replica| replica.addr).collect();
    let plan = Plan::short(Trouble::Ends);
    run_against(addrs, seed, plan, tally.clone(), async |progress| {
        progress.by(100).await;
        paused.signal(Signal::STOP);
        let before = progress.acknowledged();
        tokio::time::sleep(PAUSE).await;
        println!("{} messages acknowledged meanwhile", progress.acknowledged() - before);
        assert!(progress.acknowledged() > before, "nothing happened meanwhile");
        paused.signal(Signal::CONT);
        until_ready(paused.addr).await;
        progress.by(100).await;
    })
    .await;
    println!("{}", tally.summary());
}
