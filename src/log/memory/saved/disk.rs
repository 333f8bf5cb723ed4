//! The steps of a write that a disk can refuse or hold up, so that a test can let it do so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

pub trait Disk: Send + Sync + 'static {
    /// Creates a file, or empties it.
    fn create(&self, path: &Path) -> io::Result<File> {
        options().create(true).truncate(true).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// Resolves once the file, or the folder, is durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
}

/// The disks of this machine.
pub struct System;

impl Disk for System {}

/// Only the owner may read the files, because they have the published messages.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}
