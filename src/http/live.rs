//! Live connections: found by their ids, and changed by requests while they read.
//!
//! A request becomes a [`Command`]. The replica that holds the connection does it, and the connection's own task is
//! not asked: what a connection reads is shared between its task and the commands.

mod across;
mod changes;
mod command;
mod connection_id;
mod list;
mod reading;
mod routes;
mod table;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use time::OffsetDateTime;
use tokio::time::Instant;

pub use self::{
    across::{ask_others, ask_these, count_all},
    command::{Command, replica_name},
    connection_id::ConnectionId,
    reading::{About, Event, Reading, State, TakenOver},
    routes::{connection, connections, managed, topic_of},
    table::{Held, Table},
};
use super::{App, problem::Code, shares::Shares};
use crate::{
    broker::Broker,
    log::{Answering, Replicas},
};

/// How long a command may take. One that is met later is dropped, so that it undoes no newer one.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The live connections of this replica, and the way to those of the others.
pub struct Live {
    table: Arc<Table>,
    /// Held polls, which only the end of their subject finds.
    polls: Arc<Table>,
    replicas: Option<Arc<Replicas>>,
    /// The commands of clients that wait for other replicas.
    waiting: Arc<Shares>,
    /// The name of the only replica. Replicas over one store have their names from there.
    name: u64,
}

impl Live {
    pub fn new(broker: &Broker) -> Self {
        Self {
            table: Arc::default(),
            polls: Arc::default(),
            replicas: broker.replicas(),
            waiting: Shares::leaving_as_much(Replicas::MAX_WAITING),
            name: rand::random(),
        }
    }

    /// The name of this replica. Each connection's id begins with the name of the replica that holds it.
    pub fn name(&self) -> u64 {
        self.replicas.as_ref().map_or(self.name, |replicas| replicas.name())
    }

    /// An id for a connection that begins now.
    pub fn new_id(&self) -> ConnectionId {
        ConnectionId::of(self.name(), rand::random())
    }

    /// Keeps a connection in the table until the result is dropped.
    pub fn hold(&self, id: ConnectionId, reading: Reading) -> Held {
        let held = self.table.hold(id, reading);
        // This replica may have taken a new name while the connection began. The old name counts as gone.
        if id.replica() != self.name() {
            self.table.end(id, Code::Draining);
        }
        held
    }

    /// Keeps a poll until the result is dropped.
    pub fn hold_poll(&self, id: ConnectionId, reading: Reading) -> Held {
        self.polls.hold(id, reading)
    }

    /// Ends the connections of a subject, or those that began before this time, and returns how many these were. Its polls
    /// are answered.
    pub fn end_subject(&self, subject: &str, before: Option<OffsetDateTime>) -> usize {
        let is_meant = |_, reading: &Reading| {
            let about = reading.about();
            about.sub.as_deref() == Some(subject) && before.is_none_or(|before| about.since < before)
        };
        self.polls.end_all(is_meant, Code::Disconnected);
        self.table.end_all(is_meant, Code::Disconnected)
    }

    /// Ends the connections of a subject whose tokens are refused, which the time of their issue says.
    pub fn end_refused_of(&self, subject: &str, is_refused: impl Fn(Option<u64>) -> bool) {
        let is_meant = |_, reading: &Reading| {
            reading.about().sub.as_deref() == Some(subject) && reading.issued().is_some_and(&is_refused)
        };
        self.polls.end_all(is_meant, Code::Forbidden);
        self.table.end_all(is_meant, Code::Forbidden);
    }

    /// Ends the connections of all subjects whose tokens are refused. Other tasks run meanwhile.
    pub async fn end_refused(&self, is_refused: impl Fn(&str, Option<u64>) -> bool) {
        let is_meant = |reading: &Reading| {
            let Some(subject) = &reading.about().sub else { return false };
            reading.issued().is_some_and(|issued| is_refused(subject, issued))
        };
        self.polls.end_all_slowly(is_meant, Code::Forbidden).await;
        self.table.end_all_slowly(is_meant, Code::Forbidden).await;
    }
}

impl App {
    /// Takes commands from the other replicas, if there are others.
    pub(super) fn answer_replicas(self: &Arc<Self>) {
        if let Some(replicas) = &self.live.replicas {
            replicas.answer_by(Arc::new(Answers(Arc::downgrade(self))));
        }
    }

    /// Tells the other replicas that this one is gone.
    pub(super) async fn leave_replicas(&self) {
        if let Some(replicas) = &self.live.replicas {
            replicas.leave().await;
        }
    }
}

/// Does the commands of other replicas.
struct Answers(Weak<App>);

impl Answering for Answers {
    fn answer(&self, question: Bytes, until: Instant) -> BoxFuture<'static, Option<Vec<u8>>> {
        let app = self.0.upgrade();
        Box::pin(async move { across::answer(&*app?, &question, until).await })
    }

    fn counted_gone(&self, name: u64) -> usize {
        let Some(app) = self.0.upgrade() else { return 0 };
        app.live.table.end_all(|id, _| id.replica() == name, Code::Draining)
    }
}
