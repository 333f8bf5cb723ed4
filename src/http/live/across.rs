//! Brings a command to the replica that holds the connection, and asks all replicas for their connections.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

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
    log::{Payer, Replicas, TopicStats, Unanswered},
    message::Pattern,
};

/// How soon one looks again which replicas live, if some may have yet to join again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

type Answered = Result<Result<Done, Problem>, Unanswered>;

/// The answer of a replica.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done(Done),
    Refused { code: Code, detail: String, topic: Option<String> },
}

/// Does a command of this client about one connection, wherever that connection is.
///
/// # Errors
/// `not_found` if no such connection lives, `overloaded` if too many commands wait for other replicas, or too many of this
/// client, and `unknown_outcome` if it cannot be known in time what has become of the command.
///
/// # Cancel safety
/// Dropping this before it resolves may still do the command.
pub async fn run(app: &App, payer: Option<Payer>, command: Command) -> Result<Done, Problem> {
    let until = Instant::now() + PATIENCE;
    let holder = command.connection().map(|id| id.replica());
    let done = match &app.live.replicas {
        Some(replicas) if holder != Some(replicas.name()) => match app.live.waiting.take(payer, 1) {
            Some(_waits) => {
                let holder = holder.unwrap_or_default();
                ask(replicas, holder, &command, until).await.map_err(problem_of).and_then(|done| done)
            }
            None => Err(problem_of(Unanswered::Busy)),
        },
        _ => match timeout_at(until, command.run(app, until)).await {
            Ok(done) => done,
            Err(_) => Err(problem_of(Unanswered::Unknown)),
        },
    };
    app.metrics.commanded(done.as_ref().err().map(|problem| problem.code));
    done
}

/// A page of the connections of all replicas, and the replicas that did not answer.
pub async fn list_all(app: &App, wanted: &Wanted) -> (Listed, Vec<String>) {
    let until = Instant::now() + PATIENCE;
    let own = list::list(&app.live.table, wanted);
    let Some(replicas) = &app.live.replicas else { return (own.await, Vec::new()) };
    let command = Command::List(wanted.clone());
    let (own, (answers, are_all)) = tokio::join!(own, answers(replicas, &command, until));
    let (mut pages, mut missing) = (vec![own], Missing::new(are_all));
    for (name, answer) in answers {
        match answer {
            Ok(Ok(Done::Listed(page))) => pages.push(page),
            // It has ended meanwhile, and its connections with it.
            Err(Unanswered::Gone) => {}
            Ok(_) | Err(Unanswered::Busy | Unanswered::Unknown) => missing.add(name),
        }
    }
    (list::merge(pages, wanted.limit), missing.names())
}

/// Has these replicas do this, and returns those that have not said in time that it is done. One that is gone has.
pub async fn ask_these(
    replicas: &Replicas,
    names: impl IntoIterator<Item = u64>,
    command: &Command,
    until: Instant,
) -> BTreeSet<u64> {
    let asked = names.into_iter().map(async |name| (name, ask(replicas, name, command, until).await));
    undone(join_all(asked).await)
}

/// The same for every other replica that lives. `None` if it is not known which ones these are.
pub async fn ask_others(replicas: &Replicas, command: &Command, until: Instant) -> Option<BTreeSet<u64>> {
    let (answers, are_all) = answers(replicas, command, until).await;
    are_all.then(|| undone(answers))
}

fn undone(answers: Vec<(u64, Answered)>) -> BTreeSet<u64> {
    let is_undone = |answer: &Answered| match answer {
        Ok(done) => done.is_err(),
        Err(unanswered) => *unanswered != Unanswered::Gone,
    };
    answers.into_iter().filter(|(_, answer)| is_undone(answer)).map(|(name, _)| name).collect()
}

/// Adds the subscribers at the other replicas, and returns the replicas that did not answer.
pub async fn count_all(app: &App, topics: &mut [TopicStats]) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    let Some(replicas) = &app.live.replicas else { return Vec::new() };
    let names = topics.iter().map(|stats| Pattern::from(&stats.topic)).collect();
    let command = Command::Count { topics: names };
    let (answers, are_all) = answers(replicas, &command, until).await;
    let mut missing = Missing::new(are_all);
    for (name, answer) in answers {
        match answer {
            Ok(Ok(Done::Counted(counts))) if counts.len() == topics.len() => {
                topics.iter_mut().zip(counts).for_each(|(stats, count)| stats.subscribers += count);
            }
            Err(Unanswered::Gone) => {}
            Ok(_) | Err(Unanswered::Busy | Unanswered::Unknown) => missing.add(name),
        }
    }
    missing.names()
}

/// The replicas that a page lacks.
struct Missing(Vec<String>);

impl Missing {
    fn new(are_all: bool) -> Self {
        Self(if are_all { Vec::new() } else { vec!["unknown".to_owned()] })
    }

    fn add(&mut self, name: u64) {
        self.0.push(replica_name(name));
    }

    fn names(mut self) -> Vec<String> {
        self.0.sort_unstable();
        self.0
    }
}

/// Asks every other replica that lives, and returns their answers, and true if these are all. If some may have yet to join
/// again, it looks for them until then. While the store cannot be asked, none is known.
async fn answers(replicas: &Replicas, command: &Command, until: Instant) -> (Vec<(u64, Answered)>, bool) {
    answers_beside(BTreeSet::new(), replicas, command, until).await
}

/// Asks as [`answers`] does, but not those that are known.
async fn answers_beside(
    mut known: BTreeSet<u64>,
    replicas: &Replicas,
    command: &Command,
    until: Instant,
) -> (Vec<(u64, Answered)>, bool) {
    let Ok(Ok((mut names, are_all))) = timeout_at(until, replicas.others()).await else {
        return (Vec::new(), false);
    };
    names.retain(|name| known.insert(*name));
    let asked =
        join_all(names.into_iter().map(async |name| (name, ask(replicas, name, command, until).await)));
    if are_all {
        return (asked.await, true);
    }
    let looked = async {
        timeout_at(until, sleep(LOOK_AGAIN_AFTER)).await.ok()?;
        Some(Box::pin(answers_beside(known, replicas, command, until)).await)
    };
    let (mut all, looked) = tokio::join!(asked, looked);
    let (others, are_all) = looked.unwrap_or_default();
    all.extend(others);
    (all, are_all)
}

async fn ask(replicas: &Replicas, name: u64, command: &Command, until: Instant) -> Answered {
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
