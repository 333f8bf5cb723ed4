//! Identities and their rights: one configuration of keys and grants, applied at a given time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Refused,
    claims::Claims,
    grants::{GrantList, Grants, Unfilled, Values},
    jwt::{self, Verifier},
    key::Digest,
};

/// How far the clock of an issuer may be ahead of ours, for `nbf`.
///
/// `exp` has no such leeway. A connection ends at `exp`; within a leeway the client could reconnect with the
/// same token, only to be ended again at once.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// A configured API key.
#[derive(Clone)]
pub struct ApiKey {
    /// The name for the operator's log.
    pub name: Arc<str>,
    pub digest: Digest,
    pub grants: Arc<Grants>,
}

/// A key that signs tokens, and the claims that it requires.
#[derive(Clone)]
pub struct TokenKey {
    /// The name for the operator's log.
    pub name: String,
    pub verifier: Verifier,
    pub iss: Option<String>,
    pub aud: Option<String>,
    /// Granted to every token of this key, beside the token's own grants.
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
    /// The grants of a client without a credential. If absent, such a client may do nothing.
    pub anonymous: Option<Arc<Grants>>,
}

/// A client whose credential was accepted, or an anonymous one.
#[derive(Clone, Debug)]
pub struct Identity {
    pub grants: Arc<Grants>,
    /// A pattern of the token that grants nothing, if there is one.
    pub unfilled: Option<Arc<Unfilled>>,
    pub expires_at: Option<SystemTime>,
    holder: Holder,
}

/// The owner of the credential, without the secret itself.
#[derive(Clone, Debug)]
enum Holder {
    Anonymous,
    Key { name: Arc<str>, digest: Digest },
    Token { key: Digest, claims: Arc<Claims> },
}

impl Authority {
    /// An authority that accepts no credential and grants nothing.
    pub fn closed() -> Self {
        Self { anonymous: Some(Arc::default()), ..Self::default() }
    }

    /// True if nothing is configured, so that everything is allowed.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty() && self.token_keys.is_empty() && self.anonymous.is_none()
    }

    /// True if a client without a credential may do something.
    pub fn serves_anonymous(&self) -> bool {
        self.is_open() || self.anonymous.is_some()
    }

    /// Identifies a client by its credential, or as anonymous.
    ///
    /// # Errors
    /// If the credential is not accepted, even if no credential was needed.
    pub fn identify(&self, credential: Option<&str>, now: SystemTime) -> Result<Identity, Refused> {
        match credential {
            _ if self.is_open() => self.anonymous_identity(),
            None => self.anonymous_identity(),
            // Keys have no dot, and tokens have two.
            Some(token) if token.contains('.') => {
                let (key, claims) = jwt::verify(&self.token_keys, token)?;
                key.admit(Arc::new(claims), now)
            }
            Some(key) => self.holder_of(&Digest::of(key.as_bytes())),
        }
    }

    /// Identifies a client again that an earlier configuration has identified.
    pub fn again(&self, identity: &Identity, now: SystemTime) -> Result<Identity, Refused> {
        match &identity.holder {
            _ if self.is_open() => self.anonymous_identity(),
            Holder::Anonymous => self.anonymous_identity(),
            Holder::Key { digest, .. } => self.holder_of(digest),
            Holder::Token { key, claims } => {
                let known = self.token_keys.iter().find(|known| known.verifier.fingerprint().is(key));
                known.ok_or(Refused::KeyGone)?.admit(claims.clone(), now)
            }
        }
    }

    fn anonymous_identity(&self) -> Result<Identity, Refused> {
        let everything = self.is_open().then(|| Arc::new(Grants::everything()));
        let grants = everything.or_else(|| self.anonymous.clone()).ok_or(Refused::Missing)?;
        Ok(Identity { grants, unfilled: None, expires_at: None, holder: Holder::Anonymous })
    }

    fn holder_of(&self, digest: &Digest) -> Result<Identity, Refused> {
        // Compares all of them, so that the time does not reveal which one matched or how many come before
        // it.
        let mut found = None;
        for key in &self.keys {
            if key.digest.is(digest) {
                found = Some(key);
            }
        }
        let key = found.ok_or_else(|| Refused::UnknownKey { sha256: digest.short() })?;
        let holder = Holder::Key { name: key.name.clone(), digest: key.digest };
        Ok(Identity { grants: key.grants.clone(), unfilled: None, expires_at: None, holder })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("keys", &self.keys.iter().map(|key| &key.name).collect::<Vec<_>>())
            .field("token_keys", &self.token_keys.iter().map(|key| &key.name).collect::<Vec<_>>())
            .field("anonymous", &self.anonymous)
            .finish()
    }
}

impl TokenKey {
    /// Checks the claims of a token that this key has signed.
    fn admit(&self, claims: Arc<Claims>, now: SystemTime) -> Result<Identity, Refused> {
        let wrong = |claim| Refused::Claim { key: self.name.clone(), claim };
        if self.iss.is_some() && claims.iss != self.iss {
            return Err(wrong("iss"));
        }
        if self.aud.as_ref().is_some_and(|aud| !claims.aud.0.contains(aud)) {
            return Err(wrong("aud"));
        }
        if claims.nbf.is_some_and(|nbf| nbf.0 > now + LEEWAY) {
            return Err(wrong("nbf"));
        }
        if claims.exp.0 <= now {
            return Err(Refused::Expired { key: self.name.clone() });
        }
        let mut unfilled = None;
        let grants = self.grants_of(&claims.rejoin, &claims.values(), &mut |found| unfilled = Some(found));
        Ok(Identity {
            grants: Arc::new(grants),
            unfilled: unfilled.map(Arc::new),
            expires_at: Some(claims.exp.0),
            holder: Holder::Token { key: *self.verifier.fingerprint(), claims },
        })
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
    pub fn is_same_subject(&self, other: &Self) -> bool {
        match (&self.holder, &other.holder) {
            (Holder::Key { digest, .. }, Holder::Key { digest: other, .. }) => digest.is(other),
            (Holder::Token { claims, .. }, Holder::Token { claims: other, .. }) => {
                claims.sub.is_some() && claims.sub == other.sub && claims.iss == other.iss
            }
            _ => false,
        }
    }

    /// The subject of a token, and its issuer. None for other credentials, and for a token without a subject.
    pub fn subject(&self) -> Option<(&str, Option<&str>)> {
        match &self.holder {
            Holder::Token { claims, .. } => Some((claims.sub.as_deref()?, claims.iss.as_deref())),
            Holder::Anonymous | Holder::Key { .. } => None,
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
            Holder::Token { claims, .. } => claims.sub.as_deref().unwrap_or("token without sub"),
        }
    }
}
