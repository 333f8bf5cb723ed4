//! Readers that stand at the same place move as one: a group reads for them, and writes the same bytes to each.
//!
//! A reader that has nothing to do but follow *parks*: it gives up its subscription and joins a group of readers of the
//! same topics in the same form. The group encodes a batch once and tries to write it to each member. A member *leaves*
//! with its place when anything concerns it alone: if its socket does not take all bytes, if a message excludes it, if
//! its rights may have ended, or if its own task wakes. Then it reads on by itself from there.
//!
//! At any moment either the group or the member's task may write to a socket. The task leaves before it writes.

mod batch;
mod groups;
mod member;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use slab::Slab;
use tokio::sync::Semaphore;

use self::{
    batch::{Batch, Written},
    groups::Key,
    member::{Member, Seat, Stand},
};
pub use self::{
    groups::{Comer, Groups},
    member::{Given, Left, Parked},
};
use super::{
    metrics::TransportMetrics,
    rules::{InForce, Rules},
};
use crate::{
    broker::{Meeting, Place, Subscription},
    message::Id,
};

/// How many turns all groups together have for each thread before other tasks may run: one for each member that they write
/// to, and more for a long batch. Without the pause, all others would wait for as long as large groups take.
/// Tests have fewer, so that few readers are enough for several pauses, and several groups.
const WRITES_AT_ONCE: usize = if cfg!(test) { 4 } else { 64 };
/// How many members a group may have. More readers have more groups, which several threads write to at once.
const MAX_MEMBERS: usize = if cfg!(test) { 8 } else { 512 };

/// Readers of the same topics, in the same form, at the same place.
pub struct Group {
    key: Key,
    groups: Weak<Groups>,
    metrics: Arc<TransportMetrics>,
    in_force: Arc<InForce>,
    /// The rules by which the rights of all members were checked.
    rules: Arc<Rules>,
    task: AtomicWaker,
    /// It takes no more members now.
    is_full: AtomicBool,
    // A std mutex: no await happens while it is held, and each holder does a bounded step.
    state: Mutex<State>,
}

struct State {
    /// It reads for all members. `None` once the last one has left.
    reading: Option<Subscription>,
    /// All members stand here, but for those that have yet to be given the batch under way.
    stand: Stand,
    members: Slab<Member>,
    /// The batch that some members have been given and others not yet.
    batch: Option<Batch>,
    /// How many batches there have been.
    batches: u64,
    /// At the earliest, the rights of a member end then.
    soonest_end: Option<SystemTime>,
    /// Readers that stand further than the group, and want to join once it has caught up.
    door: Vec<Waker>,
}

/// The answer to a reader that wants to join.
enum Joined {
    /// It is a member now, under this key.
    Member(usize),
    /// It has something to give out first.
    HasMore,
    /// The group cannot take it now.
    NotNow,
    /// The group has ended, or takes no more.
    Closed,
}

impl Group {
    fn new(key: Key, groups: &Arc<Groups>, comer: &Comer<'_>, reading: Subscription, place: Place) -> Self {
        let state = State {
            reading: Some(reading),
            stand: Stand { place, given: Given::nothing() },
            members: Slab::new(),
            batch: None,
            batches: 0,
            soonest_end: None,
            door: Vec::new(),
        };
        Self {
            key,
            groups: Arc::downgrade(groups),
            metrics: comer.metrics.clone(),
            in_force: groups.in_force.clone(),
            rules: comer.rules.clone(),
            task: AtomicWaker::new(),
            is_full: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the members until the last one has left. Each write takes one of the `turns`, and a long one several.
    async fn run(self: Arc<Self>, turns: Arc<Semaphore>) {
        let rescue = Rescue(&self);
        // It waits for messages without a turn, and joins them once it has one: so few groups hold bytes at once.
        while std::future::poll_fn(|cx| self.poll_ready(cx)).await {
            let mut has_more = true;
            while has_more {
                let next = self.next_turns();
                let taken = turns.acquire_many(next as u32).await;
                loop {
                    has_more = std::future::poll_fn(|cx| Poll::Ready(self.step(cx, next))).await;
                    // Given back once all other tasks had their turn, so groups cannot write one after the other. It lets
                    // new requests come in too. On a thread that is always busy it lasts for 61 other tasks.
                    tokio::task::yield_now().await;
                    // It keeps its turns for the last members: so only large groups hold bytes while they wait for turns.
                    if !has_more || !self.has_few_left() {
                        break;
                    }
                }
                drop(taken);
            }
        }
        std::mem::forget(rescue);
    }

    /// Ready once there may be something to write. False if the group has ended.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.task.register(cx.waker());
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(reading) = &mut state.reading else { return Poll::Ready(false) };
        let had_more = reading.place().is_none();
        // It stands at no place if it has something to give out, or has to read the log.
        let _ = reading.poll_ready(cx);
        let Some(place) = reading.place() else { return Poll::Ready(true) };
        state.stand.place = place;
        let door = if had_more { std::mem::take(&mut state.door) } else { Vec::new() };
        drop(guard);
        door.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    /// Does as much as so many turns allow. True if members have yet to be given the batch.
    fn step(&self, cx: &mut Context<'_>, turns: usize) -> bool {
        self.gather(cx);
        self.write_some(turns)
    }

    /// Joins the messages that have come, unless a batch is under way.
    fn gather(&self, cx: &mut Context<'_>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(reading) = state.reading.as_mut().filter(|_| state.batch.is_none()) else { return };
        if let Some(mut batch) = Batch::gather(reading, self.key.form, &state.stand, cx) {
            if !Arc::ptr_eq(&self.in_force.load(), &self.rules) {
                batch.let_all_go();
            }
            if let Some(place) = reading.place() {
                state.stand = Stand { place, given: batch.given_after() };
            }
            batch.now = state.soonest_end.map(|_| SystemTime::now());
            batch.left = state.members.len();
            state.batches += 1;
            state.batch = Some(batch);
        }
        // Those that had been given all this already stand where the group stands now.
        let door = std::mem::take(&mut state.door);
        drop(guard);
        door.into_iter().for_each(Waker::wake);
    }

    /// True if few members have yet to be given the batch.
    fn has_few_left(&self) -> bool {
        self.state().batch.as_ref().is_some_and(|batch| batch.left <= WRITES_AT_ONCE)
    }

    /// How many turns the next step takes. Messages that have yet to be joined count as a short batch.
    fn next_turns(&self) -> usize {
        let state = self.state();
        let (left, each) = state.batch.as_ref().map_or((usize::MAX, 1), |batch| (batch.left, batch.turns()));
        (state.members.len().min(left) * each).min(WRITES_AT_ONCE)
    }

    /// Writes the batch to as many members as so many turns allow, and to one at least. True if others have yet to be
    /// given it.
    fn write_some(&self, turns: usize) -> bool {
        let mut guard = self.state();
        let State {
            reading: Some(reading), batch: Some(batch), members, stand, batches, soonest_end, ..
        } = &mut *guard
        else {
            return false;
        };
        let at_most = (turns / batch.turns()).max(1);
        let (mut looked_at, mut written, mut has_more) = (0, 0, false);
        for key in batch.next..members.capacity() {
            // Those that joined while the batch was under way stand behind it already.
            let Some(member) = members.get(key).filter(|member| member.since != *batches) else { continue };
            if looked_at == at_most {
                has_more = true;
                break;
            }
            looked_at += 1;
            let outcome = batch.write_to(member);
            written += usize::from(!matches!(outcome, Written::Not));
            let left = match outcome {
                Written::Completely => None,
                Written::Partly(rest) => Some((stand.clone(), rest)),
                Written::Not => Some((batch.before.clone(), Bytes::new())),
            };
            if let Some((stand, rest)) = left {
                // Made first: if this panics, the member is still here, and the group's end lets it go.
                let left = Left::of(reading, stand, rest, member);
                members.remove(key).seat.put(left);
            }
            // Noted after each write. If this panics, every member stands at the right place, except for one whose socket
            // has just taken a part: it would be given the whole batch again.
            batch.next = key + 1;
        }
        batch.left -= looked_at;
        batch.observe(&self.metrics, written);
        if !has_more {
            if batch.now.is_some() {
                *soonest_end = members.iter().filter_map(|(_, member)| member.ends_at).min();
            }
            guard.batch = None;
        }
        self.has_members(guard) && has_more
    }

    /// Takes in a reader that stands where the group stands.
    fn join(&self, reader: &mut Subscription, comer: &Comer<'_>, seat: &Arc<Seat>) -> Joined {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(reading) = &mut state.reading else { return Joined::Closed };
        if state.members.len() >= MAX_MEMBERS || !Arc::ptr_eq(&self.rules, comer.rules) {
            return Joined::Closed;
        }
        if state.batch.as_ref().is_some_and(|batch| !batch.is_for_members()) {
            // The group ends with this batch, and then the reader may found another one.
            state.wait_at_door(&seat.task);
            return Joined::NotNow;
        }
        let place = match reading.meet(reader) {
            Meeting::Level(place) => place,
            Meeting::SecondHasMore => return Joined::HasMore,
            Meeting::FirstHasMore => {
                state.wait_at_door(&seat.task);
                // It may have to read the log now, and only its own task does that.
                self.task.wake();
                return Joined::NotNow;
            }
        };
        state.stand.place = place;
        state.soonest_end = [state.soonest_end, comer.ends_at].into_iter().flatten().min();
        let key = state.members.insert(Member {
            socket: comer.socket.clone(),
            connection: reader.connection().clone(),
            ends_at: comer.ends_at,
            seat: seat.clone(),
            since: state.batches,
            given: state.stand.given,
        });
        self.has_members(guard);
        Joined::Member(key)
    }

    /// Takes a member out that goes on by itself. `None` if it has gone on before. It wakes nobody.
    fn leave(&self, key: usize, seat: &Seat) -> Option<Left> {
        let mut state = self.state();
        seat.leave().unwrap_or_else(|| {
            let left = state.take_out(key);
            self.has_members(state);
            left
        })
    }

    /// Call it when their number has changed: without a member the group ends.
    fn has_members(&self, mut state: MutexGuard<'_, State>) -> bool {
        let count = state.members.len();
        self.is_full.store(count >= MAX_MEMBERS, Ordering::Relaxed);
        if count > 0 {
            state.reading.iter().for_each(|reading| reading.count_as(count));
            return true;
        }
        let (reading, door) = (state.reading.take(), std::mem::take(&mut state.door));
        state.batch = None;
        drop(state);
        if reading.is_some() {
            if let Some(groups) = self.groups.upgrade() {
                groups.forget(self);
            }
            self.task.wake();
        }
        door.into_iter().for_each(Waker::wake);
        false
    }

    fn cursor_of(&self, key: usize, seat: &Seat) -> Id {
        let state = self.state();
        seat.cursor().unwrap_or_else(|| state.stand_of(key).place.cursor())
    }

    fn behind_ms(&self, key: usize, seat: &Seat) -> u64 {
        let state = self.state();
        let own = || {
            let reading = state.reading.as_ref()?;
            let batch = state.batch_to_come(key);
            Some(batch.map_or(reading.behind_ms(), |batch| reading.ms_since(batch.before.place.cursor())))
        };
        seat.behind_ms().or_else(own).unwrap_or_default()
    }
}

impl State {
    /// Has a reader woken after the next batch.
    fn wait_at_door(&mut self, task: &Waker) {
        if self.door.len() < MAX_MEMBERS && !self.door.iter().any(|other| other.will_wake(task)) {
            self.door.push(task.clone());
        }
    }

    /// The stand of a member.
    fn stand_of(&self, key: usize) -> Stand {
        self.batch_to_come(key).map_or(&self.stand, |batch| &batch.before).clone()
    }

    /// The batch under way, if this member has yet to be given it.
    fn batch_to_come(&self, key: usize) -> Option<&Batch> {
        self.batch.as_ref().filter(|batch| key >= batch.next && self.is_since_before(key))
    }

    /// True if the member joined before the batch under way. If not, it stands behind that batch already.
    fn is_since_before(&self, key: usize) -> bool {
        self.members.get(key).is_some_and(|member| member.since != self.batches)
    }

    /// Takes a member out between two writes.
    fn take_out(&mut self, key: usize) -> Option<Left> {
        let stand = self.stand_of(key);
        let left = Left::of(self.reading.as_ref()?, stand, Bytes::new(), self.members.get(key)?);
        self.members.remove(key);
        Some(left)
    }
}

/// Lets all members go on by themselves if the group's task panics.
struct Rescue<'a>(&'a Group);

impl Drop for Rescue<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let seats: Vec<_> = state.members.iter().map(|(key, member)| (key, member.seat.clone())).collect();
        for (key, seat) in seats {
            state.take_out(key).into_iter().for_each(|left| seat.put(left));
        }
        self.0.has_members(state);
    }
}
