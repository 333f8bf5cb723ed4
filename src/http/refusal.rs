//! Credentials and grants that are refused: the answer of the client, and the line for the operator.

use std::{
    fmt::Display,
    mem::{Discriminant, discriminant},
    net::IpAddr,
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use tracing::field::display;

use super::{
    credentials::Unusable,
    problem::{Code, Problem, shorten},
    topic_limit_reached,
};
use crate::auth::{Identity, Refused, Why, members_of};

/// The answer for a credential that is not accepted. The log says more.
pub fn problem_of(refused: Refused, client: Option<IpAddr>) -> Problem {
    log_refused(&refused, client);
    let detail = match &refused {
        Refused::Expired { .. } => return expired(),
        Refused::Missing => {
            "no credential: send an API key or a token by Authorization: Bearer, ?token=, the cookie rejoin_token, or \
             the WebSocket subprotocols [\"rejoin.v1\", \"bearer.\" + token]"
                .to_owned()
        }
        _ => match refused.harmless() {
            Some(why) => format!("the token is not accepted: {why}"),
            None => "the credential is not accepted: the log of the server says why, and so does rejoin token check".to_owned(),
        },
    };
    Problem::new(Code::Unauthorized, detail)
}

/// The answer for credentials of which none can be used.
pub fn refuse(unusable: Unusable, client: Option<IpAddr>) -> Problem {
    if CREDENTIALS.is_due(None) {
        tracing::warn!(client = client.map(display), why = %unusable, "refused a credential; correct the client, or the proxy before this server");
    } else {
        tracing::debug!(client = client.map(display), why = %unusable, "refused a credential");
    }
    Problem::new(Code::Unauthorized, unusable.to_string())
}

/// Tells the operator why a credential was refused, and what would change that. Each kind is a place of its own in
/// the code, so that many lines of one kind leave room for the others.
fn log_refused(refused: &Refused, client: Option<IpAddr>) {
    let client = client.map(display);
    // A part of it is the client's text.
    let why = shorten(refused.to_string());
    let is_usual = matches!(refused, Refused::Missing | Refused::Expired { .. } | Refused::KeyGone);
    if is_usual || !CREDENTIALS.is_due(Some(discriminant(refused))) {
        tracing::debug!(client, why, "refused a credential");
        return;
    }
    match refused {
        Refused::Missing | Refused::Expired { .. } | Refused::KeyGone => {}
        Refused::UnknownKey { .. } => {
            tracing::warn!(
                client,
                why,
                "refused an API key; to accept it, add its [[key]] to the file of --config"
            );
        }
        Refused::NoKey { .. } => tracing::warn!(
            client,
            why,
            "refused a token; to accept it, add the key of its issuer as [[jwt]] to the file of --config"
        ),
        Refused::Unsettled { sources, .. } if sources.are_named => {
            tracing::warn!(client, why, "refused a token; its issuer does not publish the key that it names");
        }
        Refused::Unsettled { .. } => tracing::warn!(
            client,
            why,
            "refused a token; if its issuer is one of these, it does not publish the key that it names; to accept \
             another, add its issuer as [[jwt]] to the file of --config"
        ),
        Refused::Signature { .. } | Refused::NotOfIssuer { .. } => tracing::warn!(
            client,
            why,
            "refused a token; if its issuer is yours, its key is not that of the [[jwt]] or of --jwt-secret"
        ),
        Refused::Malformed(_) => {
            tracing::warn!(client, why, "refused a credential that is no JWT; correct the client")
        }
        Refused::Claims { .. } => {
            tracing::warn!(client, why, "refused a token; its issuer must correct the claim")
        }
        Refused::Claim { key, .. } if key == "[hook]" => {
            tracing::warn!(client, why, "refused an answer of the backend of [hook]; correct its sub");
        }
        Refused::Claim { .. } => {
            tracing::warn!(client, why, "refused a token; correct its issuer, or iss and aud of the [[jwt]]");
        }
    }
}

/// How many refused credentials of one kind are told in a minute. Clients may cause any number of them.
const TOLD_OF_A_KIND: usize = 5;

static CREDENTIALS: Lines = Lines(Mutex::new(Minute { began: None, told: Vec::new(), left_out: 0 }));

/// Tells the operator how many refused credentials were left out of the log, if the minute in which they came is over.
pub fn tell_left_out() {
    CREDENTIALS.end_minute();
}

/// Lets a few lines of each kind a minute into the log, and counts the others.
struct Lines(Mutex<Minute>);

struct Minute {
    began: Option<Instant>,
    /// The kind of each line that was told. Credentials that cannot be read are one kind.
    told: Vec<Option<Discriminant<Refused>>>,
    left_out: u64,
}

impl Lines {
    fn is_due(&self, kind: Option<Discriminant<Refused>>) -> bool {
        self.end_minute();
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        minute.began.get_or_insert_with(Instant::now);
        let is_due = minute.told.iter().filter(|told| **told == kind).count() < TOLD_OF_A_KIND;
        if is_due {
            minute.told.push(kind);
        } else {
            minute.left_out += 1;
        }
        is_due
    }

    fn end_minute(&self) {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.is_none_or(|began| began.elapsed() < TELL_AGAIN) {
            return;
        }
        let left_out = std::mem::take(&mut minute.left_out);
        (minute.began, minute.told) = (None, Vec::new());
        drop(minute);
        if left_out > 0 {
            tracing::warn!(
                left_out,
                "more credentials were refused in this minute; the log has five of each kind, and rejoin_refusals_total counts all"
            );
        }
    }
}

/// When a refusal of each code was last told to the operator.
#[derive(Default)]
pub struct Told(Mutex<Vec<(Code, Instant)>>);

/// How long the refusals of a code are only counted after one was told.
const TELL_AGAIN: Duration = Duration::from_secs(60);

impl Told {
    /// Tells the operator of a refusal, unless another one with this code was told in the last minute. Clients may
    /// cause any number of them.
    pub fn tell(&self, code: Code, detail: &str, client: Option<IpAddr>, request: &str) {
        // These have lines of their own, each with the setting that would allow it.
        if matches!(code, Code::ForbiddenHost | Code::ForbiddenOrigin) || !self.is_due(code) {
            return;
        }
        let (client, request) = (client.map(display), shorten(request.to_owned()));
        tracing::info!(
            client,
            request,
            %code,
            detail,
            "refused; the log has one refusal of each code a minute, and rejoin_refusals_total counts all"
        );
    }

    /// Tells the operator why the server ends an open connection, at most once a minute for each code. A drain has
    /// lines of its own.
    pub fn tell_end(&self, problem: &Problem, client: Option<IpAddr>, connection: &str) {
        let Problem { code, detail, .. } = problem;
        if *code != Code::Draining && self.is_due(*code) {
            let client = client.map(display);
            tracing::info!(
                client,
                connection,
                %code,
                detail,
                "closed a connection; the log has one of each code a minute, and the access log has all"
            );
        }
    }

    fn is_due(&self, code: Code) -> bool {
        let (mut told, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        match told.iter_mut().find(|(known, _)| *known == code) {
            Some((_, at)) if now.duration_since(*at) < TELL_AGAIN => return false,
            Some((_, at)) => *at = now,
            None => told.push((code, now)),
        }
        true
    }
}

/// Lets one line a minute into the log, because clients may cause any number of them.
#[derive(Default)]
pub struct OneAMinute(Mutex<Option<Instant>>);

impl OneAMinute {
    pub fn is_due(&self) -> bool {
        let (mut told, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let is_due = told.is_none_or(|at| now.duration_since(at) >= TELL_AGAIN);
        if is_due {
            *told = Some(now);
        }
        is_due
    }
}

/// Tells the operator, once for each kind, that a pattern grants nothing to a token.
pub fn log_unfilled(identity: &Identity) {
    static MISSING: Once = Once::new();
    static NOT_PLAIN: Once = Once::new();
    static BEYOND_LIMIT: Once = Once::new();
    let Some(unfilled) = &identity.unfilled else { return };
    let (who, pattern) = (shorten(identity.name().to_owned()), shorten(unfilled.pattern.to_string()));
    tracing::debug!(who, pattern, why = ?unfilled.why, "a pattern grants nothing to this token");
    match unfilled.why {
        Why::Missing => MISSING.call_once(|| {
            tracing::warn!(
                who,
                pattern,
                "a pattern grants nothing to this token: it has no such claim, or the claim is no string; \
                 more of these are logged at debug"
            );
        }),
        Why::BeyondLimit => BEYOND_LIMIT.call_once(|| {
            tracing::warn!(
                who,
                pattern,
                "a token grants itself more than the limit of its [[jwt]] allows, and that part grants nothing; \
                 more of these are logged at debug"
            );
        }),
        Why::NotPlain => NOT_PLAIN.call_once(|| {
            tracing::warn!(
                who,
                pattern,
                "a pattern grants nothing to this token: the claim is not one plain segment of a topic; \
                 {{sub.encoded}} allows every character in a subject, but none that is empty, too long, or \
                 begins with `$`; more of these are logged at debug"
            );
        }),
    }
}

/// The end of an open connection, if there is no more to say than its code does.
pub fn of_end(code: Code) -> Problem {
    match code {
        Code::TokenExpired => expired(),
        Code::Forbidden => subject_ended(),
        Code::Overloaded => topic_limit_reached(),
        Code::Disconnected => Problem::new(
            Code::Disconnected,
            "the backend has ended this connection; ask it before you connect again",
        ),
        Code::TooSlow => Problem::new(
            Code::TooSlow,
            "the client took nothing within the write timeout (--write-timeout); read faster or less, and connect again with the last cursor",
        ),
        _ => Problem::new(
            Code::Draining,
            "this server ends, or lets its clients come again; connect again with the last cursor",
        ),
    }
}

/// The backend has ended the subject, and refuses its older tokens.
pub fn subject_ended() -> Problem {
    Problem::new(
        Code::Forbidden,
        "the backend has ended this subject; a token that is issued now is accepted",
    )
}

pub fn expired() -> Problem {
    Problem::new(Code::TokenExpired, "the token has expired; get a new one, and connect again with it")
}

pub fn forbidden(
    who: &Identity,
    client: Option<IpAddr>,
    grant: &'static str,
    topic: Option<&dyn Display>,
) -> Problem {
    let what = topic.map(|topic| format!("topic {:?}: ", topic.to_string())).unwrap_or_default();
    let about = |problem: Problem| match topic {
        Some(topic) => problem.about(topic),
        None => problem,
    };
    // The grant for changes of members does not name their topic, but that of the members.
    let topic = topic.map(ToString::to_string);
    let members = topic.as_deref().filter(|_| grant == "presence").and_then(members_of);
    let (shown, by) = (members.or(topic.as_deref()).map(display), client.map(display));
    tracing::debug!(client = by, who = who.name(), grant, topic = shown, granted = %who.grants, "refused: not granted");
    let wanted = members.map_or_else(|| grant.to_owned(), |of| format!("{grant} for {of:?}"));
    if !who.is_known() {
        return about(Problem::new(
            Code::Unauthorized,
            format!(
                "{what}{wanted} is not granted without a credential: send an API key or a token that has this grant"
            ),
        ));
    }
    let place = match who.answer() {
        _ if who.is_key() => "in the [[key]] of this API key",
        Some(_) => "in the answer of the backend of [hook]",
        None => "in the token's claim rejoin, or in its [[jwt]]",
    };
    log_first(who, client, grant, members.or(topic.as_deref()), place);
    let extent = if grant == "publish" && topic.is_none() { " for any topic" } else { "" };
    about(Problem::new(Code::Forbidden, format!("{what}{wanted} is not granted{extent}: grant it {place}")))
}

/// Tells the operator, once for each kind of grant, that a credential lacks it.
fn log_first(who: &Identity, client: Option<IpAddr>, grant: &'static str, topic: Option<&str>, place: &str) {
    static TOLD: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.contains(&grant) {
        return;
    }
    told.push(grant);
    drop(told);
    let (who, client) = (shorten(who.name().to_owned()), client.map(display));
    tracing::warn!(
        client,
        who,
        grant,
        topic,
        "refused: not granted; to allow it, grant it {place}; more of these are logged at debug"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warnings::Warnings;

    /// A client with wrong credentials filled the log.
    #[tokio::test(start_paused = true)]
    async fn a_few_refused_credentials_of_each_kind_a_minute_are_told_and_the_others_counted() {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        let lines = Lines(Mutex::new(Minute { began: None, told: Vec::new(), left_out: 0 }));
        let gone = Some(discriminant(&Refused::KeyGone));
        let due = |kind| (0..1_000).filter(|_| lines.is_due(kind)).count();
        assert_eq!((due(None), due(gone)), (5, 5), "one kind leaves room for the other");
        lines.end_minute();
        assert_eq!(warnings.count(), 0);
        tokio::time::advance(TELL_AGAIN).await;
        lines.end_minute();
        lines.end_minute();
        assert_eq!(warnings.count(), 1, "one line counts them");
        assert_eq!(due(None), 5);
        tokio::time::advance(TELL_AGAIN).await;
        assert!(lines.is_due(None));
        assert_eq!(warnings.count(), 2, "the next one does it too");
    }
}
