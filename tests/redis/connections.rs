//! Requests about connections that another replica holds, and replicas that hang, end or drain meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rejoin::log::Answering;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    across::post,
    bare::log,
    deployment::{Deployment, until_ready},
    outage::Lines,
    replicas::Replica,
    signer::{SECRET, Signer, seconds_from_now},
    support::{http_client, redis::Redis},
};

/// How soon a request is repeated until it has the awaited answer, and how long that may take at most.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(40);

async fn ask(addr: SocketAddr, method: Method, path: &str) -> (u16, Value) {
    let client = crate::support::http_client().build().expect("a client");
    let request = client.request(method, format!("http://{addr}{path}"));
    let answer = timeout(PATIENCE, request.send()).await.expect("it is answered").expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.bytes().await.expect("a body");
    (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") })
}

async fn put(addr: SocketAddr, connection: &str, topic: &str) -> (u16, Value) {
    ask(addr, Method::PUT, &format!("/connections/{connection}/topics/{topic}")).await
}

/// Adds a topic. It waits until the replicas know each other.
async fn add(addr: SocketAddr, connection: &str, topic: &str) {
    let (status, problem) = put(addr, connection, topic).await;
    assert_eq!(status, 204, "{problem}");
}

async fn list(addr: SocketAddr, query: &str) -> Value {
    let (status, page) = ask(addr, Method::GET, &format!("/connections?{query}")).await;
    assert_eq!(status, 200, "{page}");
    page
}

fn ids(page: &Value) -> Vec<&str> {
    let connections = page["connections"].as_array().expect("a list");
    connections.iter().map(|shown| shown["connection"].as_str().expect("an id")).collect()
}

/// Repeats a request until it is answered with this status, and returns how often it was not.
async fn until(addr: SocketAddr, connection: &str, wanted: u16) -> usize {
    let mut others = 0;
    let repeated = async {
        while put(addr, connection, "late").await.0 != wanted {
            others += 1;
            sleep(AGAIN_AFTER).await;
        }
    };
    timeout(PATIENCE, repeated).await.unwrap_or_else(|_| panic!("{connection} is never {wanted}"));
    others
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_another_replica_is_found_changed_and_ended() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let (mut here, mut there) = (Lines::open(one, "/events").await, Lines::open(other, "/events").await);
    for reader in [&mut here, &mut there] {
        let id = reader.connection.clone();
        for addr in [one, other] {
            let topic = format!("at.{}", addr.port());
            add(addr, &id, &topic).await;
            assert_eq!(post(addr, &format!("/topics/{topic}?ephemeral"), None, "e").await.status(), 202);
            assert_eq!(post(addr, &format!("/topics/{topic}"), None, "s").await.status(), 201);
            let told = reader.next().await;
            assert_eq!((&told["type"], &told["by"]), (&json!("subscribed"), &json!("server")), "{told}");
            assert_eq!(
                (reader.next().await["data"].clone(), reader.next().await["data"].clone()),
                (json!("e"), json!("s"))
            );
            let (status, problem) =
                ask(addr, Method::PUT, &format!("/connections/{id}/topics/x?sub=u1")).await;
            assert_eq!((status, &problem["code"]), (412, &json!("precondition_failed")));
        }
        let (_, shown) = ask(one, Method::GET, &format!("/connections/{id}")).await;
        assert_eq!((&shown["topic_count"], &shown["replica"]), (&json!(2), &json!(id[..16])));
        assert_eq!(shown, ask(other, Method::GET, &format!("/connections/{id}")).await.1);
    }
    let mut all = [here.connection.clone(), there.connection.clone()];
    all.sort();
    for addr in [one, other] {
        let page = list(addr, "").await;
        assert_eq!(
            (ids(&page), &page["next"], &page["missing"]),
            (all.iter().map(String::as_str).collect(), &Value::Null, &json!([]))
        );
        let first = list(addr, "limit=1").await;
        assert_eq!((ids(&first), &first["next"]), (vec![&*all[0]], &json!(all[0])));
        let second = list(addr, &format!("limit=1&after={}", all[0])).await;
        assert_eq!((ids(&second), &second["next"]), (vec![&*all[1]], &Value::Null));
    }
    // The topic that is removed through one replica is not given by the other.
    let path = format!("/connections/{}/topics/at.{}", there.connection, one.port());
    assert_eq!(ask(one, Method::DELETE, &path).await.0, 204);
    assert_eq!(post(one, &format!("/topics/at.{}", one.port()), None, "gone").await.status(), 201);
    assert_eq!(there.next().await["type"], "unsubscribed");
    let path = format!("/connections/{}", there.connection);
    let (status, problem) = ask(one, Method::DELETE, &format!("{path}?sub=u1")).await;
    assert_eq!((status, &problem["code"]), (412, &json!("precondition_failed")));
    assert_eq!(ask(one, Method::DELETE, &path).await.0, 204);
    assert_eq!(there.next().await["code"], "disconnected");
    assert_eq!(ask(one, Method::DELETE, &path).await.0, 404);
    // No replica has this name.
    until(one, &"0".repeat(32), 404).await;
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subscribers_of_a_topic_are_counted_at_all_replicas() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    assert_eq!(post(one, "/topics/t", None, "x").await.status(), 201);
    let mut readers = Vec::new();
    for addr in [one, other, other] {
        readers.push(Lines::open(addr, "/events?topic=t").await);
    }
    for addr in [one, other] {
        let (status, page) = ask(addr, Method::GET, "/topics").await;
        let listed = (&page["topics"][0]["subscribers"], &page["missing"]);
        assert_eq!((status, listed), (200, (&json!(3), &json!([]))), "{page}");
    }
    deployment.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_all_done_at_the_other_replica() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let mut reader = Lines::open(other, "/events").await;
    let id = reader.connection.clone();
    let asked = (0..128).map(|number| {
        let id = id.clone();
        tokio::spawn(async move { add(one, &id, &format!("t{number}")).await })
    });
    for done in asked.collect::<Vec<_>>() {
        done.await.expect("it is added");
    }
    let (_, shown) = ask(one, Method::GET, &format!("/connections/{id}")).await;
    assert_eq!(shown["topic_count"], 128);
    for _ in 0..128 {
        assert_eq!(reader.next().await["type"], "subscribed");
    }
    deployment.stop().await;
}

/// A replica that hangs has met no request of that time. It says nothing, so its connections may live. Once the others
/// count it as gone it must not serve on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_does_nothing_late_and_one_that_is_silent_for_long_is_gone() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (hangs, killed) = (Replica::start(redis.url()).await, Replica::start(redis.url()).await);
    let asker = Replica::start(redis.url()).await;
    let mut reader = Lines::open(hangs.addr, "/events").await;
    let dead = Lines::open(killed.addr, "/events").await.connection;
    let id = reader.connection.clone();
    add(asker.addr, &id, "before").await;
    assert_eq!(reader.next().await["topic"], "before");

    hangs.stop().await;
    killed.signal(Signal::KILL);
    let began = Instant::now();
    // All at once, so that the replica hangs for much less than the 10 s after which it would be gone.
    let (late, of_dead, page) =
        tokio::join!(put(asker.addr, &id, "late"), put(asker.addr, &dead, "late"), list(asker.addr, ""));
    assert!(began.elapsed() >= Duration::from_millis(1900), "it was given up early");
    sleep(Duration::from_millis(500)).await;
    hangs.signal(Signal::CONT);
    for (status, problem) in [late, of_dead] {
        assert_eq!((status, &problem["code"]), (503, &json!("unknown_outcome")));
    }
    let mut missing = [&id[..16], &dead[..16]];
    missing.sort_unstable();
    assert_eq!(page["missing"], json!(missing));
    // The request that waited for it is too old.
    until_done(asker.addr, &id, "newer").await;
    assert_eq!(reader.next().await["topic"], "newer");
    let (_, shown) = ask(asker.addr, Method::GET, &format!("/connections/{id}")).await;
    assert_eq!(shown["topics"], json!(["before", "newer"]));

    hangs.stop().await;
    let (_, of_hanging) = tokio::join!(until(asker.addr, &dead, 404), until(asker.addr, &id, 404));
    assert!(of_hanging > 0, "it was unknown before");
    assert_eq!(list(asker.addr, "").await, json!({"connections": [], "next": null, "missing": []}));
    hangs.signal(Signal::CONT);
    let closing = reader.next().await;
    assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("draining")), "{closing}");
    // It joins anew, under another name.
    let renamed = async {
        loop {
            let again = Lines::open(hangs.addr, "/events").await;
            if again.connection[..16] != id[..16] {
                return again;
            }
            sleep(AGAIN_AFTER).await;
        }
    };
    let mut again = timeout(PATIENCE, renamed).await.expect("it takes another name");
    add(asker.addr, &again.connection, "again").await;
    assert_eq!(again.next().await["topic"], "again");
}

/// The names of all replicas in Redis, and the time at which the last of them was written.
fn roll(redis: &Redis) -> (Vec<String>, String) {
    let fields = redis.say(&["HGETALL", "{rejoin}:replicas"]);
    let words: Vec<_> = fields.lines().skip(1).filter(|line| !line.starts_with('$')).collect();
    let pairs: Vec<_> = words.chunks(2).filter_map(|pair| <[&str; 2]>::try_from(pair).ok()).collect();
    let last = pairs.iter().find(|[name, _]| *name == "*last").map(|[_, at]| (*at).to_owned());
    let names = pairs.iter().map(|[name, _]| (*name).to_owned()).filter(|name| !name.starts_with('*'));
    (names.collect(), last.unwrap_or_default())
}

/// It served on under the old name, and each attempt to take another one left a replica that no one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_counted_gone_ends_its_connections_before_it_has_another_name() {
    let Some(redis) = Redis::start(&[]) else { return };
    let replica = Replica::start(redis.url()).await;
    let mut reader = Lines::open(replica.addr, "/events").await;
    let name = reader.connection[..16].to_owned();
    // Its name can be written, and the rest of the script fails.
    redis.say(&["ACL", "SETUSER", "default", "-xadd"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
    let at = |seconds: i64| (now.as_millis() as i64 + seconds * 1000).to_string();
    let is_silent = async {
        loop {
            // Other signs of life come until the first of the new name.
            if roll(&redis).0 == [name.clone()] {
                let times = [&*name, &at(-60), "*since", &at(-60), "*last", &at(3600)];
                redis.say(&[&["HSET", "{rejoin}:replicas"], &times[..]].concat());
            }
            sleep(AGAIN_AFTER).await;
        }
    };
    let closing = tokio::select! {
        closing = timeout(PATIENCE, reader.next()) => closing.expect("the connection ends"),
        () = is_silent => unreachable!("it never ends"),
    };
    assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("draining")), "{closing}");
    let attempts = async {
        for _ in 0..2 {
            let (_, before) = roll(&redis);
            while roll(&redis).1 == before {
                sleep(AGAIN_AFTER).await;
            }
        }
    };
    timeout(PATIENCE, attempts).await.expect("it tries again");
    let (mut names, _) = roll(&redis);
    names.retain(|other| *other != name);
    assert_eq!(names.len(), 1, "{names:?}");
    redis.say(&["ACL", "SETUSER", "default", "+xadd"]);
    let renamed = async {
        while Lines::open(replica.addr, "/events").await.connection[..16] != names[0] {
            sleep(AGAIN_AFTER).await;
        }
    };
    timeout(PATIENCE, renamed).await.expect("it takes the name");
}

/// Adds a topic, as soon as that can be done.
async fn until_done(addr: SocketAddr, connection: &str, topic: &str) {
    for _ in 0..100 {
        if put(addr, connection, topic).await.0 == 204 {
            return;
        }
        sleep(AGAIN_AFTER).await;
    }
    panic!("{topic} is never added");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_drains_is_gone_at_once() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let mut replicas = deployment.replicas.into_iter();
    let (one, other) = (replicas.next().expect("one"), replicas.next().expect("another"));
    let mut reader = Lines::open(other.addr, "/events").await;
    let id = reader.connection.clone();
    add(one.addr, &id, "a").await;
    assert_eq!(reader.next().await["type"], "subscribed");
    let read = async {
        assert_eq!(reader.next().await["code"], "draining");
        drop(reader);
    };
    tokio::join!(other.stop(), read);
    let (status, problem) = put(one.addr, &id, "late").await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    let page = list(one.addr, "").await;
    assert_eq!((ids(&page), &page["missing"]), (vec![], &json!([])));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_redis_makes_no_replica_gone() {
    // This Redis saves nothing, so the store begins with no replica.
    let Some(mut redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let here = Lines::open(one, "/events").await;
    let mut reader = Lines::open(other, "/events").await;
    let id = reader.connection.clone();
    add(one, &id, "before").await;
    assert_eq!(reader.next().await["type"], "subscribed");
    redis.kill();
    let (status, problem) = put(one, &id, "lost").await;
    assert_eq!((status, &problem["code"]), (503, &json!("unknown_outcome")), "{problem}");
    // The list was refused as a whole.
    let page = list(one, "").await;
    assert_eq!((ids(&page), &page["missing"]), (vec![&*here.connection], &json!(["unknown"])));
    redis.start_again();
    for addr in [one, other] {
        until_ready(addr).await;
    }
    for _ in 0..100 {
        let (status, problem) = put(one, &id, "after").await;
        assert_ne!(status, 404, "{problem}");
        if status == 204 {
            break;
        }
        sleep(AGAIN_AFTER).await;
    }
    loop {
        let frame = reader.next().await;
        assert_ne!(frame["type"], "closing", "{frame}");
        if frame["topic"] == "after" && frame["type"] == "subscribed" {
            break;
        }
    }
    deployment.stop().await;
}

/// The flag in the answer of `beat.lua` that says that every replica that lives is known.
fn knows_all(redis: &Redis, does: &str) -> bool {
    let script = include_str!("../../src/log/redis/scripts/beat.lua");
    // Ten times those of a replica, so that a slow machine does not matter.
    let spans = ["100000", "30000", "600000", "15000"];
    let words = ["EVAL", script, "0", "{rejoin}:", "00000000000000ab", does, ""];
    let answer = redis.say(&[&words[..], &spans].concat());
    let flags: Vec<_> = answer.lines().filter(|line| line.starts_with(':')).collect();
    flags.get(2).unwrap_or_else(|| panic!("{answer}")) == &":1"
}

/// A replica may have joined after the snapshot from which Redis has come back.
#[test]
fn redis_that_was_away_does_not_know_who_lives() {
    let Some(redis) = Redis::start(&[]) else { return };
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
    let note = |since: u64, last: u64| {
        let ago = |ms: u64| (now().as_millis() as u64 - ms).to_string();
        redis.say(&[
            "HSET",
            "{rejoin}:replicas",
            "*made",
            &ago(600_000),
            "*since",
            &ago(since),
            "*last",
            &ago(last),
        ]);
    };
    note(500_000, 1_000);
    assert!(knows_all(&redis, "look"));
    note(500_000, 50_000);
    assert!(!knows_all(&redis, "look"), "nobody was heard for 50 s");
    assert!(!knows_all(&redis, "join"), "others may yet be heard");
    assert!(!knows_all(&redis, "look"), "others may yet be heard");
    note(20_000, 1_000);
    assert!(knows_all(&redis, "look"));
}

/// A replica that may have missed the end of a subject is asked again, and then ended connections that had begun since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_younger_than_a_missed_end_stays() {
    let Some(redis) = Redis::start(&[]) else { return };
    let replica = Replica::with(redis.url(), &["--jwt-secret", SECRET]).await;
    let rejoin = json!({"subscribe": ["**"], "publish": ["**"]});
    let claims = json!({"sub": "u1", "exp": seconds_from_now(600), "rejoin": rejoin});
    let token = Signer::new("HS256").sign(&claims);
    let mut reader = Lines::open_as(replica.addr, "/events?topic=t", &token).await;
    let name = u64::from_str_radix(&reader.connection[..16], 16).expect("the name of the replica");
    // Another replica, which asks.
    let asker = log(&redis.url()).await;
    let replicas = asker.replicas().expect("there may be others");
    let end = async |id: &str, ago_ms: u64| {
        let end = json!({"do": "end_subject", "subject": "u1", "refusal": null, "id": id, "ago_ms": ago_ms});
        let asked = async {
            // The replicas get to know each other meanwhile.
            loop {
                let until = Instant::now() + Duration::from_secs(2);
                match replicas.ask(name, end.to_string().into_bytes(), until).await {
                    Ok(answer) => return answer,
                    Err(_) => sleep(AGAIN_AFTER).await,
                }
            }
        };
        let answer = timeout(PATIENCE, asked).await.expect("the replica answers");
        assert_eq!(serde_json::from_slice::<Value>(&answer).expect("JSON"), json!({"done": "nothing"}));
    };
    end("1", 60_000).await;
    let publish = http_client().build().expect("a client").post(format!("http://{}/topics/t", replica.addr));
    let published = publish.bearer_auth(&token).body("x").send().await.expect("an answer");
    assert_eq!(published.status(), 201);
    assert_eq!(reader.next().await["data"], "x", "the connection has begun after the end");
    end("2", 0).await;
    let closing = reader.next().await;
    assert_eq!(
        (&closing["type"], &closing["code"]),
        (&json!("closing"), &json!("disconnected")),
        "{closing}"
    );
}

/// Hears the questions of other replicas, and answers none.
struct Silent(mpsc::UnboundedSender<Value>);

impl Answering for Silent {
    fn answer(&self, question: Bytes, _until: Instant) -> BoxFuture<'static, Option<Vec<u8>>> {
        let _ = self.0.send(serde_json::from_slice(&question).expect("JSON"));
        Box::pin(async { None })
    }

    fn counted_gone(&self, _name: u64) -> usize {
        0
    }
}

/// The other replicas were not asked again, so that connections of the subject could live on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_subject_goes_on_without_the_backend_that_asked_for_it() {
    let Some(redis) = Redis::start(&[]) else { return };
    let silent = log(&redis.url()).await;
    let (sender, mut heard) = mpsc::unbounded_channel();
    silent.replicas().expect("there may be others").answer_by(Arc::new(Silent(sender)));
    let replica = Replica::with(redis.url(), &[]).await;
    let asked = async {
        // The replicas get to know each other meanwhile.
        loop {
            ask(replica.addr, Method::DELETE, "/subjects/u1").await;
            sleep(AGAIN_AFTER).await;
        }
    };
    // A question may come twice.
    let question = async |heard: &mut mpsc::UnboundedReceiver<Value>, is_meant: &dyn Fn(&Value) -> bool| loop {
        let question = heard.recv().await.expect("a question");
        if is_meant(&question) {
            return question;
        }
    };
    let first = tokio::select! {
        () = asked => unreachable!("it goes on until it is dropped"),
        first = question(&mut heard, &|question| question["ago_ms"].is_null()) => first,
    };
    // The backend has hung up.
    let is_again = |question: &Value| question["ago_ms"].is_u64() && question["id"] == first["id"];
    timeout(PATIENCE, question(&mut heard, &is_again)).await.expect("it is asked again");
}
