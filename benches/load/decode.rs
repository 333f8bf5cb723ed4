//! Cuts the bytes of one connection into records: WebSocket frames, SSE blocks, NDJSON lines, HTTP answers.
//! It expects well-formed input and fails on any other; it knows nothing of sockets.

use std::mem;

use memchr::{memchr, memmem};

use crate::Outcome;

/// How the bytes after the response head are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    WebSocket,
    Sse,
    Ndjson,
    /// Any number of HTTP answers one after another, each with a `Content-Length`.
    Answers,
}

/// One received record.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A message as the transport carries it: an envelope, or for raw SSE the block.
    Message(&'a [u8]),
    /// `open`, `gap`, `cursor`, `closing`.
    Control(&'a [u8]),
    /// A WebSocket ping with its payload.
    Ping(&'a [u8]),
    /// The body of an answer.
    Answer(&'a [u8]),
}

pub struct Decoder {
    framing: Framing,
    stage: Stage,
    /// The start of a head or record whose end has not arrived yet.
    carry: Vec<u8>,
}

enum Stage {
    Head,
    /// The records follow each other without any other bytes.
    Plain,
    Chunked(Chunk),
    /// This many bytes of an answer's body are still missing.
    Answer(usize),
}

#[derive(Clone, Copy)]
enum Chunk {
    Size(usize),
    Data(usize),
    /// The line end after the data.
    End,
}

impl Decoder {
    /// Begins with an HTTP response head.
    pub fn http(framing: Framing) -> Self {
        Self { framing, stage: Stage::Head, carry: Vec::new() }
    }

    /// Begins with the first record, in the transfer coding that the transport has over HTTP/1.1.
    pub fn headless(framing: Framing) -> Self {
        let stage = match framing {
            Framing::WebSocket => Stage::Plain,
            Framing::Sse | Framing::Ndjson => Stage::Chunked(Chunk::Size(0)),
            Framing::Answers => Stage::Head,
        };
        Self { framing, stage, carry: Vec::new() }
    }

    /// Passes every record that `bytes` completes to `each`.
    pub fn feed(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Record<'_>)) -> Outcome<()> {
        while !bytes.is_empty() {
            match self.stage {
                Stage::Head => bytes = self.head(bytes)?,
                Stage::Plain => {
                    self.records(bytes, each)?;
                    bytes = &[];
                }
                Stage::Chunked(chunk) => bytes = self.chunk(chunk, bytes, each)?,
                Stage::Answer(missing) => {
                    let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                    self.answer(missing, part, each);
                    bytes = rest;
                }
            }
            // An answer without a body is complete with its head.
            if matches!(self.stage, Stage::Answer(0)) {
                self.answer(0, &[], each);
            }
        }
        Ok(())
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Outcome<&'a [u8]> {
        const END: &[u8] = b"\r\n\r\n";
        let before = self.carry.len();
        self.carry.extend_from_slice(bytes);
        let Some(end) = memmem::find(&self.carry, END).map(|at| at + END.len()) else { return Ok(&[]) };
        let head = mem::take(&mut self.carry);
        let rest = &bytes[end - before..];
        let status = head.get(9..12).unwrap_or_default();
        if !matches!(status, b"101" | b"200" | b"201") {
            return Err(format!(
                "refused: {} {}",
                String::from_utf8_lossy(&head[..end]).trim().replace("\r\n", ", "),
                String::from_utf8_lossy(rest)
            )
            .into());
        }
        self.stage = match self.framing {
            Framing::WebSocket => Stage::Plain,
            Framing::Answers => {
                Stage::Answer(content_length(&head[..end]).ok_or("an answer without a length")?)
            }
            Framing::Sse | Framing::Ndjson if memmem::find(&head[..end], b"chunked").is_some() => {
                Stage::Chunked(Chunk::Size(0))
            }
            Framing::Sse | Framing::Ndjson => Stage::Plain,
        };
        Ok(rest)
    }

    fn chunk<'a>(
        &mut self,
        chunk: Chunk,
        bytes: &'a [u8],
        each: &mut impl FnMut(Record<'_>),
    ) -> Outcome<&'a [u8]> {
        let (next, rest) = match chunk {
            Chunk::Size(size) => match bytes[0] {
                b'\r' => (Chunk::Size(size), &bytes[1..]),
                b'\n' if size == 0 => return Err("the stream ended".into()),
                b'\n' => (Chunk::Data(size), &bytes[1..]),
                digit => {
                    let digit = char::from(digit).to_digit(16).ok_or("a chunk without a size")?;
                    (Chunk::Size(size * 16 + digit as usize), &bytes[1..])
                }
            },
            Chunk::Data(size) => {
                let (part, rest) = bytes.split_at(size.min(bytes.len()));
                self.records(part, each)?;
                let next = if part.len() == size { Chunk::End } else { Chunk::Data(size - part.len()) };
                (next, rest)
            }
            Chunk::End if bytes[0] == b'\n' => (Chunk::Size(0), &bytes[1..]),
            Chunk::End => (Chunk::End, &bytes[1..]),
        };
        self.stage = Stage::Chunked(next);
        Ok(rest)
    }

    fn answer(&mut self, missing: usize, part: &[u8], each: &mut impl FnMut(Record<'_>)) {
        if part.len() < missing {
            self.carry.extend_from_slice(part);
            self.stage = Stage::Answer(missing - part.len());
            return;
        }
        self.stage = Stage::Head;
        if self.carry.is_empty() {
            each(Record::Answer(part));
        } else {
            self.carry.extend_from_slice(part);
            each(Record::Answer(&mem::take(&mut self.carry)));
        }
    }

    fn records(&mut self, bytes: &[u8], each: &mut impl FnMut(Record<'_>)) -> Outcome<()> {
        if self.carry.is_empty() {
            let used = split(self.framing, bytes, each)?;
            self.carry.extend_from_slice(&bytes[used..]);
        } else {
            self.carry.extend_from_slice(bytes);
            let used = split(self.framing, &self.carry, each)?;
            self.carry.drain(..used);
        }
        if self.carry.is_empty() {
            // With ten thousand connections the memory of a large record must not stay reserved.
            self.carry = Vec::new();
        }
        Ok(())
    }
}

/// Passes the complete records at the start of `bytes` to `each`, and returns how many bytes they took.
fn split(framing: Framing, bytes: &[u8], each: &mut impl FnMut(Record<'_>)) -> Outcome<usize> {
    let mut used = 0;
    loop {
        let rest = &bytes[used..];
        let taken = match framing {
            Framing::WebSocket => frame(rest, each)?,
            Framing::Sse => memmem::find(rest, b"\n\n").map_or(0, |end| {
                let block = &rest[..end];
                let control = memmem::find(block, b"event: rejoin.").is_some();
                each(if control { Record::Control(block) } else { Record::Message(block) });
                end + 2
            }),
            Framing::Ndjson => memchr(b'\n', rest).map_or(0, |end| {
                each(envelope(&rest[..end]));
                end + 1
            }),
            Framing::Answers => unreachable!("answers are cut by their length"),
        };
        if taken == 0 {
            return Ok(used);
        }
        used += taken;
    }
}

/// RFC 6455 §5.2, unmasked and unfragmented as servers send.
fn frame(bytes: &[u8], each: &mut impl FnMut(Record<'_>)) -> Outcome<usize> {
    let [first, second, ..] = *bytes else { return Ok(0) };
    let (start, length) = match second {
        126 => match bytes.get(2..4) {
            Some(size) => (4, usize::from(u16::from_be_bytes([size[0], size[1]]))),
            None => return Ok(0),
        },
        127 => match bytes.get(2..10) {
            Some(size) => (10, u64::from_be_bytes(size.try_into().expect("eight bytes were taken")) as usize),
            None => return Ok(0),
        },
        size => (2, usize::from(size)),
    };
    let Some(payload) = bytes.get(start..start + length) else { return Ok(0) };
    match first {
        0x81 => each(envelope(payload)),
        0x82 => each(Record::Message(payload)),
        0x89 => each(Record::Ping(payload)),
        0x8a => {}
        0x88 => {
            let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
            return Err(format!("closed by the server: {reason}").into());
        }
        other => return Err(format!("a frame that begins with {other:#04x}").into()),
    }
    Ok(start + length)
}

fn envelope(json: &[u8]) -> Record<'_> {
    if json.starts_with(br#"{"type":"message""#) { Record::Message(json) } else { Record::Control(json) }
}

/// The bytes of a record on the wire, as the server sends it alone.
pub fn encode(framing: Framing, record: &[u8]) -> Vec<u8> {
    match framing {
        Framing::WebSocket => {
            let mut frame = vec![0x81];
            match record.len() {
                0..=125 => frame.push(record.len() as u8),
                size => {
                    frame.push(126);
                    frame.extend((size as u16).to_be_bytes());
                }
            }
            frame.extend(record);
            frame
        }
        Framing::Sse => chunk_of(&[record, b"\n\n"].concat()),
        Framing::Ndjson => chunk_of(&[record, b"\n"].concat()),
        Framing::Answers => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", record.len());
            [head.as_bytes(), record].concat()
        }
    }
}

fn chunk_of(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn content_length(head: &[u8]) -> Option<usize> {
    std::str::from_utf8(head).ok()?.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

/// The string value of a JSON member, found without parsing. The last one counts: an answer's own cursor
/// comes after its messages.
pub fn member<'a>(json: &'a [u8], name: &str) -> Option<&'a str> {
    let key = format!("\"{name}\":\"");
    let start = memmem::rfind(json, key.as_bytes())? + key.len();
    let end = start + memchr(b'"', &json[start..])?;
    std::str::from_utf8(&json[start..end]).ok()
}
