//! Identities and their rights: one configuration of keys and grants, applied at a given time.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use super::{
    Refused, Sources,
    claims::{Claims, Written},
    grants::{GrantList, Grants},
    hook::{HookAnswer, HookSettings},
    issuer::{Issuer, Known, Source},
    jwt::{self, Parts, Verifier},
    key::Digest,
    subject::{Prefixes, subject},
    template::{Unfilled, Values},
};

/// How far the clock of an issuer may be ahead of ours, for `nbf`.
///
/// `exp` has no such leeway. A connection ends at `exp`; within a leeway the client could reconnect with the
/// same token, only to be ended again at once.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// A configured API key.
#[derive(Clone)]
pub struct ApiKey {
    pub digest: Digest,
    /// That of all clients with this key.
    pub identity: Arc<Identity>,
}

/// A key that signs tokens, and the terms for them.
#[derive(Clone)]
pub struct TokenKey {
    pub verifier: Verifier,
    pub terms: Arc<Terms>,
}

/// The claims that a token needs, and what it is granted for them.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The name for the operator's log.
    pub name: String,
    pub iss: Option<String>,
    pub aud: Option<String>,
    /// Stands before the `sub` of every token, so that no other issuer has the same subjects.
    pub prefix: Option<String>,
    /// Messages name the subject that has published them.
    pub by: bool,
    /// Granted to every token, beside the token's own grants.
    pub grants: GrantList,
    /// The most that a token may grant itself. If absent, there is no limit.
    pub limit: Option<GrantList>,
}

impl AsRef<Verifier> for TokenKey {
    fn as_ref(&self) -> &Verifier {
        &self.verifier
    }
}

/// All configured keys and grants. If nothing is configured, every client may do everything.
#[derive(Clone, Default)]
pub struct Authority {
    pub keys: Vec<ApiKey>,
    pub token_keys: Vec<TokenKey>,
    /// Those whose keys are fetched.
    pub issuers: Vec<Issuer>,
    /// The backend that says who a client is.
    pub hook: Option<Arc<HookSettings>>,
    /// The identity of all clients without a credential. If absent, such a client may do nothing.
    pub anonymous: Option<Arc<Identity>>,
    pub prefixes: Prefixes,
}

/// A client whose credential was accepted, or an anonymous one.
#[derive(Clone, Debug)]
pub struct Identity {
    pub grants: Arc<Grants>,
    /// A pattern of the token that grants nothing, if there is one.
    pub unfilled: Option<Arc<Unfilled>>,
    pub expires_at: Option<SystemTime>,
    pub(super) subject: Option<Arc<str>>,
    /// Messages name the subject.
    pub(super) is_named: bool,
    pub(super) info: Option<Arc<str>>,
    pub(super) holder: Holder,
}

/// The owner of the credential, without the secret itself.
#[derive(Clone, Debug)]
pub(super) enum Holder {
    Anonymous,
    Key {
        name: Arc<str>,
        digest: Digest,
    },
    Token {
        key: SignedBy,
        claims: Arc<Claims>,
    },
    /// The backend has said who it is.
    Hook {
        answer: Arc<HookAnswer>,
    },
}

/// The key that has signed a token, as it is found again in another configuration.
#[derive(Clone, Debug)]
pub(super) enum SignedBy {
    Configured(Digest),
    /// Any key from there: one that leaves the set ends no connection.
    FetchedFrom(Arc<Source>),
}

impl Authority {
    /// An authority that accepts no credential and grants nothing.
    pub fn closed() -> Self {
        Self { anonymous: Some(Identity::anonymous(Grants::default())), ..Self::default() }
    }

    /// True if nothing is configured, so that everything is allowed.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
            && self.token_keys.is_empty()
            && self.issuers.is_empty()
            && self.hook.is_none()
            && self.anonymous.is_none()
    }

    /// True if a client without a credential may do something.
    pub fn serves_anonymous(&self) -> bool {
        self.is_open() || self.anonymous.is_some()
    }

    /// Identifies a client by its credential, or as anonymous.
    ///
    /// # Errors
    /// If the credential is not accepted, even if no credential was needed.
    pub fn identify(&self, credential: Option<&str>, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        match credential {
            _ if self.is_open() => self.anonymous_identity(),
            None => self.anonymous_identity(),
            // Keys have no dot, and tokens have two.
            Some(token) if token.contains('.') => match jwt::verify(&self.token_keys, token) {
                Ok((TokenKey { verifier, terms }, claims)) => {
                    let key = SignedBy::Configured(*verifier.fingerprint());
                    self.admit(terms, key, Arc::new(claims), now)
                }
                Err(refused) if self.issuers.is_empty() => Err(refused),
                Err(refused) => self.identify_by_issuers(token, refused, now),
            },
            // No client may do something because it sends nothing.
            Some("") => Err(Refused::UnknownKey { sha256: Digest::of(b"").short() }),
            Some(key) => self.holder_of(&Digest::of(key.as_bytes())),
        }
    }

    /// Identifies a client again that an earlier configuration has identified.
    pub fn again(&self, identity: &Identity, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        match &identity.holder {
            _ if self.is_open() => self.anonymous_identity(),
            Holder::Anonymous => self.anonymous_identity(),
            Holder::Key { digest, .. } => self.holder_of(digest),
            Holder::Token { key, claims } => {
                let terms = self.terms_of(key).ok_or(Refused::KeyGone)?;
                self.admit(terms, key.clone(), claims.clone(), now)
            }
            Holder::Hook { answer } => self.identify_by_hook(answer, now),
        }
    }

    /// Identifies the holder of a token that no configured key has signed.
    fn identify_by_issuers(
        &self,
        token: &str,
        refused: Refused,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Refused> {
        let parts = Parts::split(token).map_err(Refused::Malformed)?;
        let (algorithm, kid) = (parts.algorithm.name(), parts.kid.clone());
        let named = named_iss(&parts);
        let (mut issuers, mut sources) = (Vec::new(), Sources::default());
        for Issuer { terms, source, keys } in
            self.issuers.iter().filter(|issuer| issuer.may_be(named.as_deref()))
        {
            match keys.verify(&parts).map_err(Refused::Malformed)? {
                Known::Signed => {
                    let claims = Claims::read(parts.claims).map_err(|why| Refused::Claims { kid, why })?;
                    let key = SignedBy::FetchedFrom(source.clone());
                    return self.admit(terms, key, Arc::new(claims), now);
                }
                Known::NotSigned => sources.denied.push(source.clone()),
                Known::Unknown => {
                    issuers.push(format!("[[jwt]] {:?}", terms.name));
                    sources.unknown.push(source.clone());
                }
            }
            sources.are_named |= terms.iss.is_some();
        }
        Err(match (sources.unknown.is_empty(), sources.denied.is_empty()) {
            (false, _) => Refused::Unsettled { algorithm, kid, issuers, sources },
            (true, false) => Refused::NotOfIssuer { algorithm, kid, sources },
            (true, true) => refused,
        })
    }

    fn terms_of(&self, key: &SignedBy) -> Option<&Arc<Terms>> {
        match key {
            SignedBy::Configured(digest) => {
                let known = self.token_keys.iter().find(|known| known.verifier.fingerprint().is(digest));
                known.map(|known| &known.terms)
            }
            SignedBy::FetchedFrom(source) => {
                let known = self.issuers.iter().find(|known| known.source.place == source.place);
                known.map(|known| &known.terms)
            }
        }
    }

    fn anonymous_identity(&self) -> Result<Arc<Identity>, Refused> {
        static OF_OPEN_SERVER: LazyLock<Arc<Identity>> =
            LazyLock::new(|| Identity::anonymous(Grants::everything()));
        let known = if self.is_open() { Some(&*OF_OPEN_SERVER) } else { self.anonymous.as_ref() };
        known.cloned().ok_or(Refused::Missing)
    }

    fn holder_of(&self, digest: &Digest) -> Result<Arc<Identity>, Refused> {
        // Compares all of them, so that the time does not reveal which one matched or how many come before
        // it.
        let mut found = None;
        for key in &self.keys {
            if key.digest.is(digest) {
                found = Some(key);
            }
        }
        let key = found.ok_or_else(|| Refused::UnknownKey { sha256: digest.short() })?;
        Ok(key.identity.clone())
    }

    /// Checks the claims of a token that a key of these terms has signed.
    fn admit(
        &self,
        terms: &Terms,
        key: SignedBy,
        claims: Arc<Claims>,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Refused> {
        terms.check(&claims, &self.prefixes, now)?;
        let subject = terms.subject_of(&claims);
        let (values, mut unfilled) = (claims.values(subject.as_deref()), None);
        let grants = terms.grants_of(&claims.rejoin, &values, &mut |found| _ = unfilled.get_or_insert(found));
        Ok(Arc::new(Identity {
            grants: Arc::new(grants),
            unfilled: unfilled.map(Arc::new),
            expires_at: Some(claims.exp.0),
            subject,
            is_named: terms.by,
            info: claims.info.clone(),
            holder: Holder::Token { key, claims },
        }))
    }
}

/// The issuer that a token names. It is not proven: it only says which issuers need not be asked.
pub fn named_iss(parts: &Parts<'_>) -> Option<String> {
    Written::read(parts.claims).ok()?.take("iss").ok()?
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("keys", &self.keys.iter().map(|key| key.identity.name()).collect::<Vec<_>>())
            .field("token_keys", &self.token_keys.iter().map(|key| &key.terms.name).collect::<Vec<_>>())
            .field("hook", &self.hook.as_ref().map(|hook| hook.url.as_str()))
            .field("issuers", &self.issuers.iter().map(|issuer| &issuer.terms.name).collect::<Vec<_>>())
            .field("anonymous", &self.anonymous.as_ref().map(|identity| &identity.grants))
            .finish()
    }
}

impl Terms {
    /// # Errors
    /// If the claims of a signed token do not fit.
    fn check(&self, claims: &Claims, prefixes: &Prefixes, now: SystemTime) -> Result<(), Refused> {
        let wrong = |claim| Err(Refused::Claim { key: self.name.clone(), claim });
        if self.iss.is_some() && claims.iss != self.iss {
            return wrong("iss");
        }
        if self.aud.as_ref().is_some_and(|aud| !claims.aud.0.contains(aud)) {
            return wrong("aud");
        }
        if claims.nbf.is_some_and(|nbf| nbf.0 > now + LEEWAY) {
            return wrong("nbf");
        }
        if self.is_forged(claims.sub.as_deref(), prefixes) {
            return wrong("sub");
        }
        if claims.exp.0 <= now {
            return Err(Refused::Expired { key: self.name.clone() });
        }
        Ok(())
    }

    /// True if this issuer, which has no prefix, names a subject of one that has.
    pub fn is_forged(&self, sub: Option<&str>, prefixes: &Prefixes) -> bool {
        self.prefix.is_none() && sub.is_some_and(|sub| prefixes.are_forged_by(sub))
    }

    /// The subject of a token with these claims.
    pub fn subject_of(&self, claims: &Claims) -> Option<Arc<str>> {
        subject(self.prefix.as_deref(), claims.sub.as_deref()?)
    }

    /// The grants of a token that grants itself `own`. `unfilled` is told each pattern that grants nothing.
    pub fn grants_of(
        &self,
        own: &GrantList,
        values: &Values<'_>,
        unfilled: &mut impl FnMut(Unfilled),
    ) -> Grants {
        let mut own = GrantList::grant([own], values, unfilled);
        if let Some(limit) = &self.limit {
            own = own.within(&GrantList::grant([limit], values, &mut |_| {}), unfilled);
        }
        GrantList::grant([&self.grants], values, unfilled).and(own)
    }
}

impl Identity {
    /// The identity of all clients without a credential.
    pub(super) fn anonymous(grants: Grants) -> Arc<Self> {
        Self::lasting(grants, Holder::Anonymous)
    }

    /// The identity of all clients with this API key.
    pub(super) fn of_key(name: Arc<str>, digest: Digest, grants: Grants) -> Arc<Self> {
        Self::lasting(grants, Holder::Key { name, digest })
    }

    /// Its rights do not expire, and it has no subject.
    fn lasting(grants: Grants, holder: Holder) -> Arc<Self> {
        let (grants, is_named) = (Arc::new(grants), false);
        Arc::new(Self {
            grants,
            unfilled: None,
            expires_at: None,
            subject: None,
            is_named,
            info: None,
            holder,
        })
    }

    /// True if the identity's token has ended by `now`. A key never ends.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// True if the client has sent a credential.
    pub fn is_known(&self) -> bool {
        !matches!(self.holder, Holder::Anonymous)
    }

    /// True if both have the same owner. For tokens these are the subject and the issuer. A token without a
    /// subject may belong to any user, so it is never the same.
    pub fn is_same_subject(&self, others: &Self) -> bool {
        match (&self.holder, &others.holder) {
            (Holder::Key { digest, .. }, Holder::Key { digest: other, .. }) => digest.is(other),
            (Holder::Token { claims, .. }, Holder::Token { claims: other, .. }) => {
                self.subject.is_some() && self.subject == others.subject && claims.iss == other.iss
            }
            (Holder::Hook { .. }, Holder::Hook { .. }) => {
                self.subject.is_some() && self.subject == others.subject
            }
            _ => false,
        }
    }

    /// The subject of a token. Other credentials have none, nor has a token whose `sub` cannot name a user.
    pub fn subject(&self) -> Option<&Arc<str>> {
        self.subject.as_ref()
    }

    /// JSON that is told with the subject where it is present.
    pub fn info(&self) -> Option<&Arc<str>> {
        self.info.as_ref()
    }

    /// The place from which the key of this client's token was fetched.
    pub fn source(&self) -> Option<&Arc<Source>> {
        match &self.holder {
            Holder::Token { key: SignedBy::FetchedFrom(source), .. } => Some(source),
            _ => None,
        }
    }

    /// The subject that messages of this client name.
    pub fn author(&self) -> Option<&Arc<str>> {
        self.subject.as_ref().filter(|_| self.is_named)
    }

    /// True if messages of this client may name any subject: for a backend with `admin`, and on an open server.
    pub fn may_publish_for_others(&self) -> bool {
        self.grants.is_open() || (self.is_key() && self.grants.is_admin())
    }

    /// When the token of this client was issued, in seconds since the Unix epoch. The outer option is none for other
    /// credentials.
    pub fn issued(&self) -> Option<Option<u64>> {
        match &self.holder {
            Holder::Token { claims, .. } => Some(claims.iat),
            _ => None,
        }
    }

    /// True for an API key.
    pub fn is_key(&self) -> bool {
        matches!(self.holder, Holder::Key { .. })
    }

    /// The name for the operator's log: that of an API key, or the subject of a token.
    pub fn name(&self) -> &str {
        match &self.holder {
            Holder::Anonymous => "anonymous",
            Holder::Key { name, .. } => name,
            Holder::Token { .. } => self.subject.as_deref().unwrap_or("token without sub"),
            Holder::Hook { .. } => self.subject.as_deref().unwrap_or("answer of [hook] without sub"),
        }
    }
}
