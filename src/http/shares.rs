//! Totals that clients share: each client may take what is free, until little is left. Then no client takes more than an
//! even share.
//!
//! So one client alone may use a server to its limits, and many clients are safe from one that takes too much. Some costs
//! last, or are room that a backend needs for its own requests. A client must not take all of these while no other client
//! is there: it takes as much as it leaves free, and all such clients together leave the last part to those without a
//! payer.
//! Each process has its own totals.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::log::{Payer, open_to};

/// The part of a total that is taken, and by whom.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// All clients without a payer count as one client.
    of: HashMap<Option<Payer>, usize>,
    /// An even share is that of so many clients at least.
    least_clients: usize,
}

impl Taken {
    /// True if a client may take this. A client without a payer, such as a backend with an API key, is limited
    /// by the total alone.
    fn allows(&self, total: usize, payer: Option<Payer>, amount: usize) -> bool {
        let all = self.all.saturating_add(amount);
        if all <= total - total / 4 {
            return true;
        }
        all <= total && (payer.is_none() || self.is_within_share(total, payer, amount))
    }

    fn is_within_share(&self, total: usize, payer: Option<Payer>, amount: usize) -> bool {
        let own = self.of.get(&payer);
        let clients = (self.of.len() + usize::from(own.is_none())).max(self.least_clients);
        own.copied().unwrap_or(0) + amount <= total / clients
    }

    fn add(&mut self, payer: Option<Payer>, amount: usize) {
        self.all += amount;
        *self.of.entry(payer).or_default() += amount;
    }

    fn remove(&mut self, payer: Option<Payer>, amount: usize) {
        self.all -= amount;
        let Some(own) = self.of.get_mut(&payer) else { return };
        *own -= amount;
        if *own == 0 {
            self.of.remove(&payer);
        }
    }
}

/// How much one client may take.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// All that is free, and an even share while little is left.
    Even,
    /// As much as it leaves free.
    LeaveAsMuch,
}

/// A total that clients share.
#[derive(Debug)]
pub struct Shares {
    total: usize,
    rule: Rule,
    // A std mutex: no await happens while it is held, and each use is a few steps.
    taken: Mutex<Taken>,
}

impl Shares {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, rule: Rule::Even, taken: Mutex::default() })
    }

    /// A total of which each client may take as much as it leaves free.
    pub fn leaving_as_much(total: usize) -> Arc<Self> {
        Arc::new(Self { total, rule: Rule::LeaveAsMuch, taken: Mutex::default() })
    }

    fn allow(&self, taken: &Taken, payer: Option<Payer>, amount: usize) -> bool {
        match self.rule {
            Rule::Even => taken.allows(self.total, payer, amount),
            Rule::LeaveAsMuch => {
                let has = || taken.of.get(&payer).copied().unwrap_or(0);
                let own = if payer.is_some() { has().saturating_add(amount) } else { 0 };
                own.saturating_add(taken.all).saturating_add(amount) <= open_to(payer, self.total)
            }
        }
    }

    /// A share for a client, in which there is nothing yet.
    pub fn none(self: &Arc<Self>, payer: Option<Payer>) -> Share {
        Share { shares: self.clone(), payer, amount: 0 }
    }

    /// How much is taken.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// Takes this much, until the result is dropped. `None` if that is more than the client may take now.
    pub fn take(self: &Arc<Self>, payer: Option<Payer>, amount: usize) -> Option<Share> {
        let mut share = self.none(payer);
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
        if amount == self.amount {
            return true;
        }
        let mut taken = self.shares.lock();
        if amount > self.amount && !self.shares.allow(&taken, self.payer, amount - self.amount) {
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

impl Share {
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more, whether the client may or not, so that it is this much.
    pub fn grow(&mut self, amount: usize) {
        self.shares.lock().add(self.payer, amount - self.amount);
        self.amount = amount;
    }

    /// True if the client might take nothing even if it gave all of this back.
    pub fn is_in_excess(&self) -> bool {
        let mut taken = self.shares.lock();
        taken.remove(self.payer, self.amount);
        let is_allowed = self.shares.allow(&taken, self.payer, 1);
        taken.add(self.payer, self.amount);
        !is_allowed
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
        Self { per_window: rate as usize, window: Mutex::new((Instant::now(), Self::unused())) }
    }

    /// A user that comes first in a second leaves a quarter to users that come later, as if there were another one.
    fn unused() -> Taken {
        Taken { least_clients: 2, ..Taken::default() }
    }

    /// Takes one. False if that is more than the client may take in this second.
    pub fn take_one(&self, payer: Option<Payer>) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(window.0) >= WINDOW {
            *window = (now, Self::unused());
        }
        let is_allowed = window.1.allows(open_to(payer, self.per_window), payer, 1);
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
        Some(Payer::subject(&number.to_string()))
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

    /// A client that held all of it, alone, left nothing to those that came later.
    #[test]
    fn of_what_can_be_held_for_long_a_client_takes_as_much_as_it_leaves_free() {
        let shares = Shares::leaving_as_much(100);
        let greedy = take_all(&shares, payer(1));
        assert_eq!(greedy.len(), 44);
        assert!(shares.take(payer(2), 23).is_none());
        let _other = shares.take(payer(2), 22).expect("as much as it leaves free");
        let _backend = shares.take(None, 34).expect("a backend may take the rest");
        assert!(shares.take(None, 1).is_none());
        drop(greedy);
        assert!(shares.take(payer(1), 17).is_none() && shares.take(payer(1), 16).is_some());
        let mut none = shares.none(payer(3));
        assert!(none.set(0) && none.set(10) && !none.set(17));
    }

    /// Each of them took no more than it might, and together they left nothing to a backend.
    #[test]
    fn all_clients_with_a_payer_leave_the_last_eighth_to_those_without() {
        let shares = Shares::leaving_as_much(80);
        let users: Vec<_> = (0..100).flat_map(|number| take_all(&shares, payer(number))).collect();
        // The last one cannot leave as much as it takes.
        assert!((69..=70).contains(&users.len()), "{}", users.len());
        assert_eq!(take_all(&shares, None).len(), 80 - users.len());
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

    /// Keys of backends had no share: users took everything, as long as they held it.
    #[test]
    fn all_clients_without_a_payer_count_as_one_client() {
        let shares = Shares::new(100);
        let first = shares.take(None, 1).expect("free");
        let greedy = take_all(&shares, payer(1));
        assert_eq!(greedy.len(), 74);
        assert_eq!(take_all(&shares, None).len(), 25);
        drop(first);
        assert_eq!((shares.taken(), take_all(&shares, payer(1)).len()), (74, 26), "it is alone again");
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_rate_each_client_has_its_share_of_every_second() {
        let rate = Rate::per_second(100);
        let take_all = |payer| (0..1_000).filter(|_| rate.take_one(payer)).count();
        assert!(rate.take_one(payer(2)));
        assert_eq!(take_all(payer(1)), 65, "three quarters of all but the last eighth");
        assert_eq!(take_all(payer(2)), 22, "the rest of it");
        assert!(!rate.take_one(payer(3)), "the last eighth is not for users");
        assert_eq!(take_all(None), 12, "so the backend has it");
        tokio::time::advance(WINDOW).await;
        assert_eq!(take_all(None), 100);
    }

    /// It was alone at the begin of each second, so it took all, and other users published nothing as long as it went on.
    #[tokio::test(start_paused = true)]
    async fn a_user_that_comes_first_in_each_second_leaves_some_to_others() {
        let rate = Rate::per_second(100);
        for _ in 0..3 {
            while rate.take_one(payer(1)) {}
            assert_eq!((0..1_000).filter(|_| rate.take_one(payer(2))).count(), 22);
            assert!(rate.take_one(None));
            tokio::time::advance(WINDOW).await;
        }
    }

    /// Clients without a payer had a part of the even shares also while none of them published, so two users had a third each.
    #[tokio::test(start_paused = true)]
    async fn two_users_of_equal_pace_have_half_of_a_rate_each() {
        let rate = Rate::per_second(100);
        let mut taken = [0, 0];
        for _ in 0..100 {
            for (number, taken) in (0..).zip(&mut taken) {
                *taken += usize::from(rate.take_one(payer(number)));
            }
        }
        assert_eq!(taken, [44, 44], "of all but the last eighth");
    }

    /// A user with one grant to publish took the whole rate, and stopped the publishes of the backend.
    #[tokio::test(start_paused = true)]
    async fn users_leave_a_part_of_a_rate_to_the_backend() {
        for greedy in [1, 2, 100] {
            let rate = Rate::per_second(100);
            for number in 0..greedy {
                while rate.take_one(payer(number)) {}
            }
            assert!((0..1_000).filter(|_| rate.take_one(None)).count() >= 12, "{greedy}");
        }
        for smallest in 1..8 {
            assert!(Rate::per_second(smallest).take_one(payer(1)), "{smallest}");
        }
    }
}
