//! How many bytes things take in memory beyond those that retention counts of a message.
//!
//! `tests/footprint.rs` measures that the sum is close to what the process takes.

/// A message: its entries in the order and in the tail of its topic, and the rounding up of its payload's
/// allocation.
pub const MESSAGE_BYTES: usize = 40;
/// A topic in the index, without its name.
pub const TOPIC_BYTES: usize = 210;
/// The tail of a topic that has retained messages.
pub const TAIL_BYTES: usize = 260;
/// The time at which a topic with retained messages expires, if there are rules for some topics.
pub const DUE_BYTES: usize = 150;
/// The mark of a topic that lost messages.
pub const MARK_BYTES: usize = 80;
/// An idempotency key, without its topic's name and its own bytes.
pub const KEY_BYTES: usize = 170;
