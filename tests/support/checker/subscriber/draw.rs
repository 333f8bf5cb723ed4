//! Everything about a subscriber that is left to chance.

use std::{array, ops::Range};

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

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

/// What will happen to one connection. Counts are of messages acknowledged meanwhile, by anybody to
/// anybody: the one clock that a fast machine and a slow one share.
#[derive(Debug)]
pub struct Script {
    pub stays_away_for: u64,
    /// After how many messages, and for how many.
    pub stalls: Option<(u64, u64)>,
    pub is_cut_after: u64,
    pub breakage: Breakage,
}

/// Long enough for a topic to forget what a subscriber has not had yet.
const LONG: Range<u64> = 80..240;

impl Script {
    pub fn draw(retention: Retention, rng: &mut StdRng) -> Self {
        let is_forgetful = retention != Retention::Everything;
        let is_long_away = is_forgetful && rng.random_bool(0.15);
        let is_stalled = rng.random_bool(0.1);
        let length = if is_forgetful { LONG } else { 10..60 };
        let stalls = is_stalled.then(|| (rng.random_range(0..20), rng.random_range(length)));
        let stalled_for = stalls.map_or(0, |(after, length)| after + length);
        // Mostly within the first frames, where a connection is busiest with what it has missed.
        let after_bytes = rng.random_bool(0.6).then(|| 1 << rng.random_range(6..17));
        Self {
            stays_away_for: rng.random_range(if is_long_away { LONG } else { 0..40 }),
            stalls,
            is_cut_after: stalled_for + rng.random_range(1..60),
            breakage: Breakage {
                after_bytes: after_bytes.map(|power: u64| power + rng.random_range(0..power)),
                ending: if rng.random_bool(0.5) { Ending::Fin } else { Ending::Rst },
                is_narrow: is_stalled,
            },
        }
    }
}

impl Subscriber {
    pub fn new(world: &std::sync::Arc<World>, number: usize) -> Self {
        let mut rng = world.rng(&format!("subscriber {number}"));
        let filters = match number % 7 {
            0 | 1 => draw_topics(1, &mut rng),
            2 | 3 | 6 => draw_topics(rng.random_range(2..5), &mut rng),
            4 => vec![["a.**", "b.*", "*.one", "d.*"][number / 7 % 4].to_owned()],
            _ => ["a.**", "a.one", "c"].map(str::to_owned).to_vec(),
        };
        let start = match rng.random_range(0..4) {
            0 => Start::Now,
            1 => Start::Last(rng.random_range(1..20)),
            _ => Start::All,
        };
        let commands = (number % 7 == 6).then(Commands::default);
        let lane = if commands.is_some() { Lane::Behind(start) } else { Lane::Level };
        let by = if commands.is_some() { " by commands" } else { "" };
        let name = format!("subscriber {number} of {filters:?} from {start:?}{by}");
        let standing = Standing::new(name, world.retention, filters, lane);
        Self { world: world.clone(), rng, standing, start, commands, cursor_from: None }
    }

    /// Topics with a start of their own can only be asked for on a WebSocket.
    pub fn draw_transport(&mut self) -> Transport {
        match self.standing.is_level() {
            true => Transport::ALL[self.rng.random_range(0..4)],
            false => Transport::WebSocket,
        }
    }

    /// Asks for what is level, from the cursor.
    pub fn draw_wish(&mut self, transport: Transport) -> Wish {
        if self.commands.is_some() && transport == Transport::WebSocket && self.rng.random_bool(0.2) {
            self.standing.leave_all_to_commands();
        }
        let filters = self.standing.filters(Lane::Level);
        // Where there is nothing to resume yet, now is as good as any.
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
