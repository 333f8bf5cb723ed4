//! Presence in the log in memory: each change is one critical section, as an append is.

use std::sync::Arc;

use tokio::time::sleep_until;

use super::{
    MemoryLog,
    state::{MemberStep, State},
};
use crate::{
    log::{CLAIMS_STEP, ClaimError, Claimed, Claims, Log, Retention, Tail},
    message::Id,
};

impl MemoryLog {
    pub(super) async fn note_claims(&self, claims: &Claims) -> Claimed {
        let mut claimed = Claimed::default();
        for claim in &claims.claims {
            let noted =
                self.change(|state, retention, now| Some(state.claim(claim, claims.grace, retention, now)));
            let outcome = noted.await.unwrap_or(Ok(MemberStep::Quiet));
            claimed.joined += u64::from(outcome == Ok(MemberStep::Told));
            claimed.outcomes.push(outcome.map(drop));
        }
        claimed.is_more = self.state().present.begin_grace(claims.grace, CLAIMS_STEP);
        for _ in 0..CLAIMS_STEP {
            match self.change(State::leave_next).await {
                Some(Ok(_)) => claimed.left += 1,
                Some(Err(_)) => {}
                None => {
                    self.members_changed.notify_one();
                    return claimed;
                }
            }
        }
        claimed.is_more = true;
        claimed
    }

    /// Makes one change, and brings its message to the tails.
    async fn change(
        &self,
        change: impl Fn(&mut State, &Retention, Id) -> Option<Result<MemberStep, ClaimError>>,
    ) -> Option<Result<MemberStep, ClaimError>> {
        if let Some(saved) = &self.saved
            && let Err(error) = saved.reserve(self.watermark().next(self.clock.now())).await
        {
            return Some(Err(error.into()));
        }
        let (changed, tails): (_, Option<Vec<Arc<Tail>>>) = loop {
            if let Some(mut state) = self.state_to_append() {
                let changed = change(&mut state, &self.retention.load(), self.clock.now());
                if changed != Some(Ok(MemberStep::Told)) {
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
            let due_at = self.state().present.due_at();
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
        self.state().present.is_kept = true;
        self.members_changed.notify_one();
    }
}
