//! Grants on the command line, for a key and for a token.

use clap::Args;
use rejoin::auth::{GrantList, Template};

#[derive(Clone, Debug, Args)]
pub struct Granted {
    /// Allow subscribing to this topic or pattern. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<Template>,

    /// Allow publishing to this topic or pattern. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<Template>,

    /// Allow adding and removing this topic or pattern for the connections of other clients. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    manage: Vec<Template>,

    /// Allow seeing who is present in this topic or pattern. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<Template>,

    /// Allow listing all topics and statistics, and deleting topics.
    #[arg(long)]
    admin: bool,

    /// Allow reading /metrics.
    #[arg(long)]
    metrics: bool,
}

impl From<Granted> for GrantList {
    fn from(granted: Granted) -> Self {
        let Granted { subscribe, publish, manage, presence, admin, metrics } = granted;
        Self { subscribe, publish, manage, presence, admin, metrics }
    }
}
