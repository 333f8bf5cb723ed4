//! Ready means storable: a server is not ready if a publish would be refused, and it says why.

use std::{collections::BTreeSet, net::SocketAddr};

use rejoin::{
    Config,
    broker::Broker,
    log::{LogError, RedisLog},
};
use serde_json::Value;

use crate::{
    bare::{RETENTION, log},
    deployment::until_ready,
    support::{Server, http_client, redis::Redis},
};

const CHECK: &str = include_str!("../../src/log/redis/scripts/check.lua");
/// The rights that the documents name.
const ALLOWED: &str = "+@read +@write +@scripting +@connection +info +time +config|get";

async fn start(redis: &Redis) -> Server {
    Server::with(|config: &mut Config| {
        config.log = format!("redis://me:x@127.0.0.1:{}", redis.port).parse().expect("an address");
    })
    .await
}

async fn answer(addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let client = http_client().build().expect("a client");
    let method = method.parse().expect("a method");
    let answer =
        client.request(method, format!("http://{addr}{path}")).body("x").send().await.expect("an answer");
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    (status, body["detail"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a new proof says that the server is not ready, and returns the reason.
async fn until_not_ready(addr: SocketAddr) -> String {
    for _ in 0..500 {
        if let (503, detail) = answer(addr, "GET", "/health/ready").await {
            return detail;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{addr} stays ready");
}

/// Gives the user of the server all rights that it needs, except these.
fn allow(redis: &Redis, except: &[&str]) {
    let words = ["ACL", "SETUSER", "me", "reset", "on", ">x", "~{rejoin}:*"];
    let words: Vec<_> = words.into_iter().chain(ALLOWED.split(' ')).chain(except.iter().copied()).collect();
    redis.say(&words);
}

#[tokio::test]
async fn a_command_that_the_user_may_not_run_is_named_before_a_publish_needs_it() {
    let Some(redis) = Redis::start(&[]) else { return };
    allow(&redis, &[]);
    let url = format!("redis://me:x@127.0.0.1:{}", redis.port);
    let broker = log(&url).await;
    let confirmed = Broker::new(RedisLog::start(url.parse().expect("an address"), &RETENTION, 1));
    let quoted = CHECK.split('{').filter_map(|rest| rest.strip_prefix('\'')?.split('\'').next());
    let commands: BTreeSet<_> =
        quoted.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase())).collect();
    assert!(commands.len() > 30, "{commands:?}");
    for command in commands {
        allow(&redis, &[&format!("-{command}")]);
        // Only a server that waits for copies needs this command.
        let broker = if command == "WAIT" { &confirmed } else { &broker };
        let unfit = broker.check().await.expect_err(command);
        let why = unfit.why.unwrap_or_default();
        assert!(why.contains(command) && unfit.error == LogError::Unavailable, "{command}: {why}");
    }
    // Without this one no script runs, so Redis itself names it.
    allow(&redis, &["-evalsha"]);
    let why = broker.check().await.expect_err("refused").why.unwrap_or_default();
    assert!(why.contains("EVALSHA") && !why.contains("me "), "{why}");
    allow(&redis, &["-wait"]);
    broker.check().await.expect("no copies are waited for");
    allow(&redis, &[]);
    broker.check().await.expect("the documented rights are enough");
}

#[tokio::test]
async fn a_server_whose_user_may_not_store_is_not_ready() {
    let Some(redis) = Redis::start(&[]) else { return };
    allow(&redis, &["-zadd"]);
    let server = start(&redis).await;
    let detail = until_not_ready(server.addr).await;
    assert!(detail.contains("ZADD {rejoin}:") && !detail.contains(" me "), "{detail}");
    allow(&redis, &[]);
    until_ready(server.addr).await;
    assert_eq!(answer(server.addr, "POST", "/topics/a").await.0, 201);
    server.stop().await;
}

#[tokio::test]
async fn a_key_of_a_wrong_type_makes_the_server_unready_and_is_named() {
    let Some(redis) = Redis::start(&[]) else { return };
    allow(&redis, &[]);
    let server = start(&redis).await;
    for key in ["index", "names", "order", "store", "feed"] {
        until_ready(server.addr).await;
        let key = format!("{{rejoin}}:{key}");
        redis.say(&["DEL", &key]);
        redis.say(&["SET", &key, "mine"]);
        let detail = until_not_ready(server.addr).await;
        assert!(detail.contains(&key) && detail.contains("string"), "{key}: {detail}");
        let (status, _) = answer(server.addr, "POST", "/topics/a").await;
        assert_eq!(status, 503, "{key}: nothing was tested");
        redis.say(&["DEL", &key]);
    }
    until_ready(server.addr).await;
    assert_eq!(answer(server.addr, "POST", "/topics/a").await.0, 201);
    server.stop().await;
}
