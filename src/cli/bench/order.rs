//! Finds the numbers of a series that are missing, that came twice, or that came too late.

use std::{collections::VecDeque, ops::Range};

/// How many missing ranges are remembered. A number of an older range counts as a duplicate.
const MAX_HOLES: usize = 256;

#[derive(Debug, Default)]
pub struct Order {
    /// The number that is due.
    next: u64,
    /// The missing ranges before it, ascending.
    holes: VecDeque<Range<u64>>,
    /// Missing numbers that no range remembers any more.
    given_up: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

impl Order {
    pub fn take(&mut self, number: u64) {
        if number >= self.next {
            if number > self.next {
                self.holes.push_back(self.next..number);
            }
            self.next = number + 1;
            if self.holes.len() > MAX_HOLES {
                self.given_up += self.holes.pop_front().map_or(0, |hole| hole.end - hole.start);
            }
            return;
        }
        let Some(index) = self.holes.iter().position(|hole| hole.contains(&number)) else {
            self.duplicated += 1;
            return;
        };
        self.reordered += 1;
        let hole = self.holes.remove(index).expect("it was found there");
        for part in [number + 1..hole.end, hole.start..number] {
            if !part.is_empty() {
                self.holes.insert(index, part);
            }
        }
    }

    /// How many of `published` numbers did not come.
    pub fn lost(&self, published: u64) -> u64 {
        let holes: u64 = self.holes.iter().map(|hole| hole.end - hole.start).sum();
        self.given_up + holes + published.saturating_sub(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(numbers: impl IntoIterator<Item = u64>) -> Order {
        let mut order = Order::default();
        numbers.into_iter().for_each(|number| order.take(number));
        order
    }

    #[track_caller]
    fn assert_order(numbers: &[u64], lost: u64, duplicated: u64, reordered: u64) {
        let order = order(numbers.iter().copied());
        assert_eq!((order.lost(6), order.duplicated, order.reordered), (lost, duplicated, reordered));
    }

    #[test]
    fn missing_doubled_and_late_numbers_are_counted_apart() {
        assert_order(&[0, 1, 2, 3, 4, 5], 0, 0, 0);
        assert_order(&[], 6, 0, 0);
        assert_order(&[0, 1, 2], 3, 0, 0);
        assert_order(&[3, 4, 5], 3, 0, 0);
        assert_order(&[0, 5], 4, 0, 0);
        assert_order(&[0, 1, 1, 2, 3, 4, 5, 0], 0, 2, 0);
        assert_order(&[0, 2, 1, 3, 4, 5], 0, 0, 1);
        assert_order(&[5, 2, 0, 4, 2], 2, 1, 3);
        assert_order(&[5, 4, 3, 2, 1, 0], 0, 0, 5);
    }

    #[test]
    fn memory_is_bounded_and_every_missing_number_still_counts() {
        let every_second = order((0..10_000).map(|number| 2 * number));
        assert_eq!(every_second.holes.len(), MAX_HOLES);
        assert_eq!(every_second.lost(20_000), 10_000);
    }
}
