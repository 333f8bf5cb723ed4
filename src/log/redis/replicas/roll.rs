//! Which replicas live, by their signs of life in the store.

use std::collections::HashSet;

use redis::{FromRedisValue, ParsingError, Value};

/// A replica that is silent for longer than this counts as gone, in milliseconds of the store's clock.
const GONE_AFTER_MS: u64 = 10_000;
/// If no replica gave a sign of life for this long, Redis could not be reached: then no silence counts from before.
const PAUSE_MS: u64 = 3_000;

/// After so much silence the store forgets a replica, and its stream.
const FORGET_AFTER_MS: u64 = 60_000;
/// In this time after the first sign of life of all, and after the first one since Redis was away, every replica that
/// lives has given one.
const SETTLED_AFTER_MS: u64 = 1_500;

/// The arguments of the script, in its order.
pub const SPANS_MS: [u64; 4] = [GONE_AFTER_MS, PAUSE_MS, FORGET_AFTER_MS, SETTLED_AFTER_MS];

/// The store's answer about the replicas.
#[derive(Clone, Debug)]
pub struct Beat {
    /// The store's time, in milliseconds.
    pub now: u64,
    /// Signs of life could be given since then.
    pub since: u64,
    /// The replica that asks counts as gone.
    pub is_gone: bool,
    /// The stream of the replica that asks was made.
    pub is_made: bool,
    /// Every replica that lives is known here.
    pub is_complete: bool,
    /// The replica that asks looks after the members of topics.
    pub is_keeper: bool,
    /// Each replica, and the time of its last sign of life.
    pub known: Vec<(u64, u64)>,
}

impl FromRedisValue for Beat {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (now, since, is_gone, is_made, is_complete, is_keeper, fields): (
            u64,
            u64,
            u8,
            u8,
            u8,
            u8,
            Vec<String>,
        ) = FromRedisValue::from_redis_value(value)?;
        let (pairs, _) = fields.as_chunks::<2>();
        // Fields with a star say something about all replicas.
        let known = pairs
            .iter()
            .filter_map(|[name, last]| Some((u64::from_str_radix(name, 16).ok()?, last.parse().ok()?)));
        Ok(Self {
            now,
            since,
            is_gone: is_gone == 1,
            is_made: is_made == 1,
            is_complete: is_complete == 1,
            is_keeper: is_keeper == 1,
            known: known.collect(),
        })
    }
}

/// The answer to the question if a replica lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    Lives,
    Gone,
    /// Redis has lost its data, or is new, and the replica may yet give a sign of life.
    Unknown,
}

/// The replicas that live.
#[derive(Debug, Default)]
pub struct Roll {
    living: HashSet<u64>,
    silent: HashSet<u64>,
    is_complete: bool,
}

impl Roll {
    pub fn of(beat: &Beat) -> Self {
        // Silence does not count from before `since`, because then Redis could not be reached.
        let is_heard = |last: u64| beat.now.saturating_sub(last.max(beat.since)) <= GONE_AFTER_MS;
        let (living, silent): (Vec<_>, Vec<_>) = beat.known.iter().partition(|(_, last)| is_heard(*last));
        let names = |known: Vec<(u64, u64)>| known.into_iter().map(|(name, _)| name).collect();
        Self { living: names(living), silent: names(silent), is_complete: beat.is_complete }
    }

    pub fn living(&self) -> impl Iterator<Item = u64> {
        self.living.iter().copied()
    }

    /// True if every replica that lives is known.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub fn stands(&self, name: u64) -> Stands {
        if self.living.contains(&name) {
            Stands::Lives
        } else if self.is_complete || self.silent.contains(&name) {
            Stands::Gone
        } else {
            Stands::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roll(now: u64, since: u64, is_complete: bool, known: &[(u64, u64)]) -> Roll {
        Roll::of(&Beat {
            now,
            since,
            is_gone: false,
            is_made: false,
            is_complete,
            is_keeper: false,
            known: known.to_vec(),
        })
    }

    #[test]
    fn a_silent_replica_is_gone_and_one_that_could_not_be_heard_may_live() {
        let (heard, silent, unknown) = (1, 2, 3);
        let known = [(heard, 100_000), (silent, 90_000)];
        let stands = |roll: &Roll| [heard, silent, unknown].map(|name| roll.stands(name));
        let later = roll(100_001, 50_000, true, &known);
        assert_eq!(stands(&later), [Stands::Lives, Stands::Gone, Stands::Gone]);
        let after_outage = roll(100_001, 99_000, true, &known);
        assert_eq!(stands(&after_outage), [Stands::Lives, Stands::Lives, Stands::Gone]);
        let after_loss = roll(100_001, 50_000, false, &known);
        assert_eq!(stands(&after_loss), [Stands::Lives, Stands::Gone, Stands::Unknown]);
        let clock_went_back = roll(10_000, 50_000, true, &known);
        assert_eq!(stands(&clock_went_back), [Stands::Lives, Stands::Lives, Stands::Gone]);
    }
}
