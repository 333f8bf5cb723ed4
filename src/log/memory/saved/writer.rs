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
    /// True once ids were to be reserved. From then on the file may be marked as opened.
    has_reserved: bool,
    /// True once no more ids are reserved, because the log is closed.
    is_shut: bool,
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
    ///
    /// `newest` is the newest id of the log. `reserved` is zero if the file is not marked as opened yet.
    pub fn start(owner: Owner, newest: Id, reserved: Id) -> io::Result<Arc<Self>> {
        let orders = Orders { has_reserved: reserved > Id::ZERO, ..Orders::default() };
        let writer = Arc::new(Self {
            orders: Mutex::new(orders),
            has_orders: Condvar::new(),
            status: watch::Sender::new(Status { reserved, ..Status::default() }),
            steps: AtomicU64::new(0),
        });
        let mut thread = Thread { owner, writer: writer.clone(), newest };
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

    /// Reserves ids up to `upto`. False if the log is closed: then it assigns no more ids.
    pub fn reserve(&self, upto: Id) -> bool {
        self.order(|orders| {
            if !orders.is_shut {
                orders.reserve = orders.reserve.max(Some(upto));
                orders.has_reserved = true;
            }
            !orders.is_shut
        })
    }

    /// Reserves no more ids. False if none were ever to be reserved: then the file is as this process has
    /// found it, and stays so.
    pub fn shut(&self) -> bool {
        self.order(|orders| {
            orders.is_shut = true;
            orders.reserve = None;
            orders.has_reserved
        })
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

    fn order<T>(&self, order: impl FnOnce(&mut Orders) -> T) -> T {
        let ordered = order(&mut self.orders());
        self.has_orders.notify_one();
        ordered
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
            // The file must cover the ids that were given. If it has a log, it stays as it is.
            let reserve = orders.reserve.take().filter(|_| self.status().has_begun());
            return close.or(reserve.map(Order::Reserve));
        }
        close.or_else(|| orders.reserve.take().map(Order::Reserve)).or_else(|| {
            orders.look = false;
            Some(Order::Look)
        })
    }

    /// Tries later, unless there is no later.
    fn retry(&self, upto: Id) {
        self.order(|orders| {
            if !orders.is_over && !orders.is_shut {
                orders.reserve = orders.reserve.max(Some(upto));
            }
        });
    }

    /// Notes that ids up to `upto` are reserved. True if the file could not be written before, and covers all
    /// given ids now.
    fn note_reserved(&self, upto: Id) -> bool {
        // Hold the orders. A publish orders first and then looks if the file can be written.
        let orders = self.orders();
        let covers_all = orders.reserve <= Some(upto);
        let mut works_again = false;
        self.status.send_modify(|status| {
            status.reserved = upto;
            works_again = covers_all && std::mem::take(&mut status.is_failing);
        });
        works_again
    }

    /// Notes that the place of the file can be used. True if it could not be used before. Once ids are to be
    /// reserved, only a write shows that the disk works.
    fn note_usable(&self) -> bool {
        let orders = self.orders();
        !orders.has_reserved && self.status.send_if_modified(|status| std::mem::take(&mut status.is_failing))
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
    /// The newest id of the log that was read.
    newest: Id,
}

impl Thread {
    fn work(&mut self) {
        while let Some(order) = self.writer.next() {
            match order {
                Order::Reserve(upto) => self.reserve(upto),
                Order::Look => self.look(),
                Order::Close(Close { snapshot, done }) => {
                    // If the caller has given up, the file is complete all the same.
                    let _ = done.send(self.close(&snapshot));
                }
            }
        }
    }

    fn reserve(&mut self, upto: Id) {
        let status = self.writer.status();
        if status.is_taken || status.reserved >= upto {
            return;
        }
        if let Err(failure) = self.owner.write_reserved(upto) {
            self.failed(&failure);
            // Try again, even if nothing is published meanwhile.
            self.writer.retry(upto);
            return self.writer.pause();
        }
        self.step();
        if self.writer.note_reserved(upto) {
            self.tell_that_it_works();
        }
    }

    fn look(&mut self) {
        let status = self.writer.status();
        if status.is_taken {
            return;
        }
        let checked = self.owner.place.check();
        if let Err(failure) = &checked {
            self.failed(failure);
        }
        let is_gone = self.owner.place.is_gone();
        if is_gone && checked.is_ok() && !status.is_failing {
            tracing::warn!(path = %self.owner.place.path().display(), "the state file was removed and is written again");
        }
        // Write until that works, even if nothing is published meanwhile. If the file is gone, nothing else
        // says which ids were given. A file with a log is not replaced before the first message.
        if (checked.is_err() && status.has_begun()) || is_gone {
            self.writer.reserve(Id::new(status.reserved.max(self.newest).get() + 1));
        } else if checked.is_ok() && self.writer.note_usable() {
            self.tell_that_it_works();
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

    fn tell_that_it_works(&self) {
        tracing::info!(path = %self.owner.place.path().display(), "the state file can be written again");
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
