//! The answers of the backend that still count.

use std::time::{Duration, SystemTime};

use hashlink::LruCache;
use tokio::time::Instant;

use super::Verdict;

/// How many answers are kept, and how many bytes they may have had together.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: usize = 64 << 20;
/// How long a refusal counts.
const REFUSED_FOR: Duration = Duration::from_secs(10);

pub struct Kept {
    entries: LruCache<[u8; 32], Entry>,
    bytes: usize,
}

struct Entry {
    verdict: Verdict,
    /// A refusal counts up to here.
    until: Instant,
    bytes: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { entries: LruCache::new_unbounded(), bytes: 0 }
    }
}

impl Kept {
    /// The answer for this digest, if it still counts, and if it came after `after`.
    pub fn find(&mut self, digest: &[u8; 32], after: Option<SystemTime>) -> Option<Verdict> {
        let entry = self.entries.get(digest)?;
        let counts = match &entry.verdict {
            Verdict::Granted(answer) => {
                answer.at + answer.lasts > SystemTime::now() && after.is_none_or(|after| answer.at > after)
            }
            // A client that asks again was granted something before, and only a new refusal ends that.
            Verdict::Refused(..) => entry.until > Instant::now(),
            Verdict::Away => false,
        };
        counts.then(|| entry.verdict.clone())
    }

    /// Keeps an answer that had so many bytes. A missing answer is not kept.
    pub fn put(&mut self, digest: [u8; 32], verdict: &Verdict, bytes: usize, now: Instant) {
        if matches!(verdict, Verdict::Away) {
            return;
        }
        let entry = Entry { verdict: verdict.clone(), until: now + REFUSED_FOR, bytes };
        self.bytes += bytes;
        self.bytes -= self.entries.insert(digest, entry).map_or(0, |before| before.bytes);
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some((_, oldest)) = self.entries.remove_lru() else { break };
            self.bytes -= oldest.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Code;

    fn digest(number: usize) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_for_10_seconds_and_what_is_undecided_never() {
        let (mut kept, refused) = (Kept::default(), Verdict::Refused(Code::Unauthorized, None));
        kept.put(digest(1), &refused, 1, Instant::now());
        kept.put(digest(2), &Verdict::Away, 1, Instant::now());
        assert!(kept.find(&digest(1), None).is_some() && kept.find(&digest(2), None).is_none());
        tokio::time::advance(REFUSED_FOR).await;
        assert!(kept.find(&digest(1), None).is_none());
    }

    #[tokio::test]
    async fn answers_are_kept_up_to_a_number_and_a_size() {
        let (mut kept, refused) = (Kept::default(), Verdict::Refused(Code::Forbidden, None));
        for number in 0..=MAX_ENTRIES {
            kept.put(digest(number), &refused, 1, Instant::now());
        }
        assert_eq!((kept.entries.len(), kept.bytes), (MAX_ENTRIES, MAX_ENTRIES));
        assert!(kept.find(&digest(0), None).is_none() && kept.find(&digest(1), None).is_some());
        for _ in 0..3 {
            kept.put(digest(7), &refused, MAX_BYTES, Instant::now());
            assert_eq!((kept.entries.len(), kept.bytes), (1, MAX_BYTES), "the largest pushes out the others");
        }
    }
}
