//! The table of the live connections of this process, by their ids.

use std::{
    collections::BTreeMap,
    ops::{Bound, Deref},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::yield_now;

use super::{ConnectionId, Reading};
use crate::http::{metrics::Permit, problem::Code};

/// How many connections are taken out at once, so that a walk over all of them holds the lock for a short time.
const STEP: usize = 256;

/// The connections in the order of their ids.
#[derive(Default)]
pub struct Table {
    // A std mutex: no await happens while it is held.
    connections: Mutex<BTreeMap<ConnectionId, Arc<Reading>>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ConnectionId, Arc<Reading>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection here until the result is dropped.
    pub fn hold(self: &Arc<Self>, id: ConnectionId, reading: Reading) -> Held {
        let reading = Arc::new(reading);
        self.lock().insert(id, reading.clone());
        Held { reading, place: Place { table: self.clone(), id } }
    }

    pub fn find(&self, id: ConnectionId) -> Option<Arc<Reading>> {
        self.lock().get(&id).cloned()
    }

    /// Ends a connection, and forgets it at once. False if it is not here.
    pub fn end(&self, id: ConnectionId, code: Code) -> bool {
        let ended = self.lock().remove(&id);
        ended.inspect(|reading| reading.end(code)).is_some()
    }

    /// The next connections after this id, in order. It is empty if there are no more.
    pub fn step(&self, after: Option<ConnectionId>) -> Vec<(ConnectionId, Arc<Reading>)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let connections = self.lock();
        let step = connections.range((after, Bound::Unbounded)).take(STEP);
        step.map(|(id, reading)| (*id, reading.clone())).collect()
    }

    /// Ends every such connection, and returns how many these were.
    pub fn end_all(&self, is_meant: impl Fn(ConnectionId, &Reading) -> bool, code: Code) -> usize {
        let (mut ended, mut after) = (0, None);
        while let Some((last, count)) = self.end_step(after, &is_meant, code) {
            (after, ended) = (Some(last), ended + count);
        }
        ended
    }

    /// The same, while other tasks run in between: it may take longer to see who is meant.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves leaves some of them.
    pub async fn end_all_slowly(&self, is_meant: impl Fn(&Reading) -> bool, code: Code) {
        let mut after = None;
        while let Some((last, _)) = self.end_step(after, &|_, reading| is_meant(reading), code) {
            after = Some(last);
            yield_now().await;
        }
    }

    /// Ends those of the next connections, and returns the last id that was looked at, and how many ended.
    fn end_step(
        &self,
        after: Option<ConnectionId>,
        is_meant: &impl Fn(ConnectionId, &Reading) -> bool,
        code: Code,
    ) -> Option<(ConnectionId, usize)> {
        let step = self.step(after);
        let (last, _) = step.last()?;
        let ended = step.iter().filter(|(id, reading)| is_meant(*id, reading) && self.end(*id, code));
        Some((*last, ended.count()))
    }
}

/// A connection that its task reads. Dropping this removes it from the table.
pub struct Held {
    reading: Arc<Reading>,
    place: Place,
}

/// A place in a table. Dropping this clears it.
struct Place {
    table: Arc<Table>,
    id: ConnectionId,
}

impl Held {
    /// Ends the reading of a poll, and keeps its permit. There is none while a request looks at the poll.
    pub fn into_permit(self) -> Option<Permit> {
        let Self { reading, place } = self;
        drop(place);
        Arc::into_inner(reading).map(Reading::into_permit)
    }

    /// Leaves the table before this is dropped: commands find no connection any more, and the subject is present here no
    /// longer.
    pub fn leave(&self) {
        self.place.clear();
        // A command that ended the connection has taken it out of the table already.
        self.reading.close();
    }
}

impl Place {
    fn clear(&self) {
        let left = self.table.lock().remove(&self.id);
        // One that was ended is no longer here.
        left.iter().for_each(|reading| reading.close());
    }
}

impl Deref for Held {
    type Target = Reading;

    fn deref(&self) -> &Reading {
        &self.reading
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}
