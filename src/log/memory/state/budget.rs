//! The limit on what one step does under the lock.

/// The cost of one entry of the log, in nodes of patterns, without the nodes that are visited for it.
const ENTRY: usize = 4;

/// How many nodes of patterns the step may still visit before it releases the lock.
#[derive(Debug)]
pub struct Budget(usize);

impl Budget {
    pub fn of(nodes: usize) -> Self {
        Self(nodes)
    }

    /// Counts one entry, and the nodes that were visited for it. The last entry of a step may cost more than
    /// what is left.
    pub fn spend(&mut self, nodes: usize) {
        self.0 = self.0.saturating_sub(ENTRY + nodes);
    }

    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }
}
