//! Many clients that come back at once do not ask for the same things one by one.

use std::{sync::Arc, task::Poll};

use rejoin::{
    broker::{Broker, Delivery},
    log::{Append, RedisLog, Retention, Start},
    message::{Draft, Id, Payload},
};

use crate::support::redis::Redis;

const CLIENTS: usize = 10_000;
const MESSAGES: usize = 100;
const MAX_RANGE_READS: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_who_resume_on_one_topic_share_the_reads() {
    let Some(redis) = Redis::start(&[]) else { return };
    let retention = Retention {
        messages: 1000,
        age: std::time::Duration::from_secs(3600),
        bytes: 16 << 20,
        total_bytes: 256 << 20,
    };
    let start = || Broker::new(RedisLog::start(redis.url().parse().expect("an address"), &retention));
    let before = start();
    let cursor = before.newest().await.expect("reachable");
    let mut last = Id::ZERO;
    for _ in 0..MESSAGES {
        let topic = "a".parse().expect("a topic");
        let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None };
        let append = Append { draft, idempotency_key: None, if_match: None };
        last = before.publish(append).await.expect("stored").id();
    }
    drop(before);
    redis.say(&["CONFIG", "RESETSTAT"]);

    let after = Arc::new(start());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let broker = after.clone();
        clients.spawn(async move {
            let patterns = vec!["a".parse().expect("a pattern")];
            let mut subscription =
                broker.subscribe(patterns, &Start::After(cursor), "me").await.expect("the log can be read");
            let mut given = 0;
            std::future::poll_fn(|cx| {
                while subscription.cursor() < last {
                    match subscription.poll_delivery(cx) {
                        Poll::Ready(Delivery::Message(_)) => given += 1,
                        Poll::Ready(Delivery::Gap(gap)) => panic!("{gap:?}"),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(())
            })
            .await;
            given
        });
    }
    while let Some(given) = clients.join_next().await {
        assert_eq!(given.expect("no panic"), MESSAGES);
    }
    let stats = redis.say(&["INFO", "commandstats"]);
    let reads: u64 = ["cmdstat_xrange:calls=", "cmdstat_xrevrange:calls="]
        .iter()
        .filter_map(|name| stats.split_once(name)?.1.split(',').next()?.parse::<u64>().ok())
        .sum();
    println!("{reads} range reads for {CLIENTS} clients");
    assert!(reads < MAX_RANGE_READS, "{stats}");
}
