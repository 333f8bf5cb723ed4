//! Asks the store for its facts, for all callers at once.
//!
//! A task of its own asks. So a caller that leaves, or that is slow, keeps no other caller waiting.

use std::sync::Arc;

use tokio::sync::watch;

use super::{facts::Facts, link::Link};
use crate::log::LogError;

/// One question at a time. All callers that wait share the next answer.
pub struct Asking {
    link: Arc<Link>,
    /// How many callers have asked so far.
    asked: watch::Sender<u64>,
    answered: watch::Sender<Answer>,
}

struct Answer {
    /// How many callers had asked when the question was sent.
    asked: u64,
    facts: Result<Arc<Facts>, LogError>,
}

impl Asking {
    pub fn new(link: Arc<Link>) -> Self {
        let first = Answer { asked: 0, facts: Err(LogError::Unavailable) };
        Self { link, asked: watch::Sender::default(), answered: watch::Sender::new(first) }
    }

    /// The facts of the store, with its newest id. The store is asked after the call.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the store does not answer.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    pub async fn facts(&self) -> Result<Arc<Facts>, LogError> {
        let mut answered = self.answered.subscribe();
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let answer = answered.wait_for(|answer| answer.asked >= number).await;
        // The sender is in self, so the channel never closes.
        answer.map_or(Err(LogError::Unavailable), |answer| answer.facts.clone())
    }

    /// Asks whenever a caller waits. Never ends.
    pub async fn keep_asking(self: Arc<Self>) {
        let mut callers = self.asked.subscribe();
        let mut answered = 0;
        loop {
            let asked = callers.wait_for(|asked| *asked > answered).await.map_or(answered, |asked| *asked);
            let facts = self.link.ask().await.map(Arc::new);
            self.answered.send_replace(Answer { asked, facts });
            answered = asked;
        }
    }
}
