//! The commands of an operator: `rejoin topics`, `stats`, `health` and `delete`. Each asks the server once.

use std::collections::BTreeSet;

use clap::Args;
use rejoin::client::{Client, ClientError, Member, TopicState};
use serde_json::Value;

use super::{
    Ending, print,
    remote::{Address, Remote},
    tell,
};

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin topics", "rejoin topics --json > topics.ndjson"]))]
pub struct Topics {
    /// Print each topic as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin presence rooms.1", "rejoin presence rooms.1 --json"]))]
pub struct Presence {
    /// Topic of which the members are printed.
    topic: String,

    /// Print each member as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin stats --url http://push.internal:7070"]))]
pub struct Stats {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin health --url http://127.0.0.1:7070"]))]
pub struct Health {
    #[command(flatten)]
    address: Address,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin delete orders.42"]))]
pub struct Delete {
    /// Topic of which all retained messages are deleted.
    topic: String,

    #[command(flatten)]
    remote: Remote,
}

impl Topics {
    pub async fn run(self) -> Ending {
        match self.remote.client() {
            Ok(client) => list(&client, self.json).await.unwrap_or_else(|ending| ending),
            Err(error) => error.into(),
        }
    }
}

/// Prints the topics page by page, so their number does not matter.
async fn list(client: &Client, is_json: bool) -> Result<Ending, Ending> {
    let mut head = (!is_json).then(|| {
        format!("{:<16} {:>10} {:>12} {:>11}  TOPIC\n", "NEWEST", "MESSAGES", "BYTES", "SUBSCRIBERS")
    });
    let (mut after, mut missing) = (None, BTreeSet::new());
    loop {
        let page = client.topics(after.as_deref()).await.map_err(refused)?;
        let mut text = head.take().unwrap_or_default();
        page.topics.iter().for_each(|topic| text += &line(topic, is_json));
        match print(text) {
            Ending::Done => {}
            unprinted => return Err(unprinted),
        }
        missing.extend(page.missing);
        if page.next.is_none() {
            let counts = "the counts of subscribers are not complete; try again";
            return Ok(complete(&missing, "subscribers are not counted", counts));
        }
        after = page.next;
    }
}

fn line(state: &TopicState, is_json: bool) -> String {
    if is_json {
        return serde_json::to_string(state).expect("text and numbers serialize") + "\n";
    }
    let TopicState { topic, newest, messages, bytes, subscribers, .. } = state;
    format!("{newest:<16} {messages:>10} {bytes:>12} {subscribers:>11}  {topic}\n")
}

impl Presence {
    pub async fn run(self) -> Ending {
        match self.remote.client() {
            Ok(client) => list_members(&client, &self.topic, self.json).await.unwrap_or_else(|ending| ending),
            Err(error) => error.into(),
        }
    }
}

/// Prints the members page by page, so their number does not matter.
async fn list_members(client: &Client, topic: &str, is_json: bool) -> Result<Ending, Ending> {
    let mut head =
        (!is_json).then(|| format!("{:<16} {:>11}  {:<20} INFO\n", "SINCE", "CONNECTIONS", "SUBJECT"));
    let mut after = None;
    loop {
        let page = client.members(topic, after.as_deref()).await.map_err(refused)?;
        let mut text = head.take().unwrap_or_default();
        page.members.iter().for_each(|member| text += &member_line(member, is_json));
        match print(text) {
            Ending::Done => {}
            unprinted => return Err(unprinted),
        }
        if page.next.is_none() {
            return Ok(Ending::Done);
        }
        after = page.next;
    }
}

fn member_line(member: &Member, is_json: bool) -> String {
    if is_json {
        return serde_json::to_string(member).expect("text and numbers serialize") + "\n";
    }
    let Member { sub, connections, since, info, .. } = member;
    // A subject may have any character, so it is quoted.
    let sub = format!("{sub:?}");
    format!("{since:<16} {connections:>11}  {sub:<20} {info}\n")
}

impl Stats {
    pub async fn run(self) -> Ending {
        let asked = async { self.remote.client()?.stats().await };
        match asked.await {
            Ok(stats) if self.json => print(Value::Object(stats).to_string() + "\n"),
            Ok(stats) => print(stats.iter().map(|(name, value)| row(name, value)).collect::<String>()),
            Err(error) => refused(error),
        }
    }
}

fn row(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => format!("{name:<16} {text}\n"),
        value => format!("{name:<16} {value}\n"),
    }
}

impl Health {
    pub async fn run(self) -> Ending {
        // Without a credential, because readiness needs none, and a wrong one would be refused.
        match self.address.client().ready().await {
            Ok(ready) if ready.is_full => print("ready, but the log is full: publishing is refused\n"),
            Ok(_) => print("ready\n"),
            Err(error) => match refused(error) {
                Ending::Failed(why) => Ending::Failed(format!("not ready: {why}")),
                unreached => unreached,
            },
        }
    }
}

impl Delete {
    pub async fn run(self) -> Ending {
        let asked = async { self.remote.client()?.delete(&self.topic).await };
        asked.await.map_or_else(refused, |()| Ending::Done)
    }
}

/// How a list ends for which these replicas did not answer: what of them `is_missing`, and what it is then.
pub fn complete(missing: &BTreeSet<String>, is_missing: &str, incomplete: &str) -> Ending {
    if missing.is_empty() {
        return Ending::Done;
    }
    for replica in missing {
        match &**replica {
            "unknown" => {
                tell(format_args!("other replicas may live that are not known yet, and their {is_missing}"));
            }
            name => tell(format_args!("the replica {name} did not answer, so its {is_missing}")),
        }
    }
    Ending::Failed(incomplete.to_owned())
}

/// These commands do not try again, so a server that cannot do it now has refused.
pub fn refused(error: ClientError) -> Ending {
    match error {
        ClientError::Unavailable { why, code: Some(_), .. } => Ending::Failed(why),
        error => error.into(),
    }
}
