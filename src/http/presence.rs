//! Presence: the flag that makes a subject present, and the members of a topic.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use http::{Method, StatusCode};
use serde::Serialize;

use super::{
    App,
    access::Access,
    answer::{json, not_stored},
    parameters,
    problem::{Code, Problem},
    query::{self, Query, number},
};
use crate::{
    broker::{EnterError, Present},
    log::{Entries, HoldError, Member, changes_of},
    message::{Id, Pattern, Topic},
};

/// How many bytes the info of a subject may have.
const MAX_INFO_BYTES: usize = 1024;

#[derive(Serialize)]
struct Page {
    cursor: Id,
    count: usize,
    members: Vec<Member>,
    next: Option<Box<str>>,
}

/// `GET /topics/{topic}/presence`.
pub async fn members(app: &Arc<App>, topic: Option<String>, request: Request) -> Result<Response, Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::method_not_allowed("GET, HEAD"));
    }
    let access = Access::of(&app.rules, &request);
    let asked = Query::of(&request, &parameters::MEMBERS).and_then(|query| {
        let limit = number("limit", query.one("limit")?, 100, 1..=1000)?;
        Ok((limit, query.one("after")?.unwrap_or_default().to_owned()))
    });
    drop(request);
    let access = access.await?;
    let topic = topic
        .ok_or_else(|| Problem::bad_request("topic: not valid UTF-8; percent-encode its bytes in UTF-8"))?;
    let pattern = query::pattern("topic", &topic)?;
    access.see_presence(&pattern)?;
    let topic = pattern.topic().filter(|topic| changes_of(topic).is_some());
    let topic = topic.ok_or_else(|| {
        let detail =
            "topic: expected a topic of up to 245 bytes, which is no pattern and does not begin with $";
        Problem::bad_request(detail).about(&pattern)
    })?;
    let (limit, after) = asked?;
    let mut page = app.presences.members(&topic, &after, limit + 1).await?;
    let is_last = page.members.len() <= limit;
    page.members.truncate(limit);
    let next = page.members.last().filter(|_| !is_last).map(|member| member.sub.clone());
    let page = Page { cursor: page.cursor, count: page.count, members: page.members, next };
    Ok(not_stored(json(StatusCode::OK, &page)))
}

/// The topics in which a subject becomes present, of those that it names.
///
/// # Errors
/// If one of them is too long.
pub fn topics<'a>(patterns: impl IntoIterator<Item = &'a Pattern>) -> Result<Vec<Topic>, Problem> {
    let mut topics = Vec::new();
    for topic in patterns.into_iter().filter_map(Pattern::topic).filter(|topic| !topic.is_reserved()) {
        if changes_of(&topic).is_none() {
            let detail = "presence: the topic has more than 245 bytes, so its changes would have no topic";
            return Err(Problem::bad_request(detail).about(&topic));
        }
        topics.push(topic);
    }
    Ok(topics)
}

/// A client that asks to be present in these topics, and the topics that count.
///
/// # Errors
/// If it cannot be present.
pub fn wanted(
    app: &App,
    access: &Access,
    patterns: &[Pattern],
    is_asked: bool,
) -> Result<(Option<Present>, Vec<Topic>), Problem> {
    let Some(present) = app.present_as(access, is_asked)? else { return Ok((None, Vec::new())) };
    Ok((Some(present), topics(patterns)?))
}

/// Has the client become present, if it has asked for it: in these topics, and in those of its list.
///
/// # Errors
/// If the log did not note it.
pub async fn enter(
    present: &mut Option<Present>,
    topics: Vec<Topic>,
    list: Option<&Entries>,
) -> Result<(), Problem> {
    let Some(present) = present else { return Ok(()) };
    present.enter(topics).await?;
    if let Some(list) = list {
        present.enter_list(list.keys()).await?;
    }
    Ok(())
}

impl App {
    /// A connection whose subject can be present.
    ///
    /// # Errors
    /// If it has no subject, or too much info.
    pub(super) fn present(&self, sub: Option<&str>, info: Option<&Arc<str>>) -> Result<Present, Problem> {
        let sub = sub.ok_or_else(|| {
            Problem::bad_request(
                "presence: only a client with a subject can be present, by a token or by [hook]",
            )
        })?;
        if info.is_some_and(|info| info.len() > MAX_INFO_BYTES) {
            let detail = format!(
                "presence: the claim rejoin_info, or info of [hook], has more than {MAX_INFO_BYTES} bytes"
            );
            return Err(Problem::bad_request(detail));
        }
        Ok(self.presences.connection(sub.into(), info.cloned()))
    }

    /// The same for a client, if it asks to be present.
    pub(super) fn present_as(&self, access: &Access, is_asked: bool) -> Result<Option<Present>, Problem> {
        if !is_asked {
            return Ok(None);
        }
        self.present(access.subject().map(|sub| &**sub), access.info()).map(Some)
    }
}

impl From<EnterError> for Problem {
    fn from(error: EnterError) -> Self {
        let detail = match error {
            EnterError::TooMany(_) => {
                "presence limit reached: too many topics for you, or too many members at this server"
            }
            EnterError::Hold(HoldError::TooManyMembers) => {
                "presence limit reached: the topic has 100000 members"
            }
            EnterError::Hold(HoldError::TooManyTopics) => {
                "topic limit reached (--max-topics, or half of --retain-total)"
            }
            EnterError::Hold(HoldError::Log(error)) => return error.into(),
        };
        Self::new(Code::Overloaded, detail)
    }
}
