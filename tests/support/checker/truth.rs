//! The messages that were really published. Everything else is compared with them.

use std::{collections::BTreeMap, sync::Mutex};

use tokio::sync::watch;

use crate::support::frame::{Body, Cursor};

pub const TOPICS: [&str; 8] = ["a.one", "a.two", "a.b.deep", "b.one", "b.two", "c", "d.größe", "e/slash"];

/// The number of messages of each topic.
pub type Counts = BTreeMap<&'static str, u64>;

#[derive(Debug, Clone)]
pub struct Published {
    pub topic: &'static str,
    pub event: Option<String>,
    pub body: Body,
}

pub struct Truth {
    ledger: Mutex<Ledger>,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Ledger {
    /// Counted before they are sent: nothing beyond these can have been stored.
    started: Counts,
    /// Counted when the server has acknowledged them: none of these may be lost.
    acknowledged: BTreeMap<Cursor, Published>,
}

#[derive(Default)]
struct Progress {
    acknowledged: u64,
    is_closed: bool,
}

impl Truth {
    pub fn new() -> Self {
        Self { ledger: Mutex::default(), progress: watch::Sender::default() }
    }

    /// Announces a publication and gives its number within the topic.
    pub fn start(&self, topic: &'static str) -> u64 {
        let mut ledger = self.ledger.lock().expect("no panic while it is held");
        let count = ledger.started.entry(topic).or_default();
        *count += 1;
        *count
    }

    pub fn acknowledge(&self, id: Cursor, published: Published) -> Result<(), String> {
        let mut ledger = self.ledger.lock().expect("no panic while it is held");
        if let Some(twin) = ledger.acknowledged.insert(id, published.clone()) {
            return Err(format!("the id {id} was given twice: {twin:?} and {published:?}"));
        }
        drop(ledger);
        self.progress.send_modify(|progress| progress.acknowledged += 1);
        Ok(())
    }

    pub fn close(&self) {
        self.progress.send_modify(|progress| progress.is_closed = true);
    }

    pub fn started(&self) -> Counts {
        self.ledger.lock().expect("no panic while it is held").started.clone()
    }

    pub fn acknowledged(&self) -> u64 {
        self.progress.borrow().acknowledged
    }

    /// Waits until this many messages are acknowledged, or until there will be no more.
    pub async fn reaches(&self, count: u64) {
        let mut progress = self.progress.subscribe();
        let reached = |progress: &Progress| progress.is_closed || progress.acknowledged >= count;
        progress.wait_for(reached).await.expect("the sender is in self");
    }

    pub async fn grows_by(&self, count: u64) {
        self.reaches(self.acknowledged() + count).await;
    }

    pub fn has_closed(&self) -> bool {
        self.progress.borrow().is_closed
    }

    pub async fn is_closed(&self) {
        self.reaches(u64::MAX).await;
    }

    /// The id of the newest acknowledged message that `filter` matches; 0 if there is none.
    pub fn newest(&self, filter: &str) -> Cursor {
        let ledger = self.ledger.lock().expect("no panic while it is held");
        let mut newest_first = ledger.acknowledged.iter().rev();
        newest_first.find(|(_, published)| matches(filter, published.topic)).map_or(0, |(id, _)| *id)
    }

    pub fn all(&self) -> Vec<(Cursor, Published)> {
        let ledger = self.ledger.lock().expect("no panic while it is held");
        ledger.acknowledged.iter().map(|(id, published)| (*id, published.clone())).collect()
    }
}

/// True if a topic or pattern covers a topic: `*` is one segment, `**` at the end one or more.
pub fn matches(filter: &str, topic: &str) -> bool {
    let mut segments = topic.split('.');
    for wanted in filter.split('.') {
        match (wanted, segments.next()) {
            (_, None) => return false,
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (name, Some(segment)) if name == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}
