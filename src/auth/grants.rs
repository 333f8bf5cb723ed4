//! Grants: the topics and patterns that a client may use.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    containment::covers,
    template::{Template, Unfilled, Values, Why},
};
use crate::message::{Pattern, Topic};

/// The changes of the members of a topic have this before its name.
const PRESENCE: &str = "$presence.";
/// How many patterns of each kind one log line lists.
const MAX_LISTED: usize = 20;

/// The rights of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    everything: bool,
    subscribe: Box<[Pattern]>,
    publish: Box<[Pattern]>,
    manage: Box<[Pattern]>,
    /// The topics of which the members may be seen.
    presence: Box<[Pattern]>,
    admin: bool,
    metrics: bool,
}

impl Grants {
    /// The grants of an open server.
    pub fn everything() -> Self {
        Self { everything: true, admin: true, ..Self::default() }
    }

    /// True if every topic that `pattern` matches may be read. A pattern wider than the grants is refused. Topics of
    /// presence are granted by `presence`, and by nothing else.
    pub fn may_subscribe(&self, pattern: &Pattern) -> bool {
        self.missing_to_subscribe(pattern).is_none()
    }

    /// The name of the grant that is missing for that.
    fn missing_to_subscribe(&self, pattern: &Pattern) -> Option<&'static str> {
        if names_presence(pattern) {
            return (!self.may_read_changes(pattern)).then_some("presence");
        }
        let is_granted = self.everything
            || self.subscribe.binary_search(pattern).is_ok()
            || covers(&self.subscribe, pattern);
        (!is_granted).then_some("subscribe")
    }

    /// The first of these that may not be read, and the name of the grant that is missing.
    pub fn first_unreadable<'a>(
        &self,
        patterns: impl IntoIterator<Item = &'a Pattern>,
    ) -> Option<(&'a Pattern, &'static str)> {
        patterns.into_iter().find_map(|pattern| Some((pattern, self.missing_to_subscribe(pattern)?)))
    }

    /// True if a topic or pattern that is granted for publishing matches `topic`.
    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.everything || self.publish.iter().any(|pattern| pattern.matches(topic))
    }

    /// True if there is a topic that may be published to.
    pub fn may_publish_something(&self) -> bool {
        self.everything || !self.publish.is_empty()
    }

    /// The name of the grant that is missing for giving others every topic that `pattern` matches: that is `manage`,
    /// which `admin` has too. For topics of presence `presence` is needed besides.
    pub fn missing_to_add(&self, pattern: &Pattern) -> Option<&'static str> {
        if !(self.everything || self.admin || covers(&self.manage, pattern)) {
            return Some("manage");
        }
        (names_presence(pattern) && !self.may_read_changes(pattern)).then_some("presence")
    }

    /// The same for taking these topics from others. It shows nothing of presence, so `admin` is enough.
    pub fn missing_to_remove(&self, pattern: &Pattern) -> Option<&'static str> {
        if self.admin { None } else { self.missing_to_add(pattern) }
    }

    /// True if the members of every topic that `pattern` matches may be seen.
    pub fn may_see_presence(&self, pattern: &Pattern) -> bool {
        self.everything || covers(&self.presence, pattern)
    }

    /// The same for a topic or pattern of changes.
    fn may_read_changes(&self, changes: &Pattern) -> bool {
        let of = members_of(changes.as_str()).and_then(|of| of.parse().ok());
        self.everything || of.is_some_and(|of| covers(&self.presence, &of))
    }

    /// True if there is a topic that this client may add to the connections and lists of others.
    pub fn may_manage_something(&self) -> bool {
        self.everything || self.admin || !self.manage.is_empty()
    }

    /// These grants and `others` together.
    pub fn and(self, others: Self) -> Self {
        let together = |ours: Box<[Pattern]>, others: Box<[Pattern]>| {
            let mut patterns = [ours.into_vec(), others.into_vec()].concat();
            patterns.sort_unstable();
            patterns.dedup();
            patterns.into()
        };
        Self {
            everything: self.everything || others.everything,
            subscribe: together(self.subscribe, others.subscribe),
            publish: together(self.publish, others.publish),
            manage: together(self.manage, others.manage),
            presence: together(self.presence, others.presence),
            admin: self.admin || others.admin,
            metrics: self.metrics || others.metrics,
        }
    }

    /// The part of these grants that `limit` grants too. `beyond` is told each pattern that is left out.
    pub fn within(self, limit: &Self, beyond: &mut impl FnMut(Unfilled)) -> Self {
        let mut leave_out = |what: &str| beyond(Unfilled { pattern: what.into(), why: Why::BeyondLimit });
        let mut keep = |patterns: Box<[Pattern]>, limit: &[Pattern]| {
            let (kept, others) =
                patterns.into_iter().partition::<Vec<_>, _>(|pattern| covers(limit, pattern));
            others.iter().for_each(|pattern| leave_out(pattern.as_str()));
            kept.into()
        };
        let admin = self.admin && limit.admin;
        let metrics = self.may_read_metrics() && limit.may_read_metrics();
        let (subscribe, publish) =
            (keep(self.subscribe, &limit.subscribe), keep(self.publish, &limit.publish));
        let presence = keep(self.presence, &limit.presence);
        let manage = if limit.admin { self.manage } else { keep(self.manage, &limit.manage) };
        if self.admin && !admin {
            leave_out("admin");
        }
        if self.metrics && !metrics {
            leave_out("metrics");
        }
        Self { everything: false, subscribe, publish, manage, presence, admin, metrics }
    }

    /// True for the grants of an open server.
    pub fn is_open(&self) -> bool {
        self.everything
    }

    /// True if topics may be deleted, and all topics and statistics be read.
    pub fn is_admin(&self) -> bool {
        self.admin
    }

    /// True if `GET /metrics` is granted: by `metrics`, or by `admin`.
    pub fn may_read_metrics(&self) -> bool {
        self.admin || self.metrics
    }
}

/// The topic or pattern whose members change, for a topic or pattern of such changes.
pub fn members_of(changes: &str) -> Option<&str> {
    changes.strip_prefix(PRESENCE)
}

/// True for the topics and patterns whose first segment is that of presence.
fn names_presence(pattern: &Pattern) -> bool {
    pattern.segments().next() == PRESENCE.strip_suffix('.')
}

/// For the operator's log: in the form of the configuration, with the placeholders filled in.
impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { everything, subscribe, publish, manage, presence, admin, metrics } = self;
        let patterns = |patterns: &[Pattern]| {
            let listed = patterns.iter().take(MAX_LISTED).map(Pattern::as_str).collect::<Vec<_>>().join(", ");
            if patterns.len() > MAX_LISTED { format!("[{listed}, …]") } else { format!("[{listed}]") }
        };
        match everything {
            true => f.write_str("everything"),
            false => write!(
                f,
                "subscribe {} publish {} manage {} presence {} admin {admin} metrics {metrics}",
                patterns(subscribe),
                patterns(publish),
                patterns(manage),
                patterns(presence)
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manage: Vec<Template>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<Template>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub metrics: bool,
}

impl GrantList {
    /// The names of all grants.
    pub const NAMES: [&str; 6] = ["subscribe", "publish", "manage", "presence", "admin", "metrics"];

    /// The grants of these lists together, for a token with these values. `unfilled` is told each pattern that
    /// grants nothing.
    pub fn grant<'a>(
        lists: impl IntoIterator<Item = &'a Self> + Clone,
        values: &Values<'_>,
        unfilled: &mut impl FnMut(Unfilled),
    ) -> Grants {
        let mut fill = |of: fn(&Self) -> &Vec<Template>| {
            let templates = lists.clone().into_iter().flat_map(of);
            let filled = templates.filter_map(|template| template.fill(values).map_err(&mut *unfilled).ok());
            let mut patterns: Vec<_> = filled.collect();
            patterns.sort_unstable();
            patterns.dedup();
            patterns.into()
        };
        Grants {
            everything: false,
            subscribe: fill(|list| &list.subscribe),
            publish: fill(|list| &list.publish),
            manage: fill(|list| &list.manage),
            presence: fill(|list| &list.presence),
            admin: lists.clone().into_iter().any(|list| list.admin),
            metrics: lists.clone().into_iter().any(|list| list.metrics),
        }
    }

    /// True if a pattern here depends on the subject or on another claim of a token.
    pub fn names_subject(&self) -> bool {
        self.templates().any(Template::has_placeholder)
    }

    fn templates(&self) -> impl Iterator<Item = &Template> {
        self.subscribe.iter().chain(&self.publish).chain(&self.manage).chain(&self.presence)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn subscribing(templates: &[&str], sub: Option<&str>) -> Grants {
        subscribing_with(templates, &Values { sub, ..Values::default() }).0
    }

    fn subscribing_with(templates: &[&str], values: &Values<'_>) -> (Grants, Vec<Unfilled>) {
        let subscribe = templates.iter().map(|text| text.parse().expect(text)).collect();
        let mut unfilled = Vec::new();
        let list = GrantList { subscribe, ..GrantList::default() };
        let grants = GrantList::grant([&list], values, &mut |found| unfilled.push(found));
        (grants, unfilled)
    }

    fn granted(list: &[&GrantList]) -> Grants {
        GrantList::grant(list.iter().copied(), &Values::default(), &mut |_| {})
    }

    fn may(grants: &Grants, pattern: &str) -> bool {
        grants.may_subscribe(&pattern.parse().expect(pattern))
    }

    #[test]
    fn presence_is_granted_by_nothing_else() {
        let all = || vec!["**".parse().expect("a pattern"), "$presence.**".parse().expect("a pattern")];
        let everything_else = GrantList {
            subscribe: all(),
            publish: all(),
            manage: all(),
            presence: Vec::new(),
            admin: true,
            metrics: true,
        };
        let pattern = |text: &str| text.parse::<Pattern>().expect("a pattern");
        let grants = granted(&[&everything_else]);
        for topic in ["$presence", "$presence.a", "$presence.*", "$presence.**", "$presence.a.**"] {
            let topic = pattern(topic);
            assert_eq!(grants.first_unreadable([&topic]), Some((&topic, "presence")), "{topic}");
            assert_eq!(grants.missing_to_add(&topic), Some("presence"), "{topic}");
            assert_eq!(grants.missing_to_remove(&topic), None, "{topic}: it shows nothing");
            assert_eq!(Grants::default().missing_to_add(&topic), Some("manage"), "{topic}");
        }
        assert!(!grants.may_see_presence(&pattern("a")));
        let managing = granted(&[&GrantList { manage: all(), ..GrantList::default() }]);
        assert_eq!(managing.missing_to_remove(&pattern("$presence.a")), Some("presence"));
        let seen = vec!["rooms.*".parse().expect("a pattern")];
        let grants = granted(&[&GrantList { presence: seen, ..GrantList::default() }, &everything_else]);
        for (topic, is_granted) in [
            ("rooms.1", true),
            ("rooms.*", true),
            ("rooms.**", false),
            ("rooms", false),
            ("*.1", false),
            ("other", false),
        ] {
            let changes = pattern(&format!("$presence.{topic}"));
            assert_eq!(grants.may_subscribe(&changes), is_granted, "{topic}");
            assert_eq!(grants.missing_to_add(&changes).is_none(), is_granted, "{topic}");
            assert_eq!(grants.may_see_presence(&pattern(topic)), is_granted, "{topic}");
        }
        let limited = grants.within(&granted(&[&everything_else]), &mut |_| {});
        assert!(!limited.may_see_presence(&pattern("rooms.1")), "a limit without it leaves it out");
        assert!(Grants::everything().may_subscribe(&pattern("$presence.**")));
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
    fn another_claim_stands_for_its_value_if_that_is_one_plain_segment() {
        let others = |value: &str| {
            BTreeMap::from([("tenant".to_owned(), value.to_owned()), ("a.b/c".into(), "x".into())])
        };
        let template = ["t.{claim.tenant}.**", "{claim.a.b/c}", "by.{claim.sub}.{claim.iss}", "public"];
        let filled = |value: &str| {
            let others = others(value);
            subscribing_with(&template, &Values { sub: Some("u"), iss: Some("i"), others: Some(&others) })
        };
        let (grants, unfilled) = filled("acme");
        assert_eq!(unfilled, []);
        assert!(may(&grants, "t.acme.**") && may(&grants, "x") && may(&grants, "by.u.i"));
        assert!(!may(&grants, "t.other.a") && !may(&grants, "t.*.a"));
        for wrong in ["*", "**", "a.b", "acme.**", "", "$sys", "a,b", "a b", "a\n", "{sub}", "{claim.tenant}"]
        {
            let (grants, unfilled) = filled(wrong);
            assert!(!may(&grants, "t.acme.a") && may(&grants, "public"), "{wrong:?}");
            assert_eq!(unfilled, [Unfilled { pattern: template[0].into(), why: Why::NotPlain }], "{wrong:?}");
            assert_eq!(
                grants,
                subscribing_with(
                    &template[1..],
                    &Values { sub: Some("u"), iss: Some("i"), others: Some(&others("-")) }
                )
                .0,
                "{wrong:?}"
            );
        }
        let (grants, unfilled) = subscribing_with(&template, &Values::default());
        assert!(may(&grants, "public") && unfilled.iter().all(|unfilled| unfilled.why == Why::Missing));
        assert_eq!(unfilled.len(), 3);
    }

    #[test]
    fn an_encoded_subject_is_one_segment_and_no_other_subject_has_the_same() {
        for (subject, segment) in [
            ("ann@example.com", "ann@example%2Ecom"),
            ("a%2Eb", "a%252Eb"),
            ("*", "%2A"),
            ("**", "%2A%2A"),
            ("a,b{c}d e\t", "a%2Cb%7Bc%7Dd%20e%09"),
            ("ü\u{2028}\u{a0}", "ü%E2%80%A8%C2%A0"),
            ("{sub}", "%7Bsub%7D"),
        ] {
            let grants = subscribing(&["users.{sub.encoded}.**"], Some(subject));
            assert!(may(&grants, &format!("users.{segment}.**")), "{subject:?}: {grants}");
            assert!(!may(&grants, "users.*.a") && !may(&grants, "users.a.b"), "{subject:?}");
        }
        for wrong in ["", "$sys", &"x".repeat(256), &".".repeat(100)] {
            assert_eq!(
                subscribing(&["users.{sub.encoded}", "{sub.encoded}"], Some(wrong)),
                Grants::default()
            );
        }
    }

    #[test]
    fn the_grants_of_several_lists_add_up() {
        let list = |json: &str| serde_json::from_str::<GrantList>(json).expect(json);
        let (one, other) = (list(r#"{"subscribe":["a"],"admin":true}"#), list(r#"{"publish":["b.*"]}"#));
        let grants = granted(&[&one, &other]);
        assert!(may(&grants, "a") && grants.may_publish(&"b.c".parse().expect("a topic")));
        assert!(grants.is_admin() && grants.may_read_metrics());
        assert!(!granted(&[&other]).is_admin());
    }
}
