//! How many topics each client has made, of those that the index knows.

use std::collections::HashMap;

use crate::log::Payer;

/// The topics of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    pub topics: usize,
    pub bytes: usize,
}

#[derive(Debug, Default)]
pub struct Makers(HashMap<Payer, Made>);

impl Makers {
    /// The topics of this client. A backend with an API key counts for none.
    pub fn of(&self, payer: Option<Payer>) -> Made {
        payer.and_then(|payer| self.0.get(&payer)).copied().unwrap_or_default()
    }

    /// Counts a new topic of so many bytes.
    pub fn add(&mut self, payer: Option<Payer>, bytes: usize) {
        let Some(payer) = payer else { return };
        let made = self.0.entry(payer).or_default();
        made.topics += 1;
        made.bytes += bytes;
    }

    /// The index has forgotten such a topic.
    pub fn remove(&mut self, payer: Option<Payer>, bytes: usize) {
        let Some(payer) = payer else { return };
        let Some(made) = self.0.get_mut(&payer) else { return };
        made.topics -= 1;
        made.bytes -= bytes;
        if made.topics == 0 {
            self.0.remove(&payer);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
