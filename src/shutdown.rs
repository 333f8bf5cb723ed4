//! The end of the server: first a drain with a bounded grace, then the end.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Tells the server to end. It is cheap to clone, and every clone has the same effect.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: CancellationToken,
    ended: CancellationToken,
}

impl Shutdown {
    /// A server's end that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// The end of one connection, which comes with the server's or before it.
    pub fn child(&self) -> Self {
        Self { draining: self.draining.child_token(), ended: self.ended.child_token() }
    }

    /// Asks every connection to leave within the grace.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends at once, also if connections are still open.
    pub fn end(&self) {
        self.draining.cancel();
        self.ended.cancel();
    }

    /// True once the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the drain begins.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.draining.clone().cancelled_owned()
    }

    /// Resolves when every connection must be gone.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again.
    pub fn ended(&self) -> WaitForCancellationFutureOwned {
        self.ended.clone().cancelled_owned()
    }
}

/// A stage of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Every connection is asked to leave.
    Draining,
    /// Every connection must be gone.
    Ended,
}

/// Tells one task about each [`Stage`], once.
#[derive(Debug)]
pub struct Ending {
    next: Pin<Box<WaitForCancellationFutureOwned>>,
    is_draining: bool,
}

impl Ending {
    pub fn new(shutdown: &Shutdown) -> Self {
        Self { next: Box::pin(shutdown.draining()), is_draining: false }
    }

    /// Ready when the next stage of the same `shutdown` begins.
    pub fn poll(&mut self, shutdown: &Shutdown, cx: &mut Context<'_>) -> Poll<Stage> {
        if self.next.poll_unpin(cx).is_pending() {
            return Poll::Pending;
        }
        if self.is_draining {
            return Poll::Ready(Stage::Ended);
        }
        self.is_draining = true;
        self.next.set(shutdown.ended());
        Poll::Ready(Stage::Draining)
    }
}

/// The time over which `connections` leave, so that they do not all arrive elsewhere at once: a millisecond
/// for each, and at most half of the grace.
pub fn spread(connections: usize, grace: Duration) -> Duration {
    Duration::from_millis(connections as u64).min(grace / 2)
}
