//! Polls a part of a task only if that part was woken.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Keeps a task that was woken for one of its parts from polling the others.
///
/// A connection wakes for each of its messages, and then its timers and its incoming side rarely have
/// anything to do. Polling them costs more than writing the message.
pub struct Gate {
    part: Arc<GatePart>,
    /// The task's waker that the part has.
    task: Option<Waker>,
}

struct GatePart {
    is_woken: AtomicBool,
    /// Set when the task's waker changes, and never taken out: a late wake must not leave the next one
    /// without a task.
    task: Mutex<Option<Waker>>,
}

impl Wake for GatePart {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Gate {
    /// A gate that is open for the first poll.
    pub fn new() -> Self {
        let part = Arc::new(GatePart { is_woken: AtomicBool::new(true), task: Mutex::default() });
        Self { part, task: None }
    }

    /// Polls the part if it was woken since it was last pending.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            let task = Some(cx.waker().clone());
            self.part.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&task);
            self.task = task;
        } else if !self.part.is_woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // A wake after this point wakes the task too. This is a swap, so that the code below sees everything
        // that was done before a wake that is forgotten here.
        self.part.is_woken.swap(false, Ordering::AcqRel);
        let waker = self.part.clone().into();
        let result = poll(&mut Context::from_waker(&waker));
        if result.is_ready() {
            self.part.is_woken.store(true, Ordering::Release);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once. True if the part was polled.
    async fn poll_once(gate: &mut Gate, part: &mut Option<Waker>, result: Poll<()>) -> bool {
        let mut polled = false;
        std::future::poll_fn(|cx| {
            let _ = gate.poll(cx, |cx| {
                polled = true;
                *part = Some(cx.waker().clone());
                result
            });
            Poll::Ready(())
        })
        .await;
        polled
    }

    #[tokio::test]
    async fn a_part_is_polled_at_first_and_then_when_it_was_woken_or_had_more() {
        let (mut gate, mut part) = (Gate::new(), None);
        assert!(poll_once(&mut gate, &mut part, Poll::Ready(())).await);
        assert!(poll_once(&mut gate, &mut part, Poll::Pending).await);
        assert!(!poll_once(&mut gate, &mut part, Poll::Pending).await);
        part.clone().expect("a waker").wake();
        assert!(poll_once(&mut gate, &mut part, Poll::Pending).await);
        assert!(!poll_once(&mut gate, &mut part, Poll::Pending).await);
    }
    /// The task may have run between the mark and the call of a wake; the next wake must still reach it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost_however_late_another_one_calls() {
        use std::sync::atomic::AtomicUsize;

        const WAKES: usize = 20_000;
        let (told, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut part = Some(futures_util::task::noop_waker());
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        let waking = std::thread::spawn({
            let (told, seen) = (told.clone(), seen.clone());
            move || {
                let waker = receiver.recv().expect("the part's waker");
                for number in 1..=WAKES {
                    told.store(number, Ordering::Release);
                    waker.wake_by_ref();
                    while number % 2 == 0 && seen.load(Ordering::Acquire) < number {
                        std::hint::spin_loop();
                    }
                }
            }
        });
        let mut gate = Gate::new();
        let all = std::future::poll_fn(|cx| {
            gate.poll(cx, |cx| {
                if part.take().is_some() {
                    sender.send(cx.waker().clone()).expect("the thread listens");
                }
                let number = told.load(Ordering::Acquire);
                seen.store(number, Ordering::Release);
                if number == WAKES { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("every wake arrives");
        waking.join().expect("the thread ends");
    }
}
