//! How many subscriptions are served, and the times that all of them keep.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::Config,
    shutdown::{self, Shutdown},
};

/// The subscriptions of one server.
pub struct Connections {
    free: Arc<Semaphore>,
    max: usize,
    heartbeat: Duration,
    drain_grace: Duration,
    shutdown: Shutdown,
}

impl Connections {
    pub fn new(config: &Config, shutdown: Shutdown) -> Self {
        let max = config.max_connections.min(Semaphore::MAX_PERMITS);
        let Config { heartbeat, drain_grace, .. } = *config;
        Self { free: Arc::new(Semaphore::new(max)), max, heartbeat, drain_grace, shutdown }
    }

    /// How many are served now.
    pub fn count(&self) -> usize {
        self.max - self.free.available_permits()
    }

    /// A place for one more, until this is dropped. `None` if all places are taken.
    pub fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// A connection that was quiet for this long is sent a frame.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The time over which the connections leave when the server drains.
    pub fn drain_spread(&self) -> Duration {
        shutdown::spread(self.count(), self.drain_grace)
    }
}
