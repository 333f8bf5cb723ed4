//! The topic of every retained message, sorted by id.
//!
//! Its entries lie in blocks, because a tree with one node for few entries takes twice the memory.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use crate::{log::Tail, message::Id};

/// How many entries a block holds. Removing one moves those behind it.
const BLOCK: usize = 64;

/// The tail of the topic of each retained message, by the id of the message.
#[derive(Default)]
pub struct Order {
    /// The key of a block is at most the id of its first entry, and above every id of the block before it.
    blocks: BTreeMap<Id, Vec<(Id, Arc<Tail>)>>,
    len: usize,
}

impl Order {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a message that is newer than all others.
    pub fn push(&mut self, id: Id, tail: Arc<Tail>) {
        debug_assert!(
            self.blocks.last_key_value().and_then(|(_, block)| block.last()).is_none_or(|it| it.0 < id)
        );
        self.len += 1;
        match self.blocks.last_entry() {
            Some(mut last) if last.get().len() < BLOCK => last.get_mut().push((id, tail)),
            _ => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push((id, tail));
                self.blocks.insert(id, block);
            }
        }
    }

    pub fn remove(&mut self, id: Id) {
        let Some((&key, block)) = self.blocks.range_mut(..=id).next_back() else { return };
        let Ok(at) = block.binary_search_by_key(&id, |entry| entry.0) else { return };
        block.remove(at);
        self.len -= 1;
        if block.is_empty() {
            self.blocks.remove(&key);
        } else if block.len() < block.capacity() / 4 {
            block.shrink_to(2 * block.len());
        }
    }

    pub fn contains(&self, id: Id) -> bool {
        self.block_of(id).binary_search_by_key(&id, |entry| entry.0).is_ok()
    }

    pub fn oldest(&self) -> Option<&(Id, Arc<Tail>)> {
        self.blocks.first_key_value()?.1.first()
    }

    /// All entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &(Id, Arc<Tail>)> {
        self.blocks.values().flatten()
    }

    /// The entries after `id`, oldest first.
    pub fn after(&self, id: Id) -> impl Iterator<Item = &(Id, Arc<Tail>)> {
        let block = self.block_of(id);
        let rest = &block[block.partition_point(|entry| entry.0 <= id)..];
        rest.iter().chain(self.blocks.range((Excluded(id), Unbounded)).flat_map(|(_, block)| block))
    }

    /// The entries before `id`, newest first.
    pub fn before(&self, id: Id) -> impl Iterator<Item = &(Id, Arc<Tail>)> {
        let entries = self.blocks.range(..id).rev().flat_map(|(_, block)| block.iter().rev());
        entries.skip_while(move |entry| entry.0 >= id)
    }

    /// The block in which `id` is, if it is anywhere.
    fn block_of(&self, id: Id) -> &[(Id, Arc<Tail>)] {
        self.blocks.range(..=id).next_back().map_or(&[], |(_, block)| block)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_order_says_the_same_as_a_sorted_set() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let tail = Arc::new(Tail::new("a".parse().expect("a pattern"), Id::ZERO));
        let (mut order, mut ids) = (Order::default(), std::collections::BTreeSet::new());
        for round in 1..3_000_u64 {
            let id = Id::new(10 * round);
            order.push(id, tail.clone());
            ids.insert(id);
            // More leave than come in every second third of the time.
            for _ in 0..if round / 1_000 == 1 { 2 } else { 1 } {
                let gone = Id::new(10 * random.random_range(1..=round));
                order.remove(gone);
                ids.remove(&gone);
            }
            let at = Id::new(random.random_range(0..10 * round + 20));
            let some = |entries: &mut dyn Iterator<Item = &(Id, Arc<Tail>)>| {
                entries.take(100).map(|entry| entry.0).collect::<Vec<_>>()
            };
            let after: Vec<_> = ids.range((Excluded(at), Unbounded)).take(100).copied().collect();
            let before: Vec<_> = ids.range(..at).rev().take(100).copied().collect();
            assert_eq!(some(&mut order.after(at)), after);
            assert_eq!(some(&mut order.before(at)), before);
            assert_eq!((order.len(), order.contains(at)), (ids.len(), ids.contains(&at)));
            assert_eq!(order.oldest().map(|entry| entry.0), ids.first().copied());
        }
        assert!(order.iter().map(|entry| entry.0).eq(ids.iter().copied()));
        while let Some(id) = order.oldest().map(|entry| entry.0) {
            order.remove(id);
        }
        assert_eq!((order.len(), order.blocks.len()), (0, 0));
    }
}
