//! When to try again after a failure, and when to give up.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::ClientError;

/// The first pause and the longest one, at most: long enough to spare a server, short enough for a user at a
/// terminal.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pauses between attempts. Each pause has a random part, so that clients which were cut off together do
/// not all return together.
#[derive(Debug)]
pub(super) struct Retry {
    give_up: Option<Duration>,
    /// When the first attempt failed since the last progress.
    failing_since: Option<Instant>,
    pauses: ExponentialBackoff,
}

impl Retry {
    /// Gives up after failing for `give_up`.
    pub fn new(give_up: Option<Duration>) -> Self {
        Self { give_up, failing_since: None, pauses: pauses() }
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
        if self.give_up.is_some_and(|give_up| since.elapsed() >= give_up) {
            return Err(error.clone());
        }
        let own = self.pauses.next().expect("the pauses never end");
        Ok(own.max(error.retry_after().unwrap_or_default()))
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
}
