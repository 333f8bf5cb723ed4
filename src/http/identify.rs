//! Decides who a client is. Most credentials are decided at once; some need the keys of an issuer, or an answer of the backend.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::task::TaskTracker;

use super::{
    connections::{Connections, WaitCosts},
    credentials::Unusable,
    hook::{Asker, Hook, Question, Verdict, refused_by_hook},
    issuers::Learned,
    metrics::AskMetrics,
    problem::Problem,
    refusal::{problem_of, refuse},
    rules::Rules,
    subjects::Ended,
};
use crate::{
    auth::{Identity, Refused, Source},
    log::Payer,
};

/// The parts of the server that asking others needs.
pub struct Context {
    pub connections: Arc<Connections>,
    pub metrics: AskMetrics,
    pub tasks: TaskTracker,
    pub ended: Arc<Ended>,
}

/// A client that was let in, and the rules that did it.
pub struct Identified {
    pub rules: Arc<Rules>,
    pub identity: Arc<Identity>,
    /// With this the backend is asked again.
    pub question: Option<Arc<Question>>,
}

/// The outcome, or the wait for it.
pub enum Begun {
    Done(Result<Identified, Problem>),
    Waits(BoxFuture<'static, Result<Identified, Problem>>),
}

/// The decision about one client.
pub struct Deciding {
    pub context: Arc<Context>,
    pub rules: Arc<Rules>,
    pub client: Option<IpAddr>,
    /// For whom a wait is counted.
    pub payer: Option<Payer>,
    /// The size of the head of a request that may wait. A connection is counted already, and has none.
    pub head_bytes: Option<usize>,
}

impl Deciding {
    /// Begins to identify a client by its credential. `question` makes what the backend would be asked.
    pub fn begin(
        self,
        credential: Option<&str>,
        question: impl FnOnce() -> Result<Option<Question>, Unusable>,
    ) -> Begun {
        // A client that shows something to the backend is not anonymous.
        if credential.is_none()
            && let Some(hook) = self.rules.hook.clone()
        {
            return match question() {
                Ok(Some(question)) => self.ask(hook, Arc::new(question)),
                Ok(None) => Begun::Done(self.decide(None)),
                Err(unusable) => Begun::Done(Err(refuse(unusable, self.client))),
            };
        }
        let known = self.rules.authority.identify(credential, SystemTime::now());
        let source = known.as_ref().ok().and_then(|identity| identity.source());
        let fetch = source.and_then(|source| self.rules.issuers.refresh(source, &self.context));
        let refused = match (known, fetch) {
            (Ok(identity), None) => return Begun::Done(Ok(self.identified(identity))),
            (Ok(identity), Some(fetch)) => {
                // A full server decides by the last keys.
                let Ok(place) = self.take_place() else { return Begun::Done(Ok(self.identified(identity))) };
                let token = credential.map(Box::<str>::from);
                let wait = async move {
                    fetch.await;
                    drop(place);
                    self.decide(token.as_deref())
                };
                return Begun::Waits(wait.boxed());
            }
            (Err(refused), _) => refused,
        };
        let doubtful = self.rules.issuers.doubtful(&refused);
        // A mistake in it does not refuse a token that the keys may accept.
        let question = question().ok().flatten();
        if !doubtful.is_empty() {
            let token = credential.map(Box::<str>::from).unwrap_or_default();
            return Begun::Waits(async move { self.learn(token, doubtful, question).await }.boxed());
        }
        match (question, self.rules.hook.clone()) {
            (Some(question), Some(hook)) => self.ask(hook, Arc::new(question)),
            _ => Begun::Done(Err(problem_of(refused, self.client))),
        }
    }

    /// A client that waits counts as a connection until then.
    fn take_place(&self) -> Result<Option<WaitCosts>, Problem> {
        let Some(bytes) = self.head_bytes else { return Ok(None) };
        let place = self.context.connections.admit_waiting(self.payer, bytes);
        place.map(Some).map_err(Problem::but_undecided)
    }

    /// Decides by what is known now.
    fn decide(self, credential: Option<&str>) -> Result<Identified, Problem> {
        match self.rules.authority.identify(credential, SystemTime::now()) {
            Ok(identity) => Ok(self.identified(identity)),
            Err(refused) => Err(problem_of(refused, self.client)),
        }
    }

    /// Decides once the keys of these issuers were fetched. The backend is asked only if no issuer accepts the token.
    async fn learn(
        self,
        token: Box<str>,
        sources: Vec<Arc<Source>>,
        question: Option<Question>,
    ) -> Result<Identified, Problem> {
        let place = self.take_place()?;
        let learned = self.rules.issuers.learn(&sources, &self.context).await;
        drop(place);
        let refused = match self.rules.authority.identify(Some(&token), SystemTime::now()) {
            Ok(identity) => return Ok(self.identified(identity)),
            Err(refused) => refused,
        };
        let undecided =
            || Problem::undecided("the keys of the token's issuer cannot be fetched now; try again");
        let is_undecided = learned == Learned::Undecided && !self.rules.issuers.doubtful(&refused).is_empty();
        match (question, self.rules.hook.clone()) {
            // The backend may know a token that names no issuer of ours. Its refusal leaves the token undecided.
            (Some(question), Some(hook)) if !(is_undecided && is_named(&refused)) => {
                let done = match self.ask(hook, Arc::new(question)) {
                    Begun::Done(done) => done,
                    Begun::Waits(wait) => wait.await,
                };
                if is_undecided { done.map_err(|_| undecided()) } else { done }
            }
            _ if is_undecided => Err(undecided()),
            _ => Err(problem_of(refused, self.client)),
        }
    }

    /// Asks the backend, unless its answer is known.
    fn ask(self, hook: Arc<Hook>, question: Arc<Question>) -> Begun {
        match hook.known(&question) {
            Some(verdict) => Begun::Done(self.by(verdict, question)),
            None => Begun::Waits(self.wait(hook, question).boxed()),
        }
    }

    async fn wait(self, hook: Arc<Hook>, question: Arc<Question>) -> Result<Identified, Problem> {
        // It counts as a connection until then.
        let waiting = hook.wait(self.payer, self.head_bytes.unwrap_or_default(), &self.context);
        let waiting = waiting.map_err(Problem::but_undecided)?;
        let verdict = hook.ask(&question, Asker::Comer(waiting), &self.context).await;
        self.by(verdict, question)
    }

    fn by(self, verdict: Verdict, question: Arc<Question>) -> Result<Identified, Problem> {
        match verdict {
            Verdict::Granted(answer) => {
                match self.rules.authority.identify_by_hook(&answer, SystemTime::now()) {
                    Ok(identity) => Ok(Identified { question: Some(question), ..self.identified(identity) }),
                    Err(refused) => Err(problem_of(refused, self.client)),
                }
            }
            Verdict::Refused(code, detail) => {
                let client = self.client.map(tracing::field::display);
                tracing::debug!(client, %code, detail = detail.as_deref(), "the backend of [hook] refused a client");
                Err(refused_by_hook(code, detail.as_deref()))
            }
            Verdict::Away => {
                Err(Problem::undecided("the backend that says who you are gives no answer now; try again"))
            }
        }
    }

    fn identified(self, identity: Arc<Identity>) -> Identified {
        Identified { rules: self.rules, identity, question: None }
    }
}

/// True if keys that are not known, or not fresh, are those of the issuer that the token names.
fn is_named(refused: &Refused) -> bool {
    match refused {
        Refused::Unsettled { sources, .. } | Refused::NotOfIssuer { sources, .. } => sources.are_named,
        _ => true,
    }
}
