//! The part of a log that outlives its process. It is taken under the lock and written without it. It is read
//! entry by entry into a new log, so that a start takes no more memory than the log itself.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Known, State, subjects::Kept};
use crate::{
    log::{
        Mark, Member, Refusal, Retention, Tail,
        memory::{cost, keys::Keys, losses::Losses},
    },
    message::{Draft, Id, Message, Payload, PayloadKind, Topic},
};

/// The state of a log without its followers.
#[derive(Debug)]
pub struct Snapshot {
    pub newest: Id,
    began: Id,
    forgotten: Id,
    /// The index, in the order of the newest messages: each topic, its newest id, and the newest id when it
    /// was last deleted.
    topics: Vec<(Topic, Id, Id)>,
    /// The retained messages, in the order of their ids.
    messages: Vec<Message>,
    keys: Keys,
    subjects: Kept,
    members: Vec<(Topic, Member)>,
}

/// How many bytes an entry may have without its payload. The names in it have at most a few hundred each.
const MAX_ENTRY_BYTES: usize = 64 << 10;

/// The bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("its content cannot be read")]
pub struct Unreadable;

/// How many topics, messages and keys follow.
#[derive(Serialize, Deserialize)]
struct Counts {
    newest: u64,
    began: u64,
    forgotten: u64,
    seed: u64,
    topics: u64,
    messages: u64,
    keys: u64,
}

#[derive(Serialize, Deserialize)]
struct TopicEntry {
    topic: String,
    newest: u64,
    deleted: u64,
}

/// A message without its payload, whose bytes come behind it.
#[derive(Serialize, Deserialize)]
struct MessageEntry {
    topic: String,
    id: u64,
    prev: u64,
    event: Option<Box<str>>,
    exclude: Option<Box<str>>,
    kind: Kind,
    content_type: Option<Box<str>>,
    payload_bytes: u64,
    /// Versions 1 and 2 have no such field.
    by: Option<Box<str>>,
}

/// A message as versions 1 and 2 wrote it.
#[cfg_attr(test, derive(Serialize))]
#[derive(Deserialize)]
struct OldMessageEntry {
    topic: String,
    id: u64,
    prev: u64,
    event: Option<Box<str>>,
    exclude: Option<Box<str>>,
    kind: Kind,
    content_type: Option<Box<str>>,
    payload_bytes: u64,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Json,
    Text,
    Binary,
}

#[derive(Serialize, Deserialize)]
struct KeyEntry {
    name: String,
    id: u64,
    digest: u64,
}

/// How many entries of lists and refusals follow the keys. Versions 1 to 3 have none.
#[derive(Serialize, Deserialize)]
struct SubjectCounts {
    entries: u64,
    refusals: u64,
}

#[derive(Serialize, Deserialize)]
struct ListEntry {
    subject: String,
    topic: String,
    id: u64,
}

#[derive(Serialize, Deserialize)]
struct RefusalEntry {
    subject: String,
    second: u64,
    until_ms: u64,
}

/// How many members follow. Versions 1 to 3 have none.
#[derive(Serialize, Deserialize)]
struct MemberCount {
    members: u64,
}

#[derive(Serialize, Deserialize)]
struct MemberEntry {
    topic: String,
    sub: Box<str>,
    since: u64,
    info: Option<Box<str>>,
}

impl State {
    /// Closes the log: it takes nothing more. Returns its state.
    pub fn close(&mut self) -> Snapshot {
        self.closed = true;
        let find = |(id, tail): &(Id, Arc<Tail>)| tail.ring().find(*id).cloned();
        Snapshot {
            newest: self.newest,
            began: self.began,
            forgotten: self.forgotten,
            topics: self
                .index
                .iter()
                .map(|(topic, known)| (topic.clone(), known.newest, known.deleted))
                .collect(),
            messages: self.order.iter().filter_map(find).collect(),
            // A closed log asks for no key.
            keys: std::mem::take(&mut self.keys),
            subjects: std::mem::take(&mut self.subjects),
            members: self.all_members.all(),
        }
    }

    /// Reads the log that [`Snapshot::write`] wrote. It keeps only what the limits of today allow.
    ///
    /// The bytes may be damaged: then this fails, or returns a log that the caller must throw away.
    pub fn read(
        from: &mut impl Read,
        version: u32,
        retention: &Retention,
        now: Id,
    ) -> Result<Self, Unreadable> {
        let from = &mut Entries { from, scratch: vec![0; MAX_ENTRY_BYTES] };
        let counts: Counts = from.take()?;
        let (newest, began) = (Id::new(counts.newest), Id::new(counts.began));
        let (forgotten, losses) = (Id::new(counts.forgotten), Losses::new(newest));
        let mut state = Self { newest, forgotten, losses, ..Self::new(began) };
        state.keys = Keys::with_seed(counts.seed);
        for _ in 0..counts.topics {
            let TopicEntry { topic, newest, deleted } = from.take()?;
            // After a restart no client is known to have made the topic.
            let (newest, deleted) = (Id::new(newest), Id::new(deleted));
            let known = Known { newest, deleted, lost: Mark::default(), maker: None };
            state.restore_topic(name(&topic)?, known)?;
        }
        let mut last = Id::ZERO;
        for _ in 0..counts.messages {
            let message = from.take_message(version)?;
            let is_in_order = last < message.id && message.id <= newest && message.prev < message.id;
            if !is_in_order || !state.index.contains_key(&message.topic) {
                return Err(Unreadable);
            }
            last = message.id;
            state.restore_message(message, retention);
        }
        for _ in 0..counts.keys {
            let KeyEntry { name, id, digest } = from.take()?;
            state.keys.restore(name.into(), Id::new(id), digest, now);
        }
        if version >= 4 {
            state.restore_subjects(from)?;
            let MemberCount { members } = from.take()?;
            for _ in 0..members {
                let MemberEntry { topic, sub, since, info } = from.take()?;
                let (topic, since) = (name(&topic)?, Id::new(since));
                let info = info.map(Into::into);
                state.all_members.restore(topic, sub.into(), since, info);
            }
        }
        state.mark_what_is_gone();
        // Make room for the keys, the marks and the times of the topics now. The first publish would have to do it under
        // the lock.
        let due = if retention.rules.is_empty() { 0 } else { cost::DUE_BYTES };
        while state.footprint() + state.held * due > retention.total_bytes && state.order.len() > 1 {
            state.evict_oldest();
        }
        Ok(state)
    }

    fn restore_topic(&mut self, topic: Topic, known: Known) -> Result<(), Unreadable> {
        if self.index.contains_key(&topic) {
            return Err(Unreadable);
        }
        self.know(topic, known);
        Ok(())
    }

    fn restore_subjects(&mut self, from: &mut Entries<'_, impl Read>) -> Result<(), Unreadable> {
        let counts: SubjectCounts = from.take()?;
        for _ in 0..counts.entries {
            let ListEntry { subject, topic, id } = from.take()?;
            self.subjects.restore(subject.into(), topic.parse().map_err(|_| Unreadable)?, Id::new(id));
        }
        for _ in 0..counts.refusals {
            let RefusalEntry { subject, second, until_ms } = from.take()?;
            self.subjects.restore_refusal(subject.into(), Refusal { second, until_ms });
        }
        Ok(())
    }

    fn restore_message(&mut self, message: Message, retention: &Retention) {
        let tail = self.tails.get(&message.topic).cloned().unwrap_or_else(|| {
            // Messages from before the oldest retained one are gone.
            let topic = self.names.get(&message.topic).unwrap_or(&message.topic);
            let tail = Arc::new(Tail::new(topic.into(), message.prev));
            self.tails.insert(tail.clone());
            tail
        });
        message.cool();
        self.retain(&tail, message, retention);
    }

    /// Marks the topics that had lost messages before.
    fn mark_what_is_gone(&mut self) {
        for (topic, known) in self.index.iter_mut().filter(|(_, known)| known.lost == Mark::default()) {
            let tail = self.tails.get(topic);
            let complete_after = tail.map_or(known.newest, |tail| tail.ring().complete_after());
            if complete_after > self.forgotten {
                known.lost = self.losses.restore(topic, complete_after);
            }
        }
    }
}

impl Snapshot {
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        put(
            to,
            &Counts {
                newest: self.newest.get(),
                began: self.began.get(),
                forgotten: self.forgotten.get(),
                seed: self.keys.seed(),
                topics: self.topics.len() as u64,
                messages: self.messages.len() as u64,
                keys: self.keys.len() as u64,
            },
        )?;
        for (topic, newest, deleted) in &self.topics {
            let (newest, deleted) = (newest.get(), deleted.get());
            put(to, &TopicEntry { topic: topic.to_string(), newest, deleted })?;
        }
        for message in &self.messages {
            put(
                to,
                &MessageEntry {
                    topic: message.topic.to_string(),
                    id: message.id.get(),
                    prev: message.prev.get(),
                    event: message.event().map(Into::into),
                    exclude: message.exclude().map(Into::into),
                    kind: match message.kind {
                        PayloadKind::Json => Kind::Json,
                        PayloadKind::Text => Kind::Text,
                        PayloadKind::Binary => Kind::Binary,
                    },
                    content_type: message.content_type().map(Into::into),
                    payload_bytes: message.bytes().len() as u64,
                    by: message.by().map(Into::into),
                },
            )?;
            to.write_all(message.bytes())?;
        }
        for (name, id, digest) in self.keys.remembered() {
            put(to, &KeyEntry { name: name.to_owned(), id: id.get(), digest })?;
        }
        self.write_subjects(to)?;
        self.write_members(to)
    }

    fn write_subjects(&self, to: &mut impl Write) -> io::Result<()> {
        let Kept { lists, refusals, .. } = &self.subjects;
        let entries = lists.values().map(|entries| entries.len() as u64).sum();
        put(to, &SubjectCounts { entries, refusals: refusals.len() as u64 })?;
        for (subject, entries) in lists {
            for (topic, id) in entries {
                let (subject, topic) = (subject.to_string(), topic.to_string());
                put(to, &ListEntry { subject, topic, id: id.get() })?;
            }
        }
        for (subject, Refusal { second, until_ms }) in refusals.iter() {
            let (second, until_ms) = (*second, *until_ms);
            put(to, &RefusalEntry { subject: subject.to_string(), second, until_ms })?;
        }
        Ok(())
    }

    fn write_members(&self, to: &mut impl Write) -> io::Result<()> {
        put(to, &MemberCount { members: self.members.len() as u64 })?;
        for (topic, Member { sub, since, info, .. }) in &self.members {
            let (topic, sub, since) = (topic.to_string(), (&**sub).into(), since.get());
            put(to, &MemberEntry { topic, sub, since, info: info.as_deref().map(Into::into) })?;
        }
        Ok(())
    }
}

/// Reads entries from bytes that may be damaged. No count or length in them is believed.
struct Entries<'a, R> {
    from: &'a mut R,
    scratch: Vec<u8>,
}

impl<R: Read> Entries<'_, R> {
    fn take<T: DeserializeOwned>(&mut self) -> Result<T, Unreadable> {
        let read = postcard::from_io((&mut *self.from, &mut self.scratch));
        read.map(|(entry, _)| entry).map_err(|_| Unreadable)
    }

    fn take_message(&mut self, version: u32) -> Result<Message, Unreadable> {
        let entry: MessageEntry = match version {
            1 | 2 => self.take::<OldMessageEntry>()?.into(),
            _ => self.take()?,
        };
        // A damaged length must not take memory before its bytes are there.
        let mut payload = Vec::with_capacity(entry.payload_bytes.min(MAX_ENTRY_BYTES as u64) as usize);
        let read = (&mut *self.from).take(entry.payload_bytes).read_to_end(&mut payload);
        match read {
            Ok(count) if count as u64 == entry.payload_bytes => entry.message(payload),
            _ => Err(Unreadable),
        }
    }
}

impl MessageEntry {
    fn message(self, payload: Vec<u8>) -> Result<Message, Unreadable> {
        let kind = match self.kind {
            Kind::Json => PayloadKind::Json,
            Kind::Text => PayloadKind::Text,
            Kind::Binary => PayloadKind::Binary,
        };
        let payload = Payload { kind, content_type: self.content_type, bytes: payload.into() };
        let by = self.by.map(Into::into);
        let draft =
            Draft { topic: name(&self.topic)?, event: self.event, payload, exclude: self.exclude, by };
        Ok(Message::new(draft, Id::new(self.id), Id::new(self.prev)))
    }
}

impl From<OldMessageEntry> for MessageEntry {
    fn from(entry: OldMessageEntry) -> Self {
        let OldMessageEntry { topic, id, prev, event, exclude, kind, content_type, payload_bytes } = entry;
        Self { topic, id, prev, event, exclude, kind, content_type, payload_bytes, by: None }
    }
}

fn put(to: &mut impl Write, entry: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_allocvec(entry).expect("an entry has a form");
    to.write_all(&bytes)
}

fn name(topic: &str) -> Result<Topic, Unreadable> {
    topic.parse().map_err(|_| Unreadable)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{RETENTION, gaps, store},
        *,
    };
    use crate::log::{Append, Reason, Rule, Rules};

    #[test]
    fn messages_of_versions_without_a_publisher_are_read() {
        let mut bytes = Vec::new();
        let (newest, began, forgotten, seed) = (7, 1, 1, 0);
        put(&mut bytes, &Counts { newest, began, forgotten, seed, topics: 1, messages: 1, keys: 0 })
            .expect("written");
        put(&mut bytes, &TopicEntry { topic: "a".into(), newest, deleted: 0 }).expect("written");
        let entry = OldMessageEntry {
            topic: "a".into(),
            id: newest,
            prev: 1,
            event: Some("e".into()),
            exclude: None,
            kind: Kind::Text,
            content_type: None,
            payload_bytes: 2,
        };
        put(&mut bytes, &entry).expect("written");
        bytes.extend(b"hi");
        for version in [1, 2] {
            let state = State::read(&mut bytes.as_slice(), version, &RETENTION, Id::new(8)).expect("a log");
            let tail = state.tails.iter().next().expect("a topic");
            let message = tail.ring().find(Id::new(newest)).cloned().expect("a message");
            assert_eq!((message.event(), message.by()), (Some("e"), None));
            assert_eq!(message.bytes(), b"hi");
        }
        assert!(State::read(&mut bytes.as_slice(), 3, &RETENTION, Id::new(8)).is_err(), "it ends too early");
    }

    #[test]
    fn lists_and_refusals_are_read_as_they_were_and_older_versions_have_none() {
        let mut state = State::new(Id::now());
        let topic = "a.*".parse().expect("a pattern");
        let (id, _) = state.list_add("u1", &topic, &RETENTION, Id::now()).expect("there is room");
        let lasts = std::time::Duration::from_secs(60);
        let refusal = state.refuse("u2", lasts, &RETENTION).expect("there is room");
        let mut bytes = Vec::new();
        let footprint = state.footprint();
        state.close().write(&mut bytes).expect("written");
        let state = State::read(&mut bytes.as_slice(), 4, &RETENTION, Id::now()).expect("a log");
        assert_eq!(state.list("u1").into_iter().collect::<Vec<_>>(), [(topic, id)]);
        assert_eq!(state.refusals().collect::<Vec<_>>(), [(&"u2".into(), &refusal)]);
        assert_eq!(state.footprint(), footprint);
        let older = State::read(&mut bytes.as_slice(), 3, &RETENTION, Id::now()).expect("a log");
        assert!(older.list("u1").is_empty() && older.refusals().next().is_none());
    }

    /// The log began above its limit, and the first publish removed the surplus under the lock.
    #[test]
    fn a_log_that_is_read_is_within_the_limits_of_today_with_its_keys() {
        let mut state = State::new(Id::now());
        let began = state.newest;
        for number in 0..500 {
            let topic = format!("topic.{number}").parse().expect("a topic");
            let draft = Draft { topic, event: None, payload: Payload::text("x"), exclude: None, by: None };
            let append = Append { draft, idempotency_key: Some(number.to_string().into()), if_match: None };
            store(&mut state, append, &RETENTION).expect("stored");
        }
        let total_bytes = state.footprint() * 3 / 4;
        let mut bytes = Vec::new();
        state.close().write(&mut bytes).expect("written");
        let mut retention = Retention { total_bytes, ..RETENTION };
        let mut state = State::read(&mut bytes.as_slice(), 4, &retention, Id::now()).expect("a log");
        assert!(state.footprint() <= total_bytes, "{} of {total_bytes}", state.footprint());
        let topics = "*".parse().expect("a pattern");
        retention.rules = Rules::new(vec![Rule { topics, messages: Some(1), age: None, bytes: None }]);
        let aged = State::read(&mut bytes.as_slice(), 4, &retention, Id::now()).expect("a log");
        let size = aged.footprint() + aged.held * cost::DUE_BYTES;
        assert!(size <= total_bytes, "{size} of {total_bytes} with the times of topics");
        assert!(state.order.len() > 1, "it keeps what there is room for");
        assert_eq!(gaps(&mut state, "topic.0", began), [("topic.0".to_owned(), Reason::Retention)]);
        assert_eq!(gaps(&mut state, "topic.499", began), []);
    }
}
