//! The list of a subject's topics, as one subscription reads it.
//!
//! A change of the list has its place among the messages, and the subscription never reads past a change that it has
//! not made. So a cursor that it has given out is right for every topic that was on the list then.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{Delivery, GapNotice, RETRY_AFTER, Subscription};
use crate::{
    log::{Change, Entries, Followed, FollowedList, Gap, MAX_ENTRIES, News, Position, Reason, Start},
    message::{Id, Pattern, PatternSet},
};

/// How many changes may wait to be made. If more come, the reader compares lists, which leaves at most half as many. So it
/// does that only once in very many changes.
const MAX_DUE: usize = 4 * MAX_ENTRIES;

/// The topic of the gap that stands for those of all entries.
pub const GAP_TOPIC: &str = "$mine";

/// A list that a subscription follows.
pub struct Mine {
    followed: FollowedList,
    /// How many changes were taken.
    taken: u64,
    /// Every change up to here was taken.
    known_upto: Id,
    /// The entries, as the reader knows them.
    entries: Entries,
    /// The entries that the subscription would read without the list too.
    also: BTreeSet<Pattern>,
    /// The changes that are not made yet, in the order of their ids.
    queue: VecDeque<Due>,
    /// The follower of the next topic to add.
    following: Option<(Pattern, BoxFuture<'static, Followed>)>,
    /// The gap about the list was told for the generation that began here.
    told: Id,
    /// Entries were removed, and it is not known where.
    has_lost_place: bool,
}

/// A change that is to be made once the subscription has read up to it.
#[derive(Debug)]
struct Due {
    change: Change,
    /// The entry was there when the subscription began.
    is_known: bool,
}

/// A change of what is read because of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListChange {
    Added(Pattern),
    Removed(Pattern),
}

impl Mine {
    /// `None` if the list is not known.
    pub fn new(followed: FollowedList) -> Option<Self> {
        let mut taken = 0;
        let (News::Anew(known) | News::TooMany(known)) = followed.list().take(&mut taken, 0) else {
            return None;
        };
        let entries = (*known).clone();
        let (known_upto, also, queue, following, told, has_lost_place) = Default::default();
        Some(Self { followed, taken, known_upto, entries, also, queue, following, told, has_lost_place })
    }

    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// True if a topic is read because of the list alone.
    fn is_only_listed(&self, topic: &Pattern) -> bool {
        self.entries.contains_key(topic) && !self.also.contains(topic)
    }

    /// How far the subscription may read, if everything has arrived up to this watermark. The watermark is read first.
    pub fn limit(&mut self, watermark: Id) -> Id {
        if !self.followed.list().has_news(self.taken) {
            self.known_upto = self.known_upto.max(watermark);
        }
        self.queue.front().map_or(self.known_upto, |due| self.known_upto.min(due.change.id))
    }

    /// True if the subscription, which has read up to this id, cannot read on before it has taken the changes.
    pub fn holds(&mut self, read_upto: Id, watermark: Id) -> bool {
        self.limit(watermark) <= read_upto && self.followed.list().has_news(self.taken)
    }

    /// True if the gap about the list is to be told to a reader at this cursor.
    pub fn owes_gap(&self, cursor: Id) -> bool {
        let began = self.followed.list().generation().began;
        self.told < began && cursor < began
    }

    /// Puts one gap in place of those of the entries: after a loss, it is not known which entries there were.
    pub fn merge_gaps(&mut self, gaps: &mut Vec<Gap>, cursor: Id) {
        let generation = self.followed.list().generation();
        if cursor >= generation.began {
            return;
        }
        let is_of_loss = |gap: &Gap| matches!(gap.reason, Reason::Restarted | Reason::Failover);
        let reason = gaps.iter().find(|gap| is_of_loss(gap)).map_or(generation.reason, |gap| gap.reason);
        gaps.retain(|gap| !(is_of_loss(gap) && self.is_only_listed(&gap.topic)));
        if self.told < generation.began {
            self.told = generation.began;
            let topic = GAP_TOPIC.parse().expect("it is a topic");
            gaps.push(Gap { topic, next: None, reason, floor: Id::ZERO });
        }
    }

    /// Takes the changes of the list. True if there were some.
    fn take(&mut self) -> bool {
        let room = MAX_DUE.saturating_sub(self.queue.len());
        match self.followed.list().take(&mut self.taken, room) {
            News::None | News::Unknown => return false,
            News::Changes(changes) => {
                self.queue.extend(changes.into_iter().map(|change| Due { change, is_known: false }));
            }
            News::Anew(entries) => self.compare(&entries),
            News::TooMany(entries) => {
                self.has_lost_place = true;
                self.compare(&entries);
            }
        }
        true
    }

    /// Queues the differences to the list as it is now.
    fn compare(&mut self, now: &Entries) {
        let is_there = |due: &Due| now.get(&due.change.topic) == Some(&due.change.id);
        let is_gone = |due: &Due| due.change.is_added && !is_there(due);
        self.has_lost_place |= self.queue.iter().any(is_gone);
        // Entries that were there at the beginning, and that are not read yet.
        self.queue.retain(|due| due.is_known && is_there(due));
        let due = |topic: &Pattern, id, is_added| Due {
            change: Change { id, topic: topic.clone(), is_added },
            is_known: false,
        };
        let lacks = |of: &Entries, topic: &Pattern, id: &Id| of.get(topic) != Some(id);
        let gone = self.entries.iter().filter(|(topic, id)| lacks(now, topic, id));
        let new = now.iter().filter(|(topic, id)| lacks(&self.entries, topic, id));
        let gone = gone.map(|(topic, _)| due(topic, Id::ZERO, false));
        let gone: Vec<_> = gone.collect();
        self.has_lost_place |= !gone.is_empty();
        let changes: Vec<_> = gone.into_iter().chain(new.map(|(topic, id)| due(topic, *id, true))).collect();
        self.queue.extend(changes);
        self.queue.make_contiguous().sort_by_key(|due| due.change.id);
    }
}

impl Subscription {
    /// Reads the list too. The subscription reads everything on it already, as if it had been there from the start on.
    pub fn read_mine(&mut self, mut mine: Mine, own: &[Pattern], start: &Start) {
        mine.also = own.iter().filter(|topic| mine.entries.contains_key(*topic)).cloned().collect();
        let unknown = match start {
            Start::Unreadable(sent) => Some((sent.clone(), Id::MAX)),
            Start::After(sent) if *sent > self.position.cursor => Some((sent.to_string(), *sent)),
            _ => None,
        };
        // Only a cursor can have a gap.
        if unknown.is_some() || !matches!(start, Start::After(_)) {
            mine.told = mine.followed.list().generation().began;
        }
        if let Some((sent, unknown)) = unknown {
            self.tell_unknown(&mine, sent, unknown);
        }
        mine.known_upto = self.position.cursor;
        let young = |(topic, id): (&Pattern, &Id)| {
            let is_young = *id > self.position.cursor && mine.is_only_listed(topic);
            is_young.then(|| (topic.clone(), *id))
        };
        let young: BTreeMap<Pattern, Id> = mine.entries.iter().filter_map(young).collect();
        if self.position.settled() > self.position.cursor {
            // The newest messages of many topics are given first: those that are older than their entry are not.
            self.raise_floors(&young);
        } else {
            young.keys().for_each(|topic| _ = self.remove(topic));
            let due = young
                .into_iter()
                .map(|(topic, id)| Due { change: Change { id, topic, is_added: true }, is_known: true });
            mine.queue = due.collect();
            mine.queue.make_contiguous().sort_by_key(|due| due.change.id);
        }
        self.mine = Some(Box::new(mine));
    }

    /// Tells one gap about the list in place of those of its entries, because the client's cursor is unknown. It is the
    /// last one, and moves the cursor.
    fn tell_unknown(&mut self, mine: &Mine, after: String, unknown: Id) {
        self.ready.retain_mut(|delivery| {
            let Delivery::Gap(gap) = delivery else { return true };
            gap.cursor = unknown;
            !mine.is_only_listed(&gap.topic)
        });
        let (topic, cursor) = (GAP_TOPIC.parse().expect("it is a topic"), self.cursor);
        let gap = GapNotice { topic, after: after.into(), next: None, cursor, reason: Reason::UnknownCursor };
        self.ready.push_back(Delivery::Gap(Box::new(gap)));
        self.unknown_cursor = Some(unknown);
    }

    /// Counts topics as given up to the ids of their entries, unless another pattern reads them from the start on.
    fn raise_floors(&mut self, young: &BTreeMap<Pattern, Id>) {
        let named = young.keys().filter_map(Pattern::topic);
        let topics: BTreeSet<_> = named.chain(self.position.floored().cloned()).collect();
        for topic in topics {
            let mut floor = Id::MAX;
            let mut note = |pattern: &Pattern| {
                floor = floor.min(young.get(pattern).copied().unwrap_or_default());
            };
            if self.patterns.names(&topic) {
                note(&Pattern::from(&topic));
            }
            self.patterns.for_each_wildcard(&topic, note);
            if floor < Id::MAX {
                self.position.raise_floor(topic, floor);
            }
        }
    }

    /// The next change of the list, once everything before it was given out. `None` if there is none. While this is
    /// pending, [read on](Self::poll_delivery).
    pub fn poll_mine(&mut self, cx: &mut Context<'_>) -> Poll<Option<ListChange>> {
        let Some(mine) = &mut self.mine else { return Poll::Ready(None) };
        // Listen first, then look.
        mine.followed.follower().take_wakeup(cx);
        let was_due = !mine.queue.is_empty();
        if mine.take() {
            // The changes may have stopped this below the watermark, and may be undone already.
            self.looked_upto = None;
            self.tell_lost_place();
        }
        if was_due && self.mine.as_ref().is_some_and(|mine| mine.queue.is_empty()) {
            // Later changes have undone those that this subscription was to stop at.
            self.read_until(Id::MAX);
        }
        loop {
            let Some(mine) = &mut self.mine else { return Poll::Ready(None) };
            let Some(Due { change, is_known }) = mine.queue.front() else { return Poll::Ready(None) };
            let (change, is_known) = (change.clone(), *is_known);
            if !self.has_read_upto(change.id) {
                self.read_until(change.id.max(self.position.cursor));
                return Poll::Pending;
            }
            if !change.is_added && self.has_ephemerals_before(change.id) {
                return Poll::Pending;
            }
            let is_read = self.patterns.contains(&change.topic);
            if change.is_added && !is_read {
                let followed = ready!(self.poll_follow(&change.topic, cx));
                self.insert(change.topic.clone(), change.id, followed);
            }
            let done = self.make(change, is_read);
            let is_last = self.mine.as_ref().is_none_or(|mine| mine.queue.is_empty());
            if is_last {
                self.read_until(Id::MAX);
            }
            if !is_known {
                return Poll::Ready(Some(done));
            }
        }
    }

    /// Tells a gap about the list if it is not known where entries were removed: their messages from before that may be
    /// missing. All of them are newer than the position, because the subscription reads past no change.
    fn tell_lost_place(&mut self) {
        let Some(mine) = &mut self.mine else { return };
        // After a loss the gap is told anyway.
        if !std::mem::take(&mut mine.has_lost_place) || mine.owes_gap(self.cursor) {
            return;
        }
        let (topic, cursor) = (GAP_TOPIC.parse().expect("it is a topic"), self.position.cursor);
        let (after, reason) = (cursor.to_string().into(), Reason::Retention);
        self.ready.push_back(Delivery::Gap(Box::new(GapNotice { topic, after, next: None, cursor, reason })));
    }

    /// True if everything up to this id was given out, and nothing else is on its way.
    fn has_read_upto(&self, id: Id) -> bool {
        let is_idle = self.ready.is_empty() && self.page.is_none();
        is_idle && self.cursor >= id && self.cursor >= self.position.cursor
    }

    /// Makes the change that is due, for a topic that is followed if it is to be added.
    fn make(&mut self, change: Change, is_read: bool) -> ListChange {
        let Change { id, topic, is_added } = change;
        let Some(mine) = &mut self.mine else { return ListChange::Removed(topic) };
        mine.queue.pop_front();
        if is_added {
            if is_read {
                mine.also.insert(topic.clone());
            }
            mine.entries.insert(topic.clone(), id);
            return ListChange::Added(topic);
        }
        mine.entries.remove(&topic);
        if !mine.also.remove(&topic) {
            self.remove(&topic);
        }
        ListChange::Removed(topic)
    }

    /// Follows a topic, and tries again until the log can be reached.
    fn poll_follow(&mut self, topic: &Pattern, cx: &mut Context<'_>) -> Poll<Followed> {
        let Some(mine) = &mut self.mine else { return Poll::Pending };
        if mine.following.as_ref().is_some_and(|(pattern, _)| pattern != topic) {
            mine.following = None;
        }
        let (log, follower) = (&self.log, &self.follower);
        let (_, following) = mine.following.get_or_insert_with(|| {
            let (log, follower, pattern) = (log.clone(), follower.clone(), topic.clone());
            let follow = async move {
                loop {
                    match log.clone().follow(&pattern, &follower).await {
                        Ok(followed) => return followed,
                        Err(_) => tokio::time::sleep(RETRY_AFTER).await,
                    }
                }
            };
            (topic.clone(), follow.boxed())
        });
        let followed = ready!(following.poll_unpin(cx));
        mine.following = None;
        Poll::Ready(followed)
    }

    /// Reads one more pattern, after the cursor. It was added at this id.
    fn insert(&mut self, pattern: Pattern, added_at: Id, followed: Followed) {
        // The ephemeral messages from before the change were not for this pattern.
        let since = self.seen_ephemerals.map(|seen| self.ephemerals_before(added_at).max(seen));
        let others = self.patterns.clone();
        let cursor = self.position.cursor;
        let single = [pattern.clone()].into_iter().collect::<PatternSet>();
        let (is_ours, is_new) = (|topic: &str| others.matches(topic), |topic: &str| single.matches(topic));
        self.position.join(&Position::at(cursor), is_ours, is_new);
        let patterns = Arc::make_mut(&mut self.patterns);
        if let Some(index) = patterns.insert(pattern.clone()) {
            self.followed.insert(index, followed);
        }
        self.read_ephemerals_since(&pattern, since);
        self.looked_upto = None;
        self.follower.wake();
    }

    /// The entries of the list, if it is read.
    pub fn mine(&self) -> Option<&Entries> {
        self.mine.as_ref().map(|mine| mine.entries())
    }

    /// True if the next change of the list can be made now.
    pub fn is_at_list_change(&self) -> bool {
        let due = self.mine.as_ref().and_then(|mine| mine.queue.front());
        due.is_some_and(|due| self.has_read_upto(due.change.id))
    }

    /// True if a topic is on the list.
    pub fn is_listed(&self, topic: &Pattern) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.entries.contains_key(topic))
    }

    /// True if a topic is read because of the list alone.
    pub fn is_only_listed(&self, topic: &Pattern) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.is_only_listed(topic))
    }

    /// Notes if a topic on the list would be read without the list too.
    pub fn read_also(&mut self, topic: &Pattern, is_so: bool) {
        let Some(mine) = &mut self.mine else { return };
        match is_so && mine.entries.contains_key(topic) {
            true => _ = mine.also.insert(topic.clone()),
            false => _ = mine.also.remove(topic),
        }
    }
}
