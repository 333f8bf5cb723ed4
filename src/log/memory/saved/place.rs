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

use rustix::fs::OFlags;

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

/// The last process that published, as a lock file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The lock file was missing, and no process has published since it was made.
    Unknown,
    /// The lock file is empty, as version 1 leaves it.
    Version1,
    /// The random number of that process.
    Run(u64),
}

/// A state file, and the lock that lies beside it.
pub struct Place {
    path: PathBuf,
    lock: File,
    last: Last,
    /// True once the lock file is locked and says who was the last.
    is_lock_written: bool,
    disk: Arc<dyn Disk>,
}

impl Place {
    /// Locks a state file for this process. `None` if another process has locked it.
    pub fn lock(path: &Path, disk: Arc<dyn Disk>) -> io::Result<Option<Self>> {
        let path = resolve(path)?;
        let name = beside(&path, ".lock");
        let Some((mut lock, is_new)) = open_lock(&name)? else { return Ok(None) };
        if !disk.lock(&lock)? {
            return Ok(None);
        }
        // Another process may have removed it, or made another one, in between.
        let is_there = match is_at(&lock, &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            is_there => is_there?,
        };
        if !is_there {
            return Ok(None);
        }
        let last = if is_new { Last::Unknown } else { read_last(&mut lock)? };
        if is_new && let Err(error) = write_last(&*disk, &mut lock, last) {
            // If it stays there empty, it looks like that of version 1.
            let _ = fs::remove_file(&name);
            return Err(error);
        }
        Ok(Some(Self { path, lock, last, is_lock_written: true, disk }))
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn last(&self) -> Last {
        self.last
    }

    /// True if there is no file at the path.
    pub fn is_gone(&self) -> bool {
        fs::metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Writes the number of this process to the lock file.
    pub fn set_run(&mut self, run: u64) -> Result<(), Failure> {
        self.last = Last::Run(run);
        self.is_lock_written = false;
        self.check()
    }

    /// Checks that the file still belongs to this process. If only the lock file was removed, it is made again.
    pub fn check(&mut self) -> Result<(), Failure> {
        let path = beside(&self.path, ".lock");
        loop {
            match is_at(&self.lock, &path) {
                Ok(true) => return self.write_lock(),
                Ok(false) => return Err(Failure::Taken),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            match options().create_new(true).open(&path) {
                // Another process was faster: look again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => {
                    // Even if the next step fails, this is the lock file of this process.
                    self.lock = opened?;
                    self.is_lock_written = false;
                    tracing::warn!(path = %path.display(), "the lock file was removed and is made again");
                }
            }
        }
    }

    /// Locks and writes the lock file, unless that is done.
    fn write_lock(&mut self) -> Result<(), Failure> {
        if self.is_lock_written {
            return Ok(());
        }
        if !self.disk.lock(&self.lock)? {
            return Err(Failure::Taken);
        }
        write_last(&*self.disk, &mut self.lock, self.last)?;
        self.is_lock_written = true;
        Ok(())
    }

    /// Replaces the file. At every moment one of the two is there and complete.
    pub fn replace(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Failure> {
        self.check()?;
        let new = beside(&self.path, ".new");
        let mut file = create(&new)?;
        if let Err(error) = write(&mut file).and_then(|()| self.disk.sync(&file)) {
            // It takes room that something else may need. Another server may have made its own by now.
            if is_at(&file, &new).unwrap_or(false) {
                let _ = fs::remove_file(&new);
            }
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

    /// Gives a damaged file another name, under which it stays. The name is the same if this is done again.
    pub fn set_aside(&self, ending: &str) -> io::Result<PathBuf> {
        let file = File::open(&self.path)?;
        let mut aside = beside(&self.path, &format!(".{ending}-{}", file.metadata()?.ino()));
        while let Ok(is_done) = is_at(&file, &aside) {
            if is_done {
                return Ok(aside);
            }
            // The folder was copied, and the name belongs to another file.
            aside = beside(&aside, "-1");
        }
        // Add a second name, and keep the first until a new file replaces it. A process that starts in between
        // finds the same as this one.
        fs::hard_link(&self.path, &aside).or_else(|_| fs::rename(&self.path, &aside))?;
        self.disk.sync(&File::open(folder(&self.path))?)?;
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

/// Makes a new file. A server that lost its place may still write to the one before it.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => options().create_new(true).open(path),
    }
}

/// Opens a lock file, or makes one: then the second is true. `None` if it was removed in between.
fn open_lock(path: &Path) -> io::Result<Option<(File, bool)>> {
    match options().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map(|lock| Some((lock, true))),
    }
    // The number of this process is written into it, and a link may lead to a file of somebody else.
    match options().custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(|lock| Some((lock, false))),
    }
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

/// The content of a lock file that was missing, until a process publishes.
const UNKNOWN: &str = "new";

fn read_last(lock: &mut File) -> io::Result<Last> {
    let mut text = String::new();
    lock.rewind()?;
    match lock.take(64).read_to_string(&mut text) {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
        Ok(0) => return Ok(Last::Version1),
        _ => {}
    }
    Ok(match text.trim_end() {
        UNKNOWN => Last::Unknown,
        // A damaged number is that of no file.
        number => Last::Run(u64::from_str_radix(number, 16).unwrap_or(0)),
    })
}

fn write_last(disk: &dyn Disk, lock: &mut File, last: Last) -> io::Result<()> {
    let text = match last {
        Last::Unknown => format!("{UNKNOWN}\n"),
        Last::Version1 => String::new(),
        Last::Run(run) => format!("{run:016x}\n"),
    };
    lock.rewind()?;
    lock.write_all(text.as_bytes())?;
    disk.sync(lock)
}
