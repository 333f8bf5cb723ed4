//! The lists of subjects and the refusals of their tokens, in the log in memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::State;
use crate::{
    log::{
        Change, Entries, FollowedList, Generation, List, LogError, Reason, Refusal, Retention,
        list::Lists,
        subjects::{AddError, ENTRY_BYTES, FORGET_AT_ONCE, MAX_ENTRIES, MAX_WILD_ENTRIES, Refusals, now_ms},
    },
    message::{Id, Pattern},
};

/// The lists and the refusals of subjects.
#[derive(Debug, Default)]
pub struct Kept {
    pub lists: HashMap<Arc<str>, Entries>,
    pub refusals: Refusals,
    /// How many bytes these take.
    bytes: usize,
    followed: Lists,
}

fn cost(subject: &str, topic: &str) -> usize {
    ENTRY_BYTES + subject.len() + topic.len()
}

impl Kept {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts back what another process has kept.
    pub fn restore(&mut self, subject: Arc<str>, topic: Pattern, id: Id) {
        self.bytes += cost(&subject, topic.as_str());
        self.lists.entry(subject).or_default().insert(topic, id);
    }

    pub fn restore_refusal(&mut self, subject: Arc<str>, refusal: Refusal) {
        if !refusal.is_over() && self.refusals.note(&subject, refusal).1 {
            self.bytes += cost(&subject, "");
        }
    }

    /// Makes room by forgetting refusals that are over, no more than it takes.
    fn make_room(&mut self, cost: usize, retention: &Retention) -> Result<(), AddError> {
        while self.bytes + cost > retention.total_bytes {
            if !self.forget_old_refusal() {
                return Err(AddError::NoRoom);
            }
        }
        Ok(())
    }

    /// False if there is none.
    fn forget_old_refusal(&mut self) -> bool {
        let old = self.refusals.forget_old();
        self.bytes -= old.as_ref().map_or(0, |subject| cost(subject, ""));
        old.is_some()
    }
}

impl State {
    /// Adds a topic to a list. Returns the id at which it was added, and the list to wake if it is new.
    pub fn list_add(
        &mut self,
        subject: &str,
        topic: &Pattern,
        retention: &Retention,
        now: Id,
    ) -> Result<(Id, Option<Arc<List>>), AddError> {
        self.check_open()?;
        let known = self.subjects.lists.get(subject);
        if let Some(id) = known.and_then(|entries| entries.get(topic)) {
            return Ok((*id, None));
        }
        check_limits(known, topic)?;
        let cost = cost(subject, topic.as_str());
        self.subjects.make_room(cost, retention)?;
        self.subjects.bytes += cost;
        let id = self.newest.next(now);
        match self.subjects.lists.get_mut(subject) {
            Some(entries) => _ = entries.insert(topic.clone(), id),
            None => _ = self.subjects.lists.insert(subject.into(), [(topic.clone(), id)].into()),
        }
        while self.footprint() > retention.total_bytes && self.order.len() > 1 {
            self.evict_oldest();
        }
        Ok((id, self.list_changed(subject, Change { id, topic: topic.clone(), is_added: true })))
    }

    /// Removes a topic from a list. Returns the list to wake.
    pub fn list_remove(
        &mut self,
        subject: &str,
        topic: &Pattern,
        now: Id,
    ) -> Result<Option<Arc<List>>, LogError> {
        self.check_open()?;
        let Some(entries) = self.subjects.lists.get_mut(subject) else { return Ok(None) };
        if entries.remove(topic).is_none() {
            return Ok(None);
        }
        if entries.is_empty() {
            self.subjects.lists.remove(subject);
        }
        self.subjects.bytes -= cost(subject, topic.as_str());
        let id = self.newest.next(now);
        Ok(self.list_changed(subject, Change { id, topic: topic.clone(), is_added: false }))
    }

    /// Tells the readers of a list. The change has an id of its own, so that it has its place among the messages.
    fn list_changed(&mut self, subject: &str, change: Change) -> Option<Arc<List>> {
        self.newest = change.id;
        let list = self.subjects.followed.find(subject)?;
        list.change(change);
        Some(list)
    }

    pub fn list(&self, subject: &str) -> Entries {
        self.subjects.lists.get(subject).cloned().unwrap_or_default()
    }

    pub fn follow_list(&mut self, subject: &str) -> FollowedList {
        let generation = Generation { began: self.began, reason: Reason::Restarted };
        let (followed, is_new) = self.subjects.followed.follow(subject, generation);
        if is_new && let Some(doubts) = followed.list().doubts() {
            followed.list().load(doubts, self.list(subject), self.newest, generation);
        }
        followed
    }

    /// Refuses the older tokens of a subject.
    pub fn refuse(
        &mut self,
        subject: &str,
        lasts: Duration,
        retention: &Retention,
    ) -> Result<Refusal, AddError> {
        self.check_open()?;
        let now = now_ms();
        let until_ms = now.saturating_add(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX));
        let refusal = Refusal { second: now / 1000, until_ms };
        let kept = &mut self.subjects;
        // Each forgets more than it adds, so those that are over do not pile up.
        for _ in 0..FORGET_AT_ONCE {
            kept.forget_old_refusal();
        }
        if kept.refusals.get(subject).is_none() {
            let cost = cost(subject, "");
            kept.make_room(cost, retention)?;
            kept.bytes += cost;
        }
        Ok(kept.refusals.note(subject, refusal).0)
    }
}

/// Checks that a list may have one more entry.
fn check_limits(known: Option<&Entries>, topic: &Pattern) -> Result<(), AddError> {
    let Some(entries) = known else { return Ok(()) };
    if entries.len() >= MAX_ENTRIES {
        return Err(AddError::TooMany);
    }
    let is_wild = |pattern: &&Pattern| pattern.has_wildcard();
    match topic.has_wildcard() && entries.keys().filter(is_wild).count() >= MAX_WILD_ENTRIES {
        true => Err(AddError::TooManyWild),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{RETENTION, publish},
        *,
    };

    fn topic(number: usize) -> Pattern {
        format!("topic.{number}").parse().expect("a topic")
    }

    #[test]
    fn lists_push_out_messages_and_are_refused_once_they_fill_the_log_alone() {
        let retention = Retention { total_bytes: 20_000, ..RETENTION };
        let mut state = State::new(Id::now());
        for number in 0..20 {
            publish(&mut state, &format!("t{number}"));
        }
        let added = (0..MAX_ENTRIES)
            .map(|number| state.list_add(&format!("u{}", number % 3), &topic(number), &retention, Id::now()));
        let added: Vec<_> = added.collect();
        let taken = added.iter().take_while(|added| added.is_ok()).count();
        assert!((80..100).contains(&taken), "{taken} entries in 20 000 bytes");
        assert_eq!(added[taken].as_ref().err(), Some(&AddError::NoRoom));
        assert_eq!(state.order.len(), 1, "the newest message stays");
        // A repeat needs no room, and a removal makes some.
        assert!(state.list_add("u0", &topic(0), &retention, Id::now()).is_ok());
        state.list_remove("u0", &topic(0), Id::now()).expect("open");
        assert!(state.list_add("u0", &topic(0), &retention, Id::now()).is_ok());
        for number in 0..taken {
            state.list_remove(&format!("u{}", number % 3), &topic(number), Id::now()).expect("open");
        }
        assert_eq!((state.subjects.bytes, state.subjects.lists.len()), (0, 0));
    }

    #[test]
    fn a_list_has_at_most_1000_entries_and_100_patterns() {
        let mut state = State::new(Id::now());
        let retention = Retention { total_bytes: 1 << 30, ..RETENTION };
        let mut add = |topic: Pattern| state.list_add("u1", &topic, &retention, Id::now()).map(|_| ());
        for number in 0..100 {
            add(format!("p{number}.*").parse().expect("a pattern")).expect("there is room");
        }
        assert_eq!(add("p.*".parse().expect("a pattern")), Err(AddError::TooManyWild));
        for number in 0..900 {
            add(topic(number)).expect("there is room");
        }
        assert_eq!(add(topic(900)), Err(AddError::TooMany));
        add(topic(0)).expect("it is there already");
    }

    #[test]
    fn a_shorter_refusal_never_shortens_a_longer_one() {
        let mut state = State::new(Id::now());
        let long = state.refuse("u1", Duration::from_secs(3600), &RETENTION).expect("there is room");
        let short = state.refuse("u1", Duration::from_secs(1), &RETENTION).expect("it is known");
        assert_eq!(short.until_ms, long.until_ms);
        assert!(short.second >= long.second);
        state.refuse("u2", Duration::ZERO, &RETENTION).expect("there is room");
        state.refuse("u1", Duration::from_secs(1), &RETENTION).expect("it is known");
        assert_eq!((state.subjects.refusals.len(), state.subjects.bytes), (1, ENTRY_BYTES + 2));
    }

    #[test]
    fn refusals_that_are_over_make_room_for_an_entry() {
        let retention = Retention { total_bytes: 10 * ENTRY_BYTES, ..RETENTION };
        let mut state = State::new(Id::now());
        for number in 0..9 {
            let over = Refusal { second: 1, until_ms: 1 };
            state.subjects.refusals.note(&format!("o{number}"), over);
            state.subjects.bytes += cost("o1", "");
        }
        for number in 0..9 {
            state.list_add("u1", &topic(number), &retention, Id::now()).expect("there is room");
        }
        assert_eq!(state.list_add("u1", &topic(9), &retention, Id::now()).err(), Some(AddError::NoRoom));
        assert_eq!(state.subjects.refusals.len(), 0);
    }
}
