//! Many patterns at once: one walk along the segments of a topic matches all of them.

use std::{collections::HashMap, ops::Deref};

use super::Pattern;

/// Patterns, each with a value. The cost of a match depends on the segments of the topic, not on the number
/// of patterns.
#[derive(Clone, Debug)]
pub struct PatternMap<T> {
    children: HashMap<Box<str>, Self>,
    /// The patterns with a `*` here.
    any: Option<Box<Self>>,
    /// The value of the pattern that ends here with `**`.
    rest: Option<T>,
    /// The value of the pattern that ends here.
    end: Option<T>,
}

/// The point from which a [walk](PatternMap::walk) continues: the path to the next node, by name or by `*` at
/// each segment.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    is_wildcard: Vec<bool>,
}

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), any: None, rest: None, end: None }
    }
}

impl<T> PatternMap<T> {
    /// The value of `pattern`, which is made by `new` if there is none yet.
    pub fn entry(&mut self, pattern: &Pattern, new: impl FnOnce() -> T) -> &mut T {
        let mut node = self;
        for segment in pattern.segments() {
            node = match segment {
                "**" => return node.rest.get_or_insert_with(new),
                "*" => node.any.get_or_insert_default(),
                name => node.children.entry(name.into()).or_default(),
            };
        }
        node.end.get_or_insert_with(new)
    }

    /// Removes a pattern, if it is there.
    pub fn remove(&mut self, pattern: &Pattern) {
        self.remove_segments(&mut pattern.segments());
    }

    fn remove_segments<'a>(&mut self, segments: &mut impl Iterator<Item = &'a str>) {
        match segments.next() {
            None => self.end = None,
            Some("**") => self.rest = None,
            Some("*") => {
                self.any.iter_mut().for_each(|child| child.remove_segments(segments));
                self.any.take_if(|child| child.is_empty());
            }
            Some(name) => {
                let Some(child) = self.children.get_mut(name) else { return };
                child.remove_segments(segments);
                if child.is_empty() {
                    self.children.remove(name);
                }
            }
        }
    }

    /// True if there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.rest.is_none() && self.end.is_none()
    }

    /// Gives `take` the values of the patterns that match `topic`, until `take` returns something.
    pub fn find<'a, R>(&'a self, topic: &str, take: impl FnMut(&'a T) -> Option<R>) -> Option<R> {
        self.find_counting(topic, &mut 0, take)
    }

    /// The same. Adds to `nodes` how many nodes it visits: never more than all patterns have segments.
    fn find_counting<'a, R>(
        &'a self,
        topic: &str,
        nodes: &mut usize,
        mut take: impl FnMut(&'a T) -> Option<R>,
    ) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        // A wildcard does not match a reserved first segment.
        self.find_in(topic, !topic.starts_with('$'), nodes, &mut take)
    }

    fn find_in<'a, R>(
        &'a self,
        topic: &str,
        has_wildcards: bool,
        nodes: &mut usize,
        take: &mut impl FnMut(&'a T) -> Option<R>,
    ) -> Option<R> {
        *nodes += 1;
        #[cfg(test)]
        steps::count();
        let (segment, behind) = match topic.split_once('.') {
            Some((segment, behind)) => (segment, Some(behind)),
            None => (topic, None),
        };
        let (rest, any) =
            if has_wildcards { (self.rest.as_ref(), self.any.as_deref()) } else { (None, None) };
        if let Some(found) = rest.and_then(&mut *take) {
            return Some(found);
        }
        let next = [self.children.get(segment), any];
        next.into_iter().flatten().find_map(|node| match behind {
            Some(behind) => node.find_in(behind, true, nodes, take),
            None => node.end.as_ref().and_then(&mut *take),
        })
    }

    /// Continues to give `take` the values of the patterns that match `topic`, and visits up to `nodes`. True
    /// once the walk is done.
    ///
    /// Patterns may be added and removed meanwhile. One that stays is given once. One that is added may be
    /// given or not.
    pub fn walk(&self, topic: &str, walk: &mut Walk, nodes: usize, mut take: impl FnMut(&T)) -> bool {
        let from = std::mem::take(&mut walk.is_wildcard);
        self.walk_in(topic, !topic.starts_with('$'), &from, walk, &mut nodes.max(1), &mut take)
    }

    /// Visits the node at `from` and those behind it. All nodes are behind an empty `from`.
    fn walk_in(
        &self,
        topic: &str,
        has_wildcards: bool,
        from: &[bool],
        walk: &mut Walk,
        nodes: &mut usize,
        take: &mut impl FnMut(&T),
    ) -> bool {
        let (segment, behind) = match topic.split_once('.') {
            Some((segment, behind)) => (segment, Some(behind)),
            None => (topic, None),
        };
        if from.is_empty() {
            let Some(left) = nodes.checked_sub(1) else { return false };
            *nodes = left;
            #[cfg(test)]
            steps::count();
            self.rest.iter().filter(|_| has_wildcards).for_each(&mut *take);
        }
        let named = self.children.get(segment).map(|node| (false, node));
        let any = self.any.as_deref().filter(|_| has_wildcards).map(|node| (true, node));
        for (is_wildcard, node) in named.into_iter().chain(any) {
            let from = match from.split_first() {
                Some((at, _)) if !is_wildcard & at => continue,
                Some((at, from)) if is_wildcard == *at => from,
                _ => &[],
            };
            let Some(behind) = behind else {
                node.end.iter().for_each(&mut *take);
                continue;
            };
            walk.is_wildcard.push(is_wildcard);
            if !node.walk_in(behind, true, from, walk, nodes, take) {
                return false;
            }
            walk.is_wildcard.pop();
        }
        true
    }

    fn for_each_value(&mut self, change: &mut impl FnMut(&mut T)) {
        self.rest.iter_mut().chain(&mut self.end).for_each(&mut *change);
        let nodes = self.children.values_mut().chain(self.any.as_deref_mut());
        nodes.for_each(|node| node.for_each_value(change));
    }
}

/// The topics and patterns of one reader, each once: first the topics, then the patterns, each sorted by
/// name.
///
/// It dereferences to a slice of them in that order.
#[derive(Clone, Debug, Default)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
    /// How many of these are topics.
    topics: usize,
    /// The index of each pattern in [`wildcards`](Self::wildcards).
    numbers: PatternMap<usize>,
}

impl PatternSet {
    /// The patterns that are plain topics, sorted.
    pub fn topics(&self) -> &[Pattern] {
        &self.patterns[..self.topics]
    }

    /// The patterns with a wildcard, sorted.
    pub fn wildcards(&self) -> &[Pattern] {
        &self.patterns[self.topics..]
    }

    /// True if exactly this pattern is in the set.
    pub fn contains(&self, pattern: &Pattern) -> bool {
        self.place(pattern).is_ok()
    }

    /// True if `topic` is one of the named topics.
    pub fn names(&self, topic: &str) -> bool {
        self.topics().binary_search_by(|known| known.as_str().cmp(topic)).is_ok()
    }

    /// True if `topic` is named, or if one of the patterns matches it.
    pub fn matches(&self, topic: &str) -> bool {
        self.matches_counting(topic, &mut 0)
    }

    /// The same. Adds to `nodes` how many nodes of the patterns it visits.
    pub fn matches_counting(&self, topic: &str, nodes: &mut usize) -> bool {
        self.names(topic) || self.numbers.find_counting(topic, nodes, |_| Some(())).is_some()
    }

    /// Gives `take` each pattern with a wildcard that matches `topic`.
    pub fn for_each_wildcard<'a>(&'a self, topic: &str, mut take: impl FnMut(&'a Pattern)) {
        self.number_wildcards(topic, &mut 0, |number| take(&self.wildcards()[number]));
    }

    /// Gives `take` the index in [`wildcards`](Self::wildcards) of each pattern that matches `topic`. Adds to
    /// `nodes` how many nodes it visits.
    pub fn number_wildcards(&self, topic: &str, nodes: &mut usize, mut take: impl FnMut(usize)) {
        self.numbers.find_counting(topic, nodes, |number| {
            take(*number);
            None::<()>
        });
    }

    /// Adds `pattern`, and returns its index; `None` if it was there.
    pub fn insert(&mut self, pattern: Pattern) -> Option<usize> {
        let place = self.place(&pattern).err()?;
        if pattern.has_wildcard() {
            let new = place - self.topics;
            self.numbers.for_each_value(&mut |number| *number += usize::from(*number >= new));
            self.numbers.entry(&pattern, || new);
        } else {
            self.topics += 1;
        }
        self.patterns.insert(place, pattern);
        Some(place)
    }

    /// Removes `pattern`, and returns the index that it had; `None` if it was not there.
    pub fn remove(&mut self, pattern: &Pattern) -> Option<usize> {
        let place = self.place(pattern).ok()?;
        if pattern.has_wildcard() {
            let old = place - self.topics;
            self.numbers.remove(pattern);
            self.numbers.for_each_value(&mut |number| *number -= usize::from(*number > old));
        } else {
            self.topics -= 1;
        }
        self.patterns.remove(place);
        Some(place)
    }

    /// The index of `pattern`, or the index at which it belongs.
    fn place(&self, pattern: &Pattern) -> Result<usize, usize> {
        if !pattern.has_wildcard() {
            return self.topics().binary_search(pattern);
        }
        let from = self.topics;
        self.wildcards().binary_search(pattern).map(|place| from + place).map_err(|place| from + place)
    }
}

impl FromIterator<Pattern> for PatternSet {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Self {
        let mut patterns: Vec<_> = patterns.into_iter().collect();
        patterns.sort_unstable_by(|a, b| (a.has_wildcard(), a).cmp(&(b.has_wildcard(), b)));
        patterns.dedup();
        let topics = patterns.partition_point(|pattern| !pattern.has_wildcard());
        let mut numbers = PatternMap::default();
        for (number, pattern) in patterns[topics..].iter().enumerate() {
            numbers.entry(pattern, || number);
        }
        Self { patterns, topics, numbers }
    }
}

impl Deref for PatternSet {
    type Target = [Pattern];

    fn deref(&self) -> &[Pattern] {
        &self.patterns
    }
}

/// Counts the visited nodes, so that tests can measure the cost of a match.
#[cfg(test)]
pub mod steps {
    use std::cell::Cell;

    thread_local!(static STEPS: Cell<usize> = const { Cell::new(0) });

    pub fn count() {
        STEPS.set(STEPS.get() + 1);
    }

    /// How many nodes `work` visits.
    pub fn of(work: impl FnOnce()) -> usize {
        let before = STEPS.get();
        work();
        STEPS.get() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERNS: [&str; 12] =
        ["a.*", "a.**", "*.b", "**", "*", "a.*.c", "$s.*", "*.*.*", "a.$b.*", "a", "$s.b", "*.**"];
    const TOPICS: [&str; 9] = ["a", "b", "a.b", "a.b.c", "x.b", "$s", "$s.b", "$s.b.c", "a.$b.c"];

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("a pattern")
    }

    #[test]
    fn one_walk_finds_the_same_as_matching_one_by_one() {
        let mut map = PatternMap::default();
        for pattern in PATTERNS.map(pattern) {
            map.entry(&pattern, || pattern.clone());
        }
        for topic in TOPICS {
            let mut found = Vec::new();
            map.find(topic, |pattern| {
                found.push(pattern.to_string());
                None::<()>
            });
            found.sort();
            let mut expected: Vec<_> =
                PATTERNS.into_iter().filter(|text| pattern(text).matches(topic)).map(str::to_owned).collect();
            expected.sort();
            assert_eq!(found, expected, "{topic}");
        }
        for text in PATTERNS {
            assert!(!map.is_empty());
            map.remove(&pattern(text));
        }
        assert!(map.is_empty(), "nothing is left of what was removed");
    }

    #[test]
    fn a_walk_in_steps_gives_each_pattern_that_stays_once() {
        for topic in TOPICS {
            for at_once in 1..6 {
                let mut map = PatternMap::default();
                for pattern in PATTERNS.map(pattern) {
                    map.entry(&pattern, || pattern.clone());
                }
                let (mut walk, mut found, mut gone) = (Walk::default(), Vec::new(), PATTERNS.iter());
                let mut is_done = false;
                while !is_done {
                    let cost = steps::of(|| {
                        is_done = map.walk(topic, &mut walk, at_once, |it| found.push(it.to_string()));
                    });
                    assert!(cost <= at_once);
                    // Patterns leave at any moment, and others come.
                    gone.next().into_iter().for_each(|text| map.remove(&pattern(text)));
                    map.entry(&pattern(&format!("*.{}.x", found.len())), || pattern("x"));
                    gone.next();
                }
                let stays =
                    |text: &&str| map.find(topic, |it| (it.as_str() == *text).then_some(())).is_some();
                for text in PATTERNS.into_iter().filter(stays) {
                    assert_eq!(found.iter().filter(|it| *it == text).count(), 1, "{topic}: {text}");
                }
                found.sort();
                assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{topic}: {found:?}");
            }
        }
    }

    #[test]
    fn a_set_matches_what_any_of_its_patterns_matches_as_they_come_and_go() {
        let mut set: PatternSet = PATTERNS[..6].iter().map(|text| pattern(text)).collect();
        for text in &PATTERNS[6..] {
            let place = set.insert(pattern(text)).expect("it is new");
            assert_eq!(set[place].as_str(), *text);
            assert_eq!(set.insert(pattern(text)), None, "it is there");
        }
        let again: PatternSet = PATTERNS.into_iter().chain(PATTERNS).map(pattern).collect();
        assert_eq!(set[..], again[..]);
        assert_eq!(set.topics(), ["$s.b", "a"].map(pattern));
        for text in PATTERNS {
            for topic in TOPICS {
                assert_eq!(set.matches(topic), set.iter().any(|known| known.matches(topic)), "{topic}");
                let mut numbers = Vec::new();
                set.number_wildcards(topic, &mut 0, |number| numbers.push(number));
                numbers.sort_unstable();
                let is_matching = |number: &usize| set.wildcards()[*number].matches(topic);
                let expected: Vec<_> = (0..set.wildcards().len()).filter(is_matching).collect();
                assert_eq!(numbers, expected, "{topic}");
            }
            let place = set.iter().position(|known| known.as_str() == text);
            assert_eq!(set.remove(&pattern(text)), place);
            assert!(set.remove(&pattern(text)).is_none() && !set.contains(&pattern(text)));
        }
        assert!(set.is_empty());
    }

    #[test]
    fn a_match_costs_the_same_however_many_patterns_there_are() {
        let cost = |count: usize| {
            let set: PatternSet = (0..count).map(|number| pattern(&format!("*.x.{number}.*"))).collect();
            steps::of(|| assert!(!set.matches("public.user.7.inbox") && !set.matches("public.x.none.y")))
        };
        assert_eq!(cost(10_000), cost(10));
    }
}
