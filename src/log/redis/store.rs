//! The publishing connection: it runs the scripts. Calls at the same time share a round trip.
//!
//! This module knows nothing of the link, nor of what the scripts do.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, ConnectionAddr, FromRedisValue, PushInfo, PushKind, RedisError, Script,
    ScriptInvocation, aio::MultiplexedConnection,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    Address, Retention,
    clock::{StoreClock, slept},
    facts::Facts,
    primary::{ConnectError, Primary},
    refusals::{code, is_broken, is_of_copy, is_refused, refused_command},
    retaining::Retaining,
    scripts::{ReadScript, Scripts},
};
use crate::{
    log::{LogError, Unfit},
    message::Id,
};

/// How long an answer may take. After that, it is unknown whether the script ran.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long connecting may take. An attempt that was begun while the network was down delays the next one.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call waits for a connection that is being made, before it fails with nothing sent.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it may take until a publish notices that the connection leads to another primary. A reader that
/// was given messages in between then gets a gap.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The shortest time from one attempt to connect to the next.
pub const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a refusal because of full memory counts. Later publishes show whether there is room again.
const FULL_FOR: Duration = Duration::from_secs(10);
/// How often a connection to a copy is lost, because another address may be the right one now. Meanwhile the copy can be
/// read.
const COPY_FOR: Duration = Duration::from_secs(1);
/// How often a warning repeats what Redis refuses.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long readers write nothing after Redis has refused a write. Then one of them tries again. It is shorter than the
/// time between two probes, so that each probe tries.
const FROZEN_FOR: Duration = Duration::from_millis(900);

/// A machine that slept for longer has slept while a request was on its way.
const NO_SLEEP: Duration = Duration::from_millis(100);

/// How many members of the index are read in one step.
const INDEX_BATCH: usize = 2000;

/// One connection. Its number keeps a late error on it from ending the next one.
#[derive(Clone)]
struct Connection {
    number: u64,
    redis: MultiplexedConnection,
    /// When a script last checked which primary the connection leads to.
    looked: Arc<Mutex<Option<Instant>>>,
    /// `None` after Redis has shown another time.
    clock: Arc<Mutex<Option<StoreClock>>>,
}

impl Connection {
    fn looked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time of Redis until which it may do what was asked at `begun`.
    async fn deadline(&mut self, begun: Instant) -> Result<u64, RedisError> {
        let known = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = match known {
            Some(clock) => clock,
            None => self.ask_time().await?,
        };
        Ok(clock.deadline(begun, ANSWER_TIMEOUT))
    }

    async fn ask_time(&mut self) -> Result<StoreClock, RedisError> {
        let asked = StoreClock::ask(&mut self.redis).await?;
        let mut known = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = asked.or_better(*known);
        *known = Some(clock);
        Ok(clock)
    }

    fn forget_time(&self) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The use of a script.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It checks which primary runs it.
    Read,
    /// It has a deadline.
    Change,
}

/// Why a script has no answer.
struct Failure {
    error: LogError,
    /// True if Redis runs only scripts without writes.
    is_frozen: bool,
    /// True if the script came after its deadline, by the time of Redis.
    is_late: bool,
    /// The reason that Redis gave, in words without secrets.
    why: Option<String>,
}

impl Failure {
    const NOTHING_SENT: Self =
        Self { error: LogError::Unavailable, is_frozen: false, is_late: false, why: None };
    const NO_ANSWER: Self =
        Self { error: LogError::UnknownOutcome, is_frozen: false, is_late: false, why: None };
}

/// Runs scripts over the current connection.
pub struct Store {
    pub scripts: Scripts,
    primary: Primary,
    prefix: String,
    /// The limits of retention, which this process sets for all replicas.
    pub(super) retaining: Retaining,
    /// True if copies confirm each message. Then each script finds out which primary it runs on.
    is_confirmed: bool,
    connection: watch::Sender<Option<Connection>>,
    /// The newest id that this process has seen. A store that is behind it has lost messages.
    known: AtomicU64,
    /// True if every acknowledged message is on disk.
    is_durable: AtomicBool,
    /// When Redis last refused a script because its memory was full.
    full_at: Mutex<Option<Instant>>,
    /// True if the store has a format that this version does not know.
    is_foreign: AtomicBool,
    /// When a connection was last lost because it led to a copy.
    left_copy_at: Mutex<Option<Instant>>,
    /// When Redis last refused to write.
    frozen_at: Mutex<Option<Instant>>,
    /// When a warning last told what Redis refused.
    said: Mutex<Option<Instant>>,
    /// When an error last told that publishing cannot work.
    said_unfit: Mutex<Option<Instant>>,
}

impl Store {
    pub fn new(address: Address, retention: &Retention, is_confirmed: bool) -> Self {
        Self {
            scripts: Scripts::default(),
            prefix: address.prefix(),
            primary: Primary::new(address),
            retaining: Retaining::new(retention),
            is_confirmed,
            connection: watch::Sender::new(None),
            known: AtomicU64::new(0),
            is_durable: AtomicBool::new(false),
            full_at: Mutex::default(),
            is_foreign: AtomicBool::new(false),
            left_copy_at: Mutex::default(),
            frozen_at: Mutex::default(),
            said: Mutex::default(),
            said_unfit: Mutex::default(),
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn address(&self) -> &Address {
        self.primary.address()
    }

    pub fn primary(&self) -> &Primary {
        &self.primary
    }

    /// True if Redis recently refused a script because its memory was full.
    pub fn is_full(&self) -> bool {
        is_within(&self.full_at, FULL_FOR)
    }

    /// True if the store has shown a format that this version does not know.
    pub fn is_foreign(&self) -> bool {
        self.is_foreign.load(Ordering::Relaxed)
    }

    /// Notes an id that the store has assigned or shown.
    pub fn has_seen(&self, id: Id) {
        self.known.fetch_max(id.get(), Ordering::AcqRel);
    }

    /// Runs a script that changes something about `subject`, which may be empty. Now and then the script also checks which
    /// primary runs it. Redis does nothing if it meets the script more than [`ANSWER_TIMEOUT`] after this was called.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the script certainly did not run, [`LogError::UnknownOutcome`] if it may
    /// have run. Then it is never sent again.
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        subject: &str,
        args: &[&[u8]],
    ) -> Result<T, LogError> {
        self.invoke(script, subject, args, Purpose::Change).await.map_err(|failure| failure.error)
    }

    /// The same, for a change that could undo a newer one: if the outcome is unknown, this waits until the change is done or
    /// will never be done.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn settle<T: FromRedisValue>(
        &self,
        script: &Script,
        subject: &str,
        args: &[&[u8]],
    ) -> Result<T, LogError> {
        let begun = Instant::now();
        let outcome = self.run(script, subject, args).await;
        if let Err(LogError::UnknownOutcome) = outcome {
            sleep_until(begun + ANSWER_TIMEOUT).await;
        }
        outcome
    }

    /// Checks that the user of Redis may run every command of the scripts, that the keys are of the right types, and that
    /// Redis takes writes.
    ///
    /// # Errors
    /// Says what is wrong, if Redis said it.
    pub async fn check(&self) -> Result<Facts, Unfit> {
        let needs_copies: &[u8] = if self.is_confirmed { b"1" } else { b"0" };
        let checked = self.invoke(&self.scripts.check, "", &[needs_copies], Purpose::Read).await;
        checked.map_err(|Failure { error, why, .. }| Unfit { error, why })
    }

    /// A call of a script, with the arguments that every script takes first. If it `looks`, the script checks
    /// which primary runs it. After the deadline, in milliseconds of the time of Redis, it does nothing.
    pub fn invocation<'a>(
        &self,
        script: &'a Script,
        subject: &str,
        args: &[&[u8]],
        looks: bool,
        deadline: Option<u64>,
    ) -> ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        invocation.key(format!("{}index", self.prefix));
        invocation.arg(&self.prefix).arg(self.known.load(Ordering::Acquire));
        invocation
            .arg(format!("{}{}", u8::from(looks), u8::from(self.is_durable.load(Ordering::Acquire))))
            .arg(deadline.map(|ms| format!("{ms}000")).unwrap_or_default())
            .arg(self.retaining.keep.written())
            .arg(subject);
        for arg in args {
            invocation.arg(*arg);
        }
        invocation
    }

    /// Runs a script, and once more if it came late though it was sent in time: then the clock of Redis was set forward.
    /// The deadline stays that of the request, so that even the second attempt undoes nothing newer.
    async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        subject: &str,
        args: &[&[u8]],
        purpose: Purpose,
    ) -> Result<T, Failure> {
        let (begun, slept_before) = (Instant::now(), slept());
        let has_time = || begun.elapsed() < ANSWER_TIMEOUT && slept() < slept_before + NO_SLEEP;
        let attempt = || self.attempt(script, subject, args, purpose, begun);
        match attempt().await {
            Err(Failure { is_late: true, .. }) if has_time() => {
                timeout_at(begun + ANSWER_TIMEOUT, attempt()).await.unwrap_or(Err(Failure::NO_ANSWER))
            }
            outcome => outcome,
        }
    }

    /// Sends a script once, for a request that came at `begun`.
    async fn attempt<T: FromRedisValue>(
        &self,
        script: &Script,
        subject: &str,
        args: &[&[u8]],
        purpose: Purpose,
        begun: Instant,
    ) -> Result<T, Failure> {
        let mut connection = self.connected().await.ok_or(Failure::NOTHING_SENT)?;
        let deadline = match purpose {
            Purpose::Read => None,
            Purpose::Change => match connection.deadline(begun).await {
                Ok(deadline) => Some(deadline),
                Err(error) => {
                    self.failed_aside(connection.number, &error);
                    return Err(Failure::NOTHING_SENT);
                }
            },
        };
        let now = Instant::now();
        let looks = purpose == Purpose::Read
            || self.is_confirmed
            || connection.looked().is_none_or(|looked| now - looked >= LOOK_EVERY);
        // If Redis does not know the script, it did not run, and is sent again with its text.
        let invocation = self.invocation(script, subject, args, looks, deadline);
        let answer = invocation.invoke_async(&mut connection.redis).await;
        if answer.is_err() {
            // The call may have run on another primary.
            *connection.looked() = None;
        } else if looks {
            *connection.looked() = Some(now);
        }
        answer.map_err(|error| {
            let is_left = is_of_copy(&error) && !is_within(&self.left_copy_at, COPY_FOR);
            if is_left {
                note(&self.left_copy_at);
            }
            self.say(&error);
            if is_left {
                // This happens each second, and the line above says why.
                self.drop_connection(connection.number);
            } else if is_broken(&error) {
                self.lose(connection.number, &error);
            }
            let code = code(&error);
            let is_late = code == Some("LATE");
            if is_late {
                connection.forget_time();
            }
            let is_frozen = matches!(code, Some("MISCONF" | "NOREPLICAS" | "READONLY"));
            let why = match (code, refused_command(&error)) {
                (Some("UNFIT" | "FORMAT"), _) => error.detail().map(str::to_owned),
                (_, Some(command)) => Some(format!("the user of Redis may not run {command}")),
                // The text may hold the name of the user.
                (code, None) => code.map(|code| format!("Redis refuses to store messages: {code}")),
            };
            let error = match code {
                Some("OOM") => {
                    note(&self.full_at);
                    LogError::Full
                }
                Some("FORMAT") => {
                    self.is_foreign.store(true, Ordering::Relaxed);
                    LogError::Unavailable
                }
                _ if is_refused(&error) => LogError::Unavailable,
                _ => LogError::UnknownOutcome,
            };
            Failure { error, is_frozen, is_late, why }
        })
    }

    /// Runs a script that needs nothing of the log, and so does not begin with the prelude. Its first argument is the
    /// prefix of the keys.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn aside<T: FromRedisValue>(&self, script: &Script, args: &[&str]) -> Result<T, LogError> {
        let mut connection = self.connected().await.ok_or(LogError::Unavailable)?;
        let mut invocation = script.prepare_invoke();
        invocation.key(format!("{}replicas", self.prefix)).arg(&self.prefix).arg(args);
        let answer = invocation.invoke_async(&mut connection.redis).await;
        answer.map_err(|error| self.failed_aside(connection.number, &error))
    }

    /// Runs commands that need nothing of the log.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn aside_pipe<T: FromRedisValue>(&self, commands: &redis::Pipeline) -> Result<T, LogError> {
        let mut connection = self.connected().await.ok_or(LogError::Unavailable)?;
        let answer = commands.query_async(&mut connection.redis).await;
        answer.map_err(|error| self.failed_aside(connection.number, &error))
    }

    fn failed_aside(&self, number: u64, error: &RedisError) -> LogError {
        self.say(error);
        if is_broken(error) {
            self.lose(number, error);
        }
        if is_refused(error) { LogError::Unavailable } else { LogError::UnknownOutcome }
    }

    /// Runs a script that only reads. It checks which primary runs it, and it runs again if the connection broke
    /// meanwhile, or without writes if Redis refuses them.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], within a bounded time.
    pub async fn read<T: FromRedisValue>(
        &self,
        script: &ReadScript,
        subject: &str,
        args: &[&[u8]],
    ) -> Result<T, LogError> {
        let read = async {
            loop {
                let known = self.current();
                let is_frozen = is_within(&self.frozen_at, FROZEN_FOR);
                let form = if is_frozen { &script.frozen } else { &script.whole };
                match self.invoke(form, subject, args, Purpose::Read).await {
                    Ok(read) => return Ok(read),
                    Err(failure) if failure.is_frozen && !is_frozen => note(&self.frozen_at),
                    // Retry only if the connection was lost: a slow answer is not asked for again.
                    Err(Failure { error: LogError::UnknownOutcome, .. })
                        if known.is_some() && self.current() != known => {}
                    Err(_) => return Err(LogError::Unavailable),
                }
            }
        };
        timeout(ANSWER_TIMEOUT, read).await.unwrap_or(Err(LogError::Unavailable))
    }

    /// Gives `take` the topics with a message after `after`, in batches, with their newest ids. A topic that
    /// gets a message meanwhile is given again.
    ///
    /// # Errors
    /// As [`read`](Self::read); also if a new generation of the store begins meanwhile.
    pub async fn index(&self, after: Id, take: impl FnMut(Vec<(String, Id)>)) -> Result<(), LogError> {
        self.members(&self.scripts.changed, format!("({after}"), take).await.map(drop)
    }

    /// Gives `take` the marks that were set after `after`, in batches: a comma and the topic, or a space and
    /// the topic if it was deleted. With each comes the time of the mark, which is no older than the lost
    /// messages. Every mark that exists when this is called is given. Returns the facts of the last
    /// answer, with the time of the newest mark at the first.
    ///
    /// # Errors
    /// As [`index`](Self::index).
    pub async fn marks(&self, after: Id, take: impl FnMut(Vec<(String, Id)>)) -> Result<Facts, LogError> {
        self.members(&self.scripts.marks, format!("(-{after}"), take).await
    }

    async fn members(
        &self,
        script: &ReadScript,
        mut from: String,
        mut take: impl FnMut(Vec<(String, Id)>),
    ) -> Result<Facts, LogError> {
        let mut first: Option<(Id, Id)> = None;
        loop {
            let limit = INDEX_BATCH.to_string();
            let args = [&*from, &*limit].map(str::as_bytes);
            let answer = self.read(script, "", &args).await?;
            let (facts, members): (Facts, Vec<(Vec<u8>, String)>) = answer;
            let (began, marked) = *first.get_or_insert((facts.began, facts.marked));
            if began != facts.began {
                return Err(LogError::Unavailable);
            }
            let is_last = members.len() < INDEX_BATCH;
            // Several members may have the same id, so the last one is read again. A batch with one id alone is not from
            // this program.
            from = match members.last() {
                Some((_, score)) if *score == from => format!("({score}"),
                Some((_, score)) => score.clone(),
                None => from,
            };
            let members = members.into_iter().filter_map(|(member, score)| {
                let score: i64 = score.parse().ok()?;
                Some((String::from_utf8(member).ok()?, Id::new(score.unsigned_abs())))
            });
            take(members.collect());
            if is_last {
                return Ok(Facts { marked, ..facts });
            }
        }
    }

    /// Logs a refusal, so that an operator learns why publishes get 503. Warns rarely, and not for each of
    /// them.
    fn say(&self, error: &RedisError) {
        let is_unfit = error.code() == Some("UNFIT");
        let said = if is_unfit { &self.said_unfit } else { &self.said };
        let is_news = !error.is_io_error() && !is_within(said, SAY_EVERY);
        if !is_news {
            tracing::debug!(%error, "a redis command failed");
            return;
        }
        note(said);
        if is_unfit {
            let why = error.detail().unwrap_or_default();
            tracing::error!(redis = %self.address(), why, "publishing and reading cannot work as redis is set up");
        } else {
            tracing::warn!(redis = %self.address(), %error, "a redis command failed");
        }
    }

    /// Drops the connection if it is still in use. Calls that wait for an answer on it will get none.
    fn drop_connection(&self, number: u64) -> bool {
        self.connection.send_if_modified(|connection| {
            let is_this = connection.as_ref().is_some_and(|connection| connection.number == number);
            if is_this {
                *connection = None;
            }
            is_this
        })
    }

    /// Drops the connection, and logs why.
    fn lose(&self, number: u64, why: &dyn std::fmt::Display) {
        if self.drop_connection(number) {
            tracing::warn!(redis = %self.address(), %why, "the publishing connection is lost");
        }
    }

    /// The number of the current connection, to drop it later if it turns out to be dead.
    pub fn current(&self) -> Option<u64> {
        self.connection.borrow().as_ref().map(|connection| connection.number)
    }

    /// Resolves when there is a connection with another number than `known`.
    pub async fn renewed(&self, known: Option<u64>) {
        let mut connection = self.connection.subscribe();
        let is_other = |connection: &Option<Connection>| {
            connection.as_ref().is_some_and(|connection| Some(connection.number) != known)
        };
        // The sender is in self, so the channel never closes.
        let _ = connection.wait_for(is_other).await;
    }

    /// Drops a connection on which no answer came.
    pub fn give_up(&self, number: u64) {
        self.lose(number, &"it does not answer");
    }

    /// Connects whenever there is no connection. Never ends.
    pub async fn keep_connected(self: Arc<Self>) {
        let mut is_policy_known = false;
        let mut was_told = false;
        for number in 0.. {
            let began = Instant::now();
            match self.connect(number).await {
                Ok((addr, connection)) => {
                    if is_within(&self.left_copy_at, 2 * COPY_FOR) {
                        tracing::debug!(redis = %addr, "the publishing connection is up");
                    } else {
                        tracing::info!(redis = %addr, "the publishing connection is up");
                    }
                    self.connection.send_replace(Some(connection));
                    // First, because this logs what is wrong.
                    let _ = self.check().await;
                    if !is_policy_known {
                        is_policy_known = self.warn_of_eviction().await;
                    }
                    was_told = false;
                    let mut connection = self.connection.subscribe();
                    tokio::select! {
                        _ = connection.wait_for(Option::is_none) => {}
                        () = self.keep_retaining() => {}
                        () = self.primary.moved(&addr) => self.lose(number, &"the sentinels name another primary"),
                    }
                }
                Err(error) if !was_told => {
                    tracing::warn!(redis = %self.address(), %error, "redis cannot be reached");
                    was_told = true;
                }
                Err(error) => tracing::debug!(%error, "redis cannot be reached"),
            }
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    /// Checks whether every message that is acknowledged from now on is on disk, and asks Redis for its time.
    pub async fn look_around(&self) {
        let Some(mut connection) = self.connection.borrow().clone() else { return };
        let _ = connection.ask_time().await;
        let connection = connection.redis;
        self.is_durable.store(is_durable(connection).await, Ordering::Release);
    }

    async fn connect(self: &Arc<Self>, number: u64) -> Result<(ConnectionAddr, Connection), ConnectError> {
        let store = Arc::downgrade(self);
        // A close is noticed at once. A script that was sent after it would have an unknown outcome.
        let take = move |push: PushInfo| {
            if let (PushKind::Disconnection, Some(store)) = (push.kind, store.upgrade()) {
                store.lose(number, &"it was closed");
            }
            Ok::<(), std::convert::Infallible>(())
        };
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_TIMEOUT)).set_push_sender(take);
        let (addr, redis) = self.primary.connect(config).await?;
        self.is_durable.store(is_durable(redis.clone()).await, Ordering::Release);
        let mut connection = Connection { number, redis, looked: Arc::default(), clock: Arc::default() };
        // If its user may not ask, the check says so.
        let _ = connection.ask_time().await;
        Ok((addr, connection))
    }

    async fn connected(&self) -> Option<Connection> {
        if let Some(connection) = &*self.connection.borrow() {
            return Some(connection.clone());
        }
        let mut connection = self.connection.subscribe();
        let made = timeout(PATIENCE, connection.wait_for(Option::is_some)).await;
        made.ok()?.ok()?.clone()
    }

    /// Asks Redis for its policy, and warns if messages may be evicted. False if there is no connection to ask.
    async fn warn_of_eviction(&self) -> bool {
        let Some(connection) = self.connection.borrow().clone() else { return false };
        match setting(connection.redis, "maxmemory-policy").await {
            Some(policy) if policy == "noeviction" => {}
            Some(policy) => tracing::warn!(
                %policy,
                "redis may evict retained messages when its memory is full; set maxmemory-policy to noeviction"
            ),
            None if self.current() != Some(connection.number) => return false,
            None => tracing::warn!("redis does not tell its maxmemory-policy; it should be noeviction"),
        }
        true
    }
}

/// Notes that something happens now.
fn note(last: &Mutex<Option<Instant>>) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// True if it last happened less than this long ago.
fn is_within(last: &Mutex<Option<Instant>>, span: Duration) -> bool {
    last.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < span)
}

async fn is_durable(connection: MultiplexedConnection) -> bool {
    setting(connection.clone(), "appendonly").await.as_deref() == Some("yes")
        && setting(connection, "appendfsync").await.as_deref() == Some("always")
}

async fn setting(mut connection: MultiplexedConnection, name: &str) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    let answer: Result<std::collections::HashMap<String, String>, _> =
        command.arg("GET").arg(name).query_async(&mut connection).await;
    answer.ok()?.remove(name)
}
