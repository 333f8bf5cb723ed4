//! The list of a subject's topics, as one process knows it: with the newest changes, in the order of their ids.
//!
//! A reader takes the changes one by one. It knows no message that is newer than a change which it has not taken, because
//! a change is here before the watermark moves to its id.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use slab::Slab;
use tokio::{sync::Notify, time::timeout};

use super::{Follower, Reason};
use crate::message::{Id, Pattern};

/// How many changes are remembered. A reader that is further behind compares lists.
const MAX_CHANGES: usize = 256;

/// The topics of a list, each with the id at which it was added.
pub type Entries = BTreeMap<Pattern, Id>;

/// A change of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: Id,
    pub topic: Pattern,
    pub is_added: bool,
}

/// The list of one subject.
#[derive(Debug)]
pub struct List {
    subject: Box<str>,
    /// How many changes there were. A list that is not known any more counts as a change too.
    count: AtomicU64,
    // Std mutexes: no await happens while one is held.
    known: Mutex<Known>,
    followers: Mutex<Slab<Arc<Follower>>>,
    /// Notifies when the list is known.
    is_known: Notify,
}

#[derive(Debug)]
struct Known {
    /// `None` until they were read from the store, and after changes may have been missed.
    entries: Option<Arc<Entries>>,
    /// The entries have every change up to here.
    upto: Id,
    changes: VecDeque<Change>,
    /// How many changes there were when the entries were read.
    count_read: u64,
    generation: Generation,
    /// Grows whenever the entries are not known any more.
    doubts: u64,
}

/// The generation of the store that the list belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    pub began: Id,
    pub reason: Reason,
}

/// The part of a list that a reader has not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    None,
    /// It must be read from the store first. Its followers are woken then.
    Unknown,
    Changes(Vec<Change>),
    /// The whole list, because it was read from the store: some changes may not be known.
    Anew(Arc<Entries>),
    /// The whole list, because too much has changed.
    TooMany(Arc<Entries>),
}

impl List {
    fn new(subject: &str, generation: Generation) -> Self {
        let (upto, changes, count_read, doubts) = Default::default();
        Self {
            subject: subject.into(),
            count: AtomicU64::new(1),
            known: Mutex::new(Known { entries: None, upto, changes, count_read, generation, doubts }),
            followers: Mutex::default(),
            is_known: Notify::new(),
        }
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followers(&self) -> MutexGuard<'_, Slab<Arc<Follower>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn generation(&self) -> Generation {
        self.known().generation
    }

    /// The entries, if they are known.
    pub fn entries(&self) -> Option<Arc<Entries>> {
        self.known().entries.clone()
    }

    /// True if a reader that has taken so many changes lacks some.
    pub fn has_news(&self, taken: u64) -> bool {
        self.count.load(Ordering::Acquire) != taken
    }

    /// Everything after the changes that were taken, as changes if these are at most so many.
    pub fn take(&self, taken: &mut u64, most: usize) -> News {
        if !self.has_news(*taken) {
            return News::None;
        }
        let known = self.known();
        let Some(entries) = &known.entries else { return News::Unknown };
        let count = self.count.load(Ordering::Acquire);
        let from = std::mem::replace(taken, count);
        let missing = (count - from.max(known.count_read)) as usize;
        match known.changes.len().checked_sub(missing) {
            Some(_) if from < known.count_read => News::Anew(entries.clone()),
            Some(first) if missing <= most => News::Changes(known.changes.range(first..).cloned().collect()),
            _ => News::TooMany(entries.clone()),
        }
    }

    /// Notes a change. The watermark may move to its id only after this, and then the followers are [woken](Self::wake).
    pub fn change(&self, change: Change) {
        let mut known = self.known();
        if known.entries.is_some() && change.id <= known.upto {
            return;
        }
        if known.changes.len() == MAX_CHANGES {
            known.changes.pop_front();
            if known.entries.is_none() {
                // An answer of the store may be older than a change that is forgotten here.
                known.doubts += 1;
            }
        }
        if let Some(entries) = &mut known.entries {
            apply(Arc::make_mut(entries), &change);
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        known.changes.push_back(change);
    }

    /// Notes that changes may have been missed. The list is not known until it is [read](Self::load) again.
    pub fn doubt(&self, generation: Generation) {
        let mut known = self.known();
        (known.entries, known.generation) = (None, generation);
        known.doubts += 1;
        known.changes.clear();
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// The number to [load](Self::load) the list with, if it is not known.
    pub fn doubts(&self) -> Option<u64> {
        let known = self.known();
        known.entries.is_none().then_some(known.doubts)
    }

    /// Takes the list as the store had it at `upto`, unless it is known by now. False if it must be read again.
    pub fn load(&self, doubts: u64, mut entries: Entries, upto: Id, generation: Generation) -> bool {
        let mut known = self.known();
        if known.doubts != doubts {
            return false;
        }
        if known.entries.is_some() {
            // Two tasks have read it. This answer may be the older one, and the changes after it are forgotten by now.
            return true;
        }
        known.changes.iter().filter(|change| change.id > upto).for_each(|change| apply(&mut entries, change));
        // Readers compare lists now, because they have not seen the changes before this.
        known.changes.clear();
        (known.entries, known.upto, known.generation) = (Some(Arc::new(entries)), upto, generation);
        known.count_read = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        drop(known);
        self.is_known.notify_waiters();
        self.wake();
        true
    }

    /// Wakes the readers.
    pub fn wake(&self) {
        self.followers().iter().for_each(|(_, follower)| follower.wake());
    }

    /// Waits until the list is known. False if that takes too long.
    pub async fn settled(&self, patience: Duration) -> bool {
        let settled = async {
            loop {
                let is_known = self.is_known.notified();
                tokio::pin!(is_known);
                // Listen first, then look.
                is_known.as_mut().enable();
                if self.known().entries.is_some() {
                    return;
                }
                is_known.await;
            }
        };
        timeout(patience, settled).await.is_ok()
    }
}

fn apply(entries: &mut Entries, change: &Change) {
    match change.is_added {
        true => entries.insert(change.topic.clone(), change.id),
        false => entries.remove(&change.topic),
    };
}

/// A list that a reader follows until this is dropped.
#[derive(Debug)]
pub struct FollowedList {
    list: Arc<List>,
    follower: Arc<Follower>,
    key: usize,
}

impl FollowedList {
    pub fn list(&self) -> &Arc<List> {
        &self.list
    }

    /// Woken by each change.
    pub fn follower(&self) -> &Follower {
        &self.follower
    }
}

impl Drop for FollowedList {
    fn drop(&mut self) {
        self.list.followers().try_remove(self.key);
    }
}

/// The lists that are followed in this process.
#[derive(Debug, Default)]
pub struct Lists {
    lists: HashMap<Box<str>, Weak<List>>,
    /// When there are so many, those without a follower are dropped.
    prune_at: usize,
}

impl Lists {
    /// Follows the list of a subject. True if it is new here.
    pub fn follow(&mut self, subject: &str, generation: Generation) -> (FollowedList, bool) {
        if self.lists.len() >= self.prune_at {
            self.lists.retain(|_, list| list.strong_count() > 0);
            self.prune_at = (2 * self.lists.len()).max(64);
        }
        let known = self.find(subject);
        let is_new = known.is_none();
        let list = known.unwrap_or_else(|| {
            let list = Arc::new(List::new(subject, generation));
            self.lists.insert(subject.into(), Arc::downgrade(&list));
            list
        });
        let follower = Arc::new(Follower::default());
        let key = list.followers().insert(follower.clone());
        (FollowedList { list, follower, key }, is_new)
    }

    pub fn find(&self, subject: &str) -> Option<Arc<List>> {
        self.lists.get(subject).and_then(Weak::upgrade)
    }

    /// Those that are followed.
    pub fn all(&self) -> impl Iterator<Item = Arc<List>> {
        self.lists.values().filter_map(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Generation = Generation { began: Id::new(1), reason: Reason::Restarted };

    fn change(id: u64, topic: &str, is_added: bool) -> Change {
        Change { id: Id::new(id), topic: topic.parse().expect("a topic"), is_added }
    }

    fn names(entries: &Entries) -> Vec<(&str, u64)> {
        entries.iter().map(|(topic, id)| (topic.as_str(), id.get())).collect()
    }

    #[test]
    fn a_change_that_comes_while_the_list_is_read_is_not_lost() {
        let (followed, is_new) = Lists::default().follow("u1", FIRST);
        let (list, mut taken) = (followed.list(), 0);
        assert!(is_new && list.take(&mut taken, MAX_CHANGES) == News::Unknown);
        let doubts = list.doubts().expect("it is not known");
        // The store had the first change already.
        list.change(change(5, "a", true));
        list.change(change(7, "b", true));
        list.change(change(8, "a", false));
        assert!(list.load(
            doubts,
            Entries::from([("a".parse().expect("a topic"), Id::new(5))]),
            Id::new(5),
            FIRST
        ));
        let News::Anew(entries) = list.take(&mut taken, MAX_CHANGES) else { panic!("it is known now") };
        assert_eq!(names(&entries), [("b", 7)]);
        // The feed may be behind the store.
        list.change(change(4, "late", true));
        assert_eq!(list.take(&mut taken, MAX_CHANGES), News::None);
        list.change(change(9, "c", true));
        assert_eq!(list.take(&mut taken, MAX_CHANGES), News::Changes(vec![change(9, "c", true)]));
    }

    /// The feed was behind the answer of the store, so an entry that was removed came back for good.
    #[test]
    fn a_change_that_the_answer_has_is_not_made_again() {
        let (followed, _) = Lists::default().follow("u1", FIRST);
        let (list, mut taken) = (followed.list(), 0);
        let doubts = list.doubts().expect("it is not known");
        list.change(change(5, "a", true));
        assert!(list.load(doubts, Entries::new(), Id::new(6), FIRST));
        list.change(change(6, "a", false));
        let News::Anew(entries) = list.take(&mut taken, MAX_CHANGES) else { panic!("it is known") };
        assert!(entries.is_empty(), "{entries:?}");
    }

    #[test]
    fn a_list_that_was_doubted_meanwhile_is_read_again() {
        let (followed, _) = Lists::default().follow("u1", FIRST);
        let list = followed.list();
        let doubts = list.doubts().expect("it is not known");
        list.doubt(FIRST);
        assert!(!list.load(doubts, Entries::new(), Id::new(5), FIRST));
        let doubts = list.doubts().expect("it is still not known");
        for id in 0..=MAX_CHANGES as u64 {
            list.change(change(6 + id, "a", true));
        }
        assert!(!list.load(doubts, Entries::new(), Id::new(5), FIRST), "one of the changes is forgotten");
    }

    /// A change between the two answers was lost to every reader that came later.
    #[test]
    fn an_older_answer_takes_nothing_back_from_a_list_that_is_known() {
        let (followed, _) = Lists::default().follow("u1", FIRST);
        let (list, mut taken) = (followed.list(), 0);
        let doubts = list.doubts().expect("it is not known");
        list.change(change(5, "a", true));
        list.change(change(6, "b", false));
        let [a, b] = ["a", "b"].map(|name| name.parse::<Pattern>().expect("a topic"));
        assert!(list.load(doubts, Entries::from([(a, Id::new(5))]), Id::new(6), FIRST));
        assert!(list.load(doubts, Entries::from([(b, Id::new(3))]), Id::new(4), FIRST));
        let News::Anew(entries) = list.take(&mut taken, MAX_CHANGES) else { panic!("it is known") };
        assert_eq!(names(&entries), [("a", 5)]);
    }

    #[test]
    fn a_reader_that_is_far_behind_gets_the_whole_list() {
        let (followed, _) = Lists::default().follow("u1", FIRST);
        let (list, mut taken) = (followed.list(), 0);
        assert!(list.load(0, Entries::new(), Id::new(1), FIRST));
        assert!(matches!(list.take(&mut taken, MAX_CHANGES), News::Anew(_)));
        let (mut late, mut new) = (taken, 0);
        for id in 0..=MAX_CHANGES as u64 {
            list.change(change(2 + id, "a", id % 2 == 0));
            assert!(
                matches!(list.take(&mut taken, MAX_CHANGES), News::Changes(changes) if changes.len() == 1)
            );
        }
        let News::TooMany(entries) = list.take(&mut late, MAX_CHANGES) else { panic!("it lacks too many") };
        assert_eq!(names(&entries), [("a", 2 + MAX_CHANGES as u64)]);
        // This one has never had the list, and lacks changes that are forgotten.
        assert!(matches!(list.take(&mut new, MAX_CHANGES), News::TooMany(_)));
        list.change(change(1000, "b", true));
        assert!(matches!(list.take(&mut late, 0), News::TooMany(_)), "there is no room for one");
    }

    #[test]
    fn lists_without_a_follower_are_dropped() {
        let mut lists = Lists::default();
        for number in 0..1000 {
            lists.follow(&number.to_string(), FIRST);
        }
        assert!(lists.lists.len() <= 64, "{}", lists.lists.len());
    }
}
