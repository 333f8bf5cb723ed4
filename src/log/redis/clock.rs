//! The clock of the store, as far as this process knows it.

use std::time::Duration;

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::Instant;

/// The time of the store at some moment between two moments of this process.
#[derive(Clone, Copy, Debug)]
pub struct StoreClock {
    /// In milliseconds since the Unix epoch.
    ms: u64,
    asked_at: Instant,
    answered_at: Instant,
}

impl StoreClock {
    pub fn new(ms: u64, asked_at: Instant, answered_at: Instant) -> Self {
        Self { ms, asked_at, answered_at }
    }

    /// Asks the store for its time.
    ///
    /// # Errors
    /// If the store does not answer in the time of the connection.
    pub async fn ask(connection: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        let asked_at = Instant::now();
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        Ok(Self::new(seconds * 1000 + micros / 1000, asked_at, Instant::now()))
    }

    /// The better of two answers: a slow one says less. If they contradict each other, the store's clock was set, and the
    /// newer one counts.
    pub fn or_better(self, known: Option<Self>) -> Self {
        let now = self.answered_at;
        let at_most = self.ms + now.saturating_duration_since(self.asked_at).as_millis() as u64;
        known.filter(|known| (self.at_least(now)..=at_most).contains(&known.at_least(now))).unwrap_or(self)
    }

    /// The moment of this process at which the store was asked.
    pub fn asked_at(&self) -> Instant {
        self.asked_at
    }

    /// The store's time is no earlier than this now.
    pub fn at_least(&self, now: Instant) -> u64 {
        self.ms + now.saturating_duration_since(self.answered_at).as_millis() as u64
    }

    /// The time of the store until which it may do what this process was asked to do at `begun`: no later than `within`
    /// after that, by any clock.
    pub fn deadline(&self, begun: Instant, within: Duration) -> u64 {
        let asked_later = self.answered_at.saturating_duration_since(begun).as_millis() as u64;
        self.at_least(begun).saturating_sub(asked_later) + within.as_millis() as u64
    }

    /// How long ago `ms` was, at most.
    pub fn since(&self, ms: u64, now: Instant) -> Duration {
        let at_most = self.ms + now.saturating_duration_since(self.asked_at).as_millis() as u64;
        Duration::from_millis(at_most.saturating_sub(ms))
    }
}

/// Two readings of the clocks may differ by this much without a sleep.
const NO_SLEEP: Duration = Duration::from_millis(100);

/// When this process took a request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub begun: Instant,
    /// How long the machine had slept then.
    slept: Duration,
}

impl Request {
    pub fn begin() -> Self {
        Self { slept: slept(), begun: Instant::now() }
    }

    /// True if the request is younger than this, and the machine has not slept since it came.
    pub fn has_time(self, within: Duration) -> bool {
        has_time(within, self.begun.elapsed(), self.slept, slept())
    }
}

fn has_time(within: Duration, elapsed: Duration, slept_before: Duration, slept: Duration) -> bool {
    elapsed < within && slept < slept_before + NO_SLEEP
}

/// How long this machine has slept since it was started. An [`Instant`] does not count that.
#[cfg(target_os = "linux")]
fn slept() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // In this order, so that the time between the two is no sleep.
    let times = [ClockId::Boottime, ClockId::Monotonic].map(clock_gettime);
    let [all, awake] = times.map(|time| Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32));
    all.saturating_sub(awake)
}

/// This system does not say how long it has slept.
#[cfg(not(target_os = "linux"))]
fn slept() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_later_than_it_may_be() {
        let asked_at = Instant::now();
        let at = |ms| asked_at + Duration::from_millis(ms);
        // The store said this time at one of the two moments, or in between.
        let clock = StoreClock::new(1_000_000, at(100), at(110));
        let deadline = |ms| clock.deadline(at(ms), Duration::from_secs(2));
        assert_eq!(deadline(110), 1_002_000);
        assert_eq!(deadline(160), 1_002_050);
        // This process has stood still between the request and the answer about the time.
        assert_eq!(deadline(10), 1_001_900);
    }

    #[test]
    fn a_request_has_time_until_its_deadline_or_a_sleep() {
        let ms = Duration::from_millis;
        let has_time = |elapsed, before, now| has_time(ms(2000), ms(elapsed), ms(before), ms(now));
        assert!(has_time(1999, 0, 0));
        assert!(!has_time(2000, 0, 0));
        // An earlier sleep does not count, nor does the time between the two readings.
        assert!(has_time(0, 9000, 9000) && has_time(0, 9000, 9099) && has_time(0, 9000, 8990));
        assert!(!has_time(0, 9000, 9100) && !has_time(0, 0, 3_600_000));
    }

    #[test]
    fn a_slow_answer_about_the_time_does_not_replace_a_better_one() {
        let asked_at = Instant::now();
        let at = |ms| asked_at + Duration::from_millis(ms);
        let good = StoreClock::new(1_000_000, at(0), at(1));
        let best = |ms, asked, answered| {
            StoreClock::new(ms, at(asked), at(answered)).or_better(Some(good)).at_least(at(2000))
        };
        // The store said it at the beginning, and the answer took 700 ms.
        assert_eq!(best(1_001_000, 1000, 1700), 1_001_999);
        assert_eq!(best(1_001_000, 1000, 1001), 1_001_999);
        // The clock of the store was set back, or ahead.
        assert_eq!(best(901_000, 1000, 1700), 901_300);
        assert_eq!(best(1_101_000, 1000, 1001), 1_101_999);
    }

    #[test]
    fn a_process_that_was_stopped_knows_how_old_a_question_is() {
        let asked_at = Instant::now();
        let at = |ms| asked_at + Duration::from_millis(ms);
        let clock = StoreClock::new(1_000_000, asked_at, at(10));
        assert_eq!(clock.at_least(at(10)), 1_000_000);
        assert_eq!(clock.at_least(at(60)), 1_000_050);
        // It was sent after the last sign of life, and met ten seconds later.
        assert_eq!(clock.since(1_000_500, at(10_500)), Duration::from_secs(10));
        assert_eq!(clock.since(1_000_500, at(500)), Duration::ZERO);
        assert_eq!(clock.since(2_000_000, at(500)), Duration::ZERO, "the clock of the store went back");
    }
}
