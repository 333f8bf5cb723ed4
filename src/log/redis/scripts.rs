//! The scripts: each is one step, whatever else happens in Redis.

use redis::Script;

use crate::log::{
    IDEMPOTENCY_WINDOW, MAX_KEYS,
    redis::held::FILL_BYTES,
    retention::{AFTER_EXPIRY, INDEX_AGE, MESSAGE_OVERHEAD_BYTES},
};

/// How many bytes of payload one page may have. One message more is given, however large it is.
const PAGE_BYTES: usize = 256 << 10;
/// How many entries of the order one page looks at.
const SCAN_BATCH: usize = 2000;
/// How many messages that have expired one read removes.
const READ_SWEEP: usize = 1000;
/// What a topic or a mark costs in the index, the names and the state, as all that is retained is counted.
const TOPIC_COST: usize = 350;
/// What an idempotency key costs.
const KEY_COST: usize = 250;
/// A topic may hold this part of its bounds more, until the surplus is removed at once.
const SLACK: usize = 64;
/// How many of the newest entries the feed holds.
const FEED_ENTRIES: usize = 16_384;
/// About how many bytes these may have.
const FEED_BYTES: usize = 16 << 20;
/// How many it holds however large they are.
const FEED_MIN_ENTRIES: usize = 64;
/// A message that is larger than this is in the feed without its body.
const FEED_MAX_BODY: usize = 16 << 10;

/// All that is done in Redis, as one library of which each script has the prelude.
pub struct Scripts {
    pub publish: Script,
    pub announce: Script,
    pub delete: Script,
    pub probe: Script,
    pub keep: Script,
    pub confirm: Script,
    pub changed: Script,
    pub read: Script,
    pub newest: Script,
    pub names: Script,
    pub scan: Script,
    pub marks: Script,
    pub fetch: Script,
    pub begin: Script,
    pub topics: Script,
    pub stats: Script,
}

/// Refused where memory is short, before anything is done.
const STORES: &str = "#!lua";
/// Reading and forgetting go on where memory is short.
const READS: &str = "#!lua flags=allow-oom";

impl Default for Scripts {
    fn default() -> Self {
        let constants = constants();
        let script = |flags: &str, own: &str| {
            Script::new(&format!("{flags}\n{constants}\n{}\n{own}", include_str!("scripts/prelude.lua")))
        };
        Self {
            publish: script(STORES, include_str!("scripts/publish.lua")),
            // It is not stored, and the feed has its bound. Readiness is proven by it.
            announce: script(READS, include_str!("scripts/announce.lua")),
            delete: script(READS, include_str!("scripts/delete.lua")),
            probe: script(READS, include_str!("scripts/probe.lua")),
            keep: script(READS, include_str!("scripts/keep.lua")),
            confirm: script(READS, include_str!("scripts/confirm.lua")),
            changed: script(READS, include_str!("scripts/changed.lua")),
            read: script(READS, include_str!("scripts/read.lua")),
            newest: script(READS, include_str!("scripts/newest.lua")),
            names: script(READS, include_str!("scripts/names.lua")),
            scan: script(READS, include_str!("scripts/scan.lua")),
            marks: script(READS, include_str!("scripts/marks.lua")),
            fetch: script(READS, include_str!("scripts/fetch.lua")),
            begin: script(READS, include_str!("scripts/begin.lua")),
            topics: script(READS, include_str!("scripts/topics.lua")),
            stats: script(READS, include_str!("scripts/stats.lua")),
        }
    }
}

/// The line of Lua that gives every script the bounds of this program. Durations are in microseconds, but for one.
pub fn constants() -> String {
    let (names, values): (Vec<_>, Vec<_>) = [
        ("MESSAGE_OVERHEAD", MESSAGE_OVERHEAD_BYTES as u128),
        ("TOPIC_COST", TOPIC_COST as u128),
        ("SLACK", SLACK as u128),
        ("MAX_KEYS", MAX_KEYS as u128),
        ("KEY_COST", KEY_COST as u128),
        ("KEY_WINDOW_MS", IDEMPOTENCY_WINDOW.as_millis()),
        ("INDEX_AGE", INDEX_AGE.as_micros()),
        ("AFTER_EXPIRY", AFTER_EXPIRY.as_micros()),
        ("FEED_ENTRIES", FEED_ENTRIES as u128),
        ("FEED_BYTES", FEED_BYTES as u128),
        ("FEED_MIN_ENTRIES", FEED_MIN_ENTRIES as u128),
        ("FEED_MAX_BODY", FEED_MAX_BODY as u128),
        ("READ_SWEEP", READ_SWEEP as u128),
        ("SCAN_BATCH", SCAN_BATCH as u128),
        ("PAGE_BYTES", PAGE_BYTES as u128),
        ("FILL_BYTES", FILL_BYTES as u128),
    ]
    .map(|(name, value)| (name, value.to_string()))
    .into_iter()
    .unzip();
    format!("local {} = {}", names.join(", "), values.join(", "))
}
