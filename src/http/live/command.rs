//! The commands about connections, and how the replica that holds one does them.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, timeout_at};

use super::{
    ConnectionId, Reading,
    across::no_connection,
    list::{self, Listed, Wanted},
};
use crate::{
    broker::Present,
    http::{
        App, presence,
        problem::{Code, Problem},
    },
    log::{End, LogError, Start},
    message::{Pattern, Topic},
};

/// How many topics of a connection are shown.
const SHOWN_TOPICS: usize = 20;

/// A command, as it goes from one replica to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    Add {
        connection: ConnectionId,
        topic: Pattern,
        start: Start,
        sub: Option<String>,
        #[serde(default)]
        presence: bool,
    },
    Remove {
        connection: ConnectionId,
        topic: Pattern,
        sub: Option<String>,
    },
    End {
        connection: ConnectionId,
        #[serde(default)]
        sub: Option<String>,
    },
    Show {
        connection: ConnectionId,
    },
    List(Wanted),
    EndSubject {
        #[serde(flatten)]
        end: End,
        /// How long ago the subject was ended, if a replica is asked again. Connections that began later stay.
        #[serde(default)]
        ago_ms: Option<u64>,
    },
    /// How many subscriptions there are to exactly each of these topics.
    Count {
        topics: Vec<Pattern>,
    },
}

/// The result of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    Nothing,
    Shown(Box<Shown>),
    Listed(Listed),
    Counted(Vec<usize>),
}

/// A connection, as a request shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    pub connection: ConnectionId,
    sub: Option<String>,
    transport: String,
    replica: String,
    since: String,
    topics: Vec<String>,
    topic_count: usize,
    address: Option<String>,
    behind: u64,
}

impl Shown {
    pub fn of(id: ConnectionId, reading: &Reading) -> Self {
        let about = reading.about();
        let state = reading.lock();
        let mut topics: Vec<_> = state.first_patterns(SHOWN_TOPICS).collect();
        topics.sort_unstable();
        Self {
            connection: id,
            sub: about.sub.as_deref().map(str::to_owned),
            transport: about.transport.as_str().to_owned(),
            replica: replica_name(id.replica()),
            since: about.since.format(&Rfc3339).unwrap_or_default(),
            topics: topics.iter().take(SHOWN_TOPICS).map(ToString::to_string).collect(),
            topic_count: state.count(),
            address: about.address.map(|address| address.to_string()),
            behind: state.behind_ms(),
        }
    }
}

impl Shown {
    /// About how long this is as JSON.
    pub fn bytes(&self) -> usize {
        let topics: usize = self.topics.iter().map(|topic| topic.len() + 3).sum();
        topics + self.sub.as_ref().map_or(0, String::len) + 256
    }
}

/// The name of a replica, as it is shown.
pub fn replica_name(replica: u64) -> String {
    format!("{replica:016x}")
}

impl Command {
    /// The connection that this is about, if it is about one.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Add { connection, .. }
            | Self::Remove { connection, .. }
            | Self::End { connection, .. }
            | Self::Show { connection } => Some(*connection),
            Self::List(_) | Self::Count { .. } | Self::EndSubject { .. } => None,
        }
    }

    /// Does the command in this process. After `until` it does nothing.
    ///
    /// # Cancel safety
    /// Dropping this leaves nothing half done.
    pub async fn run(self, app: &App, until: Instant) -> Result<Done, Problem> {
        if Instant::now() > until {
            return Err(too_late());
        }
        let find = |id: ConnectionId| app.live.table.find(id).ok_or_else(no_connection);
        match self {
            Self::Add { connection, topic, start, sub, presence } => {
                let reading = find(connection)?;
                check_sub(&reading, sub.as_deref())?;
                let topics = if presence { presence::topics([&topic])? } else { Vec::new() };
                let about = reading.about();
                let present = match presence {
                    true => Some(app.present(about.sub.as_deref(), about.info.as_ref())?),
                    false => None,
                };
                add(app, &reading, connection, topic.clone(), start, until).await?;
                if let Some(present) = present.filter(|_| !topics.is_empty()) {
                    be_present(&reading, &topic, present, topics).await?;
                }
            }
            Self::Remove { connection, topic, sub } => {
                let reading = find(connection)?;
                check_sub(&reading, sub.as_deref())?;
                reading.remove(&topic)?;
            }
            Self::End { connection, sub } => {
                check_sub(&*find(connection)?, sub.as_deref())?;
                if !app.live.table.end(connection, Code::Disconnected) {
                    return Err(no_connection());
                }
            }
            Self::Show { connection } => {
                return Ok(Done::Shown(Box::new(Shown::of(connection, &*find(connection)?))));
            }
            Self::EndSubject { end, ago_ms } => app.end_subject(end, ago_ms.map(Duration::from_millis)).await,
            Self::Count { topics } => {
                let topics = topics.iter().filter_map(Pattern::topic);
                return Ok(Done::Counted(topics.map(|topic| app.broker.subscribers(&topic)).collect()));
            }
            Self::List(wanted) => return Ok(Done::Listed(list::list(&app.live.table, &wanted).await)),
        }
        Ok(Done::Nothing)
    }
}

/// Begins to read `topic` for the connection. The connection's own task then reads it, at its client's speed.
async fn add(
    app: &App,
    reading: &Arc<Reading>,
    connection: ConnectionId,
    topic: Pattern,
    start: Start,
    until: Instant,
) -> Result<(), Problem> {
    let Some(number) = reading.begin(&topic)? else { return Ok(()) };
    let adding = Adding { reading, number: Some(number), topic };
    let name = connection.to_string();
    let subscription = app.broker.subscribe(vec![adding.topic.clone()], &start, &name);
    let subscription = timeout_at(until, subscription).await.map_err(|_| too_late())?.map_err(unchanged)?;
    if Instant::now() > until {
        return Err(too_late());
    }
    adding.finish(subscription)
}

/// Makes the subject of the connection present in a topic that it reads.
async fn be_present(
    reading: &Reading,
    pattern: &Pattern,
    mut present: Present,
    topics: Vec<Topic>,
) -> Result<(), Problem> {
    if reading.lock().is_present(pattern) {
        return Ok(());
    }
    present.enter(topics).await.map_err(|error| match Problem::from(error).code {
        Code::Overloaded => Problem::new(
            Code::Overloaded,
            "the connection reads the topic, and a limit of presence keeps its subject from being present there",
        )
        .about(pattern),
        _ => Problem::new(
            Code::UnknownOutcome,
            "the connection reads the topic, and its subject may not be present there; send the request again",
        ),
    })?;
    drop(reading.lock().be_present(pattern, present));
    Ok(())
}

/// A pattern that a command begins to read. Dropping this gives it up.
struct Adding<'a> {
    reading: &'a Reading,
    number: Option<u64>,
    topic: Pattern,
}

impl Adding<'_> {
    fn finish(mut self, subscription: crate::broker::Subscription) -> Result<(), Problem> {
        let Some(number) = self.number.take() else { return Ok(()) };
        self.reading.finish(number, self.topic.clone(), subscription)
    }
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.reading.give_up(number);
        }
    }
}

fn check_sub(reading: &Reading, wanted: Option<&str>) -> Result<(), Problem> {
    match wanted {
        Some(sub) if reading.about().sub.as_deref() != Some(sub) => Err(Problem::new(
            Code::PreconditionFailed,
            "sub: the connection belongs to another subject, or to none; ask the page for its newest one",
        )),
        _ => Ok(()),
    }
}

/// The topic was not added, because the log did not say where to begin.
fn unchanged(error: LogError) -> Problem {
    match error {
        LogError::Unavailable => Problem::new(
            Code::Unavailable,
            "the log cannot be reached, so nothing was changed; send the request again",
        ),
        error => error.into(),
    }
}

fn too_late() -> Problem {
    Problem::new(Code::Unavailable, "it could not be done in time, so nothing was changed; try again")
}
