//! Totals that clients share: each client may take what is free, until little is left. Then no client takes more than an
//! even share.
//!
//! So one client alone may use a server to its limits, and many clients are safe from one that takes too much. Each
//! process has its own.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU64,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The client for which a cost is counted: the subject of a token, or the address of a client without one. It is a
/// hash, because one is kept with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Payer(NonZeroU64);

/// The hashes differ in each process, so that no client can choose one that has the hash of another.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Payer {
    /// The subject of a token, and its issuer.
    pub fn subject(sub: &str, iss: Option<&str>) -> Self {
        Self::of((sub, iss))
    }

    /// An address. One client of IPv6 has all addresses of a network of 64 bits.
    pub fn address(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of(ip),
            IpAddr::V6(ip) => Self::of(&ip.segments()[..4]),
        }
    }

    fn of(what: impl Hash) -> Self {
        Self(NonZeroU64::new(HASHES.hash_one(what)).unwrap_or(NonZeroU64::MIN))
    }
}

/// The part of a total that is taken, and by whom.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<Payer, usize>,
}

impl Taken {
    /// True if a client may take this. A client without a payer, such as a backend with an API key, is limited
    /// by the total alone.
    fn allows(&self, total: usize, payer: Option<Payer>, amount: usize) -> bool {
        let all = self.all.saturating_add(amount);
        if all <= total - total / 4 {
            return true;
        }
        all <= total && payer.is_none_or(|payer| self.is_within_share(total, payer, amount))
    }

    fn is_within_share(&self, total: usize, payer: Payer, amount: usize) -> bool {
        let own = self.of.get(&payer);
        let payers = self.of.len() + usize::from(own.is_none());
        own.copied().unwrap_or(0) + amount <= total / payers
    }

    fn add(&mut self, payer: Option<Payer>, amount: usize) {
        self.all += amount;
        if let Some(payer) = payer
            && amount > 0
        {
            *self.of.entry(payer).or_default() += amount;
        }
    }

    fn remove(&mut self, payer: Option<Payer>, amount: usize) {
        self.all -= amount;
        let Some(payer) = payer else { return };
        let Some(own) = self.of.get_mut(&payer) else { return };
        *own -= amount;
        if *own == 0 {
            self.of.remove(&payer);
        }
    }
}

/// A total that clients share.
#[derive(Debug)]
pub struct Shares {
    total: usize,
    // A std mutex: no await happens while it is held, and each use is a few steps.
    taken: Mutex<Taken>,
}

impl Shares {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, taken: Mutex::default() })
    }

    /// How much is taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// Takes this much, until the result is dropped. `None` if that is more than the client may take now.
    pub fn take(self: &Arc<Self>, payer: Option<Payer>, amount: usize) -> Option<Share> {
        let mut share = Share { shares: self.clone(), payer, amount: 0 };
        share.set(amount).then_some(share)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a total that one client has taken. It is given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    payer: Option<Payer>,
    amount: usize,
}

impl Share {
    /// Takes more, or gives a part back, so that it is this much. False, and nothing changes, if that is more than the
    /// client may take now.
    pub fn set(&mut self, amount: usize) -> bool {
        let mut taken = self.shares.lock();
        if amount > self.amount && !taken.allows(self.shares.total, self.payer, amount - self.amount) {
            return false;
        }
        match amount.checked_sub(self.amount) {
            Some(more) => taken.add(self.payer, more),
            None => taken.remove(self.payer, self.amount - amount),
        }
        self.amount = amount;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The time over which a rate is counted.
const WINDOW: Duration = Duration::from_secs(1);

/// A rate that clients share.
#[derive(Debug)]
pub struct Rate {
    per_window: usize,
    /// The begin of this second, and what was taken since.
    window: Mutex<(Instant, Taken)>,
}

impl Rate {
    pub fn per_second(rate: u32) -> Self {
        Self { per_window: rate as usize, window: Mutex::new((Instant::now(), Taken::default())) }
    }

    /// Takes one. False if that is more than the client may take in this second.
    pub fn take_one(&self, payer: Option<Payer>) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(window.0) >= WINDOW {
            *window = (now, Taken::default());
        }
        let is_allowed = window.1.allows(self.per_window, payer, 1);
        if is_allowed {
            window.1.add(payer, 1);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payer(number: u32) -> Option<Payer> {
        Some(Payer::subject(&number.to_string(), None))
    }

    /// Takes one after the other, until no more is given.
    fn take_all(shares: &Arc<Shares>, payer: Option<Payer>) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(payer, 1)).collect()
    }

    #[test]
    fn one_client_alone_may_take_everything() {
        let shares = Shares::new(100);
        assert_eq!(take_all(&shares, payer(1)).len(), 100);
        assert_eq!(take_all(&shares, None).len(), 100);
        assert_eq!(shares.taken(), 0, "all was given back");
        assert!(shares.take(payer(1), 101).is_none());
    }

    #[test]
    fn a_client_that_takes_everything_first_leaves_a_quarter_to_others() {
        let shares = Shares::new(100);
        let _early = shares.take(payer(2), 1);
        let greedy = take_all(&shares, payer(1));
        assert_eq!(greedy.len(), 74);
        let others: Vec<_> = (3..28).filter_map(|number| shares.take(payer(number), 1)).collect();
        assert_eq!(others.len(), 25, "each of them gets one");
        assert!(shares.take(payer(100), 1).is_none(), "now all are taken");
        drop(greedy);
        assert!(shares.take(payer(1), 50).is_none(), "an even share is less");
        assert!(shares.take(payer(1), 3).is_some());
    }

    #[test]
    fn a_share_grows_and_shrinks() {
        let shares = Shares::new(10);
        let _other = shares.take(payer(2), 1).expect("free");
        let mut share = shares.take(payer(1), 4).expect("free");
        assert!(share.set(6) && !share.set(8), "the even share is five");
        assert!(share.set(2));
        assert_eq!(shares.taken(), 3);
        assert!(share.set(5));
        drop(share);
        assert_eq!(shares.taken(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_rate_each_client_has_its_share_of_every_second() {
        let rate = Rate::per_second(100);
        assert!(rate.take_one(payer(2)));
        let greedy = (0..1_000).filter(|_| rate.take_one(payer(1))).count();
        assert_eq!(greedy, 74);
        let modest = (0..1_000).filter(|_| rate.take_one(payer(2))).count();
        assert_eq!(modest, 25, "the rest");
        assert!(!rate.take_one(payer(3)) && !rate.take_one(None), "the whole rate is used");
        tokio::time::advance(WINDOW).await;
        assert_eq!((0..1_000).filter(|_| rate.take_one(None)).count(), 100);
    }

    #[test]
    fn a_subject_is_of_one_issuer_and_an_address_of_one_network() {
        assert_ne!(Payer::subject("a", None), Payer::subject("a", Some("b")));
        assert_ne!(Payer::subject("a", Some("bc")), Payer::subject("ab", Some("c")));
        let address = |text: &str| Payer::address(text.parse().expect("an address"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::2:3"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }
}
