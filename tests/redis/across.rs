//! A publish, a key or a deletion on one replica holds on the others.

use std::net::SocketAddr;

use reqwest::Response;
use serde_json::Value;

use crate::{
    deployment::Deployment,
    outage::Lines,
    reader::Reader,
    support::{
        client::{Start, Transport},
        redis::Redis,
    },
};

pub async fn post(addr: SocketAddr, path: &str, key: Option<&str>, body: &str) -> Response {
    let client = crate::support::http_client().build().expect("a client");
    let mut request = client.post(format!("http://{addr}{path}")).body(body.to_owned());
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.send().await.expect("an answer")
}

pub async fn json(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON")
}

#[tokio::test]
async fn a_key_counts_on_every_replica() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let first = post(one, "/topics/a", Some("k"), "x").await;
    assert_eq!(first.status(), 201);
    let again = post(other, "/topics/a", Some("k"), "x").await;
    assert_eq!(again.status(), 200);
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(json(first).await["id"], json(again).await["id"]);
    assert_eq!(post(other, "/topics/a", Some("k"), "y").await.status(), 422);
    deployment.stop().await;
}

#[tokio::test]
async fn a_deletion_on_one_replica_holds_on_the_other() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = json(post(one, "/topics/a", None, "x").await).await["id"].clone();
        ids.push(id.as_str().and_then(|id| id.parse().ok()).expect("an id"));
    }
    let mut level = Reader::open(other, Transport::Sse, "a", Start::All).await;
    level.until(ids[2]).await;
    let client = crate::support::http_client().build().expect("a client");
    let deleted = client.delete(format!("http://{one}/topics/a")).send().await.expect("an answer");
    assert_eq!(deleted.status(), 204);
    let mut behind = Reader::open(other, Transport::Sse, "a", Start::After(ids[0])).await;
    let last = json(post(one, "/topics/a", None, "x").await).await["id"].clone();
    let last = last.as_str().and_then(|id| id.parse().ok()).expect("an id");
    for reader in [&mut level, &mut behind] {
        reader.until(last).await;
    }
    assert!(level.gaps.is_empty(), "{:?}", level.gaps);
    assert_eq!(behind.gaps.len(), 1);
    assert_eq!((&*behind.gaps[0].reason, behind.given), ("deleted", vec![last]));
    deployment.stop().await;
}

#[tokio::test]
async fn a_connection_of_another_replica_can_be_excluded_and_gets_announcements() {
    let Some(redis) = Redis::start(&[]) else { return };
    let deployment = Deployment::of(2, &redis).await;
    let [one, other, ..] = deployment.addrs()[..] else { unreachable!("two replicas") };
    let mut excluded = Lines::open(other, "/topics/a").await;
    let mut included = Lines::open(other, "/topics/a").await;
    let path = format!("/topics/a?exclude={}", excluded.connection);
    assert_eq!(post(one, &path, None, "for others").await.status(), 201);
    assert_eq!(post(one, "/topics/a?ephemeral", None, "now").await.status(), 202);
    assert_eq!(post(one, "/topics/a", None, "for all").await.status(), 201);
    assert_eq!(included.next().await["data"], "for others");
    for lines in [&mut excluded, &mut included] {
        let now = lines.next().await;
        assert_eq!((&now["data"], &now["ephemeral"]), (&"now".into(), &true.into()));
        assert_eq!(lines.next().await["data"], "for all");
    }
    deployment.stop().await;
}

/// Each database of one Redis is a deployment of its own.
#[tokio::test]
async fn two_databases_of_one_redis_are_separate_deployments() {
    let Some(redis) = Redis::start(&[]) else { return };
    let one = Deployment::over(&[format!("{}/0", redis.url())]).await;
    let other = Deployment::over(&[format!("{}/1", redis.url())]).await;
    let mut lines = Lines::open(other.addrs()[0], "/topics/a").await;
    for path in ["/topics/a?ephemeral", "/topics/a"] {
        let answer = post(one.addrs()[0], path, None, "of the one").await;
        assert!(answer.status().is_success(), "{}", answer.status());
    }
    assert_eq!(post(other.addrs()[0], "/topics/a?ephemeral", None, "of the other").await.status(), 202);
    assert_eq!(lines.next().await["data"], "of the other");
    one.stop().await;
    other.stop().await;
}
