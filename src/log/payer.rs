//! The client that pays for a cost, as a number: totals that clients share count by it.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU64,
    sync::LazyLock,
};

/// The client for which a cost is counted: the subject of a token, or the address of a client without one. It is a
/// hash, because one is kept with each connection, topic and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Payer(NonZeroU64);

/// The last part of each total that clients share is for those without a payer: so much of it as one divided by this. Many
/// users together must not keep out the backend, and it may come last.
pub const PART_WITHOUT_PAYER: usize = 8;

/// The part of a total that this client may use, together with all others.
pub fn open_to(payer: Option<Payer>, total: usize) -> usize {
    if payer.is_some() { total - total / PART_WITHOUT_PAYER } else { total }
}

/// The hashes differ in each process, so that no client can choose one that has the hash of another.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Payer {
    /// A subject, with the prefix of its issuer.
    pub fn subject(subject: &str) -> Self {
        Self::of(subject)
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

    /// The number of this client in this process.
    pub fn number(self) -> u64 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_total_has_no_part_for_those_without_a_payer() {
        let user = Some(Payer::subject("a"));
        assert_eq!([0, 1, 7, 8, 100].map(|total| open_to(user, total)), [0, 1, 7, 7, 88]);
        assert_eq!(open_to(None, 100), 100);
    }

    #[test]
    fn a_payer_is_one_subject_or_one_network() {
        assert_eq!(Payer::subject("a"), Payer::subject("a"));
        assert_ne!(Payer::subject("a"), Payer::subject("b"));
        let address = |text: &str| Payer::address(text.parse().expect("an address"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::2:3"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }
}
