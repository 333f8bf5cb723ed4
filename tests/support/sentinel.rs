//! A test's own Sentinels, on free ports of the loopback, which watch a primary and its copies.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::redis::{Redis, free_port, program};

/// The name under which the Sentinels watch the primary.
pub const MASTER: &str = "the-primary";
/// How often a Sentinel is asked until the test gives up, and the pause between two attempts.
const ATTEMPTS: usize = 500;
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The number of Sentinels. Two of them have to agree.
const COUNT: usize = 3;

/// Sentinels; they are killed when this is dropped.
pub struct Sentinels {
    ports: Vec<u16>,
    folder: PathBuf,
    children: Vec<Child>,
}

impl Sentinels {
    /// Starts three Sentinels that know each other, the primary and its copies from the beginning. `settings`
    /// are further lines of their configuration.
    pub async fn watch(primary: &Redis, copies: &[&Redis], settings: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("rejoin-sentinels-{:016x}", rand::random::<u64>()));
        fs::create_dir(&folder).expect("a folder of its own");
        let ports: Vec<_> = (0..COUNT).map(|_| free_port()).collect();
        let mut sentinels = Self { ports, folder, children: Vec::new() };
        for number in 0..COUNT {
            sentinels.start(number, primary, copies, settings);
        }
        for number in 0..COUNT {
            sentinels.until_says(number, &["CKQUORUM"], "OK 3 usable").await;
        }
        sentinels
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
    }

    /// Makes a copy the primary while the old primary still runs.
    pub async fn fail_over(&self) {
        // The Sentinels may not know yet that the copy is usable.
        self.until_says(0, &["FAILOVER"], "Ok(").await;
    }

    /// Waits until all Sentinels name this server as the primary.
    pub async fn until_named(&self, redis: &Redis) {
        for number in 0..COUNT {
            let port = redis.port.to_string();
            self.until_says(number, &["GET-MASTER-ADDR-BY-NAME"], &port).await;
        }
    }

    async fn until_says(&self, number: usize, words: &[&str], what: &str) {
        let mut answer = String::new();
        for _ in 0..ATTEMPTS {
            answer = format!("{:?}", self.ask(number, words));
            if answer.contains(what) {
                return;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        panic!("SENTINEL {words:?} {MASTER} never says {what}: {answer}");
    }

    fn ask(&self, number: usize, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let url = format!("redis://127.0.0.1:{}", self.ports[number]);
        let mut connection = redis::Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        redis::cmd("SENTINEL").arg(words).arg(MASTER).query(&mut connection)
    }

    fn start(&mut self, number: usize, primary: &Redis, copies: &[&Redis], settings: &[&str]) {
        let id = |number: usize| format!("{number:040}");
        let mut lines = vec![
            format!("port {}", self.ports[number]),
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", self.folder.display()),
            format!("sentinel myid {}", id(number)),
            format!("sentinel monitor {MASTER} 127.0.0.1 {} 2", primary.port),
            format!("sentinel down-after-milliseconds {MASTER} 500"),
        ];
        let others = (0..COUNT).filter(|other| *other != number);
        lines.extend(others.map(|other| {
            format!("sentinel known-sentinel {MASTER} 127.0.0.1 {} {}", self.ports[other], id(other))
        }));
        let copies = copies.iter().map(|copy| copy.port);
        lines.extend(copies.map(|port| format!("sentinel known-replica {MASTER} 127.0.0.1 {port}")));
        lines.extend(settings.iter().map(|&line| line.to_owned()));
        let file = self.folder.join(format!("{number}.conf"));
        fs::write(&file, lines.join("\n")).expect("a configuration");
        let child = Command::new(program()).arg(file).arg("--sentinel").stdout(Stdio::null()).spawn();
        self.children.push(child.expect("it starts"));
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
