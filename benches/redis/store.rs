//! The work and the memory of Redis itself: what a topic and a message take, and what it costs to resume.

use tokio::time::Instant;

use futures_util::{StreamExt, future::try_join_all, stream};
use rejoin::{
    broker::{Broker, Delivery},
    log::Start,
    message::{Id, Pattern},
};

use super::{Outcome, PIPELINED, ROUNDS, append_to, log, print_line, reachable, redis, server::Redis};

const TOPICS: usize = 10_000;
/// How many topics a narrow pattern matches.
const GROUP: usize = 20;
const GROUPS: usize = TOPICS / GROUP;
/// How many messages the narrow patterns do not match.
const NOISE: usize = 50_000;

/// The microseconds that a script took on average, since the last `CONFIG RESETSTAT`.
pub fn work_of_scripts(redis: &Redis) -> f64 {
    let info = redis.say(&["INFO", "commandstats"]);
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    let value = line.split(',').find_map(|part| part.strip_prefix("usec_per_call="));
    value.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

/// The seconds of processor time that all scripts took together, since the last `CONFIG RESETSTAT`.
fn time_of_scripts(redis: &Redis) -> f64 {
    let info = redis.say(&["INFO", "commandstats"]);
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
    let value = line.split(',').find_map(|part| part.strip_prefix("usec="));
    value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e6
}

fn used_memory(redis: &Redis) -> f64 {
    let info = redis.say(&["INFO", "memory"]);
    let value = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    value.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

fn topic(number: usize) -> String {
    format!("o.{}.{number}", number / GROUP)
}

/// Publishes once to each of these topics.
async fn publish_to(broker: &Broker, topics: impl Iterator<Item = String>) -> Outcome<()> {
    let publishes = topics.map(|topic| async move { broker.publish(append_to(&topic)).await });
    let mut publishes = stream::iter(publishes).buffer_unordered(PIPELINED);
    while let Some(published) = publishes.next().await {
        published?;
    }
    Ok(())
}

/// The memory that a topic with one message takes, and another message of a topic.
pub async fn memory() -> Outcome<()> {
    let (mut topics, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let redis = redis()?;
        let broker = log(&redis.url())?;
        reachable(&broker).await?;
        // The feed is full before, and stays so.
        publish_to(&broker, (0..NOISE).map(|_| "noise".to_owned())).await?;
        let before = used_memory(&redis);
        publish_to(&broker, (0..TOPICS).map(topic)).await?;
        let between = used_memory(&redis);
        publish_to(&broker, (0..GROUP * TOPICS).map(|number| topic(number % TOPICS))).await?;
        topics.push((between - before) / TOPICS as f64);
        messages.push((used_memory(&redis) - between) / (GROUP * TOPICS) as f64);
    }
    print_line("memory of Redis for a topic with one message", "bytes", &topics, "", &[]);
    print_line("memory of Redis for another message of a topic", "bytes", &messages, "", &[]);
    Ok(())
}

/// Resuming many topics, and many narrow patterns, after messages were missed.
pub async fn resume() -> Outcome<()> {
    let redis = redis()?;
    let broker = log(&redis.url())?;
    reachable(&broker).await?;
    publish_to(&broker, (0..TOPICS).map(topic)).await?;
    let cursor = broker.newest().await?;
    let (mut times, mut works) = (Vec::new(), Vec::new());
    publish_to(&broker, (0..2 * TOPICS).map(|number| topic(number % TOPICS))).await?;
    let all = || (0..TOPICS).map(topic).map(|topic| topic.parse().expect("a topic")).collect();
    for _ in 0..ROUNDS {
        let (time, work) = read(&redis, vec![all()], cursor, 2 * TOPICS).await?;
        times.push(time);
        works.push(work);
    }
    print_line("resume of 10 000 topics, two messages missed of each", "s", &times, "", &[]);
    print_line("the same, work of Redis", "s", &works, "", &[]);

    publish_to(&broker, (0..NOISE).map(|number| format!("noise.{}", number % 100))).await?;
    let (mut narrow, mut exact) = (Vec::new(), Vec::new());
    let per_reader = |(_, work): (f64, f64)| 1e6 * work / GROUPS as f64;
    for _ in 0..ROUNDS {
        let each = |name: fn(usize) -> String| {
            (0..GROUPS).map(name).map(|name| vec![name.parse().expect("a pattern")])
        };
        let patterns = each(|group| format!("o.{group}.*")).collect();
        narrow.push(per_reader(read(&redis, patterns, cursor, 2 * GROUP).await?));
        let topics = each(|group| topic(group * GROUP)).collect();
        exact.push(per_reader(read(&redis, topics, cursor, 2).await?));
    }
    let name = format!("resume of {GROUPS} patterns at once, each of {GROUP} topics, work of Redis for each");
    print_line(&name, "µs", &narrow, "one exact topic", &exact);
    Ok(())
}

/// Readers of these patterns resume at once, each until it has been given so many messages. Says how many seconds that
/// took, and how many of them Redis worked.
async fn read(redis: &Redis, readers: Vec<Vec<Pattern>>, cursor: Id, messages: usize) -> Outcome<(f64, f64)> {
    let broker = log(&redis.url())?;
    reachable(&broker).await?;
    redis.say(&["CONFIG", "RESETSTAT"]);
    let began = Instant::now();
    let each = readers.into_iter().map(|patterns| async {
        let mut subscription = broker.subscribe(patterns, &Start::After(cursor), "bench").await?;
        for _ in 0..messages {
            let delivery = subscription.next().await;
            assert!(matches!(delivery, Some(Delivery::Message(_))), "{delivery:?}");
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    });
    try_join_all(each).await?;
    Ok((began.elapsed().as_secs_f64(), time_of_scripts(redis)))
}
