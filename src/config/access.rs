//! Keys and grants in the configuration file.

use std::path::Path;

use super::File;
use crate::auth::{Authority, Read};

/// Takes `[[key]]`, `[[jwt]]`, `[hook]` and `[anonymous]` out of the file, and reads with `read` the files that they
/// name, relative to the configuration file at `path`.
///
/// After any mistake the result accepts no credential and no anonymous client.
pub fn authority(
    file: &mut File<'_>,
    path: &Path,
    read: &mut Read<'_>,
    mistakes: &mut Vec<String>,
) -> Authority {
    let (keys, jwts) = (file.take_tables("key", mistakes), file.take_tables("jwt", mistakes));
    let (anonymous, hook) = (file.take_table("anonymous", mistakes), file.take_table("hook", mistakes));
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut read = |named: &Path| read(&folder.join(named));
    Authority::new(keys, jwts, anonymous, hook, &mut read).unwrap_or_else(|wrong| {
        mistakes.extend(wrong.into_iter().map(|(what, line)| file.mistake_in_line(line, what)));
        Authority::closed()
    })
}
