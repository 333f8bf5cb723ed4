//! The life of a subscriber: it connects on some transport, reads, is cut off, stays away, and reconnects on
//! another transport. At the end it reads the rest, and checks that nothing more comes.

mod commands;
mod draw;

use std::{convert::Infallible, future::pending, mem, net::SocketAddr, sync::Arc, time::Duration};

use rand::rngs::StdRng;

use self::{commands::Commands, draw::Script};
use super::{
    Trouble, World,
    standing::{Lane, Place, Session, Standing, Wrong},
    tally::Cut,
};
use crate::support::{
    client::{Connection, Start, Stop, Transport, Wish},
    cutter::{Order, Wire},
    frame::{Cursor, Frame},
};

/// How long to stay away from a server that has refused a request.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

pub struct Subscriber {
    world: Arc<World>,
    number: usize,
    rng: StdRng,
    standing: Standing,
    /// Its start as long as it has no cursor.
    start: Start,
    /// The commands, if it subscribes by commands on a WebSocket. Then topics have their own starts.
    commands: Option<Commands>,
    /// The transport that gave the cursor.
    cursor_from: Option<Transport>,
    /// True if the next connection is the last one.
    is_last_connection: bool,
}

/// How a connection ended.
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
    /// The connection ended without a reason.
    #[default]
    Gone,
    /// The server gave a reason.
    Closed,
    /// The server refused a request; a poll makes many requests.
    Refused,
}

impl Over {
    /// True if the server refused a request. An open connection stays, but one of its commands may fail.
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
            Stop::Wrong(came) => {
                Self::Wrong(Wrong { expected: "a frame that the contract allows".to_owned(), came })
            }
        }
    }
}

impl Subscriber {
    /// # Errors
    /// The first broken promise, in full sentences.
    pub async fn live(mut self) -> Result<Standing, String> {
        match self.read_through_cuts().await {
            Ok(()) => Ok(self.standing),
            Err(wrong) => Err(self.report(&wrong)),
        }
    }

    async fn read_through_cuts(&mut self) -> Result<(), Wrong> {
        for session in 1..=self.world.plan.sessions {
            let script = Script::draw(self.world.plan.retention, &mut self.rng);
            let transport = self.draw_transport();
            self.standing.now = Place::new(session, transport);
            self.note("stays away for a while");
            self.world.truth.grows_by(script.stays_away_for).await;
            self.read_until_cut(transport, &script).await?;
        }
        self.read_to_the_end().await?;
        self.check_nothing_more().await?;
        self.world.is_done(&self.standing.name);
        Ok(())
    }

    /// One connection through the cutter, from the request to the cut.
    async fn read_until_cut(&mut self, transport: Transport, script: &Script) -> Result<(), Wrong> {
        let wire = Wire::to(self.world.server(&mut self.rng), script.breakage).expect("a free port");
        let wish = self.draw_wish(transport);
        self.plan_to_unsubscribe(transport, script);
        let horizons = self.horizons();
        let world = self.world.clone();
        let end = tokio::select! {
            end = self.read_connection(wire.addr, &wish) => end,
            never = run_script(&world, &wire, script) => match never {},
        };
        match end {
            End::Over(over) if wire.was_cut() => self.count_cut(&over, &horizons),
            end => self.check_end(end).await?,
        }
        self.standing.lose_connection();
        self.forget_commands();
        Ok(())
    }

    /// Checks the end of a connection that was not cut: it may end only when everything has come, unless the
    /// server is in trouble.
    async fn check_end(&self, end: End) -> Result<(), Wrong> {
        let (tally, trouble) = (&self.world.tally, self.world.plan.trouble);
        match end {
            End::Over(over) if over.is_turned_away() && trouble != Trouble::None => tally.refuse(),
            End::Over(_) if trouble == Trouble::Ends => tally.end(),
            end => return check_complete(end),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
        Ok(())
    }

    /// The last connection goes directly to the server. The last messages are published only after it is
    /// open, so they must come by themselves: no cut and no heartbeat wakes the subscriber.
    async fn read_to_the_end(&mut self) -> Result<(), Wrong> {
        let transport = self.last_transport();
        self.is_last_connection = true;
        let mut session = self.world.plan.sessions;
        loop {
            session += 1;
            self.standing.now = Place::new(session, transport);
            let transport = if self.standing.is_caught_up() { transport } else { Transport::WebSocket };
            let wish = self.draw_wish(transport);
            let server = self.world.server(&mut self.rng);
            match self.read_connection(server, &wish).await {
                End::HasEverything => return Ok(()),
                end => self.check_end(end).await?,
            }
            self.standing.lose_connection();
            self.forget_commands();
        }
    }

    /// A client that has everything gets nothing more, and no gap.
    async fn check_nothing_more(&mut self) -> Result<(), Wrong> {
        let transport = Transport::Poll;
        self.standing.now = Place::new(usize::MAX, transport);
        let mut wish = self.draw_wish(transport);
        wish.manner.wait_s = 0;
        self.note("looks once more");
        let had = (self.standing.given.len(), self.standing.gaps.len());
        loop {
            let mut session = Session { start: wish.start, newest_before: 0, is_open: false };
            let server = self.world.server(&mut self.rng);
            let taken = match Connection::open(server, &wish).await {
                Ok(mut connection) => self.step(&mut connection, &wish, &mut session, true).await,
                Err(stop) => Err(stop.into()),
            };
            match taken {
                Ok(()) => break,
                Err(end) => self.check_end(end).await?,
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

    /// Reads until the connection has ended, or everything has come.
    async fn read_connection(&mut self, addr: SocketAddr, wish: &Wish) -> End {
        let newest_before = self.world.truth.newest("**");
        let mut session = Session { start: wish.start, newest_before, is_open: false };
        let mut connection = match Connection::open(addr, wish).await {
            Ok(connection) => connection,
            Err(stop) => return stop.into(),
        };
        let mut frames = 0;
        loop {
            // Note this before the look at everything: if publishing ends in between, the next step notices it.
            let was_closed = self.world.truth.has_closed();
            if self.has_everything() {
                return End::HasEverything;
            }
            self.note("waits for the next frame");
            match self.step(&mut connection, wish, &mut session, was_closed).await {
                Ok(()) => frames += 1,
                Err(End::Over(over)) => {
                    let inside_a_frame = connection.is_inside_a_frame();
                    return End::Over(Over { frames, inside_a_frame, ..over });
                }
                Err(end) => return end,
            }
        }
    }

    /// Takes one frame, or sends the command that is due.
    async fn step(
        &mut self,
        connection: &mut Connection,
        wish: &Wish,
        session: &mut Session,
        was_closed: bool,
    ) -> Result<(), End> {
        let frame = tokio::select! {
            frame = connection.next() => frame?,
            () = self.command_is_due() => return self.give_command(connection).await,
            // Then ask again if there is anything left to wait for.
            () = self.world.truth.is_closed(), if !was_closed => return Ok(()),
        };
        if let (Frame::Refusal(came), true) = (&frame, self.world.plan.trouble != Trouble::None) {
            // After a failed command the client reconnects.
            return Err(End::Over(Over { reason: came.clone(), how: How::Closed, ..Over::default() }));
        }
        let is_first = !session.is_open;
        self.check_answer(&frame)?;
        self.standing.take(frame, &self.world.truth.started(), session)?;
        if is_first {
            self.count_hop(wish);
            self.subscribe_to_the_rest(connection).await?;
            if mem::take(&mut self.is_last_connection) {
                self.world.unsettled.send_modify(|unsettled| *unsettled -= 1);
            }
        }
        self.cursor_from = Some(wish.transport);
        Ok(())
    }

    /// True if everything that was published has come, and nothing more will be.
    fn has_everything(&self) -> bool {
        let truth = &self.world.truth;
        let standing = &self.standing;
        let is_read = |entry| standing.position(entry) >= truth.newest(&entry.filter);
        truth.has_closed() && standing.is_caught_up() && standing.entries.iter().all(is_read)
    }

    /// For each topic or pattern, the newest message that is older than the next connection.
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

/// Checks the end of a connection that was not cut: it may end only when everything has come.
fn check_complete(end: End) -> Result<(), Wrong> {
    match end {
        End::HasEverything => Ok(()),
        End::Wrong(wrong) => Err(wrong),
        End::Over(Over { reason, .. }) => Err(Wrong {
            expected: "a connection that lasts".to_owned(),
            came: format!("it ended without a cut: {reason}"),
        }),
    }
}

/// Does to a connection what its script says. The reader ends first, so this never ends.
async fn run_script(world: &World, wire: &Wire, script: &Script) -> Infallible {
    let begin = world.truth.acknowledged();
    world.truth.reaches(begin + script.stall_ends_after).await;
    wire.order(Order::Flow);
    world.truth.reaches(begin + script.is_cut_after).await;
    wire.order(Order::Cut);
    pending().await
}
