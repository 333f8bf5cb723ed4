//! Keys, grants and origins, read again while the server runs: on SIGHUP, and when a file that has them changed.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rejoin::{
    App,
    config::{Flags, Settings},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task,
    time::{MissedTickBehavior, interval},
};

/// How often the files are looked at. A look asks the system when they were written, and reads nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The settings that are read again; the others need a new start.
const READ_AGAIN: [&str; 2] = ["allowed-origin", "jwt-secret"];

/// Follows the files that `settings` were read from, and gives `app` what changes.
///
/// # Cancel safety
/// Dropping this stops the following.
pub async fn follow(
    app: &App,
    flags: Flags,
    mut settings: Settings,
    mut taken: Sources,
) -> io::Result<Infallible> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = taken.clone();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = tick.tick() => {
                let now = taken.now().await?;
                // What is just being written is read once it rests.
                let rests = std::mem::replace(&mut before, now.clone()) == now;
                if now == taken || !rests {
                    continue;
                }
            }
        }
        // What is refused is followed too: its mistake may be in another file.
        let (read, sources) = read(flags.clone()).await?;
        settings = take(app, read, &settings).unwrap_or(settings);
        taken = sources;
        before = taken.clone();
    }
}

/// What a configuration says, or all that is wrong with it.
type Read = Result<Settings, Vec<String>>;

/// What is written now, and where. Beside all else that is done: a file system may keep one waiting.
async fn read(flags: Flags) -> io::Result<(Read, Sources)> {
    let reading = task::spawn_blocking(move || {
        let mut sources = Sources::default();
        let read = Settings::read(&flags, |name| std::env::var(name).ok(), |path| sources.read(path));
        (read, sources)
    });
    Ok(reading.await?)
}

/// Puts in force what was read. None, and nothing has changed, if there is a mistake in it.
fn take(app: &App, read: Read, settings: &Settings) -> Option<Settings> {
    let read = match read {
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

/// The files that settings were read from, each as it was just before.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<(PathBuf, Look)>);

/// How a file is told from what it was: when it was written, how long it is, and which one it is. None where there
/// is no file. A pipe is none: it can be read once.
type Look = Option<(SystemTime, u64, u64)>;

impl Sources {
    /// Reads a file, but looks at it first: what is written meanwhile is seen as a change.
    pub fn read(&mut self, path: &Path) -> io::Result<String> {
        self.0.push(look(path));
        fs::read_to_string(path)
    }

    /// The same files as they are now.
    async fn now(&self) -> io::Result<Self> {
        let paths: Vec<_> = self.0.iter().map(|(path, _)| path.clone()).collect();
        let looked = task::spawn_blocking(move || paths.iter().map(|path| look(path)).collect());
        Ok(Self(looked.await?))
    }
}

fn look(path: &Path) -> (PathBuf, Look) {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    let look = found.and_then(|found| Some((found.modified().ok()?, found.len(), found.ino())));
    (path.to_owned(), look)
}
