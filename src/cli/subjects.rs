//! `rejoin subjects`: the list of a subject, and its end. Each asks the server once.

use clap::{Args, Subcommand};

use super::{Ending, operate::refused, print, remote::Remote};

/// The commands about subjects.
#[derive(Debug, Subcommand)]
pub enum Subjects {
    /// Print the topics on the list of a subject, and the id at which each was added.
    ///
    /// A token needs `admin`, or `manage`, which shows the topics that it covers.
    List(Subject),
    /// Add a topic or a pattern to the list of a subject.
    ///
    /// A token needs `admin`, or `manage` for the topic.
    Add(Topic),
    /// Remove a topic or a pattern from the list of a subject.
    ///
    /// A token needs `admin`, or `manage` for the topic.
    Remove(Topic),
    /// End all connections of a subject.
    ///
    /// A token needs `admin`.
    End(End),
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin subjects list u1"]))]
pub struct Subject {
    /// Subject: the `sub` of its tokens, with the prefix of its issuer.
    subject: String,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin subjects add u1 rooms.7"]))]
pub struct Topic {
    /// Subject: the `sub` of its tokens, with the prefix of its issuer.
    subject: String,

    /// Topic or pattern.
    topic: String,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Args)]
#[command(after_help = super::examples(&["rejoin subjects end u1 --refuse 10m"]))]
pub struct End {
    /// Subject: the `sub` of its tokens, with the prefix of its issuer.
    subject: String,

    /// Refuse the tokens of the subject that were issued up to now, for this long: 1s to 7d.
    #[arg(long, value_name = "DURATION")]
    refuse: Option<String>,

    #[command(flatten)]
    remote: Remote,
}

impl Subjects {
    pub async fn run(self) -> Ending {
        let done = match self {
            Self::List(Subject { subject, remote }) => {
                return list(&subject, remote).await.unwrap_or_else(|ending| ending);
            }
            Self::Add(Topic { subject, topic, remote }) => match remote.client() {
                Ok(client) => client.add_to_list(&subject, &topic).await,
                Err(error) => Err(error),
            },
            Self::Remove(Topic { subject, topic, remote }) => match remote.client() {
                Ok(client) => client.remove_from_list(&subject, &topic).await,
                Err(error) => Err(error),
            },
            Self::End(End { subject, refuse, remote }) => match remote.client() {
                Ok(client) => client.end_subject(&subject, refuse.as_deref()).await,
                Err(error) => Err(error),
            },
        };
        done.map_or_else(refused, |()| Ending::Done)
    }
}

async fn list(subject: &str, remote: Remote) -> Result<Ending, Ending> {
    let entries = remote.client()?.list_of(subject).await.map_err(refused)?;
    let lines = entries.iter().map(|entry| format!("{} {}\n", entry.id, entry.topic));
    Ok(print(lines.collect::<String>()))
}
