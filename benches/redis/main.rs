//! The cost of the log in Redis, compared with Redis itself: `cargo bench --features dist --bench redis`.
//!
//! Everything runs on this machine, with its own Redis on the loopback. It measures publishing, in turns with
//! `redis-benchmark` running the same script and pipelining; a delivery on another replica, compared with a
//! bare `PUBLISH` and `SUBSCRIBE`; how long it takes until messages come again after the connections to Redis
//! have died; and the work and the memory of Redis. Linux only. With the argument `publish`, `latency`,
//! `found-again`, `memory`, `presence`, `commands` or `resume` it measures only that.

mod commands;
mod presence;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/redis/proxy.rs"]
mod proxy;
#[path = "../../tests/support/redis.rs"]
mod server;
mod store;

use std::{error::Error, process::Command, sync::Arc, time::Duration};

use futures_util::StreamExt;
use proxy::{Proxy, Stall};
use rejoin::{
    broker::{Broker, Delivery, Subscription},
    log::{Append, RedisLog, Retention, Rules, Start},
    message::{Draft, Id, Payload},
};
use server::Redis;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
/// How many publishes run at once.
const PIPELINED: usize = 64;
const PUBLISHES: usize = 100_000;
const SAMPLES: usize = 3_000;
const PAYLOAD_BYTES: usize = 100;
const STALL: Duration = Duration::from_secs(6);
/// The pause between publishes while the benchmark waits for a message.
const BEAT: Duration = Duration::from_millis(5);

fn main() -> Outcome<()> {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("nothing to test here; measure with: cargo bench --features dist --bench redis");
        return Ok(());
    }
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let is_wanted = |figure: &str| only.as_deref().is_none_or(|only| only == figure);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        println!("| figure | unit | measured | compared to | | ratio |\n|---|---|---|---|---|---|");
        if is_wanted("publish") {
            throughput(0).await?;
            throughput(1).await?;
        }
        if is_wanted("latency") {
            latency().await?;
        }
        if is_wanted("found-again") {
            found_again().await?;
        }
        if is_wanted("memory") {
            store::memory().await?;
        }
        if is_wanted("presence") {
            presence::presence().await?;
        }
        if is_wanted("commands") {
            commands::commands().await?;
        }
        if is_wanted("resume") {
            store::resume().await?;
        }
        Ok(())
    })
}

fn log(url: &str) -> Outcome<Broker> {
    log_that_keeps(1000, url)
}

fn log_that_keeps(messages: usize, url: &str) -> Outcome<Broker> {
    let retention = Retention {
        messages,
        age: Duration::from_secs(3600),
        bytes: 16 << 20,
        total_bytes: 256 << 20,
        topics: 1_000_000,
        rules: Rules::NONE,
    };
    Ok(Broker::new(RedisLog::start(url.parse()?, &retention, 0)))
}

fn append() -> Append {
    append_to("bench")
}

fn append_to(topic: &str) -> Append {
    let payload = Payload::text("x".repeat(PAYLOAD_BYTES));
    let draft =
        Draft { topic: topic.parse().expect("a topic"), event: None, payload, exclude: None, by: None };
    Append { draft, idempotency_key: None, if_match: None }
}

async fn subscribe(broker: &Broker) -> Outcome<Subscription> {
    Ok(broker.subscribe(vec!["bench".parse()?], &Start::Now, "bench").await?)
}

async fn reachable(broker: &Broker) -> Outcome<()> {
    while broker.newest().await.is_err() {
        sleep(BEAT).await;
    }
    Ok(())
}

fn redis() -> Outcome<Redis> {
    Redis::start(&[]).ok_or_else(|| "redis-server is not installed".into())
}

/// Acknowledged publishes a second, with this many replicas that follow the topic.
async fn throughput(followers: usize) -> Outcome<()> {
    let redis = redis()?;
    let broker = Arc::new(log(&redis.url())?);
    reachable(&broker).await?;
    let mut readers = JoinSet::new();
    for _ in 0..followers {
        let reader = log(&redis.url())?;
        reachable(&reader).await?;
        let mut subscription = subscribe(&reader).await?;
        readers.spawn(async move { while subscription.next().await.is_some() {} });
    }
    let script = the_script(&redis, &broker).await?;
    let (mut ours, mut theirs, mut works) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        redis.say(&["CONFIG", "RESETSTAT"]);
        ours.push(publish(&broker).await?);
        works.push(store::work_of_scripts(&redis));
        theirs.push(redis_benchmark(&redis, &script)?);
    }
    let name = format!("acknowledged publishes, {PIPELINED} at once, followed by {followers} replicas");
    print_line(&name, "1/s", &ours, "redis-benchmark, the same script and pipelining", &theirs);
    let name = format!("work of Redis for one publish, followed by {followers} replicas");
    print_line(&name, "µs", &works, "", &[]);
    Ok(())
}

async fn publish(broker: &Arc<Broker>) -> Outcome<f64> {
    let began = Instant::now();
    let mut publishers = JoinSet::new();
    for _ in 0..PIPELINED {
        let broker = broker.clone();
        publishers.spawn(async move {
            for _ in 0..PUBLISHES / PIPELINED {
                broker.publish(append()).await.expect("stored");
            }
        });
    }
    while let Some(done) = publishers.join_next().await {
        done?;
    }
    Ok((PUBLISHES / PIPELINED * PIPELINED) as f64 / began.elapsed().as_secs_f64())
}

/// The command that stores a message, as Redis receives it.
async fn the_script(redis: &Redis, broker: &Broker) -> Outcome<Vec<String>> {
    let mut monitor = Command::new("redis-cli")
        .args(["-p", &redis.port.to_string(), "monitor"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    sleep(Duration::from_millis(500)).await;
    broker.publish(append()).await?;
    sleep(Duration::from_millis(500)).await;
    monitor.kill()?;
    let seen = String::from_utf8(monitor.wait_with_output()?.stdout)?;
    let payload = "x".repeat(PAYLOAD_BYTES);
    let is_publish = |line: &&str| line.contains(r#""EVALSHA""#) && line.contains(&payload);
    let line = seen.lines().find(is_publish).ok_or("the script was not seen")?;
    let words = line.split_once('"').ok_or("no words")?.1.trim_end_matches('"').split(r#"" ""#);
    // A command line cannot contain the zero bytes of a message's head. The script does not read the head.
    Ok(words
        .map(|word| if word.contains("\\x00") { "t------".to_owned() } else { word.to_owned() })
        .collect())
}

fn redis_benchmark(redis: &Redis, script: &[String]) -> Outcome<f64> {
    let output = Command::new("redis-benchmark")
        .args(["-p", &redis.port.to_string(), "-c", "1", "-P", &PIPELINED.to_string(), "--csv"])
        .args(["-n", &PUBLISHES.to_string()])
        .args(script)
        .output()?;
    let csv = String::from_utf8(output.stdout)?;
    let row = csv.lines().last().ok_or("redis-benchmark says nothing")?;
    let rate = row.rsplit("\",\"").nth(6).ok_or_else(|| format!("no rate in {csv}"))?;
    Ok(rate.trim_matches('"').parse()?)
}

/// From the publish on one replica to the delivery on another.
async fn latency() -> Outcome<()> {
    let redis = redis()?;
    let (here, there) = (log(&redis.url())?, log(&redis.url())?);
    reachable(&here).await?;
    reachable(&there).await?;
    let mut subscription = subscribe(&there).await?;
    let client = ::redis::Client::open(redis.url())?;
    let mut publisher = client.get_multiplexed_async_connection().await?;
    let mut pubsub = client.get_async_pubsub().await?;
    pubsub.subscribe("bare").await?;
    let mut messages = pubsub.on_message();
    let payload = "x".repeat(PAYLOAD_BYTES);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let began = Instant::now();
            let publish = async { here.publish(append()).await };
            let deliver = async {
                let delivery = subscription.next().await;
                (began.elapsed(), matches!(delivery, Some(Delivery::Message(_))))
            };
            let (published, (elapsed, is_message)) = tokio::join!(publish, deliver);
            published?;
            assert!(is_message);
            our_times.push(elapsed.as_secs_f64() * 1e6);

            let began = Instant::now();
            let mut publish = ::redis::cmd("PUBLISH");
            publish.arg("bare").arg(&payload);
            let publish = publish.query_async::<i64>(&mut publisher);
            let deliver = async { messages.next().await.map(|_| began.elapsed()) };
            let (published, elapsed) = tokio::join!(publish, deliver);
            published?;
            bare_times.push(elapsed.ok_or("no message")?.as_secs_f64() * 1e6);
        }
        ours.push(our_times);
        bare.push(bare_times);
    }
    for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
        let each = |rounds: &[Vec<f64>]| rounds.iter().map(|times| quantile(times, at)).collect::<Vec<_>>();
        let name = format!("publish on one replica to delivery on another, {name}");
        print_line(&name, "µs", &each(&ours), "bare PUBLISH to SUBSCRIBE", &each(&bare));
    }
    Ok(())
}

/// How long it takes until messages come again: after a link has died without a sign, and after nothing got
/// through for a while.
async fn found_again() -> Outcome<()> {
    let redis = redis()?;
    let proxy = Proxy::to(redis.addr(), Duration::ZERO).await;
    // More than the benchmark publishes while nothing gets through.
    let keep = 20_000;
    let (troubled, calm) =
        (log_that_keeps(keep, &proxy.url())?, Arc::new(log_that_keeps(keep, &redis.url())?));
    reachable(&troubled).await?;
    reachable(&calm).await?;
    let mut subscription = subscribe(&troubled).await?;
    let beat = tokio::spawn({
        let calm = calm.clone();
        async move {
            loop {
                let _ = calm.publish(append()).await;
                sleep(BEAT).await;
            }
        }
    });
    let (mut dead, mut stalled) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        proxy.forget_connections();
        dead.push(until_new(&mut subscription, &calm).await?);
        proxy.stall(Stall::Both);
        sleep(STALL).await;
        proxy.forget_connections();
        proxy.stall(Stall::Nothing);
        stalled.push(until_new(&mut subscription, &calm).await?);
    }
    beat.abort();
    print_line("both connections dead without a sign, until messages come again", "s", &dead, "", &[]);
    print_line("nothing got through for 6 s, from its end until messages come again", "s", &stalled, "", &[]);
    Ok(())
}

/// Waits for a message that was published after the call, and returns the seconds.
async fn until_new(subscription: &mut Subscription, calm: &Broker) -> Outcome<f64> {
    let (began, newest): (Instant, Id) = (Instant::now(), calm.newest().await?);
    loop {
        match subscription.next().await {
            Some(Delivery::Message(message)) if message.id > newest => {
                return Ok(began.elapsed().as_secs_f64());
            }
            Some(Delivery::Gap(gap)) => return Err(format!("{gap:?}").into()),
            _ => {}
        }
    }
}

fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 - 1.0) * at).round() as usize).copied().unwrap_or(f64::NAN)
}

fn print_line(name: &str, unit: &str, values: &[f64], beside: &str, limits: &[f64]) {
    let shown = |values: &[f64]| match values {
        [] => String::new(),
        _ => format!(
            "{:.2} ({:.2}..{:.2})",
            quantile(values, 0.5),
            quantile(values, 0.0),
            quantile(values, 1.0)
        ),
    };
    let ratios: Vec<f64> = values.iter().zip(limits).map(|(value, limit)| value / limit).collect();
    println!("| {name} | {unit} | {} | {beside} | {} | {} |", shown(values), shown(limits), shown(&ratios));
}
