//! Lists of subjects over several replicas, while readers reconnect and Redis is killed.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, request, text, topic_path, within},
    people::{As, BACKEND, bearer, tables, token, usual},
    reader::Reader,
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
        redis::Redis,
    },
};

const LIVE: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Ndjson];

async fn replicas(redis: &Redis, count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..count {
        let log = redis.url().parse().expect("a log");
        servers.push(Server::with(|config| (config.tables, config.log) = (tables(&usual()), log)).await);
    }
    servers
}

/// Repeats a request of the backend until it is done. A refusal in between says that Redis is away.
async fn until_done(server: &Server, method: Method, path: &str, key: Option<&str>) -> Value {
    within(path, async {
        loop {
            let mut asked = request(server, method.clone(), path);
            if let Some(key) = key {
                asked = asked.header("idempotency-key", key).body("x");
            }
            let answer = asked.answer_to(BACKEND).await;
            match answer.status {
                200 | 201 => return answer.json(),
                204 => return Value::Null,
                status => assert_eq!(status, 503, "{answer:?}"),
            }
        }
    })
    .await
}

async fn open(server: &Server, transport: Transport, query: &str) -> Reader {
    // A server may be away from Redis for a moment.
    let header = bearer(&token("u1", json!({"subscribe": []})));
    within("a server that reads", async {
        while get(server, "/subjects/u1/topics").answer_to(BACKEND).await.status != 200 {}
    })
    .await;
    Reader::open_with(server, transport, query, &[("authorization", &header)]).await
}

/// A change at one replica is known at the other, in the order of the messages, and so is an end.
#[tokio::test]
async fn a_list_counts_at_every_replica() {
    let Some(redis) = Redis::start(&[]) else { return };
    let servers = replicas(&redis, 2).await;
    for transport in LIVE {
        let mut reader = open(&servers[1], transport, "mine").await;
        let topic = format!("t.{transport}");
        let path = format!("/subjects/u1{}", topic_path(&topic));
        until_done(&servers[0], Method::PUT, &path, None).await;
        let published = until_done(&servers[0], Method::POST, &topic_path(&topic), Some(&topic)).await;
        let told = reader.next().await;
        assert_eq!((&told["type"], &told["topic"]), (&json!("subscribed"), &json!(topic)), "{told}");
        assert_eq!(reader.ids(1).await, [text(&published["id"])]);
        until_done(&servers[0], Method::DELETE, &path, None).await;
        assert_eq!(reader.next().await["type"], "unsubscribed");
        until_done(&servers[0], Method::DELETE, "/subjects/u1", None).await;
        assert_eq!(reader.next().await["code"], "disconnected");
    }
    let asked = async |sub: &str| {
        let refused = bearer(&token(sub, json!({"subscribe": ["a"]})));
        get(&servers[1], "/topics/a").header("authorization", &refused).answer().await
    };
    until_done(&servers[0], Method::DELETE, "/subjects/u2?refuse=10m", None).await;
    asked("u2").await.problem(403, "forbidden");
    until_done(&servers[0], Method::DELETE, "/subjects/u3?refuse=1s", None).await;
    within("the end of the refusal", async { while asked("u3").await.status == 403 {} }).await;
}

/// Redis keeps what it has acknowledged. Messages of a topic count from the `204` of its `PUT` on.
#[tokio::test]
async fn every_message_after_the_204_of_a_list_is_given_while_redis_is_killed() {
    let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]) else { return };
    let seed =
        std::env::var("REDIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("REDIS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let servers = replicas(&redis, 2).await;
    let (mut expected, mut given, mut gaps) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    let mut reader = open(&servers[0], Transport::Sse, "mine").await;
    for round in 0..30 {
        if round == 10 {
            redis.kill();
            redis.start_again();
        }
        let topic = format!("t{round}");
        let listed = if random.random_bool(0.3) { format!("t{round}.*") } else { topic.clone() };
        let topic = if listed == topic { topic } else { format!("{topic}.a") };
        let mut any = || &servers[usize::from(random.random_bool(0.5))];
        until_done(any(), Method::PUT, &format!("/subjects/u1{}", topic_path(&listed)), None).await;
        for number in 0..3 {
            let key = format!("{round}.{number}");
            let published = until_done(any(), Method::POST, &topic_path(&topic), Some(&key)).await;
            expected.insert(text(&published["id"]));
        }
        if random.random_bool(0.4) {
            let transport = LIVE[random.random_range(0..LIVE.len())];
            let server = &servers[usize::from(random.random_bool(0.5))];
            let query = format!("mine&after={}", reader.cursor());
            reader = open(server, transport, &query).await;
        }
        for _ in 0..random.random_range(0..6) {
            take(&mut reader, &mut given, &mut gaps, expected.len()).await;
        }
    }
    while given.len() < expected.len() && !gaps.contains("$mine") {
        take(&mut reader, &mut given, &mut gaps, expected.len()).await;
    }
    assert!(given.is_sorted(), "in the order of ids: {given:?}");
    let once: BTreeSet<_> = given.iter().cloned().collect();
    assert_eq!(once.len(), given.len(), "each once");
    assert!(gaps.is_empty(), "nothing is lost, so there is no gap: {gaps:?}");
    assert_eq!(once, expected);
}

/// Takes the next frame, if one is to come.
async fn take(reader: &mut Reader, given: &mut Vec<String>, gaps: &mut BTreeSet<String>, published: usize) {
    if given.len() >= published {
        return;
    }
    let frame = reader.next().await;
    match frame["type"].as_str() {
        Some("message") => {
            assert!(frame.get("replay").is_none(), "{frame}");
            given.push(text(&frame["id"]));
        }
        Some("gap") => _ = gaps.insert(text(&frame["topic"])),
        Some("subscribed") => {}
        _ => panic!("{frame}"),
    }
}

/// This Redis keeps nothing: the lists are gone with it, and readers are told.
#[tokio::test]
async fn a_redis_that_comes_back_empty_is_one_gap_about_the_list() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let servers = replicas(&redis, 1).await;
    until_done(&servers[0], Method::PUT, "/subjects/u1/topics/a", None).await;
    let mut reader = open(&servers[0], Transport::Ndjson, "mine").await;
    redis.kill();
    redis.start_again();
    until_done(&servers[0], Method::PUT, "/subjects/u1/topics/b", None).await;
    let published = until_done(&servers[0], Method::POST, "/topics/b", Some("b")).await;
    let (mut told, mut is_given) = (Vec::new(), false);
    while !is_given {
        let frame = reader.next().await;
        match frame["type"].as_str() {
            Some("message") => is_given = frame["id"] == published["id"],
            _ => told.push(format!("{} {}", text(&frame["type"]), text(&frame["topic"]))),
        }
    }
    told.sort();
    assert_eq!(told, ["gap $mine", "subscribed b", "unsubscribed a"]);
    let answer = post(&servers[0], "/topics/a").body("x").answer_to(BACKEND).await;
    assert_eq!(answer.status, 201);
}

/// A replica in a process of its own.
async fn program(folder: &Folder, redis: &Redis) -> Program {
    let file = folder.path("rejoin.toml");
    std::fs::write(&file, usual()).expect("a file");
    Program::start(&["--config", &file, "--log", &redis.url()]).await
}

/// The holder of a connection dies in the middle. A client that comes again at another replica, with its cursor, misses
/// no change and no message.
#[tokio::test]
async fn changes_and_messages_around_the_end_of_a_killed_replica_are_given_by_another_one() {
    let Some(redis) = Redis::start(&[]) else { return };
    let folder = Folder::new();
    let other = program(&folder, &redis).await;
    for transport in LIVE {
        let holder = program(&folder, &redis).await;
        let (mut expected, mut given, mut gaps) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        let mut reader = open(&holder.server, transport, "mine").await;
        let mut holder = Some(holder);
        for round in 0..6 {
            let topic = format!("{transport}.{round}");
            let path = format!("/subjects/u1{}", topic_path(&topic));
            until_done(&other.server, Method::PUT, &path, None).await;
            let key = format!("{topic}.listed");
            let published = until_done(&other.server, Method::POST, &topic_path(&topic), Some(&key)).await;
            expected.insert(text(&published["id"]));
            if round == 2
                && let Some(holder) = holder.take()
            {
                // Some of it may be on its way.
                take(&mut reader, &mut given, &mut gaps, expected.len()).await;
                let cursor = reader.cursor().to_owned();
                holder.kill().await;
                until_done(&other.server, Method::DELETE, &path, None).await;
                let key = format!("{topic}.removed");
                until_done(&other.server, Method::POST, &topic_path(&topic), Some(&key)).await;
                let last = expected.pop_last().expect("the one of this round");
                given.iter().for_each(|id| assert_ne!(*id, last, "it was removed before it was read"));
                reader = open(&other.server, transport, &format!("mine&after={cursor}")).await;
            }
        }
        while given.len() < expected.len() {
            take(&mut reader, &mut given, &mut gaps, expected.len()).await;
        }
        assert!(gaps.is_empty(), "{transport}: {gaps:?}");
        assert_eq!(given, expected.into_iter().collect::<Vec<_>>(), "{transport}");
    }
}

/// A replica that hangs does it once it runs again.
#[tokio::test]
async fn the_end_of_a_subject_is_unknown_while_a_replica_hangs_and_is_done_afterwards() {
    let Some(redis) = Redis::start(&[]) else { return };
    let folder = Folder::new();
    let (hangs, other) = (program(&folder, &redis).await, program(&folder, &redis).await);
    let mut readers = Vec::new();
    for transport in LIVE {
        readers.push(open(&hangs.server, transport, "mine").await);
    }
    within("replicas that know each other", async {
        loop {
            let page = get(&other.server, "/connections?sub=u1").answer_to(BACKEND).await.json();
            if page["connections"].as_array().is_some_and(|shown| shown.len() == readers.len()) {
                break;
            }
        }
    })
    .await;
    let end = || request(&other.server, Method::DELETE, "/subjects/u1?refuse=10m").answer_to(BACKEND);
    rustix::process::kill_process(hangs.pid(), rustix::process::Signal::STOP).expect("it runs");
    let unknown = end().await;
    rustix::process::kill_process(hangs.pid(), rustix::process::Signal::CONT).expect("it runs");
    unknown.problem(503, "unknown_outcome");
    for reader in &mut readers {
        let closing = reader.next().await;
        assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("disconnected")));
    }
    until_done(&other.server, Method::DELETE, "/subjects/u1?refuse=1s", None).await;
    let refused = bearer(&token("u1", json!({"subscribe": ["a"]})));
    for server in [&hangs.server, &other.server] {
        let answer = get(server, "/topics/a").header("authorization", &refused).answer().await;
        answer.problem(403, "forbidden");
    }
}
