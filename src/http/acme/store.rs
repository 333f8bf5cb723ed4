//! The folder of `--tls-acme-state`: the account and the certificate, which only the user of the server can read.
//!
//! One server at a time has it: two would both order, and each would replace the certificate of the other.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    task,
    time::{Instant, sleep},
};

const LOCK: &str = "lock";
/// How long a start waits for the server before it, which may still end, and how often it looks.
const HANDOVER: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.json";
/// A file gets this name until it is whole.
const NEW: &str = "new";

#[derive(Clone)]
pub struct Store(Arc<Locked>);

/// The folder, which this process has for itself until this is dropped.
struct Locked {
    folder: PathBuf,
    _lock: File,
}

/// A certificate, as it is kept from one start to the next.
#[derive(Serialize, Deserialize)]
pub struct Stored {
    /// The authority that has issued it.
    pub directory: String,
    pub names: BTreeSet<String>,
    /// With its chain, in PEM.
    pub certificate: String,
    pub key: String,
}

impl Store {
    /// Makes the folder if it is missing, waits until no other server has it, and reads the certificate there.
    ///
    /// # Errors
    /// If another server goes on with the folder, or if it, or a file there, cannot be read or written.
    ///
    /// # Cancel safety
    /// Dropping this leaves the folder to others.
    pub async fn open(folder: PathBuf) -> io::Result<(Self, Option<Stored>)> {
        let made = folder.clone();
        let lock = blocking(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&made)?;
            // A link may lead to a file of somebody else.
            let no_link = OFlags::NOFOLLOW.bits().cast_signed();
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link);
            options.open(made.join(LOCK))
        });
        let lock = lock.await?;
        until_locked(&lock, &folder).await?;
        let store = Self(Arc::new(Locked { folder, _lock: lock }));
        let opened = store.clone();
        let stored = blocking(move || {
            opened.write(NEW, b"")?;
            fs::remove_file(opened.path(NEW))?;
            opened.read(CERTIFICATE)
        });
        Ok((store, stored.await?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.folder.join(name)
    }

    /// The account at an authority, as the library writes it.
    pub async fn account<T: DeserializeOwned + Send + 'static>(&self) -> io::Result<Option<T>> {
        let store = self.clone();
        blocking(move || store.read(ACCOUNT)).await
    }

    pub async fn put_account(&self, account: &impl Serialize) -> io::Result<()> {
        self.put(ACCOUNT, account).await
    }

    pub async fn put_certificate(&self, certificate: &Stored) -> io::Result<()> {
        self.put(CERTIFICATE, certificate).await
    }

    /// Tells that the certificate cannot be used.
    pub fn damaged(&self, error: &str) {
        warn_of(&self.path(CERTIFICATE), error);
    }

    async fn put(&self, name: &'static str, value: &impl Serialize) -> io::Result<()> {
        let (store, text) = (self.clone(), serde_json::to_vec_pretty(value)?);
        blocking(move || {
            store.write(NEW, &text)?;
            fs::rename(store.path(NEW), store.path(name))?;
            File::open(&store.0.folder)?.sync_all()
        })
        .await
    }

    /// `None` if there is no file, or if it is damaged.
    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let read = serde_json::from_slice(&text);
        Ok(read.inspect_err(|error| warn_of(&path, &error.to_string())).ok())
    }

    fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        // One that is left over might be readable for others.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text)?;
        file.sync_all()
    }
}

/// Waits for the server that has the folder, if it ends soon.
async fn until_locked(lock: &File, folder: &Path) -> io::Result<()> {
    let began = Instant::now();
    let mut has_told = false;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => {
                let path = folder.display();
                tracing::warn!(%path, %error, "the folder of --tls-acme-state cannot be locked: see that no other server has it");
                return Ok(());
            }
        }
        if began.elapsed() >= HANDOVER {
            let why = "another server uses this folder; end it, or give this one a folder of its own";
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        if !std::mem::replace(&mut has_told, true) {
            tracing::info!(path = %folder.display(), "another server uses the folder of --tls-acme-state: waiting until it ends");
        }
        sleep(LOOK_EVERY).await;
    }
}

fn warn_of(path: &Path, error: &str) {
    tracing::warn!(path = %path.display(), error, "this file is damaged: it is replaced");
}

/// A disk may be slow.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warnings::Warnings;

    /// Two servers shared a folder on such a disk, and neither said that it could not lock it.
    #[tokio::test]
    async fn a_folder_that_cannot_be_locked_is_warned_of() {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        let folder = std::env::temp_dir();
        // The system locks no file that is open as a mere place.
        let place = OFlags::PATH.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(place).open(&folder).expect("it is there");
        until_locked(&file, &folder).await.expect("it goes on");
        assert_eq!(warnings.count(), 1);
    }

    /// Two servers with one folder ordered twice, and each replaced the certificate of the other.
    #[tokio::test(start_paused = true)]
    async fn one_server_at_a_time_has_the_folder() {
        let folder = std::env::temp_dir().join(format!("rejoin-acme-{}", std::process::id()));
        let (first, _) = Store::open(folder.clone()).await.expect("it is free");
        let began = Instant::now();
        let Err(refused) = Store::open(folder.clone()).await else { panic!("it is taken") };
        assert!(refused.to_string().starts_with("another server uses this folder"), "{refused}");
        assert!(began.elapsed() >= HANDOVER);
        // One that ends meanwhile hands it over.
        let ending = async {
            sleep(HANDOVER / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(Store::open(folder.clone()), ending);
        second.expect("it is free again");
        fs::remove_dir_all(folder).expect("a folder");
    }
}
