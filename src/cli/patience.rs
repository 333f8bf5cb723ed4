//! When to try again what failed, and when to stop trying.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::{Ending, remote::Trouble};

/// The first pause at most, and all of them: long enough not to trouble a server, short enough for somebody who waits.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pauses between attempts, and who is told of them. Each has a random part, so that those who were cut together
/// do not come back together.
#[derive(Debug)]
pub struct Patience {
    give_up: Option<Duration>,
    /// Since when it has failed, and what was told of it last.
    failing: Option<(Instant, String)>,
    pauses: ExponentialBackoff,
    /// Whether something came of the last attempt.
    has_progressed: bool,
}

impl Patience {
    /// Ends after trying in vain for `give_up`.
    pub fn new(give_up: Option<Duration>) -> Self {
        Self { give_up, failing: None, pauses: pauses(), has_progressed: false }
    }

    /// Waits before the next attempt, and tells the user why on standard error.
    ///
    /// # Errors
    /// If there is to be none.
    pub async fn wait(&mut self, trouble: Trouble) -> Result<(), Ending> {
        let (why, pause) = match trouble {
            Trouble::Refused(why) => return Err(Ending::Failed(why)),
            Trouble::Unreachable(_) => (trouble.to_string(), None),
            Trouble::Lost { why, pause } => (why, pause),
        };
        let since = self.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        if self.give_up.is_some_and(|give_up| since.elapsed() >= give_up) {
            return Err(Ending::GaveUp(why));
        }
        if self.failing.as_ref().is_none_or(|(_, told)| *told != why) {
            super::tell(format_args!("{why}; trying again"));
        }
        self.failing = Some((since, why));
        if std::mem::take(&mut self.has_progressed) {
            self.pauses = pauses();
        }
        let own = self.pauses.next().expect("there is no end of pauses");
        sleep(own.max(pause.unwrap_or_default())).await;
        Ok(())
    }

    /// The server is there again.
    pub fn restore(&mut self) {
        if self.failing.take().is_some() {
            super::tell("going on");
        }
    }

    /// Something came of it, so the next pause is a short one. A server that is only there is not enough: it may turn
    /// everybody away.
    pub fn progress(&mut self) {
        self.has_progressed = true;
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
