//! When to try again after a failure, and when to give up.

use std::{ops::RangeInclusive, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::ClientError;

/// The first pause and the longest one, at most: long enough to spare a server, short enough for a user at a
/// terminal.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The first pause after a connection that was open, in milliseconds: clients that were cut off together return
/// over two seconds.
const PAUSE_AFTER_CUT_MS: RangeInclusive<u64> = 1_000..=3_000;
/// The longest pause for which a server can ask.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// The pauses between attempts. Each pause has a random part, so that clients which were cut off together do
/// not all return together.
#[derive(Debug)]
pub(super) struct Retry {
    give_up: Option<Duration>,
    /// When the first attempt failed since the last progress.
    failing_since: Option<Instant>,
    pauses: ExponentialBackoff,
    /// True if the attempt that failed was an open connection.
    was_open: bool,
}

impl Retry {
    /// Gives up after failing for `give_up`.
    pub fn new(give_up: Option<Duration>) -> Self {
        Self { give_up, failing_since: None, pauses: pauses(), was_open: false }
    }

    /// How long to wait before the next attempt.
    ///
    /// # Errors
    /// Returns the error if there is to be no further attempt.
    pub fn after(&mut self, error: &ClientError) -> Result<Duration, ClientError> {
        if error.is_final() {
            return Err(error.clone());
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let left = self.give_up.map_or(Duration::MAX, |give_up| give_up.saturating_sub(since.elapsed()));
        if left.is_zero() {
            return Err(error.clone());
        }
        let mut pause = self.pauses.next().expect("the pauses never end");
        if std::mem::take(&mut self.was_open) {
            pause = pause.max(Duration::from_millis(rand::random_range(PAUSE_AFTER_CUT_MS)));
        }
        let asked = error.retry_after().unwrap_or_default().min(LONGEST_ASKED);
        // The last attempt is made when the time is up.
        Ok(pause.max(asked).min(left))
    }

    /// An attempt had success, so the next pause is a short one.
    pub fn progress(&mut self) {
        if self.failing_since.take().is_some() {
            self.pauses = pauses();
        }
    }

    /// The connection that was made at `open_at` is over. One that lasted counts as progress, even if nothing
    /// came over it.
    pub fn cut(&mut self, open_at: Instant) {
        self.was_open = true;
        let stayed = self.give_up.map_or(LONGEST_PAUSE, |give_up| give_up.min(LONGEST_PAUSE));
        if open_at.elapsed() >= stayed {
            self.progress();
        }
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE / 2)
        .with_max_delay(LONGEST_PAUSE / 2)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// True if it gives up when a connection that lasted for `stayed` is cut, after failing for 31 seconds.
    fn gives_up(give_up: u64, stayed: u64) -> bool {
        let ago =
            |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine is up");
        let mut retry = Retry::new(Some(Duration::from_secs(give_up)));
        retry.failing_since = Some(ago(31));
        retry.cut(ago(stayed));
        retry.after(&ClientError::lost("cut")).is_err()
    }

    #[tokio::test]
    async fn only_a_connection_that_lasted_counts_as_progress() {
        assert!(!gives_up(30, 6));
        assert!(!gives_up(2, 3), "it lasted longer than give_up");
        assert!(gives_up(30, 0));
        assert!(gives_up(30, 4));
    }

    fn asks_to_wait(seconds: u64) -> ClientError {
        ClientError::Lost { why: "busy".into(), retry_after: Some(Duration::from_secs(seconds)) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_for_a_long_pause_does_not_outlast_give_up() {
        let mut retry = Retry::new(Some(Duration::from_secs(3)));
        let pause = retry.after(&asks_to_wait(40)).expect("another attempt");
        assert_eq!(pause, Duration::from_secs(3));
        tokio::time::sleep(pause).await;
        assert!(retry.after(&asks_to_wait(40)).is_err(), "the time is up");
        let mut patient = Retry::new(None);
        assert_eq!(patient.after(&asks_to_wait(40)).expect("another"), Duration::from_secs(40));
        assert_eq!(patient.after(&asks_to_wait(86_400)).expect("another"), LONGEST_ASKED);
    }

    #[tokio::test]
    async fn clients_that_were_cut_off_together_do_not_return_together() {
        let pause = |was_open: bool| {
            let mut retry = Retry::new(None);
            if was_open {
                retry.cut(Instant::now());
            }
            let pause = retry.after(&ClientError::lost("cut")).expect("another attempt");
            let next = retry.after(&ClientError::lost("refused")).expect("another attempt");
            assert!(next < Duration::from_secs(1), "only the first pause is long: {next:?}");
            pause
        };
        let pauses: Vec<_> = (0..200).map(|_| pause(true)).collect();
        let (least, most) = (pauses.iter().min().expect("some"), pauses.iter().max().expect("some"));
        assert!(*least >= Duration::from_secs(1) && *most <= Duration::from_secs(3), "{least:?}, {most:?}");
        assert!(*most - *least > Duration::from_secs(1), "{least:?}, {most:?}");
        assert!(pause(false) <= FIRST_PAUSE);
    }
}
