//! The members of topics: who is present, and when those without a connection leave.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::State;
use crate::{
    log::{
        Append, AppendError, Hold, HoldError, LogError, MAX_MEMBERS, Member, MemberEvent, Members, Payer,
        Retention, change_data, changes_of,
    },
    message::{Id, Topic},
};

/// All members of all topics.
#[derive(Default)]
pub struct AllMembers {
    topics: HashMap<Topic, BTreeMap<Arc<str>, MemberState>>,
    /// The members without a connection, by the time at which they leave.
    leaving: BTreeSet<(Instant, Topic, Arc<str>)>,
    /// The members that the last process has left, until their grace is known.
    restored: Vec<(Topic, Arc<str>)>,
    /// No member leaves any more.
    pub is_kept: bool,
}

/// A member, without its topic and its subject.
struct MemberState {
    since: Id,
    connections: u32,
    info: Option<Arc<str>>,
    leaves_at: Option<Instant>,
}

impl MemberState {
    fn shown(&self, sub: &str) -> Member {
        let (connections, info) = (self.connections.into(), self.info.clone());
        Member { sub: sub.into(), connections, since: self.since, info }
    }
}

impl AllMembers {
    /// When the next member leaves. A time that has passed if members were restored.
    pub fn due_at(&self) -> Option<Instant> {
        if self.is_kept {
            return None;
        }
        match self.leaving.first() {
            _ if !self.restored.is_empty() => Some(Instant::now()),
            first => first.map(|(at, ..)| *at),
        }
    }

    /// Every member, for the next process.
    pub fn all(&self) -> Vec<(Topic, Member)> {
        let of = |(topic, members): (&Topic, &BTreeMap<Arc<str>, MemberState>)| {
            members.iter().map(|(sub, state)| (topic.clone(), state.shown(sub))).collect::<Vec<_>>()
        };
        self.topics.iter().flat_map(of).collect()
    }

    /// Takes a member of the last process. It has no connection yet.
    pub fn restore(&mut self, topic: Topic, sub: Arc<str>, since: Id, info: Option<Arc<str>>) {
        self.restored.push((topic.clone(), sub.clone()));
        let state = MemberState { since, connections: 0, info, leaves_at: None };
        self.topics.entry(topic).or_default().insert(sub, state);
    }

    /// Begins the grace of members that the last process has left, up to so many. True if there are more.
    pub fn begin_grace(&mut self, grace: Duration, limit: usize) -> bool {
        let at = Instant::now() + grace;
        for (topic, sub) in self.restored.split_off(self.restored.len().saturating_sub(limit)) {
            let held = self.topics.get_mut(&topic).and_then(|members| members.get_mut(&sub));
            // A client may have come back before this.
            if let Some(held) = held.filter(|held| held.connections == 0 && held.leaves_at.is_none()) {
                held.leaves_at = Some(at);
                self.leaving.insert((at, topic, sub));
            }
        }
        !self.restored.is_empty()
    }

    /// Sets how many connections a member has. False if there is no such member.
    fn set(&mut self, hold: &Hold, grace: Duration) -> bool {
        let Hold { topic, sub, connections, .. } = hold;
        let Some(held) = self.topics.get_mut(topic).and_then(|members| members.get_mut(sub)) else {
            return false;
        };
        held.connections = *connections;
        if *connections > 0 {
            if let Some(at) = held.leaves_at.take() {
                self.leaving.remove(&(at, topic.clone(), sub.clone()));
            }
        } else if held.leaves_at.is_none() {
            let at = Instant::now() + grace;
            held.leaves_at = Some(at);
            self.leaving.insert((at, topic.clone(), sub.clone()));
        }
        true
    }

    /// True if a member is to leave now.
    pub fn has_due(&self) -> bool {
        self.next_due().is_some()
    }

    /// The member that leaves next, if its grace is over.
    fn next_due(&self) -> Option<(Instant, Topic, Arc<str>)> {
        let first = self.leaving.first().filter(|_| !self.is_kept)?;
        (first.0 <= Instant::now()).then(|| first.clone())
    }
}

/// The outcome of one hold, or of one leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no change to tell.
    Quiet,
    /// The change was appended, and is to be brought to the tails.
    Told,
}

impl State {
    /// Notes a hold. A new member is told.
    pub fn hold(
        &mut self,
        hold: &Hold,
        grace: Duration,
        retention: &Retention,
        now: Id,
    ) -> Result<Step, HoldError> {
        self.check_open()?;
        if self.all_members.set(hold, grace) || hold.connections == 0 {
            return Ok(Step::Quiet);
        }
        let Hold { topic, sub, connections, info } = hold;
        if self.all_members.topics.get(topic).is_some_and(|members| members.len() >= MAX_MEMBERS) {
            return Err(HoldError::TooManyMembers);
        }
        let data = change_data(sub, info.as_deref());
        let changes = changes_of(topic).ok_or(LogError::Unavailable)?;
        let draft = MemberEvent::Join.draft(changes, data);
        let append = Append { draft, idempotency_key: None, if_match: None };
        // A new topic counts for the subject, as one that it publishes to.
        let since = match self.append(append, Some(Payer::subject(sub)), retention, now) {
            Ok(appended) => appended.id(),
            Err(AppendError::Log(error)) => return Err(error.into()),
            Err(_) => return Err(HoldError::TooManyTopics),
        };
        let held = MemberState { since, connections: *connections, info: info.clone(), leaves_at: None };
        self.all_members.topics.entry(topic.clone()).or_default().insert(sub.clone(), held);
        Ok(Step::Told)
    }

    /// Lets the next member leave whose grace is over, and tells it, however many topics are remembered.
    pub fn leave_next(&mut self, retention: &Retention, now: Id) -> Result<Step, HoldError> {
        let Some(due) = self.all_members.next_due() else { return Ok(Step::Quiet) };
        self.check_open()?;
        self.all_members.leaving.remove(&due);
        let (_, topic, sub) = due;
        let Some(members) = self.all_members.topics.get_mut(&topic) else { return Ok(Step::Quiet) };
        let left = members.remove(&sub);
        if members.is_empty() {
            self.all_members.topics.remove(&topic);
        }
        let (Some(left), Some(changes)) = (left, changes_of(&topic)) else { return Ok(Step::Quiet) };
        let draft = MemberEvent::Leave.draft(changes, change_data(&sub, left.info.as_deref()));
        let id = self.newest.next(now);
        self.store(draft, None, id, retention);
        Ok(Step::Told)
    }

    /// Up to `limit` members of a topic, in the order of their subjects, from the first one after `after`.
    pub fn members(&self, topic: &Topic, after: &str, limit: usize) -> Members {
        let cursor = self.newest();
        let Some(members) = self.all_members.topics.get(topic) else {
            return Members { cursor, count: 0, members: Vec::new() };
        };
        let page = members.range::<str, _>((Excluded(after), Unbounded)).take(limit);
        Members { cursor, count: members.len(), members: page.map(|(sub, state)| state.shown(sub)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::RETENTION, *};

    const GRACE: Duration = Duration::from_secs(5);

    struct Scene(State);

    impl Scene {
        fn new() -> Self {
            Self(State::new(Id::now()))
        }

        fn hold(&mut self, sub: &str, connections: u32, info: Option<&str>) -> Step {
            let topic = "a".parse().expect("a topic");
            let hold = Hold { topic, sub: sub.into(), connections, info: info.map(Into::into) };
            let step = self.0.hold(&hold, GRACE, &RETENTION, Id::now()).expect("it is open");
            while self.0.fan_out_on().is_none() && step == Step::Told {}
            step
        }

        fn leaves(&mut self) -> usize {
            let mut leaves = 0;
            while self.0.leave_next(&RETENTION, Id::now()).expect("it is open") == Step::Told {
                while self.0.fan_out_on().is_none() {}
                leaves += 1;
            }
            leaves
        }

        fn members(&self) -> Vec<(String, u64, Option<Arc<str>>)> {
            let members = self.0.members(&"a".parse().expect("a topic"), "", 10).members;
            members.into_iter().map(|one| (one.sub.to_string(), one.connections, one.info)).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_without_a_connection_leaves_after_the_grace_and_not_before() {
        let mut scene = Scene::new();
        assert_eq!(scene.hold("u1", 2, Some("1")), Step::Told);
        assert_eq!(scene.hold("u1", 1, Some("2")), Step::Quiet);
        assert_eq!(scene.hold("u1", 0, None), Step::Quiet);
        assert_eq!(scene.members(), [("u1".to_owned(), 0, Some("1".into()))]);
        tokio::time::advance(GRACE - Duration::from_millis(1)).await;
        assert_eq!(scene.leaves(), 0);
        assert_eq!(scene.hold("u1", 1, None), Step::Quiet, "it comes back");
        tokio::time::advance(GRACE).await;
        assert_eq!((scene.leaves(), scene.0.all_members.due_at()), (0, None));
        scene.hold("u1", 0, None);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(scene.hold("u1", 0, None), Step::Quiet, "a repeat does not begin the grace anew");
        tokio::time::advance(GRACE / 2).await;
        assert_eq!((scene.leaves(), scene.members()), (1, Vec::new()));
        assert!(scene.0.all_members.topics.is_empty() && scene.0.all_members.leaving.is_empty());
        assert_eq!(scene.hold("u1", 0, None), Step::Quiet, "no member, no leave");
        assert_eq!(scene.leaves(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn members_that_were_restored_have_their_grace_from_then_on() {
        let mut scene = Scene::new();
        for sub in ["u1", "u2", "u3"] {
            scene.hold(sub, 1, None);
        }
        let mut next = Scene::new();
        for (topic, Member { sub, since, info, .. }) in scene.0.all_members.all() {
            next.0.all_members.restore(topic, sub.into(), since, info);
        }
        assert!(next.0.all_members.due_at().is_some_and(|at| at <= Instant::now()), "the grace is to begin");
        assert_eq!(next.hold("u2", 1, None), Step::Quiet);
        assert!(next.0.all_members.begin_grace(GRACE, 2));
        assert!(!next.0.all_members.begin_grace(GRACE, 2));
        assert_eq!(next.leaves(), 0);
        tokio::time::advance(GRACE).await;
        assert_eq!(next.leaves(), 2);
        assert_eq!(next.members(), [("u2".to_owned(), 1, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_is_full_takes_no_member_until_one_has_left() {
        let mut scene = Scene::new();
        scene.hold("u", 1, None);
        let topic: Topic = "a".parse().expect("a topic");
        for number in 1..MAX_MEMBERS {
            scene.0.all_members.restore(topic.clone(), format!("v{number}").into(), Id::ZERO, None);
        }
        let hold = |sub: &str| Hold { topic: topic.clone(), sub: sub.into(), connections: 1, info: None };
        let one_more = scene.0.hold(&hold("w"), GRACE, &RETENTION, Id::now());
        assert_eq!(one_more, Err(HoldError::TooManyMembers));
        assert_eq!(scene.hold("v1", 1, None), Step::Quiet, "a member is no new one");
        scene.hold("u", 0, None);
        tokio::time::advance(GRACE).await;
        assert_eq!((scene.leaves(), scene.hold("w", 1, None)), (1, Step::Told));
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_begins_behind_the_last_member_of_the_page_before() {
        let mut scene = Scene::new();
        for sub in ["u1", "u2", "u3"] {
            scene.hold(sub, 1, None);
        }
        let page = |after: &str, limit| {
            let page = scene.0.members(&"a".parse().expect("a topic"), after, limit);
            (page.count, page.members.into_iter().map(|one| one.sub.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(page("", 2), (3, vec!["u1".into(), "u2".into()]));
        assert_eq!(page("u2", 2), (3, vec!["u3".into()]));
        assert_eq!(page("u3", 2), (3, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn no_member_leaves_a_process_that_ends() {
        let mut scene = Scene::new();
        scene.hold("u1", 1, None);
        scene.hold("u1", 0, None);
        scene.0.all_members.is_kept = true;
        tokio::time::advance(2 * GRACE).await;
        assert_eq!((scene.leaves(), scene.0.all_members.due_at()), (0, None));
    }
}
