//! How many connections may be open, a few more for operators, and a few more for probes.
//!
//! Each connection needs a descriptor, and a server without one can neither answer a probe nor reach its log.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    hook::MAX_AT_ONCE,
    problem::{Code, Problem},
    shares::{Share, Shares},
    stream, subscribe,
    wire::Framing,
};
use crate::{config::Config, log::Payer};

/// How many descriptors are not for connections: those of the log, of its file, and of the runtime; and the spare ones.
const RESERVED_DESCRIPTORS: u64 = 64;
/// The same for questions to the backend, if there is a `[hook]`.
const FOR_QUESTIONS: u64 = MAX_AT_ONCE as u64;
/// How many connections the listener for operators has while all others are taken, and the part of the descriptors that
/// it takes for them at most. A flood of the public must not keep out those who can end it.
const OF_OPERATORS: usize = 64;
const PART_OF_OPERATORS: u64 = 16;
/// How many connections are open beyond the limit. Each of them answers one probe. The oldest gives way to a new one, so
/// that a probe is answered also while many connections come.
const SPARE: usize = 16;
/// How long one of these may take.
const SPARE_TIME: Duration = Duration::from_secs(5);
/// How long a new connection waits for the oldest to give way, and how often it looks.
const GIVES_WAY_WITHIN: Duration = Duration::from_millis(100);
const LOOKS: u32 = 50;
/// How long a connection is waited for while most places are taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The connections that publish and ask, beside those that subscribe.
const OTHERS: usize = 1_000;

/// The connections of one server, or those that only operators may have.
#[derive(Debug)]
pub struct Places {
    /// Places that are taken instead, while one of them is free.
    first: Option<Arc<Places>>,
    max: usize,
    taken: AtomicUsize,
    /// The connections of each address, so that one of them leaves a share to the others.
    shares: Arc<Shares>,
    /// The ends of the newest spare connections, the oldest first.
    spare: Mutex<VecDeque<CancellationToken>>,
    has_warned: AtomicBool,
}

impl Places {
    /// Places for twice as many connections as may subscribe, as far as there are descriptors.
    pub fn new(config: &Config) -> Arc<Self> {
        Self::of_all(config, descriptors(), 0)
    }

    /// The same, and the places of operators: they have these too, and some of their own.
    pub fn with_operators(config: &Config) -> (Arc<Self>, Arc<Self>) {
        Self::with_operators_within(config, descriptors())
    }

    fn with_operators_within(config: &Config, descriptors: u64) -> (Arc<Self>, Arc<Self>) {
        let own = OF_OPERATORS.min(usize::try_from(descriptors / PART_OF_OPERATORS).unwrap_or(usize::MAX));
        let all = Self::of_all(config, descriptors, (own + 2 * SPARE) as u64);
        (all.clone(), Self::with(own, Some(all)))
    }

    fn of_all(config: &Config, descriptors: u64, for_operators: u64) -> Arc<Self> {
        let for_questions = config.tables.hook.as_ref().map_or(0, |_| FOR_QUESTIONS);
        let reserved = RESERVED_DESCRIPTORS + for_questions + for_operators;
        // Connections have some of the descriptors also where they are few.
        let left = descriptors - reserved.min(descriptors / 4 * 3);
        let wanted = config.max_connections.saturating_mul(2).saturating_add(OTHERS);
        Self::with(wanted.min(usize::try_from(left).unwrap_or(usize::MAX)), None)
    }

    fn with(max: usize, first: Option<Arc<Self>>) -> Arc<Self> {
        let (taken, shares, spare) = (AtomicUsize::new(0), Shares::new(max), Mutex::default());
        Arc::new(Self { first, max, taken, shares, spare, has_warned: AtomicBool::new(false) })
    }

    /// A place for one more connection of `payer`, until it is dropped. It waits a moment for spare ones that give way; `None` if
    /// they do not.
    ///
    /// # Cancel safety
    /// Dropping this takes no place.
    pub async fn take(self: &Arc<Self>, payer: Option<Payer>) -> Option<Place> {
        if let Some(place) = self.first.as_ref().and_then(|first| first.take_free(payer)) {
            return Some(place);
        }
        for _ in 0..LOOKS {
            if self.taken.load(Ordering::Relaxed) < self.max.saturating_add(2 * SPARE) {
                return Some(self.take_now(payer));
            }
            sleep(GIVES_WAY_WITHIN / LOOKS).await;
        }
        None
    }

    fn take_now(self: &Arc<Self>, payer: Option<Payer>) -> Place {
        self.take_free(payer).unwrap_or_else(|| self.take_spare())
    }

    /// A place that is no spare one. `None` if this payer can have none.
    fn take_free(self: &Arc<Self>, payer: Option<Payer>) -> Option<Place> {
        // It is given back if the payer can have none.
        let (before, mut taken) = self.count();
        if before >= self.max {
            return None;
        }
        taken.share = Some(self.shares.take(payer, 1)?);
        Some(Place(Arc::new(taken)))
    }

    fn take_spare(self: &Arc<Self>) -> Place {
        let (_, mut taken) = self.count();
        taken.end_of_spare = Some(self.new_spare());
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            let limit = self.max;
            match self.first {
                Some(_) => tracing::warn!(
                    limit,
                    "too many connections at --admin-listen while the public takes all others: more of them get no answer but /health; \
                     end some of them, or find out who opens those of the public"
                ),
                None => tracing::warn!(
                    limit,
                    "too many connections, in all or of one address: more of them get no answer but /health; raise --max-connections and the limit \
                     of file descriptors, or find out who opens them"
                ),
            }
        }
        Place(Arc::new(taken))
    }

    /// Counts one connection more, and says how many there were.
    fn count(self: &Arc<Self>) -> (usize, Taken) {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        (before, Taken { places: self.clone(), end_of_spare: None, share: None })
    }

    /// The end of a new spare connection. The oldest gives way to it.
    fn new_spare(&self) -> CancellationToken {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() >= SPARE
            && let Some(oldest) = spare.pop_front()
        {
            oldest.cancel();
        }
        let end = CancellationToken::new();
        spare.push_back(end.clone());
        end
    }

    /// Lets the next warning be logged.
    pub fn warn_again(&self) {
        self.has_warned.store(false, Ordering::Relaxed);
    }

    fn is_crowded(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.max - self.max / 4
    }
}

/// How many descriptors this process may have.
fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The place of one connection.
#[derive(Clone, Debug)]
pub struct Place(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    places: Arc<Places>,
    end_of_spare: Option<CancellationToken>,
    share: Option<Share>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Default for Place {
    fn default() -> Self {
        Places::with(100, None).take_now(None)
    }
}

impl Place {
    /// True if the connection serves only one probe.
    pub fn is_spare(&self) -> bool {
        self.0.end_of_spare.is_some()
    }

    /// Resolves when a spare connection must end. `None` for any other.
    pub fn end_of_spare(&self) -> Option<impl Future<Output = ()> + use<>> {
        let end = self.0.end_of_spare.clone()?;
        Some(async move { _ = timeout(SPARE_TIME, end.cancelled()).await })
    }

    /// How long to wait for a request: `usual`, and less while most places are taken.
    pub fn patience(&self, usual: Duration) -> Duration {
        if self.0.places.is_crowded() { usual.min(PATIENCE) } else { usual }
    }

    /// The same as a point in time.
    pub fn deadline(&self, usual: Instant) -> Instant {
        if self.0.places.is_crowded() { usual.min(Instant::now() + PATIENCE) } else { usual }
    }

    /// The answer to a request that this connection does not serve.
    pub fn refusal<B>(&self, request: &Request<B>) -> Option<Response> {
        if !self.is_spare() || request.uri().path().starts_with("/health/") {
            return None;
        }
        let problem = Problem::new(Code::Overloaded, "the server has too many connections; try again later");
        Some(match subscribe::accepted(request.headers(), Framing::SseEnvelope) {
            Some(framing) => stream::turn_away(framing, problem, None),
            None => problem.into_response(),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::FutureExt;

    use super::*;
    use crate::auth::{Authority, HookSettings, HookTerms};

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_some_connections_answer_probes_and_the_oldest_gives_way() {
        let places = Places::with(4, None);
        let mut held: Vec<Place> = (0..4).map(|_| places.take_now(None)).collect();
        assert!(held.iter().all(|place| !place.is_spare()));
        for _ in 0..2 * SPARE {
            held.extend(places.take(None).await);
        }
        assert_eq!(held.len(), 4 + 2 * SPARE);
        assert!(places.take(None).await.is_none(), "those that must end have not ended");
        let has_to_end = |place: &Place| place.end_of_spare().is_some_and(|end| end.now_or_never().is_some());
        assert_eq!(held.iter().filter(|place| has_to_end(place)).count(), SPARE);
        held.truncate(4);
        let spare = places.take(None).await.expect("a spare one");
        assert!(spare.is_spare() && !has_to_end(&spare));
        let began = Instant::now();
        spare.end_of_spare().expect("it is spare").await;
        assert_eq!(began.elapsed(), SPARE_TIME);
        let asked = |path: &str, accept: &str| {
            let request = Request::get(path).header("accept", accept).body(Body::empty());
            spare.refusal(&request.expect("a request")).map(|response| response.status().as_u16())
        };
        assert_eq!(asked("/health/live", "*/*"), None);
        assert_eq!(asked("/topics/a", "*/*"), Some(503));
        // An `EventSource` never comes back after 503.
        assert_eq!(asked("/topics/a", "text/event-stream"), Some(200));
        held.clear();
        drop(spare);
        assert!(!places.take(None).await.expect("a place").is_spare());
    }

    #[test]
    fn an_address_that_opens_all_connections_leaves_a_share_to_others() {
        let places = Places::with(100, None);
        let payer = |last: u8| Some(Payer::address([203, 0, 113, last].into()));
        let modest = places.take_now(payer(1));
        let greedy: Vec<_> = (0..100).map(|_| places.take_now(payer(2))).collect();
        assert_eq!(greedy.iter().filter(|place| !place.is_spare()).count(), 74);
        drop(greedy);
        let greedy: Vec<_> = (0..74).map(|_| places.take_now(payer(2))).collect();
        let others: Vec<_> = (3..28).map(|last| places.take_now(payer(last))).collect();
        let served = [vec![modest], greedy, others].concat();
        assert!(served.iter().all(|place| !place.is_spare()));
    }

    #[tokio::test(start_paused = true)]
    async fn operators_have_the_places_of_all_and_then_some_of_their_own() {
        let all = Places::with(4, None);
        let operators = Places::with(2, Some(all.clone()));
        let first = operators.take(None).await.expect("a place of all");
        let mut public: Vec<Place> = (0..3).map(|_| all.take_now(None)).collect();
        while let Some(place) = all.take(None).await {
            public.push(place);
        }
        assert_eq!(public.iter().filter(|place| !place.is_spare()).count(), 3);
        let own =
            [operators.take(None).await, operators.take(None).await].map(|place| place.expect("a place"));
        assert!(own.iter().all(|place| !place.is_spare()));
        assert!(operators.take(None).await.is_some_and(|place| place.is_spare()), "for a probe");
        drop((first, public));
        assert_eq!((all.taken.load(Ordering::Relaxed), operators.taken.load(Ordering::Relaxed)), (0, 2));
    }

    /// Questions to the backend took the descriptors of probes and of the log.
    #[test]
    fn descriptors_are_kept_for_the_server_for_operators_and_for_questions() {
        let hook = Arc::new(HookSettings {
            url: "http://127.0.0.1:1/".parse().expect("a URL"),
            secret: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            terms: HookTerms::default(),
        });
        for (descriptors, asks, alone, with_operators) in [
            (10_000, false, 9_936, (9_840, 64)),
            (10_000, true, 9_872, (9_776, 64)),
            (1_024, true, 896, (800, 64)),
            (512, true, 384, (320, 32)),
            (256, false, 192, (144, 16)),
            (256, true, 128, (80, 16)),
            (64, false, 16, (16, 4)),
        ] {
            let tables = Authority { hook: asks.then(|| hook.clone()), ..Authority::default() };
            let config = Config { tables, ..Config::default() };
            let (all, operators) = Places::with_operators_within(&config, descriptors);
            assert_eq!((all.max, operators.max), with_operators, "{descriptors}, a hook: {asks}");
            assert_eq!(Places::of_all(&config, descriptors, 0).max, alone, "{descriptors}, a hook: {asks}");
        }
    }

    #[test]
    fn quiet_connections_are_waited_for_less_while_most_places_are_taken() {
        let (places, long) = (Places::with(8, None), Duration::from_secs(75));
        let (now, late) = (Instant::now(), Instant::now() + long);
        let mut held: Vec<Place> = (0..5).map(|_| places.take_now(None)).collect();
        assert_eq!((held[0].patience(long), held[0].deadline(late)), (long, late));
        held.push(places.take_now(None));
        assert_eq!(held[0].patience(long), PATIENCE);
        assert!(held[0].deadline(late) >= now + PATIENCE && held[0].deadline(late) < late);
        assert_eq!((held[0].patience(Duration::ZERO), held[0].deadline(now)), (Duration::ZERO, now));
    }
}
