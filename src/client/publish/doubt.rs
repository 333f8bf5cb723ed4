//! The doubt of a publisher: if an attempt without an answer has stored messages, and how long a key is trusted.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::client::ClientError;

/// How long a server remembers a key.
pub const KEY_REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// How long a message with an unknown outcome is sent again under the same key. The answer to a request may take
/// one of the minutes that are left, and a proxy may delay the request.
pub const KEY_TRUSTED: Duration = Duration::from_secs(3 * 60);

/// The doubt about the messages of a batch that have no outcome yet.
#[derive(Default)]
pub struct Doubt {
    /// When the first request was sent whose outcome is unknown, since the caller was last told.
    since: Option<Moment>,
    /// True if an attempt may have stored some of them. To tell that does not end it.
    is_lost: bool,
}

impl Doubt {
    /// The request that was sent at this moment has an unknown outcome.
    pub fn begin(&mut self, sent_at: Moment) {
        self.since.get_or_insert(sent_at);
        self.is_lost = true;
    }

    /// True once, if the doubt has lasted for longer than this.
    pub fn is_due(&mut self, trusted: Duration) -> bool {
        self.since.take_if(|since| since.until(Moment::now()) > trusted).is_some()
    }

    /// The error with which publishing ends. It does not say that nothing was stored, if an earlier attempt may
    /// have stored something.
    pub fn end(&self, error: ClientError) -> ClientError {
        match error {
            error if !self.is_lost => error,
            error @ ClientError::Lost { .. } => error,
            error => ClientError::Lost {
                why: format!("{error}; an earlier attempt may have stored messages"),
                retry_after: error.retry_after(),
            },
        }
    }
}

/// A moment by two clocks. The one of tokio stands still while the machine sleeps, and the other one may be set.
#[derive(Clone, Copy)]
pub struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// The longer of the two times, because the server may have counted that one.
    fn until(self, later: Self) -> Duration {
        let wall = later.wall.duration_since(self.wall).unwrap_or_default();
        wall.max(later.steady.duration_since(self.steady))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ago(steady: Duration, wall: Duration) -> Moment {
        let now = Moment::now();
        Moment { steady: now.steady.checked_sub(steady).expect("the machine is up"), wall: now.wall - wall }
    }

    /// A machine that sleeps for ten minutes does not count them, but the server forgets the key.
    #[test]
    fn a_key_is_not_trusted_after_the_machine_has_slept() {
        for (steady, wall, is_due) in [
            (0, 10, true),
            (0, 1, false),
            // The clock was set back.
            (4, 0, true),
        ] {
            let mut doubt = Doubt::default();
            doubt.begin(ago(steady * MINUTE, wall * MINUTE));
            assert_eq!(doubt.is_due(KEY_TRUSTED), is_due, "{steady}, {wall}");
            assert!(!is_due || !doubt.is_due(KEY_TRUSTED), "it is told once");
        }
        let later = Moment::now();
        let set_back = Moment { wall: later.wall + MINUTE, ..later };
        assert_eq!(set_back.until(later), Duration::ZERO);
    }

    #[test]
    fn every_error_after_a_lost_answer_says_that_messages_may_be_stored() {
        let refused = || ClientError::Refused { code: "forbidden".into(), detail: String::new() };
        let errors = || [refused(), ClientError::not_ours("html"), ClientError::unsent("gone")];
        let mut doubt = Doubt::default();
        for error in errors() {
            assert!(!matches!(doubt.end(error), ClientError::Lost { .. }));
        }
        doubt.begin(ago(4 * MINUTE, 4 * MINUTE));
        assert!(doubt.is_due(KEY_TRUSTED));
        for error in errors() {
            let told = doubt.end(error.clone());
            assert!(matches!(told, ClientError::Lost { .. }), "{told:?}");
            assert!(told.to_string().starts_with(&error.to_string()), "{told}");
        }
    }
}
