//! The scripts. Redis runs each of them as one step, which nothing can interrupt.

use redis::Script;

use crate::log::{
    IDEMPOTENCY_WINDOW, MAX_KEYS,
    payer::PART_WITHOUT_PAYER,
    redis::held::FILL_BYTES,
    retention::{AFTER_EXPIRY, INDEX_AGE, MESSAGE_OVERHEAD_BYTES},
    subjects::{ENTRY_BYTES, MAX_ENTRIES, MAX_WILD_ENTRIES},
};

/// How many bytes of payload one page may have. The message that exceeds this is still given, however large
/// it is.
const PAGE_BYTES: usize = 256 << 10;
/// How many entries of the order one script reads.
const SCAN_BATCH: usize = 2000;
/// How many expired messages one read removes.
const READ_SWEEP: usize = 1000;
/// The cost of a topic or a mark in the index, the names and the state, in bytes. It counts towards the limit on all
/// retained bytes.
const TOPIC_COST: usize = 350;
/// The cost of a topic in `due`, in bytes. It counts too.
const DUE_COST: usize = 110;
/// The cost of an idempotency key, in bytes.
const KEY_COST: usize = 250;
/// A topic may exceed its limits by one part in this many, until the surplus is removed at once.
const SLACK: usize = 64;
/// How many of the newest entries the feed holds.
const FEED_ENTRIES: usize = 16_384;
/// About how many bytes these entries may have.
const FEED_BYTES: usize = 16 << 20;
/// How many entries the feed holds, however large they are.
const FEED_MIN_ENTRIES: usize = 64;
/// In bytes. The feed has a larger message without its body.
const FEED_MAX_BODY: usize = 16 << 10;

/// All scripts. Each but `beat` begins with the prelude.
pub struct Scripts {
    pub publish: Script,
    pub announce: Script,
    pub delete: Script,
    pub list_add: Script,
    pub list_remove: Script,
    pub end: Script,
    pub keep: Script,
    pub confirm: Script,
    pub check: Script,
    pub beat: Script,
    pub presence: Script,
    pub probe: ReadScript,
    pub changed: ReadScript,
    pub read: ReadScript,
    pub newest: ReadScript,
    pub names: ReadScript,
    pub scan: ReadScript,
    pub marks: ReadScript,
    pub fetch: ReadScript,
    pub begin: ReadScript,
    pub topics: ReadScript,
    pub stats: ReadScript,
    pub history: ReadScript,
    pub lists: ReadScript,
    pub refusals: ReadScript,
    pub members: ReadScript,
}

/// A script that only reads, in two forms.
pub struct ReadScript {
    /// Also removes expired messages, and begins a generation of the store if one is due.
    pub whole: Script,
    /// Writes nothing, so it runs while Redis refuses writes.
    pub frozen: Script,
}

/// Redis refuses these scripts when its memory is full, before they do anything.
const STORES: &str = "#!lua";
/// Reading and deleting go on when the memory of Redis is full.
const READS: &str = "#!lua flags=allow-oom";
/// Redis runs these scripts even while it refuses writes.
const ONLY_READS: &str = "#!lua flags=no-writes";

impl Default for Scripts {
    fn default() -> Self {
        let prelude = include_str!("scripts/prelude.lua");
        let script = |flags, own| Script::new(&format!("{flags}\n{}\n{prelude}\n{own}", constants()));
        let frozen = |own| format!("{ONLY_READS}\n{}\n{prelude}\n{own}", written(true));
        let reader = |own| ReadScript { whole: script(READS, own), frozen: Script::new(&frozen(own)) };
        let check = include_str!("scripts/check.lua");
        Self {
            publish: script(
                STORES,
                concat!(include_str!("scripts/store.lua"), include_str!("scripts/publish.lua")),
            ),
            presence: script(
                STORES,
                concat!(include_str!("scripts/store.lua"), include_str!("scripts/presence.lua")),
            ),
            // An announcement is not stored, and the feed has a bound.
            announce: script(READS, include_str!("scripts/announce.lua")),
            delete: script(READS, include_str!("scripts/delete.lua")),
            list_add: script(STORES, include_str!("scripts/list.lua")),
            list_remove: script(READS, include_str!("scripts/list.lua")),
            end: script(READS, include_str!("scripts/end.lua")),
            keep: script(READS, include_str!("scripts/keep.lua")),
            confirm: script(READS, include_str!("scripts/confirm.lua")),
            check: Script::new(&format!("{READS}\n{}\n{check}\n{prelude}\nreturn facts()", constants())),
            // It stores little, and others must know of this replica while the memory is full.
            beat: Script::new(&format!("{READS}\n{}", include_str!("scripts/beat.lua"))),
            probe: reader(include_str!("scripts/probe.lua")),
            changed: reader(include_str!("scripts/changed.lua")),
            read: reader(include_str!("scripts/read.lua")),
            newest: reader(include_str!("scripts/newest.lua")),
            names: reader(include_str!("scripts/names.lua")),
            scan: reader(include_str!("scripts/scan.lua")),
            marks: reader(include_str!("scripts/marks.lua")),
            fetch: reader(include_str!("scripts/fetch.lua")),
            begin: reader(include_str!("scripts/begin.lua")),
            topics: reader(include_str!("scripts/topics.lua")),
            stats: reader(include_str!("scripts/stats.lua")),
            history: reader(include_str!("scripts/history.lua")),
            lists: reader(include_str!("scripts/lists.lua")),
            refusals: reader(include_str!("scripts/refusals.lua")),
            members: reader(include_str!("scripts/members.lua")),
        }
    }
}

/// The line of Lua that gives the limits of this program to every script. Durations are in microseconds,
/// except `KEY_WINDOW_MS`.
pub fn constants() -> String {
    written(false)
}

fn written(is_frozen: bool) -> String {
    let (names, values): (Vec<_>, Vec<_>) = [
        ("MESSAGE_OVERHEAD", MESSAGE_OVERHEAD_BYTES as u128),
        ("TOPIC_COST", TOPIC_COST as u128),
        ("DUE_COST", DUE_COST as u128),
        ("SLACK", SLACK as u128),
        ("MAX_KEYS", MAX_KEYS as u128),
        ("KEY_COST", KEY_COST as u128),
        ("PART_WITHOUT_PAYER", PART_WITHOUT_PAYER as u128),
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
        ("MAX_ENTRIES", MAX_ENTRIES as u128),
        ("MAX_WILD_ENTRIES", MAX_WILD_ENTRIES as u128),
        ("ENTRY_BYTES", ENTRY_BYTES as u128),
    ]
    .map(|(name, value)| (name, value.to_string()))
    .into_iter()
    .unzip();
    format!("local FROZEN, {} = {is_frozen}, {}", names.join(", "), values.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    const CHECK: &str = include_str!("scripts/check.lua");
    const ALL: [&str; 26] = [
        include_str!("scripts/prelude.lua"),
        include_str!("scripts/publish.lua"),
        include_str!("scripts/announce.lua"),
        include_str!("scripts/delete.lua"),
        include_str!("scripts/keep.lua"),
        include_str!("scripts/confirm.lua"),
        include_str!("scripts/probe.lua"),
        include_str!("scripts/changed.lua"),
        include_str!("scripts/read.lua"),
        include_str!("scripts/newest.lua"),
        include_str!("scripts/names.lua"),
        include_str!("scripts/scan.lua"),
        include_str!("scripts/marks.lua"),
        include_str!("scripts/fetch.lua"),
        include_str!("scripts/begin.lua"),
        include_str!("scripts/topics.lua"),
        include_str!("scripts/stats.lua"),
        include_str!("scripts/history.lua"),
        include_str!("scripts/beat.lua"),
        include_str!("scripts/list.lua"),
        include_str!("scripts/lists.lua"),
        include_str!("scripts/end.lua"),
        include_str!("scripts/refusals.lua"),
        include_str!("scripts/store.lua"),
        include_str!("scripts/presence.lua"),
        include_str!("scripts/members.lua"),
    ];

    /// The words in capitals behind a quotation mark: the commands, and some words of their arguments.
    fn words(text: &str) -> impl Iterator<Item = &str> {
        let quoted = text.split(['\'', '"']);
        quoted.filter(|word| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase()))
    }

    #[test]
    fn the_check_asks_for_each_command_of_the_scripts() {
        // Words of the arguments of commands.
        let arguments =
            ["STREAM", "COUNT", "MAXLEN", "LIMIT", "WITHSCORES", "BYSCORE", "BYLEX", "REV", "REPLACE"];
        let checked: BTreeSet<_> = words(CHECK).collect();
        let used: BTreeSet<_> = ALL.iter().flat_map(|script| words(script)).collect();
        let missing: Vec<_> = used
            .difference(&checked)
            .filter(|word| !arguments.contains(word) && **word != "WRONGTYPE")
            .collect();
        assert!(missing.is_empty() && used.len() > 30, "{missing:?} of {used:?}");
    }
}
