//! Commands on an open WebSocket: a topic is read from its own start while the others wait. A cut during that
//! leaves two positions to resume from.

use std::collections::VecDeque;

use futures_util::future::Either;
use rand::{RngExt, seq::SliceRandom};
use serde_json::json;

use super::{
    super::standing::{Lane, Wrong},
    End, Script, Subscriber,
};
use crate::support::{
    client::{Connection, Transport},
    frame::Frame,
};

/// The commands of a connection that are still due, and the answers that it waits for.
#[derive(Default)]
pub struct Commands {
    /// Sent when this many messages are acknowledged.
    due: Option<(u64, Command)>,
    /// The references of the commands that are not answered yet.
    unanswered: VecDeque<u64>,
    given: u64,
}

#[derive(Debug, Clone)]
enum Command {
    Subscribe(String),
    Unsubscribe(String),
}

impl Subscriber {
    /// Sometimes unsubscribes from a topic for a while, on a connection that stays open.
    pub fn plan_to_unsubscribe(&mut self, transport: Transport, script: &Script) {
        let Some(commands) = &mut self.commands else { return };
        let level = self.standing.filters(Lane::CaughtUp);
        if transport == Transport::WebSocket && !level.is_empty() && self.rng.random_bool(0.6) {
            let filter = level[self.rng.random_range(0..level.len())].clone();
            let at = self.world.truth.acknowledged() + self.rng.random_range(0..script.is_cut_after);
            commands.due = Some((at, Command::Unsubscribe(filter)));
        }
    }

    /// A connection that has ended never answers its open commands.
    pub fn forget_commands(&mut self) {
        if let Some(commands) = &mut self.commands {
            commands.due = None;
            commands.unanswered.clear();
        }
    }

    /// Resolves when a command is due, and never if there is none.
    pub fn command_is_due(&self) -> impl Future<Output = ()> {
        match self.commands.as_ref().and_then(|commands| commands.due.as_ref()) {
            Some((at, _)) => Either::Left(self.world.truth.reaches(*at)),
            None => Either::Right(std::future::pending()),
        }
    }

    pub(super) async fn give_command(&mut self, connection: &mut Connection) -> Result<(), End> {
        let due = self.commands.as_mut().and_then(|commands| commands.due.take());
        match due {
            Some((_, Command::Subscribe(filter))) => self.subscribe(filter, connection).await,
            Some((_, Command::Unsubscribe(topic))) => {
                let reference = self.next_reference();
                self.standing.remember(format!("{reference}: unsubscribe {topic}"));
                let command = json!({"type": "unsubscribe", "topic": topic, "ref": reference});
                Ok(connection.send(&command).await?)
            }
            None => Ok(()),
        }
    }

    /// Subscribes to everything that the request itself could not ask for, because it has its own start.
    pub(super) async fn subscribe_to_the_rest(&mut self, connection: &mut Connection) -> Result<(), End> {
        let mut behind = self.standing.behind();
        behind.shuffle(&mut self.rng);
        for filter in behind {
            self.subscribe(filter, connection).await?;
        }
        Ok(())
    }

    async fn subscribe(&mut self, topic: String, connection: &mut Connection) -> Result<(), End> {
        let Some(start) = self.standing.begin_replay(&topic) else { return Ok(()) };
        let reference = self.next_reference();
        self.standing.remember(format!("{reference}: subscribe {topic} from {start:?}"));
        let mut command = json!({"type": "subscribe", "topic": topic, "ref": reference});
        if let Some((name, value)) = start.parameter() {
            command[name] = value;
        }
        Ok(connection.send(&command).await?)
    }

    fn next_reference(&mut self) -> u64 {
        let commands = self.commands.as_mut().expect("only a subscriber with commands sends one");
        commands.given += 1;
        commands.unanswered.push_back(commands.given);
        commands.given
    }

    /// The server does commands in their order, and each answer repeats the reference of its command.
    pub fn check_answer(&mut self, frame: &Frame) -> Result<(), Wrong> {
        let (Frame::Subscribed(done) | Frame::Unsubscribed(done)) = frame else { return Ok(()) };
        let expected = self.commands.as_mut().and_then(|commands| commands.unanswered.pop_front());
        if expected.is_none() || done.reference != expected {
            return Err(Wrong {
                expected: format!("the answer to the command {expected:?}"),
                came: format!("there came {frame:?}"),
            });
        }
        if let (Frame::Unsubscribed(_), Some(commands)) = (frame, &mut self.commands) {
            let at = self.world.truth.acknowledged() + self.rng.random_range(0..30);
            commands.due = Some((at, Command::Subscribe(done.topic.clone())));
        }
        Ok(())
    }
}
