//! The first line of a state file: its version, if it was closed, the newest id, and checksums.

use xxhash_rust::xxh3::xxh3_64;

use crate::message::Id;

const MAGIC: &str = "rejoin-state";
/// The version of the format that is written. A new version must also read the older ones, or refuse them.
pub const VERSION: u32 = 4;
/// How many bytes the first line may have.
pub const MAX_BYTES: usize = 128;

/// The content of the first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The version of the format. The line is always written with the newest one.
    pub version: u32,
    pub is_closed: bool,
    /// The newest id. While the file is opened, the newest id that may have been assigned.
    pub newest: Id,
    /// How many bytes follow the first line, and their checksum.
    pub bytes: u64,
    pub hash: u64,
    /// A random number of the process that wrote the file. Version 1 has none.
    pub run: Option<u64>,
}

impl Head {
    /// The line as it is written. It always has the same length, and ends with its own checksum.
    pub fn line(&self) -> String {
        let Self { is_closed, newest, bytes, hash, run, .. } = *self;
        let kind = if is_closed { "closed" } else { "opened" };
        let run = run.unwrap_or_default();
        let words =
            format!("{MAGIC} {VERSION} {kind} {:016} {bytes:020} {hash:016x} {run:016x}", newest.get());
        let sum = xxh3_64(words.as_bytes());
        format!("{words} {sum:016x}\n")
    }

    /// Reads the first line of these bytes. Returns it and its length.
    pub fn parse(file: &[u8]) -> Result<(Self, usize), String> {
        let end = file.iter().take(MAX_BYTES).position(|byte| *byte == b'\n');
        let end = end.ok_or("its first line is cut off")?;
        let line = std::str::from_utf8(&file[..end]).map_err(|_| "its first line is not text")?;
        let (summed, sum) = line.rsplit_once(' ').unwrap_or_default();
        if sum != format!("{:016x}", xxh3_64(summed.as_bytes())) {
            return Err("the checksum of its first line does not match".into());
        }
        let words: Vec<_> = summed.split(' ').collect();
        let (version, kind, newest, bytes, hash, run) = match *words {
            [MAGIC, "1", kind, newest, bytes, hash] => (1, kind, newest, bytes, hash, None),
            [MAGIC, "2", kind, newest, bytes, hash, run] => (2, kind, newest, bytes, hash, Some(run)),
            [MAGIC, "3", kind, newest, bytes, hash, run] => (3, kind, newest, bytes, hash, Some(run)),
            [MAGIC, "4", kind, newest, bytes, hash, run] => (4, kind, newest, bytes, hash, Some(run)),
            [MAGIC, version, ..] => {
                return Err(format!(
                    "its version is {version}, and this program reads the versions 1 to {VERSION}"
                ));
            }
            _ => return Err("its first line is not that of a state file".into()),
        };
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|error| error.to_string());
        let head = Self {
            version,
            is_closed: kind == "closed",
            newest: Id::new(number(newest)?),
            bytes: number(bytes)?,
            hash: hex(hash)?,
            run: run.map(hex).transpose()?,
        };
        Ok((head, end + 1))
    }
}

/// True if this may be the beginning of a state file, whole or damaged. The server must not touch any other
/// file. A disk can lose a page, which then reads as zeros.
pub fn looks_like_ours(file: &[u8]) -> bool {
    let begin = &file[..file.len().min(MAGIC.len())];
    let same = begin.iter().zip(MAGIC.as_bytes()).filter(|(a, b)| a == b).count();
    same >= begin.len() / 2 || begin.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head =
        Head { version: VERSION, is_closed: true, newest: Id::new(7), bytes: 10, hash: 0xabc, run: Some(1) };

    #[test]
    fn a_line_is_read_as_it_was_written_and_no_damage_of_it_is_overlooked() {
        let line = HEAD.line();
        assert_eq!(Head::parse(line.as_bytes()), Ok((HEAD, line.len())));
        assert!(line.len() <= MAX_BYTES);
        for at in 0..line.len() {
            assert!(Head::parse(&line.as_bytes()[..at]).is_err());
            for bit in 0..8 {
                let mut damaged = line.clone().into_bytes();
                damaged[at] ^= 1 << bit;
                assert!(Head::parse(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    /// This line was written by the first release.
    #[test]
    fn the_line_of_version_1_is_read() {
        let line =
            "rejoin-state 1 closed 1795707552820824 00000000000000051307 b1221b0aff9ff770 57f2bcb4d44856ec\n";
        let (head, _) = Head::parse(line.as_bytes()).expect("a first line");
        assert_eq!(head.version, 1);
        assert_eq!((head.is_closed, head.newest.get(), head.bytes), (true, 1_795_707_552_820_824, 51_307));
        assert_eq!((head.hash, head.run), (0xb122_1b0a_ff9f_f770, None));
    }

    #[test]
    fn a_newer_version_is_named() {
        let words = "rejoin-state 5 closed anything";
        let line = format!("{words} {:016x}\n", xxh3_64(words.as_bytes()));
        let why = Head::parse(line.as_bytes()).expect_err("a newer version");
        assert!(why.starts_with("its version is 5, "), "{why}");
    }

    #[test]
    fn zeros_and_cut_files_are_ours_and_other_files_are_not() {
        let zeros = [0; 4096];
        for ours in [&b""[..], b"r", b"rejoin-", b"rejoin-state 1", &zeros[..1], &zeros] {
            assert!(looks_like_ours(ours), "{ours:?}");
        }
        for other in [
            &b"hello"[..],
            b"root:x:0:0:root",
            b"{\"a\":1}",
            b"listen = \"127.0.0.1:1\"",
            b"\0\0\0\0ELF12345",
        ] {
            assert!(!looks_like_ours(other), "{other:?}");
        }
    }
}
