//! The log on standard error: text on a terminal, else JSON. And the access log on standard output.
//!
//! Clients can cause lines, so each place in the code may write only a few of them a second. No task waits until
//! standard error takes a line.

mod lines;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use rejoin::{config::LogFormat, http::DROPPED_LINES};
use tokio::time::Instant;
use tracing::{Event, Metadata, callsite::Identifier, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::{FilterExt, Targets},
    layer::{Context, Filter, Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::lines::Lines;

/// How many lines one place in the code may write in one [`WINDOW`]: enough to see what happens.
const MAX_LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);
/// How often the number of dropped lines is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long the end of the process waits for the last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

static LINES: OnceLock<&Lines> = OnceLock::new();
/// The lines of the access log.
static ACCESS_LINES: OnceLock<&Lines> = OnceLock::new();

/// Begins to log lines at `level` or above; see [`wanted`].
///
/// # Errors
/// If the system has no thread or no descriptor for it.
pub fn start(level: LevelFilter, format: LogFormat) -> io::Result<()> {
    // A descriptor of its own, because the lock of the standard library must not be held while a pipe is full.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let lines = Lines::start(stderr, DROPPED_LINES.not_taken.clone(), |lines| {
        tracing::warn!(lines, "log lines dropped: standard error took none for a while");
    })?;
    let lines = *LINES.get_or_init(|| lines);
    let wanted = wanted(level);
    let layer = tracing_subscriber::fmt::layer().with_writer(move || lines);
    let log = tracing_subscriber::registry();
    let is_text = match format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if is_text {
        // Colours are for a terminal alone.
        let layer = layer.with_ansi(io::stderr().is_terminal());
        log.with(layer.with_filter(wanted.and(Sparse::default()))).init();
    } else {
        log.with(layer.json().flatten_event(true).with_filter(wanted.and(Sparse::default()))).init();
    }
    // The hook of the standard library waits for standard error.
    std::panic::set_hook(Box::new(
        |panic| tracing::error!(%panic, "a task has panicked: a fault of the server"),
    ));
    Ok(())
}

/// The lines to log at this level: from other crates only warnings and errors, and from `h2` only errors, because
/// clients can cause its warnings, which name no address.
fn wanted(level: LevelFilter) -> Targets {
    Targets::new()
        .with_target("rejoin", level)
        .with_target("h2", level.min(LevelFilter::ERROR))
        .with_default(level.min(LevelFilter::WARN))
}

/// Begins the access log on standard output, and returns the way to write a line to it. That never waits.
///
/// # Errors
/// If the system has no thread or no descriptor for it.
pub fn start_access_log() -> io::Result<impl Fn(&[u8]) + Send + Sync + 'static> {
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let lines = Lines::start(stdout, DROPPED_LINES.access.clone(), |lines| {
        tracing::warn!(lines, "lines of the access log dropped: standard output took none for a while");
    })?;
    let lines = *ACCESS_LINES.get_or_init(|| lines);
    Ok(move |line: &[u8]| lines.push(line))
}

/// Waits until the lines so far are written, or until a second has passed.
pub fn flush() {
    for lines in [&ACCESS_LINES, &LINES].into_iter().filter_map(OnceLock::get) {
        lines.flush(FLUSH_WITHIN / 2);
    }
}

/// Logs how many lines were dropped because there were too many, as long as it is polled.
pub async fn report_dropped_lines() -> ! {
    let mut told = 0;
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let dropped = DROPPED_LINES.too_many.get();
        if dropped > told {
            let lines = dropped - std::mem::replace(&mut told, dropped);
            tracing::warn!(lines, "log lines dropped: too many a second from one place in the code");
        }
    }
}

/// Lets through a few lines a second from each place in the code.
#[derive(Default)]
struct Sparse {
    // A std mutex: no await happens while it is held. There are as many entries as places that log.
    places: Mutex<HashMap<Identifier, (Instant, u32)>>,
}

impl Sparse {
    fn is_due(&self, place: Identifier, now: Instant) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, lines) = places.entry(place).or_insert((now, 0));
        if now.duration_since(*began) >= WINDOW {
            (*began, *lines) = (now, 0);
        }
        *lines += 1;
        *lines <= MAX_LINES
    }
}

impl<S> Filter<S> for Sparse {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let is_due = self.is_due(event.metadata().callsite(), Instant::now());
        DROPPED_LINES.too_many.inc_by(u64::from(!is_due));
        is_due
    }
}

#[cfg(test)]
mod tests {
    use tracing::{Callsite, Level, metadata::Kind};

    use super::*;

    #[test]
    fn a_place_that_writes_too_much_is_left_out_until_the_next_second() {
        let sparse = Sparse::default();
        let now = Instant::now();
        let (often, seldom) = (identifier(), identifier_of_another());
        let told = (0..1000).filter(|_| sparse.is_due(often.clone(), now)).count();
        assert_eq!(told, MAX_LINES as usize);
        assert!(sparse.is_due(seldom, now), "another place is not held back by it");
        assert!(sparse.is_due(often, now + WINDOW));
    }

    #[test]
    fn warnings_that_clients_cause_in_another_crate_are_left_out() {
        let (all, none) = (wanted(LevelFilter::DEBUG), wanted(LevelFilter::OFF));
        let recv = "h2::proto::streams::recv";
        assert!(all.would_enable("rejoin::http", &Level::DEBUG));
        assert!(all.would_enable("hyper", &Level::WARN) && !all.would_enable("hyper", &Level::INFO));
        assert!(all.would_enable(recv, &Level::ERROR) && !all.would_enable(recv, &Level::WARN));
        assert!(!none.would_enable(recv, &Level::ERROR));
    }

    fn identifier() -> Identifier {
        tracing::callsite!(name: "often", kind: Kind::EVENT, fields: ).metadata().callsite()
    }

    fn identifier_of_another() -> Identifier {
        tracing::callsite!(name: "seldom", kind: Kind::EVENT, fields: ).metadata().callsite()
    }
}
