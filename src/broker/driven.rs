//! A future that goes on while the task that waits for it is not polled.

use std::task::{Context, Poll};

use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::task::AbortOnDropHandle;

/// A future that is polled once by its owner, and then by a task of its own until it is done. So it keeps nobody waiting
/// whose answer it has, or whose lock, however slowly the owner's client reads. Dropping it ends the task.
pub enum Driven<T> {
    Fresh(Option<BoxFuture<'static, T>>),
    Spawned(AbortOnDropHandle<T>),
}

impl<T: Send + 'static> Driven<T> {
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Fresh(Some(Box::pin(future)))
    }

    /// The result, or `None` if the runtime has ended the task.
    ///
    /// # Panics
    /// If the future panics, if this is polled again after it was ready, or outside of a tokio runtime.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Self::Fresh(future) = self {
            let mut future = future.take().expect("polled after it was ready");
            // Most reads of a log in memory need no task.
            if let Poll::Ready(result) = future.poll_unpin(cx) {
                return Poll::Ready(Some(result));
            }
            *self = Self::Spawned(AbortOnDropHandle::new(tokio::spawn(future)));
        }
        let Self::Spawned(task) = self else { unreachable!("a fresh future was spawned above") };
        task.poll_unpin(cx).map(|ended| match ended {
            Ok(result) => Some(result),
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_goes_on_though_its_owner_does_not_poll_it() {
        let (ask, asked) = oneshot::channel::<()>();
        let (answer, answered) = oneshot::channel();
        let mut driven = Driven::new(async move {
            asked.await.expect("asked");
            answer.send(()).expect("somebody waits");
        });
        assert!(driven.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        ask.send(()).expect("it waits");
        answered.await.expect("it went on by itself");
    }

    #[tokio::test]
    async fn dropping_it_ends_its_task() {
        let (held, released) = oneshot::channel::<()>();
        let mut driven = Driven::new(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert!(driven.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(driven);
        assert!(released.await.is_err(), "what it held is dropped");
    }
}
