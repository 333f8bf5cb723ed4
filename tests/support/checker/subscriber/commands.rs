//! Subscribing by commands on a WebSocket that lives: a topic is read from a start of its own while the
//! others wait, and a cut in the midst of that leaves two places to come back to.

use std::collections::VecDeque;

use futures_util::future::Either;
use rand::{Rng, seq::SliceRandom};
use serde_json::json;

use super::{
    super::standing::{Lane, Wrong},
    End, Script, Subscriber,
};
use crate::support::{
    client::{Connection, Transport},
    frame::Frame,
};

/// What a connection still has to say, and what it waits to hear.
#[derive(Default)]
pub struct Commands {
    /// Given when so many messages are acknowledged.
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
    /// Now and then a topic is left for a while on a connection that goes on.
    pub fn plan_to_unsubscribe(&mut self, transport: Transport, script: &Script) {
        let Some(commands) = &mut self.commands else { return };
        let level = self.standing.filters(Lane::Level);
        if transport == Transport::WebSocket && !level.is_empty() && self.rng.random_bool(0.6) {
            let filter = level[self.rng.random_range(0..level.len())].clone();
            let at = self.world.truth.acknowledged() + self.rng.random_range(0..script.is_cut_after);
            commands.due = Some((at, Command::Unsubscribe(filter)));
        }
    }

    /// What was not answered on a connection that is over never will be.
    pub fn forget_commands(&mut self) {
        if let Some(commands) = &mut self.commands {
            commands.due = None;
            commands.unanswered.clear();
        }
    }

    /// Resolves when there is a command to give, and never if there is none.
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

    /// Asks for everything that the request itself could not, since it has starts of its own.
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
        let commands = self.commands.as_mut().expect("only who has commands gives one");
        commands.given += 1;
        commands.unanswered.push_back(commands.given);
        commands.given
    }

    /// Commands are done in their order, and each answer repeats the reference of its command.
    pub fn heed_answer(&mut self, frame: &Frame) -> Result<(), Wrong> {
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
