//! The log lines that the process dropped. The program counts them, and every server of the process shows them.

use std::sync::LazyLock;

use prometheus::{IntCounter, IntCounterVec, Opts};

/// The dropped lines, by reason.
pub struct DroppedLines {
    pub(super) all: IntCounterVec,
    /// One place in the code wrote too many a second.
    pub too_many: IntCounter,
    /// Standard error did not take them.
    pub not_taken: IntCounter,
    /// Standard output did not take them: they are of the access log.
    pub access: IntCounter,
}

/// The counts of this process.
pub static DROPPED_LINES: LazyLock<DroppedLines> = LazyLock::new(|| {
    let opts = Opts::new("rejoin_log_lines_dropped_total", "Log lines that were not written.");
    let all = IntCounterVec::new(opts, &["reason"]).expect("a valid name");
    let of = |reason: &str| all.with_label_values(&[reason]);
    DroppedLines { too_many: of("too_many"), not_taken: of("not_taken"), access: of("access"), all }
});
