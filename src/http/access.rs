//! The rights of a client: checked at every step, by the configuration in force at that moment.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use axum::extract::Request;
use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    App,
    access_log::Record,
    client_address::ClientAddress,
    credentials::{Shown, Unusable},
    gate::Gate,
    hook::{Hook, Question},
    identify::{Begun, Context, Deciding, Identified},
    issuers::Issuers,
    origin,
    problem::{Code, Problem},
    refusal::{expired, forbidden, log_unfilled, problem_of},
    renewal::Renewal,
    shares::Payer,
};
use crate::{
    auth::{Authority, Identity, Refused},
    config::{Config, Host, Origin},
    message::{Pattern, Topic},
};

/// The configured keys, grants, origins and hosts. They may change while the server runs.
pub struct Rules {
    pub authority: Authority,
    pub issuers: Issuers,
    pub hook: Option<Arc<Hook>>,
    pub origins: Vec<Origin>,
    pub hosts: Vec<Host>,
    /// Cancelled once other rules are in force.
    replaced: CancellationToken,
}

impl Rules {
    /// The rules of this configuration. What was learned under the rules before is kept, if it still counts.
    fn of(config: &Config, before: Option<&Self>) -> Self {
        let mut authority = config.authority();
        let none = Issuers::default();
        let issuers = Issuers::of(&mut authority, before.map_or(&none, |before| &before.issuers));
        let hook = authority.hook.clone().map(|settings| {
            let known = before.and_then(|before| before.hook.as_ref());
            let known = known.filter(|hook| *hook.settings == *settings);
            known.cloned().unwrap_or_else(|| Arc::new(Hook::new(settings)))
        });
        Self {
            authority,
            issuers,
            hook,
            origins: config.allowed_origins.clone(),
            hosts: config.allowed_hosts.clone(),
            replaced: CancellationToken::new(),
        }
    }
}

/// The rules that are in force.
pub struct InForce {
    rules: ArcSwap<Rules>,
    context: Arc<Context>,
}

impl InForce {
    pub fn new(config: &Config, context: Context) -> Self {
        Self { rules: ArcSwap::from_pointee(Rules::of(config, None)), context: Arc::new(context) }
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.rules.load()
    }

    fn load_full(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Begins to fetch the keys of all issuers that are not known yet.
    pub fn begin_fetching(&self) {
        self.load().issuers.begin(&self.context);
    }

    /// Puts other rules in force. Every connection then checks if it may stay.
    fn replace(&self, config: &Config) {
        let rules = Rules::of(config, Some(&self.load()));
        self.rules.swap(Arc::new(rules)).replaced.cancel();
    }
}

impl App {
    /// Takes over keys, grants and origins of `config` while connections are open. Connections that are still
    /// allowed notice nothing; the others end.
    ///
    /// # Errors
    /// If a server that requires credentials would no longer require any: then nothing changes. A file that
    /// is just being written looks like that.
    pub fn reconfigure(&self, config: &Config) -> Result<(), Reopened> {
        if config.authority().is_open() && !self.rules.load().authority.is_open() {
            return Err(Reopened);
        }
        self.rules.replace(config);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no credentials are configured any more, which would open this server; restart it if that is intended"
)]
/// The new rules would open a server that requires credentials.
pub struct Reopened;

/// A client, and the rules by which its rights were last checked.
#[derive(Clone)]
pub struct Access {
    in_force: Arc<InForce>,
    rules: Arc<Rules>,
    identity: Identity,
    /// The origin of the client's page, if the server accepts it because it is listed.
    page: Option<Arc<Origin>>,
    /// The address of the client, if it came over a connection of this server.
    client: Option<IpAddr>,
    /// The client that shares with others, if it is known which one it is.
    payer: Option<Payer>,
    /// The line of the request in the access log.
    record: Option<Arc<Record>>,
    /// What the backend is asked again before its answer expires.
    question: Option<Arc<Question>>,
}

impl Access {
    /// Identifies the client of a request. It waits only if keys must be fetched, or if the backend must be asked; it
    /// keeps nothing of the request meanwhile.
    ///
    /// # Errors
    /// If the request has no credential and nothing is granted without one, if the credential is not accepted, or if
    /// that cannot be decided now.
    pub fn of(
        in_force: &Arc<InForce>,
        request: &Request,
    ) -> impl Future<Output = Result<Self, Problem>> + Send + use<> {
        let comer = Comer::of(in_force, request);
        let begun = comer.begin(request);
        async move {
            match begun {
                Begun::Done(identified) => comer.admit(identified?),
                Begun::Waits(wait) => comer.admit(wait.await?),
            }
        }
    }

    /// # Errors
    /// If one of these may not be read. The first such pattern is named.
    pub fn subscribe(&self, patterns: &[Pattern]) -> Result<(), Problem> {
        let now = self.now()?;
        match patterns.iter().find(|pattern| !now.grants.may_subscribe(pattern)) {
            Some(pattern) => Err(forbidden(&now, self.client, "subscribe", Some(pattern))),
            None => Ok(()),
        }
    }

    pub fn publish(&self, topic: &Topic) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_publish(topic) {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "publish", Some(topic)))
        }
    }

    /// The subject that a message names, if its client asks for `by`.
    ///
    /// # Errors
    /// If the client may not publish for others.
    pub fn author(&self, by: Option<Arc<str>>) -> Result<Option<Arc<str>>, Problem> {
        if by.is_none() {
            return Ok(self.identity.author().cloned());
        }
        let now = self.now()?;
        match now.may_publish_for_others() {
            true => Ok(by),
            false => {
                Err(Problem::new(Code::Forbidden, "by: only an API key with admin may publish for a user"))
            }
        }
    }

    /// # Errors
    /// If there is no topic that this client may publish to.
    pub fn publish_something(&self) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_publish_something() {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "publish", None))
        }
    }

    /// The right to delete topics, and to list all of them.
    pub fn admin(&self) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.is_admin() { Ok(()) } else { Err(forbidden(&now, self.client, "admin", None)) }
    }

    pub fn metrics(&self) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_read_metrics() {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "metrics", None))
        }
    }

    /// Begins to identify the holder of a new token; see [`renew`](Self::renew).
    pub fn begin_renewal(&self, token: &str) -> Begun {
        let rules = self.in_force.load_full();
        if !self.is_page_listed(&rules) {
            return Begun::Done(Err(origin::foreign()));
        }
        let (context, client, payer) = (self.in_force.context.clone(), self.client, self.payer);
        Deciding { context, rules, client, payer }.begin(Some(token), || Ok(None))
    }

    /// Continues as the holder of a new token of the same subject, which must allow reading all of `patterns`.
    ///
    /// # Errors
    /// If the token belongs to another subject, or grants less than is being read: then nothing changes.
    pub fn renew<'a>(
        &mut self,
        identified: Identified,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), Problem> {
        let Identified { rules, identity, question } = identified;
        if !self.is_page_listed(&rules) {
            return Err(origin::foreign());
        }
        log_unfilled(&identity);
        if !identity.is_same_subject(&self.identity) {
            tracing::debug!(
                client = self.client.map(display),
                was = self.identity.name(),
                is = identity.name(),
                "refused to change the subject"
            );
            return Err(Problem::new(
                Code::Forbidden,
                "token: its sub and iss must be those of this connection",
            ));
        }
        if let Some(pattern) = patterns.into_iter().find(|pattern| !identity.grants.may_subscribe(pattern)) {
            return Err(forbidden(&identity, self.client, "subscribe", Some(pattern)));
        }
        (self.rules, self.identity, self.question) = (rules, identity, question);
        Ok(())
    }

    /// True if there is a topic that this client might publish to, by the rights when it was last identified.
    pub fn might_publish(&self) -> bool {
        self.identity.grants.may_publish_something()
    }

    /// The user in whose name this client speaks.
    pub fn subject(&self) -> Option<&Arc<str>> {
        self.identity.subject()
    }

    /// How long this access lasts, in milliseconds.
    pub fn expires_in_ms(&self) -> Option<u64> {
        let left = self.identity.expires_at?.duration_since(SystemTime::now()).unwrap_or_default();
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    /// The client for which costs are counted.
    pub fn payer(&self) -> Option<Payer> {
        self.payer
    }

    /// True if this server requires no credentials.
    pub fn is_open(&self) -> bool {
        self.in_force.load().authority.is_open()
    }

    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    pub fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }

    /// Watches for the end of this access.
    pub fn lease(self) -> Lease {
        Lease::new(self)
    }

    fn is_page_listed(&self, rules: &Rules) -> bool {
        self.page.as_ref().is_none_or(|page| origin::is_listed(&rules.origins, page))
    }

    /// The client's identity by the rules in force.
    fn now(&self) -> Result<Identity, Problem> {
        let (rules, time) = (self.in_force.load(), SystemTime::now());
        if !Arc::ptr_eq(&rules, &self.rules) {
            if !self.is_page_listed(&rules) {
                return Err(origin::foreign());
            }
            let again = rules.authority.again(&self.identity, time);
            return again.map_err(|refused| problem_of(refused, self.client));
        }
        match self.identity.is_expired(time) {
            true => Err(expired()),
            false => Ok(self.identity.clone()),
        }
    }
}

/// A client that is not identified yet.
struct Comer {
    in_force: Arc<InForce>,
    rules: Arc<Rules>,
    page: Option<Arc<Origin>>,
    client: Option<IpAddr>,
    address: Option<Payer>,
    record: Option<Arc<Record>>,
}

impl Comer {
    fn of(in_force: &Arc<InForce>, request: &Request) -> Self {
        let address = request.extensions().get::<ClientAddress>();
        Self {
            in_force: in_force.clone(),
            rules: in_force.load_full(),
            page: origin::listed(request).map(Arc::new),
            client: address.map(|address| address.ip()),
            address: address.and_then(|address| address.limited()).map(Payer::address),
            record: request.extensions().get().cloned(),
        }
    }

    fn begin(&self, request: &Request) -> Begun {
        let (rules, client) = (&self.rules, self.client);
        let shown = request.extensions().get::<Shown>().map_or(Ok(None), Shown::credential);
        let question = || match &rules.hook {
            Some(hook) => Question::of(&hook.settings, request).map_err(|unusable| refuse(unusable, client)),
            None => Ok(None),
        };
        let credential = match shown {
            Ok(credential) => credential,
            // An open server ignores credentials.
            Err(_) if rules.authority.is_open() => None,
            // The backend may know it.
            Err(Unusable::Scheme) if matches!(question(), Ok(Some(_))) => None,
            Err(unusable) => return Begun::Done(Err(refuse(unusable, client))),
        };
        let (context, payer) = (self.in_force.context.clone(), self.address);
        Deciding { context, rules: rules.clone(), client, payer }.begin(credential, question)
    }

    fn admit(self, identified: Identified) -> Result<Access, Problem> {
        let Identified { rules, identity, question } = identified;
        let Self { in_force, page, client, address, record, .. } = self;
        log_unfilled(&identity);
        if let Some(record) = &record
            && identity.is_known()
        {
            record.note_who(identity.name());
        }
        // A backend with an API key does what the operator wants, and shares with nobody.
        let payer = match identity.subject() {
            Some(subject) => Some(Payer::subject(subject, None)),
            None if identity.is_key() => None,
            None => address,
        };
        let access = Access { in_force, rules, identity, page, client, payer, record, question };
        // The rules may have changed since the page was let in.
        if access.is_page_listed(&access.rules) { Ok(access) } else { Err(origin::foreign()) }
    }
}

fn refuse(unusable: Unusable, client: Option<IpAddr>) -> Problem {
    tracing::warn!(client = client.map(display), why = %unusable, "refused a credential; correct the client, or the proxy before this server");
    Problem::new(Code::Unauthorized, unusable.to_string())
}

/// Ends a connection when its credential expires, or when new rules do not allow it any more.
pub struct Lease {
    access: Access,
    gate: Gate,
    replaced: Pin<Box<WaitForCancellationFutureOwned>>,
    end: Option<Pin<Box<Sleep>>>,
    renewal: Option<Box<Renewal>>,
}

impl Lease {
    fn new(access: Access) -> Self {
        let replaced = Box::pin(access.rules.replaced.clone().cancelled_owned());
        let end = access.identity.expires_at.map(|end| Box::pin(sleep_until(instant(end))));
        let renewal = Renewal::of(&access.identity, access.question.as_ref());
        Self { access, gate: Gate::new(), replaced, end, renewal }
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// See [`Access::renew`].
    pub fn renew<'a>(
        &mut self,
        identified: Identified,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), Problem> {
        let mut access = self.access.clone();
        access.renew(identified, patterns)?;
        *self = Self::new(access);
        Ok(())
    }

    /// Ready with the reason once `patterns` may not be read any more. Poll it before anything is sent.
    pub fn poll<'a, P: Iterator<Item = &'a Pattern>>(
        &mut self,
        cx: &mut task::Context<'_>,
        patterns: impl Fn() -> P,
    ) -> Poll<Code> {
        let Self { access, gate, replaced, end, renewal } = self;
        gate.poll(cx, |cx| {
            while replaced.poll_unpin(cx).is_ready() {
                access.rules = access.in_force.load_full();
                *replaced = Box::pin(access.rules.replaced.clone().cancelled_owned());
                if !access.is_page_listed(&access.rules) {
                    tracing::debug!(client = access.client.map(display), who = access.identity.name(), page = ?access.page, "no longer allowed");
                    return Poll::Ready(Code::Forbidden);
                }
                match access.rules.authority.again(&access.identity, SystemTime::now()) {
                    Ok(identity) => access.identity = identity,
                    Err(Refused::Expired { .. }) => return Poll::Ready(Code::TokenExpired),
                    Err(refused) => {
                        tracing::debug!(client = access.client.map(display), who = access.identity.name(), %refused, "no longer allowed");
                        return Poll::Ready(Code::Forbidden);
                    }
                }
                if let Some(pattern) =
                    patterns().find(|pattern| !access.identity.grants.may_subscribe(pattern))
                {
                    tracing::debug!(client = access.client.map(display), who = access.identity.name(), %pattern, "no longer allowed");
                    return Poll::Ready(Code::Forbidden);
                }
            }
            while let Some(asking) = renewal
                && let Poll::Ready(identity) = asking.poll(cx, &access.in_force)
            {
                let may_read = patterns().all(|pattern| identity.grants.may_subscribe(pattern));
                // A user who is another one now, or may read less, is told to come again when the answer expires.
                *renewal = None;
                if may_read && identity.is_same_subject_or_none(&access.identity) {
                    access.identity = identity;
                    *renewal = Renewal::of(&access.identity, access.question.as_ref());
                    *end = access.identity.expires_at.map(|end| Box::pin(sleep_until(instant(end))));
                }
            }
            while let (Some(timer), Some(at)) = (end.as_mut(), access.identity.expires_at) {
                if timer.poll_unpin(cx).is_pending() {
                    return Poll::Pending;
                }
                // The timer only says when to check. The system clock decides, because tokens are made by it.
                if access.identity.is_expired(SystemTime::now()) {
                    return Poll::Ready(Code::TokenExpired);
                }
                timer.as_mut().reset(instant(at));
            }
            Poll::Pending
        })
    }
}

/// The instant at which the system clock will show this time.
fn instant(time: SystemTime) -> Instant {
    let now = Instant::now();
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    now.checked_add(left).unwrap_or(now + Duration::from_secs(u32::MAX.into()))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::header;

    use super::*;
    use crate::{broker::Broker, log::MemoryLog, shutdown::Shutdown};

    /// The request's origin is checked when the request comes in, and the rules may change before its client
    /// is identified. A connection that began in between would not notice the change.
    #[tokio::test]
    async fn a_page_that_is_no_longer_listed_is_refused() {
        let allowed_origins = vec!["https://app.example".parse().expect("an origin")];
        let config = Config { allowed_origins, ..Config::default() };
        let log = MemoryLog::start(config.retention());
        let app = App::new(Broker::new(log), Arc::new(config), Shutdown::new());
        let page = Request::builder().header(header::ORIGIN, "https://app.example");
        let page = page.body(Body::empty()).expect("a request");
        assert!(Access::of(&app.rules, &page).is_ok());
        app.reconfigure(&Config::default()).expect("it may be changed so");
        assert_eq!(
            Access::of(&app.rules, &page).err().map(|problem| problem.code),
            Some(Code::ForbiddenOrigin)
        );
    }
}
