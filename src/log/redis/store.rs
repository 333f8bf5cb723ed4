//! The publishing connection: it runs the scripts. Calls at the same time share a round trip.
//!
//! This module knows nothing of the link, nor of what the scripts do.

mod connection;
mod index;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{FromRedisValue, RedisError, Script, ScriptInvocation};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use self::connection::Connection;
use super::{
    Address, Retention,
    clock::{Request, StoreClock},
    facts::Facts,
    primary::Primary,
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
    /// The script came after its deadline by the time of Redis, and is to be sent once more.
    late: Option<RedisError>,
    /// The log has the reason, as far as Redis gave one.
    is_said: bool,
    /// The reason that Redis gave, in words without secrets.
    why: Option<String>,
}

impl Failure {
    const NOTHING_SENT: Self =
        Self { error: LogError::Unavailable, is_frozen: false, late: None, is_said: false, why: None };
    const NO_ANSWER: Self =
        Self { error: LogError::UnknownOutcome, is_frozen: false, late: None, is_said: false, why: None };
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
        let request = Request::begin();
        match self.attempt(script, subject, args, purpose, request, None).await {
            Err(Failure { late: Some(late), .. }) => {
                tracing::debug!(error = %late, "a script came late, and is sent once more");
                let until = Some(request.begun + ANSWER_TIMEOUT);
                let outcome = self.attempt(script, subject, args, purpose, request, until).await;
                if let Err(Failure { is_said: false, .. }) = outcome {
                    self.say(&late);
                }
                outcome
            }
            outcome => outcome,
        }
    }

    /// Sends a script once. Only the second attempt ends at `until`, and nothing follows it.
    async fn attempt<T: FromRedisValue>(
        &self,
        script: &Script,
        subject: &str,
        args: &[&[u8]],
        purpose: Purpose,
        request: Request,
        until: Option<Instant>,
    ) -> Result<T, Failure> {
        let prepared = within(until, self.prepare(purpose)).await.flatten();
        let (mut connection, clock) = prepared.ok_or(Failure::NOTHING_SENT)?;
        let deadline = clock.map(|clock| clock.deadline(request.begun, ANSWER_TIMEOUT));
        // A clock that was read after a sleep gives a deadline that is too late.
        if deadline.is_some() && !request.has_time(ANSWER_TIMEOUT) {
            return Err(Failure::NOTHING_SENT);
        }
        let now = Instant::now();
        let looks = purpose == Purpose::Read
            || self.is_confirmed
            || connection.looked().is_none_or(|looked| now - looked >= LOOK_EVERY);
        // If Redis does not know the script, it did not run, and is sent again with its text.
        let invocation = self.invocation(script, subject, args, looks, deadline);
        let answer = within(until, invocation.invoke_async(&mut connection.redis)).await;
        let answer = answer.ok_or(Failure::NO_ANSWER)?;
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
            let code = code(&error);
            let is_late = code == Some("LATE");
            let is_repeated = is_late && until.is_none() && request.has_time(ANSWER_TIMEOUT);
            if !is_repeated {
                self.say(&error);
            }
            if is_left {
                // This happens each second, and the line above says why.
                self.drop_connection(connection.number);
            } else if is_broken(&error) {
                self.lose(connection.number, &error);
            }
            if is_late {
                connection.forget_time(now);
            }
            let is_frozen = matches!(code, Some("MISCONF" | "NOREPLICAS" | "READONLY"));
            let why = match (code, refused_command(&error)) {
                (Some("UNFIT" | "FORMAT"), _) => error.detail().map(str::to_owned),
                (_, Some(command)) => Some(format!("the user of Redis may not run {command}")),
                // The text may hold the name of the user.
                (code, None) => code.map(|code| format!("Redis refuses to store messages: {code}")),
            };
            let of_log = match code {
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
            Failure {
                error: of_log,
                is_frozen,
                late: is_repeated.then_some(error),
                is_said: !is_repeated,
                why,
            }
        })
    }

    /// The connection, and for a change the clock of its deadline.
    async fn prepare(&self, purpose: Purpose) -> Option<(Connection, Option<StoreClock>)> {
        let mut connection = self.connected().await?;
        if purpose == Purpose::Read {
            return Some((connection, None));
        }
        match connection.clock().await {
            Ok(clock) => Some((connection, Some(clock))),
            Err(error) => {
                self.failed_aside(connection.number, &error);
                None
            }
        }
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
}

/// Notes that something happens now.
fn note(last: &Mutex<Option<Instant>>) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// The result of `future`, or `None` if it does not come in time.
async fn within<T>(until: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, future).await.ok(),
        None => Some(future.await),
    }
}

/// True if it last happened less than this long ago.
fn is_within(last: &Mutex<Option<Instant>>, span: Duration) -> bool {
    last.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < span)
}
