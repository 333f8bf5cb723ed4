//! A timer for hyper that blames no client for the time in which this process was stopped.
//!
//! After such a pause a timer runs out before the connection has read what its client sent meanwhile.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::FutureExt;
use hyper::rt;
use tokio::time::{self, Instant, sleep_until};

/// A timer that runs out later than by this runs once more, for this long.
const LATE: Duration = Duration::from_secs(1);

/// The timer of HTTP/2 connections: for their pings.
pub struct PatientTimer;

/// A wait that ends in time or, if it would end late, a little later still.
pub struct PatientSleep(Pin<Box<time::Sleep>>);

impl PatientSleep {
    pub fn until(deadline: Instant) -> Self {
        Self(Box::pin(sleep_until(deadline)))
    }

    pub fn reset(&mut self, deadline: Instant) {
        self.0.as_mut().reset(deadline);
    }
}

impl Future for PatientSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.0.poll_unpin(cx));
            if self.0.deadline().elapsed() <= LATE {
                return Poll::Ready(());
            }
            self.reset(Instant::now() + LATE);
        }
    }
}

impl rt::Sleep for PatientSleep {}

#[expect(clippy::disallowed_types, reason = "hyper's trait has this type; the time itself is tokio's")]
impl rt::Timer for PatientTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(PatientSleep::until(Instant::now() + duration))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(PatientSleep::until(deadline.into()))
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_ends_late_leaves_time_to_read() {
        let began = Instant::now();
        PatientSleep::until(began + 5 * LATE).await;
        assert_eq!(began.elapsed(), 5 * LATE);

        let mut wait = PatientSleep::until(began + 10 * LATE);
        assert!((&mut wait).now_or_never().is_none());
        advance(60 * LATE).await;
        let stopped = Instant::now();
        wait.await;
        assert_eq!(stopped.elapsed(), LATE);
    }
}
