//! The readers that wait for the watermark. Each is woken once: when its id has arrived.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::message::Id;

/// The watermark, and the readers that wait for it.
#[derive(Default)]
pub struct Arrivals {
    watermark: AtomicU64,
    // A std mutex: no await happens while it is held.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// How many readers have ever waited. The number tells apart readers that wait for the same id.
    count: u64,
    readers: BTreeMap<(Id, u64), oneshot::Sender<()>>,
}

/// The place of a reader that waits. Dropping it ends the wait.
struct Waiter<'a> {
    arrivals: &'a Arrivals,
    key: (Id, u64),
}

impl Arrivals {
    pub fn watermark(&self) -> Id {
        Id::new(self.watermark.load(Ordering::Acquire))
    }

    /// Sets the watermark. The caller sets it from one task at a time, and wakes the readers afterwards.
    pub fn set(&self, watermark: Id) {
        self.watermark.store(watermark.get(), Ordering::SeqCst);
    }

    /// Wakes the readers that wait for an id up to the watermark, and no others.
    pub fn wake(&self) {
        let watermark = self.watermark();
        let mut waiting = self.waiting();
        while let Some(first) = waiting.readers.first_entry()
            && first.key().0 <= watermark
        {
            // A reader that has given up needs no wake-up.
            let _ = first.remove().send(());
        }
    }

    /// Waits until the watermark reaches `id`.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    pub async fn arrived(&self, id: Id) {
        while self.watermark() < id {
            let (place, came) = self.wait(id);
            // Listen first, then look.
            if self.watermark() < id {
                let _ = came.await;
            }
            drop(place);
        }
    }

    fn wait(&self, id: Id) -> (Waiter<'_>, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.count += 1;
        let key = (id, waiting.count);
        waiting.readers.insert(key, sender);
        (Waiter { arrivals: self, key }, receiver)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.arrivals.waiting().readers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{Arc, atomic::AtomicUsize},
        task::{Context, Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_reader_is_woken_when_its_id_has_come_and_by_no_arrival_before() {
        let arrivals = Arrivals::default();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut arrived = pin!(arrivals.arrived(Id::new(100)));
        assert!(arrived.as_mut().poll(&mut cx).is_pending());
        for id in 1..=99 {
            arrivals.set(Id::new(id));
            arrivals.wake();
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        arrivals.set(Id::new(100));
        arrivals.wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(arrived.as_mut().poll(&mut cx).is_ready());
        assert!(arrivals.waiting().readers.is_empty());
    }

    /// A new generation may set the watermark back after the reader was woken and before it looks.
    #[test]
    fn a_reader_that_finds_the_watermark_set_back_waits_again() {
        let arrivals = Arrivals::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut arrived = pin!(arrivals.arrived(Id::new(5)));
        assert!(arrived.as_mut().poll(&mut cx).is_pending());
        arrivals.set(Id::new(5));
        arrivals.wake();
        arrivals.set(Id::new(3));
        assert!(arrived.as_mut().poll(&mut cx).is_pending());
        arrivals.set(Id::new(5));
        arrivals.wake();
        assert!(arrived.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_reader_that_gives_up_leaves_nothing_behind() {
        let arrivals = Arrivals::default();
        {
            let mut arrived = pin!(arrivals.arrived(Id::new(5)));
            assert!(arrived.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(arrivals.waiting().readers.len(), 1);
        }
        assert!(arrivals.waiting().readers.is_empty());
    }
}
