//! Answers in gzip (RFC 1952): one stream for each connection, in pieces that all connections share.
//!
//! Each piece is whole blocks of DEFLATE, which stand for themselves and end with a flush. So a client can read it at once,
//! and pieces that were made apart can follow each other. Only the checksum at the end belongs to one stream.

use bytes::{BufMut, Bytes, BytesMut};
use crc32fast::Hasher;
use http::{HeaderMap, HeaderValue, header};

use super::deflate;

/// The head of a stream: DEFLATE, without a name, a time or a system.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty block that is the last one.
const LAST_BLOCK: [u8; 2] = [3, 0];
/// An empty stored block. Some clients, such as those in Go, hand on what came before it only when they see one.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// The longest stored block (RFC 1951 §3.2.4).
const MAX_STORED_BYTES: usize = 0xffff;

/// True if the client asks for gzip (RFC 9110 §12.5.3), and does not like plain bytes better.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let (mut gzip, mut plain) = (0, 0);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            let weight = weight.map_or(1000, thousandths);
            match name.as_str() {
                "gzip" | "x-gzip" => gzip = weight,
                "identity" => plain = weight,
                _ => {}
            }
        }
    }
    gzip > 0 && gzip >= plain
}

/// A weight of up to three decimals. One that cannot be read is 0, which is the safe answer.
fn thousandths(weight: &str) -> u32 {
    let weight = weight.parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight));
    weight.map_or(0, |weight| (weight * 1000.0) as u32)
}

/// Names the coding in an answer that a client gets in gzip, and what it depends on in any other.
pub fn note(headers: &mut HeaderMap, is_coded: bool) {
    if is_coded {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
}

/// The checksum of plain bytes, and how many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    crc: u32,
    bytes: u64,
}

impl Sum {
    pub fn of(plain: &[u8]) -> Self {
        Self { crc: crc32fast::hash(plain), bytes: plain.len() as u64 }
    }

    fn hasher(self) -> Hasher {
        Hasher::new_with_initial_len(self.crc, self.bytes)
    }

    /// The sum of these bytes and those that follow them.
    pub fn then(self, later: Self) -> Self {
        if later.bytes == 0 {
            return self;
        }
        let mut hasher = self.hasher();
        hasher.combine(&later.hasher());
        Self { crc: hasher.finalize(), bytes: self.bytes + later.bytes }
    }

    /// The sum of the bytes after the first ones, which have the sum `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        let bytes = self.bytes - earlier.bytes;
        // The checksum of a whole is that of its beginning, moved on by the length of the rest, plus that of the rest.
        let moved = earlier.then(Self { crc: 0, bytes });
        Self { crc: self.crc ^ moved.crc, bytes }
    }
}

/// Writes a piece with these bytes, which no client has to wait for.
pub fn write_piece(out: &mut BytesMut, plain: &[u8]) {
    if plain.is_empty() || deflate::compressed(plain, |bytes| out.extend_from_slice(bytes)).is_some() {
        return;
    }
    write_stored(out, plain);
    out.extend_from_slice(&FLUSH);
}

/// Writes stored blocks with these bytes.
fn write_stored(out: &mut BytesMut, plain: &[u8]) {
    for block in plain.chunks(MAX_STORED_BYTES) {
        let length = block.len() as u16;
        out.put_u8(0);
        out.put_u16_le(length);
        out.put_u16_le(!length);
        out.extend_from_slice(block);
    }
}

/// The piece with these bytes.
pub fn piece(plain: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    write_piece(&mut out, plain);
    out.freeze()
}

/// One stream, as far as its bytes were given out.
#[derive(Debug, Default)]
pub struct Gzip {
    sum: Sum,
    has_begun: bool,
}

impl Gzip {
    /// Writes the bytes of one frame. The first ones follow the head of the stream.
    pub fn write(&mut self, out: &mut BytesMut, plain: &[u8]) {
        self.begin(out);
        write_piece(out, plain);
        self.gave(Sum::of(plain));
    }

    /// Writes bytes as they are, and nothing for none. A client may have to wait for them until the end.
    pub fn write_stored(&mut self, out: &mut BytesMut, plain: &[u8]) {
        self.begin(out);
        write_stored(out, plain);
        self.gave(Sum::of(plain));
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.has_begun, true) {
            out.extend_from_slice(&HEAD);
        }
    }

    /// Counts a piece that was made elsewhere, and that has left or leaves next.
    pub fn gave(&mut self, plain: Sum) {
        self.sum = self.sum.then(plain);
    }

    /// Writes the end of the stream.
    pub fn end(&self, out: &mut BytesMut) {
        out.extend_from_slice(&LAST_BLOCK);
        out.put_u32_le(self.sum.crc);
        // Modulo 2^32, as RFC 1952 has it.
        out.put_u32_le(self.sum.bytes as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn asked(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(value).expect("a value"));
        is_asked(&headers)
    }

    #[test]
    fn gzip_is_sent_only_to_a_client_that_names_it_and_gives_it_a_weight() {
        for value in
            ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, GZIP;q=0.8", "x-gzip", "deflate,gzip;q=0.001"]
        {
            assert!(asked(value), "{value}");
        }
        for value in
            ["", "*", "identity", "br", "gzip;q=0", "gzip; q=0.000", "gzip;q=x", "gzip;q=0.5, identity"]
        {
            assert!(!asked(value), "{value}");
        }
        assert!(!is_asked(&HeaderMap::new()));
    }

    #[test]
    fn pieces_that_were_made_apart_are_one_stream_with_its_checksum() {
        let frames = ["short".to_owned(), "a longer frame ".repeat(40), String::new(), "x".repeat(70_000)];
        let (mut gzip, mut out) = (Gzip::default(), BytesMut::new());
        gzip.write(&mut out, frames[0].as_bytes());
        for frame in &frames[1..] {
            out.extend_from_slice(&piece(frame.as_bytes()));
            gzip.gave(Sum::of(frame.as_bytes()));
        }
        gzip.end(&mut out);
        let mut plain = String::new();
        // It checks the sum.
        GzDecoder::new(&out[..]).read_to_string(&mut plain).expect("one whole stream");
        assert_eq!(plain, frames.concat());
    }

    #[test]
    fn the_sum_of_a_part_follows_from_the_sums_of_the_whole_and_the_beginning() {
        let text = "the quick brown fox".repeat(9);
        for at in [0, 1, 50, text.len()] {
            let (before, after) = text.as_bytes().split_at(at);
            let whole = Sum::of(before).then(Sum::of(after));
            assert_eq!(whole, Sum::of(text.as_bytes()));
            assert_eq!(whole.since(Sum::of(before)), Sum::of(after));
        }
    }

    #[test]
    fn stored_bytes_are_followed_by_an_empty_block() {
        let incompressible: Vec<u8> =
            (0..70_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let bytes = piece(&incompressible);
        assert!(bytes.ends_with(deflate::FLUSH_END));
        assert_eq!(piece(b"x")[..], [0, 1, 0, 0xfe, 0xff, b'x', 0, 0, 0, 0xff, 0xff]);
    }
}
