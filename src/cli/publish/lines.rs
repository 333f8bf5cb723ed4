//! Standard input, line by line. The lines that are there are sent together, and no more are read before
//! those are stored.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    io,
};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Stdin, stdin};

/// The limits of one request in messages and in bytes: enough to make requests cheap, and less than proxies
/// refuse.
const BATCH_LINES: usize = 1_000;
const BATCH_BYTES: usize = 256 << 10;
/// The longest line that is accepted: more than any server lets a client publish.
const MAX_LINE_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub struct Line {
    /// Counted from 1; 0 is the DATA of the command line.
    pub number: u64,
    /// Without the line feed.
    pub bytes: Vec<u8>,
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => f.write_str("the message"),
            number => write!(f, "line {number}"),
        }
    }
}

pub struct Lines<R> {
    input: BufReader<R>,
    read: u64,
}

impl Lines<Stdin> {
    pub fn of_stdin() -> Self {
        Self::of(stdin())
    }
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn of(input: R) -> Self {
        Self { input: BufReader::with_capacity(BATCH_BYTES, input), read: 0 }
    }

    /// Waits for a line, and returns it with the lines that have already arrived. The batch is empty at the
    /// end of the input.
    pub async fn next_batch(&mut self) -> io::Result<VecDeque<Line>> {
        let mut batch = VecDeque::new();
        let mut bytes = 0;
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
            if !batch.is_empty() && memchr::memchr(b'\n', self.input.buffer()).is_none() {
                break;
            }
            let Some(line) = self.next().await? else { break };
            bytes += line.bytes.len();
            batch.push_back(line);
        }
        Ok(batch)
    }

    async fn next(&mut self) -> io::Result<Option<Line>> {
        let number = self.read + 1;
        let mut bytes = Vec::new();
        loop {
            let read = self.input.fill_buf().await?;
            if read.is_empty() && bytes.is_empty() {
                return Ok(None);
            }
            let end = memchr::memchr(b'\n', read);
            bytes.extend_from_slice(&read[..end.unwrap_or(read.len())]);
            let is_over = end.is_some() || read.is_empty();
            let taken = end.map_or(read.len(), |end| end + 1);
            self.input.consume(taken);
            if bytes.len() > MAX_LINE_BYTES {
                return Err(io::Error::other(format!("line {number} has more than {MAX_LINE_BYTES} bytes")));
            }
            if is_over {
                self.read = number;
                return Ok(Some(Line { number, bytes }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn batches(input: &[u8]) -> Vec<Vec<String>> {
        let mut lines = Lines::of(input);
        let mut batches = Vec::new();
        loop {
            let batch = lines.next_batch().await.expect("memory can be read");
            if batch.is_empty() {
                return batches;
            }
            let text = |line: &Line| String::from_utf8(line.bytes.clone()).expect("UTF-8");
            batches.push(batch.iter().map(text).collect());
        }
    }

    #[tokio::test]
    async fn every_line_is_a_message_even_if_it_is_empty_or_has_no_end() {
        assert_eq!(batches(b"").await, Vec::<Vec<String>>::new());
        assert_eq!(batches(b"a\n\nb\r\n").await, [["a", "", "b\r"]]);
        assert_eq!(batches(b"\n").await, [[""]]);
        assert_eq!(batches(b"a\nb").await.concat(), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_batch_is_bounded_by_lines_and_by_bytes() {
        let many = batches("x\n".repeat(2 * BATCH_LINES + 1).as_bytes()).await;
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [BATCH_LINES, BATCH_LINES, 1]);
        let long = format!("{}\n", "x".repeat(BATCH_BYTES / 2));
        let long = batches(long.repeat(5).as_bytes()).await;
        assert!(long.iter().all(|batch| batch.len() <= 2), "too much in one request");
        assert_eq!(long.concat().len(), 5);
    }
}
