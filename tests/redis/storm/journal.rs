//! Everything that the clients have done and seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::world::number_of;

#[derive(Default)]
pub struct Journal {
    /// By the numbers that are their payloads.
    pub messages: Vec<Published>,
    /// The connections whose topics are changed by their ids.
    pub connections: Vec<Shared>,
    /// The readers of lists: the connections of each, one after the other.
    pub readers: BTreeMap<u64, Vec<Shared>>,
    /// The changes of connections and of lists, of each in their order.
    pub changes: Vec<Change>,
    /// Connections that lived no longer, by their ids.
    pub gone: Vec<String>,
    /// Ends of connections and of subjects.
    pub ends: Vec<End>,
    /// Only the ends that were asked from then on prove anything.
    pub ends_count_from: u64,
    /// When Redis lost everything.
    pub losses: Vec<u64>,
    /// How many connections hold a subject in a topic now.
    pub held: BTreeMap<(String, String), u64>,
    /// Each time that a connection held a subject in a topic.
    pub holds: Vec<Hold>,
    /// The members of each topic, by the changes that each watcher was told.
    pub watched: BTreeMap<(u64, String), Vec<String>>,
    pub leaves: Vec<Leave>,
    /// The faults of replicas, each with its beginning and its end in microseconds.
    pub faults: Vec<(usize, u64, u64)>,
}

pub struct Published {
    pub topic: String,
    pub asked: u64,
    /// When that was answered, and the id.
    pub stored: Option<(u64, u64)>,
}

pub struct Change {
    /// A connection or a subject.
    pub of: String,
    pub topic: String,
    pub is_added: bool,
    pub asked: u64,
    /// [`NEVER`] if it was not answered: it may be done all the same.
    pub answered: u64,
}

pub const NEVER: u64 = u64::MAX;

pub struct End {
    pub of: String,
    pub asked: u64,
    pub answered: u64,
}

pub struct Hold {
    pub topic: String,
    pub sub: String,
    pub replica: usize,
    pub opened: u64,
    pub closed: u64,
}

/// A leave that a watcher was told.
pub struct Leave {
    pub topic: String,
    pub sub: String,
    pub id: u64,
    pub at: u64,
    pub at_us: u64,
}

pub type Shared = Arc<Mutex<Session>>;

/// One connection.
#[derive(Debug)]
pub struct Session {
    pub sub: String,
    pub connection: String,
    pub replica: usize,
    /// When it was open, and its cursor then.
    pub opened: u64,
    pub from: u64,
    pub got: Vec<Got>,
    pub is_over: bool,
}

#[derive(Debug)]
pub struct Got {
    pub at: u64,
    /// Everything up to here was given, this too.
    pub cursor: u64,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Message { number: usize },
    Gap { topic: String, after: u64, next: Option<u64>, reason: String },
    Told,
}

impl Got {
    /// `None` of a frame that says nothing.
    pub fn of(at: u64, frame: &Value) -> Option<Self> {
        let text = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
        let (cursor, what) = match frame["type"].as_str() {
            Some("message") => {
                let number = frame["data"].as_u64().or_else(|| text("data").parse().ok())?;
                // A replayed message does not move the cursor.
                let is_replayed = frame["replay"] == true;
                (
                    if is_replayed { 0 } else { number_of(&frame["id"]) },
                    What::Message { number: number as usize },
                )
            }
            Some("gap") => {
                let next = frame["next"].is_string().then(|| number_of(&frame["next"]));
                let (topic, reason, after) = (text("topic"), text("reason"), number_of(&frame["after"]));
                (number_of(&frame["cursor"]), What::Gap { topic, after, next, reason })
            }
            Some("subscribed" | "unsubscribed") => (number_of(&frame["cursor"]), What::Told),
            _ => return None,
        };
        Some(Self { at, cursor, what })
    }
}

impl Session {
    pub fn cursor(&self) -> u64 {
        self.got.iter().map(|got| got.cursor).fold(self.from, u64::max)
    }
}

impl Journal {
    /// The connections and readers that live and have not read so far.
    pub fn behind(&self, last: u64) -> Vec<String> {
        let is_behind = |session: &&Shared| {
            let session = session.lock().expect("no actor panics");
            session.cursor() < last && !session.is_over
        };
        let connections = self.connections.iter().filter(is_behind);
        let connections = connections.map(|one| one.lock().expect("no actor panics").connection.clone());
        let is_slow = |sessions: &Vec<Shared>| {
            sessions.last().is_none_or(|one| one.lock().expect("no actor panics").cursor() < last)
        };
        let readers = self.readers.iter().filter(|(_, sessions)| is_slow(sessions));
        connections.chain(readers.map(|(number, _)| format!("reader {number}"))).collect()
    }
}
