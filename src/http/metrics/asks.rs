//! Counts what the server asks of others: keys of issuers, and questions to the backend.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::{counters, gauge};

/// The outcomes of a question to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Granted,
    Refused,
    Away,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Granted, Self::Refused, Self::Away];

    fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Away => "away",
        }
    }
}

#[derive(Clone)]
pub struct AskMetrics {
    fetched: IntCounter,
    failed: IntCounter,
    questions: IntCounterVec,
    /// Requests that wait for an answer of the backend.
    pub waiting: IntGauge,
}

impl AskMetrics {
    pub fn new(registry: &Registry) -> Self {
        let fetches =
            counters(registry, "rejoin_jwks_fetches_total", "Fetches of the keys of an issuer.", "outcome");
        let questions = counters(
            registry,
            "rejoin_hook_questions_total",
            "Questions to the backend of [hook].",
            "outcome",
        );
        // Each series exists from the beginning, so that its first event already raises a rate.
        Outcome::ALL.iter().for_each(|outcome| drop(questions.with_label_values(&[outcome.as_str()])));
        Self {
            fetched: fetches.with_label_values(&["fetched"]),
            failed: fetches.with_label_values(&["failed"]),
            questions,
            waiting: gauge(
                registry,
                "rejoin_hook_waiting",
                "Requests that wait for an answer of the backend.",
            ),
        }
    }

    pub fn fetched(&self, is_fetched: bool) {
        if is_fetched { self.fetched.inc() } else { self.failed.inc() }
    }

    pub fn asked(&self, outcome: Outcome) {
        self.questions.with_label_values(&[outcome.as_str()]).inc();
    }
}
