//! Presence in the log in memory: each change is one critical section, as an append is.

use std::sync::Arc;

use tokio::time::sleep_until;

use super::{
    MemoryLog,
    state::{MemberStep, State},
};
use crate::{
    log::{HOLDS_STEP, HoldError, Holds, Log, LogError, NotedHolds, Retention, Tail},
    message::Id,
};

impl MemoryLog {
    /// Notes holds, and lets members leave whose grace is over. All of it may be repeated.
    pub(super) async fn note_holds(&self, holds: &Holds) -> Result<NotedHolds, LogError> {
        let mut noted = NotedHolds::default();
        for hold in &holds.holds {
            let changed = self.change(|state, retention, now| state.hold(hold, holds.grace, retention, now));
            let outcome = match changed.await {
                // The others may be noted already, and are told again with this one.
                Err(HoldError::Log(error)) => return Err(error),
                outcome => outcome,
            };
            noted.joined += u64::from(outcome == Ok(MemberStep::Told));
            noted.outcomes.push(outcome.map(drop));
        }
        noted.is_more = self.state().all_members.begin_grace(holds.grace, HOLDS_STEP);
        for _ in 0..HOLDS_STEP {
            if !self.state().all_members.has_due() {
                self.members_changed.notify_one();
                return Ok(noted);
            }
            match self.change(State::leave_next).await {
                Ok(step) => noted.left += u64::from(step == MemberStep::Told),
                Err(HoldError::Log(error)) => return Err(error),
                Err(_) => {}
            }
        }
        noted.is_more = true;
        Ok(noted)
    }

    /// Makes one change, and brings its message to the tails.
    async fn change(
        &self,
        change: impl Fn(&mut State, &Retention, Id) -> Result<MemberStep, HoldError>,
    ) -> Result<MemberStep, HoldError> {
        if let Some(saved) = &self.saved {
            saved.reserve(self.watermark().next(self.clock.now())).await?;
        }
        let (changed, tails): (_, Option<Vec<Arc<Tail>>>) = loop {
            if let Some(mut state) = self.state_to_append() {
                let changed = change(&mut state, &self.retention.load(), self.clock.now());
                if changed != Ok(MemberStep::Told) {
                    return changed;
                }
                break (changed, self.fan_out_on(&mut state));
            }
            self.fanned_out().await;
        };
        match tails {
            Some(tails) => tails.iter().for_each(|tail| tail.wake()),
            None => self.run_on(Self::fan_out).await,
        }
        changed
    }

    /// Resolves when the next member leaves.
    pub(super) async fn next_leave(&self) {
        loop {
            let changed = self.members_changed.notified();
            let due_at = self.state().all_members.due_at();
            match due_at {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => return,
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    pub(super) fn keep_all_members(&self) {
        self.state().all_members.is_kept = true;
        self.members_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::log::{Hold, memory::state::tests::RETENTION};

    /// The caller tells it again, so that no member stays without a connection.
    #[tokio::test(start_paused = true)]
    async fn a_log_that_notes_no_holds_says_so() {
        let log = MemoryLog::start(RETENTION);
        let of = |sub: &str, connections| Holds {
            holds: vec![Hold {
                topic: "a".parse().expect("a topic"),
                sub: sub.into(),
                connections,
                info: None,
            }],
            part: None,
            grace: Duration::from_secs(5),
        };
        log.note_holds(&of("u1", 1)).await.expect("it is open");
        log.note_holds(&of("u2", 1)).await.expect("it is open");
        log.note_holds(&of("u2", 0)).await.expect("it is open");
        log.state().closed = true;
        log.note_holds(&of("u1", 0)).await.expect_err("it is closed");
        tokio::time::advance(Duration::from_secs(6)).await;
        log.note_holds(&Holds::default()).await.expect_err("nobody can leave");
        log.state().closed = false;
        assert_eq!(log.note_holds(&of("u1", 0)).await.expect("it is open").left, 1);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(log.note_holds(&Holds::default()).await.expect("it is open").left, 1);
        log.note_holds(&Holds::default()).await.expect("nothing is left to do");
    }
}
