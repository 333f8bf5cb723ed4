//! The step of a write that shows if a disk works, so that a test can let it fail or stall.

use std::{fs::File, io};

pub trait Disk: Send + Sync + 'static {
    /// Returns once everything that was written to the file or the folder is durable. Every write ends with
    /// this.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The disks of this machine.
pub struct System;

impl Disk for System {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }
}
