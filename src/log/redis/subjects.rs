//! The lists of subjects, and the refusals of their tokens, in Redis. The feed brings each change to every replica, in its
//! order among the messages.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::futures::Notified,
    time::{sleep, timeout},
};

use super::{
    DEADLINE, PATIENCE,
    answers::{Ends, Listed, Lists},
    copies::Copies,
    feed::Feed,
    store::{RETRY_AFTER, Store},
};
use crate::{
    log::{
        AddError, End, Entries, FollowedList, Generation, List, LogError, Reason, Refusal, Subjects, Told,
    },
    message::{Id, Pattern},
};

/// How many lists are read at once.
const MAX_AT_ONCE: usize = 32;
/// How many refusals are read in one step.
const REFUSALS_STEP: usize = 1000;

/// The subjects in the store.
pub struct RedisSubjects {
    store: Arc<Store>,
    feed: Arc<Feed>,
    copies: Arc<Copies>,
}

impl RedisSubjects {
    pub fn new(store: Arc<Store>, feed: Arc<Feed>, copies: Arc<Copies>) -> Self {
        Self { store, feed, copies }
    }

    /// Reads the lists that are followed and not known, whenever changes may have been missed. Never ends.
    pub async fn keep_reading_lists(self: Arc<Self>) {
        loop {
            // Listen first, then look.
            let mut doubted = pin!(self.feed.doubted.notified());
            doubted.as_mut().enable();
            wait(self.read_lists().await, doubted).await;
        }
    }

    /// Reads the refusals, whenever some may have been missed. Never ends. In a task of its own, because many refusals must
    /// keep no reader of a list waiting.
    pub async fn keep_reading_refusals(self: Arc<Self>) {
        loop {
            let mut doubted = pin!(self.feed.doubted.notified());
            doubted.as_mut().enable();
            wait(self.read_refusals().await, doubted).await;
        }
    }

    /// Reads the lists that are followed and not known. False if that must be done again.
    async fn read_lists(&self) -> bool {
        let lists = stream::iter(self.feed.doubted_lists());
        let read = lists.map(|list| async move { self.load(&list).await });
        let read: Vec<_> = read.buffer_unordered(MAX_AT_ONCE).collect().await;
        read.into_iter().all(|is_read| is_read)
    }

    /// Reads a list. False if it must be read again.
    async fn load(&self, list: &List) -> bool {
        let Some(doubts) = list.doubts() else { return true };
        let Ok((entries, upto, generation)) = self.read(list.subject()).await else { return false };
        // The list must belong to the generation of the tails.
        self.feed.generation() == Some(generation.began) && list.load(doubts, entries, upto, generation)
    }

    async fn read(&self, subject: &str) -> Result<(Entries, Id, Generation), LogError> {
        let answer = self.store.read(&self.store.scripts.lists, "", &[subject.as_bytes()]).await;
        let Lists { facts, members } = answer?;
        self.store.has_seen(facts.newest);
        let entries = members.iter().filter_map(|member| entry(subject, member)).collect();
        let reason = facts.boundaries.last().map_or(Reason::Restarted, |boundary| boundary.reason);
        Ok((entries, facts.newest, Generation { began: facts.began, reason }))
    }

    /// Reads the refusals, if that is due. False if it must be done again.
    async fn read_refusals(&self) -> bool {
        let Some(told) = self.feed.told.get() else { return true };
        if !self.feed.take_refusals_due() {
            return true;
        }
        let is_read = self.tell_refusals(&**told).await.is_ok();
        // Once for all pages, also if one of them failed.
        told.refused_all();
        match is_read {
            true => told.missed(),
            false => self.feed.refusals_are_due(),
        }
        is_read
    }

    /// Tells all refusals in the order in which they will be over. Each step is told as it comes, so that one which fails
    /// hides none of the earlier ones. Some refusals may come twice.
    async fn tell_refusals(&self, told: &dyn Told) -> Result<(), LogError> {
        let (mut from, mut limit) = (0, REFUSALS_STEP);
        loop {
            let args = [from.to_string(), limit.to_string()];
            let args = [args[0].as_bytes(), args[1].as_bytes()];
            // Each subject, two numbers as text, and until when.
            let page: Vec<(String, String, u64)> =
                self.store.read(&self.store.scripts.refusals, "", &args).await?;
            let last = page.last().map(|(.., until_ms)| *until_ms).filter(|_| page.len() >= limit);
            let refusals = page.into_iter().filter_map(|(subject, text, _)| {
                let (second, until_ms) = text.split_once(' ')?;
                let refusal = Refusal { second: second.parse().ok()?, until_ms: until_ms.parse().ok()? };
                Some((subject.into(), refusal))
            });
            told.refused(refusals.collect());
            let Some(until_ms) = last else { return Ok(()) };
            // If more refusals last until one moment than a step has, the step must grow to pass them.
            limit = if until_ms > from { REFUSALS_STEP } else { 2 * limit };
            from = until_ms;
        }
    }

    async fn change(&self, does: &str, subject: &str, topic: &Pattern) -> Result<Id, AddError> {
        let is_wild = if topic.has_wildcard() { "1" } else { "0" };
        let args = [does, subject, topic.as_str(), is_wild].map(str::as_bytes);
        let scripts = &self.store.scripts;
        let script = if does == "add" { &scripts.list_add } else { &scripts.list_remove };
        let Listed { outcome, id, began } = self.store.settle(script, "", &args).await?;
        match outcome.as_str() {
            "done" | "known" => {}
            "many" => return Err(AddError::TooMany),
            "wild" => return Err(AddError::TooManyWild),
            "room" => return Err(AddError::NoRoom),
            _ => return Err(LogError::UnknownOutcome.into()),
        }
        self.store.has_seen(id);
        self.copies.confirm(began).await?;
        Ok(id)
    }

    async fn end_now(&self, subject: &str, refuse: Option<Duration>) -> Result<End, AddError> {
        let lasts = refuse.map_or(0, |lasts| lasts.as_millis()).to_string();
        let args = [subject.as_bytes(), lasts.as_bytes()];
        let Ends { outcome, id, began, second, until_ms } =
            self.store.settle(&self.store.scripts.end, "", &args).await?;
        match outcome.as_str() {
            "done" => {}
            "room" => return Err(AddError::NoRoom),
            _ => return Err(LogError::UnknownOutcome.into()),
        }
        self.store.has_seen(id);
        self.copies.confirm(began).await?;
        let refusal = refuse.map(|_| Refusal { second, until_ms });
        Ok(End { subject: subject.into(), refusal, id })
    }
}

/// Waits for the next doubt, or a little if what was doubted is not known yet.
async fn wait(is_known: bool, doubted: Pin<&mut Notified<'_>>) {
    match is_known {
        true => doubted.await,
        false => sleep(RETRY_AFTER).await,
    }
}

/// A list that one task loads. If it is not known when this is dropped, it is read with the others.
struct Loading<'a> {
    list: &'a List,
    feed: &'a Feed,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if self.list.doubts().is_some() {
            self.feed.doubted.notify_waiters();
        }
    }
}

/// The topic and the id of an entry of the sorted set.
fn entry(subject: &str, member: &[u8]) -> Option<(Pattern, Id)> {
    let rest = std::str::from_utf8(member).ok()?.strip_prefix(subject)?.strip_prefix('\0')?;
    let (topic, id) = rest.split_once('\0')?;
    Some((topic.parse().ok()?, id.parse().ok()?))
}

#[async_trait]
impl Subjects for RedisSubjects {
    async fn add(&self, subject: &str, topic: &Pattern) -> Result<Id, AddError> {
        let added = timeout(DEADLINE, self.change("add", subject, topic)).await;
        added.unwrap_or(Err(LogError::UnknownOutcome.into()))
    }

    async fn remove(&self, subject: &str, topic: &Pattern) -> Result<(), LogError> {
        match timeout(DEADLINE, self.change("remove", subject, topic)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(AddError::Log(error))) => Err(error),
            // A removal needs no room.
            Ok(Err(_)) | Err(_) => Err(LogError::UnknownOutcome),
        }
    }

    async fn list(&self, subject: &str) -> Result<Entries, LogError> {
        Ok(self.read(subject).await?.0)
    }

    async fn follow(&self, subject: &str) -> Result<FollowedList, LogError> {
        if !self.feed.wait(PATIENCE, |feed| feed.place().is_some()).await {
            return Err(LogError::Unavailable);
        }
        let (followed, is_new) = self.feed.follow_list(subject);
        if is_new {
            let _loading = Loading { list: followed.list(), feed: &self.feed };
            let _ = timeout(PATIENCE, self.load(followed.list())).await;
        }
        if followed.list().settled(PATIENCE).await { Ok(followed) } else { Err(LogError::Unavailable) }
    }

    async fn end(&self, subject: &str, refuse: Option<Duration>) -> Result<End, AddError> {
        let ended = timeout(DEADLINE, self.end_now(subject, refuse)).await;
        ended.unwrap_or(Err(LogError::UnknownOutcome.into()))
    }

    fn tell(&self, told: Arc<dyn Told>) {
        let _ = self.feed.told.set(told);
        self.feed.refusals_are_due();
        self.feed.doubted.notify_waiters();
    }
}
