//! `rejoin config`: the settings in force, or only the check that they are right.

use clap::Args;
use rejoin::config::{Flags, Settings};

use super::{Ending, print};

#[derive(Debug, Args)]
pub struct ShowConfig {
    /// Check this configuration file as the server does before it starts, and print no settings.
    ///
    /// The command reads the file, the files with keys that it names, and the environment. It ends with exit code 0 if
    /// all is right, or lists all mistakes and ends with exit code 2.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<String>,

    #[command(flatten)]
    flags: Flags,
}

impl ShowConfig {
    /// The settings to read, as if they had been typed.
    pub fn flags(&self) -> Flags {
        match &self.check {
            Some(file) => self.flags.clone().with("config", file),
            None => self.flags.clone(),
        }
    }

    /// Prints what is asked for; the settings are right.
    pub fn run(self, settings: &Settings) -> Ending {
        match self.check {
            Some(file) => print(format!("{file}: the settings are right\n")),
            None => print(settings.show()),
        }
    }
}
