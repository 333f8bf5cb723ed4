//! The one thread that writes a state file. A disk that stalls holds up this thread and nothing else.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{super::state::Snapshot, content::Owner, place::Failure};
use crate::message::Id;

/// The pause after a write that failed.
pub const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The hand of this thread: what it is to do, and how that went.
pub struct Writer {
    // A std mutex: it is held only to leave or take an order, never while the file is written.
    orders: Mutex<Orders>,
    has_orders: Condvar,
    status: watch::Sender<Status>,
    /// How many steps of writes were done.
    steps: AtomicU64,
}

/// The orders for the thread. A newer one of a kind replaces the older one, so that they cannot pile up.
#[derive(Default)]
struct Orders {
    /// Reserve ids up to this one.
    reserve: Option<Id>,
    /// Look if the file still belongs to this process.
    look: bool,
    close: Option<Close>,
    is_over: bool,
}

struct Close {
    snapshot: Arc<Snapshot>,
    done: oneshot::Sender<Result<(), Failure>>,
}

enum Order {
    Reserve(Id),
    Look,
    Close(Close),
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// Ids up to this one may be assigned. Zero until the file has been marked as opened.
    pub reserved: Id,
    /// True while the file cannot be written, or the disk does not answer.
    pub is_failing: bool,
    /// True once the file belongs to another process.
    pub is_taken: bool,
}

impl Status {
    pub fn has_begun(&self) -> bool {
        self.reserved > Id::ZERO
    }
}

impl Writer {
    /// Starts the thread. It ends, and releases the file, some time after [`end`](Self::end).
    pub fn start(owner: Owner, reserved: Id) -> io::Result<Arc<Self>> {
        let writer = Arc::new(Self {
            orders: Mutex::default(),
            has_orders: Condvar::new(),
            status: watch::Sender::new(Status { reserved, ..Status::default() }),
            steps: AtomicU64::new(0),
        });
        let mut thread = Thread { owner, writer: writer.clone(), is_closing: false };
        std::thread::Builder::new().name("state-file".into()).spawn(move || thread.work())?;
        Ok(writer)
    }

    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    pub fn changes(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Notes that `next` could not be reserved. True if it was not known that the file cannot be written.
    pub fn note_failing(&self, next: Id) -> bool {
        self.status.send_if_modified(|status| {
            status.reserved < next && !std::mem::replace(&mut status.is_failing, true)
        })
    }

    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub fn reserve(&self, upto: Id) {
        self.order(|orders| orders.reserve = orders.reserve.max(Some(upto)));
    }

    pub fn look(&self) {
        self.order(|orders| orders.look = true);
    }

    pub fn close(&self, snapshot: Arc<Snapshot>) -> oneshot::Receiver<Result<(), Failure>> {
        let (done, result) = oneshot::channel();
        self.order(|orders| orders.close = Some(Close { snapshot, done }));
        result
    }

    pub fn end(&self) {
        self.order(|orders| orders.is_over = true);
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut self.orders());
        self.has_orders.notify_one();
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next order. `None` once there will be none.
    fn next(&self) -> Option<Order> {
        let is_idle = |orders: &mut Orders| {
            orders.reserve.is_none() && !orders.look && orders.close.is_none() && !orders.is_over
        };
        let mut orders =
            self.has_orders.wait_while(self.orders(), is_idle).unwrap_or_else(PoisonError::into_inner);
        let close = orders.close.take().map(Order::Close);
        if orders.is_over {
            return close;
        }
        close.or_else(|| orders.reserve.take().map(Order::Reserve)).or_else(|| {
            orders.look = false;
            Some(Order::Look)
        })
    }

    /// Waits before the next attempt, but not if the log is to be closed.
    fn pause(&self) {
        let is_to_wait = |orders: &mut Orders| orders.close.is_none() && !orders.is_over;
        drop(self.has_orders.wait_timeout_while(self.orders(), TRY_AGAIN, is_to_wait));
    }
}

struct Thread {
    owner: Owner,
    writer: Arc<Writer>,
    /// True once the log was closed. An order from before that must not replace the file again.
    is_closing: bool,
}

impl Thread {
    fn work(&mut self) {
        while let Some(order) = self.writer.next() {
            match order {
                Order::Reserve(upto) => self.reserve(upto),
                Order::Look => self.look(),
                Order::Close(Close { snapshot, done }) => {
                    self.is_closing = true;
                    // If the caller has given up, the file is complete all the same.
                    let _ = done.send(self.close(&snapshot));
                }
            }
        }
    }

    fn reserve(&mut self, upto: Id) {
        let status = self.writer.status();
        if self.is_closing || status.is_taken || status.reserved >= upto {
            return;
        }
        if let Err(failure) = self.owner.write_reserved(upto) {
            self.failed(&failure);
            // Try again, even if nothing is published meanwhile.
            self.writer.reserve(upto);
            return self.writer.pause();
        }
        self.step();
        let mut was_failing = false;
        self.writer.status.send_modify(|status| {
            status.reserved = upto;
            was_failing = std::mem::take(&mut status.is_failing);
        });
        if was_failing {
            tracing::info!(path = %self.owner.place.path().display(), "the state file can be written again");
        }
    }

    fn look(&mut self) {
        let status = self.writer.status();
        // Before the first message nothing can be lost, and the first message finds out by itself.
        if let Err(failure) = self.owner.place.check()
            && status.has_begun()
        {
            self.failed(&failure);
            // Try to write until that works again, even if nothing is published meanwhile.
            self.writer.reserve(Id::new(status.reserved.get() + 1));
        }
    }

    fn close(&mut self, snapshot: &Snapshot) -> Result<(), Failure> {
        let written = self.owner.write_closed(snapshot, &self.writer.steps);
        if let Err(Failure::Taken) = written {
            self.failed(&Failure::Taken);
        }
        self.step();
        written
    }

    fn step(&self) {
        self.writer.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, failure: &Failure) {
        let path = self.owner.place.path().display();
        match failure {
            Failure::Taken => {
                let is_new = self.writer.status.send_if_modified(|status| {
                    status.is_failing = true;
                    !std::mem::replace(&mut status.is_taken, true)
                });
                if is_new {
                    tracing::error!(%path, "another server uses the state file: this server stores nothing more and does not write the file; end one of them");
                }
            }
            Failure::Disk(error) => {
                let has_begun = self.writer.status().has_begun();
                if !self.writer.note_failing(Id::MAX) {
                    return;
                }
                if has_begun {
                    tracing::error!(%path, %error, "the state file cannot be written: publishing goes on, and the server tries again");
                } else {
                    tracing::error!(%path, %error, "the state file cannot be marked as opened: nothing is stored until it can, and the server tries again");
                }
            }
        }
    }
}
