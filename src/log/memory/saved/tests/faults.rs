//! A disk that fails or stalls when a test wants it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Works,
    Fails,
    Stalls,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Sync,
    Lock,
}

pub struct Faulty {
    plan: Mutex<Plan>,
    has_changed: Condvar,
}

struct Plan {
    mode: Mode,
    /// Only steps of this kind fail or stall.
    only: Option<Step>,
    /// So many of them work before.
    works: usize,
    /// The number of steps that have begun to stall, and of those that have failed.
    stalled: usize,
    failed: usize,
}

impl Faulty {
    pub fn new() -> Arc<Self> {
        let plan = Plan { mode: Mode::Works, only: None, works: 0, stalled: 0, failed: 0 };
        Arc::new(Self { plan: Mutex::new(plan), has_changed: Condvar::new() })
    }

    pub fn set(&self, mode: Mode) {
        self.set_after(0, None, mode);
    }

    /// From now on `works` steps of this kind work, and then they fail or stall. A step that stalls now is the
    /// first of them.
    pub fn set_after(&self, works: usize, only: Option<Step>, mode: Mode) {
        let mut plan = self.plan();
        (plan.mode, plan.only, plan.works) = (mode, only, works);
        self.has_changed.notify_all();
    }

    pub fn stalled(&self) -> usize {
        self.plan().stalled
    }

    /// Waits until it has failed so many times more.
    pub async fn fails_again(&self, times: usize) {
        let before = self.plan().failed;
        until(|| self.plan().failed >= before + times).await;
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, step: Step) -> io::Result<()> {
        let mut plan = self.plan();
        if !plan.is_due(step) {
            return Ok(());
        }
        plan.stalled += usize::from(plan.mode == Mode::Stalls && plan.works == 0);
        let is_stalled = |plan: &mut Plan| plan.mode == Mode::Stalls && plan.works == 0;
        let mut plan = self.has_changed.wait_while(plan, is_stalled).unwrap_or_else(PoisonError::into_inner);
        if plan.works > 0 {
            plan.works -= 1;
            return Ok(());
        }
        if plan.mode != Mode::Fails {
            return Ok(());
        }
        plan.failed += 1;
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Plan {
    fn is_due(&self, step: Step) -> bool {
        self.mode != Mode::Works && self.only.is_none_or(|only| only == step)
    }
}

impl Disk for Faulty {
    fn sync(&self, _: &fs::File) -> io::Result<()> {
        self.step(Step::Sync)
    }

    fn lock(&self, file: &fs::File) -> io::Result<bool> {
        self.step(Step::Lock)?;
        System.lock(file)
    }
}

async fn has_failed(log: &MemoryLog) -> bool {
    log.stats().await.expect("stats").state_failed.expect("there is a state file")
}

/// The next message is past all reserved ids.
pub fn pass_reservation(clock: &Clock) {
    clock.advance(2 * RESERVE);
}

/// Every publish waited for as long as the disk did not answer, and each took a thread.
#[tokio::test]
async fn a_disk_that_stalls_holds_up_publishing_once_and_for_a_second() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let began = clock.now();
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    publish(&log, "a", "before").await;
    disk.set(Mode::Stalls);
    pass_reservation(&clock);
    // All of them wait at the same time, and the disk never answers.
    let texts: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    futures_util::future::join_all(texts.iter().map(|text| publish(&log, "a", text))).await;
    assert!(has_failed(&log).await);
    assert_eq!(log.check().await, Ok(()), "publishing works");
    for text in ["once more", "and again"] {
        pass_reservation(&clock);
        let published = publish(&log, "a", text).now_or_never();
        assert!(published.is_some(), "the stall is known, so nothing waits");
    }
    let topic = "b".parse().expect("a topic");
    assert_eq!(log.delete(&topic).now_or_never(), Some(Ok(())));

    // The disk is back: what it writes now covers the ids that were assigned meanwhile.
    let newest = log.watermark();
    disk.set(Mode::Works);
    until(|| log.saved.as_ref().is_some_and(|saved| !saved.is_failing())).await;
    drop(log);
    clock.set(began);
    let log = folder.log_by(&clock).await.expect("the one after the crash");
    assert!(publish(&log, "a", "after").await > newest);
}

#[tokio::test]
async fn a_disk_that_fails_is_shown_until_it_can_be_written_again() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    assert!(!has_failed(&log).await);
    disk.set(Mode::Fails);
    pass_reservation(&clock);
    let id = publish(&log, "a", "x").await;
    assert!(has_failed(&log).await);
    // The log has no publish meanwhile that would ask for the file.
    disk.fails_again(2).await;
    assert!(has_failed(&log).await);
    disk.set(Mode::Works);
    // The server tries again by itself, without a publish.
    until(|| log.saved.as_ref().is_some_and(|saved| !saved.is_failing())).await;
    end(log).await;
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

/// The file has a log and cannot be marked as opened. A crash would bring the log back without what was stored
/// since, and no client would be told.
#[tokio::test]
async fn nothing_is_stored_before_the_file_is_marked_as_opened() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_by(&clock).await.expect("a new log");
    let id = publish(&log, "a", "precious").await;
    end(log).await;
    let log = folder.log_on(disk.clone(), &clock).await.expect("the next log");
    let topic = "a".parse().expect("a topic");
    assert_eq!(log.check().await, Ok(()));
    for mode in [Mode::Fails, Mode::Stalls] {
        disk.set(mode);
        assert_eq!(try_to_publish(&log, "a", "x").await, Err(LogError::Unavailable.into()));
        assert_eq!(log.delete(&topic).await, Err(LogError::Unavailable));
        assert_eq!(log.check().await.map_err(|unfit| unfit.error), Err(LogError::Unavailable));
        assert_eq!(read(&log, id.before()).await, (0, vec![id]), "reading works");
    }
    disk.set(Mode::Works);
    until(|| log.saved.as_ref().is_some_and(|saved| !saved.is_failing())).await;
    assert!(publish(&log, "a", "stored").await > id);
}

#[tokio::test]
async fn the_end_tries_again_until_the_grace_has_passed() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    let id = publish(&log, "a", "precious").await;
    disk.set(Mode::Fails);
    let failed = log.end(Instant::now()).await.expect_err("no grace is left");
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    drop(log);

    disk.set(Mode::Works);
    let log = folder.log_on(disk.clone(), &clock).await.expect("the next log");
    assert_eq!(read(&log, id).await.0, 1, "a gap is told");
    let id = publish(&log, "a", "kept").await;
    disk.set(Mode::Fails);
    let mut ended = Box::pin(log.end(Instant::now() + Duration::from_secs(600)));
    assert!(timeout(TRY_AGAIN / 2, &mut ended).await.is_err(), "it goes on");
    disk.set(Mode::Works);
    ended.await.expect("written");
    drop(log);
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

#[tokio::test]
async fn the_end_gives_up_if_the_disk_stalls_and_can_be_dropped() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    let id = publish(&log, "a", "precious").await;
    disk.set(Mode::Stalls);
    drop(timeout(Duration::from_millis(1), log.end(Instant::now())).await);
    let ended = timeout(Duration::from_secs(60), log.end(Instant::now() + PATIENCE)).await;
    let stalled = ended.expect("it gives up").expect_err("the disk stalls");
    assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
    drop(log);
    let mut next = Box::pin(folder.log_by(&clock));
    assert!(timeout(ASK_EVERY, &mut next).await.is_err(), "the file is not released while a write may come");
    disk.set(Mode::Works);
    assert_eq!(read(&next.await.expect("the next log"), id.before()).await, (0, vec![id]));
}
