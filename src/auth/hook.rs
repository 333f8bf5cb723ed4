//! The answers of a backend that is asked who a client is. `http` asks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::{
    Refused,
    authority::{Authority, Holder, Identity},
    claims::info,
    grants::GrantList,
    subject::subject,
    template::{Template, Values},
};

/// How long an answer lasts that does not say so, and how long one may last.
const USUAL_SECONDS: f64 = 60.0;
const SECONDS: std::ops::RangeInclusive<f64> = 1.0..=86_400.0;

/// The backend to ask, and what it is told.
#[derive(Clone, PartialEq, Eq)]
pub struct HookSettings {
    pub url: Url,
    /// Sent with each question, so that the backend knows who asks.
    pub secret: Option<String>,
    /// The names of the headers and cookies that say who a client is. Header names are in small letters.
    pub headers: Vec<String>,
    pub cookies: Vec<String>,
    pub terms: HookTerms,
}

/// The part of the settings that changes how an answer counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookTerms {
    /// Stands before the `sub` of every answer, so that no issuer has the same subjects.
    pub prefix: Option<String>,
    /// Messages name the subject that has published them.
    pub by: bool,
}

/// The backend says who a client is.
#[derive(Debug)]
pub struct HookAnswer {
    sub: Option<Arc<str>>,
    grants: GrantList,
    info: Option<Arc<str>>,
    /// When it came, and how long it lasts from then on.
    pub at: SystemTime,
    pub lasts: Duration,
}

/// A member that is null counts as absent: Go writes an empty list so.
#[derive(Deserialize)]
struct Written {
    sub: Option<String>,
    subscribe: Option<Vec<Template>>,
    publish: Option<Vec<Template>>,
    presence: Option<Vec<Template>>,
    info: Option<Box<RawValue>>,
    expires_in: Option<f64>,
}

impl HookAnswer {
    /// Reads the answer of a backend, which came at this time.
    ///
    /// # Errors
    /// The mistake in it, without its text.
    pub fn read(json: &[u8], terms: &HookTerms, at: SystemTime) -> Result<Self, String> {
        let crate::message::Object(Written { sub, subscribe, publish, presence, info: told, expires_in }) =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let sub = match sub {
            None => None,
            Some(sub) => Some(
                subject(terms.prefix.as_deref(), &sub)
                    .ok_or("sub: expected 1 to 255 bytes without control characters")?,
            ),
        };
        let seconds = expires_in.unwrap_or(USUAL_SECONDS);
        if !SECONDS.contains(&seconds) {
            return Err("expires_in: expected a number of seconds from 1 to 86400".into());
        }
        let grants = GrantList {
            subscribe: subscribe.unwrap_or_default(),
            publish: publish.unwrap_or_default(),
            presence: presence.unwrap_or_default(),
            ..GrantList::default()
        };
        let info = told.as_deref().and_then(info);
        Ok(Self { sub, grants, info, at, lasts: Duration::from_secs_f64(seconds) })
    }

    /// The user, if the answer names one.
    pub fn subject(&self) -> Option<&str> {
        self.sub.as_deref()
    }

    fn ends_at(&self) -> SystemTime {
        self.at + self.lasts
    }
}

impl Authority {
    /// Identifies a client by an answer of the backend.
    ///
    /// # Errors
    /// If the backend is asked no more, if its subjects have another prefix now, or if the answer has expired.
    pub fn identify_by_hook(
        &self,
        answer: &Arc<HookAnswer>,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Refused> {
        let terms = self.hook.as_ref().map(|hook| &hook.terms).ok_or(Refused::KeyGone)?;
        let sub = answer.sub.as_deref();
        match (&terms.prefix, sub) {
            (Some(prefix), Some(sub)) if !sub.starts_with(prefix.as_str()) => return Err(Refused::KeyGone),
            (None, Some(sub)) if self.prefixes.are_forged_by(sub) => {
                return Err(Refused::Claim { key: "[hook]".into(), claim: "sub" });
            }
            _ => {}
        }
        if answer.ends_at() <= now {
            return Err(Refused::Expired { key: "[hook]".into() });
        }
        let (values, mut unfilled) = (Values { sub, ..Values::default() }, None);
        let grants =
            GrantList::grant([&answer.grants], &values, &mut |found| _ = unfilled.get_or_insert(found));
        Ok(Arc::new(Identity {
            grants: Arc::new(grants),
            unfilled: unfilled.map(Arc::new),
            expires_at: Some(answer.ends_at()),
            subject: answer.sub.clone(),
            is_named: terms.by,
            info: answer.info.clone(),
            holder: Holder::Hook { answer: answer.clone() },
        }))
    }
}

impl Identity {
    /// The answer of the backend that says who this is.
    pub fn answer(&self) -> Option<&Arc<HookAnswer>> {
        match &self.holder {
            Holder::Hook { answer } => Some(answer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::subject::Owner;

    fn read(json: &str) -> Result<HookAnswer, String> {
        HookAnswer::read(json.as_bytes(), &HookTerms::default(), SystemTime::UNIX_EPOCH)
    }

    /// A server that asks a backend, whose answers have these terms.
    fn asking(terms: HookTerms) -> Authority {
        let hook = HookSettings {
            url: Url::parse("http://localhost/").expect("a URL"),
            secret: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            terms,
        };
        Authority { hook: Some(Arc::new(hook)), ..Authority::default() }
    }

    #[test]
    fn a_backend_names_no_subject_of_an_issuer() {
        let mut authority = asking(HookTerms::default());
        authority.prefixes.add(Owner::Issuer(Some("theirs".into())), Some("t-")).expect("a prefix");
        for (sub, is_ours) in [("u1", true), ("t", true), ("t-u1", false)] {
            let answer = read(&format!(r#"{{"sub":"{sub}"}}"#)).expect("an answer");
            let identified = authority.identify_by_hook(&Arc::new(answer), SystemTime::UNIX_EPOCH);
            assert_eq!(identified.is_ok(), is_ours, "{sub}");
            let is_forged = matches!(identified, Err(Refused::Claim { claim: "sub", .. }));
            assert_eq!(is_forged, !is_ours, "{sub}");
        }
    }

    /// The answer is kept over a reload, and its subject would be one of another issuer then.
    #[test]
    fn an_answer_from_before_a_prefix_does_not_count() {
        let authority = asking(HookTerms { prefix: Some("h-".into()), by: false });
        let answer = Arc::new(read(r#"{"sub":"u1"}"#).expect("an answer"));
        let identified = authority.identify_by_hook(&answer, SystemTime::UNIX_EPOCH);
        assert!(matches!(identified, Err(Refused::KeyGone)));
    }

    #[test]
    fn an_answer_of_a_wrong_type_or_out_of_range_is_none() {
        for wrong in [
            "",
            "[]",
            "null",
            "{",
            r#"{"sub":1}"#,
            r#"{"sub":""}"#,
            r#"{"sub":"a\nb"}"#,
            r#"{"subscribe":"a"}"#,
            r#"{"subscribe":["a..b"]}"#,
            r#"{"publish":[1]}"#,
            r#"{"presence":"a"}"#,
            r#"{"presence":["a..b"]}"#,
            r#"{"expires_in":"60"}"#,
            r#"{"expires_in":0.5}"#,
            r#"{"expires_in":86401}"#,
            r#"{"expires_in":-1}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(&format!(r#"{{"sub":"{}"}}"#, "x".repeat(256))).is_err());
    }

    /// A backend in Go whose user may publish nothing was away for all its users.
    #[test]
    fn a_member_that_is_null_is_absent() {
        let answer = read(
            r#"{"sub":null,"subscribe":null,"publish":null,"presence":null,"info":null,"expires_in":null}"#,
        )
        .expect("an answer");
        assert_eq!((answer.subject(), &answer.info, answer.lasts), (None, &None, Duration::from_secs(60)));
        assert_eq!(answer.grants, GrantList::default());
        assert!(read(r#"{"subscribe":[null]}"#).is_err());
    }

    #[test]
    fn an_answer_grants_what_it_lists_for_a_minute_and_never_admin() {
        let answer = read(
            r#"{"sub":"u1","subscribe":["users.{sub}"],"admin":true,"manage":["**"],"metrics":true,"info":[1],"x":1}"#,
        )
        .expect("an answer");
        assert_eq!(answer.lasts, Duration::from_secs(60));
        assert_eq!(read(r#"{"expires_in":86400}"#).expect("an answer").lasts, Duration::from_secs(86_400));
        let authority = asking(HookTerms::default());
        let answer = Arc::new(answer);
        let identity = authority.identify_by_hook(&answer, SystemTime::UNIX_EPOCH).expect("known");
        let granted = "subscribe [users.u1] publish [] manage [] presence [] admin false metrics false";
        assert_eq!(identity.grants.to_string(), granted);
        let later = SystemTime::UNIX_EPOCH + answer.lasts;
        assert!(matches!(authority.identify_by_hook(&answer, later), Err(Refused::Expired { .. })));
        assert!(matches!(Authority::default().identify_by_hook(&answer, later), Err(Refused::KeyGone)));
    }
}
