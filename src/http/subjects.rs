//! The requests about subjects: the list of each one's topics, and its end.

mod ended;
mod missed;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::ended::Ended;
use self::missed::{Asking, Noted, ToAsk};
use super::{
    App,
    access::Access,
    answer::{json, not_stored},
    live::{self, Command},
    parameters,
    problem::{Code, Problem},
    query::Query,
};
use crate::{
    auth::is_subject,
    log::{AddError, End, Refusal, Replicas, Subjects, Told},
    message::{Id, Pattern},
};

/// How long older tokens may be refused.
const REFUSED_FOR: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// How soon replicas are asked again that have not said that they have ended a subject.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A replica whose clock stood still for longer counts as gone. A connection that is younger than the end by less than this
/// may end with the older ones.
const CLOCK_SLACK: Duration = Duration::from_secs(10);

/// The list of a subject, as a request shows it.
#[derive(Serialize)]
struct Shown<'a> {
    topics: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    topic: &'a Pattern,
    id: Id,
}

/// `DELETE /subjects/{sub}`.
pub async fn subject(app: &Arc<App>, sub: Option<String>, request: Request) -> Result<Response, Problem> {
    if *request.method() != Method::DELETE {
        return Err(Problem::method_not_allowed("DELETE"));
    }
    let access = Access::of(&app.rules, &request);
    let refuse = Query::of(&request, &parameters::END_SUBJECT)
        .and_then(|query| query.one("refuse")?.map(refuse_for).transpose());
    drop(request);
    access.await?.admin()?;
    let sub = parsed(sub)?;
    let refuse = refuse?;
    let (subjects, app, tasks) = (subjects(app)?, app.clone(), app.tasks.clone());
    // In a task, so that the replicas are asked also if the backend hangs up.
    let ending = async move {
        let end = subjects.end(&sub, refuse).await?;
        end_everywhere(&app, end).await
    };
    tasks.spawn(ending).await.unwrap_or_else(|_| Err(unknown()))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /subjects/{sub}/topics`.
pub async fn topics(app: &Arc<App>, sub: Option<String>, request: Request) -> Result<Response, Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::method_not_allowed("GET, HEAD"));
    }
    let access = Access::of(&app.rules, &request);
    let query = Query::of(&request, &parameters::SUBJECT_TOPICS).map(|_| ());
    drop(request);
    let may_see = access.await?.manage_something()?;
    let sub = parsed(sub)?;
    query?;
    let entries = subjects(app)?.list(&sub).await?;
    let seen = entries.iter().filter(|(topic, _)| may_see.missing_to_remove(topic).is_none());
    let topics = seen.map(|(topic, id)| Entry { topic, id: *id }).collect();
    Ok(not_stored(json(StatusCode::OK, &Shown { topics })))
}

/// `PUT` and `DELETE /subjects/{sub}/topics/{topic}`.
pub async fn topic(
    app: &Arc<App>,
    sub: Option<String>,
    topic: Option<String>,
    request: Request,
) -> Result<Response, Problem> {
    let managed = live::managed(app, topic, &request);
    let query = Query::of(&request, &parameters::SUBJECT_TOPIC).and_then(|query| check_no_start(&query));
    drop(request);
    let (is_added, topic, _) = managed.await?;
    let sub = parsed(sub)?;
    query?;
    let subjects = subjects(app)?;
    match is_added {
        true => _ = subjects.add(&sub, &topic).await.map_err(|error| Problem::from(error).about(&topic))?,
        false => subjects.remove(&sub, &topic).await.map_err(changed)?,
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn check_no_start(query: &Query<'_>) -> Result<(), Problem> {
    for start in ["after", "last", "since"] {
        if query.one(start)?.is_some() {
            let detail =
                format!("{start}: an entry of a list has no start; it is read from when it was added");
            return Err(Problem::bad_request(detail));
        }
    }
    Ok(())
}

fn parsed(sub: Option<String>) -> Result<String, Problem> {
    sub.filter(|sub| is_subject(sub)).ok_or_else(|| {
        Problem::bad_request("the subject in the path: expected 1 to 255 bytes without control characters")
    })
}

fn refuse_for(text: &str) -> Result<Duration, Problem> {
    let parsed = humantime::parse_duration(text).ok().filter(|duration| REFUSED_FOR.contains(duration));
    parsed.ok_or_else(|| Problem::bad_request("refuse: expected a duration from 1s to 7d, such as 10m"))
}

fn subjects(app: &App) -> Result<Arc<dyn Subjects>, Problem> {
    app.broker
        .subjects()
        .ok_or_else(|| Problem::new(Code::Unavailable, "this log keeps no lists of subjects"))
}

/// The refusal of a change of a list.
fn changed(error: crate::log::LogError) -> Problem {
    AddError::Log(error).into()
}

impl From<AddError> for Problem {
    fn from(error: AddError) -> Self {
        match error {
            AddError::TooMany => {
                Self::new(Code::Conflict, "the list of a subject has up to 1000 entries; remove one first")
            }
            AddError::TooManyWild => Self::new(
                Code::Conflict,
                "the list of a subject has up to 100 patterns with a wildcard; remove one first",
            ),
            AddError::NoRoom => Self::new(
                Code::Overloaded,
                "the lists of subjects take all the room (--retain-total); remove entries first",
            ),
            AddError::Log(crate::log::LogError::UnknownOutcome) => Self::new(
                Code::UnknownOutcome,
                "the log did not confirm in time; send the request again, which changes nothing if it was done",
            ),
            AddError::Log(error) => error.into(),
        }
    }
}

/// Ends a subject at every replica.
async fn end_everywhere(app: &Arc<App>, end: End) -> Result<(), Problem> {
    let begun = Instant::now();
    let until = begun + live::PATIENCE;
    app.end_subject(end.clone(), None).await;
    let Some(replicas) = app.broker.replicas() else { return Ok(()) };
    let command = Command::EndSubject { end: end.clone(), ago_ms: None };
    let to_ask = ask(&replicas, ToAsk::All, &command, until).await;
    if to_ask.is_empty() {
        return Ok(());
    }
    let subject = end.subject.clone();
    match app.ended.missed.note(end, begun, to_ask) {
        Noted::New(asking) => keep_asking(app, replicas, asking),
        Noted::Joined => {}
        Noted::Full => {
            tracing::debug!(sub = &*subject, "the replicas are not asked again about this end of a subject");
        }
    }
    Err(unknown())
}

fn unknown() -> Problem {
    let detail = "a replica did not answer in time; it may do it later, so send the request again";
    Problem::new(Code::UnknownOutcome, detail)
}

/// Asks replicas, and returns those that are to be asked again.
async fn ask(replicas: &Replicas, asked: ToAsk, command: &Command, until: Instant) -> ToAsk {
    match asked {
        ToAsk::These(names) => ToAsk::These(live::ask_these(replicas, names, command, until).await),
        ToAsk::All => live::ask_others(replicas, command, until).await.map_or(ToAsk::All, ToAsk::These),
    }
}

/// Asks replicas again until each has done it or is gone: a replica that has lost a part of the feed reads nothing of it
/// there. While the store is away no replica can be asked, and that does not count. It ends with the drain of this process.
fn keep_asking(app: &Arc<App>, replicas: Arc<Replicas>, mut asking: Asking) {
    let draining = app.shutdown.draining();
    app.tasks.clone().spawn(async move {
        let asked = async {
            while let Some(question) = asking.next() {
                let until = Instant::now() + live::PATIENCE;
                let Ok(Ok(_)) = timeout_at(until, replicas.others()).await else {
                    sleep(AGAIN_AFTER).await;
                    continue;
                };
                let ago_ms = u64::try_from(question.begun.elapsed().as_millis()).ok();
                let command = Command::EndSubject { end: question.end.clone(), ago_ms };
                let to_ask = ask(&replicas, question.to_ask.clone(), &command, until).await;
                if !to_ask.is_empty() {
                    sleep(AGAIN_AFTER).await;
                }
                asking.conclude(&question, to_ask);
            }
        };
        tokio::select! {
            () = draining => {}
            () = asked => {}
        }
    });
}

impl App {
    /// Ends the connections of a subject in this process, and answers its polls. If the end was made so long `ago`, those
    /// that began after it stay.
    pub(super) async fn end_subject(&self, end: End, ago: Option<Duration>) {
        let (done, is_mine) = self.ended.note(&end);
        if !is_mine {
            // It may bring the refusal of an earlier end that this replica has missed.
            if ago.is_some() {
                self.end_refused_of(&end);
            }
            return done.cancelled().await;
        }
        let _done = done.drop_guard();
        if let Some(hook) = &self.rules.load().hook {
            hook.forget(&end.subject);
        }
        let before = ago.map(|ago| OffsetDateTime::now_utc() - ago + CLOCK_SLACK);
        let count = self.live.end_subject(&end.subject, before);
        if before.is_some() {
            self.end_refused_of(&end);
        }
        tracing::debug!(sub = &*end.subject, connections = count, "the backend ended a subject");
    }

    /// Ends the connections of the subject whose tokens are refused.
    fn end_refused_of(&self, end: &End) {
        if end.refusal.is_some() {
            self.live.end_refused_of(&end.subject, |issued| self.ended.refuses_token(&end.subject, issued));
        }
    }

    /// Listens for ends in the log.
    pub(super) fn hear_ends(self: &Arc<Self>) {
        if let Some(subjects) = self.broker.subjects() {
            subjects.tell(Arc::new(Hears(Arc::downgrade(self))));
        }
    }
}

struct Hears(std::sync::Weak<App>);

impl Told for Hears {
    fn ended(&self, end: End) {
        let Some(app) = self.0.upgrade() else { return };
        app.tasks.clone().spawn(async move { app.end_subject(end, None).await });
    }

    fn missed(&self) {
        let Some(app) = self.0.upgrade() else { return };
        if let Some(hook) = &app.rules.load().hook {
            hook.forget_all();
        }
    }

    fn refused(&self, refusals: Vec<(Box<str>, Refusal)>) {
        let Some(app) = self.0.upgrade() else { return };
        refusals.iter().for_each(|(subject, refusal)| app.ended.note_refusal(subject, *refusal));
    }

    fn refused_all(&self) {
        let Some(app) = self.0.upgrade() else { return };
        if app.ended.take_late_refusals() {
            app.tasks.clone().spawn(async move {
                app.live.end_refused(|subject, issued| app.ended.refuses_token(subject, issued)).await;
            });
        }
    }
}
