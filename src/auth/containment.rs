//! Checks that some patterns together cover another. It compares the topics that they match, not the way they
//! are written.

use crate::message::Pattern;

/// A segment that no pattern can contain, so that only a wildcard matches it. A wildcard that matches it
/// would match any other segment too.
const UNNAMEABLE: &str = "\0";

/// True if every topic that `asked` matches is matched by one of `granted`.
///
/// It is exact for topics of any length. It ignores that a topic has at most 255 bytes, so it never covers
/// too much.
pub fn covers(granted: &[Pattern], asked: &Pattern) -> bool {
    let is_covered = |topic: &str| granted.iter().any(|pattern| pattern.matches(topic));
    if !asked.has_wildcard() {
        return is_covered(asked.as_str());
    }
    // The topic of this pattern that is hardest to match; if the pattern ends in `**`, the shortest such
    // topic.
    let mut topic = String::with_capacity(asked.as_str().len());
    for segment in asked.segments() {
        if !topic.is_empty() {
            topic.push('.');
        }
        topic.push_str(if matches!(segment, "*" | "**") { UNNAMEABLE } else { segment });
    }
    if !is_covered(&topic) {
        return false;
    }
    if asked.segments().last() != Some("**") {
        return true;
    }
    // A pattern that matches a topic longer than all patterns matches every longer one too.
    let longest = granted.iter().map(|pattern| pattern.segments().count()).max().unwrap_or_default();
    (asked.segments().count()..=longest).all(|_| {
        topic.push('.');
        topic.push_str(UNNAMEABLE);
        is_covered(&topic)
    })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn is_covered(granted: &[&str], asked: &str) -> bool {
        covers(&patterns(granted), &patterns(&[asked])[0])
    }

    #[test]
    fn a_pattern_is_covered_by_one_that_is_as_wide() {
        assert!(is_covered(&["a"], "a") && !is_covered(&["a"], "b") && !is_covered(&[], "a"));
        assert!(is_covered(&["a.*"], "a.b") && is_covered(&["a.*"], "a.*"));
        assert!(
            !is_covered(&["a.*"], "a.**") && !is_covered(&["a.*"], "*.b") && !is_covered(&["a.b"], "a.*")
        );
        assert!(
            is_covered(&["a.**"], "a.*.c") && is_covered(&["a.**"], "a.**") && !is_covered(&["a.**"], "a")
        );
        assert!(is_covered(&["**"], "**") && !is_covered(&["*"], "**") && !is_covered(&["a.**"], "**"));
    }

    #[test]
    fn patterns_together_may_cover_more_than_each_alone() {
        assert!(is_covered(&["a.*", "a.*.**"], "a.**"));
        assert!(is_covered(&["*", "*.*", "*.*.**"], "**"));
        assert!(!is_covered(&["*", "*.*.*.**"], "**"), "topics of two segments are missing");
        assert!(!is_covered(&["a.b", "a.c"], "a.*"), "there are more names than these");
    }

    #[test]
    fn a_pattern_that_looks_like_a_part_of_another_is_not_covered_by_it() {
        assert!(!is_covered(&["users.1"], "users.12") && !is_covered(&["users.1"], "users.1.x"));
        assert!(!is_covered(&["users.1.**"], "users.**") && !is_covered(&["users.1.**"], "users.*.x"));
        assert!(!is_covered(&["*.b"], "*.*") && !is_covered(&["a.*.c"], "a.*.*"));
    }

    #[test]
    fn no_wildcard_covers_a_reserved_topic() {
        assert!(!is_covered(&["**"], "$rejoin.ready") && !is_covered(&["*.**"], "$rejoin.**"));
        assert!(is_covered(&["$rejoin.*"], "$rejoin.ready"));
    }

    /// Slow and obvious: every topic over a few names, up to a length beyond that of all patterns.
    fn covers_by_looking(granted: &[Pattern], asked: &Pattern, topics: &[String]) -> bool {
        let mut matched = topics.iter().filter(|topic| asked.matches(topic));
        matched.all(|topic| granted.iter().any(|pattern| pattern.matches(topic)))
    }

    #[test]
    fn covering_agrees_with_trying_all_topics() {
        const NAMES: [&str; 4] = ["a", "b", "else", "$a"];
        let (mut topics, mut longer) = (Vec::new(), vec![String::new()]);
        for _ in 0..5 {
            longer = longer
                .iter()
                .flat_map(|topic| {
                    NAMES.map(|name| if topic.is_empty() { name.into() } else { format!("{topic}.{name}") })
                })
                .collect();
            topics.extend(longer.iter().cloned());
        }
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut pattern = || -> Pattern {
            let length = random.random_range(1..=4);
            let mut segments: Vec<_> =
                (0..length).map(|_| *["a", "b", "*", "*", "$a"].choose(&mut random).expect("some")).collect();
            if random.random_bool(0.4) {
                segments.push("**");
            }
            segments[segments.len().saturating_sub(4)..].join(".").parse().expect("a pattern")
        };
        let mut covered = 0;
        for round in 0..3_000 {
            let granted: Vec<_> = (0..round % 5).map(|_| pattern()).collect();
            let asked = pattern();
            let expected = covers_by_looking(&granted, &asked, &topics);
            assert_eq!(covers(&granted, &asked), expected, "{asked} by {granted:?}");
            covered += usize::from(expected);
        }
        assert!((100..2_900).contains(&covered), "both answers occur: {covered}");
    }
}
