//! What things take in memory beside what retention counts of a message.
//!
//! `tests/footprint.rs` measures that the sum is near what the process takes.

/// A message: its place in the order and in its topic's tail, and what its payload's allocation is rounded up by.
pub const MESSAGE_BYTES: usize = 40;
/// A topic in the index, beside its name.
pub const TOPIC_BYTES: usize = 210;
/// The tail of a topic that has retained messages.
pub const TAIL_BYTES: usize = 260;
/// The mark of a topic that lost something.
pub const MARK_BYTES: usize = 80;
/// An idempotency key, beside its topic's name and itself.
pub const KEY_BYTES: usize = 170;
