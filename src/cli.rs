//! The command line: a command, or the server's flags alone.
//!
//! A command is a client of a server, or says something about this program; each has its own file. It uses a
//! server only through [`rejoin::client`], and knows nothing of the server's code.

mod bench;
mod completions;
mod config;
mod connections;
mod grants;
mod init;
mod key;
mod manual;
mod notes;
mod operate;
mod publish;
mod remote;
mod subjects;
mod subscribe;
mod token;

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use rejoin::{
    client::{ClientError, Start},
    config::Flags,
};

use self::{
    bench::Bench,
    completions::Completions,
    config::ShowConfig,
    connections::Connections,
    init::Init,
    key::Key,
    manual::Manual,
    operate::{Delete, Health, Presence, Stats, Topics},
    publish::Publish,
    subjects::Subjects,
    subscribe::Subscribe,
    token::Token,
};

/// Realtime push over WebSocket, Server-Sent Events, NDJSON and long-polling, with one cursor that resumes on
/// any of them.
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
    /// Run the server. `rejoin` without a command does the same.
    #[command(after_help = elsewhere("rejoin serve --listen 0.0.0.0:7070 --config /etc/rejoin.toml"))]
    Serve(Flags),
    /// Write a configuration file to begin with, and print the commands that try it.
    ///
    /// The file has a new API key, by its hash, a new secret for tokens, and an origin for your pages. Only its owner may
    /// read it. An existing file is never replaced.
    #[command(after_help = "For example:\n  rejoin init\n  rejoin init my.toml --origin https://app.example")]
    Init(Init),
    /// Print the settings in force, as a configuration file, and the place of each value.
    #[command(after_help = elsewhere(
        "\n  rejoin config --config /etc/rejoin.toml\n  rejoin config --check /etc/rejoin.toml"
    ))]
    Config(ShowConfig),
    /// Publish a message, or each line of standard input.
    ///
    /// The messages are stored once and in order, also if the server restarts meanwhile. For a single message
    /// the command prints the id; an ephemeral one has none, and may be sent twice. After three minutes without an answer the server may soon forget what it has
    /// stored. Lines that are sent again after that may be stored twice: the command says which, and ends
    /// with exit code 3.
    Pub(Publish),
    /// Print messages as they are published, one on each line.
    ///
    /// After a lost connection the command reconnects and resumes by itself. It prints gaps on standard
    /// error. A message that contains a line feed is printed as with --json.
    Sub(Subscribe),
    /// Print the topics, in the order of their names.
    ///
    /// The table has the id of the newest message, the retained messages and their bytes, and the subscribers of
    /// exactly this topic at all replicas. The command says on standard error which replicas did not answer. A token
    /// needs `admin`.
    Topics(Topics),
    /// Print the counts of the server: topics, messages, bytes, connections.
    ///
    /// A token needs `admin`.
    Stats(Stats),
    /// Say if the server is ready, for example as the health check of a container.
    ///
    /// The command prints `ready`, or says why the server is not ready and ends with exit code 1. It needs no
    /// token.
    Health(Health),
    /// Delete the retained messages of a topic.
    ///
    /// Readers that are behind get a gap. A token needs `admin`.
    Delete(Delete),
    /// Print the live connections, add topics to one and remove them, or end one.
    #[command(subcommand)]
    Connections(Connections),
    /// Print and change the list of topics of a subject, or end its connections.
    #[command(subcommand)]
    Subjects(Subjects),
    /// Print who is present in a topic, in the order of the subjects.
    ///
    /// A token needs `presence` for the topic.
    Presence(Presence),
    /// Measure how much load a server carries, and how fast it is, to choose the size of a machine.
    ///
    /// It publishes to its own topics, which begin with `bench`, and ends by itself. It needs much of a
    /// machine, so run it on another machine than the server.
    Bench(Bench),
    /// Make an API key.
    #[command(subcommand)]
    Key(Key),
    /// Print a token for development, signed with a key that a server of this configuration accepts, or check one.
    #[command(
        after_help = "For example: rejoin token --jwt-secret SECRET --sub u1 --subscribe 'users.{sub}.**' --ttl 1h"
    )]
    Token(Token),
    /// Print a script with which a shell completes commands and flags.
    #[command(
        after_help = "For example: rejoin completions bash > ~/.local/share/bash-completion/completions/rejoin"
    )]
    Completions(Completions),
    /// Write the manual pages into a folder: one for each command.
    #[command(after_help = "For example: rejoin man ~/.local/share/man/man1")]
    Man(Manual),
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
    /// The server refused, or reading or writing failed here.
    Failed(String),
    /// The command is done, but messages may be missing or stored twice.
    Doubtful(String),
    /// The command line contradicts itself.
    Mistaken(String),
    /// The command stopped trying, because the server could not be reached.
    GaveUp(String),
}

/// The end of the help of a command that uses a server: examples, and the exit codes.
fn examples(examples: &[&str]) -> String {
    let first = if examples.len() == 1 { " " } else { "\n  " };
    format!("For example:{first}{}\n\n{EXIT_CODES}", examples.join("\n  "))
}

/// The end of the help of a command that reads the settings of the server.
fn elsewhere(example: &str) -> String {
    let first = if example.starts_with('\n') { "" } else { " " };
    format!("For example:{first}{example}\n\n{}", rejoin::config::ELSEWHERE)
}

/// The help's list of exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or reading or writing failed
  2  a mistake in the command line
  3  done, but messages may be missing or stored twice
  4  the server could not be reached";

/// Runs a client command to its end.
pub fn run(command: impl Future<Output = Ending>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ending::Failed(error.to_string()).report(),
    };
    let ending = runtime.block_on(command);
    // A task may still wait for a line that will never be typed.
    runtime.shutdown_background();
    ending.report()
}

impl Ending {
    /// How a command ends if it can no longer write to standard output.
    fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            // The reader has closed the pipe, so it has what it wanted.
            io::ErrorKind::BrokenPipe => Self::Done,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }

    pub fn report(self) -> ExitCode {
        let (code, why) = match self {
            Self::Done => return ExitCode::SUCCESS,
            Self::Failed(why) => (1, why),
            Self::Mistaken(why) => (2, why),
            Self::Doubtful(why) => (3, why),
            Self::GaveUp(why) => (4, why),
        };
        tell(why);
        ExitCode::from(code)
    }
}

impl From<ClientError> for Ending {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Refused { code, .. } if code == "unauthorized" => {
                Self::Failed(format!("{error} (here: --token, --token-file or REJOIN_TOKEN)"))
            }
            _ if error.is_final() => Self::Failed(error.to_string()),
            _ => Self::GaveUp(error.to_string()),
        }
    }
}

/// The point at which reading begins, of which a command line has one at most.
// The server refuses a wrong cursor or time. A value may begin with a minus sign, so that the refusal names its mistake,
// and not an unknown flag.
#[derive(Debug, clap::Args)]
struct StartFlags {
    /// Begin after this cursor, the id of a message; 0 begins with the oldest retained message.
    #[arg(long, value_name = "CURSOR", group = "start", allow_negative_numbers = true)]
    after: Option<String>,

    /// Begin with the newest N messages of each topic.
    #[arg(long, value_name = "N", group = "start", allow_negative_numbers = true, value_parser = rejoin::config::whole_number)]
    last: Option<u32>,

    /// Begin with the messages since then: a duration such as 10m, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN", group = "start", allow_hyphen_values = true)]
    since: Option<String>,
}

impl StartFlags {
    fn start(self) -> Start {
        match self {
            Self { after: Some(cursor), .. } => Start::After(cursor),
            Self { last: Some(count), .. } => Start::Last(count),
            Self { since: Some(since), .. } => Start::Since(since),
            _ => Start::Now,
        }
    }
}

/// Prints the result of a command.
pub fn print(text: impl AsRef<[u8]>) -> Ending {
    match io::stdout().write_all(text.as_ref()) {
        Ok(()) => Ending::Done,
        Err(error) => Ending::of_output(&error),
    }
}

/// Prints a note for the user, on standard error.
fn tell(what: impl Display) {
    eprintln!("rejoin: {what}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The examples in the help of a command, up to a pipe or a file.
    fn examples_of(command: &clap::Command) -> Vec<Vec<String>> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let begins =
            |line: &&str| line.trim_start_matches("For example:").trim_start().starts_with("rejoin ");
        let words = |line: &str| {
            let line = line.trim_start_matches("For example:").split(['|', '>']).next().unwrap_or_default();
            line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
        };
        let lines: Vec<&str> = help.lines().flat_map(|line| line.split("| ")).collect();
        lines.into_iter().filter(begins).map(words).collect()
    }

    #[test]
    fn every_command_has_examples_that_are_right() {
        let cli = Cli::command();
        let nested = |command: &clap::Command| command.get_subcommands().cloned().collect::<Vec<_>>();
        for command in cli.get_subcommands() {
            let mut leaves = nested(command);
            if leaves.is_empty() || command.get_arguments().count() > 0 {
                leaves.push(command.clone());
            }
            for leaf in leaves {
                let examples = examples_of(&leaf);
                assert!(!examples.is_empty(), "{} has no example", leaf.get_name());
                for words in examples {
                    assert_eq!(words[1], command.get_name(), "{words:?}");
                    let parsed = Cli::try_parse_from(&words);
                    assert!(parsed.is_ok(), "{words:?}: {}", parsed.expect_err("it is wrong"));
                }
            }
        }
    }
}
