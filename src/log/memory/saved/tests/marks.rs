//! When the file is marked as opened, and which ids it then covers.

use std::os::unix::fs::MetadataExt;

use super::{
    faults::{Faulty, Mode, Step, pass_reservation},
    *,
};

/// A log with one message, which ended in order. Returns its id.
pub async fn ended(folder: &Folder, clock: &Clock) -> Id {
    let log = folder.log_by(clock).await.expect("a new log");
    let id = publish(&log, "a", "precious").await;
    end(log).await;
    drop(folder.place().await);
    id
}

pub fn is_failing(log: &MemoryLog) -> bool {
    log.saved.as_ref().is_some_and(|saved| saved.is_failing())
}

fn is_unfit(log: &MemoryLog) -> bool {
    log.saved.as_ref().is_some_and(|saved| saved.check().is_err())
}

/// The mark was in the file, and then a step failed or stalled. The end left the file alone, and the log was
/// lost with exit code 0.
#[tokio::test]
async fn a_mark_that_was_made_in_part_is_replaced_by_the_log_at_the_end() {
    // The syncs of the new file, of the folder, and of the lock file.
    for works in 0..3 {
        for mode in [Mode::Fails, Mode::Stalls] {
            let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
            let id = ended(&folder, &clock).await;
            let log = folder.log_on(disk.clone(), &clock).await.expect("the next log");
            disk.set_after(works, Some(Step::Sync), mode);
            assert_eq!(try_to_publish(&log, "a", "x").await, Err(LogError::Unavailable.into()));
            if mode == Mode::Fails {
                log.end(Instant::now()).await.expect_err("the file may be marked");
            }
            let mut end = Box::pin(log.end(Instant::now() + Duration::from_secs(600)));
            _ = futures_util::poll!(&mut end);
            disk.set(Mode::Works);
            end.await.expect("written");
            drop(log);
            let log = folder.log_by(&clock).await.expect("the next log");
            assert_eq!(read(&log, id.before()).await, (0, vec![id]), "{works} {mode:?}");
        }
    }
}

#[tokio::test]
async fn the_file_counts_as_written_again_only_when_it_covers_all_ids() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    disk.set(Mode::Stalls);
    for text in ["on its way", "ordered behind it"] {
        pass_reservation(&clock);
        publish(&log, "a", text).await;
    }
    assert!(is_failing(&log));
    let stalled = disk.stalled();
    // The first write gets through, and the second stalls.
    disk.set_after(2, None, Mode::Stalls);
    until(|| disk.stalled() > stalled).await;
    let status = log.saved.as_ref().expect("a state file").writer.status();
    assert!(status.reserved < log.watermark() && status.is_failing, "{status:?}");
    disk.set(Mode::Works);
    until(|| !is_failing(&log)).await;
    let status = log.saved.as_ref().expect("a state file").writer.status();
    assert!(status.reserved > log.watermark(), "{status:?}");
}

#[tokio::test]
async fn a_log_that_is_dropped_while_the_disk_stalls_still_covers_its_ids() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let began = clock.now();
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    disk.set(Mode::Stalls);
    for text in ["on its way", "ordered behind it"] {
        pass_reservation(&clock);
        publish(&log, "a", text).await;
    }
    let newest = log.watermark();
    drop(log);
    disk.set(Mode::Works);
    clock.set(began);
    let log = folder.log_by(&clock).await.expect("the one after the crash");
    assert!(publish(&log, "a", "after").await > newest);
}

/// After a crash the next server knew of no id that was given.
#[tokio::test]
async fn a_file_that_is_removed_is_written_again_and_covers_all_ids() {
    let (folder, clock) = (Folder::new(), Clock::stopped());
    let began = clock.now();
    clock.advance(Duration::from_secs(3600));
    let log = folder.log_by(&clock).await.expect("a new log");
    let id = publish(&log, "a", "x").await;
    fs::remove_file(folder.state()).expect("removed");
    until(|| folder.state().exists()).await;
    drop(log);
    clock.set(began);
    let log = folder.log_by(&clock).await.expect("the one after the crash");
    assert!(publish(&log, "a", "after").await > id);
}

#[tokio::test]
async fn a_file_that_is_removed_before_the_first_message_is_written_at_the_end() {
    let (folder, clock) = (Folder::new(), Clock::stopped());
    let id = ended(&folder, &clock).await;
    let log = folder.log_by(&clock).await.expect("the next log");
    fs::remove_file(folder.state()).expect("removed");
    until(|| folder.state().exists()).await;
    end(log).await;
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

/// Readiness was 200, and the metric 0.
#[tokio::test]
async fn a_lock_file_that_cannot_be_made_again_before_the_first_message_is_shown() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    ended(&folder, &clock).await;
    let file = fs::metadata(folder.state()).expect("a file").ino();
    let log = folder.log_on(disk.clone(), &clock).await.expect("the next log");
    disk.set(Mode::Fails);
    fs::remove_file(folder.0.join("state.lock")).expect("removed");
    until(|| is_failing(&log) && is_unfit(&log)).await;
    disk.set(Mode::Works);
    until(|| !is_failing(&log) && !is_unfit(&log)).await;
    log.end(Instant::now()).await.expect("left as it is");
    assert_eq!(fs::metadata(folder.state()).expect("a file").ino(), file, "it is not marked");
}
