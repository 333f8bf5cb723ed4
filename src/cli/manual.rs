//! `rejoin man`: the manual pages, one for each command.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Ending};

#[derive(Debug, Args)]
pub struct Manual {
    /// The folder for the pages. It is made if it does not exist.
    folder: PathBuf,
}

impl Manual {
    pub fn run(self) -> Ending {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        match fs::create_dir_all(&self.folder).and_then(|()| write(&command, &self.folder)) {
            Ok(()) => Ending::Done,
            Err(error) => {
                Ending::Failed(format!("cannot write the pages to {}: {error}", self.folder.display()))
            }
        }
    }
}

/// Writes the page of a command, and those of its own commands.
fn write(command: &Command, folder: &Path) -> io::Result<()> {
    for each in command.get_subcommands() {
        write(each, folder)?;
    }
    // The same version makes the same pages, so they have no date. A quoted one keeps its place in the title.
    let page = Man::new(command.clone())
        .date("\"\"")
        .source(concat!("rejoin ", env!("CARGO_PKG_VERSION")))
        .manual("Rejoin");
    page.generate_to(folder).map(drop)
}
