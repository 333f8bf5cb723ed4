//! Publish and subscribe, over any log.
//!
//! This room knows neither transports nor how the log stores messages.

mod driven;
mod presence;
mod subscription;

use std::{sync::Arc, time::Duration};

use self::subscription::Mine;
pub use self::{
    presence::{EnterError, Presences, Present},
    subscription::{Delivery, GapNotice, Join, ListChange, Meeting, Place, Subscription},
};
use crate::{
    log::{
        Append, AppendError, Appended, Beginning, Follower, History, Log, LogError, LogStats, Payer,
        Replicas, Rules, Start, Subjects, TopicStats, Unfit,
    },
    message::{Draft, Id, Pattern, PatternSet, Topic},
};

/// A cheap handle to the log. Clone it freely.
///
/// Its futures fail with [`LogError::Unavailable`] if the store cannot be reached, and with
/// [`LogError::UnknownOutcome`] if the store may or may not have done the work.
///
/// # Cancel safety
/// Dropping a future that only reads changes nothing.
#[derive(Clone)]
pub struct Broker {
    log: Arc<dyn Log>,
}

impl Broker {
    /// A broker over this log. It is cheap to clone.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log }
    }

    /// Stores a message and wakes the followers of its topic.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still publish the message.
    pub async fn publish(&self, append: Append) -> Result<Appended, AppendError> {
        self.log.append(append).await
    }

    /// The same for a client that shares what the log holds with others.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still publish the message.
    pub async fn publish_for(&self, append: Append, payer: Option<Payer>) -> Result<Appended, AppendError> {
        self.log.append_for(append, payer).await
    }

    /// Sends an ephemeral message to the subscriptions that are caught up now. No later reader gets it.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still send the message.
    pub async fn announce(&self, draft: Draft) -> Result<(), LogError> {
        self.log.announce(draft).await
    }

    /// Deletes the retained messages of a topic.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves may still delete them.
    pub async fn delete(&self, topic: &Topic) -> Result<(), LogError> {
        self.log.delete(topic).await
    }

    /// Begins to read `patterns`, each once, for the connection of that name.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves leaves nothing behind.
    pub async fn subscribe(
        &self,
        patterns: Vec<Pattern>,
        start: &Start,
        connection: &str,
    ) -> Result<Subscription, LogError> {
        let patterns: PatternSet = patterns.into_iter().collect();
        let follower = Arc::new(Follower::default());
        // Listen first, then look back: nothing falls between.
        let mut followed = Vec::with_capacity(patterns.len());
        for pattern in patterns.iter() {
            followed.push(self.log.clone().follow(pattern, &follower).await?);
        }
        let beginning: Beginning = self.log.begin(&patterns, start).await?;
        let patterns = Arc::new(patterns);
        Ok(Subscription::new(self.log.clone(), patterns, followed, follower, start, beginning, connection))
    }

    /// The same with the list of a subject: every topic on it is read too, from the id at which it was added, if that is
    /// not before the start.
    ///
    /// # Cancel safety
    /// Dropping this before it resolves leaves nothing behind.
    pub async fn subscribe_with_list(
        &self,
        own: Vec<Pattern>,
        start: &Start,
        connection: &str,
        subject: &str,
    ) -> Result<Subscription, LogError> {
        let subjects = self.subjects().ok_or(LogError::Unavailable)?;
        // Listen first, then look back: no change falls between.
        let followed = subjects.follow(subject).await?;
        // The log may have missed changes since.
        let mine = Mine::new(followed).ok_or(LogError::Unavailable)?;
        let all = own.iter().chain(mine.entries().keys()).cloned().collect();
        let mut subscription = self.subscribe(all, start, connection).await?;
        subscription.read_mine(mine, &own, start);
        Ok(subscription)
    }

    /// The lists of subjects, and the refusals of their tokens.
    pub fn subjects(&self) -> Option<Arc<dyn Subjects>> {
        self.log.subjects()
    }

    /// Begins to tell the log who is present. Members without a connection stay for `grace`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_presence(&self, grace: Duration) -> Arc<Presences> {
        Presences::start(self.log.clone(), grace)
    }

    /// The newest messages of `topic` below `before`, up to `limit` and as many as fit in one step of the store.
    pub async fn history(&self, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError> {
        self.log.history(topic, before, limit).await
    }

    /// Retains topics by other rules from now on.
    pub fn retain_by(&self, rules: Rules) {
        self.log.retain_by(rules);
    }

    /// The newest id of any topic, asked from the store.
    pub async fn newest(&self) -> Result<Id, LogError> {
        self.log.newest().await
    }

    /// Everything up to this id is in the tails of this process.
    pub fn watermark(&self) -> Id {
        self.log.watermark()
    }

    /// Checks that the log would acknowledge a message that is published now.
    pub async fn check(&self) -> Result<(), Unfit> {
        self.log.check().await
    }

    /// The replicas that share the log, if others may.
    pub fn replicas(&self) -> Option<Arc<Replicas>> {
        self.log.replicas()
    }

    /// True if a message was recently refused because the store is full.
    pub fn is_full(&self) -> bool {
        self.log.is_full()
    }

    /// Up to `limit` topics by name, those after `after`.
    pub async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        self.log.topics(after, limit).await
    }

    /// How many subscriptions to exactly this topic this process has.
    pub fn subscribers(&self, topic: &Topic) -> usize {
        self.log.followers(topic)
    }

    /// How much the log holds.
    pub async fn stats(&self) -> Result<LogStats, LogError> {
        self.log.stats().await
    }
}
