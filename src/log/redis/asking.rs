//! Asks the store for its newest id, for all callers at once.
//!
//! A task of its own asks. So a caller that leaves, or that is slow, keeps no other caller waiting.

use std::sync::Arc;

use tokio::sync::watch;

use super::link::Link;
use crate::{log::LogError, message::Id};

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
    newest: Result<Id, LogError>,
}

impl Asking {
    pub fn new(link: Arc<Link>) -> Self {
        let first = Answer { asked: 0, newest: Err(LogError::Unavailable) };
        Self { link, asked: watch::Sender::default(), answered: watch::Sender::new(first) }
    }

    /// The store's newest id. The store is asked after the call.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the store does not answer.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    pub async fn newest(&self) -> Result<Id, LogError> {
        let mut answered = self.answered.subscribe();
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let answer = answered.wait_for(|answer| answer.asked >= number).await;
        // The sender is in self, so the channel never closes.
        answer.map_or(Err(LogError::Unavailable), |answer| answer.newest)
    }

    /// Asks whenever a caller waits. Never ends.
    pub async fn keep_asking(self: Arc<Self>) {
        let mut callers = self.asked.subscribe();
        let mut answered = 0;
        loop {
            let asked = callers.wait_for(|asked| *asked > answered).await.map_or(answered, |asked| *asked);
            let newest = self.link.ask().await.map(|facts| facts.newest);
            self.answered.send_replace(Answer { asked, newest });
            answered = asked;
        }
    }
}
