//! The rights of a client: checked at every step, by the configuration in force at that moment.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
    credentials::Shown,
    gate::Gate,
    origin,
    problem::{Code, Problem},
    refusal::{expired, forbidden, log_unfilled, problem_of},
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
    pub origins: Vec<Origin>,
    pub hosts: Vec<Host>,
    /// Cancelled once other rules are in force.
    replaced: CancellationToken,
}

impl Rules {
    fn of(config: &Config) -> Self {
        Self {
            authority: config.authority(),
            origins: config.allowed_origins.clone(),
            hosts: config.allowed_hosts.clone(),
            replaced: CancellationToken::new(),
        }
    }
}

/// The rules that are in force.
pub struct InForce(ArcSwap<Rules>);

impl InForce {
    pub fn new(config: &Config) -> Self {
        Self(ArcSwap::from_pointee(Rules::of(config)))
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.0.load()
    }

    fn load_full(&self) -> Arc<Rules> {
        self.0.load_full()
    }

    /// Puts other rules in force. Every connection then checks if it may stay.
    fn replace(&self, config: &Config) {
        self.0.swap(Arc::new(Rules::of(config))).replaced.cancel();
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
}

impl Access {
    /// Identifies the client of a request.
    ///
    /// # Errors
    /// If the request has no credential and nothing is granted without one, or if the credential is not
    /// accepted.
    pub fn of(in_force: &Arc<InForce>, request: &Request) -> Result<Self, Problem> {
        let rules = in_force.load_full();
        let client = request.extensions().get::<ClientAddress>().map(|address| address.ip());
        let record = request.extensions().get::<Arc<Record>>().cloned();
        let shown = request.extensions().get::<Shown>().map_or(Ok(None), Shown::credential);
        let credential = match shown {
            Ok(credential) => credential,
            // An open server ignores credentials.
            Err(_) if rules.authority.is_open() => None,
            Err(unusable) => {
                tracing::warn!(client = client.map(display), why = %unusable, "refused a credential; correct the client, or the proxy before this server");
                return Err(Problem::new(Code::Unauthorized, unusable.to_string()));
            }
        };
        let identity = rules.authority.identify(credential, SystemTime::now());
        let identity = identity.map_err(|refused| problem_of(refused, client))?;
        log_unfilled(&identity);
        if let Some(record) = &record
            && identity.is_known()
        {
            record.note_who(identity.name());
        }
        let page = origin::listed(request).map(Arc::new);
        let payer = payer_of(&identity, request);
        let access = Self { in_force: in_force.clone(), rules, identity, page, client, payer, record };
        // The rules may have changed since the page was let in.
        if access.is_page_listed(&access.rules) { Ok(access) } else { Err(origin::foreign()) }
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

    /// The right to add `pattern` to the connections of other clients, and to remove it.
    pub fn manage(&self, pattern: &Pattern) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_manage(pattern) {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "manage", Some(pattern)))
        }
    }

    /// The subject of the client's token, if it has one.
    pub fn subject(&self) -> Option<&str> {
        self.identity.subject().map(|(sub, _)| sub)
    }

    pub fn metrics(&self) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_read_metrics() {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "metrics", None))
        }
    }

    /// Continues with a new token of the same subject, which must allow reading all of `patterns`.
    ///
    /// # Errors
    /// If the token is not accepted, belongs to another subject, or grants less than is being read: then
    /// nothing changes.
    pub fn renew<'a>(
        &mut self,
        token: &str,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), Problem> {
        let rules = self.in_force.load_full();
        if !self.is_page_listed(&rules) {
            return Err(origin::foreign());
        }
        let identity = rules.authority.identify(Some(token), SystemTime::now());
        let identity = identity.map_err(|refused| problem_of(refused, self.client))?;
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
        (self.rules, self.identity) = (rules, identity);
        Ok(())
    }

    /// True if there is a topic that this client might publish to, by the rights when it was last identified.
    pub fn might_publish(&self) -> bool {
        self.identity.grants.may_publish_something()
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

/// The subject of a token, or the address of any other client. A backend with an API key does what the operator wants, and
/// shares with nobody.
fn payer_of(identity: &Identity, request: &Request) -> Option<Payer> {
    let address = || Some(Payer::address(request.extensions().get::<ClientAddress>()?.limited()?));
    match identity.subject() {
        Some((sub, iss)) => Some(Payer::subject(sub, iss)),
        None if identity.is_key() => None,
        None => address(),
    }
}

/// Ends a connection when its credential expires, or when new rules do not allow it any more.
pub struct Lease {
    access: Access,
    gate: Gate,
    replaced: Pin<Box<WaitForCancellationFutureOwned>>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Lease {
    fn new(access: Access) -> Self {
        let replaced = Box::pin(access.rules.replaced.clone().cancelled_owned());
        let end = access.identity.expires_at.map(|end| Box::pin(sleep_until(instant(end))));
        Self { access, gate: Gate::new(), replaced, end }
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// See [`Access::renew`].
    pub fn renew<'a>(
        &mut self,
        token: &str,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Result<(), Problem> {
        let mut access = self.access.clone();
        access.renew(token, patterns)?;
        *self = Self::new(access);
        Ok(())
    }

    /// Ready with the reason once `patterns` may not be read any more. Poll it before anything is sent.
    pub fn poll<'a, P: Iterator<Item = &'a Pattern>>(
        &mut self,
        cx: &mut Context<'_>,
        patterns: impl Fn() -> P,
    ) -> Poll<Code> {
        let Self { access, gate, replaced, end } = self;
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
