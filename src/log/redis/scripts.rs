//! The scripts: each is one step, whatever else happens in Redis.

use redis::Script;

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
        let script = |flags: &str, own: &str| {
            Script::new(&format!("{flags}\n{}\n{own}", include_str!("scripts/prelude.lua")))
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
            scan: script(READS, include_str!("scripts/scan.lua")),
            marks: script(READS, include_str!("scripts/marks.lua")),
            fetch: script(READS, include_str!("scripts/fetch.lua")),
            begin: script(READS, include_str!("scripts/begin.lua")),
            topics: script(READS, include_str!("scripts/topics.lua")),
            stats: script(READS, include_str!("scripts/stats.lua")),
        }
    }
}
