//! The random choices of a subscriber.

use std::{array, ops::Range};

use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

use super::{
    super::{
        Retention, World,
        standing::{Lane, Standing},
        truth::TOPICS,
    },
    Commands, Subscriber,
};
use crate::support::{
    client::{Manner, Start, Transport, Wish},
    cutter::{Breakage, Ending},
};

/// The fate of one connection. It counts acknowledged messages of all publishers and topics: this clock is
/// the same on a fast machine and on a slow one.
#[derive(Debug)]
pub struct Script {
    pub stays_away_for: u64,
    pub stall_ends_after: u64,
    pub is_cut_after: u64,
    pub breakage: Breakage,
}

/// Long enough for a topic to lose messages that an absent subscriber has not received.
const LONG: Range<u64> = 80..240;
/// The same for a connected subscriber, when all buffers between it and the server are full.
const LONG_STALL: Range<u64> = 150..400;

impl Script {
    pub fn draw(retention: Retention, rng: &mut StdRng) -> Self {
        let is_forgetful = retention != Retention::Everything;
        let is_long_away = is_forgetful && rng.random_bool(0.15);
        let is_stalled = rng.random_bool(0.12);
        let stall_ends_after = match (is_stalled, is_forgetful) {
            (false, _) => 0,
            (true, false) => rng.random_range(10..60),
            (true, true) => rng.random_range(LONG_STALL),
        };
        let is_cut_by_bytes = !is_stalled && rng.random_bool(0.65);
        Self {
            stays_away_for: rng.random_range(if is_long_away { LONG } else { 0..40 }),
            stall_ends_after,
            is_cut_after: stall_ends_after + rng.random_range(1..60),
            breakage: Breakage {
                cut_after_bytes: is_cut_by_bytes.then(|| draw_bytes(rng)),
                ending: if rng.random_bool(0.5) { Ending::Fin } else { Ending::Rst },
                stall_after_bytes: is_stalled.then(|| draw_bytes(rng)),
            },
        }
    }
}

/// Mostly within the first frames, while a connection catches up.
fn draw_bytes(rng: &mut StdRng) -> u64 {
    let power = 1 << rng.random_range(6..17);
    power + rng.random_range(0..power)
}

/// One topic (twice), several, several by commands (twice), a pattern, and filters that overlap.
const KINDS: usize = 7;

impl Subscriber {
    pub fn new(world: &std::sync::Arc<World>, number: usize) -> Self {
        let mut rng = world.rng(&format!("subscriber {number}"));
        let kind = number % KINDS;
        let filters = match kind {
            0 | 1 => draw_topics(1, &mut rng),
            2..5 => draw_topics(rng.random_range(2..5), &mut rng),
            5 => vec![["a.**", "b.*", "*.one", "d.*"][number / KINDS % 4].to_owned()],
            _ => ["a.**", "a.one", "c"].map(str::to_owned).to_vec(),
        };
        let start = match rng.random_range(0..4) {
            0 => Start::Now,
            1 => Start::Last(rng.random_range(1..20)),
            _ => Start::All,
        };
        let commands = (3..5).contains(&kind).then(Commands::default);
        let lane = if commands.is_some() { Lane::Behind(start) } else { Lane::CaughtUp };
        let by = if commands.is_some() { " by commands" } else { "" };
        let name = format!("subscriber {number} of {filters:?} from {start:?}{by}");
        let standing = Standing::new(name, world.plan.retention, filters, lane);
        Self {
            world: world.clone(),
            number,
            rng,
            standing,
            start,
            commands,
            cursor_from: None,
            is_last_connection: false,
        }
    }

    /// Only a WebSocket can subscribe to topics with their own starts.
    pub fn draw_transport(&mut self) -> Transport {
        match self.standing.is_caught_up() {
            true => Transport::ALL[self.rng.random_range(0..4)],
            false => Transport::WebSocket,
        }
    }

    /// Among seven kinds and four transports, every kind ends on every transport.
    pub fn last_transport(&self) -> Transport {
        match self.standing.is_caught_up() {
            true => Transport::ALL[self.number % 4],
            false => Transport::WebSocket,
        }
    }

    /// Asks for the entries that are caught up, from the cursor.
    pub fn draw_wish(&mut self, transport: Transport) -> Wish {
        if self.commands.is_some() && transport == Transport::WebSocket && self.rng.random_bool(0.2) {
            self.standing.resubscribe_all_by_commands();
        }
        let filters = self.standing.filters(Lane::CaughtUp);
        // If there is nothing to resume yet, start now.
        let start = match self.standing.cursor {
            Some(_) if filters.is_empty() && self.rng.random_bool(0.5) => Start::Now,
            Some(cursor) => Start::After(cursor),
            None if filters.is_empty() => Start::Now,
            None => self.start,
        };
        Wish { transport, filters, start, manner: self.draw_manner() }
    }

    fn draw_manner(&mut self) -> Manner {
        let [cursor_in_header, by_path, transport_in_query] = array::from_fn(|_| self.rng.random_bool(0.5));
        Manner {
            cursor_in_header,
            by_path,
            transport_in_query,
            by_post: self.rng.random_bool(0.2),
            other_format: self.rng.random_bool(0.3),
            wait_s: self.rng.random_range(1..=25),
            limit: [1, 3, 10, 100][self.rng.random_range(0..4)],
        }
    }
}

fn draw_topics(count: usize, rng: &mut StdRng) -> Vec<String> {
    let mut topics = TOPICS.map(str::to_owned).to_vec();
    topics.shuffle(rng);
    topics.truncate(count);
    topics
}
