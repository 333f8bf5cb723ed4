//! Retention by pattern: limits of their own for the topics that a pattern matches, for both logs.

use std::{sync::Arc, time::Duration};

use crate::message::{Id, Message, Pattern, PatternMap};

/// How many rules there may be. The log in Redis compares each publish with each of them.
pub const MAX_RULES: usize = 100;

/// The topic of the presence in a topic is retained as that topic is.
pub const PRESENCE: &str = "$presence.";

/// Limits for the topics that a pattern matches. A limit that is `None` is that of all topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub topics: Pattern,
    pub messages: Option<usize>,
    pub age: Option<Duration>,
    pub bytes: Option<usize>,
}

/// Rules in their order: the first one that matches a topic counts.
#[derive(Clone, Debug, Default)]
pub struct Rules(Option<Arc<Ordered>>);

#[derive(Debug)]
struct Ordered {
    rules: Vec<Rule>,
    /// The place of each rule.
    places: PatternMap<usize>,
    shortest: Option<Duration>,
    longest: Option<Duration>,
}

impl Rules {
    pub const NONE: Self = Self(None);

    pub fn new(rules: Vec<Rule>) -> Self {
        if rules.is_empty() {
            return Self::NONE;
        }
        let mut places = PatternMap::default();
        for (place, rule) in rules.iter().enumerate() {
            places.entry(&rule.topics, || place);
        }
        let ages = || rules.iter().filter_map(|rule| rule.age);
        let (shortest, longest) = (ages().min(), ages().max());
        Self(Some(Arc::new(Ordered { rules, places, shortest, longest })))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().flat_map(|ordered| &ordered.rules)
    }

    /// The rule for this topic.
    pub fn of(&self, topic: &str) -> Option<&Rule> {
        let ordered = self.0.as_ref()?;
        let topic = topic.strip_prefix(PRESENCE).unwrap_or(topic);
        let mut first: Option<usize> = None;
        ordered.places.find(topic, |place| {
            first = Some(first.map_or(*place, |first| first.min(*place)));
            None::<()>
        });
        first.map(|place| &ordered.rules[place])
    }

    /// The shortest and the longest age that any topic has, if the others have this one.
    pub fn ages(&self, others: Duration) -> (Duration, Duration) {
        let of = |age: fn(&Ordered) -> Option<Duration>| self.0.as_deref().and_then(age).unwrap_or(others);
        (of(|ordered| ordered.shortest).min(others), of(|ordered| ordered.longest).max(others))
    }

    /// True if both have the same rules in the same order.
    pub fn are(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Which messages have expired at one moment, though the log may not have removed them yet.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// From here on no message of any topic has expired.
    upto: Id,
    /// The moment, the age of topics without a rule, and the rules; `None` if all topics have the same age.
    by_topic: Option<(Id, Duration, Rules)>,
}

impl Expiry {
    /// No message has expired.
    pub const NEVER: Self = Self { upto: Id::ZERO, by_topic: None };

    /// The expiry at the time `now`. Topics without a rule have this age.
    pub fn at(now: Id, age: Duration, rules: &Rules) -> Self {
        let by_topic = (!rules.is_empty()).then(|| (now, age, rules.clone()));
        Self { upto: now.minus(rules.ages(age).0), by_topic }
    }

    pub fn has_expired(&self, message: &Message) -> bool {
        // Only old messages have their topics matched.
        message.id < self.upto
            && self.by_topic.as_ref().is_none_or(|(now, age, rules)| {
                let age = rules.of(&message.topic).and_then(|rule| rule.age).unwrap_or(*age);
                message.id < now.minus(age)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Payload};

    const HOUR: Duration = Duration::from_secs(3600);

    fn rule(topics: &str, messages: Option<usize>, age: Option<Duration>) -> Rule {
        Rule { topics: topics.parse().expect("a pattern"), messages, age, bytes: None }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = Rules::new(vec![
            rule("chat.lobby", Some(1), None),
            rule("chat.**", Some(2), None),
            rule("chat.*", Some(3), None),
            rule("chat.lobby", Some(4), None),
            rule("**", Some(5), None),
        ]);
        let messages = |topic: &str| rules.of(topic).and_then(|rule| rule.messages);
        for (topic, expected) in [
            ("chat.lobby", Some(1)),
            ("chat.a", Some(2)),
            ("chat.a.b", Some(2)),
            ("chat", Some(5)),
            ("$rejoin.ready", None),
            ("$presence.chat.lobby", Some(1)),
            ("$presence.chat.a.b", Some(2)),
            ("$presence.other", Some(5)),
        ] {
            assert_eq!(messages(topic), expected, "{topic}");
        }
        assert_eq!(Rules::NONE.of("chat.a"), None);
    }

    #[test]
    fn a_message_expires_by_the_age_of_its_own_topic() {
        let rules = Rules::new(vec![
            rule("short.*", None, Some(HOUR / 2)),
            rule("long.*", None, Some(2 * HOUR)),
            rule("other.*", Some(1), None),
        ]);
        assert_eq!(rules.ages(HOUR), (HOUR / 2, 2 * HOUR));
        let now = Id::now();
        let has_expired = |topic: &str, age: Duration, rules: &Rules| {
            let topic = topic.parse().expect("a topic");
            let draft = Draft { topic, event: None, by: None, payload: Payload::text("x"), exclude: None };
            Expiry::at(now, HOUR, rules).has_expired(&Message::new(draft, now.minus(age), Id::ZERO))
        };
        let tick = Duration::from_micros(1);
        for (topic, age) in [("short.a", HOUR / 2), ("long.a", 2 * HOUR), ("other.a", HOUR), ("none", HOUR)] {
            assert!(!has_expired(topic, age, &rules) && has_expired(topic, age + tick, &rules), "{topic}");
            assert!(!has_expired(topic, HOUR, &Rules::NONE) && has_expired(topic, HOUR + tick, &Rules::NONE));
        }
    }
}
