//! Standard input, line by line.

use std::io;

use async_stream::stream;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_stream::Stream;

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;
/// The longest line that is accepted: more than any server lets a client publish.
const MAX_LINE_BYTES: usize = 64 << 20;

/// The lines of `input`, without their line feeds. If it cannot be read, they end, and `failure` says why.
pub fn lines<'a>(
    input: impl AsyncRead + Unpin + Send + 'a,
    failure: &'a mut Option<io::Error>,
) -> impl Stream<Item = Vec<u8>> + Send + 'a {
    stream! {
        let mut input = BufReader::with_capacity(READ_BYTES, input);
        for number in 1_u64.. {
            match next(&mut input, number).await {
                Ok(Some(line)) => yield line,
                Ok(None) => break,
                Err(error) => {
                    *failure = Some(error);
                    break;
                }
            }
        }
    }
}

async fn next(input: &mut BufReader<impl AsyncRead + Unpin>, number: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        let read = input.fill_buf().await?;
        if read.is_empty() {
            return Ok((!bytes.is_empty()).then_some(bytes));
        }
        let end = memchr::memchr(b'\n', read);
        bytes.extend_from_slice(&read[..end.unwrap_or(read.len())]);
        let taken = end.map_or(read.len(), |end| end + 1);
        input.consume(taken);
        if bytes.len() > MAX_LINE_BYTES {
            return Err(io::Error::other(format!("line {number} has more than {MAX_LINE_BYTES} bytes")));
        }
        if end.is_some() {
            return Ok(Some(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    async fn read(input: impl AsyncRead + Unpin + Send) -> (Vec<String>, Option<io::Error>) {
        let mut failure = None;
        let text = |line| String::from_utf8(line).expect("UTF-8");
        let lines = lines(input, &mut failure).map(text).collect().await;
        (lines, failure)
    }

    #[tokio::test]
    async fn every_line_is_a_message_even_if_it_is_empty_or_has_no_end() {
        for (input, expected) in
            [("", &[][..]), ("a\n\nb\r\n", &["a", "", "b\r"]), ("\n", &[""]), ("a\nb", &["a", "b"])]
        {
            let (lines, failure) = read(input.as_bytes()).await;
            assert!(lines == expected && failure.is_none(), "{input:?}: {lines:?}, {failure:?}");
        }
    }

    #[tokio::test]
    async fn the_lines_before_one_that_is_too_long_still_come() {
        let long = format!("a\n{}", "x".repeat(MAX_LINE_BYTES + 1));
        let (lines, failure) = read(long.as_bytes()).await;
        assert_eq!(lines, ["a"]);
        assert!(failure.expect("it is too long").to_string().starts_with("line 2 has more than"));
    }
}
