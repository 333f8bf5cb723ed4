//! The input: a file as one message, or standard input line by line.

use std::{io, path::Path};

use async_stream::stream;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
};
use tokio_stream::Stream;

/// How much is read at once.
const READ_BYTES: usize = 256 << 10;
/// The longest line or file that is accepted: more than any server lets a client publish.
const MAX_BYTES: usize = 64 << 20;

/// All bytes of a file; `-` is standard input.
///
/// # Errors
/// In words, if it cannot be read or is too long.
pub async fn file(path: &Path) -> Result<Vec<u8>, String> {
    let read = if path == Path::new("-") {
        whole(tokio::io::stdin()).await
    } else {
        match File::open(path).await {
            Ok(file) => whole(file).await,
            Err(error) => Err(error),
        }
    };
    read.map_err(|error| format!("--file {}: {error}", path.display()))
}

async fn whole(input: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

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
        if bytes.len() > MAX_BYTES {
            return Err(io::Error::other(format!("line {number} has more than {MAX_BYTES} bytes")));
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
        let long = format!("a\n{}", "x".repeat(MAX_BYTES + 1));
        let (lines, failure) = read(long.as_bytes()).await;
        assert_eq!(lines, ["a"]);
        assert!(failure.expect("it is too long").to_string().starts_with("line 2 has more than"));
    }

    #[tokio::test]
    async fn a_file_is_read_to_its_limit_and_not_further() {
        let most = "x".repeat(MAX_BYTES);
        assert_eq!(whole(most.as_bytes()).await.expect("it fits").len(), MAX_BYTES);
        assert!(whole(tokio::io::repeat(b'x')).await.is_err(), "it has no end");
    }
}
