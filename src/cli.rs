//! What is typed behind `rejoin`: a command, or the server's flags alone.
//!
//! A command is a client of a server somewhere, or says something about this program; each has a file
//! of its own. It speaks to a server only as a stranger would, and knows nothing of how one works.

mod bench;
mod completions;
mod feed;
mod grants;
mod key;
mod patience;
mod publish;
mod remote;
mod subscribe;
mod token;

use std::{
    fmt::{self, Display},
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use rejoin::config::Flags;

use self::{
    bench::Bench, completions::Completions, feed::Gap, key::Key, publish::Publish, subscribe::Subscribe,
    token::Token,
};

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
    #[command(after_help = rejoin::config::ELSEWHERE)]
    Serve(Flags),
    /// Print the settings that are in force, as a file of them, and where each came from.
    Config(Flags),
    /// Publish a message, or each line of standard input.
    ///
    /// The messages are stored in order and once, also when the server is restarted meanwhile. With DATA the id is
    /// printed. After three minutes without an answer the server may soon have forgotten what it stored: from then on
    /// the lines that were sent may be there twice, which is told, and the exit code is 3.
    Pub(Publish),
    /// Print what is published, a message a line.
    ///
    /// It comes back by itself when the connection is lost, and goes on where it was. What is missing is told on
    /// standard error. A message that holds a line feed is printed as with --json.
    Sub(Subscribe),
    /// Measure what a server carries, and how fast, so that a machine can be sized.
    ///
    /// It publishes to topics of its own, which begin with `bench`, and ends by itself. It takes a good part of a
    /// machine, so run it on another one than the server.
    Bench(Bench),
    /// Make an API key.
    #[command(subcommand)]
    Key(Key),
    /// Print a token for development, signed by what a server of this configuration accepts.
    #[command(
        after_help = "For example: rejoin token --jwt-secret SECRET --sub u1 --subscribe 'users.{sub}.**' --ttl 1h"
    )]
    Token(Token),
    /// Print what a shell needs to complete commands and flags.
    #[command(
        after_help = "For example: rejoin completions bash > ~/.local/share/bash-completion/completions/rejoin"
    )]
    Completions(Completions),
}

impl Cli {
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Serve(self.flags))
    }
}

/// How a command ends.
#[derive(Debug)]
pub enum Ending {
    Done,
    /// The server refused, or it could not be read or written here.
    Failed(String),
    /// It was done, but something is missing or may be there twice.
    Doubtful(String),
    /// The server could not be reached for as long as it was tried.
    GaveUp(String),
}

/// What the help says of them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or reading or writing failed
  2  a mistake in the command line
  3  done, but something is missing, or may be there twice
  4  the server could not be reached";

/// Runs a command of a client to its end.
pub fn run(command: impl Future<Output = Ending>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ending::Failed(error.to_string()).report(),
    };
    let ending = runtime.block_on(command);
    // Somebody may still wait for a line that is not going to be typed.
    runtime.shutdown_background();
    ending.report()
}

impl Ending {
    /// How it ends when nothing can be printed any more.
    fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            // The reader has what it wanted.
            io::ErrorKind::BrokenPipe => Self::Done,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }

    pub fn report(self) -> ExitCode {
        let (code, why) = match self {
            Self::Done => return ExitCode::SUCCESS,
            Self::Failed(why) => (1, why),
            Self::Doubtful(why) => (3, why),
            Self::GaveUp(why) => (4, why),
        };
        tell(why);
        ExitCode::from(code)
    }
}

/// Prints what was asked for.
pub fn print(text: impl AsRef<[u8]>) -> Ending {
    match io::stdout().write_all(text.as_ref()) {
        Ok(()) => Ending::Done,
        Err(error) => Ending::of_output(&error),
    }
}

/// Tells the user something that is not what was asked for.
fn tell(what: impl Display) {
    eprintln!("rejoin: {what}");
}

impl Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, after, next, reason, .. } = self;
        write!(f, "gap: what {topic} had after {after} ")?;
        match next {
            Some(next) => write!(f, "and before {next} is gone ({reason})"),
            None => write!(f, "is gone ({reason})"),
        }
    }
}
