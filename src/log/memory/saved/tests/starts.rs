//! A start on a disk that fails or stalls.

use std::{os::unix::fs::MetadataExt, sync::Mutex};

use super::{
    faults::{Faulty, Mode, Step},
    marks::ended,
    *,
};

/// A disk on which something removes a lock file while it is being locked.
struct Removing(Mutex<Option<PathBuf>>);

impl Disk for Removing {
    fn sync(&self, file: &fs::File) -> io::Result<()> {
        System.sync(file)
    }

    fn lock(&self, file: &fs::File) -> io::Result<bool> {
        if let Some(path) = self.0.lock().expect("no panic while it is held").take() {
            fs::remove_file(path).expect("removed");
        }
        System.lock(file)
    }
}

/// The start ended with an error.
#[tokio::test]
async fn a_lock_file_that_is_removed_while_it_is_locked_is_made_again() {
    let folder = Folder::new();
    let disk = Arc::new(Removing(Mutex::new(Some(folder.0.join("state.lock")))));
    let log = folder.log_on(disk, &Clock::System).await.expect("a new log");
    publish(&log, "a", "x").await;
    assert!(folder.0.join("state.lock").exists());
}

#[tokio::test]
async fn a_disk_that_stalls_at_the_start_ends_it_with_an_error_that_names_the_step() {
    let stalls = async |is_new: bool, works: usize, step: Step, expected: &str| {
        let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
        let id = if is_new { None } else { Some(ended(&folder, &clock).await) };
        disk.set_after(works, Some(step), Mode::Stalls);
        let started = timeout(Duration::from_secs(60), folder.log_on(disk.clone(), &clock)).await;
        let error = started.expect("it ends").err().expect("no log");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let expected = format!("the disk does not answer, so the file cannot be {expected}");
        assert_eq!(error.to_string(), expected);
        disk.set(Mode::Works);
        let log = folder.log_by(&clock).await.expect("the next log");
        if let Some(id) = id {
            assert_eq!(read(&log, id.before()).await, (0, vec![id]), "{expected}");
        }
    };
    tokio::join!(
        stalls(false, 0, Step::Lock, "locked"),
        stalls(false, 0, Step::Sync, "tested"),
        // The sync before that is the one of the lock file.
        stalls(true, 1, Step::Sync, "marked as opened"),
    );
}

/// Each attempt to start added another name.
#[tokio::test]
async fn a_damaged_file_is_set_aside_once_though_the_server_cannot_start() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    ended(&folder, &clock).await;
    fs::write(folder.state(), "rejoin-state").expect("written");
    for _ in 0..3 {
        // The sync before the one that fails makes the other name durable.
        disk.set_after(1, Some(Step::Sync), Mode::Fails);
        assert!(folder.log_on(disk.clone(), &clock).await.is_err());
        assert_eq!(folder.aside(), 1);
    }
    folder.log_by(&clock).await.expect("a log that begins anew");
    assert_eq!(folder.aside(), 1);
}

#[tokio::test]
async fn a_file_that_is_set_aside_replaces_no_other_file() {
    let folder = Folder::new();
    fs::write(folder.state(), "rejoin-state").expect("written");
    let inode = fs::metadata(folder.state()).expect("a file").ino();
    let other = folder.0.join(format!("state.damaged-{inode}"));
    fs::write(&other, "from another disk").expect("written");
    folder.log().await.expect("a log that begins anew");
    assert_eq!(folder.aside(), 2);
    assert_eq!(fs::read_to_string(other).expect("a file"), "from another disk");
}

/// If the lock file stayed there empty, a file of version 1 would count as the newest one.
#[tokio::test]
async fn a_lock_file_that_cannot_be_written_is_not_left_behind() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    disk.set_after(0, Some(Step::Sync), Mode::Fails);
    assert!(folder.log_on(disk.clone(), &clock).await.is_err());
    assert!(folder.names().is_empty());
}
