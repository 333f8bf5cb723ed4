//! A WebSocket that reads topics: commands in, frames out.

mod commands;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

use self::commands::{Commands, max_command_bytes};
use super::{
    command::{Answer, Reply},
    end::End,
    socket::{Lost, Socket},
};
use crate::{
    broker::Delivery,
    http::{
        App,
        batch::Batch,
        live::Event,
        problem::{Code, Problem, UNSUPPORTED_DATA},
        pulse::{overload_retry_ms, retry_ms},
        reader::{Next, Reader},
        refusal::of_end,
        wire::{self, By, Control},
    },
};

/// The log is read only while fewer bytes than this wait to be written. Commands are read only while their
/// answers stay below the same limit.
const MAX_QUEUED_BYTES: usize = 64 << 10;
/// After this many heartbeats without a word the peer is gone: it had one heartbeat to answer a ping.
const MAX_SILENT_BEATS: u32 = 2;
/// How many rounds one poll makes before other tasks may run.
const BUDGET: usize = 256;

/// One connection, from its `open` to its close.
pub struct Session {
    app: Arc<App>,
    socket: Socket,
    reader: Reader,
    /// `None` while there are no commands: most connections rarely have one.
    commands: Option<Box<Commands>>,
    /// True if the client might publish when the size of its commands was last set.
    might_publish: bool,
    /// How many heartbeats have passed since the client last sent something. It is 0 while the client has
    /// frames to read, or while too many of its commands wait.
    silent_beats: u32,
    /// The socket did not take everything the last time.
    has_unsent_bytes: bool,
    /// How many bytes were gathered since the socket last took everything.
    gathered_bytes: usize,
}

impl Session {
    pub fn new(app: Arc<App>, mut socket: Socket, reader: Reader) -> Self {
        let might_publish = reader.access().might_publish();
        socket.limit(max_command_bytes(&app, might_publish));
        Self {
            app,
            socket,
            reader,
            commands: None,
            might_publish,
            silent_beats: 0,
            has_unsent_bytes: false,
            gathered_bytes: 0,
        }
    }

    /// Serves the connection until it ends.
    ///
    /// # Cancel safety
    /// Dropping this drops the connection without a close.
    pub async fn run(mut self: Box<Self>) {
        let open = wire::control_frame(&self.reader.open());
        self.push(open);
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        self.reader.log_end(format_args!("{end}"), end.close_code());
        // In a box, so that open connections need no memory for it.
        Box::pin(self.finish(end)).await;
    }

    async fn finish(self: Box<Self>, end: End) {
        let (cursor, client) = (self.reader.cursor(), self.reader.access().client());
        let closing = |Problem { code, detail, .. }: &Problem, cursor, retry_ms| {
            wire::control_frame(&Control::Closing { code: *code, detail, cursor, retry_ms })
        };
        let Self { mut socket, app, reader, commands, .. } = *self;
        // From now on commands find no connection, however long the client takes to leave. Its place is taken until then.
        reader.leave();
        // These commands are not executed any more.
        drop(commands);
        match end {
            End::Lost(Lost::Gone) | End::GraceOver => {}
            End::Silent => app.metrics.slow_closes.inc(),
            End::Lost(Lost::Closed) => socket.closed().await,
            End::Lost(Lost::Broken(code)) => socket.fail(code).await,
            End::Unsupported => {
                socket.close(UNSUPPORTED_DATA, "binary frame received; send commands as text frames").await
            }
            End::Lost(Lost::TooSlow) => {
                app.metrics.slow_closes.inc();
                // The cursor is past the frames that are left out.
                let cursor = if socket.leave_out_unbegun() { None } else { Some(cursor) };
                let problem = of_end(Code::TooSlow);
                reader.tell_end(&problem);
                socket.push(closing(&problem, cursor, overload_retry_ms()));
                socket.close_slow(Code::TooSlow.close_code(), Code::TooSlow.as_str()).await;
            }
            End::Ended(problem) => {
                reader.tell_end(&problem);
                socket.push(closing(&problem, Some(cursor), retry_ms()));
                socket.close(problem.code.close_code(), problem.code.as_str()).await;
            }
            End::Refused(problem) => {
                app.refused(problem.code, &problem.detail, client, "WebSocket command");
                socket.push(closing(&problem, Some(cursor), overload_retry_ms()));
                socket.close(problem.code.close_code(), problem.code.as_str()).await;
            }
            End::Draining => {
                socket.push(closing(&of_end(Code::Draining), Some(cursor), retry_ms()));
                socket.close(Code::Draining.close_code(), Code::Draining.as_str()).await;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some((rest, _)) = self.reader.take_over()
            && !rest.is_empty()
        {
            self.socket.push_begun(rest);
        }
        for _ in 0..BUDGET {
            let has_more = match self.gather(cx) {
                Ok(has_more) => has_more,
                Err(end) => return Poll::Ready(end),
            };
            let mut again = match self.poll_commands(cx) {
                Ok(moved) => moved,
                Err(end) => return Poll::Ready(end),
            };
            // Check this after the socket was read. If this process was stopped for a while, the pong may already
            // be there.
            if self.silent_beats >= MAX_SILENT_BEATS {
                return Poll::Ready(End::Silent);
            }
            let flushed = self.socket.poll_flush(cx);
            self.has_unsent_bytes = flushed.is_pending();
            match flushed {
                Poll::Ready(Err(lost)) => return Poll::Ready(End::Lost(lost)),
                Poll::Ready(Ok(())) if !again && !has_more && self.has_drained() => {
                    return Poll::Ready(End::Draining);
                }
                Poll::Ready(Ok(())) => {
                    self.gathered_bytes = 0;
                    again |= has_more;
                }
                Poll::Pending => {}
            }
            if !again {
                self.park(cx);
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Lets a group read for this connection, if it has nothing else to do.
    fn park(&mut self, cx: &Context<'_>) {
        // TLS may hold back bytes also while nothing is queued.
        let has_written = self.socket.queued_bytes() == 0 && !self.has_unsent_bytes;
        if has_written
            && !self.has_commands()
            && let Some(socket) = self.socket.shared()
        {
            self.reader.park(cx, &self.app.groups, self.socket.form(), socket);
        }
    }

    /// True if the server drains, it is this connection's turn, and everything that the client asked for is done.
    fn has_drained(&self) -> bool {
        self.reader.may_leave() && !self.has_commands()
    }

    /// Pings the client.
    ///
    /// This counts heartbeats and does not measure time. If this process is stopped for a while, only one
    /// heartbeat passes, and the client is not blamed for pings that were never sent.
    fn beat(&mut self) {
        // A ping waits behind frames that the client has not read yet. A pong is not read while too many
        // commands wait.
        if self.has_unsent_bytes || !self.may_wait() {
            self.silent_beats = 0;
        } else {
            self.silent_beats += 1;
            self.socket.ping();
        }
    }

    /// Queues a frame that is no part of the subscription.
    fn push(&mut self, frame: Bytes) {
        self.count(frame.len());
        self.socket.push(frame);
    }

    fn count(&self, bytes: usize) {
        if let Some(record) = self.reader.access().record() {
            record.count(bytes);
        }
    }

    /// Queues the frames that are ready. True if there are more than may be queued.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut batch = Batch::new(self.socket.form());
        let queued_before = self.socket.queued_bytes();
        let gathered = self.gather_into(&mut batch, cx);
        // Push the batch even if the session ends now, because the cursor is already past its messages.
        self.push_batch(&mut batch);
        let bytes = self.socket.queued_bytes() - queued_before;
        if bytes > 0 {
            self.gathered_bytes += bytes;
            self.reader.add_up(bytes);
            self.count(bytes);
        }
        gathered
    }

    fn gather_into(&mut self, batch: &mut Batch, cx: &mut Context<'_>) -> Result<bool, End> {
        loop {
            let has_room = self.socket.queued_bytes() + batch.size() < MAX_QUEUED_BYTES;
            let Poll::Ready(next) = self.reader.poll(cx, has_room) else { return Ok(!has_room) };
            let frame = match next {
                Next::Event(Event::Delivery(Delivery::Message(message))) if !message.is_ephemeral() => {
                    batch.push(message);
                    continue;
                }
                Next::Heartbeat => {
                    self.beat();
                    continue;
                }
                Next::Ended(problem) => return Err(End::Ended(problem)),
                Next::Event(Event::Ended(code)) => return Err(End::Ended(of_end(code).into())),
                Next::GraceOver => return Err(End::GraceOver),
                Next::Quiet => wire::control_frame(&Control::Cursor { cursor: self.reader.cursor() }),
                Next::Event(event) => self.render(event),
            };
            self.push_batch(batch);
            self.socket.push(frame);
        }
    }

    /// The frame of an event that other readers have in no such form.
    fn render(&mut self, event: Event) -> Bytes {
        let (cursor, by) = (self.reader.cursor(), By::Server);
        match event {
            Event::Delivery(Delivery::Message(message)) => self.socket.form().encode(&message, cursor).bytes,
            Event::Delivery(Delivery::Gap(gap)) => wire::control_frame(&Control::Gap(&gap)),
            Event::Replay(pattern, Delivery::Message(message)) => wire::replay_frame(&message, &pattern),
            Event::Replay(pattern, Delivery::Gap(gap)) => wire::replay_gap_frame(&gap, &pattern),
            Event::Joined(pattern) => {
                let answer = Answer::Subscribed { topic: &pattern, cursor };
                wire::control_frame(&Reply { answer, reference: &self.take_joining() })
            }
            Event::Overtaken(pattern) => {
                let detail = "the backend has removed this topic before it was added; ask the backend if you may read it";
                let problem = Problem::new(Code::Conflict, detail).about(&pattern);
                self.refused(&problem);
                let answer = Answer::Error(&problem);
                wire::control_frame(&Reply { answer, reference: &self.take_joining() })
            }
            Event::Added(topic) => wire::control_frame(&Control::Subscribed { topic: &topic, cursor, by }),
            Event::Removed(topic) => {
                wire::control_frame(&Control::Unsubscribed { topic: &topic, cursor, by })
            }
            Event::Ended(code) => {
                let Problem { code, detail, .. } = &of_end(code);
                let (cursor, retry_ms) = (Some(cursor), retry_ms());
                wire::control_frame(&Control::Closing { code: *code, detail, cursor, retry_ms })
            }
        }
    }

    fn push_batch(&mut self, batch: &mut Batch) {
        batch.take().into_iter().for_each(|frames| self.socket.push(frames.bytes));
    }
}

/// Tells a browser why its handshake is refused, because it cannot see a status.
pub async fn turn_away(mut socket: Socket, problem: Problem) {
    let code = problem.code.close_code();
    socket.push(wire::control_frame(&Reply { answer: Answer::Error(&problem), reference: &None }));
    socket.close(code, problem.code.as_str()).await;
}
