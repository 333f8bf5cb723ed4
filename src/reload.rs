//! Keys, grants and origins, read again while the server runs: on SIGHUP, and when a file that has them changed.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use rejoin::{
    App, Config,
    config::{Flags, Settings},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

/// How often the files are looked at. A look asks the system when they were written, and reads nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The settings that are read again; the others need a new start.
const READ_AGAIN: [&str; 2] = ["allowed-origin", "jwt-secret"];

/// Follows the files of `settings`, and gives `app` what changes.
///
/// # Cancel safety
/// Dropping this stops the following.
pub async fn follow(app: &App, flags: Flags, mut settings: Settings) -> io::Result<Infallible> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut taken = look(&settings.config).await;
    let mut before = taken.clone();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = tick.tick() => {
                let now = look(&settings.config).await;
                // What is just being written is read once it rests.
                let rests = std::mem::replace(&mut before, now.clone()) == now;
                if now == taken || !rests {
                    continue;
                }
            }
        }
        taken = look(&settings.config).await;
        if let Some(read) = read_again(app, &flags, &settings) {
            settings = read;
            // There may be other key files now.
            taken = look(&settings.config).await;
        }
        before = taken.clone();
    }
}

/// Puts in force what is written now. None, and nothing has changed, if there is a mistake in it.
fn read_again(app: &App, flags: &Flags, settings: &Settings) -> Option<Settings> {
    let read = match Settings::read(flags, |name| std::env::var(name).ok()) {
        Ok(read) => read,
        Err(mistakes) => {
            for mistake in &mistakes {
                tracing::error!("{mistake}");
            }
            tracing::error!(
                mistakes = mistakes.len(),
                "the configuration was not taken; what was in force stays"
            );
            return None;
        }
    };
    if let Err(error) = app.reconfigure(&read.config) {
        tracing::error!(%error, "the configuration was not taken; what was in force stays");
        return None;
    }
    tracing::info!("keys, grants and allowed origins were read again");
    for name in read.differences(settings).filter(|name| !READ_AGAIN.contains(name)) {
        tracing::warn!(name, "this setting was changed, and needs a new start");
    }
    Some(read)
}

/// How a file is told from what it was: when it was written, how long it is, and which one it is.
type Look = Option<(SystemTime, u64, u64)>;

async fn look(config: &Config) -> Vec<(PathBuf, Look)> {
    let mut looks = Vec::new();
    for path in config.config.iter().chain(&config.tables.files) {
        let found = tokio::fs::metadata(path).await.ok();
        let look = found.and_then(|found| Some((found.modified().ok()?, found.len(), found.ino())));
        looks.push((path.clone(), look));
    }
    looks
}
