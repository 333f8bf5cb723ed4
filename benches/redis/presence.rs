//! A topic of 10 000 members: how many join and leave in a second, on both logs.

use std::{sync::Arc, time::Duration};

use rejoin::{
    broker::{Broker, Presences, Present},
    log::{Log, MemoryLog, RedisLog, Retention, Rules},
    message::Topic,
};
use tokio::{task::JoinSet, time::Instant};

use super::{Outcome, Redis};

const MEMBERS: usize = 10_000;
const GRACE: Duration = Duration::from_millis(1);
const RETENTION: Retention = Retention {
    messages: 1000,
    age: Duration::from_secs(3600),
    bytes: 16 << 20,
    total_bytes: 256 << 20,
    topics: 1_000_000,
    rules: Rules::NONE,
};

pub async fn presence() -> Outcome<()> {
    members(MemoryLog::start(RETENTION), "memory").await?;
    if let Some(redis) = Redis::start(&[]) {
        let log = RedisLog::start(redis.url().parse()?, &RETENTION, 0);
        log.check_format().await?;
        members(log, "Redis").await?;
    }
    Ok(())
}

async fn members(log: Arc<dyn Log>, name: &str) -> Outcome<()> {
    let topic: Topic = "room".parse()?;
    let presences = Broker::new(log).start_presence(GRACE);
    // The replica gives its first sign of life.
    while enter(&presences, &topic, "first".into()).await.is_none() {}
    let began = Instant::now();
    let mut entering = JoinSet::new();
    for number in 0..MEMBERS {
        let (presences, topic) = (presences.clone(), topic.clone());
        entering.spawn(async move { enter(&presences, &topic, number.to_string().into()).await });
    }
    let entered: Vec<Present> = entering.join_all().await.into_iter().flatten().collect();
    let joins = entered.len() as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    drop(entered);
    while presences.members(&topic, "", 1).await?.count > 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let leaves = MEMBERS as f64 / began.elapsed().as_secs_f64();
    println!("| joins of a topic with 10 000 members, {name} | 1/s | {joins:.0} | | | |");
    println!("| leaves of it, {name} | 1/s | {leaves:.0} | | | |");
    Ok(())
}

async fn enter(presences: &Arc<Presences>, topic: &Topic, sub: Arc<str>) -> Option<Present> {
    let mut present = presences.connection(sub, None);
    while present.enter(vec![topic.clone()]).await.is_err() {
        present.leave(topic);
    }
    Some(present)
}
