//! The rights of a client: checked at every step, by the configuration in force at that moment.

mod lease;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::SystemTime};

use axum::extract::Request;

pub use self::lease::Lease;
use super::{
    access_log::Record,
    client_address::ClientAddress,
    credentials::{Shown, Unusable},
    hook::Question,
    identify::{Begun, Deciding, Identified},
    origin,
    problem::{Code, Problem},
    refusal::{expired, forbidden, log_unfilled, problem_of, refuse, subject_ended},
    rules::{InForce, Rules},
};
use crate::{
    auth::{Grants, Identity},
    config::Origin,
    log::Payer,
    message::{Pattern, Topic},
};

/// A client, and the rules by which its rights were last checked.
#[derive(Clone)]
pub struct Access {
    in_force: Arc<InForce>,
    rules: Arc<Rules>,
    /// All anonymous clients share one, and all with the same API key.
    identity: Arc<Identity>,
    /// The origin of the client's page, if the server accepts it because it is listed.
    page: Option<Arc<Origin>>,
    /// The address of the client, if it came over a connection of this server.
    client: Option<IpAddr>,
    /// The client that shares with others, if it is known which one it is.
    payer: Option<Payer>,
    /// The line of the request in the access log.
    record: Option<Arc<Record>>,
    /// The question that the backend is asked again before its answer expires.
    question: Option<Arc<Question>>,
    /// How many subjects had been ended when the request came.
    begun: u64,
}

impl Access {
    /// Identifies the client of a request. It waits only if keys must be fetched, or if the backend must be asked; then
    /// it counts as a connection, and the head as bytes that are not parsed. It keeps the credential and the question, and
    /// not the head: a caller drops that before it waits, because very many may.
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
        match now.grants.first_unreadable(patterns) {
            Some((pattern, missing)) => Err(forbidden(&now, self.client, missing, Some(pattern))),
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
            false => Err(Problem::new(
                Code::Forbidden,
                "by: only an API key with admin may publish for a user; leave it out, or use such a key",
            )),
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

    /// The right to see the topics on the lists of others: those that the client may remove.
    pub fn manage_something(&self) -> Result<Arc<Grants>, Problem> {
        let now = self.now()?;
        if now.grants.may_manage_something() {
            Ok(now.grants.clone())
        } else {
            Err(forbidden(&now, self.client, "manage", None))
        }
    }

    /// The subject whose list the client asks to read.
    ///
    /// # Errors
    /// If the client has none.
    pub fn list_owner(&self) -> Result<Arc<str>, Problem> {
        match self.subject() {
            Some(subject) => Ok(subject.clone()),
            None if self.identity.is_known() || self.is_open() => {
                Err(Problem::bad_request("mine: only a client with a subject has a list"))
            }
            None => Err(Problem::new(
                Code::Unauthorized,
                "mine: only a client with a subject has a list; log in first",
            )),
        }
    }

    /// Why a connection of this client must end, if its subject was ended since the request came.
    pub fn ended(&self) -> Option<Code> {
        self.in_force.context().ended.verdict(self.begun, &self.identity)
    }

    /// When the client's token was issued. The outer option is none for other credentials.
    pub fn issued(&self) -> Option<Option<u64>> {
        self.identity.issued()
    }

    /// The right to add `pattern` to the connections and lists of others.
    pub fn add_for_others(&self, pattern: &Pattern) -> Result<(), Problem> {
        let now = self.now()?;
        match now.grants.missing_to_add(pattern) {
            Some(missing) => Err(forbidden(&now, self.client, missing, Some(pattern))),
            None => Ok(()),
        }
    }

    /// The right to remove `pattern` from them.
    pub fn remove_for_others(&self, pattern: &Pattern) -> Result<(), Problem> {
        let now = self.now()?;
        match now.grants.missing_to_remove(pattern) {
            Some(missing) => Err(forbidden(&now, self.client, missing, Some(pattern))),
            None => Ok(()),
        }
    }

    /// The right to see who is present in every topic that `pattern` matches.
    pub fn see_presence(&self, pattern: &Pattern) -> Result<(), Problem> {
        let now = self.now()?;
        if now.grants.may_see_presence(pattern) {
            Ok(())
        } else {
            Err(forbidden(&now, self.client, "presence", Some(pattern)))
        }
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
        let (context, client, payer) = (self.in_force.context().clone(), self.client, self.payer);
        Deciding { context, rules, client, payer, head_bytes: None }.begin(Some(token), || Ok(None))
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
        check_refusal(&self.in_force, &identity, self.client)?;
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
                "token: its sub and iss must be those of this connection; connect again for another user",
            ));
        }
        if let Some((pattern, missing)) = identity.grants.first_unreadable(patterns) {
            return Err(forbidden(&identity, self.client, missing, Some(pattern)));
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

    /// The rules by which the rights were last checked.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The time at which this access ends.
    pub fn ends_at(&self) -> Option<SystemTime> {
        self.identity.expires_at
    }

    /// JSON that is told with the subject where it is present.
    pub fn info(&self) -> Option<&Arc<str>> {
        self.identity.info()
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
    fn now(&self) -> Result<Cow<'_, Arc<Identity>>, Problem> {
        let rules = self.in_force.load();
        if !Arc::ptr_eq(&rules, &self.rules) {
            if !self.is_page_listed(&rules) {
                return Err(origin::foreign());
            }
            let again = rules.authority.again(&self.identity, SystemTime::now());
            let again = again.map_err(|refused| problem_of(refused, self.client))?;
            check_refusal(&self.in_force, &again, self.client)?;
            return Ok(Cow::Owned(again));
        }
        check_refusal(&self.in_force, &self.identity, self.client)?;
        // Most identities have no end, and a look at the clock is not free.
        match self.identity.expires_at.is_some_and(|end| end <= SystemTime::now()) {
            true => Err(expired()),
            false => Ok(Cow::Borrowed(&self.identity)),
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
    begun: u64,
}

impl Comer {
    fn of(in_force: &Arc<InForce>, request: &Request) -> Self {
        let address = request.extensions().get::<ClientAddress>();
        Self {
            in_force: in_force.clone(),
            rules: in_force.load_full(),
            page: origin::listed(request).map(Arc::new),
            client: address.map(|address| address.ip()),
            address: address.and_then(|address| address.payer()),
            record: request.extensions().get().cloned(),
            begun: in_force.context().ended.count(),
        }
    }

    fn begin(&self, request: &Request) -> Begun {
        let (rules, client) = (&self.rules, self.client);
        let shown = request.extensions().get::<Shown>().map_or(Ok(None), Shown::credential);
        let question = || match &rules.hook {
            Some(hook) => Question::of(&hook.settings, request),
            None => Ok(None),
        };
        let (context, payer) = (self.in_force.context().clone(), self.address);
        // Without a hook and an issuer no request waits, and a walk over all fields is not free.
        let may_wait = rules.hook.is_some() || !rules.authority.issuers.is_empty();
        let head_bytes = may_wait.then(|| size_of_head(request));
        let deciding = Deciding { context, rules: rules.clone(), client, payer, head_bytes };
        match shown {
            Ok(credential) => deciding.begin(credential, question),
            // An open server ignores credentials.
            Err(_) if rules.authority.is_open() => deciding.begin(None, question),
            Err(unusable) => match (unusable, question()) {
                // The backend may know it.
                (Unusable::Scheme, Ok(Some(question))) => deciding.begin(None, || Ok(Some(question))),
                _ => Begun::Done(Err(refuse(unusable, client))),
            },
        }
    }

    fn admit(self, identified: Identified) -> Result<Access, Problem> {
        let Identified { rules, identity, question } = identified;
        let Self { in_force, page, client, address, record, begun, .. } = self;
        check_refusal(&in_force, &identity, client)?;
        log_unfilled(&identity);
        if let Some(record) = &record
            && identity.is_known()
        {
            record.note_who(identity.name());
        }
        // A backend with an API key does what the operator wants, and shares with nobody.
        let payer = match identity.subject() {
            Some(subject) => Some(Payer::subject(subject)),
            None if identity.is_key() => None,
            None => address,
        };
        let access = Access { in_force, rules, identity, page, client, payer, record, question, begun };
        // The rules may have changed since the page was let in.
        if access.is_page_listed(&access.rules) { Ok(access) } else { Err(origin::foreign()) }
    }
}

/// The bytes of a head, from which the credential was removed, and those of the credential.
fn size_of_head(request: &Request) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let shown = request.extensions().get::<Shown>().and_then(|shown| shown.credential().ok()?);
    let uri = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    uri + fields.sum::<usize>() + shown.map_or(0, str::len)
}

/// # Errors
/// If the backend has refused the tokens of this subject that are as old as this one.
fn check_refusal(in_force: &InForce, identity: &Identity, client: Option<IpAddr>) -> Result<(), Problem> {
    if !in_force.context().ended.refuses(identity) {
        return Ok(());
    }
    tracing::debug!(
        client = client.map(display),
        who = identity.name(),
        "refused a token that the backend has ended"
    );
    Err(subject_ended())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::header;

    use super::{super::App, *};
    use crate::{broker::Broker, config::Config, log::MemoryLog, shutdown::Shutdown};

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
        assert!(Access::of(&app.rules, &page).await.is_ok());
        app.reconfigure(&Config::default()).expect("it may be changed so");
        assert_eq!(
            Access::of(&app.rules, &page).await.err().map(|problem| problem.code),
            Some(Code::ForbiddenOrigin)
        );
    }
}
