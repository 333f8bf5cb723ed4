//! The file by which a log outlives its process.
//!
//! A process that ends in order writes all retained messages to the file and marks it `closed`. The next
//! process marks it `opened` before it serves clients. A process that finds the file opened knows that
//! messages were lost. While the file is opened, it says which ids may have been assigned. So none is
//! assigned twice, even if the clock is set back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::state::Snapshot;
use crate::message::Id;

const MAGIC: &str = "rejoin-state";
/// The version of the format. A new version must also read this one, or refuse it.
const VERSION: u32 = 1;
/// How many bytes the first line may have.
const MAX_HEAD_BYTES: usize = 128;
/// How far ahead ids are reserved. After a crash, new ids begin behind that, so it should be short.
const RESERVE: Duration = Duration::from_secs(5);
/// How long a process waits for the one before it to end and release the file.
const HANDOVER: Duration = Duration::from_secs(30);
/// How often the process tries to lock the file meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A state file that this process holds alone until this is dropped.
pub struct Saved {
    path: PathBuf,
    /// Ids up to this one may be assigned.
    reserved: AtomicU64,
    /// True once the file was written for the last time.
    // A std mutex: it is held while the file is written, but only on threads that may block.
    is_closed: Mutex<bool>,
    /// Holds the lock, which lies beside the file, because each write replaces the file.
    _lock: File,
}

/// The content of the file when a process starts.
pub enum Found {
    Nothing,
    Snapshot(Box<Snapshot>),
    /// Messages were lost. Ids up to this one may have been assigned.
    Lost {
        reserved: Id,
    },
}

impl Saved {
    /// Locks the file for this process. Waits a while for a process that is about to end.
    pub async fn open(path: PathBuf) -> io::Result<Arc<Self>> {
        let lock = options().create(true).truncate(false).open(beside(&path, ".lock"))?;
        let begun = Instant::now();
        let mut is_told = false;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error.into());
            }
            if begun.elapsed() > HANDOVER {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"));
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::info!(path = %path.display(), "another process uses the state file; waiting for it");
            }
            sleep(ASK_EVERY).await;
        }
        Ok(Arc::new(Self { path, reserved: AtomicU64::new(0), is_closed: Mutex::new(false), _lock: lock }))
    }

    /// Reads the file. A damaged file is set aside.
    pub async fn take(self: &Arc<Self>) -> io::Result<Found> {
        let saved = self.clone();
        blocking(move || saved.take_now()).await
    }

    /// Marks the file as opened, with `newest` as the last assigned id.
    ///
    /// A process that finds the file after this knows that this one did not end in order.
    pub async fn begin(self: &Arc<Self>, newest: Id) -> io::Result<()> {
        self.write_reserved(newest).await
    }

    /// True if `id` and those after it are reserved, with time to spare.
    pub fn has_reserved(&self, id: Id) -> bool {
        id.get() + RESERVE.as_micros() as u64 / 2 < self.reserved.load(Ordering::Acquire)
    }

    /// Reserves ids from `next` on, if that is due.
    pub async fn reserve(self: &Arc<Self>, next: Id) -> io::Result<()> {
        if self.has_reserved(next) {
            return Ok(());
        }
        self.write_reserved(Id::new(next.get() + RESERVE.as_micros() as u64)).await
    }

    async fn write_reserved(self: &Arc<Self>, reserved: Id) -> io::Result<()> {
        let saved = self.clone();
        blocking(move || {
            let is_closed = saved.is_closed();
            // If several callers find it due at the same time, only one writes.
            if *is_closed || saved.reserved.load(Ordering::Acquire) >= reserved.get() {
                return Ok(());
            }
            let written =
                saved.replace(|file| file.write_all(head("opened", reserved, 0, xxh3_64(b"")).as_bytes()));
            // Do this even if the write failed, so that not every publish tries again.
            saved.reserved.store(reserved.get(), Ordering::Release);
            written
        })
        .await
    }

    /// Writes all retained messages for the next process.
    pub async fn write(self: &Arc<Self>, snapshot: Snapshot) -> io::Result<()> {
        let saved = self.clone();
        blocking(move || {
            let mut is_closed = saved.is_closed();
            *is_closed = true;
            saved.replace(|file| {
                // The first line is written last, when its content is known. Until then a placeholder takes
                // its room.
                let room = head("closed", Id::ZERO, 0, 0);
                file.write_all(room.as_bytes())?;
                let mut body = Body { to: BufWriter::new(&mut *file), bytes: 0, hash: Xxh3::new() };
                snapshot.write(&mut body)?;
                body.to.flush()?;
                let (bytes, hash) = (body.bytes, body.hash.digest());
                drop(body);
                file.rewind()?;
                file.write_all(head("closed", snapshot.newest, bytes, hash).as_bytes())
            })?;
            tracing::info!(path = %saved.path.display(), messages = snapshot.message_count(), "state file written");
            Ok(())
        })
        .await
    }

    fn is_closed(&self) -> MutexGuard<'_, bool> {
        self.is_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_now(&self) -> io::Result<Found> {
        let path = self.path.display();
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            read => read?,
        };
        if !looks_like_ours(&bytes) {
            let what = "this is not a state file; name another one, or move it away";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let (head, read) = parse(&bytes);
        let reserved = head.map_or(Id::ZERO, |head| head.newest);
        match read {
            Ok(Some(snapshot)) => {
                tracing::info!(%path, messages = snapshot.message_count(), "state file read");
                Ok(Found::Snapshot(Box::new(snapshot)))
            }
            Ok(None) => {
                tracing::warn!(%path, "the last process did not end in order: its messages are lost, and older cursors get a gap");
                Ok(Found::Lost { reserved })
            }
            Err(why) => {
                let aside = beside(&self.path, &format!(".damaged-{}", Id::now()));
                // Add a second name, and keep the first until a new file replaces it. A process that starts
                // in between finds the same as this one.
                fs::hard_link(&self.path, &aside).or_else(|_| fs::rename(&self.path, &aside))?;
                sync_folder(&self.path)?;
                tracing::error!(%path, why, aside = %aside.display(), "the state file is damaged and was set aside: it is not used, and older cursors get a gap");
                Ok(Found::Lost { reserved })
            }
        }
    }

    /// Replaces the file. At every moment one of the two is there and complete.
    fn replace(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let new = beside(&self.path, ".new");
        let mut file = options().create(true).truncate(true).open(&new)?;
        let written = write(&mut file).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        fs::rename(&new, &self.path)?;
        sync_folder(&self.path)
    }
}

/// The content of the first line.
#[derive(Clone, Copy)]
struct Head {
    is_closed: bool,
    newest: Id,
    bytes: u64,
    hash: u64,
}

/// The first line. It always has the same length, and ends with its own checksum.
fn head(kind: &str, newest: Id, bytes: u64, hash: u64) -> String {
    let words = format!("{MAGIC} {VERSION} {kind} {:016} {bytes:020} {hash:016x}", newest.get());
    let sum = xxh3_64(words.as_bytes());
    format!("{words} {sum:016x}\n")
}

/// The first line if it is whole, and the snapshot of the file: `None` if the file was not closed.
fn parse(file: &[u8]) -> (Option<Head>, Result<Option<Snapshot>, String>) {
    let (head, body) = match parse_head(file) {
        Ok(parsed) => parsed,
        Err(why) => return (None, Err(why)),
    };
    let read = if body.len() as u64 != head.bytes {
        Err(format!("it should have {} bytes behind its first line, and has {}", head.bytes, body.len()))
    } else if xxh3_64(body) != head.hash {
        Err("its checksum does not match".into())
    } else if head.is_closed {
        Snapshot::read(body).map(Some).map_err(|error| error.to_string())
    } else {
        Ok(None)
    };
    (Some(head), read)
}

fn parse_head(file: &[u8]) -> Result<(Head, &[u8]), String> {
    let end = file.iter().take(MAX_HEAD_BYTES).position(|byte| *byte == b'\n');
    let end = end.ok_or("its first line is cut off")?;
    let line = std::str::from_utf8(&file[..end]).map_err(|_| "its first line is not text")?;
    let words: Vec<_> = line.split(' ').collect();
    let [magic, version, kind, newest, bytes, hash, sum] = *words else {
        return Err("its first line does not have 7 words".into());
    };
    let summed = line.rsplit_once(' ').map_or("", |(words, _)| words);
    if sum != format!("{:016x}", xxh3_64(summed.as_bytes())) || magic != MAGIC {
        return Err("the checksum of its first line does not match".into());
    }
    if version != VERSION.to_string() {
        return Err(format!("its version is {version}, and this program reads version {VERSION}"));
    }
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let head = Head {
        is_closed: kind == "closed",
        newest: Id::new(number(newest)?),
        bytes: number(bytes)?,
        hash: u64::from_str_radix(hash, 16).map_err(|error| error.to_string())?,
    };
    Ok((head, &file[end + 1..]))
}

/// True if this may be a state file, whole or damaged. The server must not touch any other file.
fn looks_like_ours(file: &[u8]) -> bool {
    let same = file.iter().zip(MAGIC.as_bytes()).filter(|(a, b)| a == b).count();
    same >= file.len().min(MAGIC.len()) / 2
}

/// Counts and hashes the bytes that are written.
struct Body<W> {
    to: W,
    bytes: u64,
    hash: Xxh3,
}

impl<W: Write> Write for Body<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Only the owner may read the file, because it has the published messages.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A rename is durable only once the folder is synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{Append, Clock, Log, MemoryLog, Position, Retention, Start},
        message::{Draft, Payload},
    };

    const RETENTION: Retention = Retention {
        messages: 3,
        age: Duration::from_secs(3600),
        bytes: 1 << 20,
        total_bytes: 1 << 20,
        topics: 1_000_000,
    };

    /// A folder for one test, which removes it at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("rejoin-{:032x}", rand::random::<u128>()));
            fs::create_dir(&path).expect("a folder");
            Self(path)
        }

        fn state(&self) -> PathBuf {
            self.0.join("state")
        }

        async fn log(&self) -> io::Result<Arc<MemoryLog>> {
            self.log_by(&Clock::System).await
        }

        async fn log_by(&self, clock: &Clock) -> io::Result<Arc<MemoryLog>> {
            MemoryLog::resume_by(clock.clone(), RETENTION, self.state()).await
        }

        /// How many files were set aside.
        fn aside(&self) -> usize {
            let names =
                fs::read_dir(&self.0).expect("a folder").map(|entry| entry.expect("an entry").file_name());
            names.filter(|name| name.to_string_lossy().contains(".damaged-")).count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn publish(log: &MemoryLog, topic: &str, text: &str) -> Id {
        let draft = Draft {
            topic: topic.parse().expect("a topic"),
            event: Some("event".into()),
            payload: Payload::text(text),
            exclude: None,
        };
        let append = Append { draft, idempotency_key: Some(text.into()), if_match: None };
        log.append(append).await.expect("stored").id()
    }

    /// How many gaps a reader of everything gets, and the ids of its messages.
    async fn read(log: &MemoryLog, cursor: Id) -> (usize, Vec<Id>) {
        let patterns = "**".parse().into_iter().collect();
        let page = log.read(&patterns, &Position::at(cursor), 100).await.expect("a page");
        (page.gaps.len(), page.messages.iter().map(|message| message.id).collect())
    }

    #[tokio::test]
    async fn a_log_goes_on_where_the_one_before_ended() {
        let folder = Folder::new();
        let log = folder.log().await.expect("a new log");
        let began = log.watermark();
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.push(publish(&log, "busy", &number.to_string()).await);
        }
        let quiet = publish(&log, "quiet", "once").await;
        log.delete(&"quiet".parse().expect("a topic")).await.expect("deleted");
        let stats = log.stats().await.expect("stats");
        log.end().await.expect("written");
        drop(log);

        let log = folder.log().await.expect("the next log");
        let now = log.stats().await.expect("stats");
        assert_eq!(serde_json::to_string(&now).expect("JSON"), serde_json::to_string(&stats).expect("JSON"));
        assert_eq!(log.watermark(), quiet);
        assert_eq!(read(&log, ids[1]).await, (1, ids[2..].to_vec()), "the deleted one is a gap");
        assert_eq!(read(&log, quiet).await, (0, vec![]));
        assert_eq!(read(&log, began).await.0, 2, "what was trimmed and what was deleted");
        // The same key and payload give the first id again.
        assert_eq!(publish(&log, "busy", "4").await, ids[4]);
        let next = publish(&log, "busy", "new").await;
        assert!(next > quiet);
        let position = log.begin(&"busy".parse().into_iter().collect(), &Start::After(ids[4])).await;
        assert_eq!(position.expect("a beginning").gaps, []);
    }

    #[tokio::test]
    async fn a_state_file_is_read_once_and_not_again_after_a_crash() {
        let folder = Folder::new();
        let log = folder.log().await.expect("a new log");
        let id = publish(&log, "a", "first").await;
        log.end().await.expect("written");
        drop(log);
        let crashed = folder.log().await.expect("the next log");
        assert_eq!(read(&crashed, id.before()).await, (0, vec![id]));
        drop(crashed);
        let log = folder.log().await.expect("the one after the crash");
        assert_eq!(read(&log, id).await.0, 1, "every older cursor gets a gap");
        assert!(log.stats().await.expect("stats").began > id);
        assert_eq!(folder.aside(), 0);
    }

    #[tokio::test]
    async fn no_id_is_given_twice_though_the_clock_was_set_back() {
        let (folder, clock) = (Folder::new(), Clock::stopped());
        let now = clock.now();
        for is_ended in [false, true] {
            clock.advance(Duration::from_secs(3600));
            let log = folder.log_by(&clock).await.expect("a log");
            let id = publish(&log, "a", "before").await;
            if is_ended {
                log.end().await.expect("written");
            }
            drop(log);
            clock.set(now);
            let log = folder.log_by(&clock).await.expect("a log");
            let next = publish(&log, "a", "after").await;
            assert!(next > id, "{is_ended}");
            // This log ends without writing. The file says which ids may have been assigned meanwhile.
            drop(log);
            let log = folder.log_by(&clock).await.expect("a log");
            assert!(publish(&log, "a", "after").await > next, "{is_ended}");
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_wherever_the_damage_is() {
        let folder = Folder::new();
        let log = folder.log().await.expect("a new log");
        let id = publish(&log, "a", "precious").await;
        log.end().await.expect("written");
        drop(log);
        let whole = fs::read(folder.state()).expect("a file");
        let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes
        });
        let longer = [whole.clone(), vec![0]].concat();
        for damaged in cut.chain(flipped).chain([longer]) {
            assert!(parse(&damaged).1.is_err());
        }
        for (times, at) in [0, MAGIC.len() + 1, 40, whole.len() - 1].into_iter().enumerate() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(folder.state(), &bytes).expect("written");
            let log = folder.log().await.expect("a log that begins anew");
            assert_eq!(log.stats().await.expect("stats").messages, 0);
            assert!(log.watermark() > id);
            assert_eq!(folder.aside(), times + 1);
        }
    }

    /// A process was killed after it had read the file, and before it had marked it as opened.
    #[tokio::test]
    async fn a_process_that_only_read_the_file_has_changed_nothing() {
        let look = async |folder: &Folder| {
            let saved = Saved::open(folder.state()).await.expect("a file");
            drop(saved.take().await.expect("what it holds"));
        };
        let folder = Folder::new();
        let log = folder.log().await.expect("a new log");
        let id = publish(&log, "a", "precious").await;
        log.end().await.expect("written");
        drop(log);
        look(&folder).await;
        let log = folder.log().await.expect("the next log");
        assert_eq!(read(&log, id.before()).await, (0, vec![id]));
        drop(log);

        // The file is damaged behind its first line, and that line says which ids may have been assigned.
        let ahead = Id::now().plus(Duration::from_secs(3600));
        fs::write(folder.state(), head("closed", ahead, 1, 0)).expect("written");
        look(&folder).await;
        let log = folder.log().await.expect("a log that begins anew");
        assert!(publish(&log, "a", "x").await > ahead);
        assert_eq!(read(&log, id).await.0, 1, "a gap is told");
    }

    #[tokio::test]
    async fn a_file_that_is_no_state_file_is_not_touched() {
        let folder = Folder::new();
        fs::write(folder.state(), "root:x:0:0:root:/root:/bin/sh\n").expect("written");
        assert!(folder.log().await.is_err());
        assert!(fs::read_to_string(folder.state()).expect("it is there").starts_with("root:"));
    }

    #[tokio::test]
    async fn a_closed_log_refuses_what_would_be_lost() {
        let folder = Folder::new();
        let log = folder.log().await.expect("a new log");
        log.end().await.expect("written");
        let topic: crate::message::Topic = "a".parse().expect("a topic");
        let draft = Draft { topic: topic.clone(), event: None, payload: Payload::text(""), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        assert!(log.append(append).await.is_err());
        assert!(log.delete(&topic).await.is_err());
    }

    #[tokio::test]
    async fn two_processes_do_not_share_a_file() {
        let folder = Folder::new();
        let first = folder.log().await.expect("a new log");
        let id = publish(&first, "a", "x").await;
        let mut second = std::pin::pin!(folder.log());
        assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the first");
        first.end().await.expect("written");
        drop(first);
        let second = second.await.expect("a log");
        assert_eq!(second.watermark(), id);
    }
}
