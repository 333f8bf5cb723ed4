//! Redis is away: publishers and operators are told, and subscribers stay connected.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use rejoin::log::Start;
use serde_json::Value;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    across::{json, post},
    bare::{log, subscribe},
    deployment::{Deployment, is_ready, until_ready},
    support::redis::Redis,
};

/// Turns a hang into a failure, and is the bound of a bounded time.
const PATIENCE: Duration = Duration::from_secs(8);
/// One after the other, this many readers would wait for minutes.
const READERS: usize = 64;

/// A stream of NDJSON, with the id of its connection.
pub struct Lines {
    pub connection: String,
    chunks: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    rest: Vec<u8>,
}

impl Lines {
    pub async fn open(addr: SocketAddr, path: &str) -> Self {
        Self::of(crate::support::http_client().build().expect("a client").get(format!("http://{addr}{path}")))
            .await
    }

    /// The same, with a token.
    pub async fn open_as(addr: SocketAddr, path: &str, token: &str) -> Self {
        let client = crate::support::http_client().build().expect("a client");
        Self::of(client.get(format!("http://{addr}{path}")).bearer_auth(token)).await
    }

    async fn of(request: reqwest::RequestBuilder) -> Self {
        let request = request.header("accept", "application/x-ndjson");
        let chunks = request.send().await.expect("an answer").bytes_stream().boxed();
        let mut lines = Self { connection: String::new(), chunks, rest: Vec::new() };
        let open = lines.next().await;
        lines.connection = open["connection"].as_str().expect("a name").to_owned();
        lines
    }

    /// The next line that is not a cursor.
    ///
    /// # Panics
    /// If the connection ends, or if no line comes.
    pub async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let value: Value = serde_json::from_slice(&line).expect("JSON");
                if value["type"] != "cursor" {
                    return value;
                }
                continue;
            }
            let chunk = timeout(PATIENCE, self.chunks.next()).await.expect("something comes");
            self.rest.extend_from_slice(&chunk.expect("the connection lasts").expect("the connection lasts"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_publishing_is_unavailable_and_connections_stay() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let mut streams = Vec::new();
    for addr in deployment.addrs() {
        streams.push(Lines::open(addr, "/topics/a").await);
    }
    redis.kill();
    for addr in deployment.addrs() {
        let refused = timeout(PATIENCE, async {
            while is_ready(addr).await {}
            post(addr, "/topics/a", None, "lost").await
        });
        let refused = refused.await.expect("within a bounded time");
        assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
        assert_eq!(json(refused).await["code"], "unavailable");
    }
    redis.start_again();
    for addr in deployment.addrs() {
        until_ready(addr).await;
    }
    assert_eq!(post(deployment.addrs()[0], "/topics/a", None, "kept").await.status(), 201);
    // The old connections still work, and none of them gets a refused message.
    for stream in &mut streams {
        assert_eq!(stream.next().await["data"], "kept");
    }
    deployment.stop().await;
}

/// Many readers that ask while Redis is away wait together, and not one after the other.
#[tokio::test]
async fn readers_are_refused_together_while_redis_is_away() {
    let Some(redis) = Redis::start(&[]) else { return };
    let broker = log(&redis.url()).await;
    let _followed = subscribe(&broker, "followed", Start::Now).await;
    redis.stop();
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let broker = broker.clone();
        let topic = if number % 2 == 0 { "followed" } else { "new" };
        readers.spawn(async move {
            let patterns = vec![topic.parse().expect("a topic")];
            broker.subscribe(patterns, &Start::Now, "me").await.is_err()
        });
    }
    let turned_away = timeout(PATIENCE, readers.join_all()).await.expect("within a bounded time");
    assert!(turned_away.into_iter().all(|is_turned_away| is_turned_away));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_redis_may_have_received_has_an_unknown_outcome() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(1, &redis).await;
    let addr = deployment.addrs()[0];
    let mut stream = Lines::open(addr, "/topics/a").await;
    redis.stop();
    let refused = timeout(PATIENCE, post(addr, "/topics/a", Some("k"), "perhaps")).await;
    let refused = refused.expect("within a bounded time");
    assert_eq!(refused.status(), 503);
    assert_eq!(json(refused).await["code"], "unknown_outcome");
    redis.go_on();
    until_ready(addr).await;
    // A repeated publish with the same key leaves one message, whether or not the first one was stored.
    let again = post(addr, "/topics/a", Some("k"), "perhaps").await;
    assert!(again.status() == 200 || again.status() == 201, "{}", again.status());
    assert_eq!(post(addr, "/topics/a", None, "next").await.status(), 201);
    assert_eq!(stream.next().await["data"], "perhaps");
    assert_eq!(stream.next().await["data"], "next");
    deployment.stop().await;
}

/// Redis has no memory left. The answer differs from that of a Redis that is away, because reading still
/// works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_messages_and_nothing_else() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let addr = deployment.addrs()[0];
    assert_eq!(post(addr, "/topics/a", None, "kept").await.status(), 201);
    redis.say(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = post(addr, "/topics/a", None, "too much").await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
    assert_eq!(json(refused).await["code"], "full");
    let client = crate::support::http_client().build().expect("a client");
    let get = async |path: &str| {
        let answer = client.get(format!("http://{addr}{path}")).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        json(answer).await
    };
    assert_eq!(get("/health/ready").await, serde_json::json!({"status": "ready", "full": true}));
    assert_eq!(get("/topics/a?after=0").await["messages"][0]["data"], "kept");
    assert_eq!(get("/events?topic=*&after=0").await["messages"][0]["data"], "kept");
    redis.say(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(post(addr, "/topics/a", None, "next").await.status(), 201);
    deployment.stop().await;
}

/// Each probe gives up after half a second. A later one gets the answer that a patient probe would get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impatient_probe_hears_that_redis_is_away() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(1, &redis).await;
    let url = format!("http://{}/health/ready", deployment.addrs()[0]);
    redis.stop();
    let client = crate::support::http_client().timeout(Duration::from_millis(500)).build().expect("a client");
    let refused = timeout(PATIENCE, async {
        loop {
            match client.get(&url).send().await {
                Ok(answer) if answer.status() == 503 => break,
                // The server counts as ready while its last proof is valid.
                Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(_) => {}
            }
        }
    });
    refused.await.expect("within a bounded time");
    redis.go_on();
    deployment.stop().await;
}
