//! Grants: the topics and patterns that a client may use, and the meaning of `{sub}` in them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::containment::covers;
use crate::message::{ParsePatternError, Pattern, Topic};

/// Stands for the subject in a granted pattern.
const SUBJECT: &str = "{sub}";
/// How many patterns of each kind one log line lists.
const MAX_LISTED: usize = 20;

/// The rights of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    everything: bool,
    subscribe: Box<[Pattern]>,
    publish: Box<[Pattern]>,
    admin: bool,
    metrics: bool,
}

impl Grants {
    /// The grants of an open server.
    pub fn everything() -> Self {
        Self { everything: true, admin: true, ..Self::default() }
    }

    /// True if every topic that `pattern` matches may be read. A pattern wider than the grants is refused.
    pub fn may_subscribe(&self, pattern: &Pattern) -> bool {
        self.everything || self.subscribe.binary_search(pattern).is_ok() || covers(&self.subscribe, pattern)
    }

    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.everything || self.publish.iter().any(|pattern| pattern.matches(topic))
    }

    /// True if topics may be deleted, and all topics and statistics be read.
    pub fn is_admin(&self) -> bool {
        self.admin
    }

    pub fn may_read_metrics(&self) -> bool {
        self.admin || self.metrics
    }
}

/// For the operator's log: in the form of the configuration, with `{sub}` filled in.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { everything, subscribe, publish, admin, metrics } = self;
        let patterns = |patterns: &[Pattern]| {
            let listed = patterns.iter().take(MAX_LISTED).map(Pattern::as_str).collect::<Vec<_>>().join(", ");
            if patterns.len() > MAX_LISTED { format!("[{listed}, …]") } else { format!("[{listed}]") }
        };
        match everything {
            true => f.write_str("everything"),
            false => write!(
                f,
                "subscribe {} publish {} admin {admin} metrics {metrics}",
                patterns(subscribe),
                patterns(publish)
            ),
        }
    }
}

/// Grants as they are written, in the configuration or in a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantList {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<Template>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Template>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub metrics: bool,
}

impl GrantList {
    /// The grants of these lists together, for `subject`.
    pub fn grant<'a>(lists: impl IntoIterator<Item = &'a Self> + Clone, subject: Option<&str>) -> Grants {
        let fill = |of: fn(&Self) -> &Vec<Template>| {
            let templates = lists.clone().into_iter().flat_map(of);
            let mut patterns: Vec<_> = templates.filter_map(|template| template.fill(subject)).collect();
            patterns.sort_unstable();
            patterns.dedup();
            patterns.into()
        };
        Grants {
            everything: false,
            subscribe: fill(|list| &list.subscribe),
            publish: fill(|list| &list.publish),
            admin: lists.clone().into_iter().any(|list| list.admin),
            metrics: lists.clone().into_iter().any(|list| list.metrics),
        }
    }

    /// True if a pattern here contains `{sub}` and `subject` cannot fill it.
    pub fn needs_subject(&self, subject: Option<&str>) -> bool {
        self.names_subject() && !subject.is_some_and(is_plain_segment)
    }

    pub fn names_subject(&self) -> bool {
        self.subscribe.iter().chain(&self.publish).any(|template| template.names_subject())
    }
}

/// A pattern in which `{sub}` may stand for a whole segment or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<str>);

impl Template {
    fn names_subject(&self) -> bool {
        self.0.contains(SUBJECT)
    }

    /// The pattern for `subject`. If it contains `{sub}` and the subject is not one plain segment, there is
    /// no pattern and nothing is granted: no subject can make a pattern wider than it is written.
    fn fill(&self, subject: Option<&str>) -> Option<Pattern> {
        if !self.names_subject() {
            return self.0.parse().ok();
        }
        let subject = subject.filter(|subject| is_plain_segment(subject))?;
        self.0.replace(SUBJECT, subject).parse().ok()
    }
}

/// True if a subject is a topic of one segment that is not reserved.
fn is_plain_segment(subject: &str) -> bool {
    !subject.contains('.') && subject.parse::<Topic>().is_ok_and(|topic| !topic.is_reserved())
}

impl FromStr for Template {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, ParsePatternError> {
        text.replace(SUBJECT, "s").parse::<Pattern>()?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribing(templates: &[&str], subject: Option<&str>) -> Grants {
        let subscribe = templates.iter().map(|text| text.parse().expect(text)).collect();
        GrantList::grant([&GrantList { subscribe, ..GrantList::default() }], subject)
    }

    fn may(grants: &Grants, pattern: &str) -> bool {
        grants.may_subscribe(&pattern.parse().expect(pattern))
    }

    #[test]
    fn sub_stands_for_the_subject() {
        let grants = subscribing(&["users.{sub}.**", "inbox-{sub}"], Some("u1"));
        assert!(may(&grants, "users.u1.a") && may(&grants, "users.u1.**") && may(&grants, "inbox-u1"));
        assert!(!may(&grants, "users.u2.a") && !may(&grants, "users.*.a") && !may(&grants, "inbox-u2"));
    }

    #[test]
    fn a_subject_that_is_not_one_plain_segment_is_granted_nothing_by_it() {
        for subject in ["*", "**", "a.b", "u1.**", ".", "", "a*", "$sys", "{sub}", "a,b", "a b", "a\n", "u\0"]
        {
            let grants = subscribing(&["users.{sub}.**", "{sub}.**", "{sub}", "x.{sub}"], Some(subject));
            assert_eq!(grants, Grants::default(), "{subject:?}");
        }
        assert_eq!(subscribing(&["{sub}"], Some(&"x".repeat(256))), Grants::default());
        assert_eq!(subscribing(&["users.{sub}"], None), Grants::default());
        assert!(may(&subscribing(&["users.{sub}", "public"], Some("*")), "public"), "the others stay");
    }

    #[test]
    fn the_grants_of_several_lists_add_up() {
        let list = |json: &str| serde_json::from_str::<GrantList>(json).expect(json);
        let (one, other) = (list(r#"{"subscribe":["a"],"admin":true}"#), list(r#"{"publish":["b.*"]}"#));
        let grants = GrantList::grant([&one, &other], None);
        assert!(may(&grants, "a") && grants.may_publish(&"b.c".parse().expect("a topic")));
        assert!(grants.is_admin() && grants.may_read_metrics());
        assert!(!GrantList::grant([&other], None).is_admin());
    }

    #[test]
    fn a_template_that_could_never_be_a_pattern_is_refused() {
        for wrong in ["", "a..b", "*{sub}", "{sub}*", "{user}", "**.{sub}", "{sub", "a b"] {
            assert!(wrong.parse::<Template>().is_err(), "{wrong:?}");
        }
    }
}
