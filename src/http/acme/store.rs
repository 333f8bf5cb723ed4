//! The folder of `--tls-acme-state`: the account and the certificate, which only the user of the server can read.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::task;

const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.json";
/// A file gets this name until it is whole.
const NEW: &str = "new";

#[derive(Clone)]
pub struct Store(Arc<PathBuf>);

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
    /// Makes the folder if it is missing, and reads the certificate there.
    ///
    /// # Errors
    /// If the folder, or a file there, cannot be read or written.
    pub async fn open(folder: PathBuf) -> io::Result<(Self, Option<Stored>)> {
        let store = Self(Arc::new(folder));
        let opened = store.clone();
        let stored = blocking(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&*opened.0)?;
            opened.write(NEW, b"")?;
            fs::remove_file(opened.0.join(NEW))?;
            opened.read(CERTIFICATE)
        });
        Ok((store, stored.await?))
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
        warn_of(&self.0.join(CERTIFICATE), error);
    }

    async fn put(&self, name: &'static str, value: &impl Serialize) -> io::Result<()> {
        let (store, text) = (self.clone(), serde_json::to_vec_pretty(value)?);
        blocking(move || {
            store.write(NEW, &text)?;
            fs::rename(store.0.join(NEW), store.0.join(name))?;
            File::open(&*store.0)?.sync_all()
        })
        .await
    }

    /// `None` if there is no file, or if it is damaged.
    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let path = self.0.join(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let read = serde_json::from_slice(&text);
        Ok(read.inspect_err(|error| warn_of(&path, &error.to_string())).ok())
    }

    fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
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

fn warn_of(path: &Path, error: &str) {
    tracing::warn!(path = %path.display(), error, "this file is damaged: it is replaced");
}

/// A disk may be slow.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    task::spawn_blocking(work).await?
}
