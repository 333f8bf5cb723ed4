//! All groups of one server, by what their members read.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
    time::SystemTime,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    Group, Joined, WRITES_AT_ONCE,
    member::{Parked, Seat},
};
use crate::{
    broker::Subscription,
    config::Parking,
    http::{
        batch::Form,
        metrics::TransportMetrics,
        rules::{InForce, Rules},
        shared_socket::SharedSocket,
    },
    message::PatternSet,
};

/// Readers of more topics and patterns stay alone. A reader that leaves a group follows each of them again, and stops when
/// it comes back. With many of them, each command of a client would cost much more.
pub(super) const MAX_PATTERNS: usize = 16;
/// How many groups a reader asks before it makes a new one.
const MOST_TRIED: usize = 2;

/// The topics that the members of a group read, and the form in which they are given.
#[derive(Clone)]
pub struct Key {
    pub form: Form,
    pub patterns: Arc<PatternSet>,
    /// The hash of both, so that no list is hashed while the groups are locked.
    hash: u64,
}

impl Key {
    fn of(form: Form, patterns: &Arc<PatternSet>, hasher: &RandomState) -> Self {
        Self { form, patterns: patterns.clone(), hash: hasher.hash_one((form, &patterns[..])) }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        // Readers that have left a group share its list.
        let is_same =
            || Arc::ptr_eq(&self.patterns, &other.patterns) || self.patterns[..] == other.patterns[..];
        self.hash == other.hash && self.form == other.form && is_same()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.hash.hash(hasher);
    }
}

/// A reader that wants to park.
pub struct Comer<'a> {
    pub form: Form,
    pub socket: &'a SharedSocket,
    pub metrics: &'a Arc<TransportMetrics>,
    /// The rules by which its rights were checked, and their end.
    pub rules: &'a Arc<Rules>,
    pub ends_at: Option<SystemTime>,
}

/// The groups of one server.
pub struct Groups {
    pub(super) in_force: Arc<InForce>,
    // A std mutex: no await happens while it is held.
    groups: Mutex<HashMap<Key, Vec<Arc<Group>>>>,
    /// One for each group. It ends soon after its last member has left.
    tasks: TaskTracker,
    parking: Parking,
    /// How often a reader has drawn if it parks.
    draws: AtomicU64,
    /// One for each member that a group may write to before other tasks run.
    pub(super) turns: Arc<Semaphore>,
    hasher: RandomState,
}

impl Groups {
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(in_force: Arc<InForce>, parking: Parking) -> Arc<Self> {
        let threads = Handle::current().metrics().num_workers();
        Arc::new(Self {
            in_force,
            groups: Mutex::default(),
            tasks: TaskTracker::new(),
            parking,
            draws: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(threads * WRITES_AT_ONCE)),
            hasher: RandomState::new(),
        })
    }

    /// True if it is worth for this reader to be in a group.
    fn is_worth(&self, reader: &Subscription) -> bool {
        match self.parking {
            Parking::WithCompany => reader.has_company(),
            Parking::Always => true,
            Parking::Never => false,
            Parking::AtRandom(seed) => {
                let draw = self.draws.fetch_add(1, Ordering::Relaxed);
                StdRng::seed_from_u64(seed.wrapping_add(draw)).random()
            }
        }
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Key, Vec<Arc<Group>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all groups have ended. Call it when no reader comes any more.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again.
    pub async fn until_ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.groups().is_empty()
    }

    #[cfg(test)]
    pub fn any(&self) -> Option<Arc<Group>> {
        self.groups().values().flatten().next().cloned()
    }

    #[cfg(test)]
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.groups().values().flatten().cloned().collect()
    }

    /// Lets a reader join a group of those that stand where it stands, if others follow its topics. The first of them
    /// founds the group, and may stay its only member if the others read in another form or other topics too. If the
    /// reader cannot join, nothing changes but that it has looked at what has arrived.
    ///
    /// The task with this waker is woken if the group lets the reader go, or if it is worth to try again: once the group
    /// has caught up or has ended. It is not woken once the watermark reaches a reader that was ahead of it. Such a reader
    /// stays alone until it has something else to do, which costs only its memory.
    pub fn park(
        self: &Arc<Self>,
        reader: &mut Subscription,
        comer: &Comer<'_>,
        waker: &Waker,
    ) -> Option<Parked> {
        if reader.width() > MAX_PATTERNS || reader.place().is_none() || !self.is_worth(reader) {
            return None;
        }
        if !Arc::ptr_eq(&self.in_force.load(), comer.rules) {
            return None;
        }
        let key = Key::of(comer.form, reader.pattern_set(), &self.hasher);
        let seat = Arc::new(Seat::new(waker.clone()));
        for group in self.with_room(&key) {
            match group.join(reader, comer, &seat) {
                Joined::Member(member) => return Some(Parked::new(group, member, seat)),
                Joined::HasMore => {
                    waker.wake_by_ref();
                    return None;
                }
                Joined::NotNow => return None,
                Joined::Closed => {}
            }
        }
        let reading = reader.fork_for_all()?;
        let place = reading.place()?;
        let group = Arc::new(Group::new(key.clone(), self, comer, reading, place));
        let Joined::Member(member) = group.join(reader, comer, &seat) else { return None };
        self.groups().entry(key).or_default().push(group.clone());
        self.tasks.spawn(group.clone().run(self.turns.clone()));
        Some(Parked::new(group, member, seat))
    }

    /// The newest groups with room for one more.
    fn with_room(&self, key: &Key) -> Vec<Arc<Group>> {
        let groups = self.groups();
        let same = groups.get(key).map_or(&[][..], Vec::as_slice).iter().rev();
        same.filter(|group| !group.is_full.load(Ordering::Relaxed)).take(MOST_TRIED).cloned().collect()
    }

    /// Forgets a group that has ended.
    pub fn forget(&self, group: &Group) {
        let mut groups = self.groups();
        let Some(same) = groups.get_mut(&group.key) else { return };
        same.retain(|other| !std::ptr::eq(&**other, group));
        if same.is_empty() {
            groups.remove(&group.key);
        }
    }
}
