//! Who somebody is, and what that one may do: one configuration of keys and grants, judged as of a time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Refused,
    claims::Claims,
    grants::{GrantList, Grants},
    jwt::{self, Verifier},
    key::Digest,
};

/// How far ahead of ours the clock of an issuer may be, for `nbf`.
///
/// `exp` has no such leeway: a connection ends at that time, and whoever came back in it with the same
/// token would be ended again at once.
const LEEWAY: Duration = Duration::from_secs(30);

/// An API key that is known.
#[derive(Clone)]
pub struct ApiKey {
    /// For the operator's log.
    pub name: Arc<str>,
    pub digest: Digest,
    pub grants: Arc<Grants>,
}

/// A key that signs tokens, and what tokens must say beside.
#[derive(Clone)]
pub struct TokenKey {
    /// For the operator's log.
    pub name: String,
    pub verifier: Verifier,
    pub iss: Option<String>,
    pub aud: Option<String>,
    /// What every token of this key is granted beside what it says itself.
    pub grants: GrantList,
}

impl AsRef<Verifier> for TokenKey {
    fn as_ref(&self) -> &Verifier {
        &self.verifier
    }
}

/// Everything that is configured about who may do what. Where that is nothing, whoever comes may do everything.
#[derive(Clone, Default)]
pub struct Authority {
    pub keys: Vec<ApiKey>,
    pub token_keys: Vec<TokenKey>,
    /// What may be done without a credential. None: nothing.
    pub anonymous: Option<Arc<Grants>>,
}

/// Somebody whose credential was accepted, or who has none.
#[derive(Clone, Debug)]
pub struct Identity {
    pub grants: Arc<Grants>,
    pub expires_at: Option<SystemTime>,
    holder: Holder,
}

/// What was shown, without what would let one show it again.
#[derive(Clone, Debug)]
enum Holder {
    Nobody,
    Key { name: Arc<str>, digest: Digest },
    Token { key: Digest, claims: Arc<Claims> },
}

impl Authority {
    /// One that knows nobody and grants nothing.
    pub fn closed() -> Self {
        Self { anonymous: Some(Arc::default()), ..Self::default() }
    }

    /// Whether there is nothing to decide by.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty() && self.token_keys.is_empty() && self.anonymous.is_none()
    }

    /// Who shows this credential, or none.
    ///
    /// # Errors
    /// If it is not accepted, also where it could have been done without.
    pub fn identify(&self, credential: Option<&str>, now: SystemTime) -> Result<Identity, Refused> {
        match credential {
            _ if self.is_open() => self.nobody(),
            None => self.nobody(),
            // Keys have no dot, and tokens have two.
            Some(token) if token.contains('.') => {
                let (key, claims) = jwt::verify(&self.token_keys, token)?;
                key.admit(Arc::new(claims), now)
            }
            Some(key) => self.holder_of(&Digest::of(key.as_bytes())),
        }
    }

    /// Who somebody is by this configuration that was identified by an earlier one.
    pub fn again(&self, identity: &Identity, now: SystemTime) -> Result<Identity, Refused> {
        match &identity.holder {
            _ if self.is_open() => self.nobody(),
            Holder::Nobody => self.nobody(),
            Holder::Key { digest, .. } => self.holder_of(digest),
            Holder::Token { key, claims } => {
                let known = self.token_keys.iter().find(|known| known.verifier.fingerprint().is(key));
                known.ok_or(Refused::KeyGone)?.admit(claims.clone(), now)
            }
        }
    }

    fn nobody(&self) -> Result<Identity, Refused> {
        let everything = self.is_open().then(|| Arc::new(Grants::everything()));
        let grants = everything.or_else(|| self.anonymous.clone()).ok_or(Refused::Missing)?;
        Ok(Identity { grants, expires_at: None, holder: Holder::Nobody })
    }

    fn holder_of(&self, digest: &Digest) -> Result<Identity, Refused> {
        // All of them are compared, so that nothing shows which one it was or how many there are before it.
        let mut found = None;
        for key in &self.keys {
            if key.digest.is(digest) {
                found = Some(key);
            }
        }
        let key = found.ok_or(Refused::UnknownKey)?;
        let holder = Holder::Key { name: key.name.clone(), digest: key.digest };
        Ok(Identity { grants: key.grants.clone(), expires_at: None, holder })
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
    /// Judges what a token of this key says.
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
        let grants = GrantList::grant([&self.grants, &claims.rejoin], claims.sub.as_deref());
        Ok(Identity {
            grants: Arc::new(grants),
            expires_at: Some(claims.exp.0),
            holder: Holder::Token { key: *self.verifier.fingerprint(), claims },
        })
    }
}

impl Identity {
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether a credential was shown.
    pub fn is_known(&self) -> bool {
        !matches!(self.holder, Holder::Nobody)
    }

    /// Whether both are the same: of tokens the subject, and whoever vouches for it. A token without a subject may be
    /// anybody's.
    pub fn is_same_subject(&self, other: &Self) -> bool {
        match (&self.holder, &other.holder) {
            (Holder::Key { digest, .. }, Holder::Key { digest: other, .. }) => digest.is(other),
            (Holder::Token { claims, .. }, Holder::Token { claims: other, .. }) => {
                claims.sub.is_some() && claims.sub == other.sub && claims.iss == other.iss
            }
            _ => false,
        }
    }

    /// For the operator's log: the name of an API key, or the subject of a token.
    pub fn name(&self) -> &str {
        match &self.holder {
            Holder::Nobody => "anonymous",
            Holder::Key { name, .. } => name,
            Holder::Token { claims, .. } => claims.sub.as_deref().unwrap_or("token without sub"),
        }
    }
}
