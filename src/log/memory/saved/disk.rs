//! The steps that show if a disk works, so that a test can let them fail or stall.

use std::{fs::File, io};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

pub trait Disk: Send + Sync + 'static {
    /// Returns once everything that was written to the file or the folder is durable. Every write ends with
    /// this.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Locks the file for this process. False if another process has locked it.
    fn lock(&self, file: &File) -> io::Result<bool>;
}

/// The disks of this machine.
pub struct System;

impl Disk for System {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn lock(&self, file: &File) -> io::Result<bool> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            // An error such as ENOLCK does not say that another process has it.
            locked => Ok(locked.map(|()| true)?),
        }
    }
}
