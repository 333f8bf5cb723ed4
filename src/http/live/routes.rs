//! The requests about connections.

use std::sync::Arc;

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode};
use serde::Serialize;

use super::{
    ConnectionId, across,
    command::{Command, Done, Shown},
    list::Wanted,
};
use crate::{
    http::{
        App,
        access::Access,
        answer::{json, not_stored},
        parameters, presence,
        problem::Problem,
        query::{self, Query, StartFields, number},
    },
    log::{Payer, Start},
    message::Pattern,
};

#[derive(Serialize)]
struct Page {
    connections: Vec<Shown>,
    next: Option<ConnectionId>,
    missing: Vec<String>,
}

/// `GET /connections`.
pub async fn connections(app: &Arc<App>, request: Request) -> Result<Response, Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::method_not_allowed("GET, HEAD"));
    }
    let access = Access::of(&app.rules, &request);
    let wanted = wanted(&request);
    drop(request);
    access.await?.admin()?;
    let wanted = wanted?;
    let (listed, missing) = across::list_all(app, &wanted).await;
    let next = listed.connections.last().map(|last| last.connection).filter(|_| listed.is_cut);
    Ok(not_stored(json(StatusCode::OK, &Page { connections: listed.connections, next, missing })))
}

/// The connections that a request asks for.
fn wanted(request: &Request) -> Result<Wanted, Problem> {
    let query = Query::of(request, &parameters::CONNECTIONS)?;
    let after = query.one("after")?.filter(|after| !after.is_empty());
    let after = after.map(|after| {
        after
            .parse()
            .map_err(|error| Problem::bad_request(format!("after: {error}; send the next of the last page")))
    });
    Ok(Wanted {
        sub: sub(&query)?,
        topic: query.one("topic")?.map(|topic| query::pattern("topic", topic)).transpose()?,
        limit: number("limit", query.one("limit")?, 100, 1..=1000)?,
        after: after.transpose()?,
    })
}

/// `GET` and `DELETE /connections/{id}`.
pub async fn connection(app: &Arc<App>, id: Option<String>, request: Request) -> Result<Response, Problem> {
    let is_end = match *request.method() {
        Method::GET | Method::HEAD => false,
        Method::DELETE => true,
        _ => return Err(Problem::method_not_allowed("GET, HEAD, DELETE")),
    };
    let access = Access::of(&app.rules, &request);
    let change = if is_end { change(&request).map(Some) } else { Ok(None) };
    drop(request);
    let access = access.await?;
    access.admin()?;
    let change = change?;
    let connection = id.and_then(|id| id.parse().ok()).ok_or_else(across::no_connection)?;
    let command = match change {
        Some(Change { sub, .. }) => Command::End { connection, sub },
        None => Command::Show { connection },
    };
    Ok(match across::run(app, access.payer(), command).await? {
        Done::Shown(shown) => not_stored(json(StatusCode::OK, &shown)),
        _ => StatusCode::NO_CONTENT.into_response(),
    })
}

/// `PUT` and `DELETE /connections/{id}/topics/{topic}`.
pub async fn topic_of(
    app: &Arc<App>,
    id: Option<String>,
    topic: Option<String>,
    request: Request,
) -> Result<Response, Problem> {
    let managed = managed(app, topic, &request);
    let change = change(&request);
    drop(request);
    let (is_added, topic, payer) = managed.await?;
    let Change { sub, start, presence } = change?;
    if presence {
        presence::topics([&topic])?;
    }
    // A client that may not manage the topic learns nothing of the ids, so this comes last.
    let connection = id.and_then(|id| id.parse().ok()).ok_or_else(across::no_connection)?;
    let command = match is_added {
        true => Command::Add { connection, topic, start: start.unwrap_or(Start::Now), sub, presence },
        false => Command::Remove { connection, topic, sub },
    };
    across::run(app, payer, command).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The options of a change of a connection, or of its end.
struct Change {
    sub: Option<String>,
    start: Option<Start>,
    presence: bool,
}

fn change(request: &Request) -> Result<Change, Problem> {
    let is_added = *request.method() == Method::PUT;
    let query = Query::of(request, if is_added { &parameters::ADDED } else { &parameters::REMOVED })?;
    let sub = sub(&query)?;
    let start =
        StartFields { after: query.one("after")?, last: query.one("last")?, since: query.one("since")? };
    let start = if is_added { start.parse()? } else { None };
    Ok(Change { sub, start, presence: is_added && query.flag("presence")? })
}

/// The topic in the path of a `PUT` or a `DELETE`, which the client may manage, and the client. True if it is to be added.
///
/// # Errors
/// If the method is another one, or if the client may not manage the topic.
pub fn managed(
    app: &Arc<App>,
    topic: Option<String>,
    request: &Request,
) -> impl Future<Output = Result<(bool, Pattern, Option<Payer>), Problem>> + Send + use<> {
    let is_added = match *request.method() {
        Method::PUT => Ok(true),
        Method::DELETE => Ok(false),
        _ => Err(Problem::method_not_allowed("PUT, DELETE")),
    };
    let access = Access::of(&app.rules, request);
    async move {
        let is_added = is_added?;
        let access = access.await?;
        let topic = topic.ok_or_else(|| {
            Problem::bad_request("topic: not valid UTF-8; percent-encode its bytes in UTF-8")
        })?;
        let topic = query::pattern("topic", &topic)?;
        if is_added {
            access.add_for_others(&topic)?
        } else {
            access.remove_for_others(&topic)?
        }
        Ok((is_added, topic, access.payer()))
    }
}

/// The subject that the connection must have.
fn sub(query: &Query<'_>) -> Result<Option<String>, Problem> {
    match query.one("sub")? {
        Some("") => {
            Err(Problem::bad_request("sub: expected a subject, and found nothing; name one, or leave it out"))
        }
        sub => Ok(sub.map(str::to_owned)),
    }
}
