//! A subscriber's life: connect on some transport from where it stands, read, be cut, stay away, come back
//! on another. At the end it reads what is left, and makes sure that nothing more comes.

mod commands;
mod draw;

use std::{convert::Infallible, future::pending, mem, net::SocketAddr, sync::Arc, time::Duration};

use rand::rngs::StdRng;

use self::{commands::Commands, draw::Script};
use super::{
    Trouble, World,
    standing::{Lane, Place, Sitting, Standing, Wrong},
    tally::Cut,
};
use crate::support::{
    client::{Connection, Start, Stop, Transport, Wish},
    cutter::{Order, Wire},
    frame::{Cursor, Frame},
};

/// How long to stay away from a server that has turned a request away.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

pub struct Subscriber {
    world: Arc<World>,
    number: usize,
    rng: StdRng,
    standing: Standing,
    /// Where it starts while it has no cursor.
    start: Start,
    /// It subscribes by commands on a WebSocket, and so has topics with a start of their own.
    commands: Option<Commands>,
    /// On which transport the cursor was obtained.
    cursor_from: Option<Transport>,
    /// The connection to come is the last one.
    is_about_to_settle: bool,
}

/// How a connection came to its end.
enum End {
    Over(Over),
    Wrong(Wrong),
    HasEverything,
}

#[derive(Default)]
struct Over {
    reason: String,
    /// The client held the beginning of a frame.
    inside_a_frame: bool,
    frames: usize,
    how: How,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Without a word.
    #[default]
    Gone,
    /// The server said so.
    Closed,
    /// A request was turned away; a poll makes many.
    Refused,
}

impl Over {
    /// A connection that was open goes on, but one of its commands may fail.
    fn is_turned_away(&self) -> bool {
        match self.how {
            How::Gone => false,
            How::Closed => self.frames == 0 || self.reason.contains(r#""type":"error""#),
            How::Refused => true,
        }
    }
}

impl From<Wrong> for End {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Ended(reason) => Self::Over(Over { reason, ..Over::default() }),
            Stop::Closed(reason) => Self::Over(Over { reason, how: How::Closed, ..Over::default() }),
            Stop::Refused(reason) => Self::Over(Over { reason, how: How::Refused, ..Over::default() }),
            Stop::Wrong(came) => Self::Wrong(Wrong { expected: "what the contract allows".to_owned(), came }),
        }
    }
}

impl Subscriber {
    /// # Errors
    /// The first thing that came and should not have, in full sentences.
    pub async fn live(mut self) -> Result<Standing, String> {
        match self.be_cut_and_come_back().await {
            Ok(()) => Ok(self.standing),
            Err(wrong) => Err(self.report(&wrong)),
        }
    }

    async fn be_cut_and_come_back(&mut self) -> Result<(), Wrong> {
        for session in 1..=self.world.plan.sessions {
            let script = Script::draw(self.world.plan.retention, &mut self.rng);
            let transport = self.draw_transport();
            self.standing.now = Place::new(session, transport);
            self.note("stays away for a while");
            self.world.truth.grows_by(script.stays_away_for).await;
            self.sit_and_be_cut(transport, &script).await?;
        }
        self.settle_and_read_to_the_end().await?;
        self.look_once_more().await?;
        self.world.is_done(&self.standing.name);
        Ok(())
    }

    /// One connection through the cutter, from the request to the cut.
    async fn sit_and_be_cut(&mut self, transport: Transport, script: &Script) -> Result<(), Wrong> {
        let wire = Wire::to(self.world.server(&mut self.rng), script.breakage).expect("a free port");
        let wish = self.draw_wish(transport);
        self.plan_to_unsubscribe(transport, script);
        let horizons = self.horizons();
        let world = self.world.clone();
        let end = tokio::select! {
            end = self.sit(wire.addr, &wish) => end,
            never = conduct(&world, &wire, script) => match never {},
        };
        match end {
            End::Over(over) if wire.was_cut() => self.count_cut(&over, &horizons),
            end => self.put_up_with(end).await?,
        }
        self.standing.lose_connection();
        self.forget_commands();
        Ok(())
    }

    /// A connection that nobody cut ends when everything has come, and not sooner, unless the server is troubled.
    async fn put_up_with(&self, end: End) -> Result<(), Wrong> {
        let (tally, trouble) = (&self.world.tally, self.world.plan.trouble);
        match end {
            End::Over(over) if over.is_turned_away() && trouble != Trouble::None => tally.refuse(),
            End::Over(_) if trouble == Trouble::Ends => tally.end(),
            end => return complete(end),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
        Ok(())
    }

    /// A last connection, straight to the server. The last messages are published only when it is open, so
    /// they must come by themselves: no cut and no heartbeat makes anybody look again.
    async fn settle_and_read_to_the_end(&mut self) -> Result<(), Wrong> {
        let transport = self.last_transport();
        self.is_about_to_settle = true;
        let mut session = self.world.plan.sessions;
        loop {
            session += 1;
            self.standing.now = Place::new(session, transport);
            let transport = if self.standing.is_level() { transport } else { Transport::WebSocket };
            let wish = self.draw_wish(transport);
            let server = self.world.server(&mut self.rng);
            match self.sit(server, &wish).await {
                End::HasEverything => return Ok(()),
                end => self.put_up_with(end).await?,
            }
            self.standing.lose_connection();
            self.forget_commands();
        }
    }

    /// Whoever has everything is given nothing more, and is told of no gap.
    async fn look_once_more(&mut self) -> Result<(), Wrong> {
        let transport = Transport::Poll;
        self.standing.now = Place::new(usize::MAX, transport);
        let mut wish = self.draw_wish(transport);
        wish.manner.wait_s = 0;
        self.note("looks once more");
        let had = (self.standing.given.len(), self.standing.gaps.len());
        loop {
            let mut sitting = Sitting { start: wish.start, newest_before: 0, is_open: false };
            let server = self.world.server(&mut self.rng);
            let taken = match Connection::open(server, &wish).await {
                Ok(mut connection) => self.step(&mut connection, &wish, &mut sitting).await,
                Err(stop) => Err(stop.into()),
            };
            match taken {
                Ok(()) => break,
                Err(end) => self.put_up_with(end).await?,
            }
        }
        match had == (self.standing.given.len(), self.standing.gaps.len()) {
            true => Ok(()),
            false => Err(Wrong {
                expected: "nothing, after everything".to_owned(),
                came: "the last poll found more".to_owned(),
            }),
        }
    }

    /// Reads until the connection is over, or everything there will ever be has come.
    async fn sit(&mut self, addr: SocketAddr, wish: &Wish) -> End {
        let newest_before = self.world.truth.newest("**");
        let mut sitting = Sitting { start: wish.start, newest_before, is_open: false };
        let mut connection = match Connection::open(addr, wish).await {
            Ok(connection) => connection,
            Err(stop) => return stop.into(),
        };
        let mut frames = 0;
        while !self.has_everything() {
            self.note("waits for the next frame");
            match self.step(&mut connection, wish, &mut sitting).await {
                Ok(()) => frames += 1,
                Err(End::Over(over)) => {
                    let inside_a_frame = connection.is_inside_a_frame();
                    return End::Over(Over { frames, inside_a_frame, ..over });
                }
                Err(end) => return end,
            }
        }
        End::HasEverything
    }

    /// Takes one frame, or gives the command that is due.
    async fn step(
        &mut self,
        connection: &mut Connection,
        wish: &Wish,
        sitting: &mut Sitting,
    ) -> Result<(), End> {
        let frame = tokio::select! {
            frame = connection.next() => frame?,
            () = self.command_is_due() => return self.give_command(connection).await,
            // Whether there is anything left to wait for is to be asked again.
            () = self.world.truth.is_closed(), if !self.world.truth.has_closed() => return Ok(()),
        };
        if let (Frame::Refusal(came), true) = (&frame, self.world.plan.trouble != Trouble::None) {
            // Whoever is told that one command failed may as well come back.
            return Err(End::Over(Over { reason: came.clone(), how: How::Closed, ..Over::default() }));
        }
        let is_first = !sitting.is_open;
        self.heed_answer(&frame)?;
        self.standing.take(frame, &self.world.truth.started(), sitting)?;
        if is_first {
            self.count_hop(wish);
            self.subscribe_to_the_rest(connection).await?;
            if mem::take(&mut self.is_about_to_settle) {
                self.world.restless.send_modify(|restless| *restless -= 1);
            }
        }
        self.cursor_from = Some(wish.transport);
        Ok(())
    }

    /// Whether nothing will ever come again, because all that was published has.
    fn has_everything(&self) -> bool {
        let truth = &self.world.truth;
        let standing = &self.standing;
        let is_read = |entry| standing.position(entry) >= truth.newest(&entry.filter);
        truth.has_closed() && standing.is_level() && standing.entries.iter().all(is_read)
    }

    /// For each topic or pattern, the newest message that is older than the connection about to be made.
    fn horizons(&self) -> Vec<Cursor> {
        self.standing.entries.iter().map(|entry| self.world.truth.newest(&entry.filter)).collect()
    }

    fn count_cut(&self, over: &Over, horizons: &[Cursor]) {
        let Place { transport, .. } = self.standing.now;
        let tally = &self.world.tally;
        match over {
            Over { inside_a_frame: true, .. } => tally.cut(transport, Cut::InsideFrame),
            Over { frames: 0, .. } => return tally.cut_before_a_frame(),
            _ => tally.cut(transport, Cut::BetweenFrames),
        }
        let entries = &self.standing.entries;
        if entries.iter().zip(horizons).any(|(entry, &horizon)| self.standing.position(entry) < horizon) {
            tally.cut(transport, Cut::DuringReplay);
        }
        if entries.iter().any(|entry| matches!(entry.lane, Lane::Replaying(_))) {
            tally.cut_before_subscribed();
        }
    }

    fn count_hop(&self, wish: &Wish) {
        if let (Some(from), Start::After(_)) = (self.cursor_from, wish.start) {
            self.world.tally.hop(from, wish.transport);
        }
    }

    fn note(&self, what: &str) {
        let Standing { name, now, cursor, .. } = &self.standing;
        self.world
            .note(name, format!("session {}, {}, cursor {cursor:?}: {what}", now.session, now.transport));
    }

    fn report(&self, wrong: &Wrong) -> String {
        let standing = &self.standing;
        let Place { session, transport, .. } = standing.now;
        let lanes: Vec<_> = standing.entries.iter().map(|entry| (&entry.filter, entry.lane)).collect();
        format!(
            "{}, session {session} on {transport}, cursor {:?}, {lanes:?}: {wrong}\n  before that:{}",
            standing.name,
            standing.cursor,
            standing.recent(),
        )
    }
}

/// A connection that nobody cut ends when everything has come, and not sooner.
fn complete(end: End) -> Result<(), Wrong> {
    match end {
        End::HasEverything => Ok(()),
        End::Wrong(wrong) => Err(wrong),
        End::Over(Over { reason, .. }) => Err(Wrong {
            expected: "a connection that lasts".to_owned(),
            came: format!("it ended, though nobody cut it: {reason}"),
        }),
    }
}

/// Lets happen to a connection what was drawn for it. The reader ends first, so this has no end.
async fn conduct(world: &World, wire: &Wire, script: &Script) -> Infallible {
    let begin = world.truth.acknowledged();
    world.truth.reaches(begin + script.stall_ends_after).await;
    wire.order(Order::Flow);
    world.truth.reaches(begin + script.is_cut_after).await;
    wire.order(Order::Cut);
    pending().await
}
