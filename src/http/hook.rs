//! Asks the backend who a client is: once for all who show the same, and never more than it can take.

mod kept;
mod question;
mod turns;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
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
use self::turns::Turns;
use super::{
    connections::WaitCosts,
    fetch::{self, Fetched, Fetcher, PATIENCE},
    identify::Context,
    media,
    metrics::Outcome,
    overloaded,
    problem::{Code, Problem},
    shares::{Share, Shares},
};
use crate::{
    auth::{HookAnswer, HookSettings},
    log::Payer,
};

/// How many questions the backend is asked at once.
pub const MAX_AT_ONCE: usize = 64;
/// How many requests may wait for its answers.
const MAX_WAITING: usize = 10_000;
/// The largest answer.
const MAX_BYTES: usize = 64 << 10;
/// The longest `detail` of a refusal that a client is told.
const MAX_DETAIL_CHARS: usize = 200;

/// How many subjects are remembered whose answers were forgotten, for questions that were on their way.
const MAX_FORGOTTEN: usize = 1024;
/// How often a question is asked whose answer is forgotten before it comes.
const MAX_TRIES: usize = 3;

/// The backend that is asked, and its answers.
pub struct Hook {
    pub settings: Arc<HookSettings>,
    fetcher: OnceLock<Result<Fetcher, String>>,
    at_once: Semaphore,
    /// New clients queue for their turn, and only the one whose turn it is queues for `at_once`. So at most one of them is
    /// ahead of a renewal.
    turns: Turns,
    waiting: Arc<Shares>,
    // A std mutex: no await happens while it is held.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    running: HashMap<[u8; 32], Running>,
    /// The subjects whose answers were forgotten last. An answer to a question that was asked before that does not count.
    forgotten: VecDeque<(Box<str>, Instant)>,
    /// When those about all subjects were.
    forgotten_all: Option<Instant>,
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

/// The place of a request that waits.
pub struct Waiting {
    /// It counts as a connection, with its head.
    _costs: WaitCosts,
    _share: Share,
    payer: Option<Payer>,
    context: Arc<Context>,
}

/// The place of a question in the queue.
#[derive(Clone, Copy)]
enum Place {
    /// Behind one question of each other payer that has some.
    Comer(Option<Payer>),
    First,
}

/// Asks a question.
pub enum Asker {
    Comer(Waiting),
    /// A connection, which has its place. An answer that came up to then does not count.
    Renewal(SystemTime),
}

impl Hook {
    pub fn new(settings: Arc<HookSettings>) -> Self {
        let (fetcher, turns, state) = Default::default();
        let waiting = Shares::leaving_as_much(MAX_WAITING);
        Self { settings, fetcher, at_once: Semaphore::new(MAX_AT_ONCE), turns, waiting, state }
    }

    /// The answer, if it is known.
    pub fn known(&self, question: &Question) -> Option<Verdict> {
        self.state().kept.find(&question.digest, None)
    }

    /// The answer.
    ///
    /// # Cancel safety
    /// Dropping this does not stop the question: the next client that shows the same finds its answer. The question
    /// keeps the place of the client that has begun it, so that those who leave early have no more asked than others.
    pub async fn ask(
        self: &Arc<Self>,
        question: &Arc<Question>,
        asker: Asker,
        context: &Arc<Context>,
    ) -> Verdict {
        let (mut waiting, after, place) = match asker {
            Asker::Comer(waiting) => {
                let place = Place::Comer(waiting.payer);
                (Some(waiting), None, place)
            }
            Asker::Renewal(after) => (None, Some(after), Place::First),
        };
        let running = {
            let mut state = self.state();
            if let Some(verdict) = state.kept.find(&question.digest, after) {
                return verdict;
            }
            let begin = || {
                let (this, asked, shared) = (self.clone(), question.clone(), context.clone());
                let waiting = waiting.take();
                let running = async move {
                    let verdict = this.run(&asked, place, &shared).await;
                    drop(waiting);
                    verdict
                };
                let running = running.boxed().shared();
                context.tasks.spawn(running.clone());
                running
            };
            state.running.entry(question.digest).or_insert_with(begin).clone()
        };
        running.await
    }

    /// Counts one more request that waits, until the result is dropped.
    ///
    /// # Errors
    /// `overloaded` if there are too many, or too many of this client, or if their heads are too large together.
    pub fn wait(
        &self,
        payer: Option<Payer>,
        head_bytes: usize,
        context: &Arc<Context>,
    ) -> Result<Waiting, Problem> {
        let costs = context.connections.admit_waiting(payer, head_bytes)?;
        let share = self.waiting.take(payer, 1).ok_or_else(overloaded)?;
        context.metrics.waiting.inc();
        Ok(Waiting { _costs: costs, _share: share, payer, context: context.clone() })
    }

    /// Forgets the answers about a subject, also those that are on their way: the backend is asked again.
    pub fn forget(&self, subject: &str) {
        let mut state = self.state();
        state.kept.forget(subject);
        if state.forgotten.len() == MAX_FORGOTTEN {
            state.forgotten.pop_front();
        }
        state.forgotten.push_back((subject.into(), Instant::now()));
    }

    /// Forgets the answers about all subjects, because some that were to be forgotten may not be known.
    pub fn forget_all(&self) {
        let mut state = self.state();
        state.kept.forget_granted();
        state.forgotten_all = Some(Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, question: &Question, place: Place, context: &Context) -> Verdict {
        for _ in 0..MAX_TRIES {
            let asked_at = Instant::now();
            let (verdict, bytes) = self.run_once(question, place, context).await;
            let mut state = self.state();
            if !state.is_forgotten(&verdict, asked_at) {
                state.keep(question, &verdict, bytes);
                return verdict;
            }
        }
        self.state().keep(question, &Verdict::Away, 0);
        Verdict::Away
    }

    async fn run_once(&self, question: &Question, place: Place, context: &Context) -> (Verdict, usize) {
        let asked = tokio::select! {
            asked = self.put(question, place) => asked,
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
        (verdict, bytes)
    }

    /// The answer to a question, and its size.
    async fn put(&self, question: &Question, place: Place) -> Result<(Verdict, usize), String> {
        let too_late = |_| format!("no answer within {PATIENCE:?}");
        let slot = async {
            match place {
                Place::Comer(payer) => self.turns.wait(payer, self.at_once.acquire()).await,
                Place::First => self.at_once.acquire().await,
            }
        };
        let slot = timeout(PATIENCE, slot).await;
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

impl State {
    /// True if an answer to a question that was asked then does not count.
    fn is_forgotten(&self, verdict: &Verdict, asked_at: Instant) -> bool {
        let Verdict::Granted(answer) = verdict else { return false };
        let Some(subject) = answer.subject() else { return false };
        // Some that were forgotten since then are not remembered any more.
        let has_lost = self.forgotten.len() == MAX_FORGOTTEN
            && self.forgotten.front().is_some_and(|(_, at)| *at >= asked_at);
        let is_of_this = |(forgotten, at): &(Box<str>, Instant)| **forgotten == *subject && *at >= asked_at;
        has_lost
            || self.forgotten_all.is_some_and(|at| at >= asked_at)
            || self.forgotten.iter().any(is_of_this)
    }

    fn keep(&mut self, question: &Question, verdict: &Verdict, bytes: usize) {
        self.running.remove(&question.digest);
        self.kept.put(question.digest, verdict, bytes, Instant::now());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.context.metrics.waiting.dec();
    }
}

/// The answer to a client that the backend refuses.
pub fn refused_by_hook(code: Code, detail: Option<&str>) -> Problem {
    Problem::new(
        code,
        detail.unwrap_or("the credential is not accepted: the backend that was asked refuses it"),
    )
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

    fn context() -> Arc<Context> {
        let config = Config { max_connections: 2 * MAX_WAITING, ..Config::default() };
        Arc::new(Context {
            connections: Arc::new(Connections::new(&config, Shutdown::new())),
            metrics: Metrics::new().asks,
            tasks: TaskTracker::new(),
            ended: Arc::default(),
        })
    }

    /// A hook whose backend takes connections, and answers nothing.
    async fn hook() -> (tokio::net::TcpListener, Arc<Hook>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let settings = HookSettings {
            url: url.parse().expect("a URL"),
            secret: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            terms: HookTerms::default(),
        };
        (listener, Arc::new(Hook::new(Arc::new(settings))))
    }

    fn question(hook: &Hook, number: usize) -> Arc<Question> {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        Arc::new(Question { digest, body: "{}".into(), settings: hook.settings.clone() })
    }

    #[tokio::test]
    async fn so_many_requests_may_wait_and_one_more_is_turned_away() {
        let (context, (_backend, hook)) = (context(), hook().await);
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| hook.wait(None, 100, &context)).collect();
        assert!(waiting.iter().all(Result::is_ok) && hook.wait(None, 100, &context).is_err());
        assert_eq!(context.connections.waiting_head_bytes(), MAX_WAITING * 100);
        assert_eq!(context.metrics.waiting.get(), MAX_WAITING as i64);
        waiting.pop();
        assert!(hook.wait(None, 0, &context).is_ok());
        waiting.clear();
        assert_eq!((context.metrics.waiting.get(), context.connections.count()), (0, 0));
    }

    #[tokio::test]
    async fn a_client_that_waits_often_leaves_as_many_places_to_others() {
        let (context, (_backend, hook)) = (context(), hook().await);
        let (greedy, other) = (Some(Payer::subject("greedy")), Some(Payer::subject("other")));
        let all: Vec<_> = std::iter::from_fn(|| hook.wait(greedy, 0, &context).ok()).collect();
        assert_eq!(all.len(), MAX_WAITING / 16 * 7);
        assert!(hook.wait(other, 0, &context).is_ok());
    }

    /// Clients that left at once had more and more asked, and renewals stood behind all of it.
    #[tokio::test]
    async fn a_question_keeps_the_place_of_a_client_that_leaves_and_renewals_go_first() {
        let (context, (_backend, hook)) = (context(), hook().await);
        for number in 0..2 * MAX_AT_ONCE {
            let waiting = hook.wait(None, 0, &context).expect("a place");
            let left = hook.ask(&question(&hook, number), Asker::Comer(waiting), &context).now_or_never();
            assert!(left.is_none());
            tokio::task::yield_now().await;
        }
        assert_eq!(context.connections.count(), 2 * MAX_AT_ONCE);
        assert_eq!((hook.at_once.available_permits(), hook.waiting.taken()), (0, 2 * MAX_AT_ONCE));
        let asked = question(&hook, usize::MAX);
        let mut renewal = hook.put(&asked, Place::First).boxed();
        assert!(renewal.as_mut().now_or_never().is_none());
        hook.at_once.add_permits(2);
        drop(renewal);
        assert_eq!(hook.at_once.available_permits(), 1, "one client went first, and then the renewal");
        context.connections.shutdown().end();
    }

    /// Its questions were asked before those of all others.
    #[tokio::test]
    async fn a_client_with_many_questions_has_one_asked_before_that_of_another() {
        let (context, (_backend, hook)) = (context(), hook().await);
        let (greedy, other) = (Some(Payer::subject("greedy")), Some(Payer::subject("other")));
        for number in 0..3 * MAX_AT_ONCE {
            let waiting = hook.wait(greedy, 0, &context).expect("a place");
            let left = hook.ask(&question(&hook, number), Asker::Comer(waiting), &context).now_or_never();
            assert!(left.is_none());
            tokio::task::yield_now().await;
        }
        let asked = question(&hook, usize::MAX);
        let mut behind = hook.put(&asked, Place::Comer(other)).boxed();
        assert!(behind.as_mut().now_or_never().is_none());
        hook.at_once.add_permits(1);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        hook.at_once.add_permits(1);
        assert!(behind.as_mut().now_or_never().is_none());
        drop(behind);
        assert_eq!(hook.at_once.available_permits(), 1, "one went first, and then the other client");
        context.connections.shutdown().end();
    }
}
