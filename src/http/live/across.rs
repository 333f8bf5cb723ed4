//! Brings a command to the replica that holds the connection, and asks all replicas for their connections.

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{
    PATIENCE,
    command::{Command, Done, replica_name},
    list::{self, Listed, Wanted},
};
use crate::{
    http::{
        App,
        problem::{Code, Problem},
    },
    log::{Replicas, TopicStats, Unanswered},
    message::Pattern,
};

/// The answer of a replica.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(Done),
    Refused { code: Code, detail: String, topic: Option<String> },
}

/// Does a command about one connection, wherever that connection is.
///
/// # Errors
/// `not_found` if no such connection lives, and `unknown_outcome` if that cannot be known in time.
///
/// # Cancel safety
/// Dropping this before it resolves may still do the command.
pub async fn run(app: &App, command: Command) -> Result<Done, Problem> {
    let until = Instant::now() + PATIENCE;
    let holder = command.connection().map(|id| id.replica());
    let done = match &app.live.replicas {
        Some(replicas) if holder != Some(replicas.name()) => {
            let holder = holder.unwrap_or_default();
            ask(replicas, holder, &command, until).await.map_err(problem_of).and_then(|done| done)
        }
        _ => match timeout_at(until, command.run(app, until)).await {
            Ok(done) => done,
            Err(_) => Err(problem_of(Unanswered::Unknown)),
        },
    };
    app.metrics.commanded(done.as_ref().err().map(|problem| problem.code));
    done
}

/// A page of the connections of all replicas, and the replicas that did not answer.
pub async fn list_all(app: &App, wanted: &Wanted) -> Result<(Listed, Vec<String>), Problem> {
    let until = Instant::now() + PATIENCE;
    let own = list::list(&app.live.table, wanted);
    let Some(replicas) = &app.live.replicas else { return Ok((own.await, Vec::new())) };
    let Ok(living) = timeout_at(until, replicas.living()).await else {
        return Err(problem_of(Unanswered::Unknown));
    };
    let living = living.map_err(Problem::from)?;
    let command = Command::List(wanted.clone());
    let others = living.into_iter().filter(|name| *name != replicas.name());
    let asked = others.map(async |name| (name, ask(replicas, name, &command, until).await));
    let (own, answers) = tokio::join!(own, join_all(asked));
    let (mut pages, mut missing) = (vec![own], Vec::new());
    for (name, answer) in answers {
        match answer {
            Ok(Ok(Done::Listed(page))) => pages.push(page),
            // It has ended meanwhile, and its connections with it.
            Err(Unanswered::Gone) => {}
            Ok(_) | Err(Unanswered::Busy | Unanswered::Unknown) => missing.push(replica_name(name)),
        }
    }
    missing.sort_unstable();
    Ok((list::merge(pages, wanted.limit), missing))
}

/// True if a replica has done this, or is gone.
pub async fn is_done(replicas: &Replicas, name: u64, command: &Command, until: Instant) -> bool {
    match ask(replicas, name, command, until).await {
        Ok(done) => done.is_ok(),
        Err(unanswered) => unanswered == Unanswered::Gone,
    }
}

/// Adds the subscribers at the other replicas, and returns the replicas that did not answer.
pub async fn count_all(app: &App, topics: &mut [TopicStats]) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    let Some(replicas) = &app.live.replicas else { return Vec::new() };
    let Ok(Ok(living)) = timeout_at(until, replicas.living()).await else {
        return vec!["unknown".to_owned()];
    };
    let names = topics.iter().map(|stats| Pattern::from(&stats.topic)).collect();
    let command = Command::Count { topics: names };
    let others = living.into_iter().filter(|name| *name != replicas.name());
    let asked = others.map(async |name| (name, ask(replicas, name, &command, until).await));
    let mut missing = Vec::new();
    for (name, answer) in join_all(asked).await {
        match answer {
            Ok(Ok(Done::Counted(counts))) if counts.len() == topics.len() => {
                topics.iter_mut().zip(counts).for_each(|(stats, count)| stats.subscribers += count);
            }
            Err(Unanswered::Gone) => {}
            Ok(_) | Err(Unanswered::Busy | Unanswered::Unknown) => missing.push(replica_name(name)),
        }
    }
    missing.sort_unstable();
    missing
}

async fn ask(
    replicas: &Replicas,
    name: u64,
    command: &Command,
    until: Instant,
) -> Result<Result<Done, Problem>, Unanswered> {
    let question = serde_json::to_vec(command).expect("a command serializes");
    let answer = replicas.ask(name, question, until).await?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Done(done)) => Ok(Ok(done)),
        Ok(Answer::Refused { code, detail, topic }) => {
            let problem = Problem::new(code, detail);
            Ok(Err(match topic {
                Some(topic) => problem.about(topic),
                None => problem,
            }))
        }
        Err(error) => {
            tracing::warn!(replica = replica_name(name), %error, "the answer of another replica cannot be read; do both run the same version?");
            Err(Unanswered::Unknown)
        }
    }
}

/// Does a command that another replica has sent. `None` if it cannot be read: a later version has sent it.
pub async fn answer(app: &App, question: &[u8], until: Instant) -> Option<Vec<u8>> {
    let command: Command = match serde_json::from_slice(question) {
        Ok(command) => command,
        Err(error) => {
            tracing::warn!(%error, "a command of another replica cannot be read; do both run the same version?");
            return None;
        }
    };
    let answer = match command.run(app, until).await {
        Ok(done) => Answer::Done(done),
        Err(problem) => Answer::Refused {
            code: problem.code,
            topic: problem.topic().map(str::to_owned),
            detail: problem.detail,
        },
    };
    Some(serde_json::to_vec(&answer).expect("an answer serializes"))
}

/// No connection of that id lives.
pub fn no_connection() -> Problem {
    Problem::new(Code::NotFound, "no such connection: it has ended, or it never was")
}

fn problem_of(unanswered: Unanswered) -> Problem {
    match unanswered {
        Unanswered::Gone => no_connection(),
        Unanswered::Busy => Problem::new(
            Code::Overloaded,
            "too many requests about connections wait; nothing was changed, so try again",
        ),
        Unanswered::Unknown => Problem::new(
            Code::UnknownOutcome,
            "the replica of the connection did not answer in time, and may have done it; send the request again",
        ),
    }
}
