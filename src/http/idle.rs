//! How long an HTTP/1.1 connection may wait for the head of a request.
//!
//! hyper starts a timer when it begins to wait for a head, and drops the timer when the head is complete. If the
//! timer ends first, hyper ends the connection. This timer is longer as long as nothing of the head has come.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use hyper::rt;
use tokio::time::Instant;

use super::{patient::PatientSleep, places::Place};

/// How long a kept connection may be without a request. Balancers close theirs after 60 s. If the server closed
/// first, a request that is already on its way would be lost, and the balancer would answer it with 502.
pub const KEPT_FOR: Duration = Duration::from_secs(75);

/// How far the head is for which hyper waits: nothing has come, it has begun, or it was answered before it was whole;
/// or it is whole.
#[derive(Clone, Debug, Default)]
pub struct HeadBegun(Arc<AtomicU8>);

const NOTHING: u8 = 0;
const BEGUN: u8 = 1;
const REFUSED: u8 = 2;
const WHOLE: u8 = 3;

impl HeadBegun {
    /// Something was read.
    pub fn set(&self) {
        self.0.fetch_max(BEGUN, Ordering::Relaxed);
    }

    /// Something was written. If a head has begun, it is the answer to what will never be a request.
    pub fn note_written(&self) {
        let _ = self.0.compare_exchange(BEGUN, REFUSED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The head has come, or none is waited for.
    pub fn note_whole(&self) {
        self.0.store(WHOLE, Ordering::Relaxed);
    }

    /// True if the answer was a refusal of a head, whose client may send the rest.
    pub fn is_refused(&self) -> bool {
        self.0.load(Ordering::Relaxed) == REFUSED
    }
}

/// The timer of one connection, for hyper.
pub struct HeadTimer {
    pub begun: HeadBegun,
    pub read_timeout: Duration,
    pub place: Place,
}

#[expect(clippy::disallowed_types, reason = "hyper's trait has this type; the time itself is tokio's")]
impl rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until((Instant::now() + duration).into())
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        // If a piece of the next head came with the request before, the wait begins as if it had not.
        self.begun.0.store(NOTHING, Ordering::Relaxed);
        Box::pin(HeadWait {
            sleep: PatientSleep::until(self.place.deadline(deadline.into())),
            until_begun: Some((self.begun.clone(), self.read_timeout)),
        })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

/// The wait for one head. hyper polls it after each read that did not complete the head.
struct HeadWait {
    sleep: PatientSleep,
    /// `None` once the head has begun.
    until_begun: Option<(HeadBegun, Duration)>,
}

impl rt::Sleep for HeadWait {}

impl Future for HeadWait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((_, read_timeout)) =
            self.until_begun.take_if(|(begun, _)| begun.0.load(Ordering::Relaxed) != NOTHING)
        {
            self.sleep.reset(Instant::now() + read_timeout);
        }
        self.sleep.poll_unpin(cx)
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Timer;
    use tokio::time::{advance, timeout};

    use super::*;

    const READ_TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_has_the_read_timeout_and_one_that_has_not_is_waited_for_longer() {
        let begun = HeadBegun::default();
        let timer = HeadTimer { begun: begun.clone(), read_timeout: READ_TIMEOUT, place: Place::default() };
        for idle in [Duration::ZERO, Duration::from_secs(74)] {
            let mut wait = timer.sleep_until(timer.now() + KEPT_FOR);
            assert!(wait.as_mut().now_or_never().is_none());
            advance(idle).await;
            begun.set();
            let from = Instant::now();
            assert!(timeout(READ_TIMEOUT / 2, &mut wait).await.is_err());
            // More bytes give no more time.
            begun.set();
            wait.await;
            assert_eq!(from.elapsed().as_secs(), READ_TIMEOUT.as_secs());
        }
        // The bytes of the last request do not count for the next one.
        let from = Instant::now();
        timer.sleep_until(timer.now() + KEPT_FOR).await;
        assert_eq!(from.elapsed().as_secs(), KEPT_FOR.as_secs());
    }
}
