//! When to leave: first a drain with a bounded grace, then the end.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells the server to end. Cheap to clone; every clone speaks for all.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to leave, within the grace.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends at once, whoever is still here.
    pub fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the drain begins.
    ///
    /// # Cancel safety
    /// Safe to drop and to ask again.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.draining.clone().cancelled_owned()
    }

    /// Resolves when everybody has to be gone.
    ///
    /// # Cancel safety
    /// Safe to drop and to ask again.
    pub fn ended(&self) -> WaitForCancellationFutureOwned {
        self.ended.clone().cancelled_owned()
    }
}

/// How long each of `connections` may wait before it leaves, so that they do not arrive elsewhere all
/// at once: a millisecond for each, and never more than half of the grace.
pub fn spread(connections: usize, grace: Duration) -> Duration {
    Duration::from_millis(connections as u64).min(grace / 2)
}
