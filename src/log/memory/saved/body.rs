//! The bytes behind the first line of a state file, hashed while they are written or read.

use std::io::{self, BufReader, BufWriter, Read, Write};

use xxhash_rust::xxh3::Xxh3;

/// How many bytes are read or written at once. A state file is never in memory as a whole.
const PIECE_BYTES: usize = 256 << 10;

/// Counts and hashes the bytes that are written.
pub struct Writer<W: Write> {
    to: BufWriter<W>,
    bytes: u64,
    hash: Xxh3,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Self {
        Self { to: BufWriter::with_capacity(PIECE_BYTES, to), bytes: 0, hash: Xxh3::new() }
    }

    /// How many bytes were written, and their hash.
    pub fn finish(mut self) -> io::Result<(u64, u64)> {
        self.to.flush()?;
        Ok((self.bytes, self.hash.digest()))
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads in pieces, and hashes each piece.
pub struct Reader<R>(BufReader<Hashed<R>>);

struct Hashed<R> {
    from: R,
    hash: Xxh3,
    failure: Option<io::Error>,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        let hashed = Hashed { from, hash: Xxh3::new(), failure: None };
        Self(BufReader::with_capacity(PIECE_BYTES, hashed))
    }

    /// Reads the rest, and returns the hash of all bytes.
    ///
    /// # Errors
    /// If any read failed, also one whose error the reader of the content did not pass on.
    pub fn finish(mut self) -> io::Result<u64> {
        if let Some(error) = self.0.get_mut().failure.take() {
            return Err(error);
        }
        io::copy(&mut self.0, &mut io::sink())?;
        Ok(self.0.get_ref().hash.digest())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.from.read(bytes) {
            Ok(count) => {
                self.hash.update(&bytes[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failure = Some(io::Error::new(error.kind(), error.to_string()));
                Err(error)
            }
        }
    }
}
