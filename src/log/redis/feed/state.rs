//! The tails of this process, and what each entry of the feed changes in them.

use std::{collections::HashMap, sync::Arc};

use super::FeedTail;
use crate::{
    log::{
        Change, End, Ephemerals, Generation, List, Reason, Tail,
        list::Lists,
        patterns::{self, PatternTails},
        redis::{
            codec::{Before, Entry, Event, Place},
            deletions::Deletions,
            held::Held,
        },
    },
    message::{Draft, Id, Message, Pattern, Topic},
};

#[derive(Default)]
pub struct State {
    /// The place of the last entry that was read.
    pub place: Place,
    /// The newest id that was read; some entries, such as evictions, have none of their own. The watermark is set
    /// to this.
    pub newest: Id,
    /// The id at which the generation of the store began. Zero before the first `begin`.
    pub generation: Id,
    pub topics: HashMap<Topic, Arc<FeedTail>>,
    pub patterns: HashMap<Pattern, Arc<FeedTail>>,
    pub trie: PatternTails,
    pub held: Held,
    pub deletions: Deletions,
    pub lists: Lists,
    /// The lists to wake, and the ends to tell, once the lock is released.
    pub changed: Vec<Arc<List>>,
    pub ends: Vec<End>,
    /// Changes of lists, and refusals, may have been missed since the lock was last released.
    pub has_missed: bool,
}

impl State {
    /// Takes an entry into all tails that need it, and returns the tails to wake.
    pub fn take(&mut self, entry: Entry, ephemerals: &Ephemerals) -> Vec<Arc<Tail>> {
        let Entry { place, event } = entry;
        self.place = place;
        let Some(event) = event else {
            // The entry may stand for an id of the log, or another program wrote it. The next entry or the next probe shows
            // which: it names an id that this process has not read.
            tracing::warn!(%place, "an entry of the feed cannot be read; what it stands for is read from the store");
            return Vec::new();
        };
        let before = event.before();
        let mut woken = before.map(|before| self.check_order(before, place.id)).unwrap_or_default();
        match event {
            Event::Message { gone, topic, draft, prev, .. } => {
                woken.extend(self.push(topic, draft, place.id, prev, gone));
            }
            Event::Ephemeral { draft } => woken.extend(self.announce(draft, place.id, ephemerals)),
            Event::Deleted { gone, topic, .. } => {
                self.deletions.note(&topic, gone);
                self.remove(&topic, gone);
            }
            Event::Evicted { gone, topic } => self.remove(&topic, gone),
            Event::Listed { subject, topic, is_added, .. } => {
                if let Some(list) = self.lists.find(&subject) {
                    list.change(Change { id: place.id, topic, is_added });
                    self.changed.push(list);
                }
            }
            Event::Ended { subject, refusal, .. } => {
                self.ends.push(End { subject, refusal, id: place.id });
            }
            Event::Step { .. } => {}
        }
        if before.is_some() {
            self.newest = place.id;
        }
        woken
    }

    /// Checks that no entry is missing before the one with this id. If one is, or if the generation is new, the
    /// tails drop everything before it. Returns the tails to wake.
    fn check_order(&mut self, before: Before, id: Id) -> Vec<Arc<Tail>> {
        let Before { generation, id: before } = before;
        let is_same = generation == self.generation;
        if is_same && before == self.newest {
            return Vec::new();
        }
        // A new primary may lack messages. So a reader whose cursor is before this entry asks the store.
        let woken = self.drop_upto(before.max(generation).max(id.before()));
        if !is_same {
            tracing::info!(began = %generation, "the store has a new generation; older cursors will see a gap");
        } else {
            tracing::warn!(from = %self.newest, to = %before, "messages were missed in the feed; resyncing");
        }
        (self.generation, self.newest) = (generation, before.max(generation).max(id.before()));
        self.doubt_lists();
        woken
    }

    /// Changes of lists may have been missed.
    pub fn doubt_lists(&mut self) {
        let generation = Generation { began: self.generation, reason: Reason::Restarted };
        self.has_missed = true;
        for list in self.lists.all() {
            list.doubt(generation);
            self.changed.push(list);
        }
    }

    /// Drops everything up to `upto` from memory, so that readers ask the store for it. Returns the tails to wake.
    pub fn drop_upto(&mut self, upto: Id) -> Vec<Arc<Tail>> {
        let Self { topics, patterns, held, deletions, .. } = self;
        deletions.forget(upto);
        patterns.values().for_each(|followed| followed.tail.drop_upto(upto, drop));
        topics.values().for_each(|followed| held.drop_upto(&followed.tail, upto));
        topics.values().chain(patterns.values()).map(|followed| followed.tail.clone()).collect()
    }

    fn push(&mut self, topic: Topic, draft: Option<Draft>, id: Id, prev: Id, gone: Id) -> Vec<Arc<Tail>> {
        let mut tails = Vec::new();
        self.trie.matching(&topic, &mut tails);
        if tails.is_empty() && !self.topics.contains_key(&topic) {
            return tails;
        }
        // The message goes into the tail of its topic even if only a pattern is followed, so that trimming
        // finds it.
        let followed = self.find_or_make(&Pattern::from(&topic));
        if prev > followed.tail.newest() {
            // The index had forgotten this topic, so `prev` is the newest id that it has forgotten. No message that
            // old is retained.
            self.drop_upto(prev);
        }
        match draft {
            Some(draft) if !self.deletions.is_expected(&topic, id) => {
                self.hold(&followed.tail, &tails, draft, id, prev);
            }
            // The message is too large for the feed, or was deleted before it arrived.
            _ => self.leave_to_store(&followed.tail, &tails, id),
        }
        if gone > Id::ZERO {
            self.held.remove(&followed.tail, gone);
        }
        tails.push(followed.tail.clone());
        tails
    }

    fn hold(&mut self, tail: &Arc<Tail>, patterns: &[Arc<Tail>], mut draft: Draft, id: Id, prev: Id) {
        if let Some(topic) = tail.name().topic() {
            // All messages of a topic share one copy of its name.
            draft.topic = topic;
        }
        let message = Message::new(draft, id, prev);
        patterns.iter().for_each(|tail| patterns::push(tail, message.clone()));
        self.held.push(tail, message);
    }

    fn leave_to_store(&mut self, tail: &Arc<Tail>, patterns: &[Arc<Tail>], upto: Id) {
        patterns.iter().for_each(|tail| tail.drop_upto(upto, drop));
        self.held.drop_upto(tail, upto);
    }

    fn announce(&self, draft: Draft, newest: Id, ephemerals: &Ephemerals) -> Vec<Arc<Tail>> {
        let mut tails = Vec::new();
        self.trie.matching(&draft.topic, &mut tails);
        tails.extend(self.topics.get(&draft.topic).map(|followed| followed.tail.clone()));
        tails.retain(|tail| tail.follower_count() > 0);
        if !tails.is_empty() {
            ephemerals.push(newest, Message::new(draft, Id::ZERO, Id::ZERO));
        }
        tails
    }

    pub fn remove(&mut self, topic: &Topic, gone: Id) {
        if let Some(followed) = self.topics.get(topic) {
            self.held.remove(&followed.tail, gone);
        }
    }

    /// The tail of a topic or pattern, which is made if there is none. A new one holds everything from now on.
    pub fn find_or_make(&mut self, pattern: &Pattern) -> Arc<FeedTail> {
        let new = || Tail::new(pattern.clone(), self.newest);
        match pattern.topic() {
            Some(topic) => self.topics.entry(topic).or_insert_with(|| FeedTail::new(Arc::new(new()))).clone(),
            None => {
                let tail = self.trie.entry(pattern, new);
                self.patterns.entry(pattern.clone()).or_insert_with(|| FeedTail::new(tail)).clone()
            }
        }
    }
}
