//! Short questions from one replica of a deployment to another, and the answers. The log does not know what they say.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// Answers the questions of other replicas.
pub trait Answering: Send + Sync + 'static {
    /// The answer to a question, or none. After `until` it must not have an effect any more.
    fn answer(&self, question: Bytes, until: Instant) -> BoxFuture<'static, Option<Vec<u8>>>;

    /// This replica was silent for so long that the others count it as gone under this name. Ends its connections, and
    /// returns how many these were.
    fn counted_gone(&self, name: u64) -> usize;
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// No replica of that name lives.
    #[error("the replica is gone")]
    Gone,
    /// Too many questions wait, here or there. The question had no effect.
    #[error("too many questions wait")]
    Busy,
    /// It was not answered in time, and may have had its effect.
    #[error("the replica did not answer in time")]
    Unknown,
}
