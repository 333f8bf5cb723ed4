//! Ends a connection when its rights end.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Access;
use crate::{
    auth::Refused,
    http::{
        gate::Gate,
        identify::Identified,
        problem::{Code, Problem},
        refusal::{expired, forbidden},
        renewal::Renewal,
    },
    message::Pattern,
};

/// Ends a connection when its credential expires, or when new rules do not allow it any more.
pub struct Lease {
    access: Access,
    gate: Gate,
    replaced: Pin<Box<WaitForCancellationFutureOwned>>,
    end: Option<Pin<Box<Sleep>>>,
    renewal: Option<Box<Renewal>>,
}

impl Lease {
    pub(super) fn new(access: Access) -> Self {
        let replaced = Box::pin(access.rules.replaced.clone().cancelled_owned());
        let end = access.identity.expires_at.map(|end| Box::pin(sleep_until(instant(end))));
        let renewal = Renewal::of(&access.identity, access.question.as_ref());
        Self { access, gate: Gate::new(), replaced, end, renewal }
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// See [`Access::renew`].
    pub fn renew<'a>(
        &mut self,
        identified: Identified,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), Problem> {
        let mut access = self.access.clone();
        access.renew(identified, patterns)?;
        *self = Self::new(access);
        Ok(())
    }

    /// Ready with the reason once `patterns` may not be read any more. Poll it before anything is sent.
    pub fn poll<'a, P: Iterator<Item = &'a Pattern>>(
        &mut self,
        cx: &mut Context<'_>,
        patterns: impl Fn() -> P,
    ) -> Poll<Problem> {
        let Self { access, gate, replaced, end, renewal } = self;
        gate.poll(cx, |cx| {
            while replaced.poll_unpin(cx).is_ready() {
                access.rules = access.in_force.load_full();
                *replaced = Box::pin(access.rules.replaced.clone().cancelled_owned());
                if !access.is_page_listed(&access.rules) {
                    tracing::debug!(client = access.client.map(display), who = access.identity.name(), page = ?access.page, "no longer allowed");
                    let detail = "pages of this origin are allowed no longer: the operator lists it with --allowed-origin";
                    return Poll::Ready(Problem::new(Code::Forbidden, detail));
                }
                match access.rules.authority.again(&access.identity, SystemTime::now()) {
                    Ok(identity) => access.identity = identity,
                    Err(Refused::Expired { .. }) => return Poll::Ready(expired()),
                    Err(refused) => {
                        tracing::debug!(client = access.client.map(display), who = access.identity.name(), %refused, "no longer allowed");
                        let detail = "the credential is accepted no longer, since the operator has changed the keys; get a new one";
                        return Poll::Ready(Problem::new(Code::Forbidden, detail));
                    }
                }
                if let Some((pattern, missing)) = access.identity.grants.first_unreadable(patterns()) {
                    let problem = forbidden(&access.identity, access.client, missing, Some(pattern));
                    return Poll::Ready(Problem::new(Code::Forbidden, problem.detail));
                }
            }
            while let Some(asking) = renewal
                && let Poll::Ready(identity) = asking.poll(cx, &access.in_force)
            {
                let may_read = patterns().all(|pattern| identity.grants.may_subscribe(pattern));
                // A user who is another one now, or may read less, is told to come again when the answer expires.
                *renewal = None;
                // The same subject, or none before and after.
                if may_read && identity.subject() == access.identity.subject() {
                    access.identity = identity;
                    *renewal = Renewal::of(&access.identity, access.question.as_ref());
                    *end = access.identity.expires_at.map(|end| Box::pin(sleep_until(instant(end))));
                }
            }
            while let (Some(timer), Some(at)) = (end.as_mut(), access.identity.expires_at) {
                if timer.poll_unpin(cx).is_pending() {
                    return Poll::Pending;
                }
                // The timer only says when to check. The system clock decides, because tokens are made by it.
                if access.identity.is_expired(SystemTime::now()) {
                    return Poll::Ready(expired());
                }
                timer.as_mut().reset(instant(at));
            }
            Poll::Pending
        })
    }
}

/// The instant at which the system clock will show this time.
fn instant(time: SystemTime) -> Instant {
    let now = Instant::now();
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    now.checked_add(left).unwrap_or(now + Duration::from_secs(u32::MAX.into()))
}
