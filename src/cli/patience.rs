//! When to try again after a failure, and when to give up.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::{Ending, remote::Trouble};

/// The first pause and the longest one, at most: long enough to spare a server, short enough for a user at a
/// terminal.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pauses between attempts, and the notes about them. Each pause has a random part, so that clients which
/// were cut off together do not all return together.
#[derive(Debug)]
pub struct Patience {
    give_up: Option<Duration>,
    /// When the first attempt failed since the last progress.
    failing_since: Option<Instant>,
    /// The last note to the user, until the server answers again.
    noted: Option<String>,
    pauses: ExponentialBackoff,
}

impl Patience {
    /// Gives up after failing for `give_up`.
    pub fn new(give_up: Option<Duration>) -> Self {
        Self { give_up, failing_since: None, noted: None, pauses: pauses() }
    }

    /// Waits before the next attempt, and prints the reason on standard error.
    ///
    /// # Errors
    /// If there is to be no further attempt.
    pub async fn wait(&mut self, trouble: Trouble) -> Result<(), Ending> {
        let (why, pause) = match trouble {
            Trouble::Refused(why) => return Err(Ending::Failed(why)),
            Trouble::Unreachable(_) => (trouble.to_string(), None),
            Trouble::Lost { why, pause } => (why, pause),
        };
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.give_up.is_some_and(|give_up| since.elapsed() >= give_up) {
            return Err(Ending::GaveUp(why));
        }
        if self.noted.as_ref() != Some(&why) {
            super::tell(format_args!("{why}; trying again"));
        }
        self.noted = Some(why);
        let own = self.pauses.next().expect("the pauses never end");
        sleep(own.max(pause.unwrap_or_default())).await;
        Ok(())
    }

    /// The server answers again. That is not yet progress: it may refuse every request.
    pub fn restore(&mut self) {
        if self.noted.take().is_some() {
            super::tell("the server answers again");
        }
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
    async fn gives_up(give_up: u64, stayed: u64) -> bool {
        let ago =
            |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine is up");
        let mut patience = Patience::new(Some(Duration::from_secs(give_up)));
        patience.failing_since = Some(ago(31));
        patience.restore();
        patience.cut(ago(stayed));
        patience.wait(Trouble::lost("cut")).await.is_err()
    }

    #[tokio::test]
    async fn only_a_connection_that_lasted_counts_as_progress() {
        assert!(!gives_up(30, 6).await);
        assert!(!gives_up(2, 3).await, "it lasted longer than give_up");
        assert!(gives_up(30, 0).await);
        assert!(gives_up(30, 4).await);
    }
}
