//! Waits until copies of Redis have confirmed the stored messages.
//!
//! `WAIT` blocks its connection, so it has one of its own. It counts what this connection has written. So
//! each round writes something first: then everything that was stored before is confirmed too.

use std::{sync::Arc, time::Duration};

use redis::{AsyncConnectionConfig, RedisError, aio::MultiplexedConnection};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    facts::Facts,
    primary::ConnectError,
    store::{ANSWER_TIMEOUT, RETRY_AFTER, Store},
};
use crate::{log::LogError, message::Id};

/// How long the copies may take to confirm a message after it was stored.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long Redis waits for its copies in one round.
const ROUND: Duration = Duration::from_millis(500);
/// How often a warning says that the copies do not confirm.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Lets copies confirm stored messages, in rounds. All callers that wait share the next round.
pub struct Copies {
    store: Arc<Store>,
    /// How many copies have to confirm. With none, every message counts as confirmed.
    count: usize,
    /// How many callers have asked so far.
    asked: watch::Sender<u64>,
    confirmed: watch::Sender<Round>,
}

/// The result of the last round.
#[derive(Clone, Copy, Default)]
struct Round {
    /// How many callers had asked when the round began.
    asked: u64,
    /// The generation of the store, if enough copies have confirmed.
    began: Option<Id>,
}

#[derive(Debug, thiserror::Error)]
enum Unconfirmed {
    #[error("{0}")]
    Unreachable(#[from] ConnectError),
    #[error("{0}")]
    Redis(#[from] RedisError),
}

impl Copies {
    pub fn new(store: Arc<Store>, count: usize) -> Self {
        Self { store, count, asked: watch::Sender::default(), confirmed: watch::Sender::default() }
    }

    /// Waits until enough copies have everything that the store had when this was called, if the store was of
    /// this generation then.
    ///
    /// # Errors
    /// [`LogError::UnknownOutcome`] if the copies do not confirm within a second: perhaps only the primary
    /// has it.
    ///
    /// # Cancel safety
    /// Dropping this changes nothing.
    pub async fn confirm(&self, generation: Id) -> Result<(), LogError> {
        if self.count == 0 {
            return Ok(());
        }
        let mut confirmed = self.confirmed.subscribe();
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let round = timeout(PATIENCE, confirmed.wait_for(|round| round.asked >= number)).await;
        // The sender is in self, so the channel never closes.
        let began = round.ok().and_then(|round| round.ok()?.began);
        // A primary other than the one that stored the message may lack it.
        if began == Some(generation) { Ok(()) } else { Err(LogError::UnknownOutcome) }
    }

    /// Runs a round whenever a caller asks for one. Never ends.
    pub async fn keep_confirming(self: Arc<Self>) {
        let (mut is_enough, mut warned) = (true, None::<Instant>);
        loop {
            let began = Instant::now();
            if let Err(why) = self.confirm_rounds(&mut is_enough).await
                && warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
            {
                tracing::warn!(redis = %self.store.address(), %why, "copies cannot be asked to confirm");
                warned = Some(Instant::now());
            }
            sleep_until(began + RETRY_AFTER).await;
        }
    }

    /// Runs rounds on one connection, as long as it leads to the primary and enough copies confirm.
    async fn confirm_rounds(&self, is_enough: &mut bool) -> Result<(), Unconfirmed> {
        let publishing = self.store.current();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_TIMEOUT));
        let (_, mut connection) = self.store.primary().connect(config).await?;
        let mut asked = self.asked.subscribe();
        loop {
            let answered = self.confirmed.borrow().asked;
            let number = tokio::select! {
                asked = asked.wait_for(|asked| *asked > answered) => asked.map_or(answered, |asked| *asked),
                // A new publishing connection may lead to another primary.
                () = self.store.renewed(publishing) => return Ok(()),
            };
            let (facts, copies) = self.round(&mut connection).await?;
            let was_enough = std::mem::replace(is_enough, copies >= self.count);
            self.confirmed.send_replace(Round { asked: number, began: is_enough.then_some(facts.began) });
            if was_enough && !*is_enough {
                let wanted = self.count;
                tracing::warn!(
                    copies,
                    wanted,
                    "too few copies confirm in time; publishing has an unknown outcome"
                );
            } else if *is_enough && !was_enough {
                tracing::info!(copies, "enough copies confirm again");
            }
            if !*is_enough {
                // A primary that is cut off from its copies may have been replaced. Connect again.
                return Ok(());
            }
        }
    }

    async fn round(&self, connection: &mut MultiplexedConnection) -> Result<(Facts, usize), RedisError> {
        let invocation = self.store.invocation(&self.store.scripts.confirm, "", &[], true, None);
        let facts = invocation.invoke_async(connection).await?;
        let mut wait = redis::cmd("WAIT");
        let copies = wait.arg(self.count).arg(ROUND.as_millis() as u64).query_async(connection).await?;
        Ok((facts, copies))
    }
}
