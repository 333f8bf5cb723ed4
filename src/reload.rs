//! Reads keys, grants, origins, the certificate and retention by pattern again while the server runs: on SIGHUP, and when one of
//! their files has changed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rejoin::{
    App,
    auth::is_secret,
    config::{Again, Certificate, Flags, Settings},
};
use tokio::{
    signal::unix::Signal,
    task,
    time::{MissedTickBehavior, interval},
};

/// How often the files are checked. A check asks the system when they were written, and reads nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The settings that are read again. All others need a restart.
const READ_AGAIN: [&str; 5] = ["allowed-origin", "allowed-host", "jwt-secret", "tls-cert", "tls-key"];

/// Watches the files that `settings` were read from, and applies their changes to `app`. A signal of `hangup` makes
/// it read them at once.
///
/// # Cancel safety
/// Dropping this stops the watching.
pub async fn follow(
    app: &App,
    flags: Flags,
    mut settings: Settings,
    mut taken: Sources,
    mut hangup: Signal,
) -> ! {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = taken.clone();
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = tick.tick() => {
                let Ok(now) = taken.now().await else { continue };
                // A file that is just being written is read when it has stopped changing.
                let rests = std::mem::replace(&mut before, now.clone()) == now;
                if now == taken || !rests {
                    continue;
                }
            }
        }
        // The files of a rejected configuration are watched too: the mistake may be in any of them.
        let (read, sources) = match read_again(flags.clone(), settings.clone()).await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "cannot read the configuration; the previous one stays in force");
                continue;
            }
        };
        app.rejects_files(!take(app, read, &mut settings));
        sources.warn_of_readers(&settings);
        taken = sources;
        before = taken.clone();
    }
}

/// The settings that a configuration has, or all its mistakes.
pub type Read = Result<Settings, Vec<String>>;

/// Reads the configuration as it is now, and notes its files. It runs on a blocking thread, because a file
/// system may be slow.
pub async fn read(flags: Flags) -> io::Result<(Read, Sources)> {
    noting(move |sources| Settings::read(&flags, |name| std::env::var_os(name), |path| sources.read(path)))
        .await
}

async fn read_again(flags: Flags, settings: Settings) -> io::Result<(Again, Sources)> {
    noting(move |sources| {
        settings.read_again(&flags, |name| std::env::var_os(name), |path| sources.read(path))
    })
    .await
}

async fn noting<T: Send + 'static>(
    read: impl FnOnce(&mut Sources) -> T + Send + 'static,
) -> io::Result<(T, Sources)> {
    let reading = task::spawn_blocking(move || {
        let mut sources = Sources::default();
        (read(&mut sources), sources)
    });
    Ok(reading.await?)
}

/// Applies each part of the settings that has no mistake. True if all of them were applied.
fn take(app: &App, again: Again, settings: &mut Settings) -> bool {
    if let Err(wrong) = &again.account {
        tracing::warn!("{wrong}; this server needs the file no more, and its next start does");
    }
    let is_certificate_taken = take_certificate(app, again.certificate, settings);
    let read = match again.settings {
        Ok(read) => read,
        Err(mistakes) => {
            tell(&mistakes);
            tracing::error!(
                mistakes = mistakes.len(),
                "configuration rejected; the previous one stays in force"
            );
            return false;
        }
    };
    if let Err(error) = app.reconfigure(&read.config) {
        tracing::error!(%error, "configuration rejected; the previous one stays in force");
        return false;
    }
    app.begin_fetching();
    tracing::info!("keys, grants, [[retain]], allowed origins and hosts reloaded");
    for name in read.differences(settings).filter(|name| !READ_AGAIN.contains(name)) {
        tracing::warn!(name, "this setting has changed; restart the server to apply it");
    }
    *settings = read;
    is_certificate_taken
}

/// Shows the certificate in the files. False if there is a mistake in them.
fn take_certificate(
    app: &App,
    read: Result<Option<Certificate>, Vec<String>>,
    settings: &mut Settings,
) -> bool {
    match read {
        Ok(Some(certificate)) => {
            app.show_certificate(&certificate);
            settings.config.certificate = Some(certificate);
        }
        Ok(None) => {}
        Err(mistakes) => {
            tell(&mistakes);
            tracing::error!("certificate rejected; the previous one stays in force");
            return false;
        }
    }
    true
}

fn tell(mistakes: &[String]) {
    for mistake in mistakes {
        tracing::error!("{mistake}");
    }
}

/// The files that settings were read from, each with its state just before the read.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sources {
    looks: Vec<(PathBuf, Look)>,
    /// Those that every user of this machine can read, and that are no public keys.
    exposed: Vec<PathBuf>,
}

/// The state of a file: when it was written, its length, and its inode. It is none if there is no file, or for a
/// pipe, which can be read only once.
type Look = Option<(SystemTime, u64, u64)>;

impl Sources {
    /// Reads a file. It notes the state first, so that a write during the read is seen as a change.
    pub fn read(&mut self, path: &Path) -> io::Result<String> {
        self.looks.push(look(path));
        let text = fs::read_to_string(path)?;
        let is_exposed = fs::metadata(path).is_ok_and(|found| found.mode() & 0o004 != 0);
        if is_exposed && (is_secret(&text) || text.contains("PRIVATE KEY-----")) {
            self.exposed.push(path.to_owned());
        }
        Ok(text)
    }

    /// Warns of each file that has a secret, and that every user of this machine can read.
    pub fn warn_of_readers(&self, settings: &Settings) {
        let is_of_settings = |path: &PathBuf| settings.config.config.as_ref() == Some(path);
        for path in self.exposed.iter().filter(|path| !is_of_settings(path) || settings.has_secrets_in_file())
        {
            tracing::warn!(
                path = %path.display(),
                "this file has a secret, and every user of this machine can read it: chmod o-r"
            );
        }
    }

    /// The same files in their present state.
    async fn now(&self) -> io::Result<Self> {
        let paths: Vec<_> = self.looks.iter().map(|(path, _)| path.clone()).collect();
        let looked = task::spawn_blocking(move || paths.iter().map(|path| look(path)).collect());
        Ok(Self { looks: looked.await?, exposed: self.exposed.clone() })
    }
}

fn look(path: &Path) -> (PathBuf, Look) {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    let look = found.and_then(|found| Some((found.modified().ok()?, found.len(), found.ino())));
    (path.to_owned(), look)
}
