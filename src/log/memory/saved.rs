//! The file by which a log outlives its process.
//!
//! A process that ends in order writes all retained messages to the file and marks it `closed`. The next
//! process marks it `opened` before it stores the first message. A process that finds the file opened knows
//! that messages were lost. While the file is opened, it says which ids may have been assigned. So none is
//! assigned twice, even if the clock is set back.

mod body;
mod content;
mod disk;
mod head;
mod place;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

pub use self::disk::{Disk, System};
use self::{
    content::{Found, Owner},
    place::{Failure, Place},
    writer::{TRY_AGAIN, Writer},
};
use super::state::{Snapshot, State};
use crate::{
    log::{Clock, LogError, Retention, Unfit},
    message::Id,
};

/// How far ahead ids are reserved. After a crash, new ids begin behind that, so it should be short.
const RESERVE: Duration = Duration::from_secs(5);
/// How long a process waits for the one before it to end and release the file.
const HANDOVER: Duration = Duration::from_secs(30);
/// How often the process tries to lock the file meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long a publish waits for the disk. Then publishing goes on without it.
const PATIENCE: Duration = Duration::from_secs(1);
/// If no step of a write ends within this time, the disk counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// A state file that this process holds alone until this is dropped.
pub struct Saved {
    path: PathBuf,
    writer: Arc<Writer>,
}

impl Saved {
    /// Locks the file for this process and reads the log from it. Waits a while for a process that is about to
    /// end.
    ///
    /// # Cancel safety
    /// Dropping this releases the file, and never blocks. A file with a log is left as it is: it is marked as
    /// opened when the first message comes.
    pub async fn open(
        path: PathBuf,
        clock: Clock,
        retention: Retention,
        disk: Arc<dyn Disk>,
    ) -> io::Result<(Arc<Self>, State)> {
        let place = lock(&path, disk).await?;
        let reader = clock.clone();
        let reading = on_thread(move || {
            let found = content::take(&place, &retention, reader.now())?;
            Ok((place, found))
        });
        let mut reading = std::pin::pin!(reading);
        let (place, found) = match timeout(STALLED_AFTER, &mut reading).await {
            Ok(read) => read?,
            Err(_) => {
                tracing::warn!(path = %path.display(), "reading the state file takes long; the server starts when it is done");
                reading.await?
            }
        };
        let step = if matches!(found, Found::Log(_)) { "tested" } else { "marked as opened" };
        let Opened { owner, state, reserved } = in_time(step, move || begin(place, found, &clock)).await?;
        let writer = Writer::start(owner, state.newest(), reserved)?;
        Ok((Arc::new(Self { path, writer }), state))
    }

    /// Reserves ids from `next` on, if that is due. Waits for the disk for at most a second, and not at all
    /// while it is known to fail. Then publishing goes on without a reservation.
    ///
    /// # Errors
    /// If the file belongs to another process, or if it could not be marked as opened yet: what is stored now
    /// could be lost, and no client would be told.
    pub async fn reserve(&self, next: Id) -> Result<(), LogError> {
        let is_due = next.plus(RESERVE / 2) >= self.writer.status().reserved;
        if is_due && !self.writer.reserve(next.plus(RESERVE)) {
            // The log is closed, and says so.
            return Ok(());
        }
        // Only now: the order keeps the file from counting as written before it covers `next`.
        let status = self.writer.status();
        if next > status.reserved && !status.is_failing {
            self.reserved(next).await;
        }
        self.check().map_err(|unfit| unfit.error)
    }

    async fn reserved(&self, next: Id) {
        let mut changes = self.writer.changes();
        let settled = changes.wait_for(|status| status.reserved >= next || status.is_failing);
        if timeout(PATIENCE, settled).await.is_err() && self.writer.note_failing(next) {
            tracing::error!(path = %self.path.display(), "the disk of the state file does not answer: publishing goes on without it");
        }
    }

    /// True once the file is marked as opened. Until then it has the log as it was when this process started.
    pub fn has_begun(&self) -> bool {
        self.writer.status().has_begun()
    }

    /// Looks, some time soon, if the file still belongs to this process.
    pub fn look(&self) {
        self.writer.look();
    }

    /// Checks that messages may be stored.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve), with the reason.
    pub fn check(&self) -> Result<(), Unfit> {
        let status = self.writer.status();
        let why = if status.is_taken {
            "another server has taken the state file"
        } else if status.is_failing && !status.has_begun() {
            "the state file cannot be marked as opened"
        } else {
            return Ok(());
        };
        Err(Unfit { error: LogError::Unavailable, why: Some(why.into()) })
    }

    /// True while the file cannot be written.
    pub fn is_failing(&self) -> bool {
        self.writer.status().is_failing
    }

    /// Writes all retained messages for the next process. If that fails, tries again until `until`, and tries
    /// at least once.
    ///
    /// # Errors
    /// If the file could not be written, or belongs to another process.
    ///
    /// # Cancel safety
    /// Dropping this never blocks. A write that is under way goes on, and the file is complete either way.
    pub async fn close(&self, snapshot: Snapshot, until: Instant) -> io::Result<()> {
        let (path, messages) = (self.path.display(), snapshot.message_count());
        // An order to mark the file may have been carried out in part, so the log is written again.
        let is_marked = self.writer.shut();
        if !is_marked && self.is_there().await {
            tracing::info!(%path, "nothing was published, so the state file is left as it is");
            return Ok(());
        }
        let snapshot = Arc::new(snapshot);
        let mut is_told = false;
        loop {
            let failure = match self.closed(&snapshot, until).await {
                Ok(()) => {
                    tracing::info!(%path, messages, "state file written");
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let is_last = matches!(failure, Failure::Taken) || Instant::now() + TRY_AGAIN > until;
            if is_last {
                return Err(failure.into());
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(%path, error = %failure, "the state file cannot be written; trying again until the drain grace has passed");
            }
            sleep(TRY_AGAIN).await;
        }
    }

    /// True unless the file was removed since the server last looked.
    async fn is_there(&self) -> bool {
        let path = self.path.clone();
        in_time("found", move || path.try_exists()).await.unwrap_or(true)
    }

    /// One attempt to write the file. A slow disk may take its time, as long as each step ends.
    async fn closed(&self, snapshot: &Arc<Snapshot>, until: Instant) -> Result<(), Failure> {
        let mut written = self.writer.close(snapshot.clone());
        let mut steps = self.writer.steps();
        loop {
            if let Ok(written) = timeout(STALLED_AFTER, &mut written).await {
                return written.unwrap_or_else(|_| Err(gone().into()));
            }
            let has_stalled = std::mem::replace(&mut steps, self.writer.steps()) == steps;
            if has_stalled && Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer").into());
            }
        }
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.writer.end();
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Disk(error) => error,
            Failure::Taken => Self::new(io::ErrorKind::ResourceBusy, failure.to_string()),
        }
    }
}

async fn lock(path: &Path, disk: Arc<dyn Disk>) -> io::Result<Place> {
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        let (path, disk) = (path.to_owned(), disk.clone());
        let name = path.clone();
        if let Some(place) = in_time("locked", move || Place::lock(&name, disk)).await? {
            return Ok(place);
        }
        if begun.elapsed() > HANDOVER {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"));
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(path = %path.display(), "another process uses the state file; waiting for it");
        }
        sleep(ASK_EVERY).await;
    }
}

/// A file that was read, and the log in it.
struct Opened {
    owner: Owner,
    state: State,
    /// Zero if the file is not marked as opened yet.
    reserved: Id,
}

fn begin(place: Place, found: Found, clock: &Clock) -> io::Result<Opened> {
    let mut owner = Owner::of(place);
    let now = clock.now();
    let state = match found {
        // The file is marked as opened when the first message comes. A server that is stopped before that
        // leaves it as it is.
        Found::Log(state) => {
            owner.place.probe()?;
            return Ok(Opened { owner, state: *state, reserved: Id::ZERO });
        }
        Found::Nothing => State::new(now),
        Found::Lost { reserved, unused } => {
            unused.map_or(Ok(()), |unused| unused.set_aside(&owner.place))?;
            State::new(reserved.next(now))
        }
    };
    let reserved = state.newest();
    owner.write_reserved(reserved)?;
    Ok(Opened { owner, state, reserved })
}

/// Runs a step of the start. Fails if the disk does not answer.
async fn in_time<T: Send + 'static>(
    step: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    timeout(STALLED_AFTER, on_thread(work)).await.unwrap_or_else(|_| {
        let why = format!("the disk does not answer, so the file cannot be {step}");
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// Runs `work` on a thread of its own. The end of the process does not wait for it, as it would for a thread
/// of the runtime.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("state-file".into()).spawn(move || _ = done.send(work()))?;
    result.await.unwrap_or_else(|_| Err(gone()))
}

/// The thread panicked.
fn gone() -> io::Error {
    io::Error::other("the state file could not be read or written")
}
