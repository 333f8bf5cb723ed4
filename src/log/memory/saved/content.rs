//! The content of a state file: how a process reads it at its start, and what it writes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use xxhash_rust::xxh3::xxh3_64;

use super::{
    super::state::{Snapshot, State},
    body,
    disk::Disk,
    head::{self, Head, VERSION},
    place::{Failure, Last, Place},
};
use crate::{log::Retention, message::Id};

/// After so many bytes the file is synced. So a disk that is slow is told from one that stalls, and the system
/// holds few bytes that are not written yet.
const SYNC_EVERY_BYTES: u64 = 16 << 20;

/// Why a file is not used, and the ending of its new name.
const DAMAGED: (&str, &str) = ("is damaged", "damaged");
const OLDER: (&str, &str) = ("may be an older copy", "older");

/// The content of the file when a process starts.
pub enum Found {
    Nothing,
    /// The log of the process before, which ended in order.
    Log(Box<State>),
    /// Messages were lost. Ids up to this one may have been assigned.
    Lost {
        reserved: Id,
        unused: Option<Unused>,
    },
}

/// A file that is damaged, or that may be an older copy. It is to be set aside.
pub struct Unused {
    is: &'static str,
    ending: &'static str,
    why: String,
}

impl Unused {
    pub fn set_aside(&self, place: &Place) -> io::Result<()> {
        let Self { is, ending, why } = self;
        let aside = place.set_aside(ending)?;
        let path = place.path().display();
        tracing::error!(%path, why, aside = %aside.display(), "the state file {is} and was set aside: it is not used, and older cursors get a gap");
        Ok(())
    }
}

/// Reads the file, and changes nothing.
pub fn take(place: &Place, retention: &Retention, now: Id) -> io::Result<Found> {
    let path = place.path().display();
    let mut file = match File::open(place.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if matches!(place.last(), Last::Run(_)) {
                tracing::warn!(%path, "the state file is gone, and its lock file is there: older cursors get a gap");
            }
            return Ok(Found::Nothing);
        }
        opened => opened?,
    };
    let mut first = Vec::new();
    (&mut file).take(head::MAX_BYTES as u64).read_to_end(&mut first)?;
    if !head::looks_like_ours(&first) {
        let what = "this is not a state file; name another one, or move it away";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let (head, len) = match Head::parse(&first) {
        Ok(parsed) => parsed,
        Err(why) => return Ok(unused(DAMAGED, why, Id::ZERO)),
    };
    match read(&mut file, head, len as u64, retention, now)? {
        Err(why) => Ok(unused(DAMAGED, why, head.newest)),
        Ok(None) => {
            tracing::warn!(%path, "the last process did not end in order: its messages are lost, and older cursors get a gap");
            Ok(Found::Lost { reserved: head.newest, unused: None })
        }
        Ok(Some(state)) => match why_older(place.last(), head.run) {
            Some(why) => Ok(unused(OLDER, why.into(), head.newest)),
            None => {
                tracing::info!(%path, messages = state.stats().messages, "state file read");
                Ok(Found::Log(state))
            }
        },
    }
}

/// Says why a file that this process has written may not be the newest one. `None` if it is.
fn why_older(last: Last, run: Option<u64>) -> Option<&'static str> {
    match (last, run) {
        (Last::Version1, None) => None,
        (Last::Run(last), Some(run)) if last == run => None,
        (Last::Run(_), _) => Some("its lock file names another process, which has used a newer one"),
        (Last::Unknown, _) => Some("its lock file was missing, so there may be a newer one"),
        (Last::Version1, Some(_)) => Some("its lock file is empty, so there may be a newer one"),
    }
}

/// Reads the rest of the file: the log, or `None` if the file was not closed. Says as text how it is damaged.
fn read(
    file: &mut File,
    head: Head,
    head_bytes: u64,
    retention: &Retention,
    now: Id,
) -> io::Result<Result<Option<Box<State>>, String>> {
    let bytes = file.metadata()?.len().saturating_sub(head_bytes);
    if bytes != head.bytes {
        return Ok(Err(format!(
            "it should have {} bytes behind its first line, and has {bytes}",
            head.bytes
        )));
    }
    file.seek(SeekFrom::Start(head_bytes))?;
    let mut body = body::Reader::new(file);
    let state =
        if head.is_closed { Some(State::read(&mut body, head.version, retention, now)) } else { None };
    // The log that was read from the bytes counts only if their checksum is right.
    if body.finish()? != head.hash {
        return Ok(Err("its checksum does not match".into()));
    }
    Ok(state.transpose().map(|state| state.map(Box::new)).map_err(|error| error.to_string()))
}

fn unused((is, ending): (&'static str, &'static str), why: String, reserved: Id) -> Found {
    Found::Lost { reserved, unused: Some(Unused { is, ending, why }) }
}

/// This process, as the owner of the file.
pub struct Owner {
    pub place: Place,
    /// A random number. It is in the files that this process writes.
    run: u64,
    has_begun: bool,
}

impl Owner {
    pub fn of(place: Place) -> Self {
        Self { place, run: rand::random(), has_begun: false }
    }

    /// Writes that a process is running, and which ids it may have assigned.
    pub fn write_reserved(&mut self, reserved: Id) -> Result<(), Failure> {
        let run = Some(self.run);
        let head =
            Head { version: VERSION, is_closed: false, newest: reserved, bytes: 0, hash: xxh3_64(b""), run };
        self.place.replace(|file| file.write_all(head.line().as_bytes()))?;
        self.begin()
    }

    /// Writes all retained messages for the next process, and counts the steps.
    pub fn write_closed(&mut self, snapshot: &Snapshot, steps: &AtomicU64) -> Result<(), Failure> {
        // First the number, and then the file: a crash in between becomes a gap.
        self.begin()?;
        let (run, disk) = (Some(self.run), self.place.disk());
        self.place.replace(|file| {
            let newest = snapshot.newest;
            let head =
                |bytes, hash| Head { version: VERSION, is_closed: true, newest, bytes, hash, run }.line();
            // The first line is written last, when its content is known. Until then a placeholder takes its
            // room.
            file.write_all(head(0, 0).as_bytes())?;
            let mut body = body::Writer::new(Synced { file: &mut *file, disk: &*disk, unsynced: 0, steps });
            snapshot.write(&mut body)?;
            let (bytes, hash) = body.finish()?;
            file.rewind()?;
            file.write_all(head(bytes, hash).as_bytes())
        })
    }

    /// From now on no file counts that another process has written.
    fn begin(&mut self) -> Result<(), Failure> {
        if !self.has_begun {
            self.place.set_run(self.run)?;
            self.has_begun = true;
        }
        Ok(())
    }
}

/// Syncs a file while it is written.
struct Synced<'a> {
    file: &'a mut File,
    disk: &'a dyn Disk,
    unsynced: u64,
    steps: &'a AtomicU64,
}

impl Write for Synced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.sync(self.file)?;
        self.unsynced = 0;
        self.steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
