//! Asks the backend who a client is: once for all who show the same, and never more than it can take.

mod kept;
mod question;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::header;
use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use self::kept::Kept;
pub use self::question::Question;
use super::{
    fetch::{self, Fetched, Fetcher, PATIENCE},
    identify::Context,
    media,
    metrics::Outcome,
    problem::{Code, Problem},
};
use crate::auth::{HookAnswer, HookSettings};

/// How many questions the backend is asked at once.
const MAX_AT_ONCE: usize = 64;
/// How many requests may wait for its answers.
const MAX_WAITING: usize = 10_000;
/// The largest answer.
const MAX_BYTES: usize = 64 << 10;
/// The longest `detail` of a refusal that a client is told.
const MAX_DETAIL_CHARS: usize = 200;

/// The backend that is asked, and its answers.
pub struct Hook {
    pub settings: Arc<HookSettings>,
    fetcher: OnceLock<Result<Fetcher, String>>,
    at_once: Semaphore,
    waiting: AtomicUsize,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    running: HashMap<[u8; 32], Running>,
}

/// A question that is being asked.
type Running = Shared<BoxFuture<'static, Verdict>>;

/// The word of the backend about a client.
#[derive(Clone, Debug)]
pub enum Verdict {
    Granted(Arc<HookAnswer>),
    /// With the code for the client, and the backend's own words.
    Refused(Code, Option<Arc<str>>),
    /// It did not answer, or not in a way that can be read.
    Away,
}

/// One of the requests that wait.
pub struct Waiting<'a>(&'a Hook, &'a Context);

impl Hook {
    pub fn new(settings: Arc<HookSettings>) -> Self {
        let (fetcher, state, waiting) = Default::default();
        Self { settings, fetcher, at_once: Semaphore::new(MAX_AT_ONCE), waiting, state }
    }

    /// The answer, if it is known.
    pub fn known(&self, question: &Question) -> Option<Verdict> {
        self.state().kept.find(&question.digest, None)
    }

    /// The answer. One that came up to `after` does not count.
    ///
    /// # Cancel safety
    /// Dropping this does not stop the question: the next client that shows the same finds its answer.
    pub async fn ask(
        self: &Arc<Self>,
        question: &Arc<Question>,
        after: Option<SystemTime>,
        context: &Arc<Context>,
    ) -> Verdict {
        let running = {
            let mut state = self.state();
            if let Some(verdict) = state.kept.find(&question.digest, after) {
                return verdict;
            }
            let begin = || {
                let (this, asked, shared) = (self.clone(), question.clone(), context.clone());
                let running = async move { this.run(&asked, &shared).await }.boxed().shared();
                context.tasks.spawn(running.clone());
                running
            };
            state.running.entry(question.digest).or_insert_with(begin).clone()
        };
        running.await
    }

    /// Counts one more request that waits, until the result is dropped. `None` if there are too many.
    pub fn wait<'a>(&'a self, context: &'a Context) -> Option<Waiting<'a>> {
        let is_counted = self.waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING;
        context.metrics.waiting.inc();
        let waiting = Waiting(self, context);
        is_counted.then_some(waiting)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, question: &Question, context: &Context) -> Verdict {
        let asked = tokio::select! {
            asked = self.put(question) => asked,
            () = context.connections.shutdown().ended() => Err("this server ends".into()),
        };
        let (verdict, bytes) = asked.unwrap_or_else(|why| {
            let url = self.settings.url.as_str();
            tracing::warn!(
                url,
                why,
                "the backend of [hook] gave no answer; clients that it would know come again"
            );
            (Verdict::Away, 0)
        });
        context.metrics.asked(match verdict {
            Verdict::Granted(_) => Outcome::Granted,
            Verdict::Refused(..) => Outcome::Refused,
            Verdict::Away => Outcome::Away,
        });
        let mut state = self.state();
        state.running.remove(&question.digest);
        state.kept.put(question.digest, &verdict, bytes, Instant::now());
        verdict
    }

    /// The answer to a question, and its size.
    async fn put(&self, question: &Question) -> Result<(Verdict, usize), String> {
        let too_late = |_| format!("no answer within {PATIENCE:?}");
        let slot = timeout(PATIENCE, self.at_once.acquire()).await;
        let _slot = slot.map_err(|_| "too many questions wait")?.map_err(|error| error.to_string())?;
        let HookSettings { url, secret, .. } = &*self.settings;
        let fetcher = self.fetcher.get_or_init(|| Fetcher::new(url, None)).as_ref().map_err(Clone::clone)?;
        let mut request = fetcher.post(url.clone()).header(header::CONTENT_TYPE, media::JSON);
        if let Some(secret) = secret {
            request = request.bearer_auth(secret);
        }
        let request = request.body(question.body.clone());
        let answer = timeout(PATIENCE, fetch::whole(request, MAX_BYTES)).await.map_err(too_late)??;
        Ok((self.verdict(&answer)?, answer.body.len()))
    }

    fn verdict(&self, answer: &Fetched) -> Result<Verdict, String> {
        let code = match answer.status.as_u16() {
            200 => {
                let answer = HookAnswer::read(&answer.body, &self.settings.terms, SystemTime::now())?;
                return Ok(Verdict::Granted(Arc::new(answer)));
            }
            401 => Code::Unauthorized,
            403 => Code::Forbidden,
            other => return Err(format!("its status is {other}, and expected are 200, 401 and 403")),
        };
        #[derive(Deserialize)]
        struct Refusal {
            detail: String,
        }
        let told = serde_json::from_slice::<Refusal>(&answer.body).ok();
        let detail = told.map(|told| told.detail.chars().take(MAX_DETAIL_CHARS).collect::<String>().into());
        Ok(Verdict::Refused(code, detail))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Self(hook, context) = self;
        hook.waiting.fetch_sub(1, Ordering::Relaxed);
        context.metrics.waiting.dec();
    }
}

/// The answer to a client that the backend refuses.
pub fn refused_by_hook(code: Code, detail: Option<&str>) -> Problem {
    Problem::new(code, detail.unwrap_or("the credential is not accepted"))
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        auth::HookTerms,
        config::Config,
        http::{connections::Connections, metrics::Metrics},
        shutdown::Shutdown,
    };

    #[test]
    fn so_many_requests_may_wait_and_one_more_is_turned_away() {
        let context = Context {
            connections: Arc::new(Connections::new(&Config::default(), Shutdown::new())),
            metrics: Metrics::new().asks,
            tasks: TaskTracker::new(),
        };
        let hook = Hook::new(Arc::new(HookSettings {
            url: "http://localhost/".parse().expect("a URL"),
            secret: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            terms: HookTerms::default(),
        }));
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| hook.wait(&context)).collect();
        assert!(waiting.iter().all(Option::is_some) && hook.wait(&context).is_none());
        assert_eq!(context.metrics.waiting.get(), MAX_WAITING as i64);
        waiting.pop();
        assert!(hook.wait(&context).is_some());
        waiting.clear();
        assert_eq!(context.metrics.waiting.get(), 0);
    }
}
