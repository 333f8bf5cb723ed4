//! The messages of one request. The drafts that are ready are sent together, and no more are taken before those
//! are stored or refused.

use std::{collections::VecDeque, pin::Pin};

use futures_util::FutureExt;
use tokio::task::unconstrained;
use tokio_stream::{Stream, StreamExt};

use super::Draft;

/// The limits of one request in messages and in bytes: enough to make requests cheap, and less than proxies
/// refuse.
const BATCH_MESSAGES: usize = 1_000;
const BATCH_BYTES: usize = 256 << 10;

pub struct Batch {
    /// The messages as they are sent.
    lines: VecDeque<Vec<u8>>,
    /// False if a message of it has no key.
    has_keys: bool,
    /// The beginning of every key: one random text for each publishing.
    keys: String,
    /// How many drafts were taken, ever.
    taken: u64,
}

impl Batch {
    pub fn new() -> Self {
        let keys = format!("{:032x}", rand::random::<u128>());
        Self { lines: VecDeque::new(), has_keys: true, keys, taken: 0 }
    }

    /// Waits for a draft, and takes it with those that are ready. False at the end of the drafts.
    pub async fn fill(&mut self, drafts: &mut Pin<&mut impl Stream<Item = Draft>>) -> bool {
        let Some(first) = drafts.next().await else { return false };
        self.has_keys = true;
        let mut bytes = self.push(&first);
        while self.lines.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
            // A batch is bounded, so it needs not also be as short as tokio wants the turn of a task to be.
            let Some(Some(draft)) = unconstrained(drafts.next()).now_or_never() else { break };
            bytes += self.push(&draft);
        }
        true
    }

    /// Adds a draft, and returns its length.
    fn push(&mut self, draft: &Draft) -> usize {
        self.taken += 1;
        let line = draft.line(|| format!("{}-{}", self.keys, self.taken));
        self.has_keys &= draft.has_key();
        let length = line.len();
        self.lines.push_back(line);
        length
    }

    /// Removes the first message, which has its outcome.
    pub fn pop(&mut self) {
        self.lines.pop_front();
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub fn has_keys(&self) -> bool {
        self.has_keys
    }

    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.lines.iter().map(Vec::len).sum());
        self.lines.iter().for_each(|line| body.extend_from_slice(line));
        body
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// The lengths of the batches that are made of these payloads.
    async fn batches(payloads: impl IntoIterator<Item = String>) -> Vec<usize> {
        let drafts = payloads.into_iter().map(|payload| Draft::new("t", payload));
        let mut drafts = pin!(tokio_stream::iter(drafts));
        let mut lengths = Vec::new();
        let mut batch = Batch::new();
        while batch.fill(&mut drafts).await {
            lengths.push(batch.len());
            (0..batch.len()).for_each(|_| batch.pop());
        }
        lengths
    }

    #[tokio::test]
    async fn a_batch_is_bounded_by_messages_and_by_bytes() {
        let many = batches((0..2 * BATCH_MESSAGES + 1).map(|number| number.to_string())).await;
        assert_eq!(many, [BATCH_MESSAGES, BATCH_MESSAGES, 1]);
        let long = batches((0..5).map(|_| "x".repeat(BATCH_BYTES / 2))).await;
        assert_eq!(long, [2, 2, 1]);
    }

    #[tokio::test]
    async fn every_message_has_a_key_of_its_own() {
        let mut drafts = pin!(tokio_stream::iter((0..3).map(|_| Draft::new("t", "same"))));
        let mut batch = Batch::new();
        assert!(batch.fill(&mut drafts).await && batch.has_keys());
        let different: std::collections::BTreeSet<_> = batch.lines.iter().collect();
        assert_eq!(different.len(), 3);

        let mut drafts = pin!(tokio_stream::iter([Draft::new("t", "x").without_key()]));
        assert!(batch.fill(&mut drafts).await && !batch.has_keys());
    }
}
