//! The end of a subject while Redis does not know every replica that lives.

use std::{net::SocketAddr, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    deployment::until_ready,
    outage::Lines,
    replicas::Replica,
    signer::{SECRET, Signer, seconds_from_now},
    support::{http_client, redis::Redis},
};

const PATIENCE: Duration = Duration::from_secs(30);
const SETTINGS: &[&str] = &["--jwt-secret", SECRET];

fn token(sub: &str, grants: &Value) -> String {
    Signer::new("HS256").sign(&json!({"sub": sub, "exp": seconds_from_now(600), "rejoin": grants}))
}

async fn ask(addr: SocketAddr, method: Method, path: &str) -> (u16, Value) {
    let client = http_client().build().expect("a client");
    let request = client.request(method, format!("http://{addr}{path}"));
    let request = request.bearer_auth(token("backend", &json!({"admin": true}))).timeout(PATIENCE);
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default())
}

/// The replicas that Redis knows.
fn known(redis: &Redis) -> usize {
    let fields = redis.say(&["HKEYS", "{rejoin}:replicas"]);
    fields.lines().filter(|field| field.len() == 16 && !field.starts_with('*')).count()
}

async fn until_known(redis: &Redis, count: usize) {
    let known = async {
        while known(redis) != count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, known).await.expect("the replicas join");
}

/// The answer was `204`, and the connection of the subject at the other replica lived on. A page of connections lacked it,
/// and did not say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_confirmed_while_a_replica_may_live_that_redis_has_lost() {
    let Some(redis) = Redis::start(&[]) else { return };
    let asked = Replica::with(redis.url(), SETTINGS).await;
    let lost = Replica::with(redis.url(), SETTINGS).await;
    let mut reader =
        Lines::open_as(lost.addr, "/events?topic=t", &token("u1", &json!({"subscribe": ["t"]}))).await;
    until_known(&redis, 2).await;
    lost.stop().await;
    redis.say(&["FLUSHALL"]);
    until_known(&redis, 1).await;
    until_ready(asked.addr).await;
    let (ended, connections, topics) = tokio::join!(
        ask(asked.addr, Method::DELETE, "/subjects/u1"),
        ask(asked.addr, Method::GET, "/connections"),
        ask(asked.addr, Method::GET, "/topics"),
    );
    lost.signal(rustix::process::Signal::CONT);
    assert_eq!((ended.0, &ended.1["code"]), (503, &json!("unknown_outcome")), "{ended:?}");
    for (status, page) in [connections, topics] {
        assert_eq!((status, &page["missing"]), (200, &json!(["unknown"])), "{page}");
    }
    loop {
        let frame = reader.next().await;
        if frame["type"] == "closing" {
            assert_eq!(frame["code"], "disconnected", "it is asked once it has joined again");
            break;
        }
    }
}
