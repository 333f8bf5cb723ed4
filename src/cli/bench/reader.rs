//! One reader, which resumes with its cursor after it was cut off.

use std::{sync::Arc, time::Duration};

use reqwest::Client;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Measured, Topics, order::Order, publisher};
use crate::cli::{
    feed::{Feed, Frame, Start, Transport, Wish},
    remote::{Remote, Trouble},
};

/// A reader expects nothing more if it was quiet for this long after its last message.
const QUIET: Duration = Duration::from_secs(5);
/// A reader ends this long after the last message was published, even if messages still arrive.
const AFTERWARDS: Duration = Duration::from_secs(60);
/// The longest pause before a reader reconnects; each waits a random part of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub struct Reader {
    pub remote: Remote,
    pub client: Client,
    pub topic: u32,
    pub topics: Topics,
    pub transport: Transport,
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
    wish: Wish,
    order: Order,
    heard: Heard,
    /// Receives a value when the first connection is open; dropped after that.
    opened: Option<mpsc::Sender<()>>,
    /// The number of messages in this topic, and when it became known.
    published: Option<(u64, Instant)>,
    /// When the last message arrived.
    busy: Instant,
}

impl Reader {
    /// Reads to the end. It makes its first connection when a door is free.
    pub async fn read(mut self, doors: Arc<Semaphore>, opened: mpsc::Sender<()>) -> Result<Heard, Trouble> {
        let wish =
            Wish { topics: vec![self.topics.name(self.topic)], start: Start::Now, transport: self.transport };
        let mut reading = Reading {
            wish,
            order: Order::default(),
            heard: Heard::default(),
            opened: Some(opened),
            published: None,
            busy: Instant::now(),
        };
        loop {
            let door = doors.acquire().await.expect("doors are never closed");
            let feed = Feed::open(&self.remote, &self.client, &reading.wish).await;
            drop(door);
            let trouble = match feed {
                Ok(feed) => match self.follow(feed, &mut reading).await {
                    Some(trouble) => trouble,
                    None => break,
                },
                Err(trouble) => trouble,
            };
            let is_final = matches!(trouble, Trouble::Refused(_)) || reading.opened.is_some();
            if is_final {
                return Err(trouble);
            }
            reading.heard.cuts += 1;
            if self.is_over(&reading) {
                break;
            }
            sleep(LONGEST_PAUSE.mul_f64(rand::random())).await;
        }
        let Reading { order, mut heard, published, .. } = reading;
        heard.lost = order.lost(published.map_or(0, |(published, _)| published));
        (heard.duplicated, heard.reordered) = (order.duplicated, order.reordered);
        Ok(heard)
    }

    /// Reads one connection until everything has arrived; returns why the connection ended before that.
    async fn follow(&mut self, mut feed: Feed, reading: &mut Reading) -> Option<Trouble> {
        loop {
            if self.is_over(reading) {
                return None;
            }
            let is_finished = reading.published.is_some();
            tokio::select! {
                frame = feed.next() => match frame {
                    Ok(frame) => {
                        if let Some(trouble) = self.take(frame, reading) {
                            return Some(trouble);
                        }
                    }
                    Err(trouble) => return Some(trouble),
                },
                _ = self.finish.changed(), if !is_finished => {
                    let published = self.finish.borrow().unwrap_or_default();
                    reading.busy = Instant::now();
                    reading.published = Some((self.topics.published_to(self.topic, published), reading.busy));
                }
                () = sleep_until(reading.busy + QUIET), if is_finished => return None,
            }
        }
    }

    fn is_over(&self, reading: &Reading) -> bool {
        let Some((published, since)) = reading.published else { return false };
        let has_waited = reading.busy.elapsed() > QUIET || since.elapsed() > AFTERWARDS;
        has_waited || reading.order.lost(published) == 0
    }

    fn take(&self, frame: Frame, reading: &mut Reading) -> Option<Trouble> {
        let cursor = match frame {
            Frame::Open { cursor, .. } => {
                if let Some(opened) = reading.opened.take() {
                    // The channel has room for one value of each reader.
                    let _ = opened.try_send(());
                }
                cursor
            }
            Frame::Message(message) => {
                let Some((number, due)) = publisher::parse(&message.payload) else {
                    return Some(Trouble::Refused("another client publishes to these topics".into()));
                };
                self.measured.delivered(due);
                reading.heard.delivered += 1;
                reading.order.take(number);
                reading.busy = Instant::now();
                message.id
            }
            Frame::Gap(gap) => {
                reading.heard.gaps += 1;
                Some(gap.cursor)
            }
            Frame::Cursor(cursor) => Some(cursor),
            Frame::Closing { why, cursor, pause } => {
                reading.wish.start = cursor.map_or_else(|| reading.wish.start.clone(), Start::After);
                return Some(Trouble::Lost { why, pause });
            }
        };
        if let Some(cursor) = cursor {
            reading.wish.start = Start::After(cursor);
        }
        None
    }
}
