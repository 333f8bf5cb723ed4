//! The answers of the backend that still count.

use std::time::{Duration, SystemTime};

use hashlink::LruCache;
use tokio::time::Instant;

use super::Verdict;

/// How many answers are kept, and how many bytes they may have had together.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: usize = 64 << 20;
/// How many of them may be refusals. Anyone can cause these.
const MAX_REFUSALS: usize = 10_000;
/// How long a refusal counts.
const REFUSED_FOR: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Kept {
    granted: Part,
    refused: Part,
}

/// The answers of one kind.
struct Part {
    entries: LruCache<[u8; 32], Entry>,
    bytes: usize,
}

struct Entry {
    verdict: Verdict,
    /// A refusal counts up to here.
    until: Instant,
    bytes: usize,
}

impl Default for Part {
    fn default() -> Self {
        Self { entries: LruCache::new_unbounded(), bytes: 0 }
    }
}

impl Kept {
    /// The answer for this digest, if it still counts, and if it came after `after`.
    pub fn find(&mut self, digest: &[u8; 32], after: Option<SystemTime>) -> Option<Verdict> {
        let entry = match self.granted.entries.get(digest) {
            Some(entry) => entry,
            None => self.refused.entries.get(digest)?,
        };
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

    /// Forgets the answers for this subject.
    pub fn forget(&mut self, subject: &str) {
        let Part { entries, bytes } = &mut self.granted;
        entries.retain(|_, entry| {
            let is_meant =
                matches!(&entry.verdict, Verdict::Granted(answer) if answer.subject() == Some(subject));
            *bytes -= if is_meant { entry.bytes } else { 0 };
            !is_meant
        });
    }

    /// Forgets what was granted to anybody.
    pub fn forget_granted(&mut self) {
        self.granted = Part::default();
    }

    /// Keeps an answer that had so many bytes. A missing answer is not kept.
    pub fn put(&mut self, digest: [u8; 32], verdict: &Verdict, bytes: usize, now: Instant) {
        let entry = Entry { verdict: verdict.clone(), until: now + REFUSED_FOR, bytes };
        let Self { granted, refused } = self;
        let (part, other, max) = match verdict {
            Verdict::Granted(_) => (granted, refused, MAX_ENTRIES - MAX_REFUSALS),
            Verdict::Refused(..) => (refused, granted, MAX_REFUSALS),
            Verdict::Away => return,
        };
        other.remove(&digest);
        // Each part has its share of the bytes too.
        part.put(digest, entry, max, MAX_BYTES / MAX_ENTRIES * max);
    }
}

impl Part {
    fn remove(&mut self, digest: &[u8; 32]) {
        self.bytes -= self.entries.remove(digest).map_or(0, |before| before.bytes);
    }

    fn put(&mut self, digest: [u8; 32], entry: Entry, max: usize, max_bytes: usize) {
        self.bytes += entry.bytes;
        self.bytes -= self.entries.insert(digest, entry).map_or(0, |before| before.bytes);
        while self.entries.len() > max || self.bytes > max_bytes {
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

    /// Its client would be refused for as long as it shows the same.
    #[tokio::test]
    async fn an_answer_that_has_expired_is_asked_for_again() {
        let terms = crate::auth::HookTerms::default();
        let read = |at| {
            let answer =
                crate::auth::HookAnswer::read(br#"{"expires_in":60}"#, &terms, at).expect("an answer");
            Verdict::Granted(answer.into())
        };
        let (mut kept, now) = (Kept::default(), SystemTime::now());
        kept.put(digest(1), &read(now), 1, Instant::now());
        kept.put(digest(2), &read(now - Duration::from_secs(61)), 1, Instant::now());
        assert!(kept.find(&digest(1), None).is_some() && kept.find(&digest(2), None).is_none());
    }

    #[tokio::test]
    async fn answers_are_kept_up_to_a_number_and_a_size() {
        let (mut kept, refused) = (Kept::default(), Verdict::Refused(Code::Forbidden, None));
        let max_bytes = MAX_BYTES / MAX_ENTRIES * MAX_REFUSALS;
        for number in 0..=MAX_REFUSALS {
            kept.put(digest(number), &refused, 1, Instant::now());
        }
        assert_eq!((kept.refused.entries.len(), kept.refused.bytes), (MAX_REFUSALS, MAX_REFUSALS));
        assert!(kept.find(&digest(0), None).is_none() && kept.find(&digest(1), None).is_some());
        for _ in 0..3 {
            kept.put(digest(7), &refused, max_bytes, Instant::now());
            let now = (kept.refused.entries.len(), kept.refused.bytes);
            assert_eq!(now, (1, max_bytes), "the largest pushes out the others");
        }
    }

    #[tokio::test]
    async fn refusals_push_out_no_granted_answer() {
        let terms = crate::auth::HookTerms::default();
        let answer = crate::auth::HookAnswer::read(b"{}", &terms, SystemTime::now()).expect("an answer");
        let (mut kept, refused) = (Kept::default(), Verdict::Refused(Code::Forbidden, None));
        kept.put(digest(usize::MAX), &Verdict::Granted(answer.into()), 2, Instant::now());
        for number in 0..=MAX_ENTRIES {
            kept.put(digest(number), &refused, 1, Instant::now());
        }
        assert!(kept.find(&digest(usize::MAX), None).is_some());
        kept.put(digest(usize::MAX), &refused, 1, Instant::now());
        assert!(
            matches!(kept.find(&digest(usize::MAX), None), Some(Verdict::Refused(..))),
            "the last one counts"
        );
    }
}
