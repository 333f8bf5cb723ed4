//! The program: parse the command line, and run the command.

mod cli;
mod console;
mod limits;
mod listening;
mod logging;
mod process;
mod reload;
mod signals;

use std::{ffi::OsString, fs, process::ExitCode};

use clap::Parser;
use rejoin::config::{Flags, Settings};

#[cfg(feature = "dist")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Free memory goes back to the system in the background, also while the server is idle.
#[cfg(feature = "dist")]
#[expect(unsafe_code, reason = "the allocator looks for a symbol of this name")]
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] =
    b"background_thread:true,max_background_threads:1,dirty_decay_ms:3000,muzzy_decay_ms:3000\0";

const UNKNOWN_VARIABLE: &str = "there is no setting of this name; the variable is ignored";

/// How the program ends if the command line or a setting is wrong.
const WRONG_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let command = match cli::Cli::try_parse() {
        Ok(cli) => cli.into_command(),
        Err(error) => return refuse(&error),
    };
    match command {
        cli::Command::Serve(flags) => process::run(flags),
        cli::Command::Config(show) => settings(&show.flags()).map_or_else(
            |code| code,
            |settings| {
                tell_unknown_variables();
                show.run(&settings).report()
            },
        ),
        cli::Command::Init(init) => init.run().report(),
        cli::Command::Pub(publish) => cli::run(publish.run()),
        cli::Command::Sub(subscribe) => cli::run(subscribe.run()),
        cli::Command::Presence(presence) => cli::run(presence.run()),
        cli::Command::Topics(topics) => cli::run(topics.run()),
        cli::Command::Stats(stats) => cli::run(stats.run()),
        cli::Command::Health(health) => cli::run(health.run()),
        cli::Command::Delete(delete) => cli::run(delete.run()),
        cli::Command::Connections(connections) => cli::run(connections.run()),
        cli::Command::Subjects(subjects) => cli::run(subjects.run()),
        cli::Command::Key(key) => key.run().report(),
        cli::Command::Token(token) => {
            let read = Settings::read_in_part(&token.flags(), variable, |path| fs::read_to_string(path));
            read.map_or_else(
                |mistakes| wrong(&mistakes),
                |settings| token.run(&settings.config.authority()).report(),
            )
        }
        cli::Command::Bench(bench) => cli::run(bench.run()),
        cli::Command::Completions(completions) => completions.run().report(),
        cli::Command::Man(manual) => manual.run().report(),
    }
}

/// Prints the help that was asked for, or the mistake in the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.render();
    console::tell(if console::is_terminal() { text.ansi().to_string() } else { text.to_string() });
    ExitCode::from(WRONG_SETTINGS)
}

fn settings(flags: &Flags) -> Result<Settings, ExitCode> {
    Settings::read(flags, variable, |path| fs::read_to_string(path)).map_err(|mistakes| wrong(&mistakes))
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn wrong(mistakes: &[String]) -> ExitCode {
    console::tell_mistakes(mistakes);
    ExitCode::from(WRONG_SETTINGS)
}

fn tell_unknown_variables() {
    for name in rejoin::config::unknown_variables() {
        console::tell(format!("warning: {name}: {UNKNOWN_VARIABLE}\n"));
    }
}
