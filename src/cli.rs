//! What is typed behind `rejoin`: a command, or the server's flags alone.
//!
//! A command is a client of a server somewhere, or says something about this program; each has a file
//! of its own. It speaks to a server only as a stranger would, and knows nothing of how one works.

use clap::{Parser, Subcommand};
use rejoin::config::Flags;

/// Realtime push over WebSocket, Server-Sent Events, NDJSON and long-polling, with one cursor that
/// resumes on any of them.
#[derive(Debug, Parser)]
#[command(
    name = "rejoin",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_help = rejoin::config::ELSEWHERE
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve; so does `rejoin` without a command.
    Serve(Flags),
    /// Print the settings that are in force, as a file of them, and where each came from.
    Config(Flags),
}

impl Cli {
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.flags))
    }
}
