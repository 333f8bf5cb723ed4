//! A part of a task that is polled only when it was woken itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;

/// Keeps a task that is woken for one of its parts from polling the others.
///
/// A connection is woken for each message that it is to be given, and its timers and its incoming side
/// have rarely anything to say then. To ask them costs more than to write the message.
pub struct Gate {
    /// The waker of this part.
    waker: Waker,
    part: Arc<Part>,
    /// The waker of the task when it was last told to the part.
    task: Option<Waker>,
}

struct Part {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Part {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Gate {
    /// A gate that is open for the first poll.
    pub fn new() -> Self {
        let part = Arc::new(Part { is_woken: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: part.clone().into(), part, task: None }
    }

    /// Polls the part if it was woken since it was last pending.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let is_known = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if is_known && !self.part.is_woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Listen first, then look: who wakes the part after this wakes the task.
        self.part.task.register(cx.waker());
        if !is_known {
            self.task = Some(cx.waker().clone());
        }
        self.part.is_woken.store(false, Ordering::Release);
        let result = poll(&mut Context::from_waker(&self.waker));
        if result.is_ready() {
            self.part.is_woken.store(true, Ordering::Release);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once, and says whether the part was polled.
    async fn is_polled(gate: &mut Gate, part: &mut Option<Waker>, result: Poll<()>) -> bool {
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
        assert!(is_polled(&mut gate, &mut part, Poll::Ready(())).await);
        assert!(is_polled(&mut gate, &mut part, Poll::Pending).await);
        assert!(!is_polled(&mut gate, &mut part, Poll::Pending).await);
        part.clone().expect("a waker").wake();
        assert!(is_polled(&mut gate, &mut part, Poll::Pending).await);
        assert!(!is_polled(&mut gate, &mut part, Poll::Pending).await);
    }
}
