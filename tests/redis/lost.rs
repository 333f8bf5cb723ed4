//! The store comes back without some messages, or something is deleted from it.

use std::{fs, path::PathBuf};

use crate::{
    deployment::{Deployment, seed},
    scene::{Scene, TOPIC},
    support::redis::Redis,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_restarted_empty_is_a_gap_for_every_older_cursor() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    seed();
    let scene = Scene::set(Deployment::of(2, &redis).await, 5).await;
    redis.kill();
    redis.start_again();
    scene.all_older_cursors_are_told(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_restarted_from_an_older_snapshot_is_a_gap_for_every_older_cursor() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    seed();
    let mut scene = Scene::set(Deployment::of(2, &redis).await, 3).await;
    redis.say(&["SAVE"]);
    scene.publish(2).await;
    scene.read_to_the_end().await;
    redis.kill();
    redis.start_again();
    scene.all_older_cursors_are_told(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_has_lost_its_last_second_is_a_gap_for_every_older_cursor() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "everysec"]) else { return };
    seed();
    let mut scene = Scene::set(Deployment::of(2, &redis).await, 3).await;
    let file = appended(&redis);
    let kept = fs::metadata(&file).expect("a file").len();
    scene.publish(2).await;
    scene.read_to_the_end().await;
    redis.kill();
    // Cut off the bytes that the system had not written when the power failed.
    fs::OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(kept)).expect("it is cut");
    redis.start_again();
    scene.all_older_cursors_are_told(3).await;
}

/// The file that commands are appended to.
fn appended(redis: &Redis) -> PathBuf {
    let files = fs::read_dir(redis.folder().join("appendonlydir")).expect("a folder");
    let mut paths = files.map(|file| file.expect("an entry").path());
    paths.find(|path| path.to_string_lossy().ends_with(".incr.aof")).expect("a file that grows")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_is_a_gap_for_every_older_cursor() {
    let Some(redis) = Redis::start(&[]) else { return };
    seed();
    let scene = Scene::set(Deployment::of(2, &redis).await, 5).await;
    redis.say(&["FLUSHALL"]);
    scene.all_older_cursors_are_told(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_a_gap_only_for_readers_behind() {
    let Some(redis) = Redis::start(&[]) else { return };
    seed();
    let scene = Scene::set(Deployment::of(2, &redis).await, 5).await;
    let gone = redis.say(&["DEL", &format!("{{rejoin}}:topic:{TOPIC}")]);
    assert_eq!(gone, ":1\r\n", "there was a stream");
    scene.only_readers_behind_are_told().await;
}
