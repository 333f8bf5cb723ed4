//! The log in Redis (7 or later) or Valkey: any number of replicas, one order of messages.
//!
//! Every replica reads one stream, the feed, and fills its tails from it and from nothing else. A message
//! that a tail lacks is read from the stream of its topic.

mod address;
mod answers;
mod arrivals;
mod asking;
mod clock;
mod codec;
mod copies;
mod deletions;
mod facts;
mod feed;
mod held;
mod link;
mod presence;
mod primary;
mod reading;
mod refusals;
mod replicas;
mod retaining;
mod scripts;
mod shared;
mod store;
mod subjects;

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::{
    address::{Address, Credentials, ParseAddressError},
    replicas::Replicas,
    scripts::constants as script_constants,
};
use self::{
    answers::{Deleted, Known, Older, Published, Stats},
    asking::Asking,
    copies::Copies,
    facts::Facts,
    feed::Feed,
    held::{FILL_BYTES, MAX_TAIL_MESSAGES},
    link::Link,
    reading::{Reading, history},
    shared::Shared,
    store::Store,
    subjects::RedisSubjects,
};
use super::{
    Append, AppendError, Appended, Beginning, Clock, Ephemerals, Expiry, Followed, Follower, History, Holds,
    Log, LogError, LogStats, Mark, Members, NotedHolds, Page, Payer, Position, Retention, Rules, Start,
    Subjects, Tail, TopicStats, Unfit,
};
use crate::message::{Draft, Id, Message, Pattern, PatternSet, Topic};

/// How long a reader waits until the messages of the store arrive here.
const ARRIVAL: Duration = Duration::from_secs(1);
/// How long a new follower waits for the feed to begin, and how long a read waits for the feed to reach its
/// generation.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon this process asks the store again for its format.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How often a page is read until it is valid: a deletion or a new generation may outdate it.
const MAX_READS: usize = 3;

/// How long a publish, a deletion or a hold may take in all, so that its client is answered within three seconds.
const DEADLINE: Duration = Duration::from_millis(2750);
/// How many tails are filled for one reader. A reader of more topics reads them all in one step.
const MAX_FILLED: usize = 16;

/// A reader of more topics and patterns than this shares its pages with no other reader.
const MAX_SHARED_PATTERNS: usize = 16;

/// The question of a reader that has a cursor and no floors.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PageKey {
    patterns: Vec<Pattern>,
    cursor: Id,
    told: Id,
    checked: Mark,
    limit: usize,
}

/// A log that is shared by all replicas that use the same server, database and prefix.
pub struct RedisLog {
    store: Arc<Store>,
    feed: Arc<Feed>,
    link: Arc<Link>,
    copies: Arc<Copies>,
    asking: Arc<Asking>,
    replicas: Arc<Replicas>,
    subjects: Arc<RedisSubjects>,
    pages: Shared<PageKey, Result<Page, LogError>>,
    /// By topic, id and limit.
    histories: Shared<(Topic, Id, usize), Result<History, LogError>>,
    /// The tasks end with the log.
    _tasks: JoinSet<()>,
}

impl RedisLog {
    /// Begins to connect. Until that has succeeded, every call fails with [`LogError::Unavailable`]. A
    /// message counts as stored only once this many `copies` of the primary have confirmed it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(address: Address, retention: &Retention, copies: usize) -> Arc<Self> {
        let is_confirmed = copies > 0;
        let store = Arc::new(Store::new(address, retention, is_confirmed));
        let feed = Arc::new(Feed::new(Clock::System, retention.age, retention.rules.clone()));
        let link = Arc::new(Link::new(store.clone(), feed.clone()));
        let copies = Arc::new(Copies::new(store.clone(), copies));
        let mut tasks = JoinSet::new();
        tasks.spawn(store.clone().keep_connected());
        tasks.spawn(link.clone().keep_linked());
        tasks.spawn(feed.clone().keep_dropping_idle());
        let asking = Arc::new(Asking::new(link.clone()));
        tasks.spawn(asking.clone().keep_asking());
        if is_confirmed {
            tasks.spawn(copies.clone().keep_confirming());
        }
        let replicas = Arc::new(Replicas::new(store.clone()));
        tasks.spawn(replicas.clone().keep_beating());
        tasks.spawn(replicas.clone().keep_reading());
        tasks.spawn(replicas.clone().keep_sending());
        let subjects = Arc::new(RedisSubjects::new(store.clone(), feed.clone(), copies.clone()));
        tasks.spawn(subjects.clone().keep_reading_lists());
        tasks.spawn(subjects.clone().keep_reading_refusals());
        let (pages, histories) = Default::default();
        Arc::new(Self {
            store,
            feed,
            link,
            copies,
            asking,
            replicas,
            subjects,
            pages,
            histories,
            _tasks: tasks,
        })
    }

    /// Asks the store for its format, and waits for the answer for at most two seconds.
    ///
    /// # Errors
    /// If the store has a format that this version does not know.
    pub async fn check_format(&self) -> io::Result<()> {
        let asked = async {
            while !self.store.is_foreign() && self.link.ask().await.is_err() {
                sleep(ASK_AGAIN).await;
            }
        };
        // The server starts even if the store does not answer yet.
        let _ = timeout(PATIENCE, asked).await;
        if self.store.is_foreign() {
            let what = "the store in Redis has a format that this version does not know: a newer version has used it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        Ok(())
    }

    async fn read_store(
        &self,
        patterns: &PatternSet,
        position: &Position,
        limit: usize,
    ) -> Result<Page, LogError> {
        for _ in 0..MAX_READS {
            let deletions = self.feed.deletions();
            let (facts, page) = Reading { store: &self.store, patterns }.read(position, limit).await?;
            self.store.has_seen(facts.newest);
            // A page must belong to the generation of the tails, and must not bring back a message that was
            // deleted meanwhile.
            let has_come = |feed: &Feed| feed.generation() >= Some(facts.began);
            let has_come = self.feed.wait(PATIENCE, has_come).await;
            let is_same = has_come && self.feed.generation() == Some(facts.began);
            if is_same && !self.feed.brings_back(&page, deletions) {
                return Ok(page);
            }
        }
        Err(LogError::Unavailable)
    }

    /// Fills the tails of a few topics backwards. True if the tails now hold everything that a reader at
    /// `position` needs.
    async fn fill_all(&self, patterns: &[Pattern], position: &Position) -> Result<bool, LogError> {
        if patterns.len() > MAX_FILLED || patterns.iter().any(Pattern::has_wildcard) {
            return Ok(false);
        }
        for pattern in patterns {
            if !self.fill(pattern, position).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills the tail of one topic backwards, if a reader at `position` needs that. True if the tail then
    /// covers the reader.
    async fn fill(&self, pattern: &Pattern, position: &Position) -> Result<bool, LogError> {
        let Some(followed) = self.feed.find(pattern) else { return Ok(false) };
        // The first reader fills the tail, and the readers that wait for it then find the messages there.
        let _filling = followed.filling.lock().await;
        let tail = &followed.tail;
        let (from, length, bytes) = {
            let ring = tail.ring();
            (ring.complete_after(), ring.len(), ring.bytes())
        };
        let room = MAX_TAIL_MESSAGES.saturating_sub(length);
        if position.told_upto(pattern.as_str()) >= from || room == 0 || bytes >= FILL_BYTES {
            return Ok(tail.covers(position, &self.expiry()));
        }
        let given = position.told_upto(pattern.as_str());
        let args = [from.to_string(), room.to_string(), given.to_string()];
        let args = args.each_ref().map(|arg| arg.as_bytes());
        let Older { facts, newest, found } =
            self.store.read(&self.store.scripts.newest, pattern.as_str(), &args).await?;
        let Some(topic) = pattern.topic() else { return Ok(false) };
        let (mut older, mut complete_after): (Vec<Message>, Id) = (Vec::new(), newest);
        for stored in found.into_iter().filter(|stored| !stored.is_foreign) {
            // Each message names the one before it. The tail is complete only up to a break in this chain.
            if stored.id != complete_after {
                break;
            }
            let Some(message) = stored.message(&topic) else { break };
            older.push(message);
            complete_after = stored.prev;
        }
        older.reverse();
        if complete_after < from {
            self.feed.fill(&followed, facts.began, &older, complete_after, from);
        }
        Ok(tail.covers(position, &self.expiry()))
    }

    /// The facts of the store. The feed has arrived at its newest id, if that takes no longer than a bounded time: a client
    /// that publishes and then asks any replica must see its message.
    async fn newest_facts(&self) -> Result<Arc<Facts>, LogError> {
        let facts = self.asking.facts().await?;
        self.arrived(facts.newest).await;
        Ok(facts)
    }

    async fn store_message(&self, append: Append, payer: Option<Payer>) -> Result<Appended, AppendError> {
        let Append { draft, idempotency_key, if_match } = append;
        let head = codec::head(&draft);
        let names = [draft.event.as_deref(), draft.by.as_deref()];
        let event_bytes = names.into_iter().flatten().map(str::len).sum::<usize>().to_string();
        let if_match = if_match.map(|id| id.to_string()).unwrap_or_default();
        let key = idempotency_key.as_deref().unwrap_or_default();
        let payer = payer.map(|payer| payer.number().to_string()).unwrap_or_default();
        let options = [key, &if_match, &payer].map(str::as_bytes);
        let given = options.iter().rposition(|option| !option.is_empty()).map_or(0, |last| last + 1);
        let message: [&[u8]; 3] = [&head, &draft.payload.bytes, event_bytes.as_bytes()];
        let args = [&message, &options[..given]].concat();
        let Published { outcome, id, began } =
            self.store.run(&self.store.scripts.publish, &draft.topic, &args).await?;
        self.store.has_seen(id);
        if began > Id::ZERO {
            self.copies.confirm(began).await?;
        }
        match outcome.as_str() {
            "stored" => Ok(Appended::Stored(id)),
            "replayed" => Ok(Appended::Replayed(id)),
            "newest" => Err(AppendError::PreconditionFailed { newest: id }),
            "reused" => Err(AppendError::KeyReused),
            "keys" => Err(AppendError::TooManyKeys),
            "topics" => Err(AppendError::TooManyTopics),
            _ => Err(LogError::UnknownOutcome.into()),
        }
    }

    async fn delete_messages(&self, topic: &Topic) -> Result<(), LogError> {
        let Deleted { facts, gone } = self.store.settle(&self.store.scripts.delete, topic, &[]).await?;
        self.store.has_seen(facts.newest);
        // If the index did not know the topic, there was nothing to delete.
        if gone > Id::ZERO {
            self.feed.delete(topic, gone, facts.newest);
        }
        self.copies.confirm(facts.began).await
    }
}

#[async_trait]
impl Log for RedisLog {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.append_for(append, None).await
    }

    async fn append_for(&self, append: Append, payer: Option<Payer>) -> Result<Appended, AppendError> {
        timeout(DEADLINE, self.store_message(append, payer))
            .await
            .unwrap_or(Err(LogError::UnknownOutcome.into()))
    }

    async fn announce(&self, draft: Draft) -> Result<(), LogError> {
        let head = codec::head(&draft);
        let args = [&*head, &*draft.payload.bytes];
        let sent = self.store.run::<Facts>(&self.store.scripts.announce, &draft.topic, &args);
        timeout(DEADLINE, sent).await.unwrap_or(Err(LogError::UnknownOutcome)).map(drop)
    }

    async fn delete(&self, topic: &Topic) -> Result<(), LogError> {
        timeout(DEADLINE, self.delete_messages(topic)).await.unwrap_or(Err(LogError::UnknownOutcome))
    }

    async fn follow(
        self: Arc<Self>,
        pattern: &Pattern,
        follower: &Arc<Follower>,
    ) -> Result<Followed, LogError> {
        if !self.feed.wait(PATIENCE, |feed| feed.place().is_some()).await {
            return Err(LogError::Unavailable);
        }
        let (followed, key) = self.feed.follow(pattern, follower);
        Ok(Followed::new(self, followed.tail.clone(), key))
    }

    fn unfollow(&self, tail: &Arc<Tail>, follower: usize) {
        tail.remove_follower(follower);
    }

    async fn newest(&self) -> Result<Id, LogError> {
        Ok(self.newest_facts().await?.newest)
    }

    fn watermark(&self) -> Id {
        self.feed.watermark()
    }

    async fn arrived(&self, id: Id) -> bool {
        self.feed.arrived(id, ARRIVAL).await
    }

    fn expiry(&self) -> Expiry {
        self.feed.expiry()
    }

    fn retain_by(&self, rules: Rules) {
        self.feed.retain_by(rules.clone());
        self.store.retain_by(&rules);
    }

    async fn begin(&self, patterns: &PatternSet, start: &Start) -> Result<Beginning, LogError> {
        let facts = self.newest_facts().await?;
        Reading { store: &self.store, patterns }.begin(start, &facts).await
    }

    async fn read(&self, patterns: &PatternSet, position: &Position, limit: usize) -> Result<Page, LogError> {
        if self.fill_all(patterns, position).await? {
            // The messages are in the tails now.
            let (told, cursor) = (position.told, position.cursor);
            let checked = position.checked;
            return Ok(Page { told, checked, past: cursor, end: cursor, ..Page::default() });
        }
        let read = self.read_store(patterns, position, limit);
        if patterns.len() > MAX_SHARED_PATTERNS || position.has_floors() {
            return read.await;
        }
        let Position { cursor, told, checked, .. } = *position;
        let key = PageKey { patterns: patterns.to_vec(), cursor, told, checked, limit };
        self.pages.share(&key, read).await
    }

    async fn history(&self, topic: &Topic, before: Id, limit: usize) -> Result<History, LogError> {
        // A question that was sent earlier lacks what was stored or deleted since.
        let key = (topic.clone(), before, limit);
        self.histories.share_unsent(&key, history(&self.store, topic, before, limit)).await
    }

    async fn hold(&self, holds: &Holds) -> Result<NotedHolds, LogError> {
        timeout(DEADLINE, self.note_holds(holds)).await.unwrap_or(Err(LogError::UnknownOutcome))
    }

    async fn holds_due(&self) {
        self.replicas.keeps().await;
    }

    async fn members(&self, topic: &Topic, after: &str, limit: usize) -> Result<Members, LogError> {
        self.list_members(topic, after, limit).await
    }

    fn ephemerals(&self) -> &Ephemerals {
        &self.feed.ephemerals
    }

    fn is_full(&self) -> bool {
        self.store.is_full()
    }

    fn replicas(&self) -> Option<Arc<Replicas>> {
        Some(self.replicas.clone())
    }

    fn subjects(&self) -> Option<Arc<dyn Subjects>> {
        Some(self.subjects.clone())
    }

    async fn topics(&self, after: &str, limit: usize) -> Result<Vec<TopicStats>, LogError> {
        // Only `limit` names are held in memory, however many topics there are.
        let mut names = BTreeSet::new();
        let take = |members: Vec<(String, Id)>| {
            for name in members.into_iter().map(|(name, _)| name).filter(|name| &**name > after) {
                names.insert(name);
                if names.len() > limit {
                    names.pop_last();
                }
            }
        };
        self.store.index(Id::ZERO, take).await?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let script = &self.store.scripts.topics;
        let args: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
        let known: Vec<Known> = self.store.read(script, "", &args).await?;
        let stats = |(name, Known { newest, messages, bytes }): (&String, Known)| {
            let topic: Topic = name.parse().ok()?;
            let subscribers = self.feed.followers(&topic);
            Some(TopicStats { topic, newest, messages, bytes, subscribers })
        };
        Ok(names.iter().zip(known).filter_map(stats).collect())
    }

    fn followers(&self, topic: &Topic) -> usize {
        self.feed.followers(topic)
    }

    async fn check(&self) -> Result<(), Unfit> {
        let facts = self.store.check().await?;
        Ok(self.copies.confirm(facts.began).await?)
    }

    async fn stats(&self) -> Result<LogStats, LogError> {
        let Stats { facts, topics, messages, bytes } =
            self.store.read(&self.store.scripts.stats, "", &[]).await?;
        let (newest, began) = (facts.newest, facts.began);
        Ok(LogStats { topics, messages, bytes, newest, began, state_failed: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Follower, redis::codec::Place};

    /// Clients reconnect again and again while Redis is away, each time for other topics.
    #[tokio::test]
    async fn topics_that_no_reader_follows_are_dropped_while_redis_is_away() {
        let retention = Retention {
            messages: 1,
            age: Duration::from_secs(60),
            bytes: 1,
            total_bytes: 1,
            topics: 1,
            rules: Rules::NONE,
        };
        // No server listens there.
        let log = RedisLog::start("redis://127.0.0.1:1".parse().expect("an address"), &retention, 0);
        let [newest, began, forgotten, marked] = [1, 1, 1, 0].map(Id::new);
        let keep = (&retention).into();
        let facts = Facts {
            newest,
            began,
            forgotten,
            keep,
            boundaries: Vec::new(),
            marked,
            is_frozen: false,
            has_rules: 1,
        };
        log.feed.begin(&facts, Place { id: newest, number: 0 });
        let topic: Pattern = "a".parse().expect("a topic");
        let reader = log.clone().follow(&topic, &Arc::<Follower>::default()).await;
        assert!(reader.is_ok() && log.feed.find(&topic).is_some());
        drop(reader);
        let dropped = async {
            while log.feed.find(&topic).is_some() {
                sleep(ASK_AGAIN).await;
            }
        };
        timeout(Duration::from_secs(20), dropped).await.expect("it is dropped");
    }
}
