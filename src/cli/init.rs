//! `rejoin init`: a configuration file to begin with, and the commands that try it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use rejoin::{
    auth::{Digest, new_key, new_secret},
    config::Origin,
};

use super::{Ending, print};

/// The file holds a secret, so only its owner may read it.
const MODE: u32 = 0o600;

#[derive(Debug, Args)]
pub struct Init {
    /// File to write.
    #[arg(value_name = "FILE", default_value = "rejoin.toml")]
    file: PathBuf,

    /// Origin of your pages, which may then use the server.
    #[arg(long, value_name = "URL", default_value = "http://localhost:3000", value_parser = origin)]
    origin: String,
}

impl Init {
    pub fn run(self) -> Ending {
        let key = new_key();
        let content = content(&self.origin, &Digest::of(key.as_bytes()), &new_secret());
        match write_new(&self.file, &content) {
            Ok(()) => print(commands(&self.file, &key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ending::Failed(format!(
                "{} exists already, and init never replaces a file: name another one",
                self.file.display()
            )),
            Err(error) => Ending::Failed(format!("{}: {error}", self.file.display())),
        }
    }
}

/// The text of an origin that the server accepts.
fn origin(text: &str) -> Result<String, String> {
    text.parse::<Origin>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Writes a file that did not exist, and leaves none if that fails.
fn write_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(content.as_bytes()).inspect_err(|_| drop(fs::remove_file(path)))
}

fn content(origin: &str, digest: &Digest, secret: &str) -> String {
    format!(
        r#"# Settings of a Rejoin server. `rejoin serve --help` explains all settings.
# When this file changes, the server reads keys, grants and origins again. Other settings need a restart.

listen = "127.0.0.1:7070"

# Pages of these origins may use the server, besides its own page.
allowed-origin = ["{origin}"]

# Your backend publishes with this API key. Only its SHA-256 stands here.
[[key]]
name = "backend"
sha256 = "{digest}"
publish = ["**"]
# admin = true                     # also: list and delete topics

# Your backend signs a token for each of its users with this secret. Everyone who has it can sign.
[[jwt]]
name = "users"
algorithm = "HS256"
secret = "{secret}"
subscribe = ["users.{{sub}}.**"]     # granted to each token; {{sub}} is its user

# [anonymous]                      # clients without a credential
# subscribe = ["public.**"]
"#
    )
}

fn commands(file: &Path, key: &str) -> String {
    let name = file.display();
    let file = quoted(&name.to_string());
    format!(
        r##"Wrote {name}. It has a secret, so keep it out of the repository of your code.
The API key of your backend is only in the second command: keep it.

  start    rejoin --config {file}
  publish  curl -H 'Authorization: Bearer {key}' -d 'hello' http://127.0.0.1:7070/topics/users.u1.news
  page     echo "http://127.0.0.1:7070/#topic=users.u1.news&token=$(rejoin token --config {file} --sub u1)"

The last command prints the address of a page that listens as the user u1. Open it in a browser.
"##
    )
}

/// The name as one word of a shell.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if name.chars().all(is_plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
}
