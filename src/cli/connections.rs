//! `rejoin connections`: who reads what, adding and removing topics, ending. Each asks the server once.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use rejoin::client::{AddOptions, Client, ConnectionFilter, ConnectionState};

use super::{
    Ending, StartFlags,
    operate::{complete, refused},
    print,
    remote::Remote,
};

/// The commands about live connections.
#[derive(Debug, Subcommand)]
pub enum Connections {
    /// Print the live connections of all replicas, in the order of their ids.
    ///
    /// The table has how far each is behind the newest message, in milliseconds, how many topics it reads, and the
    /// first of them. A token needs `admin`.
    List(List),
    /// Let a connection read a topic or a pattern, whatever its client may read.
    ///
    /// A token needs `admin`, or `manage` for the topic.
    Add(Add),
    /// Stop a connection from reading a topic or a pattern.
    ///
    /// It reads on what the list of its subject has, and what another of its patterns matches. A token needs `admin`, or `manage` for the topic.
    Remove(Remove),
    /// End a connection. Its client may come back, if its grants allow it.
    ///
    /// A token needs `admin`.
    End(End),
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin connections list", "rejoin connections list --sub u1 --json"]))]
pub struct List {
    /// Print only the connections of this subject.
    #[arg(long)]
    sub: Option<String>,

    /// Print only the connections that are subscribed to exactly this topic or pattern.
    #[arg(long)]
    topic: Option<String>,

    /// Print each connection as one line of JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin connections add 00000000000000ab0000000000000007 orders.42"]))]
pub struct Add {
    /// Id of the connection.
    connection: String,

    /// Topic or pattern.
    topic: String,

    #[command(flatten)]
    start: StartFlags,

    /// Make the subject of the connection present in the topic.
    #[arg(long)]
    presence: bool,

    /// Do it only if the connection has this subject.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin connections remove 00000000000000ab0000000000000007 orders.42"]))]
pub struct Remove {
    /// Id of the connection.
    connection: String,

    /// Topic or pattern.
    topic: String,

    /// Do it only if the connection has this subject.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin connections end 00000000000000ab0000000000000007"]))]
pub struct End {
    /// Id of the connection.
    connection: String,

    /// Do it only if the connection has this subject.
    #[arg(long)]
    sub: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

impl Connections {
    pub async fn run(self) -> Ending {
        let done = match self {
            Self::List(list) => return list.run().await.unwrap_or_else(|ending| ending),
            Self::Add(Add { connection, topic, start, presence, sub, remote }) => match remote.client() {
                Ok(client) => {
                    let options = AddOptions { start: start.start(), sub, presence };
                    client.add_topic(&connection, &topic, &options).await
                }
                Err(error) => Err(error),
            },
            Self::Remove(Remove { connection, topic, sub, remote }) => match remote.client() {
                Ok(client) => client.remove_topic(&connection, &topic, sub.as_deref()).await,
                Err(error) => Err(error),
            },
            Self::End(End { connection, sub, remote }) => match remote.client() {
                Ok(client) => client.end_connection(&connection, sub.as_deref()).await,
                Err(error) => Err(error),
            },
        };
        done.map_or_else(refused, |()| Ending::Done)
    }
}

impl List {
    async fn run(self) -> Result<Ending, Ending> {
        let Self { sub, topic, json, remote } = self;
        let client = remote.client()?;
        print_pages(&client, ConnectionFilter { sub, topic }, json).await
    }
}

/// Prints the connections page by page, so their number does not matter.
async fn print_pages(client: &Client, filter: ConnectionFilter, is_json: bool) -> Result<Ending, Ending> {
    let mut head = (!is_json).then(|| {
        format!(
            "{:<32} {:<9} {:>9} {:>6}  {:<20} FIRST TOPICS\n",
            "CONNECTION", "TRANSPORT", "BEHIND", "TOPICS", "SUBJECT"
        )
    });
    let (mut after, mut missing): (Option<String>, _) = (None, BTreeSet::new());
    loop {
        let page = client.connections(&filter, after.as_deref()).await.map_err(refused)?;
        let mut text = head.take().unwrap_or_default();
        page.connections.iter().for_each(|connection| text += &line(connection, is_json));
        match print(text) {
            Ending::Done => {}
            unprinted => return Err(unprinted),
        }
        missing.extend(page.missing);
        if page.next.is_none() {
            let list = "the list is not complete; try again";
            return Ok(complete(&missing, "connections are missing", list));
        }
        after = page.next;
    }
}

fn line(state: &ConnectionState, is_json: bool) -> String {
    if is_json {
        return serde_json::to_string(state).expect("text and numbers serialize") + "\n";
    }
    let ConnectionState { connection, sub, transport, topics, topic_count, behind, .. } = state;
    // A subject may have any character, so it is quoted.
    let sub = sub.as_ref().map_or("-".to_owned(), |sub| format!("{sub:?}"));
    let first = topics.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if *topic_count > 3 { ", …" } else { "" };
    format!("{connection} {transport:<9} {behind:>9} {topic_count:>6}  {sub:<20} {first}{more}\n")
}
