//! A WebSocket that reads topics: commands in, frames out.

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;
use tungstenite::Message as Said;

use super::{
    command::{self, Action, Answer, Command, Outcome, Reference, Reply},
    socket::{Lost, Socket},
};
use crate::{
    broker::{Delivery, Join, Subscription},
    http::{
        App, MAX_TOPICS, MAX_WILDCARDS,
        access::Lease,
        batch::{Batch, Form},
        metrics::Permit,
        problem::{Code, Problem, UNSUPPORTED_DATA},
        publish::Published,
        pulse::{Beat, Pulse, overload_retry_ms, retry_ms},
        wire::{self, Control},
    },
    message::{Message, Pattern},
};

/// How many bytes may wait to be written before the log is read on. The same limit for answers stops the
/// reading of commands.
const MAX_QUEUED_BYTES: usize = 64 << 10;
/// How many commands may wait for the running one before the socket is no longer read.
const MAX_WAITING_COMMANDS: usize = 16;
/// How many rounds one poll makes before other tasks may run.
const BUDGET: usize = 256;

/// One connection, from its `open` to its close.
pub struct Session {
    app: Arc<App>,
    socket: Socket,
    subscription: Subscription,
    joining: Option<Box<Joining>>,
    waiting: VecDeque<Command>,
    running: Option<(Reference, BoxFuture<'static, Result<Outcome, Problem>>)>,
    pulse: Pulse,
    /// When the peer last sent something. While the peer has yet to read what was written, this is now.
    heard_at: Instant,
    /// How many bytes were gathered since the socket last took everything.
    gathered_bytes: usize,
    leaving: bool,
    permit: Permit,
    lease: Lease,
}

/// A topic that is read up to the connection's cursor.
struct Joining {
    reference: Reference,
    pattern: Pattern,
    subscription: Subscription,
}

/// The reason why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lost(Lost),
    /// The client sent a binary frame.
    Unsupported,
    /// No frame came from the client for two heartbeats.
    Silent,
    Draining,
    /// The client's grants or its token have ended.
    Over(Code),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost(Lost::Closed) => "the client closed the connection",
            Self::Lost(Lost::Gone) => "the client left",
            Self::Lost(Lost::Broken(code)) => {
                return write!(f, "the client broke the protocol: close {code}");
            }
            Self::Lost(Lost::TooSlow) => Code::TooSlow.as_str(),
            Self::Unsupported => "the client sent a binary frame",
            Self::Silent => "the client was silent for two heartbeats",
            Self::Draining => Code::Draining.as_str(),
            Self::Over(code) => code.as_str(),
        })
    }
}

impl Session {
    pub fn new(
        app: Arc<App>,
        socket: Socket,
        subscription: Subscription,
        permit: Permit,
        lease: Lease,
    ) -> Self {
        let now = Instant::now();
        Self {
            pulse: Pulse::new(app.clone()),
            app,
            socket,
            subscription,
            joining: None,
            waiting: VecDeque::new(),
            running: None,
            heard_at: now,
            gathered_bytes: 0,
            leaving: false,
            permit,
            lease,
        }
    }

    /// Serves the connection until it ends.
    ///
    /// # Cancel safety
    /// Dropping this drops the connection without a close.
    pub async fn run(mut self: Box<Self>) {
        let open = Control::Open {
            connection: self.subscription.connection(),
            cursor: self.subscription.cursor(),
            heartbeat_ms: self.app.heartbeat_ms(),
        };
        self.socket.push(wire::control_frame(&open));
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        let (cursor, newest) = (self.subscription.cursor(), self.app.broker.watermark());
        self.permit.log_end(format_args!("{end}"), self.subscription.connection(), cursor, newest);
        // In a box, so that connections which are still open do not reserve room for it.
        Box::pin(self.finish(end)).await;
    }

    async fn finish(self: Box<Self>, end: End) {
        let cursor = self.subscription.cursor();
        let closing =
            |code, cursor, retry_ms| wire::control_frame(&Control::Closing { code, cursor, retry_ms });
        let Self { mut socket, app, .. } = *self;
        match end {
            End::Lost(Lost::Gone) | End::Silent => {}
            End::Lost(Lost::Closed) => socket.closed().await,
            End::Lost(Lost::Broken(code)) => socket.fail(code).await,
            End::Unsupported => socket.close(UNSUPPORTED_DATA, "commands are text frames").await,
            End::Lost(Lost::TooSlow) => {
                app.metrics.slow_closes.inc();
                // The cursor is past the frames that are left out.
                let cursor = if socket.leave_out_unbegun() { None } else { Some(cursor) };
                socket.push(closing(Code::TooSlow, cursor, overload_retry_ms()));
                socket.close_slow(Code::TooSlow.close_code(), Code::TooSlow.as_str()).await;
            }
            End::Over(code) => {
                socket.push(closing(code, Some(cursor), retry_ms()));
                socket.close(code.close_code(), code.as_str()).await;
            }
            End::Draining => {
                socket.push(closing(Code::Draining, Some(cursor), retry_ms()));
                socket.close(Code::Draining.close_code(), Code::Draining.as_str()).await;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..BUDGET {
            let Self { lease, subscription, joining, .. } = self;
            if let Poll::Ready(code) = lease.poll(cx, || patterns_of(subscription, joining)) {
                return Poll::Ready(End::Over(code));
            }
            let mut again = match self.poll_commands(cx) {
                Ok(moved) => moved,
                Err(end) => return Poll::Ready(end),
            };
            let was_joining = self.joining.is_some();
            let has_more = self.gather(cx);
            // Commands that waited for the merge can run now.
            again |= was_joining && self.joining.is_none();
            let mut is_behind = false;
            match self.socket.poll_flush(cx) {
                Poll::Ready(Err(lost)) => return Poll::Ready(End::Lost(lost)),
                Poll::Ready(Ok(())) if self.leaving && !again && !has_more && self.is_idle() => {
                    return Poll::Ready(End::Draining);
                }
                Poll::Ready(Ok(())) => {
                    self.gathered_bytes = 0;
                    again |= has_more;
                }
                Poll::Pending => is_behind = true,
            }
            while let Poll::Ready(beat) = self.pulse.poll(cx) {
                again = true;
                match beat {
                    Beat::Leave => self.leaving = true,
                    Beat::End => return Poll::Ready(End::Lost(Lost::Gone)),
                    Beat::Quiet => {
                        let cursor = Control::Cursor { cursor: self.subscription.cursor() };
                        self.socket.push(wire::control_frame(&cursor));
                    }
                    // A ping waits behind frames that the peer has not read yet, and its pong is not read
                    // while too many commands wait.
                    Beat::Heartbeat if is_behind || self.waiting.len() >= MAX_WAITING_COMMANDS => {
                        self.heard_at = Instant::now();
                    }
                    Beat::Heartbeat if self.heard_at.elapsed() >= 2 * self.app.config.heartbeat => {
                        return Poll::Ready(End::Silent);
                    }
                    Beat::Heartbeat => self.socket.ping(),
                }
            }
            if !again {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// True if everything that the client asked for is done.
    fn is_idle(&self) -> bool {
        self.joining.is_none()
            && self.running.is_none()
            && self.waiting.is_empty()
            && !self.subscription.is_reading()
    }

    /// Reads commands from the socket and runs them, one after the other. True if one made progress.
    fn poll_commands(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        let max_queued = MAX_QUEUED_BYTES + self.gathered_bytes;
        while self.waiting.len() < MAX_WAITING_COMMANDS && self.socket.queued_bytes() < max_queued {
            let Poll::Ready(message) = self.socket.poll_message(cx) else { break };
            let message = message.map_err(End::Lost)?;
            moved = true;
            self.heard_at = Instant::now();
            match message {
                Said::Text(text) => self.waiting.push_back(Command::parse(text.as_str().to_owned())),
                Said::Binary(_) => return Err(End::Unsupported),
                Said::Ping(_) | Said::Pong(_) | Said::Close(_) | Said::Frame(_) => {}
            }
        }
        if let Some((reference, running)) = &mut self.running
            && let Poll::Ready(outcome) = running.poll_unpin(cx)
        {
            let reference = reference.take();
            self.running = None;
            self.conclude(reference, outcome);
            moved = true;
        }
        while self.running.is_none()
            && self.joining.is_none()
            && let Some(command) = self.waiting.pop_front()
        {
            self.start(command);
            moved = true;
        }
        Ok(moved)
    }

    fn start(&mut self, Command { reference, action }: Command) {
        match action {
            Action::Ping => self.answer(&reference, Answer::Pong),
            Action::Refused(problem) => self.answer(&reference, Answer::Error(&problem)),
            Action::Auth(token) => match self.renew(&token) {
                Ok(()) => self.answer(&reference, Answer::Authenticated),
                Err(problem) => self.answer(&reference, Answer::Error(&problem)),
            },
            Action::Unsubscribe { pattern } => {
                self.subscription.remove(&pattern);
                let cursor = self.subscription.cursor();
                self.answer(&reference, Answer::Unsubscribed { topic: &pattern, cursor });
            }
            Action::Subscribe { pattern, .. } if self.subscription.reads(&pattern) => {
                let cursor = self.subscription.cursor();
                self.answer(&reference, Answer::Subscribed { topic: &pattern, cursor });
            }
            Action::Subscribe { .. } if self.subscription.width() >= MAX_TOPICS => {
                let problem = Problem::bad_request(format!(
                    "topic: limit reached, a connection reads up to {MAX_TOPICS}"
                ));
                self.answer(&reference, Answer::Error(&problem));
            }
            Action::Subscribe { pattern, .. }
                if pattern.has_wildcard() && self.subscription.wildcards() >= MAX_WILDCARDS =>
            {
                let detail = format!(
                    "topic: limit reached, a connection reads up to {MAX_WILDCARDS} patterns with a wildcard"
                );
                self.answer(&reference, Answer::Error(&Problem::bad_request(detail)));
            }
            Action::Subscribe { pattern, start } => {
                if let Err(problem) = self.lease.access().subscribe(std::slice::from_ref(&pattern)) {
                    return self.answer(&reference, Answer::Error(&problem));
                }
                let connection = self.subscription.connection().clone();
                self.running =
                    Some((reference, command::begin(self.app.clone(), pattern, start, connection)));
            }
            Action::Publish(text) => {
                self.running =
                    Some((reference, command::publish(self.app.clone(), self.lease.access().clone(), text)));
            }
        }
    }

    fn renew(&mut self, token: &str) -> Result<(), Problem> {
        let Self { lease, subscription, joining, .. } = self;
        if lease.access().is_open() {
            return Err(Problem::bad_request("auth: this server requires no credentials"));
        }
        lease.renew(token, patterns_of(subscription, joining))
    }

    fn conclude(&mut self, reference: Reference, outcome: Result<Outcome, Problem>) {
        match outcome {
            Ok(Outcome::Published(published @ Published::Partly { .. })) => {
                self.answer(&reference, Answer::Partly(&published));
            }
            Ok(Outcome::Published(published)) => self.answer(&reference, Answer::Published(&published)),
            Ok(Outcome::Begun(pattern, subscription)) => {
                // The rules may have changed meanwhile.
                if let Err(problem) = self.lease.access().subscribe(std::slice::from_ref(&pattern)) {
                    return self.answer(&reference, Answer::Error(&problem));
                }
                self.joining = Some(Box::new(Joining { reference, pattern, subscription: *subscription }));
            }
            Err(problem) => self.answer(&reference, Answer::Error(&problem)),
        }
    }

    fn answer(&mut self, reference: &Reference, answer: Answer<'_>) {
        if let Answer::Error(problem) = &answer {
            self.app.metrics.refused(problem.code);
        }
        self.pulse.sent();
        self.socket.push(wire::control_frame(&Reply { answer, reference }));
    }

    /// Queues the frames that are ready. True if there are more than may be queued.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        let mut batch = Batch::new(Form::Frames);
        let queued_before = self.socket.queued_bytes();
        let mut has_more = true;
        while has_more && self.socket.queued_bytes() + batch.size() < MAX_QUEUED_BYTES {
            match self.poll_next(cx) {
                Poll::Ready(Next::Message(message)) => batch.push(message),
                Poll::Ready(Next::Frame(frame)) => {
                    batch.take().into_iter().for_each(|frames| self.socket.push(frames));
                    self.socket.push(frame);
                }
                Poll::Pending => has_more = false,
            }
        }
        batch.take().into_iter().for_each(|frames| self.socket.push(frames));
        let bytes = self.socket.queued_bytes() - queued_before;
        if bytes > 0 {
            self.gathered_bytes += bytes;
            self.pulse.sent();
            self.permit.add_up(bytes);
        }
        has_more
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(joining) = &mut self.joining else {
            return self.subscription.poll_delivery(cx).map(|delivery| self.live(delivery));
        };
        match self.subscription.poll_join(&mut joining.subscription, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Join::Live(delivery)) => Poll::Ready(self.live(delivery)),
            Poll::Ready(Join::Replay(delivery)) => Poll::Ready(self.replay(&delivery)),
            Poll::Ready(Join::Level) => {
                let Some(joining) = self.joining.take() else { return Poll::Pending };
                let Joining { reference, pattern, subscription } = *joining;
                self.subscription.absorb(subscription);
                let answer = Answer::Subscribed { topic: &pattern, cursor: self.subscription.cursor() };
                Poll::Ready(Next::Frame(wire::control_frame(&Reply { answer, reference: &reference })))
            }
        }
    }

    fn live(&mut self, delivery: Delivery) -> Next {
        self.permit.note(&delivery, false);
        match delivery {
            Delivery::Message(message) if message.is_ephemeral() => {
                Next::Frame(wire::message_frame(&message))
            }
            Delivery::Message(message) => Next::Message(message),
            Delivery::Gap(gap) => Next::Frame(wire::control_frame(&Control::Gap(&gap))),
        }
    }

    fn replay(&mut self, delivery: &Delivery) -> Next {
        self.permit.note(delivery, true);
        Next::Frame(match delivery {
            Delivery::Message(message) => wire::replay_frame(message),
            Delivery::Gap(gap) => wire::replay_gap_frame(gap),
        })
    }
}

/// The next thing to send.
enum Next {
    /// A message whose bytes other readers may share.
    Message(Arc<Message>),
    /// A frame for this connection alone.
    Frame(Bytes),
}

/// Every pattern that a connection reads, or is about to read.
fn patterns_of<'a>(
    subscription: &'a Subscription,
    joining: &'a Option<Box<Joining>>,
) -> impl Iterator<Item = &'a Pattern> {
    let joined = joining.iter().map(|joining| &joining.pattern);
    subscription.patterns().chain(joined)
}

/// Tells a browser why its handshake is refused, because it cannot see a status.
pub async fn turn_away(mut socket: Socket, problem: Problem) {
    let code = problem.code.close_code();
    socket.push(wire::control_frame(&Reply { answer: Answer::Error(&problem), reference: &None }));
    socket.close(code, problem.code.as_str()).await;
}
