//! How many connections may be open, and a few more for probes.
//!
//! Each connection needs a descriptor, and a server without one can neither answer a probe nor reach its log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use rlimit::Resource;

use super::{
    problem::{Code, Problem},
    stream, subscribe,
    wire::Framing,
};

/// How many descriptors are not for connections: those of the log, of its file, and of the runtime; and the spare ones.
const RESERVED_DESCRIPTORS: u64 = 64;
/// How many connections are open beyond the limit. Each of them answers one probe.
const SPARE: usize = 16;
/// How long one of these may take.
const SPARE_TIME: Duration = Duration::from_secs(5);
/// How long a connection is waited for while most places are taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The connections that publish and ask, beside those that subscribe.
const OTHERS: usize = 1_000;

/// The connections of one server.
#[derive(Debug)]
pub struct Places {
    max: usize,
    taken: AtomicUsize,
    has_warned: AtomicBool,
}

impl Places {
    /// Places for twice as many connections as may subscribe, as far as there are descriptors.
    pub fn new(max_connections: usize) -> Self {
        let descriptors = Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        let free = descriptors - RESERVED_DESCRIPTORS.min(descriptors / 2);
        let wanted = max_connections.saturating_mul(2).saturating_add(OTHERS);
        Self::with(wanted.min(usize::try_from(free).unwrap_or(usize::MAX)))
    }

    fn with(max: usize) -> Self {
        Self { max, taken: AtomicUsize::new(0), has_warned: AtomicBool::new(false) }
    }

    /// A place for one more connection, until it is dropped. `None` if even the spare ones are taken.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        // Dropping it gives it back.
        let place = Place(Arc::new(Taken { places: self.clone(), is_spare: before >= self.max }));
        if place.is_spare() && !self.has_warned.swap(true, Ordering::Relaxed) {
            let limit = self.max;
            tracing::warn!(
                limit,
                "too many connections: more of them get no answer but /health; raise --max-connections and the limit \
                 of file descriptors, or find out who opens them"
            );
        }
        (before < self.max.saturating_add(SPARE)).then_some(place)
    }

    /// Lets the next warning be logged.
    pub fn warn_again(&self) {
        self.has_warned.store(false, Ordering::Relaxed);
    }

    fn is_crowded(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.max - self.max / 4
    }
}

/// The place of one connection.
#[derive(Clone, Debug)]
pub struct Place(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    places: Arc<Places>,
    is_spare: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Default for Place {
    fn default() -> Self {
        Places::take(&Arc::new(Places::with(100))).expect("a place")
    }
}

impl Place {
    /// True if the connection serves only one probe.
    pub fn is_spare(&self) -> bool {
        self.0.is_spare
    }

    /// The longest time of the connection.
    pub fn time(&self) -> Option<Duration> {
        self.is_spare().then_some(SPARE_TIME)
    }

    /// How long to wait for a request: `usual`, and less while most places are taken.
    pub fn patience(&self, usual: Duration) -> Duration {
        if self.0.places.is_crowded() { usual.min(PATIENCE) } else { usual }
    }

    /// The answer to a request that this connection does not serve.
    pub fn refusal<B>(&self, request: &Request<B>) -> Option<Response> {
        if !self.is_spare() || request.uri().path().starts_with("/health/") {
            return None;
        }
        Some(match subscribe::accepted(request.headers(), Framing::SseEnvelope) {
            Some(framing) => stream::turn_away(framing, Code::Overloaded, None),
            None => Problem::new(Code::Overloaded, "too many connections; try again later").into_response(),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::StatusCode;

    use super::*;

    #[test]
    fn beyond_the_limit_some_connections_answer_probes_and_no_more_are_served() {
        let places = Arc::new(Places::with(4));
        let mut held: Vec<Place> = (0..4).filter_map(|_| places.take()).collect();
        assert!(held.iter().all(|place| !place.is_spare()));
        held.extend((0..SPARE + 3).filter_map(|_| places.take()));
        assert_eq!(held.len(), 4 + SPARE);
        let spare = held.pop().expect("one of them");
        assert_eq!(spare.time(), Some(SPARE_TIME));
        let asked = |path: &str, accept: &str| {
            let request = Request::get(path).header("accept", accept).body(Body::empty());
            spare.refusal(&request.expect("a request")).map(|response| response.status())
        };
        assert_eq!(asked("/health/live", "*/*"), None);
        assert_eq!(asked("/topics/a", "*/*"), Some(StatusCode::SERVICE_UNAVAILABLE));
        // An `EventSource` never comes back after 503.
        assert_eq!(asked("/topics/a", "text/event-stream"), Some(StatusCode::OK));
        held.clear();
        assert!(!places.take().expect("a place").is_spare());
    }

    #[test]
    fn quiet_connections_are_waited_for_less_while_most_places_are_taken() {
        let (places, long) = (Arc::new(Places::with(8)), Duration::from_secs(75));
        let mut held: Vec<Place> = (0..5).filter_map(|_| places.take()).collect();
        assert_eq!(held[0].patience(long), long);
        held.extend(places.take());
        assert_eq!(held[0].patience(long), PATIENCE);
        assert_eq!(held[0].patience(Duration::ZERO), Duration::ZERO);
    }
}
