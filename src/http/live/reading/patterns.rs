//! The topics and patterns of a connection: which it reads, how many they may be, and how far it has come.

use super::{ALONE, Joining, State};
use crate::{
    broker::{Present, Subscription},
    http::{MAX_TOPICS, MAX_WILDCARDS, metrics::Permit},
    message::{Id, Pattern, PatternSet},
};

impl State {
    fn pattern_set(&self) -> &PatternSet {
        match &self.parked {
            Some(parked) => parked.patterns(),
            None => self.subscription.as_ref().expect(ALONE).pattern_set(),
        }
    }

    pub fn permit(&mut self) -> &mut Permit {
        &mut self.permit
    }

    pub fn cursor(&self) -> Id {
        match &self.parked {
            Some(parked) => parked.cursor(),
            None => self.subscription.as_ref().expect(ALONE).cursor(),
        }
    }

    /// The list of the subject, if it is read too.
    pub fn mine(&self) -> Option<Vec<Pattern>> {
        let entries = self.subscription.as_ref()?.mine()?;
        Some(entries.keys().cloned().collect())
    }

    /// True while the log is being read, so that more items may follow soon.
    pub fn is_reading(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_reading())
    }

    /// True if the last read of the log failed.
    pub fn has_failed(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.has_failed())
    }

    /// True if `pattern` is read.
    pub fn reads(&self, pattern: &Pattern) -> bool {
        self.pattern_set().contains(pattern)
    }

    /// True if `pattern` is read because of the list of the subject alone.
    pub fn is_only_listed(&self, pattern: &Pattern) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_only_listed(pattern))
    }

    pub(super) fn is_listed(&self, pattern: &Pattern) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.is_listed(pattern))
    }

    /// Notes that the client asks for a pattern that the list has too.
    pub fn read_also(&mut self, pattern: &Pattern) {
        self.subscription().read_also(pattern, true);
    }

    /// True if `pattern` was added, and is not merged yet.
    pub fn joins(&self, pattern: &Pattern) -> bool {
        self.joining.iter().any(|joining| joining.pattern == *pattern)
    }

    /// True if the client waits until the pattern that it asked for is merged.
    pub fn is_asked(&self) -> bool {
        let has_answer = self.changes.as_ref().is_some_and(|changes| changes.has_answer());
        has_answer || self.joining.iter().any(|joining| joining.is_asked)
    }

    /// True if everything that was asked for is done and told.
    pub fn is_settled(&self) -> bool {
        let is_told = self.changes.as_ref().is_none_or(|changes| changes.is_told());
        self.joining.is_empty() && is_told && !self.is_reading()
    }

    /// The patterns that the client's own grants must cover.
    pub fn own_patterns(&self) -> impl Iterator<Item = &Pattern> {
        let is_own = |pattern: &&Pattern| !self.is_added(pattern) && !self.is_only_listed(pattern);
        self.patterns().filter(is_own)
    }

    /// Notes when the client's new token was issued.
    pub fn renewed(&mut self, issued: Option<Option<u64>>) {
        self.issued = issued;
    }

    /// Makes the subject present in one topic more. Gives it back if the topic is read no longer.
    pub fn be_present(&mut self, topic: &Pattern, present: Present) -> Option<Present> {
        if self.ended.is_some() || !(self.reads(topic) || self.joins(topic)) {
            return Some(present);
        }
        match &mut self.present {
            Some(known) => known.absorb(present),
            none => *none = Some(Box::new(present)),
        }
        None
    }

    /// True if the subject is present in this topic by this connection.
    pub fn is_present(&self, topic: &Pattern) -> bool {
        self.present.as_ref().is_some_and(|present| present.is_in(topic.as_str()))
    }

    /// Every pattern that is read, or about to be merged.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.pattern_set().iter().chain(self.joining.iter().map(|joining| &joining.pattern))
    }

    /// Patterns among which are the first `count` in order of those that are read, and as many that are about to be
    /// merged. A subscription has its topics in order, and then its patterns with wildcards.
    pub fn first_patterns(&self, count: usize) -> impl Iterator<Item = &Pattern> {
        let set = self.pattern_set();
        let first = set.topics().iter().take(count);
        let wildcards = set.wildcards().iter().take(count);
        first.chain(wildcards).chain(self.joining.iter().take(count).map(|joining| &joining.pattern))
    }

    /// How many patterns are read, or about to be merged.
    pub fn count(&self) -> usize {
        self.pattern_set().len() + self.joining.len()
    }

    /// How far the items that the connection has yet to give out reach back, in milliseconds of the messages' time.
    pub fn behind_ms(&self) -> u64 {
        let joining = self.joining.iter().map(|joining| joining.subscription.behind_ms()).max();
        let own = match &self.parked {
            Some(parked) => parked.behind_ms(),
            None => self.subscription.as_ref().expect(ALONE).behind_ms(),
        };
        own.max(joining.unwrap_or_default())
    }

    /// How many patterns are read, or about to be.
    pub fn width(&self) -> usize {
        self.count() + self.begun().count()
    }

    fn begun(&self) -> impl Iterator<Item = &Pattern> {
        self.changes.iter().flat_map(|changes| changes.begun())
    }

    fn wildcards(&self) -> usize {
        let joining = self.joining.iter().map(|joining| &joining.pattern);
        let others = joining.chain(self.begun()).filter(|pattern| pattern.has_wildcard()).count();
        self.pattern_set().wildcards().len() + others
    }

    /// True if one more pattern would be over a limit of a connection.
    pub fn is_full(&self, pattern: &Pattern) -> Option<&'static str> {
        if self.width() >= MAX_TOPICS {
            return Some("10000 topics and patterns");
        }
        (pattern.has_wildcard() && self.wildcards() >= MAX_WILDCARDS)
            .then_some("100 patterns with a wildcard")
    }

    /// Counts so many patterns more than those that are read. False if this client may read no more now.
    pub fn count_topics(&mut self, more: usize) -> bool {
        self.permit.set_topics(self.width() + more)
    }

    /// Reads what the client asked for, once both subscriptions are at the same cursor.
    pub fn join(&mut self, pattern: Pattern, subscription: Subscription) {
        self.joining.push_back(Joining {
            pattern,
            subscription,
            is_of_command: false,
            is_asked: true,
            upto: None,
            ephemerals_since: None,
        });
    }

    /// Notes that the client asks for a pattern that a command has added, and that is not merged yet.
    pub fn ask_for(&mut self, pattern: &Pattern) {
        let joining = self.joining.iter_mut().filter(|joining| joining.pattern == *pattern);
        joining.for_each(|joining| joining.is_asked = true);
    }

    /// Stops reading `pattern`, unless the list of the subject has it.
    pub fn remove(&mut self, pattern: &Pattern) {
        let subscription = self.subscription();
        match subscription.is_listed(pattern) {
            true => subscription.read_also(pattern, false),
            false => _ = subscription.remove(pattern),
        }
        self.joining.retain(|joining| joining.pattern != *pattern);
        if self.joining.is_empty() {
            self.subscription().read_alone();
        }
        if let Some(changes) = &mut self.changes {
            changes.forget(pattern);
        }
        if let Some(present) = &mut self.present {
            present.leave(pattern.as_str());
        }
        self.count_topics(0);
    }
}
