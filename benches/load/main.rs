//! The load benchmark: what the server costs, beside what the machine costs, in one table.
//!
//! `cargo bench --bench load -- [ROW...] [--quick]`. The server is the release binary in a process of its own on one
//! core; the client is this process on another. What it is compared to runs on the server's core too, in turns
//! with it, and is asked by the same client. Linux only. A row runs for seconds to a minute, everything is on the
//! loopback, and nothing outlives the program.

mod client;
mod decode;
mod limit;
mod plain;
mod poller;
mod process;
mod rows;
mod table;
mod wire;

use std::{
    error::Error, ffi::OsString, io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Instant,
};

use clap::{Parser, ValueEnum};

use crate::{process::Process, rows::ROWS};

// What the server is compared to has the server's allocator, so that the allocator is not what is compared.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Of each message, as far as a row does not say otherwise.
pub const PAYLOAD_BYTES: usize = 100;

#[derive(Parser)]
#[command(name = "load", about = "Measures the server beside the machine's own limits")]
struct Arguments {
    /// Rows to run: those whose name contains one of the words (default: all)
    rows: Vec<String>,
    /// Small sizes and few rounds: shows that everything works, not how fast
    #[arg(long)]
    quick: bool,
    /// Idle connections of each transport in the rows about memory
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Rounds of each figure, in turns with what it is compared to
    #[arg(long)]
    rounds: Option<usize>,
    /// Another build of the server
    #[arg(long, default_value = env!("CARGO_BIN_EXE_rejoin"))]
    server: PathBuf,
    /// Print the names of the rows
    #[arg(long)]
    list: bool,
    /// What this process is, if not the benchmark itself
    #[arg(long, hide = true)]
    child: Option<ChildKind>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ChildKind {
    Launch,
    Limit,
    Plain,
}

/// What every row is told.
pub struct Setting {
    server: PathBuf,
    pub quick: bool,
    pub rounds: usize,
    pub connections: usize,
}

impl Setting {
    pub fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// A server that forgets nothing while the row runs but what is beyond 1 000 messages of a topic.
    pub fn server(&self) -> Outcome<Process> {
        self.server_with(&["--retain-age", "1h"])
    }

    pub fn server_with(&self, flags: &[&str]) -> Outcome<Process> {
        let mut args = vec!["--listen", "{addr}", "--retain-messages", "1000"];
        args.extend(["--retain-bytes", "64MiB", "--retain-total", "2GiB"]);
        args.extend(flags);
        Process::start(&self.server, &args)
    }
}

fn main() -> ExitCode {
    // A child's arguments are its own.
    let mut words = std::env::args_os().skip(1);
    let outcome = match words.next().as_deref().and_then(|word| word.to_str()) {
        Some("--child=launch") => process::launch(&words.collect::<Vec<OsString>>()).map(|()| true),
        _ => run(&Arguments::parse()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row came to its end.
fn run(arguments: &Arguments) -> Outcome<bool> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let address = || -> Outcome<SocketAddr> { Ok(arguments.rows.first().ok_or("no address")?.parse()?) };
    match arguments.child {
        Some(ChildKind::Limit) => return limit::serve(address()?).map(|()| true),
        Some(ChildKind::Plain) => return plain::serve(address()?).map(|()| true),
        Some(ChildKind::Launch) => return Err("--child=launch has to come first".into()),
        None => {}
    }
    if arguments.list {
        for row in ROWS {
            println!("{}: {}", row.name, row.about);
        }
        return Ok(true);
    }
    if !arguments.bench {
        eprintln!("nothing to test here; measure with: cargo bench --bench load");
        return Ok(true);
    }
    process::pin(process::CLIENT_CPU);
    let setting = Setting {
        server: arguments.server.clone(),
        quick: arguments.quick,
        rounds: arguments.rounds.unwrap_or(if arguments.quick { 2 } else { 5 }).max(1),
        connections: arguments.connections,
    };
    Ok(measure(&setting, &arguments.rows))
}

fn measure(setting: &Setting, words: &[String]) -> bool {
    println!("Median (least..most) of {} rounds; the ratio is taken round by round.\n", setting.rounds);
    println!("{}", table::HEADER);
    let mut complete = true;
    for row in ROWS {
        if !words.is_empty() && !words.iter().any(|word| row.name.contains(word.as_str())) {
            continue;
        }
        let begun = Instant::now();
        match (row.run)(setting) {
            Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
            Err(error) => {
                complete = false;
                println!("| {} | | **failed**: {error} | | | | | |", row.name);
            }
        }
        // A reader of a pipe sees each row when it is done.
        let _ = std::io::stdout().flush();
        eprintln!("{}: {:.1} s", row.name, begun.elapsed().as_secs_f64());
    }
    complete
}
