//! A replica takes no more memory for the entries of the feed than its limit.

use std::{net::TcpListener, process::Command, process::Stdio, sync::Arc, time::Duration};

use rejoin::{
    broker::Broker,
    log::{Append, RedisLog, Retention, Rules},
    message::{Draft, Payload},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    deployment::{rounds, until_ready},
    support::redis::Redis,
};

/// Small enough for the feed.
const PAYLOAD_BYTES: usize = 16 << 10;
/// A quarter of a gigabyte for each round.
const MESSAGES: usize = 16384;
const PUBLISHERS: usize = 8;
const MAX_RESIDENT_MIB: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_a_reader_that_has_stopped_take_no_memory() {
    let Some(redis) = Redis::start(&[]) else { return };
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let mut replica = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", &addr.to_string(), "--log", &redis.url(), "--write-timeout", "1h"])
        .env("REJOIN_LOG_LEVEL", "error")
        .stdout(Stdio::null())
        .spawn()
        .expect("the server starts");
    until_ready(addr).await;
    let mut stopped = TcpStream::connect(addr).await.expect("it listens");
    let request = format!("GET /topics/a HTTP/1.1\r\nhost: {addr}\r\naccept: text/event-stream\r\n\r\n");
    stopped.write_all(request.as_bytes()).await.expect("it is taken");
    // The client reads the head and nothing more.
    let mut head = [0; 15];
    stopped.read_exact(&mut head).await.expect("a head");
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    let retention = Retention {
        messages: 1000,
        age: Duration::from_secs(3600),
        bytes: 16 << 20,
        total_bytes: 256 << 20,
        topics: 1_000_000,
        rules: Rules::NONE,
    };
    let broker =
        Arc::new(Broker::new(RedisLog::start(redis.url().parse().expect("an address"), &retention, 0)));
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        let broker = broker.clone();
        publishers.spawn(async move {
            for _ in 0..MESSAGES * rounds() / PUBLISHERS {
                let payload = Payload::text("x".repeat(PAYLOAD_BYTES));
                let draft = Draft {
                    topic: "a".parse().expect("a topic"),
                    event: None,
                    payload,
                    exclude: None,
                    by: None,
                };
                let append = Append { draft, idempotency_key: None, if_match: None };
                broker.publish(append).await.expect("stored");
            }
        });
    }
    let mut most = 0;
    while !publishers.is_empty() {
        tokio::select! {
            Some(done) = publishers.join_next() => done.expect("no panic"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        most = most.max(resident_mib(replica.id()));
    }
    until_ready(addr).await;
    most = most.max(resident_mib(replica.id()));
    let published = (MESSAGES * rounds() * PAYLOAD_BYTES) >> 20;
    let sent = redis.stat("total_net_output_bytes") >> 20;
    println!("{published} MiB published, {sent} MiB sent by Redis, at most {most} MiB resident");
    assert!(sent >= published, "not all of it reached the replica");
    replica.kill().and_then(|()| replica.wait()).expect("it ends");
    assert!(most > 0 && most < MAX_RESIDENT_MIB, "{most} MiB resident");
}

fn resident_mib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or_default() >> 10
}
