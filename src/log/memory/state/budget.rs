//! How much one step does under the lock.

/// What an entry of the log costs beside the nodes of patterns that are looked at for it, in such nodes.
const ENTRY: usize = 4;

/// What is left of a step before others may have the lock, in nodes of patterns.
#[derive(Debug)]
pub struct Budget(usize);

impl Budget {
    pub fn of(nodes: usize) -> Self {
        Self(nodes)
    }

    /// An entry was looked at, and for it so many nodes. It may take more than what is left: then it is the last.
    pub fn spend(&mut self, nodes: usize) {
        self.0 = self.0.saturating_sub(ENTRY + nodes);
    }

    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }
}
