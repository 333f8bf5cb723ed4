//! `rejoin key`: API keys, which are shown once.

use clap::{Args, Subcommand};
use rejoin::auth::{Digest, GrantList, Template, new_key};
use serde::Serialize;

use super::{Ending, grants::Granted, print};

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Print a new API key, and its table for the configuration file.
    ///
    /// The first line is the key, which is stored nowhere. The other lines have its hash: put them into the
    /// file of --config.
    #[command(after_help = "For example: rejoin key new --name backend --publish '**'")]
    New(New),
}

#[derive(Debug, Args)]
pub struct New {
    /// Name of the key in the server's log.
    #[arg(long, default_value = "backend")]
    name: String,

    #[command(flatten)]
    granted: Granted,
}

impl Key {
    pub fn run(self) -> Ending {
        let Self::New(New { name, granted }) = self;
        let list = GrantList::from(granted);
        if list.names_subject() {
            return Ending::Failed(
                "an API key has no subject and no claims: remove the braces from the pattern".into(),
            );
        }
        let key = new_key();
        print(format!("{key}\n\n{}", table(&name, &key, &list)))
    }
}

/// A `[[key]]` of the configuration file.
fn table(name: &str, key: &str, list: &GrantList) -> String {
    let patterns = |name: &str, patterns: &Vec<Template>| {
        if patterns.is_empty() { String::new() } else { format!("{name} = {}\n", quoted(patterns)) }
    };
    format!(
        "[[key]]\nname = {}\nsha256 = \"{}\"\n{}{}{}{}{}{}",
        quoted(&name),
        Digest::of(key.as_bytes()),
        patterns("subscribe", &list.subscribe),
        patterns("publish", &list.publish),
        patterns("manage", &list.manage),
        patterns("presence", &list.presence),
        if list.admin { "admin = true\n" } else { "" },
        if list.metrics { "metrics = true\n" } else { "" },
    )
}

/// As JSON, which TOML reads in the same way.
fn quoted(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text serializes")
}
