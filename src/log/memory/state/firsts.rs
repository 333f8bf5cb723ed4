//! The oldest retained message of each pattern, searched in steps that release the lock in between.

use super::{State, budget::Budget};
use crate::message::{Id, PatternSet};

/// The oldest message of each pattern, as far as the search has come.
#[derive(Debug)]
pub struct Firsts {
    /// By the number of the pattern.
    found: Vec<Option<Id>>,
    /// A pattern without a found message has none up to this id.
    searched: Id,
}

impl Firsts {
    /// Begins a search for messages after `after`.
    pub fn new(patterns: &PatternSet, after: Id) -> Self {
        Self { found: vec![None; patterns.wildcards().len()], searched: after }
    }

    pub fn of(&self, number: usize) -> Option<Id> {
        self.found[number]
    }

    /// Notes a message of the pattern with this number. The oldest one stays.
    pub fn note(&mut self, number: usize, id: Id) {
        let found = &mut self.found[number];
        *found = Some(found.map_or(id, |first| first.min(id)));
    }

    pub fn oldest(&self) -> Option<Id> {
        self.found.iter().flatten().min().copied()
    }
}

impl State {
    /// Searches for the oldest messages of the wanted patterns, and again for those that were lost since they
    /// were found. True if all are known, which holds until the lock is released.
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
            // The next message of the pattern comes after the lost one, because new messages are newer than
            // all others.
            if let Some(lost) = found.take_if(|id| !self.order.contains(*id)) {
                *searched = lost.min(*searched);
            }
            missing += usize::from(found.is_none());
        }
        let mut order = self.order.after(*searched);
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
