//! Why a credential is accepted or refused, part by part: for an operator who has the configuration.
//!
//! The verdict is that of [`Authority::identify`]. The findings only explain it, and they reveal the values that the
//! configuration expects: no client may get them.

use std::{sync::Arc, time::SystemTime};

use super::{
    Refused,
    authority::{Authority, Identity, LEEWAY, Terms, TokenKey, named_iss},
    claims::{Audience, NumericDate, Written},
    grants::GrantList,
    issuer::Issuer,
    jwt::{Parts, Verifier},
    key::Digest,
    kid_in_words,
    subject::{Prefixes, subject},
    template::Values,
};

/// A part of a credential, and the mistake in it, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub part: &'static str,
    pub text: String,
    pub is_mistake: bool,
}

/// All findings, and the verdict.
#[derive(Debug)]
pub struct Check {
    pub findings: Vec<Finding>,
    pub verdict: Result<Arc<Identity>, Refused>,
}

impl Authority {
    /// Checks an API key or a token as a server with this configuration does at the time `now`.
    pub fn check(&self, credential: &str, now: SystemTime) -> Check {
        let mut findings = Findings::default();
        if credential.contains('.') {
            findings.token(self, credential, now);
        } else {
            findings.key(self, credential);
        }
        Check { findings: findings.0, verdict: self.identify(Some(credential), now) }
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn right(&mut self, part: &'static str, text: impl Into<String>) {
        self.0.push(Finding { part, text: text.into(), is_mistake: false });
    }

    fn wrong(&mut self, part: &'static str, text: impl Into<String>) {
        self.0.push(Finding { part, text: text.into(), is_mistake: true });
    }

    fn add(&mut self, part: &'static str, found: Result<String, String>) {
        match found {
            Ok(text) => self.right(part, text),
            Err(text) => self.wrong(part, text),
        }
    }

    fn key(&mut self, authority: &Authority, credential: &str) {
        let digest = Digest::of(credential.as_bytes());
        let short = digest.short();
        match authority.keys.iter().find(|known| known.digest.is(&digest)) {
            Some(known) => self.right("key", format!("[[key]] {:?}", known.identity.name())),
            None => self.wrong(
                "key",
                format!("this is no token, since it has no dots; as an API key it is unknown: no [[key]] has its sha256, which begins with {short}"),
            ),
        }
    }

    fn token(&mut self, authority: &Authority, token: &str, now: SystemTime) {
        let parts = match Parts::split(token) {
            Ok(parts) => parts,
            Err(why) => return self.wrong("header", format!("this is no JWT: {why}")),
        };
        self.right(
            "header",
            format!("alg {}, kid {}", parts.algorithm.name(), kid_in_words(parts.kid.as_deref())),
        );
        let keys = &authority.token_keys;
        let signer = keys
            .iter()
            .find(|key| key.verifier.is_for(&parts) && key.verifier.has_signed(&parts) == Ok(true));
        let mut terms = signer.map(|key| &*key.terms);
        match signer {
            Some(key) => self.right("signature", format!("made by the key of {}", name_of(key))),
            None => terms = self.issuers(authority, &parts),
        }
        match Written::read(parts.claims) {
            Ok(claims) => self.claims(claims, terms, &authority.prefixes, now),
            Err(why) => self.wrong("claims", why),
        }
    }

    /// Explains why no configured key has made the signature. The result are the terms of the issuer that the token
    /// names.
    fn issuers<'a>(&mut self, authority: &'a Authority, parts: &Parts<'_>) -> Option<&'a Terms> {
        let (keys, named) = (&authority.token_keys, named_iss(parts));
        let mut issuers =
            authority.issuers.iter().filter(|issuer| issuer.may_be(named.as_deref())).peekable();
        if issuers.peek().is_none() {
            keys.iter().for_each(|key| self.wrong("signature", not_signed(key, parts)));
            match &named {
                _ if authority.issuers.is_empty() && keys.is_empty() => {
                    self.wrong("signature", "no [[jwt]] and no --jwt-secret is configured");
                }
                _ if authority.issuers.is_empty() => {}
                Some(named) => {
                    self.wrong("signature", format!("no [[jwt]] with jwks or issuer has the iss {named:?}"))
                }
                None => self.wrong(
                    "signature",
                    "each [[jwt]] with jwks or issuer has an iss, and the token has none",
                ),
            }
        }
        let mut terms = None;
        for Issuer { terms: others, source, .. } in issuers {
            terms = terms.or(Some(&**others));
            let (name, place) = (&others.name, &source.place);
            self.wrong(
                "signature",
                format!("not checked: the keys of [[jwt]] {name:?} are at {place}, and this command asks no server"),
            );
        }
        terms
    }

    /// Each claim alone, so that all mistakes are found at once.
    fn claims(&mut self, mut claims: Written, terms: Option<&Terms>, prefixes: &Prefixes, now: SystemTime) {
        let exp = claims.take::<NumericDate>("exp");
        let is_far = exp.as_ref().is_ok_and(|exp| exp.is_some_and(NumericDate::is_far));
        self.add(
            "exp",
            exp.and_then(|exp| exp.ok_or("exp is missing".into())).and_then(|exp| is_ahead(exp, now)),
        );
        if is_far {
            self.right("exp", "warning: this looks like milliseconds, and exp counts seconds");
        }
        match claims.take::<Option<NumericDate>>("nbf").map(Option::flatten) {
            Ok(None) => {}
            Ok(Some(nbf)) if nbf.0 > now + LEEWAY => {
                self.wrong("nbf", format!("{}, which is in the future", date(nbf)))
            }
            Ok(Some(nbf)) => self.right("nbf", date(nbf)),
            Err(why) => self.wrong("nbf", why),
        }
        let iss = self.text("iss", &mut claims);
        if let Some(wanted) =
            terms.and_then(|terms| terms.iss.as_ref()).filter(|wanted| iss.as_ref() != Some(*wanted))
        {
            self.wrong("iss", format!("the [[jwt]] requires {wanted:?}"));
        }
        let aud = claims.take::<Option<Audience>>("aud").map(|aud| aud.flatten().unwrap_or_default());
        let wanted = terms.and_then(|terms| terms.aud.as_ref());
        match (aud, wanted) {
            (Err(why), _) => self.wrong("aud", why),
            (Ok(aud), Some(wanted)) if !aud.0.contains(wanted) => {
                self.wrong("aud", format!("{:?}; the [[jwt]] requires {wanted:?}", aud.0));
            }
            (Ok(aud), _) if aud.0.is_empty() => {}
            (Ok(aud), _) => self.right("aud", format!("{:?}", aud.0)),
        }
        let sub = self.text("sub", &mut claims);
        let sub = self.subject(sub, terms.unwrap_or(&Terms::default()), prefixes);
        self.misplaced_grants(&claims);
        match claims.take_grants() {
            Err(why) => self.wrong("rejoin", why),
            Ok(own) => {
                let others = claims.texts();
                let values = Values { sub: sub.as_deref(), iss: iss.as_deref(), others: Some(&others) };
                let mut unfilled = Vec::new();
                let mut note = |found| unfilled.push(found);
                let grants = match terms {
                    Some(terms) => terms.grants_of(&own, &values, &mut note),
                    None => GrantList::grant([&own], &values, &mut note),
                };
                self.right("grants", grants.to_string());
                unfilled.iter().for_each(|unfilled| self.right("grants", format!("warning: {unfilled}")));
            }
        }
    }

    /// The subject that the claim `sub` makes.
    fn subject(&mut self, sub: Option<String>, terms: &Terms, prefixes: &Prefixes) -> Option<Arc<str>> {
        if terms.is_forged(sub.as_deref(), prefixes) {
            self.wrong("sub", "it begins with the sub-prefix of another issuer");
        }
        let made = subject(terms.prefix.as_deref(), sub.as_deref()?);
        match &made {
            None => self.right(
                "sub",
                "warning: it names no subject: expected 1 to 255 bytes without control characters",
            ),
            Some(made) if terms.prefix.is_some() => {
                self.right("sub", format!("with its sub-prefix {made:?}"))
            }
            Some(_) => {}
        }
        made
    }

    /// Grants that count for nothing because of their name or their place. They are no mistake, since other programs
    /// may use these names.
    fn misplaced_grants(&mut self, claims: &Written) {
        let known = GrantList::NAMES;
        for name in claims.names_in("rejoin").iter().filter(|name| !known.contains(&name.as_str())) {
            let known = known.join(", ");
            self.right("rejoin", format!("warning: {name:?} grants nothing: the names are {known}"));
        }
        for name in known.iter().filter(|name| claims.has(name)) {
            self.right(
                "rejoin",
                format!("warning: the claim {name:?} grants nothing outside of the claim rejoin"),
            );
        }
    }

    /// A claim that is a text, if it is there.
    fn text(&mut self, name: &'static str, claims: &mut Written) -> Option<String> {
        match claims.take::<Option<String>>(name).map(Option::flatten) {
            Ok(text) => {
                text.iter().for_each(|text| self.right(name, format!("{text:?}")));
                text
            }
            Err(why) => {
                self.wrong(name, why);
                None
            }
        }
    }
}

fn name_of(key: &TokenKey) -> String {
    let name = &key.terms.name;
    if name.starts_with("--") { name.clone() } else { format!("[[jwt]] {name:?}") }
}

/// Why the token is not one of this key.
fn not_signed(key: &TokenKey, parts: &Parts<'_>) -> String {
    let verifier: &Verifier = &key.verifier;
    let why = if verifier.algorithm() != parts.algorithm {
        format!("it is for {}, and the token has {}", verifier.algorithm().name(), parts.algorithm.name())
    } else if !verifier.is_for(parts) {
        format!(
            "it has the kid {}, and the token names {}",
            kid_in_words(verifier.kid()),
            kid_in_words(parts.kid.as_deref())
        )
    } else {
        "another key, or another secret, has made the signature".to_owned()
    };
    format!("not by the key of {}: {why}", name_of(key))
}

fn date(NumericDate(time): NumericDate) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn is_ahead(exp: NumericDate, now: SystemTime) -> Result<String, String> {
    match exp.0.duration_since(now) {
        Ok(left) if !left.is_zero() => Ok(date(exp)),
        _ => Err(format!("{}, which is past", date(exp))),
    }
}
