//! The clock of a log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::message::Id;

/// Tells the time to a log. The caller passes it in, so that a test can set the time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The clock of this machine.
    #[default]
    System,
    /// A clock that stands still, in microseconds since the Unix epoch. Its clones show the same time.
    Set(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still at the time of this machine.
    pub fn stopped() -> Self {
        Self::Set(Arc::new(Id::now().get().into()))
    }

    /// The id that a message published now would have.
    pub fn now(&self) -> Id {
        match self {
            Self::System => Id::now(),
            Self::Set(micros) => Id::new(micros.load(Ordering::Acquire)),
        }
    }

    /// Sets a clock that stands still to `time`. Does nothing to the clock of the machine.
    pub fn set(&self, time: Id) {
        if let Self::Set(micros) = self {
            micros.store(time.get(), Ordering::Release);
        }
    }

    /// Moves a stopped clock forward.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().plus(by));
    }
}
