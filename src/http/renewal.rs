//! Asks the backend again before its answer for a connection expires.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use rand::RngExt;
use tokio::time::{Sleep, sleep};

use super::{
    hook::{Asker, Question, Verdict},
    rules::InForce,
};
use crate::auth::{HookAnswer, Identity};

/// The shortest pause before a backend that was away is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The renewal of what one connection was granted.
pub struct Renewal {
    question: Arc<Question>,
    answer: Arc<HookAnswer>,
    phase: Phase,
}

enum Phase {
    Until(Pin<Box<Sleep>>),
    Asking(BoxFuture<'static, Verdict>),
    /// The connection ends when its answer expires.
    Over,
}

impl Renewal {
    /// A renewal in the last tenth of the time that the answer lasts, if the backend has given one.
    pub fn of(identity: &Identity, question: Option<&Arc<Question>>) -> Option<Box<Self>> {
        let (answer, question) = (identity.answer()?.clone(), question?.clone());
        // At a random moment, so that connections that began together do not ask together. There must be time for the
        // answer.
        let at = answer.lasts.mul_f64(rand::rng().random_range(0.90..0.95));
        let passed = SystemTime::now().duration_since(answer.at).unwrap_or_default();
        let phase = Phase::Until(Box::pin(sleep(at.saturating_sub(passed))));
        Some(Box::new(Self { question, answer, phase }))
    }

    /// The identity by a new answer, once there is one.
    pub fn poll(&mut self, cx: &mut Context<'_>, in_force: &InForce) -> Poll<Arc<Identity>> {
        loop {
            match &mut self.phase {
                Phase::Over => return Poll::Pending,
                Phase::Until(at) => {
                    std::task::ready!(at.poll_unpin(cx));
                    self.phase = self.ask(in_force);
                }
                Phase::Asking(asking) => match std::task::ready!(asking.poll_unpin(cx)) {
                    Verdict::Granted(answer) => {
                        let identity = in_force.load().authority.identify_by_hook(&answer, SystemTime::now());
                        self.phase = Phase::Over;
                        return identity.map_or(Poll::Pending, Poll::Ready);
                    }
                    Verdict::Refused(..) => self.phase = Phase::Over,
                    Verdict::Away => {
                        let left = (self.answer.at + self.answer.lasts).duration_since(SystemTime::now());
                        let pause = (left.unwrap_or_default() / 2).max(RETRY_AFTER);
                        self.phase = Phase::Until(Box::pin(sleep(pause)));
                    }
                },
            }
        }
    }

    fn ask(&self, in_force: &InForce) -> Phase {
        let hook = in_force.load().hook.clone();
        // Another backend is not shown what the client meant for this one.
        let Some(hook) = hook.filter(|hook| self.question.is_for(&hook.settings)) else { return Phase::Over };
        let (question, context, after) = (self.question.clone(), in_force.context().clone(), self.answer.at);
        Phase::Asking(async move { hook.ask(&question, Asker::Renewal(after), &context).await }.boxed())
    }
}
