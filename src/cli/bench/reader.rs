//! One reader, which counts the messages of one topic to the end.

use std::{sync::Arc, time::Duration};

use rejoin::client::{Client, ClientError, Event, Message, Start, Subscription};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_stream::StreamExt;

use super::{Measured, Topics, order::Order, publisher};
use crate::cli::Ending;

/// A reader expects nothing more if it was quiet for this long after its last message.
const QUIET: Duration = Duration::from_secs(5);
/// A reader ends this long after the last message was published, even if messages still arrive.
const AFTERWARDS: Duration = Duration::from_secs(60);

pub struct Reader {
    pub client: Client,
    pub topic: u32,
    pub topics: Topics,
    pub measured: Arc<Measured>,
    /// The number of messages that were published, once it is known.
    pub finish: watch::Receiver<Option<u64>>,
}

/// The counts of one reader, or of all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Gaps that the server told.
    pub gaps: u64,
    /// Connections that ended too early.
    pub cuts: u64,
}

impl Heard {
    pub fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.gaps += other.gaps;
        self.cuts += other.cuts;
    }
}

/// The progress of one reader.
struct Reading {
    order: Order,
    heard: Heard,
    /// The number of messages in this topic, and when it became known.
    published: Option<(u64, Instant)>,
    /// When the last message arrived.
    busy: Instant,
}

impl Reader {
    /// Reads to the end. Only so many first connections are made `at_once`.
    pub async fn read(self, at_once: Arc<Semaphore>, opened: mpsc::Sender<()>) -> Result<Heard, Ending> {
        let opening = at_once.acquire().await.expect("it is never closed");
        let mut subscription = self.client.subscribe([self.topics.name(self.topic)], Start::Now);
        // A subscription begins with its connection.
        if let Event::Disconnected(error) = next(&mut subscription).await? {
            return Err(error.into());
        }
        // The channel has room for one value of each reader.
        let _ = opened.try_send(());
        drop((opening, opened));
        self.follow(subscription).await
    }

    /// Reads until everything has arrived.
    async fn follow(mut self, mut subscription: Subscription) -> Result<Heard, Ending> {
        let mut reading = Reading {
            order: Order::default(),
            heard: Heard::default(),
            published: None,
            busy: Instant::now(),
        };
        while !reading.is_over() {
            let is_finished = reading.published.is_some();
            tokio::select! {
                event = next(&mut subscription) => match event? {
                    Event::Message(message) => self.take(&message, &mut reading)?,
                    Event::Gap(_) => reading.heard.gaps += 1,
                    Event::Disconnected(_) => reading.heard.cuts += 1,
                    _ => {}
                },
                _ = self.finish.changed(), if !is_finished => {
                    let published = self.finish.borrow().unwrap_or_default();
                    reading.busy = Instant::now();
                    reading.published = Some((self.topics.published_to(self.topic, published), reading.busy));
                }
                () = sleep_until(reading.busy + QUIET), if is_finished => break,
            }
        }
        let Reading { order, mut heard, published, .. } = reading;
        heard.lost = order.lost(published.map_or(0, |(published, _)| published));
        (heard.duplicated, heard.reordered) = (order.duplicated, order.reordered);
        Ok(heard)
    }

    fn take(&self, message: &Message, reading: &mut Reading) -> Result<(), Ending> {
        let Some((number, due)) = publisher::parse(&message.payload) else {
            return Err(Ending::Failed("another client publishes to these topics".into()));
        };
        self.measured.delivered(due);
        reading.heard.delivered += 1;
        reading.order.take(number);
        reading.busy = Instant::now();
        Ok(())
    }
}

impl Reading {
    fn is_over(&self) -> bool {
        let Some((published, since)) = self.published else { return false };
        since.elapsed() > AFTERWARDS || self.order.lost(published) == 0
    }
}

async fn next(subscription: &mut Subscription) -> Result<Event, ClientError> {
    subscription.next().await.expect("a subscription ends only with an error")
}
