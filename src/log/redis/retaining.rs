//! Tells the store the limits of retention: those of the replica that told them last hold for all.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, time::sleep};

use super::{
    Retention,
    facts::{Facts, Keep},
    store::Store,
};
use crate::{
    log::{Rule, Rules},
    message::Pattern,
};

/// How soon this process tries again.
const AGAIN: Duration = Duration::from_secs(1);

/// The limits of this process.
pub struct Retaining {
    /// Those of all topics.
    pub keep: Keep,
    /// Those of single topics, as the scripts read them. They change while the process runs.
    rules: ArcSwap<String>,
    /// The rules that this process told the store last; `None` before the first time.
    told: ArcSwap<Option<Arc<String>>>,
    is_due: Notify,
}

impl Retaining {
    pub fn new(retention: &Retention) -> Self {
        let is_due = Notify::new();
        is_due.notify_one();
        let rules = ArcSwap::from_pointee(written(&retention.rules));
        Self { keep: Keep::from(retention), rules, told: ArcSwap::default(), is_due }
    }
}

impl Store {
    /// Tells the store other rules, as soon as it can be asked.
    pub fn retain_by(&self, rules: &Rules) {
        self.retaining.rules.store(Arc::new(written(rules)));
        if Some(&*self.retaining.rules.load_full()) != (**self.retaining.told.load()).as_deref() {
            self.retaining.is_due.notify_one();
        }
    }

    /// Tells the store the rules again if it has lost them, because it began anew.
    pub fn look_at_rules(&self, facts: &Facts) {
        if facts.has_rules == 0 && self.retaining.told.load().is_some() {
            self.retaining.is_due.notify_one();
        }
    }

    /// Tells the store the limits whenever that is due, and as soon as Redis takes writes. Never ends.
    ///
    /// # Cancel safety
    /// Dropping this loses nothing: what was not told is due the next time.
    pub async fn keep_retaining(&self) {
        let mut is_warned = false;
        loop {
            self.retaining.is_due.notified().await;
            // It stays due until it is done, also if this is dropped meanwhile.
            self.retaining.is_due.notify_one();
            let rules = self.retaining.rules.load_full();
            // Later this replica may not be the one that started last.
            let is_first = self.retaining.told.load().is_none();
            let args = [rules.as_bytes(), if is_first { b"1" } else { b"0" }];
            let told: Result<(Keep, Option<String>), _> = self.run(&self.scripts.keep, "", &args).await;
            match told {
                Ok((keep, before)) => {
                    self.retaining.is_due.notified().await;
                    self.warn_of_others(keep, is_first, before.as_deref(), &rules);
                    self.retaining.told.store(Arc::new(Some(rules.clone())));
                    if *self.retaining.rules.load_full() != *rules {
                        self.retaining.is_due.notify_one();
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_warned, true) {
                        tracing::warn!(%error, "the retention limits are not stored in redis yet");
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Warns if another replica had told the store something else.
    fn warn_of_others(&self, keep: Keep, is_first: bool, rules: Option<&str>, now: &str) {
        if is_first && keep != self.retaining.keep {
            tracing::warn!(
                before = %keep, now = %self.retaining.keep,
                "the store kept messages by other --retain-… settings; now these hold for all replicas"
            );
        }
        let told = self.retaining.told.load();
        let is_of_others = rules.is_some_and(|rules| {
            rules != now && Some(rules) != told.as_ref().as_ref().map(|told| told.as_str())
        });
        if is_of_others {
            tracing::warn!(
                "the store kept messages by other [[retain]] entries; now those of this replica hold for all"
            );
        }
    }
}

/// The text that the scripts read: a line with the shortest and the longest age, and a line for each rule, with its
/// messages, its age in microseconds, its bytes, and a pattern of Lua for its topics. A limit of zero is that of all
/// topics.
fn written(rules: &Rules) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let line = |rule: &Rule| {
        let age = rule.age.map_or(0, |age| age.as_micros());
        let [messages, bytes] = [rule.messages, rule.bytes].map(Option::unwrap_or_default);
        format!("{messages} {age} {bytes} {}\n", lua(&rule.topics))
    };
    let ages = || rules.iter().filter_map(|rule| rule.age).map(|age| age.as_micros());
    let (shortest, longest) = (ages().min().unwrap_or_default(), ages().max().unwrap_or_default());
    std::iter::once(format!("{shortest} {longest}\n")).chain(rules.iter().map(line)).collect()
}

/// The pattern of Lua that matches the same topics.
fn lua(pattern: &Pattern) -> String {
    let segments = pattern.segments().enumerate().map(|(place, segment)| match (segment, place) {
        // A wildcard does not match a reserved first segment.
        ("*", 0) => "[^.$][^.]*".to_owned(),
        ("**", 0) => "[^$].*".to_owned(),
        ("*", _) => "[^.]+".to_owned(),
        ("**", _) => ".+".to_owned(),
        (name, _) => name
            .chars()
            .map(|char| if char.is_ascii_punctuation() { format!("%{char}") } else { char.to_string() })
            .collect(),
    });
    format!("^{}$", segments.collect::<Vec<_>>().join("%."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_patterns_of_lua() {
        let rule = |topics: &str, messages| Rule {
            topics: topics.parse().expect("a pattern"),
            messages,
            age: None,
            bytes: Some(7),
        };
        let rules = Rules::new(vec![
            rule("a-b.*.c", Some(5)),
            rule("**", None),
            rule("*.x^%.**", None),
            rule("$s.β", None),
        ]);
        let expected = "0 0\n\
            5 0 7 ^a%-b%.[^.]+%.c$\n0 0 7 ^[^$].*$\n0 0 7 ^[^.$][^.]*%.x%^%%%..+$\n0 0 7 ^%$s%.β$\n";
        assert_eq!(written(&rules), expected);
        let aged = |seconds| Rule { age: Some(Duration::from_secs(seconds)), ..rule("a", None) };
        let rules = Rules::new(vec![rule("b", None), aged(3), aged(2)]);
        assert_eq!(written(&rules).lines().next(), Some("2000000 3000000"));
        assert_eq!(written(&Rules::NONE), "");
    }
}
