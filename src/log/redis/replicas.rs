//! The replicas over one store: which of them live, and short questions from one to another.
//!
//! Each replica has a stream of its own in Redis, and reads it. Questions to it and answers for it are entries there.
//! This module does not know what they say.

mod letter;
mod roll;

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};

use self::{
    letter::{Letter, Outgoing, Question},
    roll::{Beat, Roll, Stands},
};
use super::{
    clock::StoreClock,
    primary::ConnectError,
    store::{RETRY_AFTER, Store},
};
use crate::log::{Answering, LogError, Unanswered};

pub use self::{letter::name as replica_name, roll::SPANS_MS};

/// How often a replica gives a sign of life.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long a sign of life may take.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);
/// A question that is met later than this after it was sent is dropped.
const LATE_AFTER: Duration = Duration::from_secs(2);
/// How long the end of this process waits until the others know of it.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);
/// How long Redis blocks a read that finds nothing. A connection that is silent for longer is dead.
const BLOCK: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_millis(1750);
/// How many entries one read returns.
const READ_ENTRIES: usize = 256;
const MAX_WAITING: usize = Replicas::MAX_WAITING;
/// How many letters wait to be sent.
const MAX_OUTGOING: usize = 4 * MAX_WAITING;
/// How many letters one entry holds.
const LETTERS_OF_AN_ENTRY: usize = 64;
/// How many entries a stream holds at most. A replica that lives removes what it has read.
const MAX_ENTRIES: usize = 8192;
/// How soon a replica looks again if it cannot tell whether another one lives.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The other replicas, and the way to them.
pub struct Replicas {
    store: Arc<Store>,
    name: AtomicU64,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
    outgoing: mpsc::Sender<Outgoing>,
    /// Taken by the task that sends.
    to_send: Mutex<Option<mpsc::Receiver<Outgoing>>>,
    answering: OnceLock<Arc<dyn Answering>>,
    /// The questions of others that are being answered.
    running: Mutex<JoinSet<()>>,
    /// When the last look began, and whether it was answered. Held across the question, so that callers share it.
    last_look: tokio::sync::Mutex<Option<(Instant, bool)>>,
    /// This replica looks after the members of topics.
    is_keeper: AtomicBool,
    /// Notifies with each sign of life that says so.
    keeps: Notify,
}

#[derive(Default)]
struct State {
    has_joined: bool,
    is_leaving: bool,
    /// The name that this replica is taking, because it counts as gone. It stays the same until that has succeeded.
    next_name: Option<u64>,
    /// The last entry of this replica's stream that was read.
    place: String,
    clock: Option<StoreClock>,
    roll: Roll,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    questions: u64,
}

/// The outcome of a question.
enum Reply {
    Answer(Bytes),
    Busy,
    /// It was not sent, because there is no such stream.
    NotSent,
}

impl Replicas {
    /// How many questions of this replica wait for an answer, and how many of others are being answered. One more is
    /// refused.
    pub const MAX_WAITING: usize = 1024;

    pub fn new(store: Arc<Store>) -> Self {
        let (outgoing, to_send) = mpsc::channel(MAX_OUTGOING);
        Self {
            store,
            name: AtomicU64::new(rand::random()),
            state: Mutex::default(),
            outgoing,
            to_send: Mutex::new(Some(to_send)),
            answering: OnceLock::new(),
            running: Mutex::default(),
            last_look: tokio::sync::Mutex::default(),
            is_keeper: AtomicBool::new(false),
            keeps: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of this replica. It takes a new one if it was counted gone.
    pub fn name(&self) -> u64 {
        self.name.load(Ordering::Acquire)
    }

    /// True if this replica looks after the members of topics.
    pub fn is_keeper(&self) -> bool {
        self.is_keeper.load(Ordering::Acquire)
    }

    /// Resolves with the next sign of life that makes this replica look after the members of topics.
    pub async fn keeps(&self) {
        self.keeps.notified().await;
    }

    /// Sets who answers the questions of others. The first call counts.
    pub fn answer_by(&self, answering: Arc<dyn Answering>) {
        let _ = self.answering.set(answering);
    }

    /// The names of the other replicas that live, and true if these are all. After Redis has lost its data, others may have
    /// yet to join again. Callers that ask at the same time share one look.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn others(&self) -> Result<(Vec<u64>, bool), LogError> {
        if !self.look().await {
            return Err(LogError::Unavailable);
        }
        let state = self.state();
        // This replica may be joining under a new name.
        let is_other = |name: &u64| *name != self.name() && Some(*name) != state.next_name;
        Ok((state.roll.living().filter(is_other).collect(), state.roll.is_complete()))
    }

    /// Asks a replica, and waits for the answer until then.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still have the effect of the question.
    pub async fn ask(&self, name: u64, question: Vec<u8>, until: Instant) -> Result<Bytes, Unanswered> {
        let question = Bytes::from(question);
        loop {
            if self.stands(name) == Stands::Lives {
                match self.ask_once(name, question.clone(), until).await? {
                    Some(Reply::Answer(answer)) => return Ok(answer),
                    Some(Reply::Busy) => return Err(Unanswered::Busy),
                    Some(Reply::NotSent) => {}
                    None if self.stands(name) == Stands::Gone => return Err(Unanswered::Gone),
                    None => return Err(Unanswered::Unknown),
                }
            }
            let is_seen = timeout_at(until, self.look()).await.unwrap_or_default();
            if is_seen && self.stands(name) == Stands::Gone {
                return Err(Unanswered::Gone);
            }
            if timeout_at(until, sleep(AGAIN_AFTER)).await.is_err() {
                return Err(Unanswered::Unknown);
            }
        }
    }

    /// Looks which replicas live, once for all that wait for it together. False if the store cannot be asked.
    ///
    /// A look that began before this was called says nothing about a replica that has joined since.
    async fn look(&self) -> bool {
        let came_at = Instant::now();
        let mut last = self.last_look.lock().await;
        match *last {
            Some((began, is_seen)) if began >= came_at => is_seen,
            _ => {
                let began = Instant::now();
                let is_seen = self.beat("look").await.is_ok();
                *last = Some((began, is_seen));
                is_seen
            }
        }
    }

    fn stands(&self, name: u64) -> Stands {
        self.state().roll.stands(name)
    }

    /// `None` if there was no answer in time.
    async fn ask_once(
        &self,
        name: u64,
        question: Bytes,
        until: Instant,
    ) -> Result<Option<Reply>, Unanswered> {
        let (answered, answer) = oneshot::channel();
        let waits = {
            let mut state = self.state();
            let Some(clock) = state.clock else { return Ok(Some(Reply::NotSent)) };
            if state.waiting.len() >= MAX_WAITING {
                return Err(Unanswered::Busy);
            }
            state.questions += 1;
            let number = state.questions;
            state.waiting.insert(number, answered);
            let sent = clock.at_least(Instant::now());
            let letter = Letter::Question(Question { from: self.name(), number, sent, text: question });
            (Waits { replicas: self, number }, Outgoing { to: name, letter, until })
        };
        let (waits, letter) = waits;
        if self.outgoing.try_send(letter).is_err() {
            return Err(Unanswered::Busy);
        }
        let answer = timeout_at(until, answer).await;
        drop(waits);
        Ok(answer.ok().and_then(Result::ok))
    }

    /// Tells the others that this replica is gone, for as long as that may take.
    pub async fn leave(&self) {
        self.state().is_leaving = true;
        let _ = timeout(LEAVE_WITHIN, self.beat("leave")).await;
    }

    /// Gives signs of life. Never ends.
    pub async fn keep_beating(self: Arc<Self>) {
        let mut beats = interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let store = self.store.current();
            tokio::select! {
                // After an outage the others must hear from this replica soon.
                () = self.store.renewed(store) => {}
                _ = beats.tick() => {}
            }
            let does = match &*self.state() {
                State { is_leaving: true, .. } => "look",
                State { has_joined: true, .. } => "beat",
                _ => "join",
            };
            if let Ok(true) = self.beat(does).await {
                // If this fails, the next sign of life says the same.
                let _ = self.take_new_name().await;
            }
        }
    }

    /// True if this replica counts as gone.
    async fn beat(&self, does: &str) -> Result<bool, LogError> {
        let (name, place) = (self.name(), self.state().place.clone());
        self.beat_as(name, &place, does).await
    }

    async fn beat_as(&self, name: u64, place: &str, does: &str) -> Result<bool, LogError> {
        let asked_at = Instant::now();
        let script = &self.store.scripts.beat;
        let text = letter::name(name);
        let spans = roll::SPANS_MS.map(|ms| ms.to_string());
        let [gone_after, pause, forget_after, settled_after] = spans.each_ref().map(String::as_str);
        let args = [&*text, does, place, gone_after, pause, forget_after, settled_after];
        let beat: Result<Beat, _> = timeout(BEAT_TIMEOUT, self.store.aside(script, &args))
            .await
            .unwrap_or(Err(LogError::Unavailable));
        let beat = beat?;
        if does == "join" {
            tracing::info!(
                replica = text,
                "this replica is known to the others; its connections have ids that begin with its name"
            );
        }
        let mut state = self.state();
        // An answer that was overtaken by the next one is no news.
        if state.clock.is_none_or(|clock| clock.asked_at() <= asked_at) {
            state.clock = Some(StoreClock::new(beat.now, asked_at, Instant::now()));
            state.roll = Roll::of(&beat);
        }
        if matches!(does, "beat" | "join") {
            self.is_keeper.store(beat.is_keeper, Ordering::Release);
            if beat.is_keeper {
                self.keeps.notify_one();
            }
        }
        if name == self.name() {
            if beat.is_made {
                // Redis had lost the stream. The ids of a new one may be smaller.
                state.place.clear();
            }
            state.has_joined |= does == "join";
        }
        Ok(beat.is_gone)
    }

    /// Ends the connections, and joins under a new name before that name is handed out, so that the others find those that
    /// begin then.
    async fn take_new_name(&self) -> Result<(), LogError> {
        let before = self.name();
        let ended = self.end_connections_of(before);
        let known = self.state().next_name;
        let name = known.unwrap_or_else(rand::random);
        if known.is_none() {
            self.state().next_name = Some(name);
            tracing::warn!(
                connections = ended,
                "this replica was silent for so long that the others counted it as gone; its connections were ended, so that they reconnect"
            );
        }
        self.beat_as(name, "", "join").await?;
        {
            let mut state = self.state();
            (state.has_joined, state.place, state.next_name) = (true, String::new(), None);
            self.name.store(name, Ordering::Release);
        }
        // Others have begun under that name meanwhile.
        self.end_connections_of(before);
        Ok(())
    }

    fn end_connections_of(&self, name: u64) -> usize {
        self.answering.get().map_or(0, |answering| answering.counted_gone(name))
    }

    /// Sends letters, those together that wait together. Never ends.
    pub async fn keep_sending(self: Arc<Self>) {
        let Some(mut to_send) = self.to_send.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let mut letters = Vec::new();
        while to_send.recv_many(&mut letters, MAX_WAITING).await > 0 {
            let now = Instant::now();
            letters.retain(|outgoing| outgoing.until > now);
            self.send(std::mem::take(&mut letters)).await;
        }
    }

    async fn send(&self, mut letters: Vec<Outgoing>) {
        letters.sort_by_key(|outgoing| outgoing.to);
        let mut entries: Vec<&[Outgoing]> = letters.chunk_by(|one, other| one.to == other.to).collect();
        entries = entries.into_iter().flat_map(|all| all.chunks(LETTERS_OF_AN_ENTRY)).collect();
        let mut pipe = redis::pipe();
        for entry in &entries {
            let Some(first) = entry.first() else { continue };
            let add = pipe.cmd("XADD").arg(self.stream(first.to)).arg("NOMKSTREAM");
            add.arg("MAXLEN").arg("~").arg(MAX_ENTRIES).arg("*");
            for outgoing in *entry {
                let (field, value) = outgoing.letter.written();
                add.arg(field).arg(value);
            }
        }
        // If this fails, the letters may have been sent.
        let Ok(added) = self.store.aside_pipe::<Vec<Option<String>>>(&pipe).await else { return };
        let lost = entries.iter().zip(added).filter(|(_, added)| added.is_none());
        for outgoing in lost.flat_map(|(entry, _)| entry.iter()) {
            if let Letter::Question(Question { number, .. }) = outgoing.letter {
                self.reply(number, Reply::NotSent);
            }
        }
    }

    fn stream(&self, name: u64) -> String {
        format!("{}replica:{}", self.store.prefix(), letter::name(name))
    }

    fn reply(&self, number: u64, reply: Reply) {
        if let Some(waiting) = self.state().waiting.remove(&number) {
            // The caller may have left.
            let _ = waiting.send(reply);
        }
    }

    /// Reads this replica's stream. Never ends.
    pub async fn keep_reading(self: Arc<Self>) {
        loop {
            let began = Instant::now();
            let Err(error) = self.read().await;
            tracing::debug!(%error, "the stream of this replica cannot be read");
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    async fn read(self: &Arc<Self>) -> Result<Infallible, ConnectError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
        let (addr, connection) = self.store.primary().connect(config).await?;
        tokio::select! {
            end = self.read_from(connection) => end,
            () = self.store.primary().moved(&addr) => Err(ConnectError::NotPrimary),
        }
    }

    async fn read_from(
        self: &Arc<Self>,
        mut connection: MultiplexedConnection,
    ) -> Result<Infallible, ConnectError> {
        type Entries = HashMap<String, Vec<(String, Vec<Vec<u8>>)>>;
        loop {
            let (name, place) = (self.name(), self.state().place.clone());
            let place = if place.is_empty() { "0-0" } else { &*place };
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT").arg(READ_ENTRIES).arg("BLOCK").arg(BLOCK.as_millis() as u64);
            read.arg("STREAMS").arg(self.stream(name)).arg(place);
            let found: Option<Entries> = read.query_async(&mut connection).await?;
            let mut questions = Vec::new();
            for (id, fields) in found.into_iter().flatten().flat_map(|(_, entries)| entries) {
                let mut state = self.state();
                // If the name or the stream is new, this entry says nothing about it.
                if name == self.name() && (!state.place.is_empty() || place == "0-0") {
                    state.place = id;
                }
                drop(state);
                for letter in Letter::all(fields) {
                    match letter {
                        Letter::Answer { number, text } => self.reply(number, Reply::Answer(text)),
                        Letter::Busy { number } => self.reply(number, Reply::Busy),
                        Letter::Question(question) => questions.push(question),
                    }
                }
            }
            if !questions.is_empty() {
                // The store is asked now. This process may have been stopped since the questions arrived, and its own
                // clock does not count a sleep of the machine.
                let clock = StoreClock::ask(&mut connection).await?;
                questions.into_iter().for_each(|question| self.meet(question, clock));
            }
        }
    }

    fn meet(self: &Arc<Self>, question: Question, clock: StoreClock) {
        let (Question { from, number, sent, text }, now) = (question, Instant::now());
        match LATE_AFTER.checked_sub(clock.since(sent, now)) {
            Some(left) => self.answer(from, number, text, now + left),
            // The sender waits no longer, and a newer question may be done already.
            None => tracing::debug!(from = letter::name(from), "dropped a question that came too late"),
        }
    }

    /// Answers a question in a task of its own.
    fn answer(self: &Arc<Self>, to: u64, number: u64, question: Bytes, until: Instant) {
        let Some(answering) = self.answering.get().cloned() else { return };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        if running.len() >= MAX_WAITING {
            // If this cannot be sent either, the sender waits in vain.
            let _ = self.outgoing.try_send(Outgoing { to, letter: Letter::Busy { number }, until });
            return;
        }
        let outgoing = self.outgoing.clone();
        running.spawn(async move {
            let answered = async {
                let text = answering.answer(question, until).await?.into();
                outgoing.send(Outgoing { to, letter: Letter::Answer { number, text }, until }).await.ok()
            };
            let _ = timeout_at(until, answered).await;
        });
    }
}

/// A question that waits. Dropping this forgets it.
struct Waits<'a> {
    replicas: &'a Replicas,
    number: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.replicas.state().waiting.remove(&self.number);
    }
}
