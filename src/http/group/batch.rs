//! The bytes that a group writes to each of its members.

use std::{
    io,
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::member::{Given, Member, Stand};
use crate::{
    broker::{Delivery, Subscription},
    http::{batch::Form, feed, gzip::Sum, metrics::TransportMetrics},
    message::{Id, Message},
};

/// A batch ends after so many bytes, if everything that was looked at is in it.
const GATHERED_BYTES: usize = 32 << 10;
/// The most bytes that a batch has. For more, each member reads by itself, at its own pace.
const MAX_BYTES: usize = 256 << 10;
/// A write of more bytes takes more than one turn. Otherwise others would wait until a long message was copied, or encrypted,
/// for many members.
const BYTES_OF_A_TURN: usize = 8 << 10;

/// Messages that leave together, for all members.
pub struct Batch {
    /// Empty if each member is to go on by itself.
    bytes: Bytes,
    /// How many of them are messages, without the frame of a chunk.
    content: usize,
    /// The sum of the messages before they were coded in gzip.
    plain: Sum,
    /// How many bytes their payloads have.
    payload: usize,
    messages: usize,
    /// The oldest message that has an id. It has waited longest.
    oldest: Option<Id>,
    /// Those of the messages that exclude a connection.
    excluding: Vec<Message>,
    /// The members that have yet to be given this stand here.
    pub before: Stand,
    /// The time, if the rights of a member may have ended by now.
    pub now: Option<SystemTime>,
    /// The first member that was not looked at.
    pub next: usize,
    /// So many members, at most, were not looked at.
    pub left: usize,
}

/// The outcome of a write to one member.
pub enum Written {
    Completely,
    /// The socket has taken the beginning, or holds some of it back. This is the rest, which may be empty.
    Partly(Bytes),
    /// The socket has taken nothing.
    Not,
}

impl Batch {
    /// Takes what `reading` gives out now. `None` if that is nothing. If it is more than messages, or too much, the
    /// batch has no bytes, and the members go on by themselves from `before`.
    pub fn gather(
        reading: &mut Subscription,
        form: Form,
        before: &Stand,
        cx: &mut Context<'_>,
    ) -> Option<Self> {
        let (mut bytes, mut single) = (BytesMut::new(), None);
        let mut batch = Self {
            bytes: Bytes::new(),
            content: 0,
            plain: Sum::default(),
            payload: 0,
            messages: 0,
            oldest: None,
            excluding: Vec::new(),
            before: before.clone(),
            now: None,
            next: 0,
            left: 0,
        };
        while batch.size() <= GATHERED_BYTES || reading.place().is_none() {
            let Poll::Ready(delivery) = reading.poll_delivery(cx) else { break };
            let Delivery::Message(message) = delivery else { return Some(batch) };
            let encoded = form.encode(&message, reading.cursor());
            batch.content += encoded.bytes.len();
            batch.plain = batch.plain.then(encoded.plain);
            batch.payload += message.bytes().len();
            let encoded = encoded.bytes;
            if batch.size() > MAX_BYTES {
                return Some(batch);
            }
            // One message alone has its bytes already.
            match (batch.messages, single.take()) {
                (0, _) => single = Some(encoded),
                (_, first) => {
                    first.into_iter().for_each(|first: Bytes| bytes.extend_from_slice(&first));
                    bytes.extend_from_slice(&encoded);
                }
            }
            batch.messages += 1;
            batch.oldest = batch.oldest.or((!message.is_ephemeral()).then_some(message.id));
            if message.exclude().is_some() {
                batch.excluding.push(message);
            }
        }
        if reading.place().is_none() {
            // It has to read the log, or stands where no member can follow.
            return Some(batch);
        }
        if batch.messages == 0 {
            return None;
        }
        let bytes = single.unwrap_or_else(|| bytes.freeze());
        batch.bytes = match form {
            Form::Frames | Form::Deflated => bytes,
            Form::Body(_) | Form::Gzip(_) => feed::chunk(&bytes),
        };
        Some(batch)
    }

    /// The bytes of the messages, as the members have to hold them: compressed ones become long again.
    fn size(&self) -> usize {
        self.content.max(self.payload)
    }

    /// How many turns it takes to write this to one member.
    pub fn turns(&self) -> usize {
        self.bytes.len().div_ceil(BYTES_OF_A_TURN).max(1)
    }

    /// True if the members are given this. If not, they go on by themselves.
    pub fn is_for_members(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Lets each member go on by itself.
    pub fn let_all_go(&mut self) {
        self.bytes = Bytes::new();
    }

    /// All that a member was given once it has this too.
    pub fn given_after(&self) -> Given {
        let Given { messages, bytes, plain, .. } = self.before.given;
        let (messages, bytes) = (messages + self.messages, bytes + self.content);
        Given { messages, bytes, plain: plain.then(self.plain), at: Instant::now() }
    }

    /// Writes this to one member, as far as its socket takes it now.
    pub fn write_to(&self, member: &Member) -> Written {
        let excludes = |message: &Message| message.exclude() == Some(&*member.connection);
        let has_ended = self.now.zip(member.ends_at).is_some_and(|(now, end)| end <= now);
        if !self.is_for_members() || has_ended || self.excluding.iter().any(excludes) {
            return Written::Not;
        }
        match member.socket.try_write(&self.bytes) {
            Ok(written) if written == self.bytes.len() && member.socket.0.is_flushed() => Written::Completely,
            Ok(0) => Written::Not,
            Ok(written) => Written::Partly(self.bytes.slice(written..)),
            // A full socket may take more later, and a broken one ends its task.
            Err(error) => {
                debug_assert_ne!(error.kind(), io::ErrorKind::InvalidInput);
                Written::Not
            }
        }
    }

    /// Counts the writes to so many members.
    pub fn observe(&self, metrics: &TransportMetrics, written: usize) {
        if written == 0 {
            return;
        }
        metrics.deliveries.inc_by((self.messages * written) as u64);
        metrics.by_groups.inc_by((self.messages * written) as u64);
        metrics.delivered_bytes.inc_by((self.content * written) as u64);
        if let Some(oldest) = self.oldest {
            // An id is the time of publishing in microseconds.
            let seconds = Id::now().get().saturating_sub(oldest.get()) as f64 / 1e6;
            (0..written).for_each(|_| metrics.latency.observe(seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        broker::Broker,
        config::Config,
        http::wire::Framing,
        log::{Append, MemoryLog, Start},
        message::{Draft, Payload},
    };

    /// A group's batch of messages of these sizes.
    async fn gathered(form: Form, sizes: &[usize]) -> Batch {
        gathered_with_ids(form, sizes).await.0
    }

    async fn gathered_with_ids(form: Form, sizes: &[usize]) -> (Batch, Vec<Id>) {
        let broker = Broker::new(MemoryLog::start(Config::default().retention()));
        let patterns = vec!["a".parse().expect("a pattern")];
        let mut reading = broker.subscribe(patterns, &Start::Now, "c").await.expect("it begins");
        assert!(reading.next().now_or_never().is_none(), "it is caught up");
        let place = reading.place().expect("it stands at a place");
        let before = Stand { place, given: Given::nothing() };
        let mut ids = Vec::new();
        for size in sizes {
            let (topic, payload) = ("a".parse().expect("a topic"), Payload::text("x".repeat(*size)));
            let draft = Draft { topic, event: None, payload, exclude: None, by: None };
            let append = Append { draft, idempotency_key: None, if_match: None };
            ids.push(broker.publish(append).await.expect("stored").id());
        }
        let mut context = Context::from_waker(std::task::Waker::noop());
        (Batch::gather(&mut reading, form, &before, &mut context).expect("messages"), ids)
    }

    #[tokio::test]
    async fn the_first_message_counts_towards_the_bounds_of_a_batch() {
        assert_eq!(gathered(Form::Frames, &[1 << 10, 1 << 10]).await.messages, 2);
        let long = gathered(Form::Frames, &[GATHERED_BYTES, GATHERED_BYTES]).await;
        assert!(long.is_for_members() && long.content == long.bytes.len());
        let too_long = gathered(Form::Frames, &[GATHERED_BYTES / 2, MAX_BYTES - GATHERED_BYTES / 2]).await;
        assert!(!too_long.is_for_members(), "{}", too_long.bytes.len());
        // Compressed, the same messages are short, and each client has to hold them all the same.
        for form in [Form::Deflated, Form::Gzip(Framing::Ndjson)] {
            let too_long = gathered(form, &[GATHERED_BYTES / 2, MAX_BYTES]).await;
            assert!(!too_long.is_for_members() && too_long.content < GATHERED_BYTES, "{}", too_long.content);
        }
    }

    #[tokio::test]
    async fn a_batch_ends_with_everything_that_was_looked_at() {
        let (all, ids) = gathered_with_ids(Form::Frames, &[300; 300]).await;
        assert!(all.is_for_members() && all.messages < 300, "{}", all.messages);
        assert!((GATHERED_BYTES..2 * GATHERED_BYTES).contains(&all.content), "{}", all.content);
        assert_eq!(all.oldest, Some(ids[0]));
    }
}
