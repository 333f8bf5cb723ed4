//! The log in memory. Each append is one critical section.

mod cost;
mod keys;
mod losses;
mod makers;
mod order;
mod presence;
mod saved;
mod state;
mod subjects;
mod tails;

use std::{
    io,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use self::{
    saved::{Disk, Saved, System},
    state::{NODES, Reading, STEP, Seeking, State},
};
use super::{
    Append, AppendError, Appended, Beginning, Clock, Ephemerals, Expiry, Followed, Follower, History, Holds,
    Log, LogError, LogStats, Members, NotedHolds, Page, Payer, Position, Retention, Rules, Start, Subjects,
    Tail, TopicStats, Unfit,
};
use crate::message::{Draft, Id, Message, Pattern, PatternSet, Topic, Walk};

/// How often expired messages are removed. Until then they take memory, but no reader is given them.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many tails are woken before other tasks run.
const WAKE_AT_ONCE: usize = 1024;

/// A log in the memory of this process. A file can carry it to the next process.
pub struct MemoryLog {
    clock: Clock,
    /// It changes only under the lock of the state, so whoever holds the lock reads the one in force.
    retention: ArcSwap<Retention>,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
    watermark: AtomicU64,
    ephemerals: Ephemerals,
    saved: Option<Arc<Saved>>,
    /// Notifies when a message that was brought to many tails in steps is in all of them.
    has_fanned_out: Notify,
    /// Notifies when the time may have changed at which the next member leaves.
    members_changed: Notify,
    this: Weak<Self>,
}

impl MemoryLog {
    /// Begins an empty log, and a task that sweeps it until the log is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(retention: Retention) -> Arc<Self> {
        Self::start_by(Clock::System, retention)
    }

    /// As [`start`](Self::start), with another clock.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_by(clock: Clock, retention: Retention) -> Arc<Self> {
        Self::run(State::new(clock.now()), clock, retention, None)
    }

    /// Resumes the log of the process that [ended](Self::end) with this file, or begins an empty one and logs
    /// why.
    ///
    /// # Errors
    /// If the file cannot be used, or another process uses it.
    ///
    /// # Cancel safety
    /// Dropping this releases the file, and never blocks. A log in the file stays there.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn resume(retention: Retention, path: PathBuf) -> io::Result<Arc<Self>> {
        Self::resume_by(Clock::System, retention, path, Arc::new(System)).await
    }

    async fn resume_by(
        clock: Clock,
        retention: Retention,
        path: PathBuf,
        disk: Arc<dyn Disk>,
    ) -> io::Result<Arc<Self>> {
        let (saved, state) = Saved::open(path, clock.clone(), retention.clone(), disk).await?;
        Ok(Self::run(state, clock, retention, Some(saved)))
    }

    /// Closes the log, and writes its messages to the file that it was resumed from, if any. If that fails,
    /// tries again until `until`, and tries at least once. Call this once: it takes the idempotency keys along.
    ///
    /// # Errors
    /// If the file could not be written: then every cursor gets a gap after the next start.
    ///
    /// # Cancel safety
    /// Dropping this never blocks. The log stays closed, and a write that is under way goes on.
    pub async fn end(&self, until: Instant) -> io::Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        let snapshot = self.state().close();
        saved.close(snapshot, until).await
    }

    fn run(mut state: State, clock: Clock, retention: Retention, saved: Option<Arc<Saved>>) -> Arc<Self> {
        let watermark = AtomicU64::new(state.newest().get());
        let ephemerals = Ephemerals::default();
        let [has_fanned_out, members_changed] = [(); 2].map(|()| Notify::new());
        if !retention.rules.is_empty() {
            state.take_rules(&retention);
        }
        let (state, retention) = (Mutex::new(state), ArcSwap::from_pointee(retention));
        let log = Arc::new_cyclic(|this| {
            let this = this.clone();
            Self {
                clock,
                retention,
                state,
                watermark,
                ephemerals,
                saved,
                has_fanned_out,
                members_changed,
                this,
            }
        });
        // The task ends with the log, because it has only a weak reference while it waits.
        let weak = Arc::downgrade(&log);
        let mut newest = log.watermark();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(log) = weak.upgrade() else { return };
                if let Some(saved) = &log.saved {
                    saved.look();
                    // Reserve before the publishers need it, so that they do not wait.
                    if std::mem::replace(&mut newest, log.watermark()) < newest {
                        _ = saved.reserve(newest).await;
                    }
                }
                while log.sweep() {
                    tokio::task::yield_now().await;
                }
            }
        });
        log
    }

    /// Removes the messages that have expired by now, because readers must not be given them before the
    /// sweep.
    async fn expire(&self) {
        let now = self.clock.now();
        while self.expire_step(now) == STEP {
            tokio::task::yield_now().await;
        }
    }

    fn expire_step(&self, now: Id) -> usize {
        let mut state = self.state();
        state.expire(&self.retention.load(), now, STEP)
    }

    /// One step of the sweep. True if there may be more to do.
    fn sweep(&self) -> bool {
        let mut state = self.state();
        state.sweep(&self.retention.load(), self.clock.now())
    }

    /// Brings the newest message to tails of patterns. Once they all hold it, moves the watermark and returns
    /// the tails to wake.
    fn fan_out_on(&self, state: &mut State) -> Option<Vec<Arc<Tail>>> {
        let tails = state.fan_out_on()?;
        // Only now: the tails hold the message, and nothing else can be appended before the watermark moves.
        self.watermark.store(state.newest().get(), Ordering::Release);
        Some(tails)
    }

    /// Repeats this until all tails hold the newest message, and wakes them.
    async fn fan_out(self: Arc<Self>) {
        let tails = loop {
            tokio::task::yield_now().await;
            if let Some(tails) = self.fan_out_on(&mut self.state()) {
                break tails;
            }
        };
        self.has_fanned_out.notify_waiters();
        for tails in tails.chunks(WAKE_AT_ONCE) {
            tails.iter().for_each(|tail| tail.wake());
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the message on its way to the tails is in all of them.
    async fn fanned_out(&self) {
        // Listen first, then look.
        let mut has_fanned_out = pin!(self.has_fanned_out.notified());
        has_fanned_out.as_mut().enable();
        if self.state_to_append().is_none() {
            has_fanned_out.await;
        }
    }

    /// Wakes all followers of `topic`, in steps.
    async fn wake_all(self: Arc<Self>, topic: &Topic) {
        let (mut walk, mut are_all) = (Walk::default(), false);
        while !are_all {
            tokio::task::yield_now().await;
            let mut tails = Vec::new();
            are_all = self.state().followed_on(topic, &mut walk, &mut tails);
            tails.iter().for_each(|tail| tail.wake());
        }
    }

    /// Runs `work` to its end even if the caller is dropped: a dropped publish must not block all others.
    async fn run_on<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Self>) -> F) {
        let log = self.this.upgrade().expect("the caller holds the log");
        if let Err(error) = tokio::spawn(work(log)).await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    /// The state; `None` while a message is on its way to the tails.
    fn state_to_append(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.state()).filter(|state| !state.is_fanning_out())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.append_for(append, None).await
    }

    async fn append_for(&self, append: Append, payer: Option<Payer>) -> Result<Appended, AppendError> {
        if let Some(saved) = &self.saved {
            saved.reserve(self.watermark().next(self.clock.now())).await?;
        }
        let (appended, tails) = loop {
            if let Some(mut state) = self.state_to_append() {
                let appended = state.append(append, payer, &self.retention.load(), self.clock.now())?;
                break (appended, self.fan_out_on(&mut state));
            }
            self.fanned_out().await;
        };
        match tails {
            Some(tails) => tails.iter().for_each(|tail| tail.wake()),
            None => self.run_on(Self::fan_out).await,
        }
        Ok(appended)
    }

    async fn announce(&self, draft: Draft) -> Result<(), LogError> {
        let topic = draft.topic.clone();
        let message = Message::new(draft, Id::ZERO, Id::ZERO);
        let (mut walk, mut tails) = (Walk::default(), Vec::new());
        let are_all = loop {
            let are_all = {
                let state = self.state();
                let are_all = state.followed_on(&topic, &mut walk, &mut tails);
                if !tails.is_empty() {
                    self.ephemerals.push(state.newest(), message.clone());
                }
                are_all
            };
            if are_all || !tails.is_empty() {
                break are_all;
            }
            tokio::task::yield_now().await;
        };
        tails.iter().for_each(|tail| tail.wake());
        if !are_all {
            self.run_on(|log| async move { log.wake_all(&topic).await }).await;
        }
        Ok(())
    }

    async fn delete(&self, topic: &Topic) -> Result<(), LogError> {
        if let Some(saved) = &self.saved {
            // If the file still has the message, a crash must not bring it back.
            if !saved.has_begun() {
                saved.reserve(self.watermark().next(self.clock.now())).await?;
            }
            saved.check().map_err(|unfit| unfit.error)?;
        }
        self.state().delete(topic)
    }

    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError> {
        let (tail, key) = self.state().follow(pattern, follower);
        Ok(Followed::new(self, tail, key))
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        self.state().unfollow(tail, follower);
    }

    async fn newest(&self) -> Result<Id, LogError> {
        Ok(self.watermark())
    }

    fn watermark(&self) -> Id {
        Id::new(self.watermark.load(Ordering::Acquire))
    }

    fn expiry(&self) -> Expiry {
        let retention = self.retention.load();
        Expiry::at(self.clock.now(), retention.age, &retention.rules)
    }

    fn retain_by(&self, rules: Rules) {
        let mut state = self.state();
        let retention = self.retention.load_full();
        if retention.rules.are(&rules) {
            return;
        }
        let retention = Retention { rules, ..(*retention).clone() };
        let former = state.take_rules(&retention);
        self.retention.store(Arc::new(retention));
        drop(state);
        // It may have a time for each of a million topics, so publishers must not wait for this.
        drop(former);
    }

    async fn begin(&self, patterns: &PatternSet, start: &Start) -> Result<Beginning, LogError> {
        let mut seeking = match Seeking::new(patterns, start, self.watermark()) {
            Ok(seeking) => seeking,
            Err(position) => return Ok(Beginning { position, gaps: Vec::new() }),
        };
        self.expire().await;
        while !self.state().seek_on(&mut seeking, NODES) {
            tokio::task::yield_now().await;
        }
        Ok(seeking.into_beginning())
    }

    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError> {
        self.expire().await;
        let mut reading = Reading::new(patterns, position, limit);
        while !self.state().read_on(&mut reading, NODES) {
            tokio::task::yield_now().await;
        }
        Ok(reading.into_page())
    }

    async fn history(&self, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError> {
        self.expire().await;
        Ok(self.state().history(topic, before, limit))
    }

    async fn hold(&self, holds: &Holds) -> Result<NotedHolds, LogError> {
        self.note_holds(holds).await
    }

    async fn holds_due(&self) {
        self.next_leave().await;
    }

    fn keep_members(&self) {
        self.keep_all_members();
    }

    async fn members(&self, topic: &Topic, after: &str, limit: usize) -> Result<Members, LogError> {
        Ok(self.state().members(topic, after, limit))
    }

    fn ephemerals(&self) -> &Ephemerals {
        &self.ephemerals
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        Ok(self.state().topics(after, limit))
    }

    fn followers(&self, topic: &Topic) -> usize {
        self.state().followers(topic)
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        let state_failed = self.saved.as_ref().map(|saved| saved.is_failing());
        Ok(LogStats { state_failed, ..self.state().stats() })
    }

    fn subjects(&self) -> Option<Arc<dyn Subjects>> {
        self.this.upgrade().map(|log| log as Arc<dyn Subjects>)
    }

    async fn check(&self) -> Result<(), Unfit> {
        self.saved.as_ref().map_or(Ok(()), |saved| saved.check())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Payload;

    const AGE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_message_is_given_until_it_has_expired_and_is_then_a_gap() {
        let retention = Retention {
            messages: 10,
            age: AGE,
            bytes: 1 << 20,
            total_bytes: 1 << 20,
            topics: 100,
            rules: Rules::NONE,
        };
        let clock = Clock::stopped();
        let log = MemoryLog::start_by(clock.clone(), retention);
        let topic: Topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
        let start = Position::at(log.watermark());
        clock.advance(SWEEP_EVERY);
        let id =
            log.append(Append { draft, idempotency_key: None, if_match: None }).await.expect("stored").id();
        let patterns: PatternSet = ["*".parse().expect("a pattern")].into_iter().collect();
        for (age, expected) in
            [(Duration::ZERO, (1, 0)), (AGE, (1, 0)), (AGE + Duration::from_micros(1), (0, 1))]
        {
            clock.set(id.plus(age));
            let page = log.read(&patterns, &start, 10).await.expect("a page");
            assert_eq!((page.messages.len(), page.gaps.len()), expected, "{age:?}");
        }
    }
}
