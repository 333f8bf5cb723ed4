//! The tails of the patterns that are followed, found by a topic's segments.

use std::{collections::HashMap, sync::Arc};

use crate::{
    log::Tail,
    message::{Message, Pattern},
};

/// How many messages the tail of a pattern holds; who is further behind reads the log.
const MAX_MESSAGES: usize = 256;
/// How many bytes it may keep from being freed.
const MAX_BYTES: usize = 1 << 20;

/// A trie of followed patterns. Matching costs what the topic's segments cost, not what the patterns do.
#[derive(Debug, Default)]
pub struct PatternTails {
    children: HashMap<Box<str>, PatternTails>,
    tail: Option<Arc<Tail>>,
}

impl PatternTails {
    /// The tail of `pattern`, made by `new` if nobody follows it yet.
    pub fn entry(&mut self, pattern: &Pattern, new: impl FnOnce() -> Tail) -> Arc<Tail> {
        let node = pattern
            .as_str()
            .split('.')
            .fold(self, |node, segment| node.children.entry(segment.into()).or_default());
        node.tail.get_or_insert_with(|| Arc::new(new())).clone()
    }

    pub fn remove(&mut self, pattern: &Pattern) {
        self.remove_segments(&mut pattern.as_str().split('.'));
    }

    fn remove_segments<'a>(&mut self, segments: &mut impl Iterator<Item = &'a str>) {
        let Some(segment) = segments.next() else {
            self.tail = None;
            return;
        };
        if let Some(child) = self.children.get_mut(segment) {
            child.remove_segments(segments);
            if child.tail.is_none() && child.children.is_empty() {
                self.children.remove(segment);
            }
        }
    }

    /// Adds the tails of all patterns that match `topic`.
    pub fn matching(&self, topic: &str, found: &mut Vec<Arc<Tail>>) {
        if !self.children.is_empty() {
            self.matching_segments(Some(topic), !topic.starts_with('$'), found);
        }
    }

    fn matching_segments(&self, rest: Option<&str>, wildcards: bool, found: &mut Vec<Arc<Tail>>) {
        let Some(rest) = rest else {
            found.extend(self.tail.clone());
            return;
        };
        let (segment, rest) = match rest.split_once('.') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get(segment) {
            child.matching_segments(rest, true, found);
        }
        if wildcards {
            if let Some(child) = self.children.get("*") {
                child.matching_segments(rest, true, found);
            }
            if let Some(child) = self.children.get("**") {
                found.extend(child.tail.clone());
            }
        }
    }
}

/// Appends to the tail of a pattern, which holds no more than the newest.
pub fn push(tail: &Tail, message: Arc<Message>) {
    tail.push(message);
    let mut ring = tail.ring();
    while ring.len() > MAX_MESSAGES || (ring.bytes() > MAX_BYTES && ring.len() > 1) {
        ring.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Id;

    #[test]
    fn the_trie_finds_what_matching_one_by_one_finds() {
        let patterns = ["a.*", "a.**", "*.b", "**", "*", "a.*.c", "$s.*", "*.*.*", "a.$b.*"];
        let topics = ["a", "a.b", "a.b.c", "x.b", "$s", "$s.b", "$s.b.c", "a.$b.c"];
        let mut trie = PatternTails::default();
        for pattern in patterns.map(|text| text.parse::<Pattern>().expect("a pattern")) {
            trie.entry(&pattern, || Tail::new(pattern.clone(), Id::ZERO));
        }
        let found = |trie: &PatternTails, topic: &str| {
            let mut found = Vec::new();
            trie.matching(topic, &mut found);
            let mut names: Vec<_> = found.iter().map(|tail| tail.name().to_string()).collect();
            names.sort();
            names
        };
        for topic in topics {
            let mut expected: Vec<_> = patterns
                .into_iter()
                .filter(|text| text.parse::<Pattern>().expect("a pattern").matches(topic))
                .map(str::to_owned)
                .collect();
            expected.sort();
            assert_eq!(found(&trie, topic), expected, "{topic}");
        }
        for pattern in patterns {
            trie.remove(&pattern.parse().expect("a pattern"));
        }
        assert!(trie.children.is_empty());
    }
}
