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
    /// `None` for a silent connection, until its turn to leave is known.
    timer: Option<Pin<Box<Sleep>>>,
    ending: Ending,
    leave_at: Option<Instant>,
    sent_at: Instant,
    beat_at: Instant,
}

impl Pulse {
    pub fn new(connections: Arc<Connections>) -> Self {
        let mut pulse = Self::silent(connections);
        pulse.times.timer = Some(Box::pin(sleep_until(pulse.times.beat_at)));
        pulse
    }

    pub fn connections(&self) -> &Connections {
        &self.times.connections
    }

    /// The same without heartbeats until the server drains. It needs no timer before.
    pub fn silent(connections: Arc<Connections>) -> Self {
        let now = Instant::now();
        let times = Times {
            timer: None,
            ending: Ending::new(connections.shutdown()),
            leave_at: None,
            sent_at: now,
            beat_at: now + connections.heartbeat(),
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
        while let Poll::Ready(stage) = self.ending.poll(self.connections.shutdown(), cx) {
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
            let Some(timer) = &mut self.timer else {
                let Some(at) = self.leave_at else { return Poll::Pending };
                self.timer = Some(Box::pin(sleep_until(at)));
                continue;
            };
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
            if timer.deadline() != next && (timer.is_elapsed() || next < timer.deadline()) {
                timer.as_mut().reset(next);
            }
            if timer.poll_unpin(cx).is_pending() {
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

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_told_nothing_until_the_drain_and_then_to_leave() {
        let config = Config { drain_grace: Duration::from_secs(100), ..Config::default() };
        let (shutdown, begun) = (Shutdown::new(), Instant::now());
        let connections = Arc::new(Connections::new(&config, shutdown.clone()));
        let _others = (0..20_000).map(|_| connections.admit(None, 1)).collect::<Vec<_>>();
        let mut pulse = Pulse::silent(connections);
        let mut next = async || poll_fn(|cx| pulse.poll(cx)).await;
        let quiet = tokio::time::timeout(10 * config.heartbeat, next()).await;
        quiet.expect_err("it has no heartbeats");
        shutdown.drain();
        let left = async { while next().await != Beat::Leave {} };
        tokio::time::timeout(config.drain_grace, left).await.expect("it is told to leave");
        let left_after = begun.elapsed() - 10 * config.heartbeat;
        assert!(left_after > Duration::ZERO && left_after <= Duration::from_secs(20), "{left_after:?}");
        shutdown.end();
        while next().await != Beat::End {}
    }
}
