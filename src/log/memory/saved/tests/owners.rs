//! Which process owns a state file, and which file it last wrote.

use super::{
    faults::{Faulty, Mode, Step},
    marks::{ended, is_failing},
    *,
};

#[tokio::test]
async fn two_processes_do_not_share_a_file() {
    let folder = Folder::new();
    let first = folder.log().await.expect("a new log");
    let id = publish(&first, "a", "x").await;
    let mut second = std::pin::pin!(folder.log());
    assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the first");
    first.end(Instant::now()).await.expect("written");
    drop(first);
    let second = second.await.expect("a log");
    assert_eq!(second.watermark(), id);
}

/// A second server used the file after its lock file was removed, and two acknowledged messages were lost.
#[tokio::test]
async fn a_server_stops_when_another_one_has_taken_its_file() {
    let folder = Folder::new();
    let clock = Clock::stopped();
    let first = folder.log_by(&clock).await.expect("a new log");
    let mut newest = publish(&first, "a", "first").await;
    fs::remove_file(folder.0.join("state.lock")).expect("removed");
    let second = folder.log_by(&clock).await.expect("a second log");
    let began = second.watermark();
    // The first may use up what it has reserved. The second begins behind that.
    for number in 0..100 {
        clock.advance(RESERVE / 20);
        match try_to_publish(&first, "a", &number.to_string()).await {
            Ok(id) => newest = id,
            Err(_) => break,
        }
    }
    assert!(try_to_publish(&first, "a", "refused").await.is_err());
    assert!(newest < began, "{newest} {began}");
    assert!(first.check().await.is_err(), "it is not ready");
    assert!(first.delete(&"a".parse().expect("a topic")).await.is_err());
    let ended = first.end(Instant::now()).await.expect_err("not its file");
    assert_eq!(ended.kind(), io::ErrorKind::ResourceBusy);
    let id = publish(&second, "a", "second").await;
    assert_eq!(read(&second, newest).await, (1, vec![id]));
    second.end(Instant::now()).await.expect("written");
    drop(second);
    drop(folder.place().await);
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, newest).await, (1, vec![id]));
}

#[tokio::test]
async fn a_lock_file_that_was_removed_is_made_again() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let log = folder.log().await.expect("a new log");
    let id = publish(&log, "a", "x").await;
    for is_folder_too in [false, true] {
        if is_folder_too {
            fs::rename(&folder.0, elsewhere.0.join("old")).expect("moved away");
            fs::create_dir(&folder.0).expect("a folder");
        } else {
            fs::remove_file(folder.0.join("state.lock")).expect("removed");
        }
        until(|| folder.0.join("state.lock").exists()).await;
        until(|| matches!(fs::read(folder.0.join("state.lock")), Ok(number) if number.len() == 17)).await;
        let second = Place::lock(&folder.state(), Arc::new(System)).expect("a lock file");
        assert!(second.is_none(), "it waits for the first");
    }
    end(log).await;
    let log = folder.log().await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

#[tokio::test]
async fn two_names_of_one_file_are_one_file() {
    let folder = Folder::new();
    let elsewhere = Folder::new();
    // The file is not there yet.
    std::os::unix::fs::symlink(folder.state(), elsewhere.state()).expect("a link");
    let log = elsewhere.log().await.expect("a new log");
    let id = publish(&log, "a", "x").await;
    let mut second = Box::pin(folder.log());
    for _ in 0..3 {
        assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the first");
        sleep(ASK_EVERY).await;
    }
    end(log).await;
    let log = second.await.expect("a log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
    assert!(fs::symlink_metadata(elsewhere.state()).expect("it is there").is_symlink());
}

/// An older file was put back. Readers that had newer messages lost them, and were not told.
#[tokio::test]
async fn an_older_file_that_is_put_back_is_set_aside_and_told_as_a_gap() {
    let folder = Folder::new();
    let log = folder.log().await.expect("a new log");
    let first = publish(&log, "a", "first").await;
    end(log).await;
    let log = folder.log().await.expect("the next log");
    let copy = fs::read(folder.state()).expect("a file");
    let second = publish(&log, "a", "second").await;
    end(log).await;
    drop(folder.place().await);
    fs::write(folder.state(), &copy).expect("written");

    let log = folder.log().await.expect("a log that begins anew");
    let next = publish(&log, "a", "next").await;
    assert!(next > second);
    for cursor in [first.before(), first, second] {
        assert_eq!(read(&log, cursor).await, (1, vec![next]));
    }
    let aside: Vec<_> = folder.names().into_iter().filter(|name| name.contains(".older-")).collect();
    assert_eq!(aside.len(), 1);
    assert!(fs::read(folder.0.join(&aside[0])).expect("a file") == copy);
    end(log).await;

    // The file alone was brought to another machine. It cannot be known if it is the newest one.
    drop(folder.place().await);
    fs::remove_file(folder.0.join("state.lock")).expect("removed");
    let log = folder.log().await.expect("a log that begins anew");
    assert_eq!(read(&log, next).await, (1, vec![]));
}

/// Readers of the first server missed all messages of the second, and the first stayed ready.
#[tokio::test]
async fn a_server_that_has_stored_nothing_sees_that_its_file_is_taken() {
    let folder = Folder::new();
    ended(&folder, &Clock::System).await;
    let first = folder.log().await.expect("the next log");
    // If the first is faster, it makes its lock file again.
    let second = loop {
        fs::remove_file(folder.0.join("state.lock")).expect("removed");
        if let Some(place) = Place::lock(&folder.state(), Arc::new(System)).expect("a lock file") {
            break place;
        }
    };
    let whole = fs::read(folder.state()).expect("a file");
    until(|| first.saved.as_ref().is_some_and(|saved| saved.check().is_err())).await;
    assert!(is_failing(&first));
    assert_eq!(try_to_publish(&first, "a", "x").await, Err(LogError::Unavailable.into()));
    first.end(Instant::now()).await.expect_err("a publish asked for the file");
    drop(second);
    assert!(fs::read(folder.state()).expect("a file") == whole);
}

/// The lock file was made again and could not be written. From then on the server took it for the one of
/// another server.
#[tokio::test]
async fn a_lock_file_that_is_made_again_on_a_failing_disk_belongs_to_this_server() {
    let (folder, disk, clock) = (Folder::new(), Faulty::new(), Clock::stopped());
    let log = folder.log_on(disk.clone(), &clock).await.expect("a new log");
    let id = publish(&log, "a", "x").await;
    let lock = folder.0.join("state.lock");
    for step in [Step::Sync, Step::Lock] {
        disk.set_after(0, Some(step), Mode::Fails);
        fs::remove_file(&lock).expect("removed");
        until(|| is_failing(&log)).await;
        // It is looked at again.
        disk.fails_again(2).await;
        assert_eq!(log.check().await, Ok(()), "{step:?}");
        disk.set(Mode::Works);
        until(|| !is_failing(&log)).await;
        assert_eq!(fs::read(&lock).expect("a lock file").len(), 17);
        let second = Place::lock(&folder.state(), Arc::new(System)).expect("a lock file");
        assert!(second.is_none(), "it waits for the first");
    }
    end(log).await;
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}

/// A server that lost its place was in the middle of a long write. Its bytes then came into the file of the
/// other server.
#[tokio::test]
async fn a_new_file_shares_nothing_with_one_that_another_server_still_writes() {
    use std::io::Write;

    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let id = ended(&folder, &Clock::System).await;
    let new = folder.0.join("state.new");
    let mut first = fs::File::create(&new).expect("made");
    let log = folder.log().await.expect("the next log");
    publish(&log, "b", "x").await;
    end(log).await;
    first.write_all(b"late").expect("written");
    let log = folder.log().await.expect("the next log");
    assert_eq!(read(&log, id.before()).await.0, 0);

    // A link leads to the file of somebody else.
    fs::write(elsewhere.state(), "precious").expect("written");
    std::os::unix::fs::symlink(elsewhere.state(), &new).expect("a link");
    log.end(Instant::now()).await.expect("nothing to write");
    drop(log);
    let log = folder.log().await.expect("the next log");
    publish(&log, "c", "x").await;
    assert_eq!(fs::read_to_string(elsewhere.state()).expect("a file"), "precious");
}

/// In a folder that others may write to, somebody could have put a link there.
#[tokio::test]
async fn a_link_in_the_place_of_a_lock_file_or_of_a_new_file_is_not_followed() {
    let folder = Folder::new();
    let victim = folder.0.join("victim");
    fs::write(&victim, "precious").expect("written");
    std::os::unix::fs::symlink(&victim, folder.0.join("state.new")).expect("a link");
    let log = folder.log().await.expect("a new log");
    publish(&log, "a", "x").await;
    log.end(Instant::now()).await.expect("written");
    drop(log);
    fs::remove_file(folder.0.join("state.lock")).expect("removed");
    std::os::unix::fs::symlink(&victim, folder.0.join("state.lock")).expect("a link");
    assert!(Place::lock(&folder.state(), Arc::new(System)).is_err());
    assert_eq!(fs::read_to_string(&victim).expect("there"), "precious");
}

/// The server looks once a second, and ended with exit code 0 and no file in between.
#[tokio::test]
async fn a_file_that_was_removed_just_before_the_end_is_written_again() {
    let (folder, clock) = (Folder::new(), Clock::stopped());
    let id = ended(&folder, &clock).await;
    let log = folder.log_by(&clock).await.expect("the next log");
    fs::remove_file(folder.state()).expect("removed");
    log.end(Instant::now()).await.expect("written");
    drop(log);
    let log = folder.log_by(&clock).await.expect("the next log");
    assert_eq!(read(&log, id.before()).await, (0, vec![id]));
}
