//! The layout of the keys has a version: a store of the first version is taken over, and a store of a later
//! version is left alone.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

use rejoin::log::Start;

use crate::{
    bare::{log, publish, read_until, subscribe},
    support::redis::Redis,
};

const STORE: &str = "{rejoin}:store";
/// The key of the state in the first format.
const STATE: &str = "{rejoin}:state";

/// Turns a store into one that the first release would have left.
fn make_first(redis: &Redis) {
    let script = "local all = {cmsgpack.unpack(redis.call('HGET', KEYS[1], '*'))} table.remove(all, 1) table.remove(all) \
        redis.call('DEL', KEYS[2], '{rejoin}:feed') redis.call('RENAME', KEYS[1], KEYS[2]) \
        redis.call('HSET', KEYS[2], '*', cmsgpack.pack(unpack(all))) redis.call('HDEL', KEYS[2], '*process') \
        redis.call('EXPIRE', '{rejoin}:topic:a', 60)";
    redis.say(&["EVAL", script, "2", STORE, STATE]);
}

#[tokio::test]
async fn a_store_of_the_first_format_is_taken_over_without_a_gap() {
    let Some(redis) = Redis::start(&[]) else { return };
    let before = log(&redis.url()).await;
    let (first, second) = (publish(&before, "a").await, publish(&before, "a").await);
    drop(before);
    make_first(&redis);
    let broker = log(&redis.url()).await;
    let mut readers = [("a", first), ("*", first)].map(|(pattern, cursor)| (pattern, Start::After(cursor)));
    let last = publish(&broker, "a").await;
    for (pattern, start) in &mut readers {
        let mut reader = subscribe(&broker, pattern, start.clone()).await;
        assert_eq!(read_until(&mut reader, last).await, [second, last].map(Some), "{pattern}");
    }
    assert_eq!(redis.say(&["TTL", "{rejoin}:topic:a"]), ":-1\r\n", "retention alone removes messages");
    // Every script of the first release begins with this command.
    let old = redis.answer(&["HMGET", STATE, "*", "a"]);
    assert!(old.starts_with("-WRONGTYPE"), "{old}");
}

#[tokio::test]
async fn a_server_refuses_to_start_over_a_format_that_it_does_not_know() {
    let Some(redis) = Redis::start(&[]) else { return };
    publish(&log(&redis.url()).await, "a").await;
    let script = "local all = {cmsgpack.unpack(redis.call('HGET', KEYS[1], '*'))} all[1] = 3 \
        return redis.call('HSET', KEYS[1], '*', cmsgpack.pack(unpack(all)))";
    redis.say(&["EVAL", script, "1", STORE]);
    let before = redis.say(&["XLEN", "{rejoin}:order"]);
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let server = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", &addr.to_string(), "--log", &redis.url()])
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&server.stderr);
    assert!(!server.status.success() && said.contains("a format that this version does not know"), "{said}");
    assert!(said.contains("the store has format 3, and this version knows format 2"), "{said}");
    assert_eq!(redis.say(&["XLEN", "{rejoin}:order"]), before, "nothing was written");
}
