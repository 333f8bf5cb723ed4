//! Fetches the keys of issuers: when a token needs them, once for all who wait, and never more often than is told.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{
    fetch::{self, Fetcher, PATIENCE, fresh_for},
    identify::Context,
    problem::shorten,
};
use crate::auth::{Authority, Issuer, KeySet, Place, Refused, Source, parse_keys, safe_url};

/// The largest set of keys, and the largest metadata.
const MAX_BYTES: usize = 256 << 10;
/// How long keys are kept, whatever the headers say.
const FRESH_AT_LEAST: Duration = Duration::from_secs(60);
const FRESH_AT_MOST: Duration = Duration::from_secs(24 * 3600);
/// How long they are kept if the headers say nothing.
const USUALLY_FRESH: Duration = Duration::from_secs(300);
/// How often keys are fetched because a token names one that is not known.
const UNKNOWN_EVERY: Duration = Duration::from_secs(10);
/// The pause after a fetch that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The fetchers of all issuers.
#[derive(Default)]
pub struct Issuers(Vec<Arc<Fetching>>);

/// The outcome of a wait for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    Fetched,
    /// The issuer is away, or was asked just now.
    Undecided,
}

/// The fetches from one source.
struct Fetching {
    name: String,
    source: Arc<Source>,
    keys: Arc<KeySet>,
    /// With TLS, and without.
    fetchers: [OnceLock<Result<Fetcher, String>>; 2],
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
}

type Running = Shared<BoxFuture<'static, Learned>>;

#[derive(Default)]
struct State {
    running: Option<Running>,
    fetched_at: Option<Instant>,
    stale_at: Option<Instant>,
    /// When the last fetch failed, if it did.
    failed_at: Option<Instant>,
}

impl Issuers {
    /// Fetchers for the issuers of `authority`. Those with the same place as before keep their keys, and fetch them again if
    /// something else is new about the source.
    pub fn of(authority: &mut Authority, before: &Self) -> Self {
        let fetching = authority.issuers.iter_mut().map(|Issuer { terms, source, keys }| {
            let mut state = State::default();
            if let Some(known) = before.0.iter().find(|known| known.source.place == source.place) {
                if known.source == *source {
                    *keys = known.keys.clone();
                    return known.clone();
                }
                // A set of its own: a fetch by what was configured before may still run.
                *keys = Arc::new(known.keys.copy());
                state.stale_at = Some(Instant::now());
            }
            Arc::new(Fetching {
                name: terms.name.clone(),
                source: source.clone(),
                keys: keys.clone(),
                fetchers: Default::default(),
                state: Mutex::new(state),
            })
        });
        Self(fetching.collect())
    }

    /// Fetches all keys that were never fetched, and waits for none.
    pub fn begin(&self, context: &Arc<Context>) {
        for fetching in self.0.iter().filter(|fetching| !fetching.keys.is_fetched()) {
            let _ = fetching.start(context, |state| state.running.is_none());
        }
    }

    /// Waits until the keys of these sources are fetched because of an unknown one.
    pub async fn learn(&self, sources: &[Arc<Source>], context: &Arc<Context>) -> Learned {
        let is_due = |state: &State| state.fetched_at.is_none_or(|at| at.elapsed() >= UNKNOWN_EVERY);
        let found = sources.iter().filter_map(|source| self.find(source));
        let all = found.map(|fetching| {
            let running = fetching.start(context, is_due);
            async { if let Some(running) = running { running.await } else { Learned::Undecided } }
        });
        let are_all_fetched = join_all(all).await.into_iter().all(|one| one == Learned::Fetched);
        if are_all_fetched { Learned::Fetched } else { Learned::Undecided }
    }

    /// The sources without whose keys this refusal is not certain: keys that are not known, or that are stale.
    pub fn doubtful(&self, refused: &Refused) -> Vec<Arc<Source>> {
        let (Refused::Unsettled { sources, .. } | Refused::NotOfIssuer { sources, .. }) = refused else {
            return Vec::new();
        };
        let is_stale = |source: &&Arc<Source>| self.find(source).is_some_and(|known| known.is_stale());
        sources.unknown.iter().chain(sources.denied.iter().filter(is_stale)).cloned().collect()
    }

    /// A fetch to wait for before a token of this source counts, if its keys have been kept long enough. While the issuer
    /// is away nobody waits, and the last keys count.
    pub fn refresh(&self, source: &Arc<Source>, context: &Arc<Context>) -> Option<Running> {
        let fetching = self.find(source)?;
        if !fetching.is_stale() {
            return None;
        }
        let is_away = fetching.state().failed_at.is_some();
        let running = fetching.start(context, |_| true);
        if is_away { None } else { running }
    }

    fn find(&self, source: &Arc<Source>) -> Option<&Arc<Fetching>> {
        self.0.iter().find(|fetching| fetching.source == *source)
    }
}

impl Fetching {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stale(&self) -> bool {
        self.state().stale_at.is_some_and(|at| at <= Instant::now())
    }

    /// The fetch that runs, or a new one. There is none if the last one has just failed, or if a new one is not due.
    fn start(self: &Arc<Self>, context: &Arc<Context>, is_due: impl Fn(&State) -> bool) -> Option<Running> {
        let mut state = self.state();
        if let Some(running) = &state.running {
            return Some(running.clone());
        }
        if state.failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER) || !is_due(&state) {
            return None;
        }
        let (this, shared) = (self.clone(), context.clone());
        let running = async move { this.run(&shared).await }.boxed().shared();
        state.running = Some(running.clone());
        drop(state);
        // It goes on if everyone who waits has left, so that the next one finds the keys.
        context.tasks.spawn(running.clone());
        Some(running)
    }

    async fn run(&self, context: &Context) -> Learned {
        let fetched = tokio::select! {
            fetched = timeout(PATIENCE, self.fetch()) => {
                fetched.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
            }
            () = context.connections.shutdown().draining() => Err("this server ends".into()),
        };
        context.metrics.fetched(fetched.is_ok());
        let mut state = self.state();
        state.running = None;
        match fetched {
            Ok(fresh) => {
                let now = Instant::now();
                (state.fetched_at, state.failed_at, state.stale_at) = (Some(now), None, Some(now + fresh));
                Learned::Fetched
            }
            Err(why) => {
                state.failed_at = Some(Instant::now());
                drop(state);
                tracing::warn!(
                    jwt = self.name,
                    place = %self.source.place,
                    why,
                    has_keys = self.keys.is_fetched(),
                    "cannot fetch the keys of an issuer; tokens of keys that are not known wait until it answers"
                );
                Learned::Undecided
            }
        }
    }

    /// Fetches the keys, and returns how long they may be kept.
    async fn fetch(&self) -> Result<Duration, String> {
        let Source { place, ca, algorithm } = &*self.source;
        let url = match place {
            Place::Jwks(url) => url.clone(),
            Place::Issuer { name, metadata } => {
                let answer = self.get(metadata.clone(), ca.as_deref()).await?;
                keys_of(&answer.body, name, metadata)?
            }
        };
        let answer = self.get(url, ca.as_deref()).await?;
        let keys = parse_keys(&answer.body, *algorithm)?;
        let (count, kids) =
            (keys.len(), keys.iter().filter_map(|key| key.kid()).collect::<Vec<_>>().join(", "));
        if self.keys.put(keys) {
            tracing::info!(
                jwt = self.name,
                keys = count,
                kids = shorten(kids),
                "fetched the keys of an issuer"
            );
        }
        let fresh = fresh_for(&answer.headers).unwrap_or(USUALLY_FRESH);
        Ok(fresh.clamp(FRESH_AT_LEAST, FRESH_AT_MOST))
    }

    async fn get(&self, url: Url, ca: Option<&str>) -> Result<fetch::Fetched, String> {
        let fetcher = &self.fetchers[usize::from(url.scheme() == "http")];
        let fetcher = fetcher.get_or_init(|| Fetcher::new(&url, ca)).as_ref().map_err(Clone::clone)?;
        let answer = fetch::whole(fetcher.get(url.clone()), MAX_BYTES).await?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(format!("{url} answers {}", answer.status)),
        }
    }
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

/// The place of the keys in the metadata, fetched from this URL, of the issuer of this name.
fn keys_of(json: &[u8], name: &str, metadata: &Url) -> Result<Url, String> {
    let Metadata { issuer, jwks_uri } =
        serde_json::from_slice(json).map_err(|error| format!("the metadata: {error}"))?;
    if issuer != name {
        return Err("the metadata are of another issuer than the configured one, letter by letter".into());
    }
    let url = safe_url(&jwks_uri).map_err(|why| format!("the metadata: jwks_uri: {why}"))?;
    // Only an issuer on this machine may lead to other services of it.
    if url.scheme() == "http" && metadata.scheme() != "http" {
        return Err("the metadata: jwks_uri: expected a URL of https, as their own".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        config::Config,
        http::{connections::Connections, metrics::Metrics},
        shutdown::Shutdown,
    };

    /// A server with one issuer, whose certificate this one has signed.
    fn authority(ca: &str) -> Authority {
        let place = Place::jwks("https://id.example/").expect("a URL");
        let source = Arc::new(Source { place, ca: Some(ca.into()), algorithm: None });
        let issuer = Issuer { terms: Arc::default(), source, keys: Arc::default() };
        Authority { issuers: vec![issuer], ..Authority::closed() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_failed_is_begun_again_after_a_second_at_the_earliest() {
        let config = Config::default();
        let context = Arc::new(Context {
            connections: Arc::new(Connections::new(&config, Shutdown::new())),
            metrics: Metrics::new().asks,
            tasks: TaskTracker::new(),
            ended: Arc::default(),
        });
        let issuers = Issuers::of(&mut authority("ca"), &Issuers::default());
        let fetching = &issuers.0[0];
        fetching.state().failed_at = Some(Instant::now());
        tokio::time::advance(RETRY_AFTER - Duration::from_millis(1)).await;
        assert!(fetching.start(&context, |_| true).is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(fetching.start(&context, |_| true).is_some());
    }

    /// A fetch by the configuration before replaced the keys of the one in force.
    #[test]
    fn keys_that_are_fetched_by_an_old_certificate_come_too_late_for_a_new_one() {
        let (mut old, mut new, mut newest) = (authority("old"), authority("new"), authority("newest"));
        let before = Issuers::of(&mut old, &Issuers::default());
        let after = Issuers::of(&mut new, &before);
        old.issuers[0].keys.put(Vec::new());
        assert!(!new.issuers[0].keys.is_fetched());
        new.issuers[0].keys.put(Vec::new());
        Issuers::of(&mut newest, &after);
        assert!(newest.issuers[0].keys.is_fetched(), "the last keys count until others are there");
    }

    #[test]
    fn only_an_issuer_on_this_machine_has_its_keys_there_without_tls() {
        let keys = |from: &str, uri: &str| {
            let json = serde_json::json!({"issuer": "id", "jwks_uri": uri}).to_string();
            keys_of(json.as_bytes(), "id", &from.parse().expect("a URL"))
        };
        let (far, near) = ("https://id.example/m", "http://127.0.0.1:1/m");
        assert!(keys(far, "https://keys.example/").is_ok() && keys(near, "http://localhost:2/").is_ok());
        assert!(keys(far, "http://127.0.0.1:6379/").is_err() && keys(far, "http://localhost/").is_err());
    }
}
