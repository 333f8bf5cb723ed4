//! The server as a process: it hears signals from its first moment on, and its end has a bound.
//!
//! The main thread hears the signals and keeps the time. The server runs on other threads. So the process ends in
//! time even if all of these wait: for a disk, for a name server, for a lock.

use std::{io, process::ExitCode, sync::Arc, time::Duration};

use rejoin::{
    Config, Drained, Listeners, Server, Shutdown,
    config::{AccessLogForm, Flags, Settings},
    save_within,
};
use tokio::{runtime::Builder, signal::unix::Signal, time::sleep};

use crate::{
    UNKNOWN_VARIABLE, WRONG_SETTINGS, console, limits, listening, logging,
    reload::{self, Sources},
    signals::Signals,
};

/// The time in which the server should have noticed the end of its own bounds.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a second signal leaves for what is just being written.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The reason for which the process does not end in order.
enum ExitReason {
    /// It could not serve.
    Serve(io::Error),
    Settings(Vec<String>),
    /// It has served, and could not save the messages for the next start.
    Save(String),
}

impl From<io::Error> for ExitReason {
    fn from(error: io::Error) -> Self {
        Self::Serve(error)
    }
}

/// Runs the server until it ends.
pub fn run(flags: Flags) -> ExitCode {
    let ended = on_this_thread(flags);
    logging::flush();
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    let (code, told) = match failure {
        ExitReason::Serve(error) => (1, vec![error.to_string()]),
        ExitReason::Settings(mistakes) => (WRONG_SETTINGS, mistakes),
        ExitReason::Save(why) => (
            3,
            vec![format!(
                "{why}; messages may be lost, and then older cursors get a gap after the next start"
            )],
        ),
    };
    console::tell_mistakes(&told);
    ExitCode::from(code)
}

fn on_this_thread(flags: Flags) -> Result<(), ExitReason> {
    limits::check_mapped_memory()?;
    // This runtime has no thread but this one.
    let main = Builder::new_current_thread().enable_all().build()?;
    let ended = main.block_on(hear_and_serve(flags));
    // A thread that reads a file may wait for ever.
    main.shutdown_background();
    ended
}

async fn hear_and_serve(flags: Flags) -> Result<(), ExitReason> {
    // Before anything else, so that no signal ends the process out of order.
    let mut signals = Signals::listen()?;
    limits::check_threads()?;
    let (settings, sources) = tokio::select! {
        read = reload::read(flags.clone()) => read?,
        _ = signals.end() => return Ok(()),
    };
    let settings = settings.map_err(ExitReason::Settings)?;
    logging::start(settings.config.log_level, settings.config.log_format)?;
    if cfg!(debug_assertions) {
        tracing::info!(
            "this program was built without optimization, for a first try; the README says how to install a fast one"
        );
    }
    for name in rejoin::config::unknown_variables() {
        tracing::warn!(name, "{UNKNOWN_VARIABLE}");
    }
    limits::check_descriptors(&settings.config)?;
    limits::check_memory(&settings.config);
    limits::check_file_size(&settings.config);
    sources.warn_of_readers(&settings);

    let (config, shutdown) = (Arc::new(settings.config.clone()), Shutdown::new());
    let hangup = signals.hangup.take().expect("it is taken once");
    let workers = Builder::new_multi_thread().enable_all().build()?;
    let serving = workers.spawn(serve(config.clone(), shutdown.clone(), hangup, flags, settings, sources));
    let ended = tokio::select! {
        biased;
        ended = serving => ended.unwrap_or_else(|error| Err(io::Error::other(error).into())),
        () = pass_on(async || signals.end().await, &shutdown, bound(&config)) => abandon(&config),
    };
    workers.shutdown_background();
    ended
}

async fn serve(
    config: Arc<Config>,
    shutdown: Shutdown,
    hangup: Signal,
    flags: Flags,
    settings: Settings,
    sources: Sources,
) -> Result<(), ExitReason> {
    let is_logged = config.access_log != AccessLogForm::Off;
    let access_log = if is_logged { Some(logging::start_access_log()?) } else { None };
    let listeners = Listeners::bind(&config)?;
    let server = match Server::start(config.clone(), shutdown.clone()).await {
        Err(error) if error.kind() == io::ErrorKind::Interrupted && shutdown.is_draining() => {
            tracing::info!("ended before it served");
            return Ok(());
        }
        server => server?,
    };
    listening::greet(&listeners, &config)?;
    let app = server.app().clone();
    if let Some(write) = access_log {
        app.log_access(write);
    }
    let served = tokio::select! {
        served = server.serve(listeners) => served,
        never = reload::follow(&app, flags, settings, sources, hangup) => never,
        never = logging::report_dropped_lines() => never,
    };
    match served {
        Ok(Drained::Completely) => Ok(()),
        Ok(Drained::Partly(left)) => {
            tracing::warn!(
                connections = left,
                "ended with connections open: the shutdown grace expired, or a second signal came"
            );
            Ok(())
        }
        Err(error) => Err(ExitReason::Save(error.to_string())),
    }
}

/// How long the server may take to end in order.
fn bound(config: &Config) -> Duration {
    config.drain_grace + save_within(config.retain_total) + MARGIN
}

/// The first signal begins a drain; the second ends the server at once. Resolves if the server should have ended
/// since, and has not.
async fn pass_on(mut next: impl AsyncFnMut() -> &'static str, shutdown: &Shutdown, bound: Duration) {
    let signal = next().await;
    tracing::info!(signal, "received a signal: draining");
    shutdown.drain();
    tokio::select! {
        () = sleep(bound) => {}
        signal = next() => {
            tracing::warn!(signal, "received another signal: ending at once");
            shutdown.end();
            sleep(AT_ONCE).await;
        }
    }
}

fn abandon(config: &Config) -> Result<(), ExitReason> {
    match &config.state {
        Some(path) => Err(ExitReason::Save(format!(
            "--state {}: the process ended before the file was written",
            path.display()
        ))),
        None => {
            tracing::warn!("ended although some tasks were still at work");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    const BOUND: Duration = Duration::from_secs(70);

    /// Sends this many signals to a server that does not notice them, and returns how long the process waits for it.
    async fn waited(mut signals: usize) -> (Duration, Shutdown) {
        let (began, shutdown) = (Instant::now(), Shutdown::new());
        let next = async || {
            if signals == 0 {
                pending::<()>().await;
            }
            signals -= 1;
            "SIGTERM"
        };
        pass_on(next, &shutdown, BOUND).await;
        (began.elapsed(), shutdown)
    }

    #[tokio::test(start_paused = true)]
    async fn the_process_ends_though_the_server_does_not() {
        let (waited, shutdown) = waited(1).await;
        assert!((BOUND..2 * BOUND).contains(&waited), "{waited:?}");
        assert!(shutdown.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_leaves_little_time() {
        let (waited, shutdown) = waited(2).await;
        assert!((AT_ONCE..2 * AT_ONCE).contains(&waited), "{waited:?}");
        shutdown.ended().await;
    }
}
