//! The load benchmark: the cost of the server compared with the cost of the machine, in one table.
//!
//! `cargo bench --features dist --bench load -- [ROW...] [--quick]`. The server is the optimized program in its
//! own process on one core; the client is this process on another. The reference runs on the server's core too, in
//! turns with the server, and gets the same requests from the same client. Linux only. A row takes from seconds to
//! a minute, everything uses the loopback, and no process outlives the program.

mod client;
mod decode;
mod limit;
mod plain;
mod poller;
mod process;
mod rows;
mod table;
mod wire;

use std::{error::Error, ffi::OsString, io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use tokio::time::Instant;

use crate::{process::Process, rows::ROWS};

// The references use the server's allocator, so that the allocator makes no difference.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The payload of each message, unless a row says otherwise.
pub const PAYLOAD_BYTES: usize = 100;

#[derive(Parser)]
#[command(name = "load", about = "Measures the server and compares it with the machine's own limits")]
struct Arguments {
    /// Rows to run: those whose name contains one of these words (default: all)
    rows: Vec<String>,
    /// Small sizes and few rounds: shows that everything works, but not how fast
    #[arg(long)]
    quick: bool,
    /// Number of idle connections of each transport in the rows about memory
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Number of rounds of each figure, in turns with its reference (default: 5, or 2 with --quick)
    #[arg(long)]
    rounds: Option<usize>,
    /// Path of another build of the server
    #[arg(long, default_value = env!("CARGO_BIN_EXE_rejoin"))]
    server: PathBuf,
    /// Print the names of the rows
    #[arg(long)]
    list: bool,
    /// The role of this process, if it is not the benchmark itself
    #[arg(long, hide = true)]
    child: Option<ChildKind>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ChildKind {
    Launch,
    Limit,
    Plain,
}

/// The settings of every row.
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

    /// A server that loses nothing during a row, except messages beyond 1 000 of a topic.
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
    // The other arguments of a child belong to the child.
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

/// True if every row was measured to its end.
fn run(arguments: &Arguments) -> Outcome<bool> {
    process::raise_descriptors()?;
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
        eprintln!("nothing to test here; measure with: cargo bench --features dist --bench load");
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
    println!(
        "Each cell is the median (least..most) of {} rounds. The ratio is computed for each round.\n",
        setting.rounds
    );
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
        // So the reader of a pipe sees each row when it is done.
        let _ = std::io::stdout().flush();
        eprintln!("{}: {:.1} s", row.name, begun.elapsed().as_secs_f64());
    }
    complete
}
