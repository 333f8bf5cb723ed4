//! Decides who a client is. Most credentials are decided at once; some need the keys of an issuer, or an answer of the backend.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::task::TaskTracker;

use super::{
    connections::Connections,
    hook::{Asker, Hook, Question, Verdict, refused_by_hook},
    issuers::Learned,
    metrics::AskMetrics,
    overloaded,
    problem::Problem,
    refusal::problem_of,
    rules::Rules,
};
use crate::{
    auth::{Identity, Refused, Sources},
    log::Payer,
};

/// The parts of the server that asking others needs.
pub struct Context {
    pub connections: Arc<Connections>,
    pub metrics: AskMetrics,
    pub tasks: TaskTracker,
}

/// A client that was let in, and the rules that did it.
pub struct Identified {
    pub rules: Arc<Rules>,
    pub identity: Identity,
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
}

impl Deciding {
    /// Begins to identify a client by its credential. `question` makes what the backend would be asked.
    pub fn begin(
        self,
        credential: Option<&str>,
        question: impl FnOnce() -> Result<Option<Question>, Problem>,
    ) -> Begun {
        // A client that shows something to the backend is not anonymous.
        if credential.is_none() && self.rules.hook.is_some() {
            return match question() {
                Ok(Some(question)) => self.ask(Arc::new(question)),
                Ok(None) => Begun::Done(self.decide(None)),
                Err(problem) => Begun::Done(Err(problem)),
            };
        }
        let known = self.rules.authority.identify(credential, SystemTime::now());
        let source = known.as_ref().ok().and_then(Identity::source);
        let fetch = source.and_then(|source| self.rules.issuers.refresh(source, &self.context));
        match (known, fetch) {
            (Ok(identity), None) => Begun::Done(Ok(self.identified(identity))),
            (Ok(_), Some(fetch)) => {
                let token = credential.map(Box::<str>::from);
                Begun::Waits(
                    async move {
                        fetch.await;
                        self.decide(token.as_deref())
                    }
                    .boxed(),
                )
            }
            (Err(Refused::Unsettled { sources, .. }), _) => {
                let token = credential.map(Box::<str>::from).unwrap_or_default();
                let question = question();
                Begun::Waits(async move { self.learn(token, sources, question?).await }.boxed())
            }
            (Err(refused), _) => match question() {
                Ok(Some(question)) if self.rules.hook.is_some() => self.ask(Arc::new(question)),
                _ => Begun::Done(Err(problem_of(refused, self.client))),
            },
        }
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
        sources: Sources,
        question: Option<Question>,
    ) -> Result<Identified, Problem> {
        let learned = self.rules.issuers.learn(&sources.0, &self.context).await;
        match (self.rules.authority.identify(Some(&token), SystemTime::now()), question) {
            (Ok(identity), _) => Ok(self.identified(identity)),
            (Err(Refused::Unsettled { .. }), _) if learned == Learned::Undecided => {
                Err(Problem::undecided("the keys of the token's issuer cannot be fetched now; try again"))
            }
            (Err(_), Some(question)) if self.rules.hook.is_some() => match self.ask(Arc::new(question)) {
                Begun::Done(done) => done,
                Begun::Waits(wait) => wait.await,
            },
            (Err(refused), _) => Err(problem_of(refused, self.client)),
        }
    }

    /// Asks the backend, unless its answer is known.
    fn ask(self, question: Arc<Question>) -> Begun {
        let Some(hook) = self.rules.hook.clone() else { return Begun::Done(self.decide(None)) };
        match hook.known(&question) {
            Some(verdict) => Begun::Done(self.by(verdict, question)),
            None => Begun::Waits(self.wait(hook, question).boxed()),
        }
    }

    async fn wait(self, hook: Arc<Hook>, question: Arc<Question>) -> Result<Identified, Problem> {
        // It counts as a connection until then.
        let waiting = hook.wait(self.payer, &self.context);
        let waiting = waiting.ok_or_else(|| overloaded().but_undecided())?;
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
            Verdict::Away => Err(Problem::undecided("it cannot be decided now who you are; try again")),
        }
    }

    fn identified(self, identity: Identity) -> Identified {
        Identified { rules: self.rules, identity, question: None }
    }
}
