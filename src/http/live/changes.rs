//! The changes that commands have made at one connection, and those that its client has yet to be told.

use std::collections::{BTreeSet, VecDeque};

use super::reading::Event;
use crate::{
    http::{
        MAX_TOPICS,
        problem::{Code, Problem},
    },
    message::Pattern,
};

/// Made by the first command about a connection.
#[derive(Default)]
pub struct Changes {
    /// The patterns that commands have added. The grants of the client do not matter for them.
    added: BTreeSet<Pattern>,
    /// The commands that begin to read a pattern, by their numbers. Removing the pattern overtakes them.
    begun: Vec<(u64, Pattern)>,
    next_number: u64,
    /// The answer to the client's own command. It comes before the changes that the client has yet to be told.
    answer: Option<Event>,
    /// The changes that the client has yet to be told, each pattern once.
    untold: VecDeque<(Pattern, Told)>,
}

/// A change that the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Added,
    Removed,
}

impl Changes {
    /// Notes that a command begins to read `pattern`, and returns the number of that command.
    pub fn begin(&mut self, pattern: Pattern) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.begun.push((number, pattern));
        number
    }

    /// Notes that the command with this number has begun. False if it was overtaken.
    pub fn finish(&mut self, number: u64) -> bool {
        let before = self.begun.len();
        self.begun.retain(|(other, _)| *other != number);
        self.begun.len() < before
    }

    /// Overtakes the commands that begin to read `pattern`.
    pub fn overtake(&mut self, pattern: &Pattern) {
        self.begun.retain(|(_, begun)| begun != pattern);
    }

    /// The patterns that commands begin to read.
    pub fn begun(&self) -> impl ExactSizeIterator<Item = &Pattern> {
        self.begun.iter().map(|(_, pattern)| pattern)
    }

    /// Notes that a command has added `pattern`.
    pub fn add(&mut self, pattern: &Pattern) {
        self.added.insert(pattern.clone());
    }

    /// Notes that `pattern` is read no longer. The client is not told any more that it was added.
    pub fn forget(&mut self, pattern: &Pattern) {
        self.added.remove(pattern);
        self.untold.retain(|(other, told)| other != pattern || *told == Told::Removed);
    }

    /// True if a command has added `pattern`.
    pub fn has_added(&self, pattern: &Pattern) -> bool {
        self.added.contains(pattern)
    }

    /// Has the client's own command answered.
    pub fn answer(&mut self, answer: Event) {
        self.answer = Some(answer);
    }

    /// True if the client waits for such an answer.
    pub fn has_answer(&self) -> bool {
        self.answer.is_some()
    }

    /// True if the client was told everything.
    pub fn is_told(&self) -> bool {
        self.untold.is_empty() && self.answer.is_none()
    }

    /// True if the client was told everything, and nothing is being added.
    pub fn is_quiet(&self) -> bool {
        self.is_told() && self.begun.is_empty()
    }

    /// Has the client told. This replaces an older change of the same pattern.
    ///
    /// # Errors
    /// If too much waits for the client already.
    pub fn tell(&mut self, pattern: &Pattern, told: Told) -> Result<(), Problem> {
        self.untold.retain(|(other, _)| other != pattern);
        if self.untold.len() >= MAX_TOPICS {
            let detail = "the client does not read, and too many changes of its topics wait for it already; try again later";
            return Err(Problem::new(Code::Overloaded, detail).about(pattern));
        }
        self.untold.push_back((pattern.clone(), told));
        Ok(())
    }

    /// Has the client told before anything else.
    pub fn tell_next(&mut self, pattern: &Pattern, told: Told) {
        self.untold.push_front((pattern.clone(), told));
    }

    /// The next thing that the client is told.
    pub fn next(&mut self) -> Option<Event> {
        if let Some(answer) = self.answer.take() {
            return Some(answer);
        }
        let (pattern, told) = self.untold.pop_front()?;
        Some(match told {
            Told::Added => Event::Added(pattern),
            Told::Removed => Event::Removed(pattern),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(changes: &mut Changes) -> Vec<String> {
        std::iter::from_fn(|| changes.next()).map(|event| format!("{event:?}")).collect()
    }

    #[test]
    fn a_pattern_that_is_read_no_longer_is_not_told_as_added() {
        let [a, b] = ["a", "b"].map(|name| name.parse::<Pattern>().expect("a pattern"));
        let mut changes = Changes::default();
        for pattern in [&a, &b] {
            changes.tell(pattern, Told::Added).expect("there is room");
            changes.add(pattern);
        }
        // The client unsubscribes before it is told.
        changes.forget(&a);
        assert!(!changes.has_added(&a) && changes.has_added(&b));
        // A command removes the other.
        changes.tell(&b, Told::Removed).expect("there is room");
        changes.forget(&b);
        assert_eq!(told(&mut changes), [format!("{:?}", Event::Removed(b))]);
    }
}
