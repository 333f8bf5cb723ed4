//! Requests that the server did not read, or not to their end.

use prometheus::{IntCounter, Registry};

use super::counters;

/// The requests that were refused before they were read, or of which the rest was not read.
#[derive(Clone, Debug)]
pub struct UnreadRequests {
    /// The head was too long, or had too many fields: `431` or `414`.
    pub heads: IntCounter,
    /// It was not HTTP: `400` without a body.
    pub malformed: IntCounter,
    /// The answer came before the body, and the connection had to end.
    pub bodies: IntCounter,
}

impl UnreadRequests {
    pub fn new(registry: &Registry) -> Self {
        let help = "Requests that were refused before they were read, or whose body was not read to its end.";
        let all = counters(registry, "rejoin_unread_requests_total", help, "reason");
        let [heads, malformed, bodies] =
            ["head", "malformed", "body"].map(|reason| all.with_label_values(&[reason]));
        Self { heads, malformed, bodies }
    }
}
