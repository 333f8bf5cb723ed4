//! Messages in DEFLATE (RFC 1951), each compressed by itself.
//!
//! Two messages are never compressed together, so the length of one tells nothing of the other. And the
//! bytes of a message are the same for all connections, so they are made once for all of them.

use std::cell::RefCell;

use flate2::{Compress, Compression, FlushCompress};

/// Shorter bytes stay as they are: to compress them saves less than a quarter.
pub const MIN_BYTES: usize = 256;
/// Longer bytes stay as they are, too: a thread would be busy with them for more than ten milliseconds.
const MAX_BYTES: usize = 1 << 20;
/// The fastest level. The next one takes twice as long, for a tenth fewer bytes.
const LEVEL: u32 = 1;
/// The end of every flush (RFC 1951 §3.2.4): the length of an empty stored block.
pub const FLUSH_END: &[u8] = &[0, 0, 0xff, 0xff];

/// A compressor of 300 KiB, and its output. Each thread has one, and no connection has any.
struct Compressor {
    state: Compress,
    out: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Compressor> = RefCell::new(Compressor { state: fresh(), out: Vec::new() });
}

fn fresh() -> Compress {
    Compress::new(Compression::new(LEVEL), false)
}

/// Compresses `plain` from an empty window, and gives `then` whole blocks that end with [`FLUSH_END`]. `None` if that
/// is not worth it.
pub fn compressed<T>(plain: &[u8], then: impl FnOnce(&[u8]) -> T) -> Option<T> {
    if !(MIN_BYTES..=MAX_BYTES).contains(&plain.len()) {
        return None;
    }
    COMPRESSOR.with_borrow_mut(|Compressor { state, out }| {
        state.reset();
        out.clear();
        // Room for bytes that cannot be compressed: nine bits for each.
        out.reserve_exact(plain.len() + plain.len() / 8 + 64);
        let done = state.compress_vec(plain, out, FlushCompress::Sync);
        // A full buffer means that there is more.
        let is_whole = done.is_ok() && state.total_in() == plain.len() as u64 && out.len() < out.capacity();
        if !is_whole {
            // A reset does not forget output that found no room, and the next message would panic.
            *state = fresh();
        }
        let is_worth = is_whole && out.len() < plain.len() && out.ends_with(FLUSH_END);
        let result = is_worth.then(|| then(out));
        // A large message is rare, and its buffer would stay with every thread.
        out.shrink_to(KEPT_BYTES);
        result
    })
}

/// The room for output that a thread keeps.
const KEPT_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn inflate(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(2 << 20);
        Decompress::new(false).decompress_vec(bytes, &mut plain, FlushDecompress::Sync).expect("it is whole");
        plain
    }

    #[test]
    fn the_same_bytes_compress_to_the_same_and_stand_behind_any_others() {
        let one = r#"{"sku":"A-1","price":1}"#.repeat(20).into_bytes();
        let other: Vec<_> = one.iter().rev().copied().collect();
        let first = compressed(&one, <[u8]>::to_vec).expect("it is worth it");
        let second = compressed(&other, <[u8]>::to_vec).expect("it is worth it");
        assert_eq!(
            compressed(&one, <[u8]>::to_vec),
            Some(first.clone()),
            "nothing is left of what came before"
        );
        assert_eq!(inflate(&[second, first].concat()), [other, one].concat());
    }

    #[test]
    fn short_bytes_and_those_that_do_not_shrink_stay_as_they_are() {
        let noise: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        assert_eq!(compressed(&[b'x'; MIN_BYTES - 1], <[u8]>::len), None);
        assert!(compressed(&[b'x'; MIN_BYTES], <[u8]>::len).is_some_and(|len| len < 32));
        if let Some(len) = compressed(&noise, <[u8]>::len) {
            assert!(len < noise.len());
        }
        // After output that found no room, a reset compressor panics.
        let mut random = StdRng::seed_from_u64(7);
        for size in [MIN_BYTES, 4 << 10, 32 << 10, 60 << 10, 200 << 10, MAX_BYTES].repeat(4) {
            let noise: Vec<u8> = (0..size).map(|_| random.random()).collect();
            assert_eq!(compressed(&noise, <[u8]>::len), None, "{size}");
        }
        assert_eq!(compressed(&vec![b'x'; MAX_BYTES + 1], <[u8]>::len), None);
        let large = vec![b'x'; MAX_BYTES];
        let bytes = compressed(&large, <[u8]>::to_vec).expect("it is worth it");
        assert_eq!(inflate(&bytes).len(), large.len());
    }
}
