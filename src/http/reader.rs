//! A reader of topics on one connection: the part that all transports share.
//!
//! It gives out one event after another, and the transport renders it. It knows no transport.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    access::{Access, Lease},
    connections::Connections,
    identify::{Begun, Identified},
    metrics::Permit,
    problem::{Code, Problem},
    pulse::{Beat, Pulse},
    wire::Control,
};
use crate::{
    broker::{Delivery, Join, Subscription},
    message::{Id, Pattern},
};

/// A subscription, with the lease and the timers that decide how long its connection lasts.
pub struct Reader {
    subscription: Subscription,
    joining: Option<Box<Joining>>,
    lease: Lease,
    permit: Permit,
    pulse: Pulse,
    /// Something was sent since the timers were last told.
    has_sent: bool,
    is_leaving: bool,
}

/// A pattern that the client added, and that is not merged yet.
struct Joining {
    pattern: Pattern,
    subscription: Subscription,
}

/// The next event on a connection.
#[derive(Debug)]
pub enum Next {
    Delivery(Delivery),
    /// A message or a gap of the pattern that is joining.
    Replay(Delivery),
    /// The pattern that joined is part of the subscription now.
    Joined(Pattern),
    /// The connection was quiet for one heartbeat: send a frame now.
    Quiet,
    /// One heartbeat has passed, whether or not anything was sent.
    Heartbeat,
    /// The client may not read any longer.
    AccessEnded(Code),
    /// The grace of the drain is over: close the connection.
    GraceOver,
}

impl Reader {
    pub fn new(
        connections: Arc<Connections>,
        subscription: Subscription,
        permit: Permit,
        access: Access,
    ) -> Self {
        let (pulse, lease) = (Pulse::new(connections), access.lease());
        let (joining, has_sent, is_leaving) = Default::default();
        Self { subscription, joining, lease, permit, pulse, has_sent, is_leaving }
    }

    /// The next event, now or once there is one. Messages and gaps come only while the transport `has_room`.
    pub fn poll(&mut self, cx: &mut Context<'_>, has_room: bool) -> Poll<Next> {
        let Self { lease, subscription, joining, .. } = self;
        if let Poll::Ready(code) = lease.poll(cx, || patterns_of(subscription, joining)) {
            return Poll::Ready(Next::AccessEnded(code));
        }
        if has_room && let Poll::Ready(next) = self.poll_subscription(cx) {
            self.has_sent = true;
            return Poll::Ready(next);
        }
        if std::mem::take(&mut self.has_sent) {
            self.pulse.sent();
        }
        while let Poll::Ready(beat) = self.pulse.poll(cx) {
            match beat {
                Beat::Leave => self.is_leaving = true,
                Beat::End => return Poll::Ready(Next::GraceOver),
                Beat::Quiet => return Poll::Ready(Next::Quiet),
                Beat::Heartbeat => return Poll::Ready(Next::Heartbeat),
            }
        }
        Poll::Pending
    }

    fn poll_subscription(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(joining) = &mut self.joining else {
            return self.subscription.poll_delivery(cx).map(|delivery| self.give(delivery));
        };
        match self.subscription.poll_join(&mut joining.subscription, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Join::Live(delivery)) => Poll::Ready(self.give(delivery)),
            Poll::Ready(Join::Replay(delivery)) => {
                self.permit.note(&delivery, true);
                Poll::Ready(Next::Replay(delivery))
            }
            Poll::Ready(Join::SameCursor) => {
                let Some(joining) = self.joining.take() else { return Poll::Pending };
                let Joining { pattern, subscription } = *joining;
                self.subscription.absorb(subscription);
                Poll::Ready(Next::Joined(pattern))
            }
        }
    }

    fn give(&mut self, delivery: Delivery) -> Next {
        self.permit.note(&delivery, false);
        Next::Delivery(delivery)
    }

    /// Ends the reading, and keeps the place until the rest of the answer has left.
    pub fn into_permit(self) -> Permit {
        self.permit
    }

    /// The first frame of a connection.
    pub fn open(&self) -> Control<'_> {
        Control::Open {
            connection: self.subscription.connection(),
            cursor: self.cursor(),
            heartbeat_ms: self.pulse.heartbeat().as_millis() as u64,
            sub: self.access().subject().map(|subject| &**subject),
            expires_in_ms: self.access().expires_in_ms(),
        }
    }

    pub fn cursor(&self) -> Id {
        self.subscription.cursor()
    }

    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    pub fn access(&self) -> &Access {
        self.lease.access()
    }

    /// True if the drain has asked this connection to leave, no page of the log is being read for it, and no
    /// pattern is joining.
    pub fn may_leave(&self) -> bool {
        self.is_leaving && self.joining.is_none() && !self.subscription.is_reading()
    }

    /// True while a pattern joins.
    pub fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Adds `pattern` to this reader: it first reads `subscription` up to the reader's cursor, and then merges
    /// the two.
    ///
    /// # Errors
    /// If the client may not read the pattern: the rules may have changed since it asked.
    pub fn join(&mut self, pattern: Pattern, subscription: Subscription) -> Result<(), Problem> {
        self.access().subscribe(std::slice::from_ref(&pattern))?;
        self.joining = Some(Box::new(Joining { pattern, subscription }));
        Ok(())
    }

    /// Counts one pattern more, before it is begun. False if this client may read no more now.
    pub fn may_add(&mut self) -> bool {
        self.permit.set_topics(self.subscription.width() + 1)
    }

    /// Counts the patterns that are read, after one could not be added.
    pub fn not_added(&mut self) {
        self.permit.set_topics(self.subscription.width());
    }

    /// Stops reading `pattern`.
    pub fn remove(&mut self, pattern: &Pattern) {
        self.subscription.remove(pattern);
        self.permit.set_topics(self.subscription.width());
    }

    /// Begins to continue with a new token.
    pub fn begin_renewal(&self, token: &str) -> Begun {
        match self.access().is_open() {
            true => Begun::Done(Err(Problem::bad_request("auth: this server requires no credentials"))),
            false => self.access().begin_renewal(token),
        }
    }

    /// Continues with a new token; see [`Access::renew`].
    pub fn renew(&mut self, identified: Identified) -> Result<(), Problem> {
        let Self { lease, subscription, joining, .. } = self;
        lease.renew(identified, patterns_of(subscription, joining))
    }

    /// Call this when the transport has sent a frame of its own.
    pub fn sent(&mut self) {
        self.has_sent = true;
    }

    /// Adds the counts to the metrics, because the bytes are written now.
    pub fn add_up(&mut self, bytes: usize) {
        self.permit.add_up(bytes);
    }

    /// Logs the end of the connection, with the reason. A WebSocket has a close code too.
    pub fn log_end(&self, why: fmt::Arguments<'_>, close: Option<u16>) {
        let newest = self.subscription.watermark();
        if let Some(record) = self.access().record() {
            record.note_end(why.to_string(), close);
        }
        self.permit.log_end(
            why,
            self.access().client(),
            self.subscription.connection(),
            self.cursor(),
            newest,
        );
    }
}

/// Every pattern that a connection reads, or is about to read.
fn patterns_of<'a>(
    subscription: &'a Subscription,
    joining: &'a Option<Box<Joining>>,
) -> impl Iterator<Item = &'a Pattern> {
    let joining = joining.iter().map(|joining| &joining.pattern);
    subscription.patterns().chain(joining)
}
