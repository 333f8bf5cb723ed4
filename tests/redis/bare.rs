//! A log in Redis without the server around it.

use std::{task::Poll, time::Duration};

use rejoin::{
    broker::{Broker, Delivery, Subscription},
    log::{Append, RedisLog, Retention, Rules, Start},
    message::{Draft, Id, Payload},
};
use tokio::time::timeout;

use crate::{
    proxy::{Proxy, Stall},
    support::redis::Redis,
};

/// Turns a hang into a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const RETENTION: Retention = Retention {
    messages: 1000,
    age: Duration::from_secs(3600),
    bytes: 16 << 20,
    total_bytes: 256 << 20,
    topics: 1_000_000,
    rules: Rules::NONE,
};

/// A log that can be reached.
pub async fn log(url: &str) -> Broker {
    log_that_keeps(url, &RETENTION).await
}

pub async fn log_that_keeps(url: &str, retention: &Retention) -> Broker {
    let broker = Broker::new(RedisLog::start(url.parse().expect("an address"), retention, 0));
    until_reachable(&broker).await;
    broker
}

/// Waits until the store answers and topics can be followed.
pub async fn until_reachable(broker: &Broker) {
    let reachable = async {
        let patterns = || vec!["until.reachable".parse().expect("a pattern")];
        while broker.subscribe(patterns(), &Start::Now, "").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reachable).await.expect("it can be reached");
}

pub fn draft(topic: &str) -> Draft {
    let topic = topic.parse().expect("a topic");
    Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None }
}

pub async fn publish(broker: &Broker, topic: &str) -> Id {
    let append = Append { draft: draft(topic), idempotency_key: None, if_match: None };
    broker.publish(append).await.expect("stored").id()
}

/// A copy of Redis that misses the last message of its primary.
pub struct Lagging {
    pub primary: Redis,
    pub copy: Redis,
    /// The link between the two, which stands still.
    pub link: Proxy,
    /// The message of the topic `a` that both have.
    pub kept: Id,
    /// The message after it, which only the primary has.
    pub ahead: Id,
}

impl Lagging {
    /// `None` if there is no Redis here.
    pub async fn start() -> Option<Self> {
        let primary = Redis::start(&[])?;
        let link = Proxy::to(primary.addr(), Duration::ZERO).await;
        let copy = Redis::start(&["--replicaof", &format!("127.0.0.1 {}", link.addr.port())])?;
        let broker = log(&primary.url()).await;
        let kept = publish(&broker, "a").await;
        copy.until_says(&["XREVRANGE", "{rejoin}:topic:a", "+", "-"], &kept.to_string()).await;
        link.stall(Stall::Both);
        let ahead = publish(&broker, "a").await;
        Some(Self { primary, copy, link, kept, ahead })
    }
}

pub async fn subscribe(broker: &Broker, pattern: &str, start: Start) -> Subscription {
    let patterns = vec![pattern.parse().expect("a pattern")];
    broker.subscribe(patterns, &start, "me").await.expect("the log can be read")
}

/// The deliveries of a reader: the id of each message, and `None` for each gap.
pub async fn read_until(reader: &mut Subscription, last: Id) -> Vec<Option<Id>> {
    let mut seen = Vec::new();
    let read = std::future::poll_fn(|cx| {
        while reader.cursor() < last {
            match reader.poll_delivery(cx) {
                Poll::Ready(Delivery::Message(message)) if message.is_ephemeral() => {}
                Poll::Ready(Delivery::Message(message)) => seen.push(Some(message.id)),
                Poll::Ready(Delivery::Gap(_)) => seen.push(None),
                // The cursor may have moved without a delivery.
                Poll::Pending if reader.cursor() >= last => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    });
    let read = timeout(PATIENCE, read).await;
    assert!(read.is_ok(), "{last} does not come, only {seen:?}");
    seen
}
