//! The oldest retained message of each pattern, sought in steps between which others have the lock.

use std::ops::Bound::{Excluded, Unbounded};

use super::{State, budget::Budget};
use crate::message::{Id, PatternSet};

/// What was found so far.
#[derive(Debug)]
pub struct Firsts {
    /// By the number of the pattern.
    found: Vec<Option<Id>>,
    /// A pattern of which none was found has none up to here.
    searched: Id,
}

impl Firsts {
    /// Seeks after `after`.
    pub fn new(patterns: &PatternSet, after: Id) -> Self {
        Self { found: vec![None; patterns.wildcards().len()], searched: after }
    }

    pub fn of(&self, number: usize) -> Option<Id> {
        self.found[number]
    }

    pub fn oldest(&self) -> Option<Id> {
        self.found.iter().flatten().min().copied()
    }
}

impl State {
    /// Looks for the oldest messages of the patterns that are wanted, and again for those that were lost since they were
    /// found. True if they are all known, which they are until another has the lock.
    pub fn look_for_firsts(
        &self,
        firsts: &mut Firsts,
        patterns: &PatternSet,
        is_wanted: impl Fn(usize) -> bool,
        budget: &mut Budget,
    ) -> bool {
        let Firsts { found, searched } = firsts;
        let mut missing = 0;
        let wanted = found.iter_mut().enumerate().filter(|(number, _)| is_wanted(*number));
        for (_, found) in wanted {
            // The next one is behind it: what comes is newer than all that was there.
            if let Some(lost) = found.take_if(|id| !self.order.contains_key(id)) {
                *searched = lost.min(*searched);
            }
            missing += usize::from(found.is_none());
        }
        let mut order = self.order.range((Excluded(*searched), Unbounded));
        while missing > 0
            && !budget.is_spent()
            && let Some((id, tail)) = order.next()
        {
            let mut nodes = 0;
            patterns.number_wildcards(tail.name().as_str(), &mut nodes, |number| {
                if found[number].is_none() {
                    found[number] = Some(*id);
                    missing -= usize::from(is_wanted(number));
                }
            });
            *searched = *id;
            budget.spend(nodes);
        }
        !budget.is_spent()
    }
}
