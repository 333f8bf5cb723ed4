//! A log for the model: each part of an arrival is a step of its own, and may happen whenever a reader asks for something.
//!
//! It is like the log in Redis: the store holds a message before it arrives here, so a page that is read from the store
//! puts a reader ahead of the watermark. The rules of gaps are the real ones.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use async_trait::async_trait;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    log::{
        Append, AppendError, Appended, Beginning, Boundary, Ephemerals, Expiry, Followed, Follower, History,
        Holds, Log, LogError, LogStats, Loss, Members, NotedHolds, Page, Position, Reason, Rules, Standing,
        Start, Tail, TopicStats,
    },
    message::{Draft, Id, Message, Pattern, PatternSet, Payload, Topic},
};

const FIRST: Id = Id::new(10);
/// How many messages a page has. Few, so that a reader needs several.
const PAGE: usize = 3;

/// The next step of what has been stored and has not arrived.
enum Step {
    Push(Message),
    /// The watermark moves up to here. A probe does only this.
    Move(Id),
    Wake(Topic),
}

pub struct Store {
    state: Mutex<State>,
    ephemerals: Ephemerals,
}

struct State {
    rng: StdRng,
    newest: Id,
    /// The tails hold everything that they should up to here.
    pushed: Id,
    watermark: Id,
    retained: BTreeMap<Id, Message>,
    /// Everything of the topic after this is retained.
    complete_after: BTreeMap<Topic, Id>,
    boundaries: Vec<Boundary>,
    steps: VecDeque<Step>,
    tails: BTreeMap<String, Arc<Tail>>,
    /// The link brings nothing, and nothing is read.
    is_unsettled: bool,
    waiting: Vec<Waker>,
    /// How often a question of a reader lets a step happen, in percent.
    haste: u32,
}

impl Store {
    pub fn new(seed: u64, haste: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                rng: StdRng::seed_from_u64(seed),
                newest: FIRST,
                pushed: FIRST,
                watermark: FIRST,
                retained: BTreeMap::new(),
                complete_after: BTreeMap::new(),
                boundaries: vec![Boundary { began: FIRST, inherited: Id::ZERO, reason: Reason::Restarted }],
                steps: VecDeque::new(),
                tails: BTreeMap::new(),
                is_unsettled: false,
                waiting: Vec::new(),
                haste,
            }),
            ephemerals: Ephemerals::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a step happen while a reader looks.
    fn interfere(&self) {
        let mut state = self.state();
        let haste = state.haste;
        let happens = state.rng.random_range(0..100) < haste;
        drop(state);
        if happens {
            self.step();
        }
    }

    /// Does the next step of what arrives. False if there is none.
    pub fn step(&self) -> bool {
        let mut state = self.state();
        if state.is_unsettled {
            return false;
        }
        let Some(step) = state.steps.pop_front() else { return false };
        match step {
            Step::Push(message) => {
                state.pushed = message.id;
                if let Some(tail) = state.tails.get(&*message.topic) {
                    tail.push(message);
                }
            }
            Step::Move(id) => {
                (state.pushed, state.watermark) = (state.pushed.max(id), state.watermark.max(id));
            }
            Step::Wake(topic) => {
                let tail = state.tails.get(&*topic).cloned();
                drop(state);
                tail.into_iter().for_each(|tail| tail.wake());
            }
        }
        true
    }

    /// Stores a message. It arrives in steps.
    pub fn publish(&self, topic: &str, exclude: Option<&str>) -> Id {
        let mut state = self.state();
        state.newest = Id::new(state.newest.get() + 1);
        let (id, topic) = (state.newest, topic.parse::<Topic>().expect("a topic"));
        let message = Message::new(draft(topic.clone(), &id.to_string(), exclude), id, Id::ZERO);
        state.retained.insert(id, message.clone());
        state.steps.extend([Step::Push(message), Step::Move(id), Step::Wake(topic)]);
        id
    }

    /// A message that no reader here reads moves the watermark, and wakes no reader.
    pub fn probe(&self) {
        let mut state = self.state();
        state.newest = Id::new(state.newest.get() + 1);
        let id = state.newest;
        state.steps.push_back(Step::Move(id));
    }

    pub fn announce_text(&self, topic: &str, text: &str) {
        let topic = topic.parse::<Topic>().expect("a topic");
        let message = Message::new(draft(topic.clone(), text, None), Id::ZERO, Id::ZERO);
        let watermark = self.state().watermark;
        self.ephemerals.push(watermark, message);
        self.state().steps.push_back(Step::Wake(topic));
    }

    /// Removes the oldest retained message of a topic, or all of them, as a limit would. To `forget` a topic is to know
    /// no longer which its newest message was.
    pub fn trim(&self, topic: &str, all: bool, forget: bool) {
        let mut state = self.state();
        let topic = topic.parse::<Topic>().expect("a topic");
        let ids = state.retained.iter().filter(|(_, message)| message.topic == topic).map(|(id, _)| *id);
        let ids: Vec<_> = ids.collect();
        let trimmed = if all { ids.last() } else { ids.first() };
        let Some(upto) = trimmed.copied() else { return };
        let tail = state.tails.get(&*topic).cloned();
        state.retained.retain(|id, message| {
            let stays = message.topic != topic || *id > upto;
            if !stays {
                message.trim();
            }
            stays
        });
        let (pushed, newest) = (state.pushed, state.newest);
        state.complete_after.insert(topic, if forget && all { newest } else { upto });
        drop(state);
        tail.into_iter().for_each(|tail| tail.remove_upto(upto.min(pushed), drop));
    }

    /// A new generation begins, and the newest messages of the one before it are lost.
    pub fn fail_over(&self) {
        let mut state = self.state();
        let lost = state.rng.random_range(0..4);
        let inherited = Id::new(state.newest.get() - lost).max(FIRST);
        let began = Id::new(state.newest.get() + 1);
        state.boundaries.push(Boundary { began, inherited, reason: Reason::Failover });
        state.retained.retain(|id, _| *id <= inherited);
        state.steps.clear();
        (state.newest, state.pushed, state.watermark) = (began, began, began);
        let tails: Vec<_> = state.tails.values().cloned().collect();
        drop(state);
        for tail in tails {
            tail.drop_upto(began, drop);
            tail.wake();
        }
    }

    /// The link is lost: the tails are complete only from what comes next.
    pub fn lose_link(&self) {
        self.state().is_unsettled = true;
    }

    pub fn settle(&self) {
        let mut state = self.state();
        if !std::mem::take(&mut state.is_unsettled) {
            return;
        }
        // Everything that was stored meanwhile is not pushed: readers find it in the store.
        state.steps.clear();
        let newest = state.newest;
        (state.pushed, state.watermark) = (newest, newest);
        let (tails, waiting) =
            (state.tails.values().cloned().collect::<Vec<_>>(), std::mem::take(&mut state.waiting));
        drop(state);
        for tail in tails {
            tail.drop_upto(newest, drop);
            tail.wake();
        }
        waiting.into_iter().for_each(Waker::wake);
    }

    pub fn newest_id(&self) -> Id {
        self.state().newest
    }

    pub fn has_arrived(&self, id: Id) -> bool {
        id <= self.state().watermark
    }

    pub fn began(&self) -> Id {
        self.state().boundaries.last().map_or(FIRST, |boundary| boundary.began)
    }

    pub fn is_retained(&self, id: Id) -> bool {
        self.state().retained.contains_key(&id)
    }
}

impl State {
    /// A page of topics, by the rules of the log in Redis.
    fn page(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Page {
        let topics: Vec<Topic> = patterns.iter().map(|pattern| pattern.topic().expect("a topic")).collect();
        let standing = Standing::at(&self.boundaries, self.newest, position.told, position.cursor);
        let is_new = |message: &&Message| {
            topics.contains(&message.topic) && message.id > position.given(&message.topic)
        };
        let new: Vec<_> = self.retained.values().filter(is_new).collect();
        let next = new.first().map(|message| message.id);
        let messages: Vec<_> = new
            .iter()
            .take_while(|message| message.id <= standing.upto)
            .take(limit)
            .map(|it| (*it).clone())
            .collect();
        let last = messages.last().filter(|_| messages.len() == limit);
        let end = last.map_or(self.newest, |last| last.id).min(standing.upto);
        let gap = |topic: &Topic| {
            let next = new.iter().find(|message| message.topic == *topic).map(|message| message.id);
            let complete_after = self.complete_after.get(topic).copied().unwrap_or(FIRST);
            let loss = Loss { complete_after, next, deleted: Id::ZERO };
            standing.gap(&topic.into(), position.told_upto(topic), loss)
        };
        Page {
            gaps: topics.iter().filter_map(gap).collect(),
            told: standing.told_upto(next.unwrap_or(Id::MAX)).max(position.told),
            checked: position.checked,
            past: next.map_or(end, |next| end.min(next.before())),
            messages,
            end,
        }
    }
}

fn draft(topic: Topic, text: &str, exclude: Option<&str>) -> Draft {
    Draft { topic, event: None, payload: Payload::text(text), exclude: exclude.map(Into::into), by: None }
}

#[async_trait]
impl Log for Store {
    async fn append(&self, _: Append) -> Result<Appended, AppendError> {
        Err(LogError::Unavailable.into())
    }

    async fn announce(&self, _: Draft) -> Result<(), LogError> {
        Err(LogError::Unavailable)
    }

    async fn delete(&self, _: &Topic) -> Result<(), LogError> {
        Err(LogError::Unavailable)
    }

    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError> {
        let mut state = self.state();
        let pushed = state.pushed;
        let tail = state.tails.entry(pattern.as_str().to_owned());
        let tail = tail.or_insert_with(|| Arc::new(Tail::new(pattern.clone(), pushed))).clone();
        let key = tail.add_follower(follower.clone());
        drop(state);
        Ok(Followed::new(self, tail, key))
    }

    async fn newest(&self) -> Result<Id, LogError> {
        Ok(self.state().newest)
    }

    fn watermark(&self) -> Id {
        self.interfere();
        let watermark = self.state().watermark;
        self.interfere();
        watermark
    }

    fn expiry(&self) -> Expiry {
        self.interfere();
        Expiry::at(Id::new(1), std::time::Duration::from_secs(3600), &Rules::NONE)
    }

    fn retain_by(&self, _: Rules) {}

    async fn begin(&self, _: &PatternSet, start: &Start) -> Result<Beginning, LogError> {
        let cursor = match start {
            Start::After(cursor) => *cursor,
            _ => self.state().newest,
        };
        Ok(Beginning { position: Position::at(cursor), gaps: Vec::new() })
    }

    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError> {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            if state.is_unsettled {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        Ok(self.state().page(patterns, position, limit.min(PAGE)))
    }

    async fn history(&self, _: &Topic, _: Id, _: usize) -> Result<History, LogError> {
        Err(LogError::Unavailable)
    }

    async fn hold(&self, _: &Holds) -> Result<NotedHolds, LogError> {
        Err(LogError::Unavailable)
    }

    async fn holds_due(&self) {
        std::future::pending().await
    }

    async fn members(&self, _: &Topic, _: &str, _: usize) -> Result<Members, LogError> {
        Err(LogError::Unavailable)
    }

    fn ephemerals(&self) -> &Ephemerals {
        self.interfere();
        &self.ephemerals
    }

    async fn topics(&self, _: &str, _: usize) -> Result<Vec<TopicStats>, LogError> {
        Ok(Vec::new())
    }

    fn followers(&self, topic: &Topic) -> usize {
        self.state().tails.get(&**topic).map_or(0, |tail| tail.follower_count())
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        Err(LogError::Unavailable)
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        let mut state = self.state();
        tail.remove_follower(follower);
        // As the real logs: nothing fills a tail that no reader follows.
        if tail.follower_count() == 0 {
            state.tails.remove(tail.name().as_str());
        }
    }
}
