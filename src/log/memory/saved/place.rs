//! The place of a state file, and the check that it still belongs to this process.
//!
//! Two files lie beside each other. `FILE` has the messages of a log that was closed, or a note that a process
//! is running. `FILE.lock` is locked by that process, and has the number of the last process that published.
//! So a copy of `FILE` that is older than that is known as one.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};

use super::disk::Disk;

/// How many symbolic links lead to the file at most.
const MAX_LINKS: usize = 40;

/// Why a state file was not written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("another server uses the state file")]
    Taken,
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// A state file, and the lock that lies beside it.
pub struct Place {
    path: PathBuf,
    lock: File,
    /// The number in the lock file.
    run: Option<u64>,
    disk: Arc<dyn Disk>,
}

impl Place {
    /// Locks a state file for this process. `None` if another process has locked it.
    pub fn lock(path: &Path, disk: Arc<dyn Disk>) -> io::Result<Option<Self>> {
        let path = resolve(path)?;
        let name = beside(&path, ".lock");
        let mut lock = options().create(true).truncate(false).open(&name)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // Another process may have removed it, or made another one, in between.
        if !is_at(&lock, &name)? {
            return Ok(None);
        }
        let run = read_run(&mut lock)?;
        Ok(Some(Self { path, lock, run, disk }))
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the last process that published, if one is known.
    pub fn run(&self) -> Option<u64> {
        self.run
    }

    /// Writes the number of this process to the lock file.
    pub fn set_run(&mut self, run: u64) -> Result<(), Failure> {
        self.check()?;
        write_run(&*self.disk, &mut self.lock, run)?;
        self.run = Some(run);
        Ok(())
    }

    /// Checks that the file still belongs to this process. If only the lock file was removed, it is made again.
    pub fn check(&mut self) -> Result<(), Failure> {
        let path = beside(&self.path, ".lock");
        loop {
            match is_at(&self.lock, &path) {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(Failure::Taken),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            let mut lock = match options().create_new(true).open(&path) {
                // Another process was faster: look again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(Failure::Taken);
            }
            if let Some(run) = self.run {
                write_run(&*self.disk, &mut lock, run)?;
            }
            tracing::warn!(path = %path.display(), "the lock file was removed and is made again");
            self.lock = lock;
        }
    }

    /// Replaces the file. At every moment one of the two is there and complete.
    pub fn replace(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Failure> {
        self.check()?;
        let new = beside(&self.path, ".new");
        let written = create(&new).and_then(|mut file| {
            write(&mut file)?;
            self.disk.sync(&file)
        });
        if let Err(error) = written {
            // It takes room that something else may need.
            let _ = fs::remove_file(&new);
            return Err(error.into());
        }
        self.check()?;
        fs::rename(&new, &self.path)?;
        self.disk.sync(&File::open(folder(&self.path))?)?;
        // A process that took the place in between has seen the file from before.
        self.check()
    }

    /// Checks that files can be written here.
    pub fn probe(&self) -> io::Result<()> {
        let new = beside(&self.path, ".new");
        let written = create(&new).and_then(|mut file| {
            file.write_all(b"a test of the disk\n")?;
            self.disk.sync(&file)
        });
        let removed = fs::remove_file(&new);
        written.and(removed)
    }

    /// Gives a damaged file another name, under which it stays.
    pub fn set_aside(&self, ending: &str) -> io::Result<PathBuf> {
        let aside = beside(&self.path, ending);
        // Add a second name, and keep the first until a new file replaces it. A process that starts in between
        // finds the same as this one.
        fs::hard_link(&self.path, &aside).or_else(|_| fs::rename(&self.path, &aside))?;
        File::open(folder(&self.path))?.sync_all()?;
        Ok(aside)
    }
}

/// The file that a path leads to, under the one name by which all processes lock it.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = folder(&path).join(target);
    }
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "this is not the name of a file");
    let name = path.file_name().ok_or_else(no_name)?;
    Ok(fs::canonicalize(folder(&path))?.join(name))
}

/// Only the owner may read the files, because they have the published messages.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn create(path: &Path) -> io::Result<File> {
    options().create(true).truncate(true).open(path)
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or_else(|| Path::new("."))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// True if the open file is the one at this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (open, there) = (file.metadata()?, fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
}

/// The number in a lock file. Version 1 left it empty.
fn read_run(lock: &mut File) -> io::Result<Option<u64>> {
    let mut text = String::new();
    lock.rewind()?;
    match lock.take(64).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(0)),
        Err(error) => Err(error),
        Ok(0) => Ok(None),
        // A damaged number is that of no file.
        Ok(_) => Ok(Some(u64::from_str_radix(text.trim_end(), 16).unwrap_or(0))),
    }
}

fn write_run(disk: &dyn Disk, lock: &mut File, run: u64) -> io::Result<()> {
    lock.rewind()?;
    lock.write_all(format!("{run:016x}\n").as_bytes())?;
    disk.sync(lock)
}
