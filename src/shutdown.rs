//! When to leave: first a drain with a bounded grace, then the end.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
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

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Everybody is asked to leave.
    Draining,
    /// Everybody has to be gone.
    Ended,
}

/// Tells one task of each [`Stage`], once.
#[derive(Debug)]
pub struct Ending {
    shutdown: Shutdown,
    next: Pin<Box<WaitForCancellationFutureOwned>>,
    is_draining: bool,
}

impl Ending {
    pub fn new(shutdown: Shutdown) -> Self {
        Self { next: Box::pin(shutdown.draining()), shutdown, is_draining: false }
    }

    /// Ready when the end has come further.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stage> {
        if self.next.poll_unpin(cx).is_pending() {
            return Poll::Pending;
        }
        if self.is_draining {
            return Poll::Ready(Stage::Ended);
        }
        self.is_draining = true;
        self.next.set(self.shutdown.ended());
        Poll::Ready(Stage::Draining)
    }
}

/// How long each of `connections` may wait before it leaves, so that they do not arrive elsewhere all
/// at once: a millisecond for each, and never more than half of the grace.
pub fn spread(connections: usize, grace: Duration) -> Duration {
    Duration::from_millis(connections as u64).min(grace / 2)
}
