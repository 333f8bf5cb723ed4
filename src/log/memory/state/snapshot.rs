//! The part of a log that outlives its process, as a value. It is taken under the lock, and written and read
//! without it.

use std::{io::Write, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Known, State};
use crate::{
    log::{
        Mark, Retention, Tail,
        memory::{
            keys::{Keys, Remembered},
            losses::Losses,
        },
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
    messages: Vec<Arc<Message>>,
    keys: Remembered,
}

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

impl State {
    /// Closes the log: it takes nothing more. Returns its state.
    pub fn close(&mut self) -> Snapshot {
        self.closed = true;
        let find = |(id, tail): (&Id, &Arc<Tail>)| tail.ring().find(*id).cloned();
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
            keys: self.keys.remembered(),
        }
    }

    /// Restores a log from a snapshot. It keeps only what the limits of today allow.
    pub fn restore(snapshot: Snapshot, retention: &Retention, now: Id) -> Self {
        let Snapshot { newest, began, forgotten, topics, messages, keys } = snapshot;
        let (keys, losses) = (Keys::restore(keys, now), Losses::new(newest));
        let mut state = Self { newest, forgotten, keys, losses, ..Self::new(began) };
        for (topic, newest, deleted) in topics {
            state.know(topic, Known { newest, deleted, lost: Mark::default() });
        }
        for message in messages {
            let tail = state.tails.get(&message.topic).cloned().unwrap_or_else(|| {
                // Messages from before the oldest retained one are gone.
                let topic = state.names.get(&message.topic).unwrap_or(&message.topic);
                let tail = Arc::new(Tail::new(topic.into(), message.prev));
                state.tails.insert(topic.clone(), tail.clone());
                tail
            });
            message.cool();
            state.retain(&tail, message, retention);
        }
        state.mark_what_is_gone();
        state
    }

    /// Marks the topics that had lost messages before.
    fn mark_what_is_gone(&mut self) {
        for (topic, known) in self.index.iter_mut().filter(|(_, known)| known.lost == Mark::default()) {
            let tail = self.tails.get(topic);
            let complete_from = tail.map_or(known.newest, |tail| tail.ring().complete_from());
            if complete_from > self.forgotten {
                known.lost = self.losses.restore(topic, complete_from);
            }
        }
    }
}

impl Snapshot {
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let (seed, keys) = &self.keys;
        put(
            to,
            &Counts {
                newest: self.newest.get(),
                began: self.began.get(),
                forgotten: self.forgotten.get(),
                seed: *seed,
                topics: self.topics.len() as u64,
                messages: self.messages.len() as u64,
                keys: keys.len() as u64,
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
                    event: message.event.clone(),
                    exclude: message.exclude.clone(),
                    kind: match message.payload.kind {
                        PayloadKind::Json => Kind::Json,
                        PayloadKind::Text => Kind::Text,
                        PayloadKind::Binary => Kind::Binary,
                    },
                    content_type: message.payload.content_type.clone(),
                    payload_bytes: message.payload.bytes.len() as u64,
                },
            )?;
            to.write_all(&message.payload.bytes)?;
        }
        for (name, id, digest) in keys {
            put(to, &KeyEntry { name: name.to_string(), id: id.get(), digest: *digest })?;
        }
        Ok(())
    }

    /// Reads all that [`write`](Self::write) wrote, or fails.
    pub fn read(mut bytes: &[u8]) -> Result<Self, Unreadable> {
        let from = &mut bytes;
        let counts: Counts = take(from)?;
        let topics = (0..counts.topics).map(|_| {
            let TopicEntry { topic, newest, deleted } = take(from)?;
            Ok((name(&topic)?, Id::new(newest), Id::new(deleted)))
        });
        let topics = topics.collect::<Result<_, _>>()?;
        let messages = (0..counts.messages).map(|_| {
            let entry: MessageEntry = take(from)?;
            let len = usize::try_from(entry.payload_bytes).map_err(|_| Unreadable)?;
            let (payload, rest) = from.split_at_checked(len).ok_or(Unreadable)?;
            *from = rest;
            entry.message(payload)
        });
        let messages = messages.collect::<Result<_, _>>()?;
        let keys = (0..counts.keys).map(|_| {
            let KeyEntry { name, id, digest } = take(from)?;
            Ok((name.into(), Id::new(id), digest))
        });
        let keys = (counts.seed, keys.collect::<Result<_, _>>()?);
        let (newest, began) = (Id::new(counts.newest), Id::new(counts.began));
        let forgotten = Id::new(counts.forgotten);
        if bytes.is_empty() {
            Ok(Self { newest, began, forgotten, topics, messages, keys })
        } else {
            Err(Unreadable)
        }
    }
}

impl MessageEntry {
    fn message(self, payload: &[u8]) -> Result<Arc<Message>, Unreadable> {
        let kind = match self.kind {
            Kind::Json => PayloadKind::Json,
            Kind::Text => PayloadKind::Text,
            Kind::Binary => PayloadKind::Binary,
        };
        let payload = Payload { kind, content_type: self.content_type, bytes: payload.into() };
        let draft = Draft { topic: name(&self.topic)?, event: self.event, payload, exclude: self.exclude };
        Ok(Message::new(draft, Id::new(self.id), Id::new(self.prev)))
    }
}

fn put(to: &mut impl Write, entry: &impl Serialize) -> std::io::Result<()> {
    let bytes = postcard::to_allocvec(entry).expect("an entry has a form");
    to.write_all(&bytes)
}

fn take<T: DeserializeOwned>(from: &mut &[u8]) -> Result<T, Unreadable> {
    let (entry, rest) = postcard::take_from_bytes(from).map_err(|_| Unreadable)?;
    *from = rest;
    Ok(entry)
}

fn name(topic: &str) -> Result<Topic, Unreadable> {
    topic.parse().map_err(|_| Unreadable)
}
