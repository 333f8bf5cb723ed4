//! The timers of one connection: when to show that it is alive, and when to leave.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{connections::Connections, gate::Gate};
use crate::shutdown::{Ending, Stage};

/// The timers' events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The connection was quiet for a heartbeat.
    Quiet,
    /// A heartbeat has passed, whether or not anything was sent. One that is late is left out: then this process was
    /// stopped, and has yet to hear what its client said meanwhile.
    Heartbeat,
    /// The server drains, and it is this connection's turn.
    Leave,
    /// The server does not wait any longer.
    End,
}

/// How late a heartbeat may be on a busy machine.
const PUNCTUAL: Duration = Duration::from_millis(50);

/// One timer and the drain, for one connection.
pub struct Pulse {
    gate: Gate,
    times: Times,
}

struct Times {
    connections: Arc<Connections>,
    timer: Pin<Box<Sleep>>,
    ending: Ending,
    leave_at: Option<Instant>,
    sent_at: Instant,
    beat_at: Instant,
}

impl Pulse {
    pub fn new(connections: Arc<Connections>) -> Self {
        let now = Instant::now();
        let next = now + connections.heartbeat();
        let times = Times {
            timer: Box::pin(sleep_until(next)),
            ending: Ending::new(connections.shutdown().clone()),
            leave_at: None,
            sent_at: now,
            beat_at: next,
            connections,
        };
        Self { gate: Gate::new(), times }
    }

    pub fn heartbeat(&self) -> Duration {
        self.times.connections.heartbeat()
    }

    /// Notes that something was sent, so the connection has shown that it is alive.
    pub fn sent(&mut self) {
        self.times.sent_at = Instant::now();
    }

    /// Notes that something was sent at this time, by somebody else.
    pub fn was_sent(&mut self, at: Instant) {
        self.times.sent_at = self.times.sent_at.max(at);
    }

    /// True once the server drains.
    pub fn is_draining(&self) -> bool {
        self.times.connections.shutdown().is_draining()
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        let Self { gate, times } = self;
        gate.poll(cx, |cx| times.poll(cx))
    }
}

impl Times {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        let heartbeat = self.connections.heartbeat();
        while let Poll::Ready(stage) = self.ending.poll(cx) {
            if stage == Stage::Ended {
                return Poll::Ready(Beat::End);
            }
            let spread = self.connections.drain_spread().mul_f64(rand::random());
            self.leave_at = Some(Instant::now() + spread);
        }
        loop {
            let now = Instant::now();
            if self.leave_at.is_some_and(|at| at <= now) {
                self.leave_at = None;
                return Poll::Ready(Beat::Leave);
            }
            if self.sent_at + heartbeat <= now {
                self.sent_at = now;
                return Poll::Ready(Beat::Quiet);
            }
            if self.beat_at <= now {
                let late_by = now - self.beat_at;
                self.beat_at = now + heartbeat;
                if late_by <= (heartbeat / 8).max(PUNCTUAL) {
                    return Poll::Ready(Beat::Heartbeat);
                }
            }
            let next = (self.sent_at + heartbeat).min(self.beat_at);
            let next = self.leave_at.map_or(next, |at| at.min(next));
            if self.timer.deadline() != next && (self.timer.is_elapsed() || next < self.timer.deadline()) {
                self.timer.as_mut().reset(next);
            }
            if self.timer.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// How long a client should wait before it reconnects: random, so that not all clients return together.
pub fn retry_ms() -> u32 {
    rand::random_range(1_000..=3_000)
}

/// The same for an overloaded server.
pub fn overload_retry_ms() -> u32 {
    rand::random_range(5_000..=30_000)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::{config::Config, shutdown::Shutdown};

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_is_late_is_left_out() {
        let heartbeat = Duration::from_secs(8);
        let config = Config { heartbeat, ..Config::default() };
        let mut pulse = Pulse::new(Arc::new(Connections::new(&config, Shutdown::new())));
        let mut next = async || poll_fn(|cx| pulse.poll(cx)).await;
        assert_eq!((next().await, next().await), (Beat::Quiet, Beat::Heartbeat));
        tokio::time::advance(3 * heartbeat).await;
        let stopped = Instant::now();
        assert_eq!((next().await, stopped.elapsed()), (Beat::Quiet, Duration::ZERO));
        assert_eq!((next().await, next().await), (Beat::Quiet, Beat::Heartbeat));
        assert_eq!(stopped.elapsed(), heartbeat);
    }
}
