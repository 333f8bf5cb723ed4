//! The deployment as its clients see it, and the order of everything that they see.

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::journal::{Change, End, Journal, NEVER, Published};
use crate::signer::{SECRET, Signer, seconds_from_now};

/// Longer than any fault, so that a request is answered once its replica goes on.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a request is repeated that had no clear answer.
pub const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// The topic that every reader reads, and that has its only message at the end.
pub const END: &str = "end";
pub const SETTINGS: &[&str] = &["--jwt-secret", SECRET, "--presence-grace", "1s"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Storm,
    /// No more faults and requests. The clients stay.
    Calm,
    Over,
}

pub struct World {
    pub addrs: Vec<SocketAddr>,
    client: reqwest::Client,
    clock: AtomicU64,
    phase: watch::Sender<Phase>,
    journal: Mutex<Journal>,
}

impl World {
    pub fn new(addrs: Vec<SocketAddr>) -> Self {
        let client = crate::support::http_client().build().expect("a client");
        let (clock, journal) = Default::default();
        Self { addrs, client, clock, phase: watch::Sender::new(Phase::Storm), journal }
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("no actor panics")
    }

    /// A number for what happens now: what comes later has a higher one.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn go_to(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Resolves once this phase, or a later one, has begun.
    pub async fn until(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        let is_there = |now: &Phase| *now == phase || *now == Phase::Over;
        phases.wait_for(is_there).await.expect("the world lasts");
    }

    /// Sleeps, but no longer than the storm lasts.
    pub async fn pause(&self, random: &mut SmallRng, ms: std::ops::Range<u64>) {
        let pause = Duration::from_millis(random.random_range(ms));
        tokio::select! {
            () = sleep(pause) => {}
            () = self.until(Phase::Calm) => {}
        }
    }

    pub fn any(&self, random: &mut SmallRng) -> usize {
        random.random_range(0..self.addrs.len())
    }

    pub fn get(&self, replica: usize, path: &str, token: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("http://{}{path}", self.addrs[replica])).bearer_auth(token)
    }

    /// The status and the body, or `None` if there was no whole answer.
    pub async fn ask(
        &self,
        replica: usize,
        method: Method,
        path: &str,
        body: Option<(u64, String)>,
    ) -> Option<(u16, Value)> {
        let mut request = self.client.request(method, format!("http://{}{path}", self.addrs[replica]));
        if let Some((key, text)) = body {
            request = request.header("idempotency-key", key.to_string()).body(text);
        }
        let answer = request.bearer_auth(backend()).timeout(PATIENCE).send().await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// Repeats a request at any replica until its answer is clear. Returns when it was first asked, when it was answered,
    /// and the status. `None` if the time is over.
    pub async fn insist(&self, random: &mut SmallRng, method: Method, path: &str) -> Option<(u64, u64, u16)> {
        let asked = self.tick();
        while self.phase() != Phase::Over {
            match self.ask(self.any(random), method.clone(), path, None).await {
                Some((status, body)) if status < 500 => {
                    assert!(matches!(status, 204 | 404), "{method} {path}: {status} {body}");
                    return Some((asked, self.tick(), status));
                }
                _ => sleep(AGAIN_AFTER).await,
            }
        }
        None
    }

    /// Has a topic of a connection or of a list changed, and returns the status. `None` if the time is over.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves leaves the change in the journal, as one that may be done.
    pub async fn change(
        &self,
        random: &mut SmallRng,
        of: &str,
        topic: String,
        is_added: bool,
        path: &str,
    ) -> Option<u16> {
        let method = if is_added { Method::PUT } else { Method::DELETE };
        let path = format!("{path}/topics/{topic}");
        let at = {
            let (of, asked) = (of.to_owned(), self.tick());
            let mut journal = self.journal();
            journal.changes.push(Change { of, topic, is_added, asked, answered: NEVER });
            journal.changes.len() - 1
        };
        let (_, answered, status) = self.insist(random, method, &path).await?;
        if status == 204 {
            self.journal().changes[at].answered = answered;
        }
        Some(status)
    }

    /// Publishes until the message is stored.
    async fn store(&self, random: &mut SmallRng, topic: &str) -> Option<u64> {
        let number = {
            let mut journal = self.journal();
            journal.messages.push(Published { topic: topic.to_owned(), asked: self.tick(), stored: None });
            journal.messages.len() as u64 - 1
        };
        let path = format!("/topics/{topic}");
        while self.phase() != Phase::Over {
            let answer =
                self.ask(self.any(random), Method::POST, &path, Some((number, number.to_string()))).await;
            if let Some((200 | 201, body)) = answer {
                let id = number_of(&body["id"]);
                self.journal().messages[number as usize].stored = Some((self.tick(), id));
                return Some(id);
            }
            sleep(AGAIN_AFTER).await;
        }
        None
    }

    /// Publishes the last message of all, and returns its id.
    pub async fn publish_last(&self) -> u64 {
        self.store(&mut SmallRng::seed_from_u64(0), END).await.expect("it is stored")
    }

    /// The first fault has just been. Only the ends that are asked from now on prove anything.
    pub fn note_first_fault(&self) {
        let now = self.tick();
        self.journal().ends_count_from = now;
    }

    /// True if this end proves nothing, or if there was none.
    pub fn needs_end(&self, last_asked: Option<u64>) -> bool {
        last_asked.is_none_or(|asked| asked < self.journal().ends_count_from)
    }

    /// Waits until an end of a subject that proves something was answered.
    ///
    /// # Panics
    /// If none ever is.
    pub async fn until_a_subject_was_ended(&self) {
        let is_done = |journal: &Journal| {
            let counts = |end: &End| end.of.starts_with('l') && end.asked >= journal.ends_count_from;
            journal.ends.iter().any(counts)
        };
        let waits = async {
            while !is_done(&self.journal()) {
                sleep(AGAIN_AFTER).await;
            }
        };
        timeout(PATIENCE, waits).await.expect("the end of a subject is answered while there is no fault");
    }

    /// Waits until every reader that lives has read so far.
    ///
    /// # Panics
    /// If one never does.
    pub async fn until_read(&self, last: u64, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            let behind = self.journal().behind(last);
            if behind.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "these never read {last}: {behind:?}");
            sleep(AGAIN_AFTER).await;
        }
    }
}

/// Publishes to random topics until the storm is over.
pub async fn publish(world: Arc<World>, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    while world.phase() == Phase::Storm {
        let topic = match random.random_range(0..2) {
            0 => format!("c.{}", random.random_range(0..4)),
            _ => format!("l.{}", random.random_range(0..4)),
        };
        world.store(&mut random, &topic).await;
        world.pause(&mut random, 1..15).await;
    }
}

pub fn number_of(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// The time now, as ids count it.
pub fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after it");
    u64::try_from(now.as_micros()).expect("now")
}

/// A token that may do everything.
pub fn backend() -> String {
    let all = ["**"];
    let rights = json!({"subscribe": all, "publish": all, "presence": all, "manage": all, "admin": true});
    Signer::new("HS256").sign(&json!({"exp": seconds_from_now(3600), "rejoin": rights}))
}

/// A token of a subject, issued now.
pub fn token(sub: &str) -> String {
    let claims = json!({"sub": sub, "iat": seconds_from_now(0), "exp": seconds_from_now(3600), "rejoin": {"subscribe": [END, "r.*"]}});
    Signer::new("HS256").sign(&claims)
}
