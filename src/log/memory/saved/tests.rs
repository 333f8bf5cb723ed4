//! The state file: what it brings to the next process, and what happens if the disk or another process interferes.

mod faults;
mod marks;
mod owners;
mod starts;

use std::fs;

use super::{head::Head, *};
use crate::{
    log::{Append, AppendError, Appended, Log, MemoryLog, Position, Rules, Start},
    message::{Draft, Payload},
};

const RETENTION: Retention = Retention {
    messages: 3,
    age: Duration::from_secs(3600),
    bytes: 1 << 20,
    total_bytes: 1 << 20,
    topics: 1_000_000,
    rules: Rules::NONE,
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
        self.log_on(Arc::new(System), clock).await
    }

    async fn log_on(&self, disk: Arc<dyn Disk>, clock: &Clock) -> io::Result<Arc<MemoryLog>> {
        MemoryLog::resume_by(clock.clone(), RETENTION, self.state(), disk).await
    }

    /// Leaves the file of a log that ended with one message in the topic `a`, and returns its id.
    async fn close_with(&self, text: &str) -> Id {
        let log = self.log().await.expect("a new log");
        let id = publish(&log, "a", text).await;
        end(log).await;
        id
    }

    /// The file, once the log that used it has released it.
    async fn place(&self) -> Place {
        lock(&self.state(), Arc::new(System)).await.expect("no other process uses it")
    }

    fn remove_aside(&self) {
        for name in self.names().iter().filter(|name| name.contains(".damaged-")) {
            fs::remove_file(self.0.join(name)).expect("removed");
        }
    }

    /// How many damaged files were set aside.
    fn aside(&self) -> usize {
        self.names().iter().filter(|name| name.contains(".damaged-")).count()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn publish(log: &MemoryLog, topic: &str, text: &str) -> Id {
    try_to_publish(log, topic, text).await.expect("stored")
}

async fn try_to_publish(log: &MemoryLog, topic: &str, text: &str) -> Result<Id, AppendError> {
    let draft = Draft {
        topic: topic.parse().expect("a topic"),
        event: Some("event".into()),
        payload: Payload::text(text),
        exclude: None,
        by: None,
    };
    let append = Append { draft, idempotency_key: Some(text.into()), if_match: None };
    log.append(append).await.map(Appended::id)
}

async fn end(log: Arc<MemoryLog>) {
    log.end(Instant::now()).await.expect("written");
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
    end(log).await;

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
    let id = folder.close_with("first").await;
    let crashed = folder.log().await.expect("the next log");
    assert_eq!(read(&crashed, id.before()).await, (0, vec![id]));
    publish(&crashed, "a", "lost").await;
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
            log.end(Instant::now()).await.expect("written");
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
    let id = folder.close_with("precious").await;
    let whole = fs::read(folder.state()).expect("a file");
    let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
    let flipped = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let longer = [whole.clone(), vec![0]].concat();
    for damaged in cut.chain(flipped).chain([longer]) {
        fs::write(folder.state(), &damaged).expect("written");
        let place = folder.place().await;
        let found = content::take(&place, &RETENTION, Id::now()).expect("read");
        assert!(matches!(found, Found::Lost { .. }));
    }
    folder.remove_aside();
    for (times, at) in [0, 13, 40, whole.len() - 1].into_iter().enumerate() {
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
        content::take(&folder.place().await, &RETENTION, Id::now()).expect("what it holds");
    };
    let folder = Folder::new();
    let id = folder.close_with("precious").await;
    look(&folder).await;
    let log = folder.log().await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
    drop(log);

    // The file is damaged behind its first line, and that line says which ids may have been assigned.
    let ahead = Id::now().plus(Duration::from_secs(3600));
    let head = Head { version: 3, is_closed: true, newest: ahead, bytes: 1, hash: 0, run: None };
    fs::write(folder.state(), head.line()).expect("written");
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
async fn a_closed_log_refuses_what_would_be_lost_and_leaves_the_file_alone() {
    let folder = Folder::new();
    let log = folder.log().await.expect("a new log");
    let id = publish(&log, "a", "precious").await;
    log.end(Instant::now()).await.expect("written");
    let topic: crate::message::Topic = "a".parse().expect("a topic");
    let draft =
        Draft { topic: topic.clone(), event: None, payload: Payload::text(""), exclude: None, by: None };
    let append = Append { draft, idempotency_key: None, if_match: None };
    assert!(log.append(append).await.is_err());
    assert!(log.delete(&topic).await.is_err());
    // An order to reserve ids may still be on its way.
    let saved = log.saved.as_ref().expect("a state file");
    saved.writer.reserve(id.plus(10 * RESERVE));
    sleep(Duration::from_millis(200)).await;
    drop(log);
    let log = folder.log().await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

#[tokio::test]
async fn a_file_with_zeros_at_its_beginning_is_set_aside() {
    let folder = Folder::new();
    let id = folder.close_with("precious").await;
    let whole = fs::read(folder.state()).expect("a file");
    for (times, zeros) in [12, 100, whole.len()].into_iter().enumerate() {
        let mut bytes = whole.clone();
        bytes[..zeros].fill(0);
        fs::write(folder.state(), &bytes).expect("written");
        let log = folder.log().await.expect("a log that begins anew");
        assert_eq!(read(&log, id).await.0, 1, "a gap is told");
        assert_eq!(folder.aside(), times + 1);
    }
}

/// The first release wrote no number of the process.
#[tokio::test]
async fn a_file_of_version_1_is_read() {
    let folder = Folder::new();
    let id = folder.close_with("precious").await;
    let place = folder.place().await;
    let version_1 = as_version_1(&fs::read(folder.state()).expect("a file"));
    drop(place);
    for (number, expected) in [("", (0, vec![id])), ("00000000000000ff\n", (1, vec![]))] {
        fs::write(folder.state(), &version_1).expect("written");
        fs::write(folder.0.join("state.lock"), number).expect("written");
        let log = folder.log().await.expect("the next log");
        assert_eq!(read(&log, id.before()).await, expected, "a later process wrote {number:?}");
        drop(log);
        drop(folder.place().await);
    }
}

/// An older copy was put back without its lock file, so that all readers get a gap. They got none.
#[tokio::test]
async fn a_file_of_version_1_that_comes_without_its_lock_file_is_set_aside() {
    let folder = Folder::new();
    let id = folder.close_with("precious").await;
    drop(folder.place().await);
    let version_1 = as_version_1(&fs::read(folder.state()).expect("a file"));
    fs::write(folder.state(), &version_1).expect("written");
    fs::remove_file(folder.0.join("state.lock")).expect("removed");
    // The first process makes a lock file, and is killed before it has marked the file.
    drop(folder.place().await);
    let log = folder.log().await.expect("a log that begins anew");
    assert_eq!(read(&log, id).await, (1, vec![]));
    assert!(folder.names().iter().any(|name| name.contains(".older-")));
}

/// The file with one message, `precious`, as the first release wrote it: no process, and no publisher of the message.
fn as_version_1(file: &[u8]) -> Vec<u8> {
    let (head, len) = Head::parse(file).expect("a first line");
    let mut body = file[len..].to_vec();
    let payload = body.windows(8).position(|bytes| bytes == b"precious").expect("its payload");
    assert_eq!(body[payload - 2..payload], [8, 0], "its length, and no publisher");
    body.remove(payload - 1);
    let (newest, bytes, hash) = (head.newest.get(), body.len(), xxhash_rust::xxh3::xxh3_64(&body));
    let words = format!("rejoin-state 1 closed {newest:016} {bytes:020} {hash:016x}");
    let sum = xxhash_rust::xxh3::xxh3_64(words.as_bytes());
    [format!("{words} {sum:016x}\n").as_bytes(), &body].concat()
}

/// A server was ended while it started. It had marked the file as opened, so its messages were lost.
#[tokio::test]
async fn a_log_that_was_dropped_before_its_first_message_leaves_the_file_as_it_was() {
    let folder = Folder::new();
    let id = folder.close_with("precious").await;
    drop(folder.place().await);
    let whole = fs::read(folder.state()).expect("a file");
    for polls in 0..4 {
        let mut resumed = std::pin::pin!(folder.log());
        for _ in 0..polls {
            _ = futures_util::poll!(&mut resumed);
            tokio::task::yield_now().await;
        }
    }
    let log = folder.log().await.expect("the next log");
    let ended = log.end(Instant::now()).await;
    ended.expect("nothing to write");
    drop(log);
    drop(folder.place().await);
    assert!(fs::read(folder.state()).expect("a file") == whole);
    let log = folder.log().await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

/// Waits for the thread that writes. It needs real time, so give it plenty.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.expect("it happens within a minute");
}
