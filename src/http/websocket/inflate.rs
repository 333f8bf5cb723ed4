//! Gives tungstenite, which knows no compression, plain frames instead of a client's compressed messages (RFC 7692 §6.2).
//!
//! All other frames pass as they came. A message that must not be is given as a frame that tungstenite refuses for the
//! same reason, so each mistake has one close code, compressed or not.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};

/// Follows a message: the end of the flush that its client has left out (RFC 7692 §7.2.2), and an empty last block. That
/// block is found only if the message was whole.
const END: &[u8] = &[0, 0, 0xff, 0xff, 3, 0];
const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
/// The bits that no extension has given a meaning.
const RESERVED: u8 = 0x30;
const OPCODE: u8 = 0x0f;
const CONTROL: u8 = 0x08;
const MASKED: u8 = 0x80;
/// The longest head: two bytes, a length of eight, and a mask.
const MAX_HEAD_BYTES: usize = 14;
/// While so many bytes are ready, no more are made: a short message may become a long one.
const READY_BYTES: usize = 512;
/// How many bytes are decompressed at once.
const STEP_BYTES: usize = 16 << 10;

thread_local! {
    // Each message begins with an empty window, so no connection needs a state of its own. A reset for each message is cheap
    // with zlib-rs: it forgets the window, and does not clear it.
    static STATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// The frames of one client.
#[derive(Debug)]
pub struct Inflating {
    /// A message may have so many bytes, compressed and plain.
    max_bytes: usize,
    head: [u8; MAX_HEAD_BYTES],
    head_bytes: usize,
    /// How many bytes of the current payload have arrived, and how many have not.
    arrived: usize,
    missing: u64,
    /// The current payload belongs to a compressed message.
    is_collecting: bool,
    /// The kind of the compressed message under way, and its bytes.
    message: Option<u8>,
    collected: Vec<u8>,
    /// Frames for tungstenite, and how many of these bytes it has read.
    ready: Vec<u8>,
    given: usize,
    /// Bytes as they came, which are looked at when nothing is ready.
    rest: Vec<u8>,
    /// A message was refused, and the rest is dropped.
    is_over: bool,
}

/// Why a message is refused.
enum Refused {
    TooLong,
    Broken,
}

impl Inflating {
    pub fn new(max_bytes: usize) -> Self {
        let (head_bytes, arrived, missing, is_collecting, message, given, is_over) = Default::default();
        let (head, collected, ready, rest) = ([0; MAX_HEAD_BYTES], Vec::new(), Vec::new(), Vec::new());
        Self {
            max_bytes,
            head,
            head_bytes,
            arrived,
            missing,
            is_collecting,
            message,
            collected,
            ready,
            given,
            rest,
            is_over,
        }
    }

    /// How many bytes of a message that has arrived whole are held until tungstenite has all of it, here and there.
    pub fn held_bytes(&self) -> usize {
        self.ready.capacity() + self.given
    }

    /// True if tungstenite has been given all that has arrived and belongs to it.
    pub fn is_at_rest(&self) -> bool {
        self.ready.is_empty() && self.rest.is_empty()
    }

    /// A message may have so many bytes from now on.
    pub fn limit(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// Gives the bytes that are ready, as many as fit. `None` if there are none.
    pub fn give(&mut self, bytes: &mut [u8]) -> Option<usize> {
        if self.ready.is_empty() && !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.take(&rest);
        }
        let ready = &self.ready[self.given..];
        if ready.is_empty() {
            return None;
        }
        let length = ready.len().min(bytes.len());
        bytes[..length].copy_from_slice(&ready[..length]);
        self.given += length;
        if self.given == self.ready.len() {
            // A quiet connection keeps no buffer.
            (self.ready, self.given) = (Vec::new(), 0);
        }
        Some(length)
    }

    /// These bytes have arrived, and nothing is ready.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_over && self.ready.len() < READY_BYTES {
            let taken = if self.missing > 0 { self.take_payload(bytes) } else { self.take_head(bytes[0]) };
            bytes = &bytes[taken..];
        }
        if !self.is_over {
            self.rest = bytes.to_vec();
        }
    }

    fn take_head(&mut self, byte: u8) -> usize {
        self.head[self.head_bytes] = byte;
        self.head_bytes += 1;
        if self.head_bytes >= 2 && self.head_bytes == self.head_length() {
            self.begin_payload();
        }
        1
    }

    fn length_bytes(&self) -> usize {
        match self.head[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn head_length(&self) -> usize {
        2 + self.length_bytes() + if self.head[1] & MASKED == 0 { 0 } else { 4 }
    }

    fn payload_length(&self) -> u64 {
        let extended = &self.head[2..2 + self.length_bytes()];
        match extended {
            [] => (self.head[1] & !MASKED).into(),
            bytes => bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        }
    }

    fn begin_payload(&mut self) {
        self.missing = self.payload_length();
        self.arrived = 0;
        self.is_collecting = self.is_of_compressed_message();
        if self.is_over {
            return;
        }
        if !self.is_collecting {
            self.ready.extend_from_slice(&self.head[..self.head_bytes]);
        } else if self.missing > self.max_bytes.saturating_sub(self.collected.len()) as u64 {
            return self.refuse(&Refused::TooLong);
        }
        if self.missing == 0 {
            self.end_payload();
        }
    }

    /// Other frames are left to tungstenite. It refuses the bit of compression, and a frame without a mask.
    fn is_of_compressed_message(&mut self) -> bool {
        let (first, second) = (self.head[0], self.head[1]);
        let (opcode, is_compressed) = (first & OPCODE, first & COMPRESSED != 0);
        if opcode & CONTROL != 0 || first & RESERVED != 0 || second & MASKED == 0 {
            return false;
        }
        match (opcode, self.message) {
            // Only the first frame of a message has the bit.
            (0, message) => message.is_some() && !is_compressed,
            // The message before is not whole, which tungstenite does not know.
            (_, Some(_)) => {
                self.refuse(&Refused::Broken);
                false
            }
            (opcode, None) => {
                if is_compressed {
                    self.message = Some(opcode);
                }
                is_compressed
            }
        }
    }

    fn take_payload(&mut self, bytes: &[u8]) -> usize {
        let length = usize::try_from(self.missing).map_or(bytes.len(), |missing| missing.min(bytes.len()));
        let payload = &bytes[..length];
        if self.is_collecting {
            let mask: [u8; 4] =
                self.head[self.head_bytes - 4..self.head_bytes].try_into().expect("a mask is there");
            let unmasked = payload.iter().zip(self.arrived..).map(|(byte, at)| byte ^ mask[at % 4]);
            self.collected.extend(unmasked);
        } else {
            self.ready.extend_from_slice(payload);
        }
        self.arrived += length;
        self.missing -= length as u64;
        if self.missing == 0 {
            self.end_payload();
        }
        length
    }

    fn end_payload(&mut self) {
        self.head_bytes = 0;
        if !self.is_collecting || self.head[0] & FIN == 0 {
            return;
        }
        let Some(opcode) = self.message.take() else { return };
        let mut collected = std::mem::take(&mut self.collected);
        collected.extend_from_slice(END);
        match inflate(&collected, self.max_bytes) {
            Ok(plain) => {
                self.write_head(opcode, plain.len() as u64);
                self.ready.extend_from_slice(&plain);
            }
            Err(refused) => self.refuse(&refused),
        }
    }

    /// A head as clients write it. Its mask changes nothing.
    fn write_head(&mut self, opcode: u8, length: u64) {
        self.ready.extend_from_slice(&[FIN | opcode, MASKED | 127]);
        self.ready.extend_from_slice(&length.to_be_bytes());
        self.ready.extend_from_slice(&[0; 4]);
    }

    fn refuse(&mut self, refused: &Refused) {
        self.is_over = true;
        match refused {
            Refused::TooLong => self.write_head(1, self.max_bytes as u64 + 1),
            Refused::Broken => self.write_head(RESERVED | 1, 0),
        }
    }
}

/// The plain bytes of a whole message. No more than `max_bytes` are made.
fn inflate(mut compressed: &[u8], max_bytes: usize) -> Result<Vec<u8>, Refused> {
    STATE.with_borrow_mut(|state| {
        state.reset(false);
        let mut plain = Vec::new();
        loop {
            plain.reserve(STEP_BYTES.min(max_bytes + 1 - plain.len()));
            let before = (state.total_in(), plain.len());
            let status = state.decompress_vec(compressed, &mut plain, FlushDecompress::Sync);
            let status = status.map_err(|_| Refused::Broken)?;
            let taken = state.total_in() - before.0;
            compressed = &compressed[usize::try_from(taken).expect("it took no more than it was given")..];
            if plain.len() > max_bytes {
                return Err(Refused::TooLong);
            }
            if status == Status::StreamEnd {
                // A message may have a last block itself, and more of them behind it (RFC 7692 §7.2.3.4).
                if compressed.is_empty() || compressed.len() == END.len() {
                    return Ok(plain);
                }
                state.reset(false);
            }
            if taken == 0 && plain.len() == before.1 {
                return Err(Refused::Broken);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::deflate::{FLUSH_END, compressed};

    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// A frame as a client sends it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, MASKED | 127];
        frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(0..).map(|(byte, at): (&u8, usize)| byte ^ MASK[at % 4]));
        frame
    }

    fn message(plain: &[u8]) -> Vec<u8> {
        compressed(plain, |bytes| bytes[..bytes.len() - FLUSH_END.len()].to_vec()).expect("it is worth it")
    }

    fn given(inflating: &mut Inflating) -> Vec<u8> {
        let (mut all, mut bytes) = (Vec::new(), [0; 100]);
        while let Some(length) = inflating.give(&mut bytes) {
            all.extend_from_slice(&bytes[..length]);
        }
        all
    }

    fn plain(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut inflating = Inflating::new(0);
        inflating.write_head(opcode, payload.len() as u64);
        [inflating.ready, payload.to_vec()].concat()
    }

    #[test]
    fn a_compressed_message_becomes_a_plain_frame_however_its_bytes_arrive() {
        let text = "a command that is long enough ".repeat(30).into_bytes();
        let bytes = message(&text);
        let (one, other) = bytes.split_at(bytes.len() / 2);
        let ping = frame(FIN | 9, b"ping");
        let short = frame(FIN | 1, b"plain");
        let stream = [
            frame(COMPRESSED | 1, one),
            ping.clone(),
            frame(0, b""),
            frame(FIN, other),
            short.clone(),
            frame(FIN | COMPRESSED | 2, &bytes),
            frame(FIN | COMPRESSED | 1, &[0]),
        ]
        .concat();
        let expected = [ping, plain(1, &text), short, plain(2, &text), plain(1, b"")].concat();
        for size in [1, 3, 7, 512, stream.len()] {
            let mut inflating = Inflating::new(1 << 10);
            let mut all = Vec::new();
            for piece in stream.chunks(size) {
                inflating.take(piece);
                all.extend(given(&mut inflating));
            }
            assert!(all == expected, "{size}");
        }
    }

    #[test]
    fn a_message_with_a_last_block_is_whole_with_and_without_the_byte_behind_it() {
        // The examples of RFC 7692 §7.2.3.4 and §7.2.3.5.
        let last: &[u8] = &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let two: &[u8] = &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
        for bytes in [last, &[last, &[0]].concat(), two] {
            let mut inflating = Inflating::new(1 << 10);
            inflating.take(&frame(FIN | COMPRESSED | 1, bytes));
            assert_eq!(given(&mut inflating), plain(1, b"Hello"), "{bytes:x?}");
        }
    }

    /// A client that reads no answers has its connection hold what one read has brought, for as long as it likes.
    #[test]
    fn short_messages_that_become_long_are_made_plain_one_at_a_time() {
        let text = vec![b'x'; 10 << 10];
        let stream = frame(FIN | COMPRESSED | 1, &message(&text)).repeat(20);
        assert!(stream.len() < 4 << 10, "{}", stream.len());
        let mut inflating = Inflating::new(16 << 10);
        inflating.take(&stream);
        let (mut all, mut most, mut bytes) = (0, 0, [0; READY_BYTES]);
        while let Some(length) = inflating.give(&mut bytes) {
            all += length;
            most = most.max(inflating.held_bytes());
        }
        assert_eq!(all, 20 * plain(1, &text).len());
        assert!((10 << 10..40 << 10).contains(&most), "{most}");
        assert_eq!(inflating.held_bytes(), 0);
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let bomb = message(&vec![b'x'; 1 << 20]);
        assert!(bomb.len() < 16 << 10, "within the limit: {}", bomb.len());
        let mut inflating = Inflating::new(16 << 10);
        inflating.take(&frame(FIN | COMPRESSED | 1, &bomb));
        assert!(inflating.ready.len() < 16, "only a head");
        assert_eq!(given(&mut inflating)[2..10], ((16_u64 << 10) + 1).to_be_bytes());
        // Not even collected.
        let mut inflating = Inflating::new(16 << 10);
        inflating.take(&frame(COMPRESSED | 1, &[0; 10 << 10]));
        inflating.take(&frame(0, &[0; 7 << 10]));
        assert!(inflating.is_over && inflating.collected.len() == 10 << 10);
        let exact = vec![b'x'; 16 << 10];
        let mut inflating = Inflating::new(16 << 10);
        inflating.take(&frame(FIN | COMPRESSED | 1, &message(&exact)));
        assert_eq!(given(&mut inflating), plain(1, &exact));
    }

    #[test]
    fn frames_that_break_the_rules_reach_tungstenite_as_frames_that_it_refuses() {
        let refused = [FIN | RESERVED | 1];
        let whole = message(&b"a command that is long enough ".repeat(30));
        for (stream, expected) in [
            (frame(FIN | COMPRESSED | 1, &[0xff, 0xff, 0xff]), &refused[..]),
            (frame(FIN | COMPRESSED | 1, &whole[..whole.len() / 2]), &refused),
            (frame(FIN | COMPRESSED | 1, &[0, 9, 0, 0xf6, 0xff, b'x']), &refused),
            ([frame(COMPRESSED | 1, &[0]), frame(FIN | 1, b"x")].concat(), &refused),
            (frame(FIN | COMPRESSED | 9, b""), &[FIN | COMPRESSED | 9]),
            (frame(FIN | COMPRESSED, b"x"), &[FIN | COMPRESSED]),
            ([frame(COMPRESSED | 1, &[0]), frame(FIN | COMPRESSED, b"x")].concat(), &[FIN | COMPRESSED]),
            (vec![FIN | COMPRESSED | 1, 1, 0], &[FIN | COMPRESSED | 1]),
            (frame(FIN | COMPRESSED | 0x20 | 1, b"x"), &[FIN | COMPRESSED | 0x20 | 1]),
        ] {
            let mut inflating = Inflating::new(1 << 10);
            inflating.take(&stream);
            assert_eq!(given(&mut inflating)[..1], *expected, "{stream:x?}");
        }
    }
}
