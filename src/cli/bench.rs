//! `rejoin bench`: how much load a server carries, and how fast, as a client sees it.
//!
//! Messages are published at a steady rate, also if earlier ones are late, and latency counts from the time
//! at which a message was due. So a server that delays all clients cannot hide it by delaying the publisher
//! too.

mod order;
mod publisher;
mod reader;
mod report;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use rejoin::client::Client;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, interval},
};

use self::{publisher::publish, reader::Heard, report::Report};
use super::{
    Ending,
    remote::{Credential, Transport, server},
};

/// How many connections are made at once. A listening socket may not hold more.
const OPENED_AT_ONCE: usize = 64;
/// The histogram counts every longer latency as this one.
const LONGEST_LATENCY: Duration = Duration::from_secs(600);
/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Args)]
#[command(after_help = super::examples(&[
    "rejoin bench http://push.internal:7070 --subscribers 5000 --rate 200 --transport sse",
]))]
pub struct Bench {
    /// URL of the server.
    #[arg(
        env = "REJOIN_URL", hide_env_values = true, value_name = "URL", default_value = "http://127.0.0.1:7070",
        value_parser = server
    )]
    server: Client,

    /// Number of subscribers. Each reads one topic.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    subscribers: u32,

    /// Number of topics over which subscribers and messages are spread.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    topics: u32,

    /// Messages to publish a second, to all topics together.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,

    /// Size of each message in bytes.
    #[arg(long, value_name = "BYTES", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=(16 << 20)))]
    size: u32,

    /// Transport of the subscribers.
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,

    /// How long to publish.
    #[arg(long, value_name = "DURATION", default_value = "10s", allow_hyphen_values = true, value_parser = up_to_an_hour)]
    duration: Duration,

    #[command(flatten)]
    credential: Credential,
}

fn up_to_an_hour(text: &str) -> Result<Duration, String> {
    let duration = rejoin::config::duration(text)?;
    if duration > Duration::from_secs(3600) { Err("must be at most 1h".into()) } else { Ok(duration) }
}

/// The figures that all readers measure together.
struct Measured {
    /// The start of the clock.
    epoch: Instant,
    delivered: AtomicU64,
    /// In microseconds.
    // A std mutex: no await happens while it is held.
    latency: Mutex<Histogram<u64>>,
}

impl Measured {
    fn new() -> Self {
        let longest = LONGEST_LATENCY.as_micros() as u64;
        let latency = Histogram::new_with_bounds(1, longest, 3).expect("bounds that go together");
        Self { epoch: Instant::now(), delivered: AtomicU64::new(0), latency: Mutex::new(latency) }
    }

    /// Counts a message that was due at `due` on this clock and has arrived now.
    fn delivered(&self, due: Duration) {
        let latency = self.epoch.elapsed().saturating_sub(due);
        self.delivered.fetch_add(1, Ordering::Relaxed);
        let mut histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record((latency.as_micros() as u64).max(1));
    }
}

impl Bench {
    pub async fn run(self) -> Ending {
        match self.measure().await {
            Ok(report) => match super::print(report.to_string()) {
                Ending::Done => report.ending(),
                unprinted => unprinted,
            },
            Err(ending) => ending,
        }
    }

    async fn measure(self) -> Result<Report, Ending> {
        // Each reader needs a descriptor. If the limit is too low, opening a reader fails later and says so.
        let _ = crate::limits::raise_descriptors();
        let client = self.credential.clone().give_to(self.server.clone())?;
        let client = client.with_transport(self.transport.into());
        let measured = Arc::new(Measured::new());
        let topics = Topics { run: rand::random(), count: self.topics };

        let (finished, finish) = watch::channel(None);
        let (opened, mut open) = mpsc::channel(self.subscribers as usize);
        let at_once = Arc::new(Semaphore::new(OPENED_AT_ONCE));
        let mut readers = JoinSet::new();
        for number in 0..self.subscribers {
            let reader = reader::Reader {
                client: client.clone(),
                topic: number % self.topics,
                topics,
                measured: measured.clone(),
                finish: finish.clone(),
            };
            readers.spawn(reader.read(at_once.clone(), opened.clone()));
        }
        drop((opened, finish));

        let bar = bar(u64::from(self.subscribers), "connecting  {bar:40} {pos}/{len}");
        for _ in 0..self.subscribers {
            tokio::select! {
                Some(()) = open.recv() => bar.inc(1),
                Some(ended) = readers.join_next() => return Err(early(ended.expect("no reader panics"))),
            }
        }
        bar.finish_and_clear();

        let bar = bar_of_time(self.duration);
        let begun = Instant::now();
        let published = tokio::select! {
            published = publish(&self, &client, topics, measured.epoch) => published?,
            Some(ended) = readers.join_next() => return Err(early(ended.expect("no reader panics"))),
            never = draw(&bar, &measured, begun) => never,
        };
        let publishing = begun.elapsed();
        // Readers that have ended already have returned their reason.
        let _ = finished.send(Some(published));
        bar.set_message("waiting for the last messages");
        let mut heard = Heard::default();
        while let Some(ended) = readers.join_next().await {
            heard.add(&ended.expect("no reader panics")?);
        }
        bar.finish_and_clear();
        let latency = measured.latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Report { bench: self, published, publishing, heard, latency })
    }
}

/// The reason why a reader ended before everything was published.
fn early(ended: Result<Heard, Ending>) -> Ending {
    ended.err().unwrap_or_else(|| Ending::GaveUp("a reader ended before the others".into()))
}

/// The topics of one run. No other client publishes to them.
#[derive(Clone, Copy)]
struct Topics {
    run: u32,
    count: u32,
}

impl Topics {
    fn name(self, topic: u32) -> String {
        format!("bench.{:08x}.{topic}", self.run)
    }

    /// The topic of message number `message`, and its number there.
    fn place(self, message: u64) -> (u32, u64) {
        let count = u64::from(self.count);
        ((message % count) as u32, message / count)
    }

    /// How many of `published` messages went to this topic.
    fn published_to(self, topic: u32, published: u64) -> u64 {
        let count = u64::from(self.count);
        (published + count - 1 - u64::from(topic)) / count
    }
}

fn bar(length: u64, template: &str) -> ProgressBar {
    // The bar goes to standard error, and is drawn only on a terminal.
    let style = ProgressStyle::with_template(template).expect("a template");
    ProgressBar::new(length).with_style(style)
}

fn bar_of_time(duration: Duration) -> ProgressBar {
    bar(duration.as_millis() as u64, "publishing  {bar:40} {msg}")
}

/// Draws the progress, as long as it is polled.
async fn draw(bar: &ProgressBar, measured: &Measured, begun: Instant) -> ! {
    let mut due = interval(DRAW_EVERY);
    loop {
        due.tick().await;
        let elapsed = begun.elapsed();
        bar.set_position(elapsed.as_millis() as u64);
        let delivered = measured.delivered.load(Ordering::Relaxed);
        let rate = delivered as f64 / elapsed.as_secs_f64().max(0.001);
        bar.set_message(format!("{} deliveries, {}/s", HumanCount(delivered), HumanCount(rate as u64)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_one_place() {
        for count in [1, 2, 3, 7] {
            let topics = Topics { run: 0, count };
            let mut published = vec![0; count as usize];
            for message in 0..20 {
                let (topic, number) = topics.place(message);
                assert_eq!(number, published[topic as usize]);
                published[topic as usize] += 1;
                for topic in 0..count {
                    assert_eq!(topics.published_to(topic, message + 1), published[topic as usize]);
                }
            }
        }
    }
}
