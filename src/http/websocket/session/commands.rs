//! The commands of one connection: they wait, run one after the other, and are answered in order.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use futures_util::{FutureExt, TryFutureExt, future::BoxFuture};
use tungstenite::Message as Incoming;

use super::{End, MAX_QUEUED_BYTES, Session};
use crate::{
    broker::Present,
    http::{
        App, body,
        identify::{Begun, Identified},
        presence,
        problem::{Code, Problem},
        publish::Published,
        reader::Step,
        shares::Share,
        stall::StallTimer,
        websocket::command::{self, Action, Answer, Command, Outcome, Reference, Reply},
        wire,
    },
    log::Start,
    message::Pattern,
};

/// While this many commands wait for the running one, the socket is not read.
const MAX_WAITING_COMMANDS: usize = 16;
/// The same for this many bytes of waiting commands.
const MAX_WAITING_BYTES: usize = 64 << 10;
/// How many bytes of its commands a connection may hold of its own. Those beyond it are shared.
const OWN_COMMAND_BYTES: usize = 16 << 10;
/// The longest command of a client that may publish nothing. A token fits.
const MAX_OTHER_COMMAND_BYTES: usize = 68 << 10;

/// The commands that are not done.
pub(super) struct Commands {
    /// The client's `ref` of the `subscribe` whose pattern is joining.
    joining: Reference,
    waiting: VecDeque<Command>,
    /// The bytes of the waiting commands, as they came.
    waiting_bytes: usize,
    running: Option<(Reference, BoxFuture<'static, Result<Outcome, Problem>>)>,
    /// The bytes of the running command.
    running_bytes: usize,
    /// The bytes of all these commands, beyond those that the connection may hold of its own.
    unparsed: Share,
    /// Runs while a command has begun to arrive and is not whole, and the socket is read.
    arriving: StallTimer,
}

impl Session {
    pub(super) fn commands(&mut self) -> &mut Commands {
        let Self { app, reader, commands, .. } = self;
        commands.get_or_insert_with(|| {
            let unparsed = app.connections.unparsed(reader.access().payer());
            let arriving = StallTimer::new(app.config.read_timeout);
            let (joining, waiting, waiting_bytes, running, running_bytes) = Default::default();
            Box::new(Commands { joining, waiting, waiting_bytes, running, running_bytes, unparsed, arriving })
        })
    }

    /// The client's `ref` of the `subscribe` whose pattern has just joined, or does not join.
    pub(super) fn take_joining(&mut self) -> Reference {
        self.commands.as_mut()?.joining.take()
    }

    /// True if a command waits or runs.
    pub(super) fn has_commands(&self) -> bool {
        let has_some = |commands: &Commands| commands.running.is_some() || !commands.waiting.is_empty();
        self.commands.as_deref().is_some_and(has_some)
    }

    /// True if one more command may wait.
    pub(super) fn may_wait(&self) -> bool {
        self.commands.as_ref().is_none_or(|commands| {
            commands.waiting.len() < MAX_WAITING_COMMANDS && commands.waiting_bytes < MAX_WAITING_BYTES
        })
    }

    /// Keeps a command until those before it are done.
    fn keep(&mut self, text: &str) {
        let (command, commands) = (Command::parse(text), self.commands());
        commands.arriving.reset();
        commands.waiting_bytes += command.size();
        commands.waiting.push_back(command);
    }

    /// Has this run until its outcome is answered.
    fn begin(&mut self, reference: Reference, running: BoxFuture<'static, Result<Outcome, Problem>>) {
        self.commands().running = Some((reference, running));
    }

    /// Reads commands and runs them, one after the other. True if one made progress.
    pub(super) fn poll_commands(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = self.read_commands(cx)?;
        if let Some(commands) = &mut self.commands
            && let Some((reference, running)) = &mut commands.running
            && let Poll::Ready(outcome) = running.poll_unpin(cx)
        {
            let reference = reference.take();
            (commands.running, commands.running_bytes) = (None, 0);
            self.conclude(reference, outcome);
            moved = true;
        }
        while let Some(command) = self.next_command() {
            self.start(command);
            moved = true;
        }
        let arriving = self.socket.command_bytes();
        if self.commands.is_none() && arriving <= OWN_COMMAND_BYTES {
            return Ok(moved);
        }
        let commands = self.commands();
        let held = arriving + commands.waiting_bytes + commands.running_bytes;
        if !commands.unparsed.set(held.saturating_sub(OWN_COMMAND_BYTES)) {
            return Err(End::Refused(body::too_many_bytes().into()));
        }
        // A quiet connection keeps no room for commands.
        if held == 0 && commands.joining.is_none() && !self.has_commands() && self.socket.framing().is_whole()
        {
            self.commands = None;
        }
        Ok(moved)
    }

    /// Takes out the command that may begin now.
    fn next_command(&mut self) -> Option<Command> {
        let commands = self.commands.as_mut().filter(|commands| commands.running.is_none())?;
        // Only a command that waits is a reason to ask the reader, which takes a lock.
        if commands.waiting.is_empty() || self.reader.is_joining() {
            return None;
        }
        let command = commands.waiting.pop_front()?;
        commands.waiting_bytes -= command.size();
        Some(command)
    }

    /// Reads commands from the socket while they may wait. True if a frame came.
    fn read_commands(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        self.set_limit();
        let max_queued = MAX_QUEUED_BYTES + self.gathered_bytes;
        while self.may_wait() && self.socket.queued_bytes() < max_queued {
            let Poll::Ready(message) = self.socket.poll_message(cx) else {
                return self.poll_arriving(cx).map(|()| moved);
            };
            let message = message.map_err(End::Lost)?;
            moved = true;
            self.silent_beats = 0;
            match message {
                Incoming::Text(text) => self.keep(text.as_str()),
                Incoming::Binary(_) => return Err(End::Unsupported),
                Incoming::Ping(_) | Incoming::Pong(_) | Incoming::Close(_) | Incoming::Frame(_) => {}
            }
        }
        // Not read now, so its timer is not asked: this time is not the client's.
        Ok(moved)
    }

    /// Ends the connection if a command has begun to arrive and was not whole in time. Everything that has arrived was
    /// read before.
    fn poll_arriving(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if self.socket.framing().is_whole() {
            self.commands.iter_mut().for_each(|commands| commands.arriving.reset());
        } else if self.commands().arriving.poll(cx).is_ready() {
            let detail = "the command did not arrive whole within the read timeout; send it again";
            return Err(End::Refused(Problem::new(Code::TimedOut, detail).into()));
        }
        Ok(())
    }

    /// Sets the size of the commands that the client may send, if its grants have changed.
    fn set_limit(&mut self) {
        let might_publish = self.reader.access().might_publish();
        if self.might_publish != might_publish {
            self.might_publish = might_publish;
            self.socket.limit(max_command_bytes(&self.app, might_publish));
        }
    }

    fn start(&mut self, Command { reference, action }: Command) {
        match action {
            Action::Ping => self.answer(&reference, Answer::Pong),
            Action::Refused(problem) => self.answer(&reference, Answer::Error(&problem)),
            Action::Auth(token) => match self.reader.begin_renewal(&token) {
                Begun::Done(identified) => self.renew(&reference, identified),
                Begun::Waits(wait) => {
                    let wait = wait.map_ok(|identified| Outcome::Identified(Box::new(identified)));
                    self.begin(reference, wait.boxed());
                }
            },
            Action::Unsubscribe { pattern } => {
                self.reader.remove(&pattern);
                let cursor = self.reader.cursor();
                self.answer(&reference, Answer::Unsubscribed { topic: &pattern, cursor });
            }
            Action::Subscribe { pattern, start, presence } => match self.present_in(&pattern, presence) {
                Ok(present) => self.subscribe(reference, pattern, start, present),
                Err(problem) => self.answer(&reference, Answer::Error(&problem)),
            },
            Action::Publish(text) => {
                self.commands().running_bytes = text.len();
                self.begin(reference, command::publish(self.app.clone(), self.reader.access().clone(), text));
            }
        }
    }

    /// A connection that can make the subject present in this topic, unless it is not asked for, or is there already.
    fn present_in(&self, pattern: &Pattern, is_asked: bool) -> Result<Option<Present>, Problem> {
        let present = self.app.present_as(self.reader.access(), is_asked)?;
        let counts = present.is_some() && !presence::topics([pattern])?.is_empty();
        Ok(present.filter(|_| counts && !self.reader.is_present(pattern)))
    }

    fn subscribe(&mut self, reference: Reference, pattern: Pattern, start: Start, present: Option<Present>) {
        match (self.reader.ask_for(&pattern), present) {
            (Ok(Step::MayBegin), present) => {
                let connection = self.reader.connection().clone();
                let begun = command::begin(self.app.clone(), pattern, start, connection, present);
                self.begin(reference, begun);
            }
            (Ok(_), Some(present)) => {
                self.begin(reference, command::enter(pattern, start, present));
            }
            (Ok(Step::IsRead), None) => self.answer_subscribed(&reference, &pattern),
            (Ok(Step::Joins), None) => self.commands().joining = reference,
            (Err(problem), _) => self.answer(&reference, Answer::Error(&problem)),
        }
    }

    fn conclude(&mut self, reference: Reference, outcome: Result<Outcome, Problem>) {
        match outcome {
            Ok(Outcome::Published(published @ Published::Partly { .. })) => {
                self.answer(&reference, Answer::Partly(&published));
            }
            Ok(Outcome::Identified(identified)) => self.renew(&reference, Ok(*identified)),
            Ok(Outcome::Published(published)) => self.answer(&reference, Answer::Published(&published)),
            Ok(Outcome::Entered(pattern, start, present)) => {
                // A command may have removed the topic meanwhile. Then it is read anew.
                let present = self.reader.be_present(&pattern, *present);
                self.subscribe(reference, pattern, start, present);
            }
            Ok(Outcome::Begun(pattern, subscription, present)) => {
                let joined = self.reader.join(pattern.clone(), *subscription);
                // The topic may be read because of the list alone.
                if joined.is_ok() {
                    drop(present.and_then(|present| self.reader.be_present(&pattern, *present)));
                }
                match joined {
                    Ok(Step::IsRead) => self.answer_subscribed(&reference, &pattern),
                    Ok(_) => self.commands().joining = reference,
                    Err(problem) => {
                        self.reader.not_added();
                        self.answer(&reference, Answer::Error(&problem));
                    }
                }
            }
            Err(problem) => {
                self.reader.not_added();
                self.answer(&reference, Answer::Error(&problem));
            }
        }
    }

    /// Continues with a new token, if it can.
    fn renew(&mut self, reference: &Reference, identified: Result<Identified, Problem>) {
        match identified.and_then(|identified| self.reader.renew(identified)) {
            Ok(()) => {
                self.set_limit();
                let access = self.reader.access();
                let (sub, expires_in_ms) = (access.subject().cloned(), access.expires_in_ms());
                self.answer(reference, Answer::Authenticated { sub: sub.as_deref(), expires_in_ms });
            }
            Err(problem) => self.answer(reference, Answer::Error(&problem)),
        }
    }

    fn answer_subscribed(&mut self, reference: &Reference, topic: &Pattern) {
        let cursor = self.reader.cursor();
        self.answer(reference, Answer::Subscribed { topic, cursor });
    }

    fn answer(&mut self, reference: &Reference, answer: Answer<'_>) {
        if let Answer::Error(problem) = &answer {
            self.refused(problem);
        }
        self.reader.sent();
        self.push(wire::control_frame(&Reply { answer, reference }));
    }

    pub(super) fn refused(&self, problem: &Problem) {
        self.app.refused(problem.code, &problem.detail, self.reader.access().client(), "WebSocket command");
    }
}

/// The size of the commands that a client may send. Only a message to publish is long.
pub(super) fn max_command_bytes(app: &App, might_publish: bool) -> usize {
    if might_publish { app.config.max_command_bytes() } else { MAX_OTHER_COMMAND_BYTES }
}
