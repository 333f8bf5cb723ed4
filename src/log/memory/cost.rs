//! How many bytes things take in memory beyond those that retention counts of a message.
//!
//! `tests/footprint.rs` measures that the sum is close to what the process takes.

use crate::message::Message;

/// Retention counts 200 bytes for a message beside its payload, its event and its publisher. In memory a message takes this
/// much less, and [its rare parts](crate::message::Head::rare_bytes) beside that.
pub const SPARED_BYTES: usize = 60;

/// A message, with its entry in the order and one in the tail of its topic.
pub fn of_message(message: &Message) -> usize {
    crate::log::cost(message) - SPARED_BYTES + message.rare_bytes()
}

/// A topic in the index, without its name.
pub const TOPIC_BYTES: usize = 210;
/// The tail of a topic that has retained messages.
pub const TAIL_BYTES: usize = 200;
/// The time at which a topic with retained messages expires, if there are rules for some topics.
pub const DUE_BYTES: usize = 150;
/// The mark of a topic that lost messages.
pub const MARK_BYTES: usize = 80;
/// An idempotency key, without its topic's name and its own bytes.
pub const KEY_BYTES: usize = 170;
