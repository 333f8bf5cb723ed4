//! Grants as they are typed, for a key and for a token.

use clap::Args;
use rejoin::auth::{GrantList, Template};

#[derive(Clone, Debug, Args)]
pub struct Granted {
    /// A topic or pattern that may be read. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<Template>,

    /// A topic or pattern that may be published to. Repeatable.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<Template>,

    /// Grant to see all topics and statistics, and to delete topics.
    #[arg(long)]
    admin: bool,
}

impl From<Granted> for GrantList {
    fn from(granted: Granted) -> Self {
        let Granted { subscribe, publish, admin } = granted;
        Self { subscribe, publish, admin, metrics: false }
    }
}
