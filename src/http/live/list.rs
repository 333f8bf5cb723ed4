//! Pages of connections, in the order of their ids, from one replica or from all.

use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{ConnectionId, Reading, Table, command::Shown};
use crate::message::Pattern;

/// How many bytes of connections one replica puts into a page. The next page continues after them.
const MAX_BYTES: usize = 256 << 10;
/// How many connections are shown before other tasks may run. For each, its group may be locked, which waits while that
/// group writes.
const SHOWN_AT_ONCE: usize = 16;

/// Which connections to show.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub sub: Option<String>,
    /// Only connections that are subscribed to exactly this topic or pattern.
    pub topic: Option<Pattern>,
    pub limit: usize,
    pub after: Option<ConnectionId>,
}

/// Some connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Listed {
    pub connections: Vec<Shown>,
    /// True if there may be more of them, after the last one.
    pub is_cut: bool,
}

/// A page of the connections of this process.
pub async fn list(table: &Table, wanted: &Wanted) -> Listed {
    let (mut page, mut bytes, mut after) = (Listed::default(), 0, wanted.after);
    while let Some(last) = page.show_some(table, wanted, after, &mut bytes) {
        after = Some(last);
        // Let other tasks run. The list keeps no connection alive meanwhile.
        yield_now().await;
    }
    page
}

impl Listed {
    /// Adds some of the next connections, and returns the last one that was looked at. `None` once the page is whole.
    fn show_some(
        &mut self,
        table: &Table,
        wanted: &Wanted,
        after: Option<ConnectionId>,
        bytes: &mut usize,
    ) -> Option<ConnectionId> {
        let enough = self.connections.len() + SHOWN_AT_ONCE;
        let step = table.step(after);
        for (id, reading) in step.iter().filter(|(_, reading)| wanted.takes(reading)) {
            self.is_cut = self.connections.len() >= wanted.limit || *bytes >= MAX_BYTES;
            if self.is_cut {
                return None;
            }
            let shown = Shown::of(*id, reading);
            *bytes += shown.bytes();
            self.connections.push(shown);
            if self.connections.len() == enough {
                return Some(*id);
            }
        }
        step.last().map(|(last, _)| *last)
    }
}

impl Wanted {
    fn takes(&self, reading: &Reading) -> bool {
        let is_of_subject = self.sub.is_none() || reading.about().sub.as_deref() == self.sub.as_deref();
        is_of_subject
            && self.topic.as_ref().is_none_or(|topic| {
                let state = reading.lock();
                state.reads(topic) || state.joins(topic)
            })
    }
}

/// The pages of several replicas as one page of up to `limit`.
pub fn merge(pages: Vec<Listed>, limit: usize) -> Listed {
    // After the last connection of a page that was cut, others may be missing.
    let cut = |page: &Listed| page.connections.last().filter(|_| page.is_cut).map(|last| last.connection);
    let upto = pages.iter().filter_map(cut).min();
    let mut connections: Vec<_> = pages.into_iter().flat_map(|page| page.connections).collect();
    connections.sort_by_key(|shown| shown.connection);
    let found = connections.len();
    connections.retain(|shown| upto.is_none_or(|upto| shown.connection <= upto));
    connections.truncate(limit);
    Listed { is_cut: upto.is_some() || connections.len() < found, connections }
}
