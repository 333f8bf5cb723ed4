//! Members of a replica that hangs for longer than its holds live, and then goes on.

use std::{net::SocketAddr, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    outage::Lines,
    replicas::Replica,
    signer::{SECRET, Signer, seconds_from_now},
    support::redis::Redis,
};

const SETTINGS: &[&str] = &["--jwt-secret", SECRET, "--presence-grace", "200ms"];
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

fn token(sub: &str) -> String {
    let rights = json!({"subscribe": ["room", "$presence.**"], "presence": ["**"]});
    Signer::new("HS256").sign(&json!({"sub": sub, "exp": seconds_from_now(600), "rejoin": rights}))
}

/// Each member, and how many connections hold it.
async fn members(addr: SocketAddr) -> Value {
    let client = crate::support::http_client().build().expect("a client");
    let request = client.get(format!("http://{addr}/topics/room/presence")).bearer_auth(token("watcher"));
    let page: Value = request.send().await.expect("an answer").json().await.expect("JSON");
    let members = page["members"].as_array().unwrap_or_else(|| panic!("{page}"));
    members.iter().map(|member| json!([member["sub"], member["connections"]])).collect()
}

async fn until(addr: SocketAddr, wanted: Value) {
    let come = async {
        while members(addr).await != wanted {
            sleep(AGAIN_AFTER).await;
        }
    };
    if timeout(PATIENCE, come).await.is_err() {
        panic!("{} is not {wanted}", members(addr).await);
    }
}

async fn enter(addr: SocketAddr, sub: &str) -> Lines {
    Lines::open_as(addr, "/events?presence&topic=room", &token(sub)).await
}

fn assert_draining(closing: &Value) {
    assert_eq!((&closing["type"], &closing["code"]), (&json!("closing"), &json!("draining")), "{closing}");
}

/// The first four changes that were told.
async fn changes_of(addr: SocketAddr) -> Value {
    let mut changes = Lines::open_as(addr, "/topics/$presence.room?after=0", &token("watcher")).await;
    let mut told = Vec::new();
    for _ in 0..4 {
        let change = changes.next().await;
        told.push(json!([change["event"], change["data"]["sub"]]));
    }
    told.into()
}

/// Its connections lived on: the question came too late there, and the end was in the part of the feed that it had lost.
#[tokio::test]
async fn a_replica_that_hangs_and_loses_the_feed_ends_a_subject_when_it_goes_on() {
    let Some(redis) = Redis::start(&[]) else { return };
    let hangs = Replica::with(redis.url(), SETTINGS).await;
    let other = Replica::with(redis.url(), SETTINGS).await;
    let mut lines = enter(hangs.addr, "ended").await;
    until(other.addr, json!([["ended", 1]])).await;

    hangs.stop().await;
    let rights = json!({"admin": true, "publish": ["**"]});
    let admin =
        Signer::new("HS256").sign(&json!({"sub": "admin", "exp": seconds_from_now(600), "rejoin": rights}));
    let client = crate::support::http_client().build().expect("a client");
    // Its question about the feed, which waits in Redis, is answered by this, and so not by the end.
    let request = client.post(format!("http://{}/topics/other", other.addr)).bearer_auth(&admin).body("x");
    assert_eq!(request.send().await.expect("an answer").status(), 201);
    let request = client.delete(format!("http://{}/subjects/ended", other.addr)).bearer_auth(admin);
    let problem: Value = request.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(problem["code"], "unknown_outcome", "{problem}");
    assert!(redis.say(&["DEL", "{rejoin}:feed"]).contains('1'), "there was a feed");
    // By now Redis has answered everything that waited there.
    sleep(2 * AGAIN_AFTER).await;
    hangs.signal(Signal::CONT);

    let closing = timeout(PATIENCE, async {
        loop {
            let frame = lines.next().await;
            if frame["type"] == "closing" {
                return frame;
            }
        }
    });
    let closing = closing.await.expect("the connection ends");
    assert_eq!(closing["code"], "disconnected", "{closing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_a_replica_that_hangs_leave_and_come_back_when_it_goes_on() {
    let Some(redis) = Redis::start(&[]) else { return };
    let hangs = Replica::with(redis.url(), SETTINGS).await;
    let other = Replica::with(redis.url(), SETTINGS).await;
    let mut lost = enter(hangs.addr, "lost").await;
    let mut both = enter(hangs.addr, "both").await;
    let _stays = enter(other.addr, "both").await;
    until(other.addr, json!([["both", 2], ["lost", 1]])).await;

    hangs.stop().await;
    until(other.addr, json!([["both", 1]])).await;
    hangs.signal(Signal::CONT);
    // Its connections end, and their clients come back, also to this replica.
    for lines in [&mut lost, &mut both] {
        assert_draining(&lines.next().await);
    }
    let back = async {
        loop {
            // Until the replica has its new name, this ends once more.
            assert_draining(&enter(hangs.addr, "lost").await.next().await);
        }
    };
    let is_back = async {
        until(other.addr, json!([["both", 1], ["lost", 1]])).await;
        until(hangs.addr, json!([["both", 1], ["lost", 1]])).await;
        changes_of(other.addr).await
    };
    let told = tokio::select! {
        () = back => unreachable!("it comes back again and again"),
        told = is_back => told,
    };

    // The member that was held elsewhere too has never left.
    let wanted = json!([["join", "lost"], ["join", "both"], ["leave", "lost"], ["join", "lost"]]);
    assert_eq!(told, wanted);
}

/// One user took every place of requests that wait, and the backend was told that the server is overloaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_requests_wait_for_a_replica_that_hangs_leaves_room_for_others() {
    // The user may have seven of sixteen places.
    const REQUESTS: usize = 480;
    let Some(redis) = Redis::start(&[]) else { return };
    let hangs = Replica::with(redis.url(), SETTINGS).await;
    let other = Replica::with(redis.url(), SETTINGS).await;
    let lines = enter(hangs.addr, "reads").await;
    let url = format!("http://{}/connections/{}/topics/a", other.addr, lines.connection);
    let token = |sub: &str| {
        let rights = json!({"manage": ["**"]});
        Signer::new("HS256").sign(&json!({"sub": sub, "exp": seconds_from_now(600), "rejoin": rights}))
    };
    let client = crate::support::http_client().build().expect("a client");
    let add = |token: String| {
        let request = client.put(&url).bearer_auth(token);
        async move {
            let problem: Value = request.send().await.expect("an answer").json().await.expect("JSON");
            problem["code"].as_str().expect("a code").to_owned()
        }
    };
    hangs.stop().await;
    let greedy = token("greedy");
    let mut asked: JoinSet<_> = (0..REQUESTS).map(|_| add(greedy.clone())).collect();
    let refused = async {
        while let Some(code) = asked.join_next().await {
            if code.expect("it is answered") == "overloaded" {
                return;
            }
            asked.spawn(add(greedy.clone()));
        }
    };
    timeout(PATIENCE, refused).await.expect("one is refused");
    assert_eq!(add(token("modest")).await, "unknown_outcome");
}
