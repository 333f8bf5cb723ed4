//! The things that the system may not give to this process: threads, descriptors, memory. They are checked once, at the
//! start, while an operator looks.

mod memory;

use std::{fs, io, sync::Mutex, thread};

use rejoin::{Config, config::LogKind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The server has this many threads beside one for each processor: for signals, for the log, for blocking work.
const OTHER_THREADS: usize = 4;
/// A limit of the memory that the process may map, below which it would end in the middle of its start.
const FEWEST_BYTES: u64 = 128 << 20;
/// The server itself uses some twenty descriptors, and needs some for clients.
const FEWEST_DESCRIPTORS: u64 = 32;

/// # Errors
/// If the process may map too little memory to start.
pub fn check_mapped_memory() -> io::Result<()> {
    match mapped_memory().min() {
        Some(limit) if limit < FEWEST_BYTES => Err(io::Error::other(format!(
            "the limit of memory is {limit} bytes, and the server needs at least {FEWEST_BYTES}; raise it"
        ))),
        _ => Ok(()),
    }
}

fn mapped_memory() -> impl Iterator<Item = u64> {
    [Resource::As, Resource::Data].into_iter().filter_map(|resource| getrlimit(resource).current)
}

/// Starts as many threads as the server needs, and ends them. Without this, a runtime that gets too few of them
/// panics, or waits for them for ever.
///
/// # Errors
/// If the system does not give them.
pub fn check_threads() -> io::Result<()> {
    let count = thread::available_parallelism().map_or(1, usize::from) + OTHER_THREADS;
    start(count).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot start {count} threads; raise the limit of threads: {error}"),
        )
    })
}

fn start(count: usize) -> io::Result<()> {
    // All of them are there at the same time, because each waits for this lock.
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = gate.lock();
        (0..count)
            .try_for_each(|_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop))
    })
}

/// Takes as many descriptors as the system gives, because each connection needs one.
///
/// # Errors
/// If they are too few to serve anything.
pub fn check_descriptors(config: &Config) -> io::Result<()> {
    let limit = match raise_descriptors() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of file descriptors");
            return Ok(());
        }
    };
    if limit < FEWEST_DESCRIPTORS {
        let what = format!(
            "the limit of file descriptors is {limit}, and the server needs at least {FEWEST_DESCRIPTORS}; raise it"
        );
        return Err(io::Error::other(what));
    }
    if limit < config.max_connections as u64 {
        let max_connections = config.max_connections;
        tracing::warn!(
            limit,
            max_connections,
            "the limit of file descriptors is lower than --max-connections: raise it, or lower --max-connections"
        );
    }
    Ok(())
}

/// Takes as many descriptors as the system gives, and returns how many that are.
///
/// # Errors
/// If the system does not give them.
pub fn raise_descriptors() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Warns if the state file may become larger than a file may be: its last write would fail.
pub fn check_file_size(config: &Config) {
    if let (Some(limit), Some(path)) = (getrlimit(Resource::Fsize).current, &config.state)
        && limit < config.retain_total as u64
    {
        tracing::warn!(
            limit,
            retain_total = config.retain_total,
            path = %path.display(),
            "the limit of file sizes is lower than --retain-total, so the state file may not be written: raise it"
        );
    }
}

/// Warns if the messages that the server retains may need more memory than it can get: the system would kill it.
pub fn check_memory(config: &Config) {
    if !matches!(config.log, LogKind::Memory) {
        return;
    }
    let of_groups = memory::limit(|path| fs::read_to_string(path).ok());
    let Some(memory) = mapped_memory().chain(of_groups).min() else { return };
    let retain_total = config.retain_total as u64;
    if memory::is_too_much(retain_total, memory) {
        tracing::warn!(
            retain_total,
            memory,
            "--retain-total is more than three quarters of the memory that the server can get, so the system may \
             kill it: lower --retain-total, or give it more memory"
        );
    }
}
