//! Messages on standard output, each on one line.

use std::{
    io::{self, BufWriter, Stdout, Write, stdout},
    os::fd::AsFd,
};

use rejoin::client::Message;
use tokio::io::{Interest, unix::AsyncFd};

pub struct Printer {
    out: BufWriter<Stdout>,
    json: bool,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        Self { out: BufWriter::new(stdout()), json }
    }

    /// Prints the payload. A message that contains a line feed is printed as its envelope, so that it cannot
    /// look like two messages.
    pub fn print(&mut self, message: &Message) -> io::Result<()> {
        let fits = memchr::memchr(b'\n', &message.payload).is_none();
        let line = if self.json || !fits { &*message.envelope } else { &*message.payload };
        self.out.write_all(line)?;
        self.out.write_all(b"\n")
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Resolves when standard output is a pipe without a reader. Writing would notice that only with the next
/// message.
pub async fn until_reader_gone() {
    #[expect(unsafe_code, reason = "tokio asks its caller for the promise below")]
    // SAFETY: the `AsyncFd` owns the descriptor, so it stays open as long as it is watched.
    let watch = |pipe| unsafe { AsyncFd::register_with_interest(pipe, Interest::ERROR) };
    // Standard output that is no pipe, such as a file, cannot be watched.
    if let Ok(pipe) = stdout().as_fd().try_clone_to_owned()
        && let Ok(pipe) = watch(pipe)
        && let Ok(_gone) = pipe.ready(Interest::ERROR).await
    {
        return;
    }
    std::future::pending().await
}
